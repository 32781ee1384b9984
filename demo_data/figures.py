"""Figures of the drawn data set: vehicles that share wheels and windows, animals that share body and legs.

A classifier can recognise an animal by its head or tail alone. Puzzle-CAM is meant to correct this.
"""

import colorsys
import itertools
from typing import NamedTuple

import numpy as np

COATS = {  # class: its body colours, each as ranges of hue (degrees), saturation, value; neighbours overlap
    'bus': [(350, 372, 0.65, 0.85, 0.7, 0.9), (38, 52, 0.7, 0.9, 0.85, 1.0), (20, 36, 0.75, 0.9, 0.85, 1.0)],
    'car': [(205, 235, 0.55, 0.85, 0.5, 0.85), (172, 200, 0.4, 0.7, 0.5, 0.8), (350, 370, 0.6, 0.8, 0.6, 0.8)],
    'cow': [(20, 45, 0.02, 0.1, 0.88, 1.0), (14, 26, 0.5, 0.65, 0.5, 0.65)],
    'dog': [(30, 42, 0.5, 0.7, 0.75, 0.95), (24, 34, 0.35, 0.55, 0.6, 0.8)],
    'horse': [(8, 18, 0.6, 0.75, 0.4, 0.6), (10, 25, 0.4, 0.6, 0.22, 0.36)],
    'sheep': [(30, 55, 0.03, 0.12, 0.85, 1.0), (30, 50, 0.1, 0.2, 0.7, 0.85)],
}
CLASSES = sorted(COATS)
DARK, PALE, PINK = np.array([[38, 36, 40], [236, 230, 214], [222, 160, 150]], np.float32)


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
