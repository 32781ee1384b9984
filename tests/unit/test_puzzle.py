"""The puzzle module: the pixels of each tile, their order, and what cannot be cut."""

import pytest
import torch

from core import UserError
from core.puzzle import check_puzzle, grid_size, merge, tile


@pytest.mark.parametrize('num_pieces', [1, 4, 9, 16, 25])
def test_merge_is_the_inverse_of_tile(num_pieces):
    images = torch.randn(3, 2, 60, 120)
    tiles = tile(images, num_pieces)
    grid = grid_size(num_pieces)
    assert grid * grid == num_pieces
    assert tiles.shape == (num_pieces * 3, 2, 60 // grid, 120 // grid)
    assert torch.equal(merge(tiles, num_pieces), images)
    assert torch.equal(tile(merge(tiles, num_pieces), num_pieces), tiles)


@pytest.mark.parametrize('grid', [1, 2, 3])
def test_tiles_are_row_by_row_and_tile_major(grid):
    n, h, w = 5, 4, 6
    images = torch.randn(n, 3, grid * h, grid * w)
    tiles = tile(images, grid * grid)
    for row in range(grid):
        for column in range(grid):
            for i in range(n):
                expected = images[i, :, row * h : (row + 1) * h, column * w : (column + 1) * w]
                assert torch.equal(tiles[(row * grid + column) * n + i], expected)


def test_merge_puts_class_maps_where_their_tiles_were():
    images = torch.randn(2, 3, 64, 64)
    maps = torch.nn.functional.avg_pool2d(images, 16)
    tile_maps = torch.nn.functional.avg_pool2d(tile(images, 4), 16)
    assert torch.equal(merge(tile_maps, 4), maps)


def test_gradients_flow_through_tile_and_merge():
    images = torch.randn(2, 1, 4, 4, requires_grad=True)
    weights = torch.randn(2, 1, 4, 4)
    (merge(tile(images, 4), 4) * weights).sum().backward()
    assert torch.equal(images.grad, weights)


@pytest.mark.parametrize('num_pieces', [-4, -1, 0, 2, 3, 5, 8, 15])
def test_num_pieces_that_is_not_a_square(num_pieces):
    images = torch.zeros(32, 3, 240, 240)
    for call in (lambda: tile(images, num_pieces), lambda: merge(images, num_pieces)):
        with pytest.raises(UserError, match=f'num_pieces {num_pieces} is not a perfect square'):
            call()
    with pytest.raises(UserError, match=f'num_pieces {num_pieces} is not a perfect square'):
        check_puzzle(512, num_pieces)


@pytest.mark.parametrize('size', [(63, 64), (64, 63), (1, 1)])
def test_images_that_cannot_be_cut_evenly(size):
    with pytest.raises(UserError, match='num_pieces 4: a .* image cannot be cut into 2x2 equal tiles'):
        tile(torch.zeros(2, 3, *size), 4)


def test_number_of_tiles_that_is_not_a_multiple():
    with pytest.raises(UserError, match='6 tiles are not a multiple of num_pieces 4'):
        merge(torch.zeros(6, 1, 2, 2), 4)


@pytest.mark.parametrize('image_size, num_pieces', [(512, 4), (512, 16), (512, 1), (48, 9), (96, 9), (32, 4)])
def test_sizes_that_fit(image_size, num_pieces):
    check_puzzle(image_size, num_pieces)


@pytest.mark.parametrize('image_size, num_pieces', [(512, 9), (48, 4), (50, 4), (16, 4), (0, 4), (-32, 4), (500, 1)])
def test_sizes_whose_tiles_would_split_a_cell(image_size, num_pieces):
    with pytest.raises(UserError, match=f'image_size {image_size} is not a multiple of .*num_pieces {num_pieces}'):
        check_puzzle(image_size, num_pieces)
