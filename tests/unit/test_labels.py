"""Label maps from CAMs: by hand, and equal to what stages 3 and 6 write."""

import numpy as np
import pytest

from core import labels
from core.labels import affinity_label, pseudo_label
from core.maps import upsample_rw
from support.chain import AFFINITY_LABELS, CAMS, PSEUDO, RANDOM_WALKS, ids_of, image_of, pixels
from util.store.arrays import read_arrays

KEYS = np.array([0, 4, 9])
IMAGE = np.zeros((2, 4, 3), np.uint8)
MAPS = np.array(
    [
        [[0.90, 0.41, 0.40, 0.20], [0.10, 0.05, 0.36, 0.00]],
        [[0.10, 0.42, 0.00, 0.11], [0.10, 0.00, 0.30, 0.99]],
    ],
    np.float32,
)


def test_affinity_labels_by_hand():
    """Without a CRF: above both thresholds a class, below both the background, else ignored."""
    found = affinity_label(IMAGE, KEYS, MAPS, iterations=0)
    assert found.tolist() == [[4, 9, 255, 255], [0, 0, 255, 9]]
    assert affinity_label(IMAGE, KEYS, MAPS, 0.3, 0.3, iterations=0).tolist() == [[4, 9, 4, 0], [0, 0, 4, 9]]


def test_pseudo_labels_by_hand():
    assert pseudo_label(IMAGE, KEYS, MAPS, iterations=0).tolist() == [[4, 9, 4, 0], [0, 0, 4, 9]]
    assert pseudo_label(IMAGE, KEYS, MAPS, 0.95, 0).tolist() == [[0, 0, 0, 0], [0, 0, 0, 9]]


def test_labels_without_a_background_by_hand():
    """The best class everywhere; affinity labels only where one map alone is above the threshold."""
    found = affinity_label(IMAGE, KEYS, MAPS, 0.4, None, iterations=0)
    assert found.tolist() == [[4, 255, 255, 255], [255, 255, 255, 9]]
    assert pseudo_label(IMAGE, KEYS, MAPS, None, 0).tolist() == [[4, 9, 4, 4], [4, 4, 4, 9]]
    assert pseudo_label(IMAGE, KEYS[:2], MAPS[:1], None, 5).tolist() == [[4] * 4] * 2


def test_without_a_background_the_crf_knows_the_classes_alone(monkeypatch):
    seen = []

    def refine(image, label, count, iterations, **options):
        seen.append((label.tolist(), count))
        return 1 - label

    monkeypatch.setattr(labels, 'crf_from_label', refine)
    assert pseudo_label(IMAGE, KEYS, MAPS, None).tolist() == [[9, 4, 9, 9], [9, 9, 9, 4]]
    assert affinity_label(IMAGE, KEYS, MAPS, 0.89, None).tolist() == [[9, 255, 255, 255], [255, 255, 255, 4]]
    assert seen == [([[0, 1, 0, 0], [0, 0, 0, 1]], 2)] * 2


def test_images_of_background_alone():
    nothing = np.zeros((0, 2, 4), np.float32)
    for label in (affinity_label(IMAGE, KEYS[:1], nothing), pseudo_label(IMAGE, KEYS[:1], nothing)):
        assert label.shape == (2, 4)
        assert not label.any()


@pytest.mark.parametrize('make, function', [(affinity_label, 'crf_from_labels'), (pseudo_label, 'crf_from_label')])
def test_options_of_the_crf_are_passed_on(monkeypatch, make, function):
    seen = []

    def refine(image, label, count, iterations, **options):
        seen.append((count, iterations, options))
        return label

    monkeypatch.setattr(labels, function, refine)
    make(IMAGE, KEYS, MAPS, iterations=7, gt_prob=0.6, gaussian=(3, 4))
    assert seen == [(3, 7, {'gt_prob': 0.6, 'gaussian': (3, 4)})]


# What the stages write ----------------------------------------------------------------------------------------------


def test_stage_3_writes_these_labels(experiments, demo):
    for image_id in ids_of(demo, 'train_aug'):
        keys, hr_cam = read_arrays(experiments / 'predictions' / CAMS / f'{image_id}.npz', 'keys', 'hr_cam')
        label = affinity_label(image_of(demo, image_id), keys, hr_cam.astype(np.float32))
        assert np.array_equal(label, pixels(experiments / 'predictions' / AFFINITY_LABELS / f'{image_id}.png'))


def test_stage_6_writes_these_labels(experiments, demo):
    for image_id in ids_of(demo, 'train_aug'):
        image = image_of(demo, image_id)
        keys, rw = read_arrays(experiments / 'predictions' / RANDOM_WALKS / f'{image_id}.npz', 'keys', 'rw')
        label = pseudo_label(image, keys, upsample_rw(rw, image.shape[:2]))
        assert np.array_equal(label, pixels(experiments / 'predictions' / PSEUDO / f'{image_id}.png'))
