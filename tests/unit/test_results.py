"""util/results.py: pixel counts per image, written and read. tests/test_summarize.py has the rest."""

import numpy as np
import pytest

from core import UserError
from core.metrics import class_counts, drop_absent
from util import results
from util.artifacts import results_path, write_npz

CLASSES, THRESHOLDS = 300, (0.2, 0.25)  # more classes than fit into a byte


def write_result(rng, thresholds=THRESHOLDS, images=5, largest=70_000) -> np.ndarray:
    """Write a result at the last threshold. Each image has a few classes, the last one none; return all counts."""
    confusion = np.zeros((images, len(thresholds), CLASSES, CLASSES), np.int64)
    for image in confusion[:-1]:
        there = np.append(rng.choice(CLASSES - 1, 3, replace=False), CLASSES - 1)
        image[:, there[:, None], there] = rng.integers(0, largest, (len(thresholds), 4, 4))
    numbers = dict.fromkeys(results.NUMBERS, 1)
    content = {**numbers, 'threshold': thresholds[-1], 'confusion': confusion.sum(0)[-1].tolist()}
    content['thresholds'] = [{'threshold': threshold, 'miou': 1} for threshold in thresholds]
    by_image = [(classes, class_counts(counts)) for classes, counts in map(drop_absent, confusion)]
    results.write('a', content, [f'image{i}' for i in range(images)], by_image, seconds=1)
    return class_counts(confusion)


@pytest.mark.parametrize('thresholds', [THRESHOLDS, (0.3,), (None,)])
def test_counts_of_the_threshold_are_read(in_tmp, rng, thresholds):
    expected = write_result(rng, thresholds)[:, -1]
    (result,) = results.find('a')
    ids, counts = results.read_counts(result)
    assert ids == ['image0', 'image1', 'image2', 'image3', 'image4']
    assert counts.shape == (5, CLASSES, 3)
    assert counts.dtype == np.uint32
    assert np.array_equal(counts, expected)
    assert expected.any((1, 2)).tolist() == [True] * 4 + [False]


def test_counts_are_small(in_tmp, rng):
    write_result(rng, largest=20)
    with np.load(results_path('a', 'npz')) as file:
        assert {name: file[name].dtype for name in ('images', 'classes', 'counts')} == {
            'images': np.uint8,
            'classes': np.uint16,
            'counts': np.uint8,
        }
        assert file['counts'].shape == (4 * 4, 2, 3)


def test_counts_of_earlier_versions_are_read(in_tmp, rng):
    counts = write_result(rng)
    ids = np.array([f'image{i}' for i in range(5)])
    write_npz(results_path('a', 'npz'), ids=ids, thresholds=np.array(THRESHOLDS), counts=counts)
    (result,) = results.find('a')
    assert np.array_equal(results.read_counts(result)[1], counts[:, -1])


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
    write_result(rng)
    path = results_path('a', 'npz')
    with np.load(path) as file:
        arrays = {**file, **change}
    write_npz(path, **{name: array for name, array in arrays.items() if array is not None})
    (result,) = results.find('a')
    with pytest.raises(UserError, match='results/a.npz: is damaged or not of a.json; rerun evaluate.py'):
        results.read_counts(result)
