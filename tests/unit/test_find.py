"""Results of evaluate.py: read, found by name, and which may be in one table. test_summarize.py has the error lines."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from core import UserError
from core.image_scores import two_folds
from core.metrics import class_counts, drop_absent
from support.results import write_counts, write_result
from tools.reporting import find
from util.store.arrays import write_npz
from util.store.files import write_json
from util.store.formats import FORMATS, result_name, result_path

CLASSES, THRESHOLDS = 300, (0.2, 0.25)  # more classes than fit into a byte


def write_random(rng, thresholds=THRESHOLDS, images=5, largest=70_000) -> np.ndarray:
    """Write a result at the last threshold. Each image has a few classes, the last one none; return all counts."""
    confusion = np.zeros((images, len(thresholds), CLASSES, CLASSES), np.int64)
    for image in confusion[:-1]:
        there = np.append(rng.choice(CLASSES - 1, 3, replace=False), CLASSES - 1)
        image[:, there[:, None], there] = rng.integers(0, largest, (len(thresholds), 4, 4))
    by_image = [(classes, class_counts(counts)) for classes, counts in map(drop_absent, confusion)]
    write_counts('a@train', by_image, confusion.sum(0)[-1], thresholds)
    return class_counts(confusion)


# Reading ------------------------------------------------------------------------------------------------------------


def test_a_result_is_read(in_tmp):
    write_result('a@train', 50)
    result = find.read(result_path('a@train'))
    content = json.loads(result_path('a@train').read_text())
    more = {'name': 'a@train', 'path': result_path('a@train'), 'sweep': {0.3: 50, 0.2: 47}}
    assert result == {**content, **more}
    assert find.read_counts(result) is None


def test_a_copy_under_another_name_is_refused(in_tmp):
    write_result('a@val', 50, domain='val')
    path = result_path('a@val')
    for name in ('b@val', 'a@train', 'a@dcrf=10@val'):
        shutil.copy(path, result_path(name))
        with pytest.raises(
            UserError, match=f'{name}.json: is the result of a@val, copied or renamed; rerun evaluate.py'
        ):
            find.read(result_path(name))
    elsewhere = in_tmp / 'from_a_colleague.json'
    shutil.copy(path, elsewhere)
    assert find.find(str(elsewhere))[0]['miou'] == 50


def test_without_a_background_the_baseline_is_a_class(in_tmp):
    write_result('a@train', 50)
    assert find.baseline(find.read(result_path('a@train'))) == 12.5
    write_result('b@train', 50, all_background_miou=None, one_class={'class': 'wood', 'miou': 20.0})
    assert find.baseline(find.read(result_path('b@train'))) == 20
    for one_class in ({'class': 'wood'}, None, {'class': 'wood', 'miou': float('nan')}):
        write_result('c@train', 50, all_background_miou=None, **({'one_class': one_class} if one_class else {}))
        with pytest.raises(UserError, match='c@train.json: is not a valid result file'):
            find.read(result_path('c@train'))


@pytest.mark.parametrize('thresholds', [THRESHOLDS, (0.3,), (None,)])
def test_counts_of_the_threshold_are_read(in_tmp, rng, thresholds):
    expected = write_random(rng, thresholds)[:, -1]
    (result,) = find.find('a')
    ids, counts = find.read_counts(result)
    assert ids == ['image0', 'image1', 'image2', 'image3', 'image4']
    assert counts.shape == (5, CLASSES, 3)
    assert counts.dtype == np.uint32
    assert np.array_equal(counts, expected)
    assert expected.any((1, 2)).tolist() == [True] * 4 + [False]


def test_two_fold_counts_are_at_the_threshold_of_the_fold(in_tmp, rng):
    expected = write_random(rng)
    (result,) = find.find('a')
    result['two_fold'] = {'thresholds': [0.25, 0.2]}
    ids, counts = find.read_counts(result, two_fold=True)
    for image, fold, found in zip(expected, two_folds(ids), counts, strict=True):
        assert np.array_equal(found, image[1 - fold])
    assert not np.array_equal(counts, expected[:, 1])
    result['two_fold'] = None
    assert np.array_equal(find.read_counts(result, two_fold=True)[1], expected[:, 1])
    result['two_fold'] = {'thresholds': [0.25, 0.3]}
    with pytest.raises(UserError, match='a@train.npz: is damaged or not of a@train.json'):
        find.read_counts(result, two_fold=True)


def test_maps_are_known_by_their_two_fold_scores(in_tmp):
    write_result('a@train', 50)
    write_result('b@train', 50, None)
    a, b = (find.find(name)[0] for name in 'ab')
    assert find.headline(a) == {'miou': 49, 'dice': 59, 'thresholds': [0.2, 0.3]}
    assert find.headline(b) is b


@pytest.mark.parametrize(
    'change',
    [
        {'ids': np.array(['image0'])},
        {'images': np.full(16, 5)},
        {'classes': np.full(16, CLASSES)},
        {'classes': np.zeros(16)},
        {'counts': np.zeros((16, 1, 3), int)},
        {'counts': np.ones((16, 2, 3), int)},
        {'thresholds': np.array([0.2, 0.3])},
        {'counts': None},
    ],
)
def test_damaged_counts_are_named(in_tmp, rng, change):
    write_random(rng)
    path = result_path('a@train', 'npz')
    with np.load(path) as file:
        arrays = {**file, **change}
    write_npz(path, **{name: array for name, array in arrays.items() if array is not None})
    (result,) = find.find('a')
    with pytest.raises(UserError, match='results/a@train.npz: is damaged or not of a@train.json; rerun evaluate.py'):
        find.read_counts(result)


def test_a_folder_says_its_format(in_tmp):
    for title, kind in FORMATS.items():
        write_json(in_tmp / 'args.json', {'format': title})
        assert find.format_of(in_tmp) is kind
    for content in ('{}', '{', '{"format": "something"}', '{"format": null}'):
        (in_tmp / 'args.json').write_text(content)
        assert find.format_of(in_tmp) is None
    assert find.format_of(in_tmp / 'missing') is None


# Comparing ----------------------------------------------------------------------------------------------------------


def test_the_seed_is_an_option_or_in_the_name():
    for name, options, seed in (
        ('a@seed=7@train', {}, 7),
        ('seed=7', {}, 7),
        ('a@seed=7', {'seed': 3}, 3),
        ('a', {'seed': 0}, 0),
    ):
        assert find.seed_of({'name': name, 'made_with': {'options': options}}) == seed
    for name in ('a', 'a@seed=x', 'aseed=7'):
        with pytest.raises(UserError, match=f'^{name}: its seed is unknown'):
            find.seed_of({'name': name, 'made_with': {}})


def test_results_are_compared_by_what_is_asked_for(in_tmp):
    write_result('a@train', 50)
    write_result('b@val', 60, domain='val', dataset='VOC 2012')
    both = find.find('a') + find.find('b')
    find.check_comparable(both[:1])
    find.check_comparable(both, 'classes', 'masks')
    with pytest.raises(
        UserError, match='different splits cannot be in one table: a@train [(]train[)], b@val [(]val[)]'
    ):
        find.check_comparable(both)
    with pytest.raises(UserError, match='different data sets'):
        find.check_comparable(both, 'data sets')


def test_damaged_results_among_several_can_be_skipped(in_tmp, capsys):
    for name in 'ab':
        write_result(f'{name}@train', 50)
    Path('experiments/results/notes.json').write_text('{}')
    assert [result['name'] for result in find.find('*', skip_damaged=True)] == ['a@train', 'b@train']
    line = 'warning: experiments/results/notes.json: is not a valid result file; rerun evaluate.py\n'
    assert capsys.readouterr().err == line
    for name, skip in (('*', False), ('notes', True)):
        with pytest.raises(UserError, match='notes.json: is not a valid result file'):
            find.find(name, skip)


def test_results_of_one_stage_have_a_mean(in_tmp):
    for name, more in (('a', {}), ('b', {}), ('c', {'format': 'prediction'}), ('d@dcrf=10', {'crf_iteration': 10})):
        write_result(f'{name}@train', 50, **more)
    a, b, c, d = (find.find(name)[0] for name in 'abcd')
    find.check_stage([a, b])
    for other, what in ((c, 'prediction'), (d, 'CAM, --crf_iteration 10')):
        with pytest.raises(
            UserError, match=f'different stages cannot be in one row: a@train [(]CAM[)], .*@train [(]{what}[)]'
        ):
            find.check_stage([a, other])


# Finding ------------------------------------------------------------------------------------------------------------


def names_of(results) -> list[str]:
    return [result['name'] for result in results]


def test_results_are_found_by_name_tag_pattern_part_and_path(in_tmp):
    for name in ('demo@cl@train', 'demo@puzzle@train', 'demonstration@train', '.hidden'):
        write_result(name, 50)
    for name, expected in (
        ('demo', ['demo@cl@train', 'demo@puzzle@train']),
        ('demo@cl@train', ['demo@cl@train']),
        ('demo@cl@train.json', ['demo@cl@train']),
        ('demo*train', ['demo@cl@train', 'demo@puzzle@train', 'demonstration@train']),
        ('puzz', ['demo@puzzle@train']),
        (str(result_path('demo@cl@train')), ['demo@cl@train']),
    ):
        assert names_of(find.find(name)) == expected


def test_results_of_a_folder(in_tmp):
    """On all lists, also after a CRF; no results of folders whose names begin alike."""
    for name, domain, crf in (
        ('a', 'train', 0),
        ('a', 'val', 0),
        ('a', 'val', 10),
        ('a@x', 'val', 0),
        ('b', 'train', 0),
    ):
        write_result(result_name(name, domain, crf), 50, domain=domain, crf_iteration=crf)
    assert names_of(find.of_folder('a')) == ['a@dcrf=10@val', 'a@train', 'a@val']
    assert find.of_folder('missing') == []


def test_results_are_listed_newest_first(in_tmp):
    with pytest.raises(UserError, match='experiments/results contains no results; run evaluate.py first'):
        find.list_paths()
    for i, name in enumerate(('old', 'new', 'same')):
        write_result(name, 50)
        os.utime(result_path(name), (min(i, 1), min(i, 1)))
    assert [path.stem for path in find.list_paths()] == ['new', 'same', 'old']
