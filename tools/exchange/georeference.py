"""Where the pixels of a picture are on the ground: from the tags of a GeoTIFF, or from a world file beside it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffTags

from core.data.files import read_text

SCALE, TIEPOINT, MATRIX, KEYS = 33550, 33922, 34264, 34735  # tags of GeoTIFF 1.1, section 6.1
NUMBERS, TEXTS = 34736, 34737  # values of the keys, in two more tags
PROJECTED, GEOGRAPHIC = 3072, 2048  # keys of the reference system
WORLD_FILES = {'.tif': '.tfw', '.tiff': '.tfw', '.jpg': '.jgw', '.jpeg': '.jgw', '.png': '.pgw', '.jp2': '.j2w'}


class Georeference(NamedTuple):
    """An affine map (2, 3) from the corners of pixels (x, y, 1) to coordinates, and the EPSG number if it is known."""

    matrix: np.ndarray
    epsg: int | None

    def to_ground(self, points: np.ndarray) -> np.ndarray:
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        return (points - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T


def find(path: Path) -> Georeference | None:
    """Return the georeference of a picture, None if it has none that can be read."""
    world = path.with_suffix(WORLD_FILES.get(path.suffix.lower(), '.wld'))
    found = _read_tags(path) if path.suffix.lower() in ('.tif', '.tiff') else None
    found = found or (_read_world_file(world) if world.is_file() else None)
    is_good = found is not None and np.isfinite(found.matrix).all() and np.linalg.det(found.matrix[:, :2]) != 0
    return found if is_good else None


def tags_of(path: Path) -> dict[int, tuple[int, object]]:
    """Return the types and values of the tags that say where a picture is, {} if it has no georeference.

    A GeoTIFF's own tags, or the affine map of a world file.
    """
    found = find(path)
    if found is None:
        return {}
    (a, b, c), (d, e, f) = found.matrix.tolist()
    affine = (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    if path.suffix.lower() in ('.tif', '.tiff'):
        with Image.open(path, formats=['TIFF']) as image:
            known, kinds = image.tag_v2, image.tag_v2.tagtype
            own = {
                tag: (kinds[tag], known[tag]) for tag in (SCALE, TIEPOINT, MATRIX, KEYS, NUMBERS, TEXTS) if tag in known
            }
        if own.keys() & {SCALE, MATRIX}:
            return own
    return {MATRIX: (TiffTags.DOUBLE, affine)}


def _read_tags(path):
    """Return the georeference in the tags of a TIFF."""
    try:
        with Image.open(path, formats=['TIFF']) as image:
            tags = {
                tag: np.array(image.tag_v2[tag], np.float64) for tag in (SCALE, TIEPOINT, MATRIX) if tag in image.tag_v2
            }
            keys = np.array(image.tag_v2.get(KEYS, ())).reshape(-1, 4)
        if MATRIX in tags:
            rows = tags[MATRIX].reshape(4, 4)
            matrix = rows[:2, [0, 1, 3]]
        else:
            (sx, sy, _), (x, y, _, east, north, _) = tags[SCALE], tags[TIEPOINT][:6]
            matrix = np.array([[sx, 0, east - x * sx], [0, -sy, north + y * sy]])
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):  # no TIFF, other tags, or damaged ones
        return None
    numbers = {int(key): int(value) for key, _, _, value in keys.tolist()}
    epsg = numbers.get(PROJECTED) or numbers.get(GEOGRAPHIC)
    return Georeference(matrix, epsg if epsg and epsg < 32767 else None)  # 32767: defined by its parameters


def _read_world_file(path):
    """Return the georeference of six lines: a, d, b, e, and c, f of the centre of the first pixel."""
    try:
        a, d, b, e, c, f = map(float, read_text(path).split())
    except (OSError, ValueError):
        return None
    return Georeference(np.array([[a, b, c - (a + b) / 2], [d, e, f - (d + e) / 2]]), None)
