"""Scenes of the drawn data set: calm backgrounds, figures placed in them, masks and boxes."""

import itertools

import cv2
import numpy as np

from demo_data.figures import CLASSES, COATS, FIGURES, Part, box, pick_colour, turn

# What makes the set easy or hard. Raise DRAWING with any change to the pictures: it is saved among the options.
DRAWING = 1
COUNTS = {1: 0.5, 2: 0.38, 3: 0.12}  # objects in a scene: share of the scenes
LENGTHS = {1: (0.5, 0.75), 2: (0.4, 0.6), 3: (0.32, 0.46)}  # objects in a scene: their longer side / scene's
ROTATION = 8  # degrees, either way
TRUNCATED = 0.15  # share of the objects that reach over the image's border
MIN_VISIBLE = 0.55  # share of an object's area that is visible at least
MIN_AREA = 0.004  # share of the scene that an object covers at least, without its border of 255
CLUTTER = 1.0  # strength of the background's texture
NOISE = 2.0  # standard deviation of the grain, in grey levels

# Backgrounds are independent of the class: every class occurs on every ground, under every sky.
GROUNDS = {
    'grass': (80, 125, 0.28, 0.45, 0.5, 0.7),
    'road': (200, 240, 0.02, 0.08, 0.42, 0.58),
    'sand': (38, 50, 0.2, 0.32, 0.74, 0.86),
    'stones': (25, 40, 0.12, 0.25, 0.5, 0.65),
}
SKIES = [(200, 215, 0.2, 0.45, 0.8, 0.95), (205, 230, 0.02, 0.1, 0.66, 0.82), (15, 35, 0.12, 0.28, 0.82, 0.95)]
SUPERSAMPLING = 4
SHIFT = 4  # OpenCV takes coordinates as integers, in units of 2^-SHIFT pixels


def low_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """-> smooth noise (height, width) float32 of about unit variance, with `cells` bumps per side."""
    bumps = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(bumps, (width, height), interpolation=cv2.INTER_CUBIC)


def paint(rng: np.random.Generator, parts: list[Part], length: float) -> np.ndarray:
    """Parts -> the figure (h, w, 4) float32, its longer side `length` pixels: RGB times alpha, and alpha in [0, 1]."""
    mirror, degrees = rng.choice([-1, 1]), rng.uniform(-ROTATION, ROTATION)
    shapes = [turn(part.points * [mirror, 1], degrees) for part in parts]
    low, high = np.min([s.min(0) for s in shapes], 0) - 0.05, np.max([s.max(0) for s in shapes], 0) + 0.05
    scale = SUPERSAMPLING * length / (high - low).max()
    width, height = np.ceil((high - low) * scale / SUPERSAMPLING).astype(int)
    layer = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING, 4), np.uint8)
    line = max(1, round(0.02 * scale))
    for part, shape in zip(parts, shapes, strict=True):
        colour = [*np.clip(part.colour, 0, 255).tolist(), 255]
        points = np.round((shape - low) * scale * 2**SHIFT).astype(np.int32)
        if part.width:
            cv2.polylines(layer, [points], False, colour, max(1, round(part.width * scale)), shift=SHIFT)
        elif part.inside:
            stencil = cv2.fillPoly(np.zeros(layer.shape[:2], np.uint8), [points], 1, shift=SHIFT)
            layer[(stencil > 0) & (layer[..., 3] > 0)] = colour
        else:
            cv2.fillPoly(layer, [points], colour, shift=SHIFT)
            if part.outlined:
                edge = [*np.clip(part.colour * 0.6, 0, 255).tolist(), 255]
                cv2.polylines(layer, [points], True, edge, line, shift=SHIFT)
    figure = cv2.resize(layer, (int(width), int(height)), interpolation=cv2.INTER_AREA).astype(np.float32)
    figure[..., 3] /= 255

    # Light falls from above on a slightly mottled surface.
    light = np.linspace(1.14, 0.84, height, dtype=np.float32)[:, None] + 0.035 * low_noise(rng, height, width, 12)
    figure[..., :3] = np.minimum(figure[..., :3] * light[..., None], 255 * figure[..., 3:])
    return figure


