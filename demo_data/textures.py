"""Pictures that textures cover completely: the drawn data set without a background.

Colours are drawn for each region, whatever its class, so only the pattern tells the classes apart.
"""

import colorsys
from collections.abc import Callable

import cv2
import numpy as np

from demo_data.scenes import low_noise

# What makes the set easy or hard. Raise DRAWING with any change to the pictures: it is saved among the options.
DRAWING = 1
COUNTS = {2: 0.4, 3: 0.4, 4: 0.2}  # regions in a picture: share of the pictures
MIN_AREA = 0.1  # share of the picture that a region covers at least
PERIOD = (0.08, 0.13)  # length after which a pattern repeats / longer side of the picture
CONTRAST = 0.3  # smallest difference between the brightness of a pattern's two colours, of 1
WOBBLE = 0.06  # how far borders bend / longer side of the picture
NOISE = 4.0  # standard deviation of the grain of the whole picture, in grey levels


def stripes(x: np.ndarray, y: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    return np.sin(2 * np.pi * x)


def checks(x: np.ndarray, y: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    return np.where((np.floor(2 * x) + np.floor(2 * y)) % 2, 1.0, -1.0)


def dots(x: np.ndarray, y: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    return 4 * (0.33 - np.hypot(x - np.round(x), y - np.round(y)))


def rings(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    centre_x, centre_y = rng.uniform(x.min(), x.max()), rng.uniform(y.min(), y.max())
    return np.sin(2 * np.pi * np.hypot(x - centre_x, y - centre_y))


def bricks(x: np.ndarray, y: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    row = np.floor(1.6 * y)
    column = 0.8 * x + 0.5 * (row % 2)  # every other row is moved by half a brick
    to_side, to_end = (np.abs(at - np.round(at)) / scale for at, scale in ((1.6 * y, 1.6), (column, 0.8)))
    return 12 * (np.minimum(to_side, to_end) - 0.09)


def grain(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cells = round(4 * max(np.ptp(x), np.ptp(y)))
    return 1.5 * low_noise(rng, *x.shape, cells)


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    'bricks': bricks,
    'checks': checks,
    'dots': dots,
    'grain': grain,
    'rings': rings,
    'stripes': stripes,
}
CLASSES = sorted(TEXTURES)


def paint_texture(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> np.ndarray:
    """-> a texture (height, width, 3) float32 in [0, 255]: two colours of any hue, at any angle."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) / (max(shape) * rng.uniform(*PERIOD))
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    share = np.clip(0.5 + 0.5 * TEXTURES[name](along, across, rng), 0, 1)[..., None]
    first, second = _pick_colours(rng)
    return (share * first + (1 - share) * second).astype(np.float32)


def _pick_colours(rng: np.random.Generator) -> np.ndarray:
    """-> two colours (2, 3) in [0, 255] that differ in brightness."""
    dark, gap = rng.uniform(0.1, 0.95 - CONTRAST), rng.uniform(CONTRAST, 0.6)
    values = np.array([dark, min(1, dark + gap)])[:: rng.choice([-1, 1])]
    hues, saturations = rng.uniform(0, 1, 2), rng.uniform(0.1, 0.7, 2)
    return 255 * np.array([colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues, saturations, values, strict=True)])


def divide(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    """-> regions (height, width) of 0 to count - 1, each of at least MIN_AREA: the nearest of some points, bent."""
    size = max(shape)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    while True:
        points = rng.uniform((0, 0), shape, (count, 2))
        bent_y, bent_x = (at + WOBBLE * size * low_noise(rng, *shape, 5) for at in (y, x))
        regions = np.argmin([np.hypot(bent_y - py, bent_x - px) for py, px in points], 0)
        if np.bincount(regions.ravel(), minlength=count).min() >= MIN_AREA * regions.size:
            return regions


def draw_textures(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, tuple[int, int, int, int], bool]]]:
    """-> image (h, w, 3) uint8 RGB, mask (h, w) uint8 of 1..C, regions as objects (demo_data.scenes.draw_scene).

    The longer side is `size`. The regions of a picture are of different classes.
    """
    shape = (size, round(size * rng.uniform(0.75, 1)))[:: rng.choice([-1, 1])]
    count = rng.choice(list(COUNTS), p=list(COUNTS.values()))
    regions = divide(rng, count, shape)
    image, mask, objects = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.uint8), []
    for k, name in enumerate(rng.choice(CLASSES, count, replace=False).tolist()):
        inside = regions == k
        image[inside] = paint_texture(rng, name, shape)[inside]
        mask[inside] = CLASSES.index(name) + 1
        left, top, width, height = cv2.boundingRect(np.uint8(inside))
        objects.append((name, (left + 1, top + 1, left + width, top + height), False))
    image = image * rng.uniform(0.9, 1.05) + rng.normal(0, NOISE, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask, objects
