"""Where tiles are, how much each counts, and label maps made tile by tile."""

import numpy as np
import pytest

from core.tiles import cut, is_cut, label_by_tiles, spans

SIDES = [1, 63, 64, 65, 79, 80, 81, 100, 112, 113, 160, 333, 1000]


@pytest.mark.parametrize('tile', [64, 96, 256])
def test_tiles_cover_a_side(tile):
    """Weights sum to 1 at every pixel, own parts cover the side once, and no tile is larger than asked for."""
    for side in SIDES:
        weights, owners = np.zeros(side), np.zeros(side, int)
        for span in spans(side, tile):
            weights[span.whole] += span.weights
            owners[span.own] += 1
            assert span.start % 16 == 0 and 0 < span.stop - span.start <= tile
            assert span.start <= span.first < span.last <= span.stop
            assert np.array_equal(np.arange(side)[span.whole][span.inner], np.arange(side)[span.own])
            assert span.weights.min() > 0
        np.testing.assert_allclose(weights, 1, atol=1e-6)
        assert (owners == 1).all()


@pytest.mark.parametrize('tile', [64, 256])
def test_neighbours_share_a_quarter_or_more(tile):
    for side in SIDES:
        found = spans(side, tile)
        for one, other in zip(found, found[1:], strict=False):
            assert one.stop - other.start >= tile // 4
            assert abs((one.last - other.start) - (one.stop - one.last)) <= 1  # each owns half of what they share
        assert (found[0].start, found[-1].stop) == (0, side)


@pytest.mark.parametrize('stride', [4, 8, 16])
def test_cells_of_tiles_are_cells_of_the_side(stride):
    for side in SIDES:
        pixels, cells = spans(side, 64), spans(-(-side // stride), 64 // stride, 16 // stride)
        assert [span.start for span in pixels] == [stride * span.start for span in cells]
        assert [-(-span.stop // stride) for span in pixels] == [span.stop for span in cells]


def test_a_side_of_one_tile_is_not_cut():
    (span,) = spans(64, 64)
    assert (span.start, span.stop, span.first, span.last) == (0, 64, 0, 64)
    assert np.array_equal(span.weights, np.ones(64, np.float32))
    assert [is_cut((64, 64), tile) for tile in (None, 64, 48)] == [False, False, True]
    assert is_cut((10, 65), 64)


def test_labels_by_tiles(rng):
    """A label that depends on its pixel alone is the same; `make` gets parts of at most a tile, and the options."""
    image, maps = rng.integers(0, 256, (100, 150, 3)), rng.random((4, 100, 150))
    seen = []

    def make(image, maps, keys):
        seen.append(image.shape[:2])
        assert maps.shape == (4, *image.shape[:2])
        return keys[maps.argmax(0)]

    keys = np.array([0, 3, 7, 9])
    label = label_by_tiles(make, image, maps, 64, keys=keys)
    assert (label.dtype, label.shape) == (np.uint8, (100, 150))
    assert np.array_equal(label, keys[maps.argmax(0)])
    assert len(seen) == len(list(cut((100, 150), 64))) == 2 * 3
    assert max(max(size) for size in seen) == 64


def test_a_pixel_has_the_label_of_the_tile_that_it_is_inside_of(rng):
    """Values that are wrong near the border of a tile do not reach the label map."""

    def make(image, maps):
        label = np.full_like(maps[0], 99)
        label[7:-7, 7:-7] = maps[0, 7:-7, 7:-7]
        return label

    maps = rng.integers(0, 5, (1, 100, 150))
    label = label_by_tiles(make, np.zeros((100, 150, 3)), maps, 64)
    assert np.array_equal(label[7:-7, 7:-7], maps[0, 7:-7, 7:-7])


@pytest.mark.parametrize('tile', [None, 150])
def test_an_image_of_one_tile_is_passed_on_as_it_is(rng, tile):
    image, maps = rng.integers(0, 256, (100, 150, 3)), rng.random((4, 100, 150))

    def make(image, maps):
        return image, maps

    found = label_by_tiles(make, image, maps, tile)
    assert found[0] is image
    assert np.array_equal(found[1], maps)
