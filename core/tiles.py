"""Large images by overlapping tiles: where tiles are, how much each counts at a pixel, and label maps tile by tile.

No torch here: stages 3 and 6 import this module and fork. core/data/tiled.py runs networks by tiles.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

UNIT = 16  # tiles begin at multiples of it, so that their class maps have the cells of the whole image
SMALLEST = 64  # side of the smallest tile, whose overlap is one cell of a class map


class Span(NamedTuple):
    """One side of a tile: [start, stop), the part [first, last) that is the tile's own, and its weights.

    The own parts of all tiles cover the side once. The weights (stop - start,) float32 of all tiles sum to 1.
    """

    start: int
    stop: int
    first: int
    last: int
    weights: np.ndarray

    @property
    def whole(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def own(self) -> slice:
        return slice(self.first, self.last)

    @property
    def inner(self) -> slice:
        """The own part, counted from the start."""
        return slice(self.first - self.start, self.last - self.start)


def spans(side: int, tile: int, unit: int = UNIT) -> list[Span]:
    """Cut a side into tiles that start at multiples of a unit, evenly spaced and overlapping by a quarter or more.

    A tile's weight falls over the overlap as a squared sine, and its own part ends in the middle of the overlap. A side
    of at most one tile is not cut. The last tile may be up to a unit shorter than the others.
    """
    overlap = max(unit, tile // 4 // unit * unit)
    last = max(0, -(-(side - tile) // unit))  # the start of the last tile, in units
    count = 1 + math.ceil(last * unit / (tile - overlap))
    starts = [unit * round(i * last / max(1, count - 1)) for i in range(count)]
    stops = [*(start + tile for start in starts[:-1]), side]
    ends = [0, *((start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)), side]

    # Let each weight fall towards the borders that are inside the side, and divide by their sum.
    ramp = np.sin((np.arange(overlap) + 0.5) / overlap * np.pi / 2) ** 2
    windows, total = [], np.zeros(side)
    for start, stop in zip(starts, stops, strict=True):
        window = np.ones(stop - start)
        if start > 0:
            window[:overlap] *= ramp
        if stop < side:
            window[-overlap:] *= ramp[::-1]
        total[start:stop] += window
        windows.append(window)
    return [
        Span(start, stop, first, end, (window / total[start:stop]).astype(np.float32))
        for start, stop, first, end, window in zip(starts, stops, ends[:-1], ends[1:], windows, strict=True)
    ]


def is_cut(size: tuple[int, int], tile: int | None) -> bool:
    """Return whether an image of a size (h, w) is larger than a tile; None: no tiles."""
    return tile is not None and max(size) > tile


def cut(size: tuple[int, int], tile: int, unit: int = UNIT) -> Iterator[tuple[Span, Span]]:
    """Yield the rows and columns of each tile of an image of a size (h, w), row by row."""
    yield from itertools.product(*(spans(side, tile, unit) for side in size))


def label_by_tiles(
    make: Callable[..., np.ndarray], image: np.ndarray, maps: np.ndarray, tile: int | None, **options
) -> np.ndarray:
    """Return the label map (h, w) of an image (h, w, 3), make(image=..., maps=..., **options), tile by tile.

    Each pixel has the label of the tile that it is farthest inside of. `maps` (K, h, w) need only return
    their parts: maps[:, rows, columns]. An image of at most one tile is passed on as it is.
    """
    h, w = size = image.shape[:2]
    if not is_cut(size, tile):
        return make(image=image, maps=maps[:, :h, :w], **options)
    label = np.zeros(size, np.uint8)
    for rows, columns in cut(size, tile):
        image_part, maps_part = image[rows.whole, columns.whole], maps[:, rows.whole, columns.whole]
        part = make(image=image_part, maps=maps_part, **options)
        label[rows.own, columns.own] = part[rows.inner, columns.inner]
    return label
