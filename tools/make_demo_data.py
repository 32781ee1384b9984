"""Draw a small data set in the layout of PASCAL VOC: the demo of the real thing, from nothing but a seed.

Figures of several parts stand in calm scenes. Vehicles share wheels and windows, four-legged animals share body and
legs, so a classifier is tempted to look at a head or a tail only: the habit that Puzzle-CAM is to cure.

Reads:   nothing
Writes:  OUT/JPEGImages/{id}.jpg, OUT/Annotations/{id}.xml, OUT/SegmentationClass/{id}.png (palette, 255 = border),
         OUT/ImageSets/Segmentation/{train,val}.txt, and last OUT/dataset.json: where it stands, the set is whole
Command: python3 tools/make_demo_data.py --out experiments/demo
"""

import argparse
import colorsys
import functools
import itertools
import json
import multiprocessing
import os
import re
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for core and tools, when run as a file
from core.datasets import encode_mask, voc_palette
from tools import flags
from tools.files import write_bytes

# What makes the set easy or hard. Raise DRAWING with any change to the pictures: it is saved among the options.
DRAWING = 1
COUNTS = {1: 0.5, 2: 0.38, 3: 0.12}  # objects in a scene: share of the scenes
LENGTHS = {1: (0.5, 0.75), 2: (0.4, 0.6), 3: (0.32, 0.46)}  # objects in a scene: their longer side / scene's
ROTATION = 8  # degrees, either way
TRUNCATED = 0.15  # share of the objects that reach over the image's border
MIN_VISIBLE = 0.55  # of an object's area
MIN_AREA = 0.004  # of the scene's, and this much inside the border of 255
CLUTTER = 1.0  # strength of the background's texture
NOISE = 2.0  # standard deviation of the grain, in grey levels
COATS = {  # class: its body colours, each as ranges of hue (degrees), saturation, value; neighbours overlap
    'bus': [(350, 372, 0.65, 0.85, 0.7, 0.9), (38, 52, 0.7, 0.9, 0.85, 1.0), (20, 36, 0.75, 0.9, 0.85, 1.0)],
    'car': [(205, 235, 0.55, 0.85, 0.5, 0.85), (172, 200, 0.4, 0.7, 0.5, 0.8), (350, 370, 0.6, 0.8, 0.6, 0.8)],
    'cow': [(20, 45, 0.02, 0.1, 0.88, 1.0), (14, 26, 0.5, 0.65, 0.5, 0.65)],
    'dog': [(30, 42, 0.5, 0.7, 0.75, 0.95), (24, 34, 0.35, 0.55, 0.6, 0.8)],
    'horse': [(8, 18, 0.6, 0.75, 0.4, 0.6), (10, 25, 0.4, 0.6, 0.22, 0.36)],
    'sheep': [(30, 55, 0.03, 0.12, 0.85, 1.0), (30, 50, 0.1, 0.2, 0.7, 0.85)],
}
CLASSES = sorted(COATS)
SPLITS = ['train', 'val']

# Backgrounds say nothing about the class: every class stands on every ground, under every sky.
GROUNDS = {
    'grass': (80, 125, 0.28, 0.45, 0.5, 0.7),
    'road': (200, 240, 0.02, 0.08, 0.42, 0.58),
    'sand': (38, 50, 0.2, 0.32, 0.74, 0.86),
    'stones': (25, 40, 0.12, 0.25, 0.5, 0.65),
}
SKIES = [(200, 215, 0.2, 0.45, 0.8, 0.95), (205, 230, 0.02, 0.1, 0.66, 0.82), (15, 35, 0.12, 0.28, 0.82, 0.95)]
SUPERSAMPLING = 4
SHIFT = 4  # OpenCV takes coordinates as integers, in units of 2^-SHIFT pixels
DARK, PALE, PINK = np.array([[38, 36, 40], [236, 230, 214], [222, 160, 150]], np.float32)
OURS = re.compile(  # what a killed run of this program may have left in its folder
    r'(JPEGImages|Annotations|SegmentationClass)(/\.?(train|val)_\d{5,}\.(jpg|xml|png)(\.\d+\.tmp)?)?'
    r'|ImageSets(/Segmentation(/\.?(train|train_aug|val)\.txt(\.\d+\.tmp)?)?)?|\.dataset\.json\.\d+\.tmp'
)


