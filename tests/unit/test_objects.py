"""tools/exchange/objects.py: components of label maps, outlines and scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from core import IGNORE
from tools.exchange.objects import find_objects, read_scores
from util.store.arrays import write_npz


def rasterised(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return coco_mask.decode(coco_mask.frPyObjects([ring.astype(float).reshape(-1)], *size))[..., 0].astype(bool)


def drawn(found, size, tolerance=0.0) -> np.ndarray:
    outline = found.outline(tolerance)
    mask = rasterised(outline.outer, size)
    for hole in outline.holes:
        mask &= ~rasterised(hole, size)
    return mask


LABELS = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 255]))


@settings(deadline=None)
@given(LABELS)
def test_objects_and_their_outlines_have_exactly_the_pixels_of_the_label_map(label):
    kept, objects, small = find_objects(label, 1, {}, keep_ignored=True)
    np.testing.assert_array_equal(kept, label)
    assert small == 0
    again = np.zeros_like(label)
    for found in objects:
        mask = found.mask(label.shape) > 0
        assert not again[mask].any(), 'objects do not overlap'
        again[mask] = found.index
        np.testing.assert_array_equal(drawn(found, label.shape), mask)
        np.testing.assert_array_equal(coco_mask.decode(found.rle(label.shape)) > 0, mask)
    np.testing.assert_array_equal(again, label)


def test_pixels_that_touch_at_a_corner_are_one_object_and_classes_are_apart():
    label = np.array([[1, 0, 0], [0, 1, 2], [0, 0, 2]], np.uint8)
    _, objects, _ = find_objects(label, 1, {}, False)
    assert [(found.index, found.area, found.box) for found in objects] == [(1, 2, (0, 0, 2, 2)), (2, 2, (2, 1, 1, 2))]


def test_small_objects_and_ignored_pixels_become_background():
    label = np.zeros((6, 8), np.uint8)
    label[0:2, 0:2], label[4, 4], label[5, 6:8] = 1, 1, IGNORE
    kept, objects, small = find_objects(label, 2, {}, False)
    assert ([found.area for found in objects], small) == ([4], 1)
    assert kept.sum() == 4
    kept, objects, small = find_objects(label, 2, {}, True)
    assert [found.index for found in objects] == [1, IGNORE]


def test_without_a_background_small_objects_are_ignored():
    label = np.full((6, 8), 2, np.uint8)
    label[0:2, 0:2], label[4, 4] = IGNORE, 1
    kept, objects, small = find_objects(label, 2, {}, False, IGNORE)
    assert ([found.index for found in objects], small) == ([2], 1)
    assert (kept == IGNORE).sum() == 5


def test_what_lies_in_a_hole_comes_after_the_object_around_it():
    label = np.ones((9, 9), np.uint8)
    label[1:8, 1:8] = 2  # larger than the ring around it
    _, objects, _ = find_objects(label, 1, {}, False)
    assert [found.index for found in objects] == [1, 2]
    assert objects[0].area < objects[1].area


def test_corners_move_by_the_tolerance_at_most():
    y, x = np.mgrid[:60, :60]
    label = ((y - 30) ** 2 + (x - 30) ** 2 < 25**2).astype(np.uint8)
    _, (found,), _ = find_objects(label, 1, {}, False)
    exact, simple = found.outline(0).outer, found.outline(1).outer
    assert len(simple) < len(exact) / 3
    wrong = drawn(found, label.shape, 1) != (label > 0)
    assert 0 < wrong.sum() < 0.05 * label.sum()


def test_an_object_of_one_pixel_keeps_its_corners_at_any_tolerance():
    _, (found,), _ = find_objects(np.array([[0, 1]], np.uint8), 1, {}, False)
    assert sorted(map(tuple, found.outline(50).outer.tolist())) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_the_score_is_the_mean_over_the_pixels_of_the_object():
    label = np.array([[1, 1, 0, 1]], np.uint8)
    scores = {1: np.array([[0.5, 0.7, 0.0, 0.9]], np.float32)}
    _, objects, _ = find_objects(label, 1, scores, False)
    assert [found.score for found in objects] == [0.6, 0.9]
    _, objects, _ = find_objects(label, 1, {2: scores[1]}, False)
    assert [found.score for found in objects] == [None, None]


@pytest.mark.parametrize('name', ['probability', 'hr_cam', 'rw'])
def test_scores_of_every_kind_of_file_of_predict(tmp_path, name):
    maps = np.random.default_rng(0).random((2, 8, 12) if name != 'rw' else (2, 2, 3)).astype(np.float16)
    keys = np.array([0, 5]) if name == 'probability' else np.array([0, 3, 5])
    write_npz(tmp_path / 'a.npz', keys=keys, **{name: maps})
    scores = read_scores(tmp_path / 'a.npz', (8, 12))
    assert sorted(scores) == ([0, 5] if name == 'probability' else [3, 5])
    assert scores[5].shape == (8, 12)
    if name != 'rw':
        np.testing.assert_array_equal(scores[5], maps[1].astype(np.float32))
    assert read_scores(tmp_path / 'a.npz', (9, 12)) == {}, 'of another size'


def test_files_without_scores(tmp_path):
    assert read_scores(tmp_path / 'none.npz', (8, 12)) == {}
    (tmp_path / 'a.npz').write_bytes(b'x')
    assert read_scores(tmp_path / 'a.npz', (8, 12)) == {}
    write_npz(tmp_path / 'b.npz', keys=np.array([0, 1, 2]), hr_cam=np.zeros((1, 8, 12), np.float16))
    assert read_scores(tmp_path / 'b.npz', (8, 12)) == {}