def draw_background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, int]:
    """-> image (height, width, 3) float32 in [0, 255], and the row of the horizon."""
    kind = rng.choice(list(GROUNDS))
    ground, sky = pick_colour(rng, GROUNDS[kind]), pick_colour(rng, SKIES[rng.integers(len(SKIES))])
    horizon, size = int(height * rng.uniform(0.25, 0.55)), max(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ground_image = ground * (0.92 + 0.16 * y / height)[..., None]
    if kind == 'sand':
        ground_image *= (1 + 0.025 * CLUTTER * np.sin(60 * y / size + 3 * low_noise(rng, height, width, 4)))[..., None]
    marks = {'grass': 110, 'road': 12, 'sand': 15, 'stones': 40}[kind]
    for mx, my, tone in rng.uniform((0, horizon, -1), (width, height, 1), (round(marks * CLUTTER), 3)):
        near = size * (0.4 + (my - horizon) / height)  # marks grow towards the viewer
        colour, at = (ground * (1 + 0.14 * tone)).tolist(), (round(mx), round(my))
        if kind == 'grass':
            tip = (round(mx + 0.02 * tone * near), round(my - 0.05 * near))
            cv2.line(ground_image, at, tip, colour, max(1, size // 128))
        else:
            radius = 0.012 * near * (2.2 if kind == 'stones' else 1)
            cv2.ellipse(ground_image, at, (round(1.5 * radius), round(radius)), 0, 0, 360, colour, -1)
    if kind == 'road':
        row, dash = int(rng.uniform(0.3, 0.9) * (height - horizon)) + horizon, 0.18 * size
        for left in np.arange(-rng.uniform(0, dash), width, dash):
            corners = box(left, row, left + 0.6 * dash, row + max(2, 0.025 * size)).astype(np.int32)
            cv2.fillPoly(ground_image, [corners], (ground * 0.5 + 110).tolist())

    clouds = np.clip(low_noise(rng, height, width, 5), 0, 1.5)[..., None]
    sky_image = sky * (0.9 + 0.14 * y / max(1, horizon))[..., None] + CLUTTER * 10 * clouds
    hills = horizon + 0.02 * size * low_noise(rng, 1, width, 5) * (kind != 'road')
    share = np.clip(y - hills + 0.5, 0, 1)[..., None]
    image = share * ground_image + (1 - share) * sky_image
    mottle = 4 * low_noise(rng, height, width, 7) + 2.5 * low_noise(rng, height, width, 24)
    return np.clip(image + CLUTTER * mottle[..., None], 0, 255).astype(np.float32), horizon


def outline(instances: np.ndarray, size: int) -> np.ndarray:
    """Instances (h, w) -> bool (h, w): within about a pixel of an object's outline, on both sides of it."""
    kernel = np.ones([2 * max(1, round(size / 100)) + 1] * 2, np.uint8)
    return cv2.dilate(instances, kernel) != cv2.erode(instances, kernel)


def pick_place(rng: np.random.Generator, figure: np.ndarray, shape: tuple[int, int], horizon: int) -> tuple[int, int]:
    """Figure (h, w, 4) on a scene of the shape (height, width) -> its bottom, below the horizon, and its left."""
    (height, width), (h, w) = shape, figure.shape[:2]
    left = rng.uniform(0, max(0, width - w))
    bottom = min(height, max(rng.uniform(horizon + 0.05 * height, height), h))
    if rng.random() < TRUNCATED:
        over = rng.uniform(0.06, 0.25)
        beyond = [(bottom, -over * w), (bottom, width - w + over * w), (height + over * h, left)]
        bottom, left = beyond[rng.integers(3)]
    return int(bottom), int(left)


def arrange(
    rng: np.random.Generator, figures: list[tuple[str, np.ndarray]], shape: tuple[int, int], horizon: int
) -> tuple[list[tuple[str, np.ndarray, bool]], np.ndarray]:
    """Find places, the nearest figure last, so that enough of each is visible. A figure without a place is dropped.

    Figures (name, (h, w, 4)) -> those kept, as (name, (height, width, 4) on the scene, truncated), and instances
    (height, width) uint8: 0 background, k the k-th of them.
    """
    for attempt in itertools.count(1):
        if attempt % 10 == 0 and len(figures) > 1:
            figures = figures[:-1]
        places = [pick_place(rng, figure, shape, horizon) for _, figure in figures]
        kept, shares, instances = [], [], np.zeros(shape, np.uint8)
        for k in sorted(range(len(figures)), key=lambda k: places[k]):
            (name, figure), (bottom, left) = figures[k], places[k]
            layer, top = np.zeros((*shape, 4), np.float32), bottom - figure.shape[0]
            part = figure[max(0, -top) :, max(0, -left) :][: shape[0] - max(0, top), : shape[1] - max(0, left)]
            layer[max(0, top) :, max(0, left) :][: part.shape[0], : part.shape[1]] = part
            area, area_inside = (figure[..., 3] >= 0.5).sum(), (layer[..., 3] >= 0.5).sum()
            kept.append((name, layer, bool(area_inside < area)))
            shares.append(MIN_VISIBLE * area)
            instances[layer[..., 3] >= 0.5] = len(kept)
        seen = np.bincount(instances.ravel(), minlength=len(kept) + 1)[1:]
        sure = np.bincount(instances[~outline(instances, max(shape))], minlength=len(kept) + 1)[1:]
        if (seen >= shares).all() and (sure >= MIN_AREA * instances.size).all():
            return kept, instances


def draw_scene(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, tuple[int, int, int, int], bool]]]:
    """-> image (h, w, 3) uint8 RGB, mask (h, w) uint8 (0 background, 1..C, 255 border), objects.

    The longer side is `size`. An object is (name, (xmin, ymin, xmax, ymax), truncated), the box 1-based as in VOC.
    """
    shape = (size, round(size * rng.uniform(0.75, 1)))[:: rng.choice([-1, 1])]
    image, horizon = draw_background(rng, *shape)
    count = rng.choice(list(COUNTS), p=list(COUNTS.values()))
    figures = []
    for name in rng.choice(CLASSES, count).tolist():
        coat = pick_colour(rng, COATS[name][rng.integers(len(COATS[name]))])
        figures.append((name, paint(rng, FIGURES[name](rng, coat), size * rng.uniform(*LENGTHS[count]))))
    kept, instances = arrange(rng, figures, shape, horizon)

    mask, objects = np.zeros(shape, np.uint8), []
    for k, (name, layer, truncated) in enumerate(kept, 1):
        mask[instances == k] = CLASSES.index(name) + 1
        left, top, width, height = cv2.boundingRect(np.uint8(instances == k))
        objects.append((name, (left + 1, top + 1, left + width, top + height), truncated))

        # A soft shadow at the feet, then the figure.
        left, top, width, height = cv2.boundingRect(np.uint8(layer[..., 3] >= 0.5))
        feet, axes = (left + width // 2, top + height - 1), (width // 2, max(1, height // 14))
        shadow = cv2.ellipse(np.zeros(shape, np.float32), feet, axes, 0, 0, 360, 0.35, -1)
        image *= 1 - cv2.GaussianBlur(shadow, (0, 0), size / 80)[..., None]
        image = image * (1 - layer[..., 3:]) + layer[..., :3]
    mask[outline(instances, size)] = 255
    image = image * rng.uniform(0.88, 1.08) + rng.normal(0, NOISE, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask, objects
