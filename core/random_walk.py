"""Propagation of CAMs by a random walk (IRNet, section 5; docs/method.md, "Random walk")."""

import functools
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.affinity import PathIndex


def affinity_matrix(edge: Tensor, radius: int = 5, beta: float = 10) -> Tensor:
    """Return the (hw, hw) affinity matrix A of an (h, w) edge map in [0, 1], as a sparse CSR tensor in float64.

    A_ij = (1 - the largest edge between i and j)^beta for pixels within the radius, ones on the diagonal.
    """
    h, w = edge.shape
    # Pad with edges, so that every pixel of the image is a source; no affinity leads across them.
    padded = F.pad(edge.double()[None], (radius, radius, 0, radius), value=1.0)
    index = PathIndex(radius, padded.shape[-2:])
    affinity = index.edge_to_affinity(padded)[0].pow(beta)

    # Number the pixels and look up both ends of each pair.
    number = F.pad(torch.arange(h * w, device=edge.device).view(1, h, w), (radius, radius, 0, radius), value=-1)[0]
    source = index.shifted(number, (0, 0)).flatten().expand(index.num_directions, -1)
    target = torch.stack([index.shifted(number, path[0]).flatten() for path in index.paths])
    inside = (source >= 0) & (target >= 0)
    source, target, affinity = source[inside], target[inside], affinity[inside]

    # Add the mirrored pairs and the diagonal, and sort by row and column.
    diagonal = torch.arange(h * w, device=edge.device)
    rows = torch.cat([source, target, diagonal])
    columns = torch.cat([target, source, diagonal])
    values = torch.cat([affinity, affinity, torch.ones(h * w, dtype=affinity.dtype, device=edge.device)])
    order = torch.argsort(rows * (h * w) + columns)
    counts = torch.bincount(rows, minlength=h * w)
    return _csr(F.pad(counts.cumsum(0), (1, 0)), columns[order], values[order])


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


def random_walk(cam: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8) -> Tensor:
    """Propagate CAMs: the row vector cam * (1 - edge) times T^(2^exp_times); (K, h, w), (h, w) -> (K, h, w).

    The transition matrix T is the affinity matrix A with every column divided by its sum d_j. S = D^-1/2 A D^-1/2 is
    symmetric with its spectrum in [-1, 1], and T^p = D^1/2 S^p D^-1/2. S^p is summed from Chebyshev polynomials: T^256
    takes about 90 sparse products instead of 256, or of eight squarings of a dense (hw)^2 matrix. Computed in float64,
    returned in cam's dtype.
    """
    k, h, w = cam.shape
    if k == 0:
        return cam.clone()

    # Normalise symmetrically. A is symmetric, so its row sums are its column sums.
    affinity = affinity_matrix(edge, radius, beta)
    ones = torch.ones(h * w, 1, dtype=torch.float64, device=edge.device)
    root = (affinity @ ones).sqrt()
    crow, columns = affinity.crow_indices(), affinity.col_indices()
    rows = torch.repeat_interleave(torch.arange(h * w, device=edge.device), crow.diff())
    symmetric = _csr(crow, columns, affinity.values() / (root[rows, 0] * root[columns, 0]))

    # Sum c_k T_k(S) x by the recurrence T_{k+1}(S) x = 2 S T_k(S) x - T_{k-1}(S) x.
    start = (cam * (1 - edge)).double().reshape(k, h * w).t() * root
    coefficients = power_coefficients(2**exp_times)
    previous, current = start, symmetric @ start
    result = coefficients[0] * previous
    for c in coefficients[1:]:
        if c:
            result = result + c * current
        previous, current = current, 2 * (symmetric @ current) - previous
    return (result / root).t().reshape(k, h, w).to(cam.dtype)