class Part(NamedTuple):
    """A piece of a figure that looks to the left; x to the right and y down, the body about 2 units long."""

    points: np.ndarray  # (n, 2)
    colour: np.ndarray  # (3,) RGB in [0, 255]
    width: float = 0.0  # 0: a filled shape, more: a stroke along the points
    outlined: bool = True  # filled shapes get a darker line around them
    inside: bool = False  # paint only where the figure already is (patches of a coat)


def pick_colour(rng: np.random.Generator, ranges: tuple[float, ...]) -> np.ndarray:
    """Ranges of hue, saturation and value (low, high, low, high, low, high) -> RGB (3,) float32 in [0, 255]."""
    hue, saturation, value = (rng.uniform(*ranges[i : i + 2]) for i in (0, 2, 4))
    return 255 * np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value), np.float32)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> np.ndarray:
    """-> outline (24, 2)."""
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return turn(np.stack([rx * np.cos(t), ry * np.sin(t)], 1), degrees) + [x, y]


def blob(*points: tuple[float, float]) -> np.ndarray:
    """n corners -> rounded outline (4 n, 2), by cutting the corners twice (Chaikin)."""
    outline = np.array(points, float)
    for _ in range(2):
        after = np.roll(outline, -1, 0)
        outline = np.stack([0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after], 1).reshape(-1, 2)
    return outline


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """-> corners (4, 2)."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def turn(points: np.ndarray, degrees: float, centre: tuple[float, float] = (0, 0)) -> np.ndarray:
    """(n, 2) -> (n, 2), turned about the centre."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (points - centre) @ np.array([[c, s], [-s, c]]) + centre


# Vehicles -----------------------------------------------------------------------------------------------------------


def wheel(x: float, y: float, radius: float) -> list[Part]:
    rim = np.full(3, 175, np.float32)
    return [Part(ellipse(x, y, r * radius, r * radius), c) for r, c in [(1, DARK), (0.55, rim), (0.15, DARK)]]


def window(outline: np.ndarray, glass: np.ndarray) -> list[Part]:
    middle, (left, top), (right, bottom) = outline.mean(0), outline.min(0), outline.max(0)
    shine = [(left, bottom), (middle[0], top), (middle[0] + 0.2 * (right - left), top), (left, bottom)]
    return [Part(outline, glass), Part(middle + 0.8 * (np.array(shine) - middle), glass * 0.6 + 100, outlined=False)]


def bus(rng: np.random.Generator, coat: np.ndarray) -> list[Part]:
    top, glass = rng.uniform(-0.66, -0.42), pick_colour(rng, (190, 215, 0.15, 0.4, 0.55, 0.85))
    parts = [Part(blob((-1, top), (0, top), (1, top), (1, 0), (1, 0.4), (0, 0.4), (-1, 0.4), (-1.03, 0)), coat)]
    parts.append(Part(box(-1, 0.1, 0.99, 0.18), rng.choice([coat * 0.6, coat * 0.5 + 125]), outlined=False))
    panes = rng.integers(4, 6)
    for left, right in itertools.pairwise(np.linspace(-0.62, 0.95, panes + 1)):
        parts += window(box(left + 0.03, top + 0.14, right - 0.03, top + 0.46), glass)
    parts += window(box(-0.97, top + 0.14, -0.7, 0.28), glass)  # the door
    parts += [Part(ellipse(-0.97, 0.3, 0.04, 0.06), PALE), Part(box(-1.04, 0.33, 1.02, 0.42), DARK)]
    return parts + wheel(rng.uniform(-0.55, -0.45), 0.42, 0.19) + wheel(rng.uniform(0.5, 0.62), 0.42, 0.19)


