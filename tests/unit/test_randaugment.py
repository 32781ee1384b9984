"""FixMatch's RandAugment: every operation against numbers computed here, the draws by their frequencies."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from core.data import randaugment
from core.data.randaugment import OPERATIONS, RandAugment

V = range(1, 10)


@pytest.fixture
def pixels(rng) -> np.ndarray:
    return rng.integers(10, 240, (30, 40, 3), dtype=np.uint8)


def apply(name: str, pixels: np.ndarray, v: int, seed: int = 0) -> np.ndarray:
    torch.manual_seed(seed)
    return np.array(OPERATIONS[name](Image.fromarray(pixels), v))


def test_names():
    enhancing, moving = 'Brightness Color Contrast Sharpness', 'Rotate ShearX ShearY TranslateX TranslateY'
    others = 'AutoContrast Equalize Identity Posterize Solarize'
    assert sorted(OPERATIONS) == sorted(f'{enhancing} {moving} {others}'.split())


@pytest.mark.parametrize('v', V)
def test_operations_on_values(pixels, v):
    factor = 0.05 + 0.09 * v
    assert np.abs(apply('Brightness', pixels, v) - pixels * factor).max() < 1.01
    mean = np.rint(np.array(Image.fromarray(pixels).convert('L')).mean())
    assert np.abs(apply('Contrast', pixels, v) - (mean + factor * (pixels - mean))).max() <= 1.5
    grey = np.array(Image.fromarray(pixels).convert('L'))[:, :, None].astype(float)
    assert np.abs(apply('Color', pixels, v) - (grey + factor * (pixels - grey))).max() < 1.01
    bits = {1: 4, 2: 4, 3: 5, 4: 5, 5: 6, 6: 6, 7: 6, 8: 7, 9: 7}[v]
    assert np.array_equal(apply('Posterize', pixels, v), pixels >> (8 - bits) << (8 - bits))
    threshold = {1: 231, 2: 205, 3: 180, 4: 154, 5: 128, 6: 103, 7: 77, 8: 52, 9: 26}[v]
    assert np.array_equal(apply('Solarize', pixels, v), np.where(pixels < threshold, pixels, 255 - pixels))
    assert np.array_equal(apply('Identity', pixels, v), pixels)


def test_operations_without_strength(pixels):
    for name in ('AutoContrast', 'Equalize'):
        found = [apply(name, pixels, v) for v in V]
        assert all(np.array_equal(other, found[0]) for other in found)
        assert (found[0].min(), found[0].max()) == (0, 255)
    blurred, sharp = apply('Sharpness', pixels, 1), apply('Sharpness', pixels, 9)
    assert (
        np.abs(np.diff(blurred[5:-5, 5:-5].astype(int), axis=1)).mean() < np.abs(np.diff(sharp.astype(int), 1)).mean()
    )


def moved(pixels: np.ndarray, x_from, y_from) -> np.ndarray:
    """Return the pixels at the given positions, by nearest, black outside; arguments are functions of pixel centres."""
    h, w, _ = pixels.shape
    y, x = np.mgrid[:h, :w] + 0.5
    columns, rows = np.floor(x_from(x, y)).astype(int), np.floor(y_from(x, y)).astype(int)
    inside = (columns >= 0) & (columns < w) & (rows >= 0) & (rows < h)
    return np.where(inside[:, :, None], pixels[rows.clip(0, h - 1), columns.clip(0, w - 1)], 0)


@pytest.mark.parametrize('v', V)
def test_operations_on_positions(pixels, v):
    degrees, slope = np.deg2rad(3 * v), 0.03 * v
    cos, sin = np.cos(degrees), np.sin(degrees)
    expected = {
        'ShearX': lambda s: moved(pixels, lambda x, y: x + s * slope * y, lambda x, y: y),
        'ShearY': lambda s: moved(pixels, lambda x, y: x, lambda x, y: y + s * slope * x),
        'TranslateX': lambda s: moved(pixels, lambda x, y: x + s * slope * 40, lambda x, y: y),
        'TranslateY': lambda s: moved(pixels, lambda x, y: x, lambda x, y: y + s * slope * 30),
        'Rotate': lambda s: moved(
            pixels,
            lambda x, y: 20 + cos * (x - 20) - s * sin * (y - 15),
            lambda x, y: 15 + s * sin * (x - 20) + cos * (y - 15),
        ),
    }
    for name, function in expected.items():
        signs = set()
        for seed in range(8):
            found = apply(name, pixels, v, seed)
            differing = [(found != function(sign)).any(2).mean() for sign in (1, -1)]
            assert min(differing) <= 0.05, name  # positions on the border of two pixels are rounded
            signs.add(int(np.argmin(differing)))
        assert signs == {0, 1}, name


def test_draws(monkeypatch):
    drawn, per_image = Counter(), Counter()

    def record(name):
        return lambda image, v: drawn.update([(name, v)]) or image

    for name in OPERATIONS:
        monkeypatch.setitem(randaugment.OPERATIONS, name, record(name))
    torch.manual_seed(0)
    image = Image.new('RGB', (20, 20))
    for _ in range(3000):
        before = drawn.total()
        RandAugment()(image)
        per_image.update([drawn.total() - before])
    assert per_image[0] / 3000 == pytest.approx(0.25, abs=0.03)
    assert per_image[1] / 3000 == pytest.approx(0.5, abs=0.03)
    assert per_image[0] + per_image[1] + per_image[2] == 3000
    for key, groups in ((0, 14), (1, 9)):
        counts = Counter()
        for choice, count in drawn.items():
            counts[choice[key]] += count
        assert len(counts) == groups
        assert max(counts.values()) < 1.5 * min(counts.values())
    assert {v for _, v in drawn} == set(V)


def test_black_square(monkeypatch):
    for name in OPERATIONS:
        monkeypatch.setitem(randaugment.OPERATIONS, name, lambda image, v: image)
    image = Image.new('RGB', (60, 40), 'white')
    torch.manual_seed(0)
    lefts, sizes = [], set()
    for _ in range(400):
        black = (np.array(RandAugment()(image)) == 0).all(2)
        rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
        assert black.sum() == len(rows) * len(columns)
        lefts.append(columns[0])
        sizes.add((len(columns), len(rows)))
        for found, side in ((columns, 60), (rows, 40)):
            assert len(found) == min(17, side - found[0])
    assert (17, 17) in sizes and min(lefts) == 0 and max(lefts) >= 50
    assert lefts.count(0) / 400 == pytest.approx(9 / 60, abs=0.05)  # points up to 8 are clipped
    assert np.array(image).min() == 255  # the image itself is unchanged


def test_smallest_image():
    torch.manual_seed(0)
    for _ in range(50):
        assert RandAugment()(Image.new('RGB', (1, 3), 'white')).size == (1, 3)
