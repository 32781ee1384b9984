"""Networks over large images by tiles: the image at a scale is never resized, or run through a network, as a whole."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.data.transforms import normalize, rescale
from core.tiles import UNIT, Span, cut, is_cut

MARGIN = 3  # pixels at the smaller scale that the bicubic filter reads beyond a tile, and one more


class TiledImage(NamedTuple):
    """A batch of one image at a scale, or of its mirror image, that networks see in tiles of tile x tile pixels."""

    pixels: Tensor  # (h, w, 3) uint8, the image as it is
    scale: float
    tile: int
    device: torch.device = torch.device('cpu')  # of the tiles; the image stays where it is
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """The size (h_s, w_s) at this scale."""
        h, w, _ = self.pixels.shape
        return max(1, round(h * self.scale)), max(1, round(w * self.scale))

    def to(self, device: torch.device, non_blocking: bool = False) -> 'TiledImage':
        """Like Tensor.to."""
        return self._replace(device=torch.device(device))

    def mirror(self) -> 'TiledImage':
        return self._replace(mirrored=not self.mirrored)

    def read(self, rows: Span, columns: Span) -> Tensor:
        """Return a tile, normalised: (1, 3, h', w')."""
        left, right = columns.start, columns.stop
        if self.mirrored:
            left, right = self.size[1] - right, self.size[1] - left
        part = resize_part(self.pixels.numpy(), self.size, (left, rows.start, right, rows.stop))
        tile = normalize(torch.from_numpy(part)[None].to(self.device))
        return tile.flip(-1) if self.mirrored else tile

    @torch.no_grad()
    def blend(self, function: Callable[[Tensor], tuple[Tensor, ...]], stride: int) -> tuple[Tensor, ...]:
        """Return the maps of the whole image from function(tile) -> maps (1, C, h'/stride, w'/stride) of tiles.

        Tiles start at multiples of the stride, so their cells are the cells of the whole image, and each counts by its
        weight in core.tiles.spans. The maps are float32, (1, C, h_s/stride, w_s/stride), rounded up.
        """
        h, w = (-(-side // stride) for side in self.size)
        tiles, cells = cut(self.size, self.tile), cut((h, w), self.tile // stride, UNIT // stride)
        blended: list[Tensor] = []
        for place, (rows, columns) in zip(tiles, cells, strict=True):
            maps = function(self.read(*place))
            if not blended:
                blended = [one.new_zeros(1, one.shape[1], h, w, dtype=torch.float32) for one in maps]
            weights = torch.from_numpy(np.outer(rows.weights, columns.weights)).to(self.device)
            for whole, one in zip(blended, maps, strict=True):
                whole[..., rows.whole, columns.whole] += weights * one
        return tuple(blended)


def resize_part(image: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Return a part of an image (h, w, 3) uint8 that is resized to a size (h_s, w_s), without resizing all of it.

    box: left, top, right and bottom at the new size. Bicubic as in core.data.transforms.resize, but
    some bytes differ by a level or two (of noise, 1 in 50 at the scale 1.5), because Pillow rounds the corners of a
    part to single precision.
    """
    left, top, right, bottom = box
    if image.shape[:2] == size:
        return np.ascontiguousarray(image[top:bottom, left:right])
    starts, ends, source = [], [], []
    for first, last, old, new in ((left, right, image.shape[1], size[1]), (top, bottom, image.shape[0], size[0])):
        ratio = old / new  # pixels of the image per pixel of the part
        margin = math.ceil(MARGIN * max(1, ratio))
        start = max(0, math.floor(first * ratio) - margin)
        stop = min(old, math.ceil(last * ratio) + margin)
        starts.append(first * ratio - start)
        ends.append(last * ratio - start)
        source.append(slice(start, stop))
    picture = Image.fromarray(np.ascontiguousarray(image[source[1], source[0]]))
    exact = (*starts, *(min(end, side) for end, side in zip(ends, picture.size, strict=True)))
    return np.array(picture.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=exact))


def at_scales(
    picture: Image.Image, scales: Sequence[float], tile: int | None, backend: str = 'pillow'
) -> tuple[np.ndarray, list[Tensor | TiledImage]]:
    """Return the pixels (h, w, 3) of an image, and a batch of it at each scale for the functions of core.chain.

    A batch is (1, h_s, w_s, 3) uint8. It comes in tiles if it or the image itself is larger than one: its maps at the
    size of the image are what takes memory. Tiles are resized by Pillow.
    """
    pixels = np.array(picture)
    tiled = [TiledImage(torch.from_numpy(pixels), scale, tile or 0) for scale in scales]
    sides = [max(*pixels.shape[:2], *one.size) for one in tiled]
    return pixels, [
        one if is_cut((side, side), tile) else rescale(picture, one.scale, backend)[None]
        for one, side in zip(tiled, sides, strict=True)
    ]