def car(rng: np.random.Generator, coat: np.ndarray) -> list[Part]:
    top, back, glass = rng.uniform(-0.5, -0.36), rng.uniform(0.4, 0.85), rng.uniform(190, 215)
    glass = pick_colour(rng, (glass, glass, 0.15, 0.4, 0.55, 0.85))
    parts = [Part(blob((-0.65, 0), (-0.3, top), (0.05, top), (back - 0.15, top), (back + 0.12, 0.05)), coat * 0.85)]
    parts += window(np.array([(-0.42, -0.02), (-0.22, top + 0.1), (0.02, top + 0.1), (0.02, -0.02)]), glass)
    parts += window(np.array([(0.1, -0.02), (0.1, top + 0.1), (back - 0.2, top + 0.1), (back - 0.08, -0.02)]), glass)
    hood = [(-1.02, 0.08), (-0.6, -0.06), (0, -0.04), (0.6, -0.06), (1, 0), (1.02, 0.2), (1, 0.4), (0, 0.4), (-1, 0.4)]
    parts += [Part(blob(*hood), coat), Part(np.array([(0.06, 0), (0.06, 0.34)]), coat * 0.65, 0.025)]
    parts += [Part(box(0.13, 0.07, 0.25, 0.11), DARK), Part(ellipse(-0.93, 0.14, 0.06, 0.05), PALE)]
    parts += [Part(ellipse(0.96, 0.13, 0.03, 0.06), PINK), Part(box(-1.02, 0.3, 1.02, 0.39), coat * 0.55)]
    return parts + wheel(-0.56, 0.4, 0.22) + wheel(0.58, 0.4, 0.22)


# Animals: one body for all; the head is drawn to its left, the tail to its right ------------------------------------


def body(rng: np.random.Generator, coat: np.ndarray, sock: np.ndarray) -> tuple[list[Part], np.ndarray]:
    """-> legs and trunk as parts, and the trunk's outline (n, 2)."""
    belly, foot = rng.uniform(0.16, 0.26), rng.uniform(0.56, 0.78)
    parts = []
    for x, shade in [(-0.3, 0.7), (0.34, 0.7), (-0.48, 0.95), (0.52, 0.95)]:  # the two far legs lie in the shade
        step = rng.uniform(-0.12, 0.12)
        leg = [(x - 0.13, 0), (x + 0.13, 0), (x + 0.09 + step / 2, 0.35), (x + 0.085 + step, foot)]
        leg += [(x - 0.085 + step, foot), (x - 0.09 + step / 2, 0.35)]
        parts.append(Part(np.array(leg), coat * shade))
        parts.append(Part(box(x - 0.1 + step, foot - 0.1, x + 0.09 + step, foot), sock * shade))
    trunk = blob((-0.66, -0.25), (-0.5, -0.4), (-0.05, -0.34), (0.4, -0.4), (0.68, -0.3), (0.72, 0), (0.6, 0.2),
                 (0, belly + 0.06), (-0.5, 0.24), (-0.68, 0.05))  # fmt: skip
    return [*parts, Part(trunk, coat)], trunk


def nod(rng: np.random.Generator, parts: list[Part], most: float = 14) -> list[Part]:
    degrees = rng.uniform(-most, most)
    return [part._replace(points=turn(part.points, degrees, (-0.5, -0.15))) for part in parts]


