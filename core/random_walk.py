"""Propagation of CAMs by a random walk (IRNet, section 5; docs/method.md, "Random walk")."""

import functools
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.affinity import PathIndex, search_paths
from core.tiles import cut

BETA, EXP_TIMES = 10, 8  # published: exponent of the affinities, and 2^8 steps
SMALLEST_TILE = 512  # cells a side: a walk of 2^8 steps leaves a pixel by 40 cells (one standard deviation) at most
KEPT_PIXELS = 2**15  # patterns of maps up to this size are kept: 14 MB for 160x160


class _Pattern(NamedTuple):
    """Where the affinities of an (h, w) map go in its CSR matrix, whose rows have sorted columns."""

    crow: Tensor  # (hw + 1,) where each row begins
    columns: Tensor  # (entries,)
    places: Tensor  # (entries,) position of each entry in the flattened affinities of `_pair_affinities`


def _pattern(h: int, w: int, radius: int, device: torch.device) -> _Pattern:
    """Return the pattern of an (h, w) map. Patterns of small maps are cached for the next map of that size."""
    return (_kept_pattern if h * w <= KEPT_PIXELS else _build_pattern)(h, w, radius, device)


def _build_pattern(h: int, w: int, radius: int, device: torch.device) -> _Pattern:
    # List the pairs of the half disc, their mirror images and the diagonal by row and column.
    ends = [path[0] for path in search_paths(radius)] + [(0, 0)]
    width, sources = w + 2, (h + 1) * (w + 2)  # the sources of the padded map start in the column before the first
    pairs = [(y, x, d * sources) for d, (y, x) in enumerate(ends)]
    pairs += [(-y, -x, d * sources - y * width - x) for d, (y, x) in enumerate(ends[:-1])]
    y, x, place = torch.tensor(sorted(pairs), dtype=torch.int32, device=device).unbind(1)

    # Keep those that end inside the map. 32-bit indices: torch would convert others for each product.
    row, column = (torch.arange(side, dtype=torch.int32, device=device)[:, None] for side in (h, w))
    rows_inside, columns_inside = ((0 <= at) & (at < side) for at, side in ((row + y, h), (column + x, w)))
    inside = rows_inside[:, None] & columns_inside  # (h, w, pairs)
    columns = ((row * w)[:, None] + column + (y * w + x)).masked_select(inside)
    places = ((row * width)[:, None] + column + 1 + place).masked_select(inside)
    crow = F.pad(inside.sum(2).flatten().cumsum(0, dtype=torch.int32), (1, 0))
    return _Pattern(crow, columns, places)


_kept_pattern = functools.lru_cache(maxsize=4)(_build_pattern)


def _pair_affinities(edge: Tensor, radius: int, beta: float) -> tuple[Tensor, PathIndex]:
    """Return the affinities (directions + 1, sources) of an edge map; the last row is all ones.

    Padding with edges makes every pixel of the map a source, and makes the affinity 0 across its border.
    """
    padded = _pad(edge.double(), radius, 1.0)
    index = PathIndex(radius, padded.shape)
    affinity = index.edge_to_affinity(padded[None])[0].pow_(beta)
    return torch.cat([affinity, affinity.new_ones(1, index.num_sources)]), index


def _pad(maps: Tensor, radius: int, value: float) -> Tensor:
    return F.pad(maps[None], (radius, radius, 0, radius), value=value)[0]


@torch.no_grad()
def affinity_matrix(edge: Tensor, radius: int = 5, beta: float = 10) -> Tensor:
    """Return the (hw, hw) affinity matrix A of an (h, w) edge map in [0, 1], as a sparse CSR tensor in float64.

    A_ij = (1 - the largest edge between i and j)^beta for pixels within the radius, ones on the diagonal.
    """
    pattern = _pattern(*edge.shape, radius, edge.device)
    affinity, _ = _pair_affinities(edge, radius, beta)
    return _csr(pattern.crow, pattern.columns, affinity.flatten().index_select(0, pattern.places))


