"""Shapes of objects as COCO has them: polygons and RLE, checked before pycocotools sees them.

A shape is compressed RLE, or the coordinates of each polygon: bytes of float64 save memory.
"""

import re

import numpy as np
from pycocotools import mask as coco_mask

SIDE_LIMIT = 65_535  # pixels, the limit of JPEG
WHOLE_IMAGE = (0, 0, SIDE_LIMIT, SIDE_LIMIT)  # box of an object that has none: x, y, width, height
COORDINATE_LIMIT = 1e6
# pycocotools holds 20 bytes for each step of a fifth of a pixel along the edges, even outside the image.
STEP_LIMIT = 2**25
# A count is up to 6 continuation characters and a final one. pycocotools reads past the end of anything else.
COMPRESSED_COUNTS = re.compile('([P-o]{0,6}[0-O])+')


def _to_numbers(values):
    """Return the values as float64, a single NaN if they are not numbers."""
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.full(1, np.nan)


def read_polygons(polygons):
    """Return the coordinates of each polygon as bytes. Fewer than three points have no area."""
    shape, points = [], 0
    for polygon in polygons:
        coordinates = _to_numbers(polygon)
        # NaN fails the comparison too.
        if coordinates.ndim != 1 or coordinates.size % 2 or not (np.abs(coordinates) <= COORDINATE_LIMIT).all():
            raise ValueError('a polygon must be a list x1, y1, x2, y2, ... of finite numbers')
        if coordinates.size >= 6:
            shape.append(coordinates.tobytes())
        points += coordinates.size == 2
    if points > 1:
        raise ValueError('its points are [x, y] pairs: a polygon must be a list x1, y1, x2, y2, ...')
    return tuple(shape)


def read_box(box):
    """Return the pixels that [x, y, width, height] touches as a polygon; None is the whole image."""
    numbers = _to_numbers(box or WHOLE_IMAGE)
    if numbers.shape != (4,) or not (np.abs(numbers) <= COORDINATE_LIMIT).all() or numbers[2:].min() < 0:
        raise ValueError('"bbox" must be [x, y, width, height]')
    x, y, width, height = numbers
    left, top = np.floor(x), np.floor(y)
    right, bottom = max(np.ceil(x + width), left + 1), max(np.ceil(y + height), top + 1)
    return (np.array([left, top, right, top, right, bottom, left, bottom]).tobytes(),)


def read_rle(rle):
    """Return compressed RLE. pycocotools returns uninitialised memory, or worse, for counts that do not fit."""
    if not isinstance(rle, dict) or not rle.keys() >= {'counts', 'size'}:
        raise ValueError('"segmentation" must be a list of polygons, or RLE with "counts" and "size"')
    size, counts = rle['size'], rle['counts']
    if not isinstance(size, list) or len(size) != 2 or not all(is_side(side) for side in size):
        raise ValueError('"size" of its RLE must be [height, width]')
    area = size[0] * size[1]
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != area:
            raise ValueError(f'the counts of its RLE do not add up to {size[0]}x{size[1]} pixels')
        return coco_mask.frPyObjects(rle, *size)
    is_valid = isinstance(counts, str) and COMPRESSED_COUNTS.fullmatch(counts)
    numbers = decode_counts(counts) if is_valid else []
    if sum(numbers) != area or min(numbers) < 0:
        raise ValueError(f'the counts of its RLE do not add up to {size[0]}x{size[1]} pixels')
    return {'size': size, 'counts': counts.encode()}


def decode_counts(text):
    """Return the numbers of compressed counts, as pycocotools does.

    A number is digits of 5 bits, the lowest first: bit 32 says that another digit follows, bit 16 of the last digit is
    the sign. From the fourth number on, it is the difference from the number before last.
    """
    numbers, value, shift = [], 0, 0
    for digit in (ord(character) - 48 for character in text):
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    return numbers


def is_side(value):
    """Return whether a value is a whole number of pixels; some programs write 640.0."""
    return type(value) in (int, float) and 0 < value <= SIDE_LIMIT and value == int(value)


def encode_shape(shape, size):
    """Return compressed RLE of a shape, None if it has no polygon. Raises ValueError if its outline is too long."""
    if isinstance(shape, dict):
        return shape
    polygons = [clip(np.frombuffer(polygon).reshape(-1, 2), size[::-1]) for polygon in shape]
    polygons = [polygon for polygon in polygons if len(polygon) >= 3]
    if not polygons:
        return None
    steps = sum(5 * np.abs(polygon - np.roll(polygon, 1, 0)).max(1).sum() for polygon in polygons)
    if steps > STEP_LIMIT:
        raise ValueError(f'the outline of an annotation is {steps / 5:.0f} pixels long, {STEP_LIMIT // 5} are possible')
    return coco_mask.merge(coco_mask.frPyObjects([polygon.reshape(-1) for polygon in polygons], *size))


def clip(polygon, size):
    """Clip a polygon (N, 2) of x and y to an image of the size (w, h) plus a margin as wide as the image.

    A polygon inside this area is unchanged, bit for bit.
    """
    for axis, side in enumerate(size):
        for sign, limit in ((-1, side), (1, 2 * side)):
            inside = sign * polygon[:, axis] <= limit
            if inside.all():
                continue
            points = []
            for i in range(len(polygon)):
                before, point = polygon[i - 1], polygon[i]
                if inside[i - 1] != inside[i]:
                    share = (sign * limit - before[axis]) / (point[axis] - before[axis])
                    points.append(before + share * (point - before))
                if inside[i]:
                    points.append(point)
            polygon = np.array(points).reshape(-1, 2)
    return polygon
