"""Results: pixel counts of outputs against masks, and the files that hold them."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from core import UserError
from core.metrics import class_counts
from support.programs import held, refusal
from support.results import Masks, write_counts
from util.store import results
from util.store.fingerprints import versions
from util.store.formats import result_path

BY_IMAGE = [(np.array([0, 1]), np.ones((2, 2, 3), int)), (np.array([0]), np.ones((2, 1, 3), int))]
CONFUSION = [[2, 0], [0, 1]]


def test_a_result_says_what_was_scored(in_tmp):
    Path('image0.png').write_text('a mask')
    content = write_counts('a', BY_IMAGE, CONFUSION, (0.2, 0.3), domain='val', mode='npy')
    assert json.loads(result_path('a').read_text()) == content
    assert len(content.pop('masks')) == 64
    expected = {'dataset': 'drawn', 'num_classes': 1, 'images': 2, 'versions': versions()}
    expected |= {'domain': 'val', 'mode': 'npy', 'format': 'CAM', 'threshold': 0.3, 'threshold_choice': results.BEST}
    assert {name: content[name] for name in expected} == expected
    with np.load(result_path('a', 'npz')) as file:
        assert file['ids'].tolist() == ['image0', 'image1']
        assert file['thresholds'].tolist() == [0.2, 0.3]


@pytest.mark.parametrize('thresholds, choice', [((0.2, 0.3), results.BEST), ((0.3,), results.GIVEN), ((None,), None)])
def test_a_result_says_how_its_threshold_was_chosen(in_tmp, thresholds, choice):
    by_image = [(classes, counts[: len(thresholds)]) for classes, counts in BY_IMAGE]
    assert write_counts('a', by_image, CONFUSION, thresholds)['threshold_choice'] == choice
    with np.load(result_path('a', 'npz')) as file:
        assert file['thresholds'].tolist() == [threshold for threshold in thresholds if threshold is not None]


def test_a_result_knows_its_masks(in_tmp):
    found = []
    for text in ('a mask', 'another', 'a mask'):
        Path('image1.png').write_text(text)
        found.append(write_counts('a', BY_IMAGE, CONFUSION, (0.2, 0.3))['masks'])
    assert found[0] == found[2] != found[1]


def test_counts_are_as_small_as_they_fit(in_tmp):
    """Images are numbered, also those without a class."""
    by_image = [
        (np.array([0, 7, 299]), np.full((2, 3, 3), 255)),
        (np.array([], int), np.zeros((2, 0, 3), int)),
        (np.array([5]), np.arange(6).reshape(2, 1, 3)),
    ]
    packed = results.pack(by_image)
    assert {name: (array.dtype, array.tolist()) for name, array in packed.items() if name != 'counts'} == {
        'images': (np.uint8, [0, 0, 0, 2]),
        'classes': (np.uint16, [0, 7, 299, 5]),
    }
    assert packed['counts'].dtype == np.uint8
    assert packed['counts'].shape == (4, 2, 3)
    assert packed['counts'][3].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert results.pack([(np.array([0]), np.full((1, 1, 3), 70_000))])['counts'].dtype == np.uint32


def test_a_result_has_one_writer(in_tmp):
    path = result_path('a')
    leftover = path.with_name('.0.1.tmp')
    with results.claimed('a') as found:
        assert found == path
        (lock,) = path.parent.glob('.*.lock')
    with held(lock.absolute()) as process:
        with pytest.raises(UserError) as error, results.claimed('a'):
            pass
        assert re.fullmatch(refusal(path, process), str(error.value))
        with results.claimed('b'):
            pass
    stem = lock.name[1:].removesuffix('.lock')
    leftover = path.with_name(f'.{stem}.12.tmp')
    leftover.write_text('half')
    with results.claimed('a'):
        assert not leftover.exists()


def test_a_name_that_is_too_long_names_its_flag(in_tmp):
    with pytest.raises(UserError, match='--experiment_name: x+... would have 256 bytes'), results.claimed('x' * 251):
        pass


def test_a_table_has_a_row_per_threshold(in_tmp):
    rows = [
        {'threshold': 0.1, 'miou': 50.0, 'fp': 20.0, 'fn': 30.0, 'iou': {'background': 90.0, 'a, b': None}},
        {'threshold': None, 'miou': 51.0, 'fp': 21.0, 'fn': 29.0, 'iou': {'background': 91.0, 'a, b': 1.5}},
    ]
    results.write_csv(Path('table.csv'), {'thresholds': rows, 'iou': rows[0]['iou']})
    with Path('table.csv').open(newline='') as file:
        assert list(csv.reader(file)) == [
            ['threshold', 'mIoU', 'FP', 'FN', 'background', 'a, b'],
            ['0.1', '50.0', '20.0', '30.0', '90.0', ''],
            ['', '51.0', '21.0', '29.0', '91.0', '1.5'],
        ]


def test_thresholds_are_written_with_the_decimals_they_have():
    for threshold, text in ((None, '-'), (0.3, '0.30'), (0.25, '0.25'), (0.125, '0.125'), (1, '1.00')):
        assert results.format_threshold(threshold) == text


def outputs(maps: tuple[str, ...], read_label=None, read_scores=None) -> SimpleNamespace:
    """Return a folder, as far as counting asks for one."""
    kind = SimpleNamespace(maps=maps)
    return SimpleNamespace(kind=kind, read_label=read_label, read_scores=read_scores, file='{}.png'.format)


class Scored(Masks):
    num_classes, has_background = 3, True
    mask = np.array([[0, 0, 2], [2, 2, 255]], np.uint8)

    def read_mask(self, image_id, size=None):
        return self.mask


def count_directly(label: np.ndarray) -> np.ndarray:
    """Count T, P and TP (classes, 3) of a label map against the mask, pixel by pixel."""
    confusion = np.zeros((4, 4), int)
    for target, found in zip(Scored.mask.flat, label.flat, strict=True):
        if target != 255:
            confusion[target, found] += 1
    return class_counts(confusion)


def test_label_maps_are_counted_once():
    label = np.array([[0, 1, 2], [2, 0, 3]], np.uint8)
    folder = outputs((), read_label=lambda image_id, size: label)
    total, ((classes, counts),) = results.count_pixels(folder, Scored(), ['a'], [None])
    assert classes.tolist() == [0, 1, 2]
    assert np.array_equal(counts[0], count_directly(label)[classes])
    assert total.shape == (1, 4, 4)
    assert np.array_equal(class_counts(total[0]), count_directly(label))


def test_maps_are_counted_at_each_threshold():
    maps = np.array([[[0.1, 0.3, 0.9], [0.6, 0.2, 0.8]], [[0.2, 0.1, 0.4], [0.7, 0.1, 0.1]]], np.float32)
    keys = np.array([0, 2, 3])
    folder = outputs(('hr_cam',), read_scores=lambda image_id, size: (keys, maps))
    thresholds = [0.25, 0.5]
    total, by_image = results.count_pixels(folder, Scored(), ['a', 'b'], thresholds)
    for i, threshold in enumerate(thresholds):
        label = np.where(maps.max(0) > threshold, keys[1:][maps.argmax(0)], 0)
        assert np.array_equal(class_counts(total[i]), 2 * count_directly(label))
        for classes, counts in by_image:
            assert np.array_equal(counts[i], count_directly(label)[classes])


def test_labels_with_void_are_not_scored():
    folder = outputs((), read_label=lambda image_id, size: Scored.mask)
    with pytest.raises(UserError) as error:
        results.count_image('a', folder, Scored(), [None])
    assert str(error.value) == 'a.png: contains 255 (ignore); affinity labels cannot be scored'
