"""The flag of large images, of stages 2, 3, 5, 6 and 8 and tools.predict. No torch."""

import argparse

from core.tiles import SMALLEST, UNIT
from util import flags


def tile(text: str) -> int:
    """The side of a tile: a multiple of 16, from 64 on (core/tiles.py)."""
    value = flags.integer(SMALLEST, 16384)(text)
    if value % UNIT:
        near = value // UNIT * UNIT
        raise argparse.ArgumentTypeError(f'{value} is not a multiple of {UNIT}, such as {near} or {near + UNIT}')
    return value


TILING = 'side of overlapping tiles for large images, a multiple of 16, such as 1024 (default: whole images)'
TILE = (flags.Flag('inference', '--tile', tile, None, TILING),)