def cow(rng: np.random.Generator, coat: np.ndarray) -> list[Part]:
    patch = rng.choice([DARK, pick_colour(rng, (12, 24, 0.5, 0.7, 0.3, 0.45)), PALE if coat.mean() < 170 else DARK])
    parts, _ = body(rng, coat, DARK)
    tail = [(0.68, -0.26), (0.82, -0.12), (0.84, 0.12), (0.8, 0.3)]
    parts = [Part(np.array(tail), coat * 0.8, 0.06), Part(ellipse(0.8, 0.36, 0.06, 0.11, 10), DARK), *parts]
    for x in rng.permutation([-0.42, -0.1, 0.22, 0.5])[: rng.integers(2, 4)]:
        spot = ellipse(x, rng.uniform(-0.3, 0.1), *rng.uniform(0.13, 0.22, 2))[::4]
        parts.append(Part(blob(*spot + rng.normal(0, 0.035, spot.shape)), patch, outlined=False, inside=True))
    parts.append(Part(ellipse(0.32, 0.24, 0.11, 0.08), PINK))
    face = [(-0.72, -0.66), (-0.98, -0.64), (-1.04, -0.4), (-1.16, -0.2), (-1.06, -0.08), (-0.88, -0.1), (-0.7, -0.3)]
    head = [Part(blob((-0.4, -0.36), (-0.72, -0.6), (-0.9, -0.4), (-0.78, -0.1), (-0.5, 0.14)), coat)]
    head += [Part(np.array([(-0.96, -0.6), (-1.06, -0.7), (-1.04, -0.84)]), PALE, 0.07)]
    head += [Part(np.array([(-0.76, -0.62), (-0.72, -0.74), (-0.78, -0.86)]), PALE, 0.07)]
    head += [Part(blob(*face), coat), Part(ellipse(-0.9, -0.5, 0.1, 0.16, -20), patch, outlined=False, inside=True)]
    head += [Part(ellipse(-1.05, -0.18, 0.12, 0.1, 20), PINK), Part(ellipse(-1.1, -0.18, 0.02, 0.03), DARK)]
    head += [Part(ellipse(-0.63, -0.56, 0.13, 0.06, 25), coat * 0.8), Part(ellipse(-0.94, -0.46, 0.035, 0.04), DARK)]
    return parts + nod(rng, head)


def dog(rng: np.random.Generator, coat: np.ndarray) -> list[Part]:
    ear = coat * rng.uniform(0.4, 0.65)
    parts, _ = body(rng, coat, coat * 0.85)
    tip = rng.uniform(0.85, 1.05)
    tail = [(0.6, -0.3), (0.76, -0.4), (0.86, -0.62), (tip - 0.08, -0.86), (tip + 0.06, -0.8), (1, -0.5), (0.7, -0.1)]
    parts = [Part(blob(*tail), coat * 0.9), *parts]
    head = [Part(blob((-0.36, -0.34), (-0.56, -0.66), (-0.9, -0.6), (-0.76, -0.2), (-0.55, 0.12)), coat)]
    snout = blob((-0.86, -0.62), (-1.0, -0.6), (-1.24, -0.5), (-1.26, -0.36), (-1.0, -0.32), (-0.8, -0.36))
    head.append(Part(snout, coat * 0.5 + 120))
    head += [Part(ellipse(-0.82, -0.6, 0.23, 0.21), coat), Part(ellipse(-1.23, -0.48, 0.07, 0.055), DARK)]
    head += [Part(blob((-0.72, -0.78), (-0.56, -0.74), (-0.5, -0.4), (-0.58, -0.2), (-0.72, -0.3), (-0.78, -0.6)), ear)]
    head += [Part(ellipse(-0.93, -0.63, 0.04, 0.045), DARK), Part(np.array([(-1.2, -0.4), (-1.0, -0.4)]), DARK, 0.025)]
    collar = pick_colour(rng, (0, 360, 0.5, 0.8, 0.5, 0.9))
    head.append(Part(np.array([(-0.74, -0.24), (-0.6, -0.3), (-0.44, -0.42)]), collar, 0.08))
    return parts + nod(rng, head)


def horse(rng: np.random.Generator, coat: np.ndarray) -> list[Part]:
    mane = rng.choice([DARK, coat * 0.45, coat * 0.35 + np.array([140, 125, 90], np.float32)])
    parts, _ = body(rng, coat, rng.choice([DARK, PALE]))
    low = rng.uniform(0.9, 1.08)
    tail = [(0.58, -0.36), (0.8, -0.36), (low, 0), (low, 0.5), (low - 0.12, 0.56), (0.78, 0.1), (0.66, -0.1)]
    parts.append(Part(blob(*tail), mane))
    neck = [(-0.26, -0.36), (-0.52, -0.74), (-0.72, -1.02), (-0.94, -0.94), (-0.86, -0.6), (-0.68, 0.1), (-0.4, 0.1)]
    face = [(-0.68, -1.04), (-0.92, -1.06), (-1.22, -0.7), (-1.26, -0.54), (-1.12, -0.5), (-0.9, -0.7), (-0.72, -0.78)]
    crest = blob((-0.24, -0.34), (-0.5, -0.72), (-0.68, -1.06), (-0.82, -1.06), (-0.7, -0.7), (-0.44, -0.26))
    head = [Part(blob(*neck), coat), Part(np.array([(-0.8, -0.96), (-0.74, -1.2), (-0.66, -0.96)]), coat * 0.8)]
    head.append(Part(blob(*face), coat))
    head += [Part(ellipse(-1.18, -0.59, 0.1, 0.08, -40), coat * 0.6), Part(crest, mane)]
    head += [Part(ellipse(-0.93, -0.88, 0.035, 0.04), DARK)]
    return parts + nod(rng, head)


