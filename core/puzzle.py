"""The puzzle module (Puzzle-CAM, section 2.2): cut images into tiles and put the tiles' class maps together again."""

import math

from torch import Tensor

from core import STRIDE, UserError


def grid_size(num_pieces: int) -> int:
    """Return the tiles per side, g = sqrt(num_pieces). Raises UserError unless num_pieces is a perfect square."""
    grid = math.isqrt(max(num_pieces, 0))
    if num_pieces < 1 or grid * grid != num_pieces:
        raise UserError(f'{num_pieces} is not a perfect square (1, 4, 9, 16, ...)', option='num_pieces')
    return grid


def check_puzzle(image_size: int, num_pieces: int) -> None:
    """Raise UserError unless the tiles of an image_size x image_size image give class maps that fit together.

    Every tile must cover whole cells of the class maps, so the size has to be a multiple of 16 g.
    """
    unit = STRIDE * grid_size(num_pieces)
    if image_size < unit or image_size % unit:
        raise UserError(
            f'{image_size} is not a multiple of {unit} = 16 x sqrt(num_pieces {num_pieces})', option='image_size'
        )


def tile(images: Tensor, num_pieces: int) -> Tensor:
    """Cut (N, c, H, W) images into g x g tiles: (g*g*N, c, H/g, W/g).

    Row by row and tile-major, as published: tile 1 of all images, then tile 2 of all images, ... Raises UserError
    unless num_pieces is a perfect square that divides the image.
    """
    grid = grid_size(num_pieces)
    n, c, h, w = images.shape
    if h % grid or w % grid:
        raise UserError(
            f'{num_pieces}: a {h}x{w} image cannot be cut into {grid}x{grid} equal tiles', option='num_pieces'
        )
    tiles = images.reshape(n, c, grid, h // grid, grid, w // grid).permute(2, 4, 0, 1, 3, 5)
    return tiles.reshape(num_pieces * n, c, h // grid, w // grid)


def merge(tiles: Tensor, num_pieces: int) -> Tensor:
    """Put (g*g*N, c, h, w) tile-major maps together to (N, c, g*h, g*w): the inverse of `tile`."""
    grid = grid_size(num_pieces)
    total, c, h, w = tiles.shape
    if total % num_pieces:
        raise UserError(f'{total} tiles are not a multiple of num_pieces {num_pieces}')
    maps = tiles.reshape(grid, grid, total // num_pieces, c, h, w).permute(2, 3, 0, 4, 1, 5)
    return maps.reshape(total // num_pieces, c, grid * h, grid * w)