@torch.no_grad()
def symmetric_matrix(edge: Tensor, radius: int, beta: float) -> tuple[Tensor, Tensor]:
    """Return S = D^-1/2 A D^-1/2 as a sparse CSR tensor and the diagonal (hw, 1) of D^1/2, D the row sums of A."""
    h, w = edge.shape
    pattern = _pattern(h, w, radius, edge.device)
    affinity, index = _pair_affinities(edge, radius, beta)
    values = affinity.flatten().index_select(0, pattern.places)
    ones = torch.ones(h * w, 1, dtype=torch.float64, device=edge.device)
    root = (_csr(pattern.crow, pattern.columns, values) @ ones).sqrt()

    # Divide pair by pair: each is in the matrix twice.
    padded = _pad(root.view(h, w), radius, 1.0)
    source = index.shifted(padded, (0, 0))
    for pairs, end in zip(affinity, [path[0] for path in index.paths] + [(0, 0)], strict=True):
        pairs.view(source.shape).div_(source * index.shifted(padded, end))
    torch.index_select(affinity.flatten(), 0, pattern.places, out=values)
    return _csr(pattern.crow, pattern.columns, values), root


def _csr(crow: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Build a square CSR tensor without torch's warning that its CSR support is in beta: only products are used."""
    size = (len(crow) - 1, len(crow) - 1)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Sparse CSR tensor support is in beta')
        return torch.sparse_csr_tensor(crow, columns, values, size, check_invariants=False)


@functools.lru_cache
def power_coefficients(power: int, tolerance: float = 1e-10) -> tuple[float, ...]:
    """Return c_0, c_1, ... of x^power = sum_k c_k T_k(x) on [-1, 1], Chebyshev polynomials of the first kind.

    c_k is the probability that a simple random walk of `power` steps ends at +-k. The tail that sums to less than the
    tolerance is cut: |T_k| <= 1, so this bounds the error.
    """
    coefficients = np.polynomial.chebyshev.poly2cheb([0] * power + [1])
    tails = np.cumsum(coefficients[::-1])[::-1]  # tails[k] = c_k + c_{k+1} + ...
    return tuple(coefficients[: max(1, np.count_nonzero(tails >= tolerance))].tolist())


@torch.no_grad()
def random_walk(cam: Tensor, edge: Tensor, radius: int = 5, beta: float = BETA, exp_times: int = EXP_TIMES) -> Tensor:
    """Propagate CAMs: the row vector cam * (1 - edge) times T^(2^exp_times); (K, h, w), (h, w) -> (K, h, w).

    The transition matrix T is the affinity matrix A with every column divided by its sum d_j. S = D^-1/2 A D^-1/2 is
    symmetric with its spectrum in [-1, 1], and T^p = D^1/2 S^p D^-1/2. S^p is summed from Chebyshev polynomials: T^256
    takes 102 sparse products instead of 256, or of eight squarings of a dense (hw)^2 matrix. Computed in float64,
    returned in cam's dtype.
    """
    k, h, w = cam.shape
    if k == 0:
        return cam.clone()

    symmetric, root = symmetric_matrix(edge, radius, beta)

    # Sum c_k T_k(S) x by the recurrence T_{k+1}(S) x = 2 S T_k(S) x - T_{k-1}(S) x.
    start = (cam * (1 - edge)).double().reshape(k, h * w).t() * root
    coefficients = power_coefficients(2**exp_times)
    previous, current = start, symmetric @ start
    result = coefficients[0] * previous
    for c in coefficients[1:]:
        if c:
            result += c * current
        previous, current = current, (symmetric @ current).mul_(2).sub_(previous)
    return (result / root).t().reshape(k, h, w).to(cam.dtype)


def walk_by_tiles(cam: Tensor, edge: Tensor, tile: int, **options) -> Tensor:
    """Propagate CAMs (K, h, w) as `random_walk` does, tile by tile where a side is longer than a tile.

    A tile is `tile` cells a side, but at least SMALLEST_TILE, so that few walks cross the quarter that two tiles share.
    """
    tile, walked = max(tile, SMALLEST_TILE), torch.zeros_like(cam)
    for rows, columns in cut(edge.shape, tile, 1):
        part = random_walk(cam[:, rows.whole, columns.whole], edge[rows.whole, columns.whole], **options)
        weights = torch.from_numpy(np.outer(rows.weights, columns.weights)).to(cam.device)
        walked[:, rows.whole, columns.whole] += weights * part
    return walked