def sheep(rng: np.random.Generator, coat: np.ndarray) -> list[Part]:
    skin = rng.choice([DARK * 1.3, coat * 0.6, pick_colour(rng, (20, 35, 0.2, 0.4, 0.3, 0.6))])
    parts, trunk = body(rng, skin, DARK)
    wool = trunk * [1.04, 1.1]
    curls = [Part(ellipse(*point, 0.15, 0.14), coat) for point in wool[::2]]
    curls += [Part(ellipse(0.8, -0.14, 0.13, 0.17), coat), Part(wool, coat, outlined=False)]
    for x, y in itertools.product([-0.45, -0.15, 0.15, 0.45], [-0.2, 0.06]):  # a few locks on the fleece
        lock = ellipse(x + rng.uniform(-0.06, 0.06), y + rng.uniform(-0.05, 0.05), 0.09, 0.08)[:13]
        curls.append(Part(lock, coat * 0.82, 0.03))
    face = blob((-0.76, -0.6), (-0.98, -0.56), (-1.14, -0.24), (-1.06, -0.1), (-0.9, -0.12), (-0.72, -0.3))
    head = [Part(ellipse(-0.62, -0.3, 0.2, 0.24), coat), Part(face, skin)]
    head += [Part(ellipse(-0.64, -0.4, 0.15, 0.06, -20), skin * 0.85)]
    head += [Part(ellipse(x, y, 0.11, 0.1), coat) for x, y in [(-0.7, -0.58), (-0.94, -0.6), (-0.82, -0.66)]]
    head += [Part(ellipse(-0.95, -0.4, 0.045, 0.045), PALE), Part(ellipse(-0.96, -0.4, 0.025, 0.03), DARK)]
    return parts + curls + nod(rng, head)


FIGURES = {figure.__name__: figure for figure in (bus, car, cow, dog, horse, sheep)}


# Scenes -------------------------------------------------------------------------------------------------------------


def low_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """-> smooth noise (height, width) float32 of about unit variance, with so many bumps a side."""
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
    """Find places, the nearest figure last, so that enough of each is seen; where none is found a figure is dropped.

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


# Files --------------------------------------------------------------------------------------------------------------


def make_xml(image_id: str, shape: tuple[int, int], objects: list[tuple[str, tuple[int, ...], bool]]) -> bytes:
    """Objects of draw_scene on an image of the shape (h, w) -> VOC's annotation."""
    lines = [f'<annotation><folder>drawn scenes</folder><filename>{image_id}.jpg</filename>']
    lines += [f'<size><width>{shape[1]}</width><height>{shape[0]}</height><depth>3</depth></size>']
    lines += ['<segmented>1</segmented>']
    for name, corners, truncated in objects:
        sides = zip(('xmin', 'ymin', 'xmax', 'ymax'), corners, strict=True)
        lines += [f'<object><name>{name}</name><pose>Unspecified</pose><truncated>{int(truncated)}</truncated>']
        lines += ['<difficult>0</difficult><bndbox>', *(f'<{side}>{at}</{side}>' for side, at in sides)]
        lines += ['</bndbox></object>']
    root = ET.fromstring(''.join([*lines, '</annotation>']))
    ET.indent(root)
    return ET.tostring(root) + b'\n'


def write_sample(out: Path, seed: int, size: int, sample: tuple[str, int]) -> None:
    """Draw sample i of a split and write its three files. It depends on (seed, split, i) alone."""
    split, index = sample
    image, mask, objects = draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), size)
    image_id = make_id(split, index)
    jpeg = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    write_bytes(out / 'JPEGImages' / f'{image_id}.jpg', jpeg.tobytes())
    write_bytes(out / 'Annotations' / f'{image_id}.xml', make_xml(image_id, mask.shape, objects))
    write_bytes(out / 'SegmentationClass' / f'{image_id}.png', encode_mask(mask, voc_palette()))


