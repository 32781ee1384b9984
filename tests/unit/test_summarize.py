"""tools/summarize.py: tables over runs, and comparisons."""

import csv
import io
import json
import os

import numpy as np
import pytest

from core import UserError
from core.image_scores import SIZES, choose_on_other_fold, two_folds, unpack
from core.intervals import difference_interval, score_interval
from core.metrics import mean_scores
from core.metrics import summarize as summarize_counts
from support import fault_of
from support.made_outputs import CAM, LABELS
from support.results import write_counts, write_result
from tools import summarize
from tools.reporting import find
from util.store import results
from util.store.arrays import write_npz
from util.store.formats import result_path


def cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table."""
    assert line.startswith('|') and line.endswith('|')
    return [cell.strip() for cell in line[1:-1].split('|')]


def tables(capsys, *arguments) -> list[list[list[str]]]:
    """Run the program and return the tables that it prints, without their lines of dashes."""
    summarize.main(summarize.parse_args(arguments))
    found = []
    for block in capsys.readouterr().out.strip().split('\n\n'):
        head, dashes, *lines = block.splitlines()
        # The first column is aligned to the left, the others to the right.
        assert cells(dashes)[0].strip('-') == ':'
        assert all(cell.strip('-') == ':' and cell.endswith('-:') for cell in cells(dashes)[1:])
        assert len({len(line) for line in (head, dashes, *lines)}) == 1
        found.append([cells(line) for line in (head, *lines)])
        assert len({len(row) for row in found[-1]}) == 1
    return found


HEADERS = ['', 'runs', 'images', 'mIoU %', 'Dice %', 'best mIoU %', 'FP %', 'FN %', 'threshold', 'all-background %']
OF_LABELS = [header for header in HEADERS if header != 'best mIoU %']


def test_mean_and_deviation_over_runs(in_tmp, capsys):
    for seed, (miou, threshold) in enumerate([(50, 0.3), (52, 0.4), (57, 0.3)]):
        write_result(f'a@seed={seed}@scale=0.5,1.0@train', miou, threshold)
    write_result('ab@train', 99, None)
    means = '52.00 +- 3.61', '62.00 +- 3.61', '53.00 +- 3.61'
    (table,) = tables(capsys, 'three | a@seed=*@scale=0.5,1.0@train | 51.53', 'one | ab@train')
    assert table == [
        [*HEADERS, 'published %'],
        ['three', '3', '6', *means, '20.0', '17.0', '0.30 0.40', '12.50', '51.53'],
        ['one', '1', '6', '99.00', '109.00', '', '20.0', '-29.0', '-', '12.50', ''],
    ]
    (table,) = tables(capsys, 'one | ab@train')
    assert table == [OF_LABELS, ['one', '1', '6', '99.00', '109.00', '20.0', '-29.0', '-', '12.50']]


def test_maps_are_known_by_their_two_fold_scores(in_tmp, capsys):
    """A threshold that was given was not chosen, and maps may have too few images with objects for two folds."""
    write_result('swept@train', 50)
    write_result('given@train', 50, thresholds=[{'threshold': 0.3, 'miou': 50}], two_fold=None)
    write_result('few@train', 50, two_fold=None)
    (table,) = tables(capsys, 'swept@train', 'given@train', 'few@train')
    assert [row[3:6] for row in table] == [
        ['mIoU %', 'Dice %', 'best mIoU %'],
        ['49.00', '59.00', '50.00'],
        ['50.00', '60.00', ''],
        ['-', '-', '50.00'],
    ]
    scores = {row[0]: row[4:6] for row in tables(capsys)[0]}
    assert scores == {
        '': ['mIoU %', 'best mIoU %'],
        'swept@train': ['49.00', '50.00'],
        'given@train': ['50.00', ''],
        'few@train': ['-', '50.00'],
    }


def test_names_are_literal_except_for_the_star(in_tmp, capsys):
    for name, miou in (('a[1]@train', 10), ('a1@train', 20), ('a?@train', 30), ('ab@train', 40)):
        write_result(name, miou)
    (table,) = tables(capsys, 'x | a[1]@train', 'y | a?@train', 'z | *@train')
    assert [row[5] for row in table[1:]] == ['10.00', '30.00', '25.00 +- 12.91']


def test_thresholds(in_tmp, capsys):
    for seed, miou in enumerate([50, 52]):
        write_result(f'cam@seed={seed}@train', miou, 0.3)
    write_result('walk@train', 60, 0.4)
    write_result('label@train', 61, None)
    rows = 'CAM | cam@seed=*@train', 'RW | walk@train', 'label | label@train'
    assert tables(capsys, '--thresholds', *rows)[1] == [
        ['threshold', '0.20', '0.30', '0.40'],
        ['CAM', '48.00', '[51.00]', '-'],
        ['RW', '57.00', '-', '[60.00]'],
    ]
    assert len(tables(capsys, *rows)) == 1
    assert len(tables(capsys, '--thresholds', 'label | label@train')) == 1


def test_missing_results_are_named(in_tmp, capsys):
    with pytest.raises(UserError, match='results/none@train.json not found; run evaluate.py first'):
        summarize.main(summarize.parse_args(['x | none@train']))
    assert 'results/none@train.json not found' in fault_of(summarize, ['x | none@train'], capsys)
    for name in ('../a', 'a/b'):
        assert fault_of(summarize, [f'x | {name}'], capsys).endswith(f'error: {name}: no such file')
    for name in ('', '**', 'a?'):
        assert f'results/{name}.json not found; run evaluate.py first' in fault_of(summarize, [f'x | {name}'], capsys)
    assert 'is not NAME, TITLE | NAME or' in fault_of(summarize, ['a | b | c | d'], capsys)
    for flag in ('--classes', '--objects', '--options', '--thresholds'):
        assert f'{flag}: needs rows, such as NAME, or --paired' in fault_of(summarize, [flag], capsys)
    assert 'contains no results; run evaluate.py first' in fault_of(summarize, [], capsys)


@pytest.mark.parametrize(
    'change',
    [
        {'miou': None},
        {'fp': 'x'},
        {'fn': float('nan')},
        {'thresholds': [1]},
        {'domain': 1},
        {'masks': []},
        {'iou': ['cat']},
        {'iou': {'cat': 'x'}},
        {'made_with': [1]},
        {'made_with': {'fingerprint': []}},
        {'made_with': {'options': {'experiment_name': {}}}},
        {'experiment_name': []},
        {'experiment_name': None},
        {'crf_iteration': None},
        {'format': None},
        {'confusion': 1},
        {'two_fold': {'miou': 1.0}},
        {'two_fold': {'miou': float('nan'), 'dice': 1.0, 'thresholds': [0.2]}},
        {'false_masks': {}},
        {'by_size': {}},
        None,
    ],
)
def test_damaged_results_are_named(in_tmp, capsys, change):
    write_result('a@train', 50)
    path = result_path('a@train', 'json')
    path.write_text('{' if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    text = fault_of(summarize, ['x | a@train'], capsys)
    assert 'results/a@train.json: is not a valid result file; rerun evaluate.py' in text


# Finding results ----------------------------------------------------------------------------------------------------


def test_all_results_newest_first(in_tmp, capsys):
    for i, (name, domain) in enumerate([('old', 'train'), ('b', 'val'), ('a', 'train')]):
        write_result(f'{name}@{domain}', 50 + i, 0.125 if i else None, domain)
        os.utime(result_path(f'{name}@{domain}', 'json'), (i * 86400, i * 86400))
    result_path('broken@train', 'json').write_text('{')
    summarize.main(summarize.parse_args([]))
    out, err = capsys.readouterr()
    head, _, *lines = out.splitlines()
    assert cells(head) == ['', 'data set', 'split', 'images', 'mIoU %', 'best mIoU %', 'threshold', 'written']
    assert [cells(line)[:-1] for line in lines] == [
        ['a@train', 'drawn', 'train', '6', '51.00', '52.00', '0.125'],
        ['b@val', 'drawn', 'val', '6', '50.00', '51.00', '0.125'],
        ['old@train', 'drawn', 'train', '6', '50.00', '', '-'],
    ]
    assert cells(lines[0])[-1].startswith('1970-01-0')
    assert 'warning: experiments/results/broken@train.json: is not a valid' in err


def test_names_by_tag_part_and_path(in_tmp, capsys):
    for name, miou in (('demo@cl@train', 10), ('demo@puzzle@train', 20), ('demonstration@train', 30)):
        write_result(name, miou)
    for name, expected in (
        ('demo@cl@train.json', ['10.00']),
        ('puzzle', ['20.00']),
        ('puzzle@train.json', ['20.00']),
        ('monst', ['30.00']),
        ('demo@cl', ['10.00']),
        ('experiments/results/demo@cl@train.json', ['10.00']),
        ('demo@*', ['15.00 +- 7.07']),
    ):
        assert [row[5] for row in tables(capsys, name)[0][1:]] == expected, name
        assert [row[5] for row in tables(capsys, f'title | {name}')[0][1:]] == expected, name
    (table,) = tables(capsys, 'demo')
    assert [row[0] for row in table[1:]] == ['demo@cl@train', 'demo@puzzle@train']
    text = fault_of(summarize, ['title | demo'], capsys)
    assert "'demo' is the tag of 2 results: name one, or several by a pattern with *" in text
    text = fault_of(summarize, ['train'], capsys)
    assert "'train' is a part of 3 names: demo@cl@train, demo@puzzle@train, demonstration@train" in text
    write_result('zoo@train', 50)
    write_result('zoo@train@more@train', 60)
    assert [row[5] for row in tables(capsys, 'zoo@train')[0][1:]] == ['50.00']  # a full name comes before a tag


def test_near_names_are_shown(in_tmp, capsys):
    for name in ('demo@cl@train@scale=0.5,1.0,1.5,2.0@train', 'demo@puzzle@train', 'zzz'):
        write_result(name, 10)
    text = fault_of(summarize, ['dmeo@cl'], capsys)
    assert 'dmeo@cl.json not found; did you mean demo@cl@train@scale=0.5,1.0,1.5,2.0@train' in text
    assert 'zzz' not in text
    for name in ('puzle', 'Puzzle', 'puzle.json'):
        text = fault_of(summarize, [name], capsys)
        assert text.endswith(f'{name.removesuffix(".json")}.json not found; did you mean demo@puzzle@train?')
    for name in ('x', '', '*q*'):
        assert f'results/{name}.json not found; python3 -m tools.summarize lists' in fault_of(summarize, [name], capsys)


# Comparisons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'change, part',
    [
        (
            {'domain': 'val'},
            'different splits cannot be in one table: a@x@train (train), b@x@val (val); print a table of each',
        ),
        (
            {'dataset': 'VOC 2012'},
            'different data sets cannot be in one table: a@x@train (drawn), b@x@train (VOC 2012)',
        ),
        ({'images': 7}, 'different numbers of images cannot be in one table: a@x@train (6), b@x@train (7)'),
        (
            {'masks': 'b' * 64},
            f'different masks cannot be in one table: a@x@train ({"a" * 40}), b@x@train ({"b" * 40})',
        ),
        (
            {'iou': {'background': 1, 'dog': 2}},
            'different classes cannot be in one table: a@x@train (background, cat), b@x@',
        ),
    ],
)
def test_other_data_or_splits_are_refused(in_tmp, capsys, change, part):
    known = {'dataset': 'drawn', 'masks': 'a' * 64, 'iou': {'background': 1, 'cat': 2}}
    write_result('a@x@train', 50, **known)
    write_result(f'b@x@{change.get("domain", "train")}', 50, **{**known, **change})
    for line in (['a@x', 'b@x'], ['*@x@*'], ['--paired', 'a@x', 'b@x']):
        assert part in fault_of(summarize, line, capsys)
    tables(capsys, 'a@x', 'a@x')


def test_a_mean_is_of_one_stage(in_tmp, capsys):
    """Of a tag there may be CAMs, CAMs after a CRF, and their label maps."""
    write_result('a@seed=0@train', 50, folder='a@seed=0')
    for name, more, part in (
        (
            'a@seed=1@rw',
            {'folder': 'a@seed=1@rw', 'format': 'random-walk CAM'},
            'a@seed=0@train (CAM), a@seed=1@rw@train (random-walk CAM)',
        ),
        ('a@seed=1@dcrf=10', {'crf_iteration': 10}, 'a@seed=1@dcrf=10@train (CAM, --crf_iteration 10)'),
    ):
        write_result(f'{name}@train', 60, **more)
        for line in (['a@*'], ['title | a@*', '--classes'], ['--paired', 'a@*', 'a@*']):
            text = fault_of(summarize, line, capsys)
            assert 'outputs of different stages cannot be in one row: a@seed=0@train (CAM), ' in text
            assert part in text
        tables(capsys, 'a')  # a row for each
        result_path(f'{name}@train', 'json').unlink()


def test_options_upstream_differ(experiment, monkeypatch, capsys):
    """Of a chain: what the training runs and folders before the scored one were made with."""
    monkeypatch.chdir(experiment)
    rows = tables(capsys, '--options', f'{CAM}@train', f'{LABELS}@train')[1]
    assert ['AffinityNet: radius', '-', '5'] in rows
    assert ['random-walk CAM: cam_dir', '-', CAM] in rows
    assert ['pseudo-label: threshold', '-', '0.35'] in rows
    assert not [row for row in rows if row[0] == 'classifier: alpha']  # both have it


def test_classes_side_by_side(in_tmp, capsys):
    for seed, cat in enumerate((30, 34)):
        write_result(f'a@seed={seed}@train', 50 + seed, iou={'background': 80.0, 'cat': cat, 'dog': None})
    write_result('b@train', 51, iou={'background': 79.5, 'cat': 40.25, 'dog': 0.0})
    assert tables(capsys, '--classes', 'first | a@*', 'b')[1] == [
        ['IoU %', 'first', 'b@train', 'difference'],
        ['background', '80.00', '79.50', '-0.50'],
        ['cat', '32.00', '40.25', '+8.25'],
        ['dog', '-', '0.00', '-'],
        ['mIoU', '50.50', '51.00', '+0.50'],
    ]
    assert tables(capsys, '--classes', 'b', 'b', 'b')[1][0] == ['IoU %', 'b@train', 'b@train', 'b@train']


def test_objects_by_size_and_false_masks(in_tmp, capsys):
    for seed, share in enumerate((40.0, 50.0)):
        sizes = {size: {'objects': 3, 'iou': 10.0 + seed} for size in SIZES}
        sizes['>= 20 %'] = {'objects': 0, 'iou': None}
        write_result(
            f'a@seed={seed}@train', 50, by_size=sizes, false_masks={'images': 2, 'share': share, 'classes': {}}
        )
    write_result('b@train', 50, None, false_masks={'images': 0, 'share': None, 'classes': {}})
    sizes = [f'IoU %, {size}' for size in SIZES]
    assert tables(capsys, '--objects', 'first | a@*', 'b')[1] == [
        ['', 'images without an object', 'with a false mask %', *sizes],
        ['first', '2', '45.00', '10.50 (3)', '10.50 (3)', '10.50 (3)', '- (0)'],
        ['b@train', '0', '-', '- (0)', '10.00 (1)', '20.00 (2)', '30.00 (3)'],
    ]


def test_options_that_differ(in_tmp, capsys):
    for seed in (0, 1):
        options = {'alpha': 4.0, 'seed': seed, 'batch_size': 16}
        write_result(
            f'a@seed={seed}@train', 50, made_with={'options': options, 'fingerprint': {'model': f'{seed}' * 64}}
        )
    write_result('b@train', 50, made_with={'options': {'alpha': 1.0, 'seed': 0, 'batch_size': 16, 'level': 'cam'}})
    assert tables(capsys, '--options', 'first | a@*', 'b')[1] == [
        ['option', 'first', 'b@train'],
        ['CAM: alpha', '4.0', '1.0'],
        ['CAM: model', f'{"0" * 12}..., {"1" * 12}...', '-'],
        ['CAM: seed', '0, 1', '0'],
        ['CAM: level', '-', 'cam'],
    ]
    summarize.main(summarize.parse_args(['b', 'b', '--options']))
    assert capsys.readouterr().err == 'these runs have the same options\n'


def write_counted(name, rng, found: float, ids=20, **more):
    """Write a result with counts of images of 100 pixels with a cat, of which `found` is hit; return the counts."""
    counts = np.zeros((ids, 2, 3), np.int64)
    size = rng.integers(20, 60, ids)
    hit = rng.binomial(size, found)
    counts[:, 1] = np.stack([size, hit, hit], 1)
    counts[:, 0] = np.stack([100 - size, 100 - hit, 100 - size], 1)
    background, cat = counts.sum(0)
    confusion = np.array([[background[2], 0], [cat[0] - cat[2], cat[2]]])
    iou = summarize_counts(confusion, ('background', 'cat'))
    by_image = [(np.arange(2), row[None]) for row in counts]
    write_counts(name, by_image, confusion, scores=iou, **more)
    return counts


def test_interval_over_images(in_tmp, rng, capsys):
    counts = write_counted('a@train', rng, 0.7)
    write_counted('b@train', rng, 0.7)
    result_path('b@train', 'npz').unlink()
    table = tables(capsys, 'a@train', 'b@train')[0]
    low, high = score_interval(counts)['miou']
    assert [row[4] for row in table] == ['95 %', f'{100 * low:.2f} to {100 * high:.2f}', '']
    assert low < float(table[1][3]) / 100 < high


def test_paired_over_images(in_tmp, rng, capsys):
    seed = rng.integers(1 << 30)
    first = write_counted('a@train', np.random.default_rng(seed), 0.6)
    second = write_counted('b@train', np.random.default_rng(seed), 0.7)
    (table,) = tables(capsys, '--paired', 'a@train', 'b')
    assert table[0] == ['20 images', 'A', 'B', 'B - A', '95 %']
    assert [row[0] for row in table[1:]] == ['mIoU %', 'FP %', 'FN %']
    for row, name in zip(table[1:], ('miou', 'fp', 'fn'), strict=True):
        low, high = difference_interval(first, second)[name]
        assert row[4] == f'{100 * low:+.2f} to {100 * high:+.2f}'
        assert float(row[3]) == pytest.approx(float(row[2]) - float(row[1]), abs=0.011)
    (table,) = tables(capsys, '--paired', 'a', 'a')
    assert {row[4] for row in table[1:]} == {'+0.00 to +0.00'}


def write_swept(name, rng, ids=20):
    """Write a result of two thresholds, of which half of the images is better at each; return its two-fold counts."""
    size, better = rng.integers(20, 60, ids), rng.integers(0, 2, ids)
    counts = np.zeros((ids, 2, 2, 3), np.int64)  # images, thresholds, classes
    for t in (0, 1):
        hit = rng.binomial(size, np.where(better == t, 0.9, 0.6))
        counts[:, t, 1] = np.stack([size, hit, hit], 1)
        counts[:, t, 0] = np.stack([100 - size, 100 - hit, 100 - size], 1)
    background, cat = counts[:, 1].sum(0)
    confusion = np.array([[background[2], 0], [cat[0] - cat[2], cat[2]]])
    by_image = [(np.arange(2), image) for image in counts]
    content = write_counts(name, by_image, confusion, (0.2, 0.3), summarize_counts(confusion, ('background', 'cat')))
    packed, folds = results.pack(by_image), two_folds([f'image{i}' for i in range(ids)])
    chosen = choose_on_other_fold(folds, **packed, num_classes=2)
    assert content['two_fold']['thresholds'] == [(0.2, 0.3)[t] for t in chosen]
    return unpack(np.array(chosen)[folds], **packed, num_classes=2)


def test_intervals_of_maps_are_two_fold(in_tmp, rng, capsys):
    first = write_swept('a@train', rng)
    (table,) = tables(capsys, 'a')
    low, high = score_interval(first)['miou']
    assert table[1][4] == f'{100 * low:.2f} to {100 * high:.2f}'
    assert float(table[1][3]) == pytest.approx(100 * float(mean_scores(first.sum(0))['miou']), abs=0.006)
    assert table[1][3] != table[1][6]


def test_pairs_of_maps_are_compared_two_fold_and_at_the_best_threshold(in_tmp, rng, capsys):
    seed = rng.integers(1 << 30)
    first = write_swept('a@train', np.random.default_rng(seed))
    second = write_counted('b@train', np.random.default_rng(seed), 0.7)  # label maps of the same sizes of cats
    (table,) = tables(capsys, '--paired', 'a', 'b')
    assert [row[0] for row in table[1:]] == ['mIoU %', 'best mIoU %', 'FP %', 'FN %']
    low, high = difference_interval(first, second)['miou']
    assert table[1][4] == f'{100 * low:+.2f} to {100 * high:+.2f}'
    best = find.read_counts(find.find('a')[0])[1]
    for row, name in zip(table[2:], ('miou', 'fp', 'fn'), strict=True):
        low, high = difference_interval(best, second)[name]
        assert row[4] == f'{100 * low:+.2f} to {100 * high:+.2f}'
    # Without two-fold scores the best threshold is all there is.
    content = json.loads(result_path('a@train').read_text())
    result_path('a@train').write_text(json.dumps({**content, 'two_fold': None}))
    assert tables(capsys, '--paired', 'a', 'b')[0] == [table[0], *table[2:]]


def test_one_image_has_no_interval(in_tmp, rng, capsys):
    write_counted('a@train', rng, 0.7, ids=1)
    assert '95 %' not in tables(capsys, 'a')[0][0]
    text = fault_of(summarize, ['--paired', 'a', 'a'], capsys)
    assert '--paired: 1 image was scored, an interval needs at least 2' in text


def test_counts_that_do_not_fit_are_refused(in_tmp, rng, capsys):
    for name in ('a@train', 'b@train'):
        write_counted(name, rng, 0.6)
    assert 'different images or masks' in fault_of(summarize, ['--paired', 'a', 'b'], capsys)
    path = result_path('b@train', 'npz')
    with np.load(path) as file:
        write_npz(path, **{**file, 'ids': file['ids'][::-1]})
    assert 'were scored on different images' in fault_of(summarize, ['--paired', 'a', 'b'], capsys)
    path = result_path('a@train', 'npz')
    content = path.read_bytes()
    for damaged in (result_path('b@train', 'npz').read_bytes(), b'', content[:-30]):
        path.write_bytes(damaged)
        text = fault_of(summarize, ['a'], capsys)
        assert 'a@train.npz: is damaged or not of a@train.json; rerun evaluate.py' in text
    path.unlink()
    assert '--paired a@train: has no counts per image' in fault_of(summarize, ['--paired', 'a', 'b'], capsys)
    assert len(tables(capsys, 'a')[0][0]) == len(OF_LABELS)


def test_paired_over_seeds(in_tmp, capsys):
    """Seed 3 has no partner. The seed is an option, or a part of the name."""
    for seed, (a, b) in enumerate([(50, 54), (52, 55), (51, 56)]):
        write_result(f'cl@seed={seed}@train', a)
        write_result(f'puzzle@run{seed}@train', b, made_with={'options': {'seed': seed}})
    write_result('cl@seed=3@train', 90)
    summarize.main(summarize.parse_args(['--paired', 'cl@*', 'puzzle@*']))
    out, err = capsys.readouterr()
    head, _, two_fold, miou, fp, fn = map(cells, out.splitlines())
    assert head == ['3 seeds', 'A', 'B', 'B - A', '95 %']
    half = 4.30265 / 3**0.5  # t with 2 degrees of freedom; the differences 4, 3, 5 deviate by 1
    interval = f'{4 - half:+.2f} to {4 + half:+.2f}'
    assert two_fold == ['mIoU %', '50.00', '54.00', '+4.00', interval]
    assert miou == ['best mIoU %', '51.00', '55.00', '+4.00', interval]
    assert fp[1:] == ['20.04', '20.04', '+0.00', '+0.00 to +0.00']
    assert fn[3] == '-4.00'
    assert err == 'warning: seeds only in A or only in B are left out: 3\n'


def test_seeds_that_cannot_be_paired(in_tmp, capsys):
    for name in ('a@seed=0', 'a@seed=1', 'b@seed=1', 'b@seed=2', 'c@1', 'c@2', 'd@seed=0@x', 'd@seed=0@y'):
        write_result(f'{name}@train', 50)
    for second, part in (
        ('b@*', '--paired: A and B share 1 of their seeds, an interval needs at least 2'),
        ('c@*', 'c@1@train: its seed is unknown'),
        ('d@*', '--paired d@seed=0@x@train: two runs have the same seed'),
    ):
        assert part in fault_of(summarize, ['--paired', 'a@*', second], capsys)


def test_formats(in_tmp, capsys):
    write_result('a_b@train', 50, iou={'background': 80.0, 'cat': None})
    summarize.main(summarize.parse_args(['50 %, a | a_b@train', '--classes', '--format', 'csv']))
    first, second = capsys.readouterr().out.split('\n\n')
    assert list(csv.reader(io.StringIO(first))) == [
        HEADERS,
        ['50 %, a', '1', '6', '49.00', '59.00', '50.00', '20.0', '20.0', '0.30', '12.50'],
    ]
    assert list(csv.reader(io.StringIO(second)))[0] == ['IoU %', '50 %, a']
    summarize.main(summarize.parse_args(['a_b@train', '--format', 'latex']))
    out = capsys.readouterr().out
    assert out.startswith('\\begin{tabular}{lrrrrrrrrr}')
    assert 'a\\_b@train' in out
    assert 'mIoU \\%' in out


def test_special_characters_in_tables(in_tmp, capsys):
    """A | in a cell of Markdown; and * or [ at the beginning of a line of LaTeX, after the \\\\ of the line before."""
    write_result('a@train', 50, iou={'background': 80.0, 'cat | dog': 1.0, '[x]': 2.0, '& _%#$~^{}': 3.0})
    summarize.main(summarize.parse_args(['a', '*@train', '--classes']))
    assert '| cat \\| dog' in capsys.readouterr().out
    summarize.main(summarize.parse_args(['a', '*@train', '--classes', '--format', 'latex']))
    lines = [line.lstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in lines if line.startswith('{}')] == ['{}*@', '{}[x']
    assert not [line for line in lines if line[:1] in '*[' and line]
    assert any(line.startswith('\\& \\_\\%\\#\\$') for line in lines)


def test_latex_has_the_sign_of_plus_or_minus(capsys):
    summarize.print_table([['', 'mIoU %'], ['a +- b', '25.00 +- 12.91']], 'latex')
    out = capsys.readouterr().out
    assert '25.00 $\\pm$ 12.91' in out
    assert 'a +- b' in out


def test_details_of_a_pair_need_no_rows(monkeypatch, capsys):
    """--paired A B --classes: the rows are A and B."""
    iou = {'background': 80.0, 'cat': 40.0}
    result = {'fp': 20.0, 'fn': 20.0, 'dice': 70.0, 'images': 6, 'all_background_miou': 10.0, 'threshold': 0.3}
    result['sweep'] = {0.3: 60.0}
    results_of = {
        name: [{**result, 'name': name, 'experiment_name': name, 'format': 'CAM', 'miou': miou, 'iou': iou}]
        for name, miou in (('a', 60), ('b', 62))
    }
    monkeypatch.setattr(summarize.find, 'find', results_of.__getitem__)
    monkeypatch.setattr(summarize.find, 'check_comparable', lambda runs: None)
    monkeypatch.setattr(summarize.provenance, 'check_mean', lambda runs: None)
    monkeypatch.setattr(summarize.find, 'read_counts', lambda result, two_fold: None)
    monkeypatch.setattr(summarize, 'tabulate_paired', lambda names: [['pair', *names], ['', '', '']])
    found = tables(capsys, '--paired', 'a', 'b', '--classes')
    assert [table[0][0] for table in found] == ['', 'IoU %', 'pair']
    assert [row[0] for row in found[0]] == ['', 'a', 'b']
    assert found[1][0] == ['IoU %', 'a', 'b', 'difference']
    assert [table[0][0] for table in tables(capsys, '--paired', 'a', 'b')] == ['pair']
