"""The random walk against dense matrix powers in double precision."""

import numpy as np
import pytest
import torch
from conftest import directions_of

from core.random_walk import power_coefficients, random_walk, symmetric_affinity

SIZES = [(7, 9), (12, 5), (1, 1), (3, 17), (1, 8)]


def inputs(size, k=3):
    generator = torch.Generator().manual_seed(sum(size))
    cam = torch.rand(k, *size, dtype=torch.float64, generator=generator)
    edge = torch.rand(size, dtype=torch.float64, generator=generator) ** 3
    return cam, edge


def dense_affinity(edge: np.ndarray, radius: int, beta: float) -> np.ndarray:
    """(hw, hw): 1 on the diagonal, (1 - largest edge on the path)^beta for pairs inside the image, else 0."""
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
    found = symmetric_affinity(edge, 5, 10).to_dense().numpy()
    np.testing.assert_allclose(found, dense_affinity(edge.numpy(), 5, 10), rtol=1e-12, atol=1e-15)


def walked_densely(cam, edge, radius, beta, exp_times):
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
    expected = walked_densely(cam, edge, 5, 10, exp_times)
    assert found.shape == expected.shape
    assert np.abs(found / found.max() - expected / expected.max()).max() < 1e-8


@pytest.mark.parametrize('radius, beta', [(2, 10), (3, 1), (5, 4.5), (7, 20), (5, 0)])
def test_radius_and_beta(radius, beta):
    cam, edge = inputs((8, 9))
    found = random_walk(cam, edge, radius, beta, 4).numpy()
    expected = walked_densely(cam, edge, radius, beta, 4)
    assert np.abs(found / found.max() - expected / expected.max()).max() < 1e-8


def test_in_single_precision_the_result_is_as_good_as_its_type():
    cam, edge = (x.float() for x in inputs((10, 11)))
    found = random_walk(cam, edge)
    assert found.dtype == torch.float32
    expected = walked_densely(cam, edge, 5, 10, 8)
    assert np.abs(found.numpy() / found.numpy().max() - expected / expected.max()).max() < 1e-6


@pytest.mark.parametrize('exp_times', [0, 5, 8])
def test_columns_of_the_transition_sum_to_one(exp_times):
    """Then the row vector of ones stays what it is; cam (1 - edge) is that vector for cam = 1 / (1 - edge)."""
    edge = 0.9 * inputs((9, 10))[1]
    walked = random_walk((1 / (1 - edge))[None], edge, exp_times=exp_times)
    np.testing.assert_allclose(walked.numpy(), 1, rtol=1e-8)


def test_classes_do_not_mix():
    cam, edge = inputs((6, 8))
    whole = random_walk(cam, edge)
    for k in range(3):
        torch.testing.assert_close(random_walk(cam[k : k + 1], edge)[0], whole[k], rtol=1e-10, atol=1e-12)


def test_pixels_between_full_edges_keep_to_themselves():
    cam, edge = torch.ones(1, 6, 9, dtype=torch.float64), torch.zeros(6, 9, dtype=torch.float64)
    cam[:, :, 4:] = 0
    edge[:, 4] = 1  # a wall
    walked = random_walk(cam, edge)
    assert walked[0, :, 5:].abs().max() < 1e-8
    assert walked[0, :, :4].min() > 0.1


def test_no_class():
    edge = inputs((6, 8))[1]
    assert random_walk(torch.zeros(0, 6, 8), edge).shape == (0, 6, 8)


@pytest.mark.parametrize('power', [1, 2, 3, 5, 8, 16, 25])
def test_coefficients_are_those_of_numpy(power):
    expected = np.polynomial.chebyshev.poly2cheb([0] * power + [1])
    np.testing.assert_allclose(power_coefficients(power, 0), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('exp_times', [0, 4, 8, 12, 16])
def test_coefficients_give_the_power(exp_times):
    coefficients = power_coefficients(2**exp_times)
    assert sum(coefficients) == pytest.approx(1, abs=1e-8)
    x = np.linspace(-1, 1, 101)
    values = np.polynomial.chebyshev.chebval(x, coefficients)
    np.testing.assert_allclose(values, x ** (2**exp_times), atol=1e-8)


def test_the_published_power_takes_few_products():
    assert len(power_coefficients(256)) < 120
