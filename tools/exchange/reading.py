"""What the readers of all formats share: images with shapes as a tool has them, and how a mask is made of these."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from core import IGNORE
from tools.exchange.shapes import SIDE_LIMIT, encode_shape

EXPORTED = '.exported'  # folder of an export: the masks that would come back if nobody changed anything
IMAGES = 'images.json'  # in it: hashes of the images by id
PIXEL_LIMIT = 2**26  # of a mask in a file that says its size; a larger one must be of the size of its image


class Polygons(NamedTuple):
    """Outlines and the holes in them: coordinates of polygons as bytes (`shapes.read_polygons`)."""

    outer: tuple[bytes, ...]
    holes: tuple[bytes, ...] = ()


class Box(NamedTuple):
    """An object of which only the box is known, as a polygon."""

    outer: tuple[bytes, ...]


class Shape(NamedTuple):
    """An object: polygons, compressed RLE, pixels (h, w) bool, a box, or None for a tag of the whole image.

    The label of ignored pixels is None.
    """

    label: str | None
    content: Polygons | dict | np.ndarray | Box | None


class Content(NamedTuple):
    """What a file says about an image: its size (h, w) if it is said, and shapes, later ones on top.

    With `by_area`, smaller shapes lie on larger ones whatever their order.
    """

    size: tuple[int, int] | None
    shapes: list[Shape]
    by_area: bool = False


class Found(NamedTuple):
    """An image in a file: its name there, where that is for messages, and a function that reads the rest.

    `load` takes the size (h, w) and the path of the image, and raises ValueError or TypeError if the file is damaged.
    """

    name: str
    where: str
    load: Callable[[tuple[int, int], Path], Content]


def list_files(folder: Path, *endings: str) -> list[Path]:
    """Return the files below a folder with one of these endings, without hidden ones."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        found += [Path(root, name) for name in sorted(names) if not name.startswith('.')]
    return [path for path in found if path.suffix.lower() in endings]


def check_names(file: str, names: Iterable[str]) -> None:
    """Raise ValueError if a file names a class twice: it would have two values."""
    doubled = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if doubled is not None:
        raise ValueError(f'{file}: names {doubled[:40]!r} twice')


def read_size(height: object, width: object) -> tuple[int, int] | None:
    """Return the size (h, w) that a file says, None if it says none. Raises ValueError if it is not a size."""
    if height is None and width is None:
        return None
    sides = height, width
    if not all(type(side) in (int, float) and 0 < side <= SIDE_LIMIT and side == int(side) for side in sides):
        raise ValueError(f'the size {width!r} x {height!r} is not a number of pixels')
    return int(height), int(width)


def check_size(stated: tuple[int, int] | None, size: tuple[int, int]) -> None:
    """Raise ValueError if a size that a file says is not the size of the image at any scale, or too large to decode."""
    if stated is None or stated == size:
        return
    (sh, sw), (h, w) = stated, size
    is_scaled = abs(sh - h * sw / w) <= 1 or abs(sw - w * sh / h) <= 1
    if not is_scaled:
        raise ValueError(f'is {sw}x{sh} in the file, but the image is {w}x{h}: sides of another ratio cannot be scaled')
    check_pixels(stated, size)


def check_pixels(sides: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise ValueError if a mask of these sides (h, w) is too large to decode for an image of the size (h, w)."""
    (sh, sw), (h, w) = sides, size
    if sh * sw > max(PIXEL_LIMIT, h * w):
        raise ValueError(f'is {sw}x{sh} in the file, but the image is only {w}x{h}: export it at the size of the image')


def draw(content: Polygons | dict | np.ndarray | Box, stated: tuple[int, int] | None, size: tuple[int, int]):
    """Return a shape as (h, w) bool at the size of the image. Raises ValueError if it cannot be drawn.

    Polygons are scaled before they are drawn; masks of another size are scaled to the nearest pixel. A pixel belongs to
    a polygon if its centre does.
    """
    if isinstance(content, np.ndarray):
        return scale(content, size)
    if isinstance(content, dict):
        return scale(coco_mask.decode(content).astype(bool), size)
    mask = _fill(content.outer, stated, size)
    for hole in content.holes if isinstance(content, Polygons) else ():
        mask &= ~_fill((hole,), stated, size)
    return mask


def _fill(polygons: tuple[bytes, ...], stated: tuple[int, int] | None, size: tuple[int, int]) -> np.ndarray:
    if stated not in (None, size):
        factors = np.array([size[1] / stated[1], size[0] / stated[0]])
        polygons = tuple((np.frombuffer(polygon).reshape(-1, 2) * factors).tobytes() for polygon in polygons)
    rle = encode_shape(polygons, size)
    return np.zeros(size, bool) if rle is None else coco_mask.decode(rle).astype(bool)


def scale(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask (h', w') at the size (h, w): each pixel has the value of the nearest one."""
    if mask.shape == tuple(size):
        return mask
    rows, columns = (
        ((np.arange(side) + 0.5) * old / side).astype(int) for side, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def compose(content: Content, indices: Iterable[int], size: tuple[int, int]) -> np.ndarray:
    """Return the mask (h, w) uint8 of the shapes, of which each has the class index of the same place in `indices`.

    Pixels of an object that has only a box are ignored, unless an outline covers them: they are not known.
    """
    label, boxes = np.zeros(size, np.uint8), np.zeros(size, bool)
    pairs = [pair for pair in zip(content.shapes, indices, strict=True) if pair[0].content is not None]
    if content.by_area:
        areas = [int(draw(shape.content, content.size, size).sum()) for shape, _ in pairs]
        pairs = [pairs[i] for i in sorted(range(len(pairs)), key=lambda i: -areas[i])]
    for shape, index in pairs:
        mask = draw(shape.content, content.size, size)
        if isinstance(shape.content, Box):
            boxes |= mask
        else:
            label[mask] = index
    label[boxes & (label == 0)] = IGNORE
    return label
