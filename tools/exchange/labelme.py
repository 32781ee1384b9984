"""labelme: a JSON file per image under the image's own path, which names the image relative to itself.

Polygons can be edited, but have no holes; shapes of the type `mask` have all pixels, and can be moved or deleted only.
"""

import base64
import io
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from core.data.files import fits
from tools.exchange.objects import Picture
from tools.exchange.reading import PIXEL_LIMIT, Content, Found, Polygons, Shape, check_size, read_size
from tools.exchange.shapes import read_polygons
from tools.exchange.writing import Export, write_compact
from util.store.files import write_bytes

SHAPES = ('polygons', 'masks')
HAS_HOLES = False
HAS_IGNORED = False
BY_AREA = False
CORNERS = {'polygon': 3, 'rectangle': 2, 'oriented_rectangle': 4, 'circle': 2, 'mask': 2}  # points, at least
LINES = ('point', 'points', 'line', 'linestrip')  # shapes without an area


def encode(picture: Picture, export: Export) -> None:
    """Write the file of an image."""
    path = export.place(picture.name, '.json')
    folder = (export.target / path.relative_to(export.out)).parent
    content = {
        'version': '5.5.0',
        'flags': {},
        'shapes': [_shape(found, export) for found in picture.objects],
        'imagePath': Path(os.path.relpath(picture.path.absolute(), folder.absolute())).as_posix(),
        'imageData': None,
        'imageHeight': picture.size[0],
        'imageWidth': picture.size[1],
    }
    write_compact(path, content)


def _shape(found, export):
    x, y, w, h = found.box
    is_mask = export.shapes == 'masks'
    points = [[x, y], [x + w - 1, y + h - 1]] if is_mask else export.outline(found).outer.tolist()
    return {
        'label': export.name_of(found.index),
        'points': [[float(a), float(b)] for a, b in points],
        'group_id': None,
        'description': '' if found.score is None else f'score {found.score:.2f}',
        'shape_type': 'mask' if is_mask else 'polygon',
        'flags': {},
        'mask': _encode_mask(found.pixels) if is_mask else None,
    }


def _encode_mask(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).save(buffer, 'PNG')
    return base64.b64encode(buffer.getvalue()).decode()


def finish(entries: list[None], export: Export) -> None:
    """Write the names of the classes, for labelme --labels."""
    write_bytes(export.out / 'labels.txt', ''.join(f'{name}\n' for name in export.classes).encode())


def is_content(content: object) -> bool:
    """Return whether JSON is a file of labelme."""
    return fits(content, {'shapes': [dict], 'imagePath': str})


def read_file(path: Path, content: dict) -> list[Found]:
    """Return the image of a file."""
    kept = {name: content.get(name) for name in ('shapes', 'imageHeight', 'imageWidth', 'flags')}
    return [Found(content['imagePath'], str(path), partial(_load, kept))]


def _load(content, size, _image):
    stated = read_size(content['imageHeight'], content['imageWidth'])
    check_size(stated, size)
    flags = content['flags'] if fits(content['flags'], {str: bool}) else {}
    tags = [Shape(label, None) for label, is_set in flags.items() if is_set]
    return Content(stated, [*tags, *(_read_shape(entry, stated or size) for entry in content['shapes'])])


def _read_shape(entry, size):
    if not fits(entry, {'label': str, 'points': [[float]]}):
        raise ValueError('a shape lacks its "label" or "points"')
    kind, points = entry.get('shape_type') or 'polygon', np.array(entry['points'], np.float64)
    if kind in LINES:
        raise ValueError(f'{entry["label"]!r} is a {kind}, which has no area: draw a polygon, or delete it')
    if kind not in CORNERS or points.shape != (max(len(points), CORNERS[kind]), 2) or not np.isfinite(points).all():
        raise ValueError(f'the points of a {str(kind)[:20]} of {entry["label"]!r} are not its corners')
    if kind == 'mask':
        return Shape(entry['label'], _decode_mask(entry.get('mask'), points, size))
    if kind == 'rectangle':
        (x, y), (right, bottom) = points[:2]
        points = np.array([[x, y], [right, y], [right, bottom], [x, bottom]])
    elif kind == 'circle':
        angles = np.linspace(0, 2 * math.pi, 128, endpoint=False)
        points = points[0] + np.hypot(*(points[1] - points[0])) * np.stack([np.cos(angles), np.sin(angles)], 1)
    return Shape(entry['label'], Polygons(read_polygons([points.reshape(-1)])))


def _decode_mask(text, points, size):
    """Return the pixels (h, w) bool of a mask that fills a box; the part outside of the image does not count."""
    left, top, right, bottom = points[:2].astype(int).reshape(-1).tolist()
    w, h = right - left + 1, bottom - top + 1
    if not isinstance(text, str) or w <= 0 or h <= 0 or w * h > max(PIXEL_LIMIT, size[0] * size[1]):
        raise ValueError('a mask lacks its pixels, or its box is empty or too large')
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=['PNG']) as image:
            pixels = np.array(image.convert('L')) > 0 if image.size == (w, h) else None
    except Exception as error:  # whatever a damaged PNG raises in Pillow
        raise ValueError(f'the PNG of a mask is damaged ({type(error).__name__})') from None
    if pixels is None:
        raise ValueError(f'the PNG of a mask is not of the size of its box, {w}x{h}')
    mask = np.zeros(size, bool)
    x, y = max(0, left), max(0, top)
    part = pixels[y - top : max(0, size[0] - top), x - left : max(0, size[1] - left)]
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask
