"""Objects of a label map: its connected components, their scores and their outlines.

What is written to a labelling tool: a `Picture` has an image, its label map and the objects in it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from core import IGNORE
from core.maps import strided_size, upsample_rw
from util.store import arrays


class Outline(NamedTuple):
    """The border of an object as polygons of x and y (N, 2) in pixels, along the edges of pixels if not simplified."""

    outer: np.ndarray
    holes: tuple[np.ndarray, ...]


class Object(NamedTuple):
    """A connected component of a class: its box (left, top), its pixels (h', w') in that box, and its mean score."""

    index: int  # of the class, or IGNORE
    left: int
    top: int
    pixels: np.ndarray
    score: float | None

    @property
    def area(self) -> int:
        return int(self.pixels.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width, height."""
        return self.left, self.top, self.pixels.shape[1], self.pixels.shape[0]

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """Return the object as a mask (h, w) uint8 of 0 and 1 of the image."""
        mask = np.zeros(size, np.uint8)
        self.lay(mask, 1)
        return mask

    def lay(self, target: np.ndarray, value: int) -> None:
        """Set the pixels of the object in an array (h, w)."""
        h, w = self.pixels.shape
        target[self.top : self.top + h, self.left : self.left + w][self.pixels] = value

    def rle(self, size: tuple[int, int]) -> dict:
        """Return the compressed RLE of the object in the image, with counts as text."""
        rle = coco_mask.encode(np.asfortranarray(self.mask(size)))
        return {'size': list(size), 'counts': rle['counts'].decode()}

    def outline(self, tolerance: float) -> Outline:
        """Return the border, whose corners may move by `tolerance` pixels; 0 follows every pixel."""
        outer, *holes = (ring + (self.left, self.top) for ring in _rings(self.pixels, tolerance))
        return Outline(outer, tuple(holes))


class Picture(NamedTuple):
    """An image with its label map and objects, the largest box first: drawn in turn, filled holes hide none."""

    image_id: str
    name: str  # its path below the folder of the images, with '/'
    path: Path
    split: str  # the first list of the data set that has it
    label: np.ndarray  # (h, w): 0..C and IGNORE
    objects: tuple[Object, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.label.shape


def find_objects(
    label: np.ndarray, min_area: int, scores: Mapping[int, np.ndarray], keep_ignored: bool, nothing: int = 0
) -> tuple[np.ndarray, tuple[Object, ...], int]:
    """Return the label map without what is left out, its objects by the size of the box, and the number of small ones.

    Pixels that touch, also at a corner, are one object. Objects of fewer than `min_area` pixels become background, and
    without `keep_ignored` so do ignored pixels. `scores` are maps (h, w) by class. `nothing`: the label of pixels in no
    object, IGNORE in a data set without a background.
    """
    kept, objects, small = np.full_like(label, nothing), [], 0
    for index in np.setdiff1d(label, [0] if keep_ignored else [0, IGNORE]).tolist():
        count, parts, boxes, _ = cv2.connectedComponentsWithStats((label == index).astype(np.uint8), connectivity=8)
        for part in range(1, count):
            left, top, w, h, area = boxes[part].tolist()
            if area < min_area:
                small += 1
                continue
            pixels = parts[top : top + h, left : left + w] == part
            score = scores[index][top : top + h, left : left + w][pixels].mean() if index in scores else None
            objects.append(Object(index, left, top, pixels, None if score is None else round(float(score), 4)))
            objects[-1].lay(kept, index)
    # An object in the hole of another one has a smaller box, and so comes later.
    return kept, tuple(sorted(objects, key=lambda found: -found.pixels.size)), small


def read_scores(path: Path, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """Return the scores (h, w) by class of an npz file beside a label map, {} if it has none.

    tools.predict writes them: probabilities of a segmentation network, or the random-walk CAMs or CAMs of a classifier.
    Raises UserError naming the file if it is damaged, or if a score is not in [0, 1].
    """
    names = arrays.names_inside(path)
    name = next((name for name in ('probability', 'rw', 'hr_cam') if name in names), None)
    if name is None or 'keys' not in names:
        return {}
    keys, maps = arrays.read_arrays(path, 'keys', name)
    classes = keys if name == 'probability' else keys[1:]
    if maps.ndim != 3 or len(classes) != len(maps):
        return {}
    if maps.shape[1:] != (strided_size(size) if name == 'rw' else size):
        return {}
    maps = arrays.check_scores(path, name, maps)
    maps = upsample_rw(maps, size) if name == 'rw' else maps
    return dict(zip(classes.tolist(), maps, strict=True))


def _rings(pixels: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Return the outer border of a connected mask and the borders of its holes, each (N, 2) int of x and y.

    OpenCV follows the centres of pixels. On the mask at twice its size they are a quarter of a pixel from the edge that
    is meant, so rounding outwards gives the edges of the pixels.
    """
    double = np.repeat(np.repeat(pixels.astype(np.uint8), 2, 0), 2, 1)
    contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    is_hole = hierarchy[0, :, 3] >= 0
    rings = []
    for i in np.argsort(is_hole, kind='stable'):
        ring = _corners((contours[i][:, 0] + 1) // 2)
        simple = cv2.approxPolyDP(ring.astype(np.int32), tolerance, True)[:, 0] if tolerance else ring
        rings.append(simple if len(simple) >= 3 else ring)
    return rings


def _corners(ring: np.ndarray) -> np.ndarray:
    """Return the points of a closed ring at which it turns."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