def make_id(split: str, index: int) -> str:
    return f'{split}_{index:05d}'


def is_made(out: Path, made_with: dict[str, int]) -> bool:
    """True where the very set is there, False where nothing is or what a killed run left; else the program ends."""
    try:
        if json.loads((out / 'dataset.json').read_text())['made_with'] == made_with:
            return True
        free = False
    except FileNotFoundError:
        found = list(out.rglob('*')) if out.is_dir() else []
        free = all(OURS.fullmatch(path.relative_to(out).as_posix()) and not path.is_symlink() for path in found)
    except (OSError, ValueError, KeyError, TypeError):
        free = False
    if not free:
        sys.exit(f'--out {out} holds something else than this data set: name another folder, or delete it first')
    return False


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.parser_of(__doc__)
    parser.add_argument('--out', type=Path, default=Path('experiments/demo'), help='folder of the data set')
    parser.add_argument('--num_train_aug', type=int, default=1500, help='scenes to train on')
    parser.add_argument('--num_train', type=int, default=300, help='the first of these, whose CAMs are scored')
    parser.add_argument('--num_val', type=int, default=200, help='further scenes, to score predictions on')
    parser.add_argument('--size', type=int, default=128, help='pixels of the longer side, from 64')
    parser.add_argument('--seed', type=int, default=0, help='another seed draws another set')
    parser.add_argument('--num_workers', type=int, default=os.cpu_count() or 1, help='processes; changes no file')
    args = parser.parse_args(argv)
    for flag, least in {'num_train': 1, 'num_val': 1, 'size': 64, 'seed': 0, 'num_workers': 1}.items():
        if getattr(args, flag) < least:
            parser.error(f'--{flag} {getattr(args, flag)}: must be {least} or more')
    if args.size > 4096:
        parser.error(f'--size {args.size}: must be 4096 or less')
    if args.num_train_aug < args.num_train:
        parser.error(f'--num_train_aug {args.num_train_aug} is below --num_train {args.num_train}, which it holds')
    return args


def main(args: argparse.Namespace) -> None:
    options = ('num_train_aug', 'num_train', 'num_val', 'size', 'seed')
    made_with = {key: getattr(args, key) for key in options} | {'drawing': DRAWING}
    if is_made(args.out, made_with):
        print(f'{args.out}: the data set is there already, made with these options')
        return
    try:
        for folder in ('JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets/Segmentation'):
            (args.out / folder).mkdir(parents=True, exist_ok=True)
            for left_over in (args.out / folder).iterdir():
                left_over.unlink()
    except OSError as error:
        sys.exit(f'--out {args.out}: cannot be written ({error.strerror})')

    # Spawned, for a fork of a process whose OpenCV has already run threads can hang.
    samples = [('train', i) for i in range(args.num_train_aug)] + [('val', i) for i in range(args.num_val)]
    write = functools.partial(write_sample, args.out, args.seed, args.size)
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(args.num_workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as executor:
        for _ in tqdm(executor.map(write, samples, chunksize=16), total=len(samples), unit='scene', disable=None):
            pass

    ids = [make_id(*sample) for sample in samples]
    train_aug, val = ids[: args.num_train_aug], ids[args.num_train_aug :]
    lists = {}
    for domain, listed in {'train_aug': train_aug, 'train': train_aug[: args.num_train], 'val': val}.items():
        lists[domain] = f'ImageSets/Segmentation/{domain}.txt'
        write_bytes(args.out / lists[domain], '\n'.join([*listed, '']).encode())
    info = {'name': 'drawn scenes', 'classes': CLASSES, 'lists': lists, 'made_with': made_with}
    write_bytes(args.out / 'dataset.json', (json.dumps(info, indent=2) + '\n').encode())
    print(f'{args.out}: drew {args.num_train_aug} scenes to train on and {args.num_val} to score on')


if __name__ == '__main__':
    main(parse_args())
