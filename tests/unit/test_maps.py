"""Score maps between stages: their sizes, keys, upsampling and predictions."""

import tracemalloc

import numpy as np
import pytest

from core.maps import UpsampledRW, normalize_rw, present_keys, strided_size, threshold_cams, upsample_rw
from support import bilinear


@pytest.mark.parametrize('size, expected', [((1, 1), (1, 1)), ((4, 5), (1, 2)), ((375, 500), (94, 125))])
def test_strided_size(size, expected):
    assert strided_size(size) == expected
    assert strided_size(size) == tuple(len(range(0, side, 4)) for side in size)


def test_present_keys():
    assert present_keys(np.array([1, 0, 1.0])).tolist() == [0, 1, 3]
    assert present_keys(np.zeros(3)).tolist() == [0]
    assert present_keys(np.ones(2, np.float32)).dtype == np.int64


@pytest.mark.parametrize('size', [(24, 32), (21, 30), (23, 29)])
def test_upsample_rw(rng, size):
    rw = rng.random((3, 6, 8)).astype(np.float32)
    rw[1] *= 0.1
    expected = bilinear(rw.astype(np.float64), (24, 32))[:, : size[0], : size[1]]
    found = upsample_rw(rw, size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-5)
    assert found.max() == 1
    assert found[1].max() < 0.5  # divided by the maximum over all classes, not by its own
    np.testing.assert_allclose(upsample_rw(rw / 7, size), found, atol=1e-5)


def test_normalize_rw(rng):
    rw = rng.random((3, 6, 8)).astype(np.float32)
    rw[1] *= 0.1
    rw[2] = 0
    joint, by_class = normalize_rw(rw), normalize_rw(rw, 'class')
    assert joint.dtype == by_class.dtype == np.float32
    assert np.array_equal(joint, rw / rw.max())
    assert np.array_equal(by_class[:2], rw[:2] / rw[:2].max((1, 2), keepdims=True))
    assert by_class.max((1, 2)).tolist() == [1, 1, 0]
    for by in ('joint', 'class'):
        assert normalize_rw(np.zeros((0, 3, 4), np.float32), by).shape == (0, 3, 4)


def test_upsample_rw_of_zeros_or_of_no_class():
    assert not upsample_rw(np.zeros((2, 3, 4), np.float32), (12, 16)).any()
    assert upsample_rw(np.zeros((0, 3, 4), np.float32), (11, 15)).shape == (0, 11, 15)


@pytest.mark.parametrize('size', [(37, 50), (36, 52), (1, 3)])
def test_parts_of_upsampled_walks_are_those_of_the_whole(rng, size):
    rw = rng.random((2, *strided_size(size))).astype(np.float16)
    whole, parts = upsample_rw(rw, size), UpsampledRW(rw, size)
    assert np.array_equal(parts[:, :, :], whole)
    for top, bottom, left, right in ((0, 5, 0, 9), (3, 30, 7, 50), (13, 14, 2, 33), (36, 37, 49, 50)):
        part = parts[:, top : min(bottom, size[0]), left : min(right, size[1])]
        assert np.array_equal(part, whole[:, top:bottom, left:right])
    assert not UpsampledRW(np.zeros((1, 9, 9)), (36, 36))[:, :9, :9].any()
    assert UpsampledRW(np.zeros((0, 9, 9)), (36, 36))[:, :9, :5].shape == (0, 9, 5)


def test_threshold_cams_against_a_loop(rng):
    maps = rng.random((3, 6, 7)).astype(np.float32)
    maps[:, 0, 0] = np.float32(0.4)  # a tie with the threshold is background
    maps[:, 0, 1] = [0.5, 0.9, 0.9]  # a tie between classes goes to the first
    result = threshold_cams(maps, 0.4)
    for y in range(6):
        for x in range(7):
            best = int(maps[:, y, x].argmax())
            assert result[y, x] == (best + 1 if maps[best, y, x] > np.float32(0.4) else 0)
    assert (result[0, 0], result[0, 1]) == (0, 2)
    assert np.array_equal(threshold_cams(np.zeros((0, 4, 5), np.float32), 0.4), np.zeros((4, 5)))


def test_without_a_threshold_the_largest_score_wins(rng):
    maps = rng.integers(0, 3, (3, 6, 7)).astype(np.float32) / 4  # many ties, many zeros
    assert np.array_equal(threshold_cams(maps, None), maps.argmax(0) + 1)


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_thresholds_class_by_class_equal_one_argmax(rng, dtype):
    maps = rng.integers(0, 5, (6, 20, 30)).astype(dtype) / 4  # many ties
    expected = np.concatenate([np.full((1, 20, 30), 0.5, np.float32), maps.astype(np.float32)]).argmax(0)
    found = threshold_cams(maps, 0.5)
    assert np.array_equal(found, expected)
    assert found.dtype == np.int64


def test_thresholds_copy_no_stack_of_maps(rng):
    maps = rng.random((20, 300, 400)).astype(np.float32)
    tracemalloc.start()
    threshold_cams(maps, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < maps.nbytes / 3
