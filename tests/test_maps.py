"""Score maps between stages: their sizes, the walked ones at the image's size, and what they predict."""

import numpy as np
import pytest
from conftest import bilinear

from core.maps import finish_walk, predict, strided_size


@pytest.mark.parametrize('size, expected', [((1, 1), (1, 1)), ((4, 5), (1, 2)), ((375, 500), (94, 125))])
def test_strided_size(size, expected):
    assert strided_size(size) == expected
    assert strided_size(size) == tuple(len(range(0, side, 4)) for side in size)


@pytest.mark.parametrize('size', [(24, 32), (21, 30), (23, 29)])
def test_finish_walk(rng, size):
    walked = rng.random((3, 6, 8)).astype(np.float32)
    walked[1] *= 0.1
    expected = bilinear(walked.astype(np.float64), (24, 32))[:, : size[0], : size[1]]
    found = finish_walk(walked, size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-5)
    assert found.max() == 1
    assert found[1].max() < 0.5  # by the maximum over all classes, not by each one's
    np.testing.assert_allclose(finish_walk(walked / 7, size), found, atol=1e-5)


def test_finish_of_nothing_is_nothing():
    assert not finish_walk(np.zeros((2, 3, 4), np.float32), (12, 16)).any()
    assert finish_walk(np.zeros((0, 3, 4), np.float32), (11, 15)).shape == (0, 11, 15)


def test_predict_against_a_loop(rng):
    maps = rng.random((3, 6, 7)).astype(np.float32)
    maps[:, 0, 0] = np.float32(0.4)  # a tie with the threshold is background
    maps[:, 0, 1] = [0.5, 0.9, 0.9]  # a tie between classes goes to the first
    result = predict(maps, 0.4)
    for y in range(6):
        for x in range(7):
            best = int(maps[:, y, x].argmax())
            assert result[y, x] == (best + 1 if maps[best, y, x] > np.float32(0.4) else 0)
    assert (result[0, 0], result[0, 1]) == (0, 2)
    assert np.array_equal(predict(np.zeros((0, 4, 5), np.float32), 0.4), np.zeros((4, 5)))
