"""The random walk against dense matrix powers in double precision, its coefficients against exact binomials."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from core import random_walk as walk
from core.random_walk import affinity_matrix, power_coefficients, random_walk, walk_by_tiles
from support import REPOSITORY, directions_of, subprocess_environment

SIZES = [(7, 9), (12, 5), (1, 1), (3, 17), (1, 8)]


def inputs(size, k=3):
    generator = torch.Generator().manual_seed(sum(size))
    cam = torch.rand(k, *size, dtype=torch.float64, generator=generator)
    edge = torch.rand(size, dtype=torch.float64, generator=generator) ** 3
    return cam, edge


def dense_affinity(edge: np.ndarray, radius: int, beta: float) -> np.ndarray:
    """Return (hw, hw): 1 on the diagonal, (1 - largest edge on the path)^beta for pairs inside the image, else 0."""
    h, w = edge.shape
    matrix = np.eye(h * w)
    for (dy, dx), path in directions_of(radius).items():
        for y in range(h):
            for x in range(w):
                if y + dy < h and 0 <= x + dx < w:
                    value = (1 - max(edge[y + py, x + px] for py, px in path)) ** beta
                    a, b = y * w + x, (y + dy) * w + x + dx
                    matrix[a, b] = matrix[b, a] = value
    return matrix


@pytest.mark.parametrize('size', SIZES)
def test_affinity_matrix(size):
    edge = inputs(size)[1]
    found = affinity_matrix(edge, 5, 10).to_dense().numpy()
    np.testing.assert_allclose(found, dense_affinity(edge.numpy(), 5, 10), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('size', [*SIZES, (1, 175), (75, 2)])
def test_pattern_is_that_of_a_sorted_matrix(size):
    """Products sum each row by increasing column, so other orders would move the results."""
    matrix = affinity_matrix(inputs(size)[1])
    crow, columns = matrix.crow_indices().numpy(), matrix.col_indices().numpy()
    rows = np.repeat(np.arange(size[0] * size[1]), np.diff(crow))
    expected = [
        (i, r * size[1] + c)
        for i in range(size[0] * size[1])
        for r in range(size[0])
        for c in range(size[1])
        if (r - i // size[1]) ** 2 + (c - i % size[1]) ** 2 < 25
    ]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert columns.dtype == np.int32  # torch would convert others for each product


def test_patterns_are_kept_for_small_maps_only(monkeypatch):
    built, build = [], walk._build_pattern
    monkeypatch.setattr(walk, '_build_pattern', lambda *size: built.append(size) or build(*size))
    walk._kept_pattern.cache_clear()
    maps = [inputs((6, 7)), inputs((7, 6)), inputs((6, 7))]
    kept = [random_walk(*one) for one in maps]
    assert torch.equal(kept[0], kept[2])
    assert walk._kept_pattern.cache_info()[:2] == (1, 2)
    monkeypatch.setattr(walk, 'KEPT_PIXELS', 41)
    assert all(torch.equal(random_walk(*one), expected) for one, expected in zip(maps, kept, strict=True))
    assert len(built) == 3
    assert walk._kept_pattern.cache_info().currsize == 2


def dense_random_walk(cam, edge, radius, beta, exp_times):
    affinity = dense_affinity(edge.double().numpy(), radius, beta)
    transition = affinity / affinity.sum(0, keepdims=True)
    np.testing.assert_allclose(transition.sum(0), 1, rtol=1e-12)
    start = (cam.double() * (1 - edge.double())).reshape(len(cam), -1).numpy()
    return (start @ np.linalg.matrix_power(transition, 2**exp_times)).reshape(cam.shape)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('exp_times', [0, 3, 8])
def test_against_dense_powers(size, exp_times):
    cam, edge = inputs(size)
    found = random_walk(cam, edge, exp_times=exp_times).numpy()
    expected = dense_random_walk(cam, edge, 5, 10, exp_times)
    assert found.shape == expected.shape
    assert np.abs(found / found.max() - expected / expected.max()).max() < 1e-8


@pytest.mark.parametrize('radius, beta', [(2, 10), (3, 1), (5, 4.5), (7, 20), (5, 0)])
def test_radius_and_beta(radius, beta):
    cam, edge = inputs((8, 9))
    found = random_walk(cam, edge, radius, beta, 4).numpy()
    expected = dense_random_walk(cam, edge, radius, beta, 4)
    assert np.abs(found / found.max() - expected / expected.max()).max() < 1e-8


def test_float32_results_are_accurate_to_float32():
    cam, edge = (x.float() for x in inputs((10, 11)))
    found = random_walk(cam, edge)
    assert found.dtype == torch.float32
    expected = dense_random_walk(cam, edge, 5, 10, 8)
    assert np.abs(found.numpy() / found.numpy().max() - expected / expected.max()).max() < 1e-6


@pytest.mark.parametrize('exp_times', [0, 5, 8])
def test_columns_of_the_transition_sum_to_one(exp_times):
    """A row vector of ones is unchanged; cam (1 - edge) is such a vector for cam = 1 / (1 - edge)."""
    edge = 0.9 * inputs((9, 10))[1]
    result = random_walk((1 / (1 - edge))[None], edge, exp_times=exp_times)
    np.testing.assert_allclose(result.numpy(), 1, rtol=1e-8)


def test_classes_do_not_mix():
    cam, edge = inputs((6, 8))
    together = random_walk(cam, edge)
    for k in range(3):
        torch.testing.assert_close(random_walk(cam[k : k + 1], edge)[0], together[k], rtol=1e-10, atol=1e-12)


def test_scores_do_not_cross_full_edges():
    cam, edge = torch.ones(1, 6, 9, dtype=torch.float64), torch.zeros(6, 9, dtype=torch.float64)
    cam[:, :, 4:] = 0
    edge[:, 4] = 1  # a wall
    result = random_walk(cam, edge)
    assert result[0, :, 5:].abs().max() < 1e-8
    assert result[0, :, :4].min() > 0.1


def test_walks_by_tiles(monkeypatch):
    """As a whole where a tile is large enough; otherwise near it, because few walks leave a tile."""
    cam, edge = inputs((40, 70))
    whole = random_walk(cam, edge, exp_times=2)
    assert torch.equal(walk_by_tiles(cam, edge, 16, exp_times=2), whole)  # SMALLEST_TILE is larger
    monkeypatch.setattr(walk, 'SMALLEST_TILE', 32)
    tiled = walk_by_tiles(cam, edge, 16, exp_times=2)
    assert not torch.equal(tiled, whole)
    difference = (tiled - whole).abs() / whole.amax((1, 2), keepdim=True)
    assert difference.mean() < 0.002 and difference.max() < 0.1


def test_image_without_classes():
    edge = inputs((6, 8))[1]
    assert random_walk(torch.zeros(0, 6, 8), edge).shape == (0, 6, 8)


@pytest.mark.parametrize('power', [1, 2, 3, 5, 8, 16, 25])
def test_coefficients_equal_numpys(power):
    expected = np.polynomial.chebyshev.poly2cheb([0] * power + [1])
    np.testing.assert_allclose(power_coefficients(power, 0), expected, rtol=1e-12, atol=1e-15)


def binomials(power: int) -> list[Fraction]:
    """Return the probabilities that a simple random walk of `power` steps ends at +-k, k = 0, ..., power."""
    ends = [math.comb(power, (power - k) // 2) if (power - k) % 2 == 0 else 0 for k in range(power + 1)]
    return [Fraction((1 if k == 0 else 2) * count, 2**power) for k, count in enumerate(ends)]


@pytest.mark.parametrize('power', [*range(1, 20), 31, 100, 255, 777, *(2**i for i in range(5, 13)), 4095])
def test_coefficients_are_exact_binomials(power):
    exact = binomials(power)
    assert sum(exact) == 1
    found = power_coefficients(power, 0)
    padded = np.pad(found, (0, power + 1 - len(found)))  # from 2048 steps on the last ones underflow
    np.testing.assert_allclose(padded, [float(value) for value in exact], rtol=1e-11, atol=1e-300)
    x = np.array([-1, -0.999, -0.5, -0.01, 0, 0.3, 0.9, 0.9999, 1])
    np.testing.assert_allclose(np.polynomial.chebyshev.chebval(x, found), x**power, rtol=0, atol=1e-12)

    # The default cuts a tail whose sum is below 1e-10, and nothing more.
    cut = power_coefficients(power)
    assert cut == found[: len(cut)]
    assert sum(exact[len(cut) :]) < 1e-10 * (1 + 1e-6)
    assert sum(exact[len(cut) - 1 :]) > 1e-10 * (1 - 1e-6)


@pytest.mark.parametrize('exp_times', [0, 4, 8, 12, 16])
def test_coefficients_give_the_power(exp_times):
    coefficients = power_coefficients(2**exp_times)
    assert sum(coefficients) == pytest.approx(1, abs=1e-8)
    x = np.linspace(-1, 1, 101)
    values = np.polynomial.chebyshev.chebval(x, coefficients)
    np.testing.assert_allclose(values, x ** (2**exp_times), atol=1e-8)


def test_published_power_takes_few_products():
    assert len(power_coefficients(256)) < 120


def test_inputs_are_not_changed():
    cam, edge = inputs((6, 8))
    before = cam.clone(), edge.clone()
    random_walk(cam, edge, exp_times=0)
    random_walk(cam, edge)
    assert torch.equal(cam, before[0]) and torch.equal(edge, before[1])


MEMORY = """
import torch
from core.random_walk import random_walk
def peak():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) // 1024
torch.set_num_threads(1)
random_walk(torch.ones(1, 3, 4), torch.zeros(3, 4))
before = peak()
random_walk(torch.ones(3, 250, 250), torch.zeros(250, 250), exp_times=1)
print(peak() - before)
"""


def test_memory_of_a_large_map():
    """62,500 pixels with 69 neighbours take 34 MB of values and 17 MB of columns; sorting them took 390 MB."""
    done = subprocess.run(
        [sys.executable, '-c', MEMORY], cwd=REPOSITORY, env=subprocess_environment(), capture_output=True, text=True
    )
    assert int(done.stdout) < 200, done.stderr


def test_neither_import_nor_the_first_walk_warns():
    program = 'import torch, core.random_walk as r; r.random_walk(torch.ones(1, 3, 4), torch.zeros(3, 4))'
    command = [sys.executable, '-W', 'error::UserWarning', '-c', program]
    done = subprocess.run(command, cwd=REPOSITORY, env=subprocess_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
