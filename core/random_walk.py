"""The random walk that spreads CAMs up to object borders (METHOD, section 6)."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from core.affinity import PathIndex

# torch still calls its CSR tensors beta, on every first use; multiplying by one is all that is done here.
warnings.filterwarnings('ignore', message='Sparse CSR tensor support is in beta')


def symmetric_affinity(edge: Tensor, radius: int = 5, beta: float = 10) -> Tensor:
    """The (hw, hw) affinity matrix A of an (h, w) edge map in [0, 1], as a sparse CSR tensor in float64.

    A_ij = (1 - the largest edge between i and j)^beta for pixels within the radius, ones on the diagonal.
    """
    h, w = edge.shape
    # A border of edges lets every pixel of the image be a source; no affinity leads across it.
    padded = F.pad(edge.double()[None], (radius, radius, 0, radius), value=1.0)
    index = PathIndex(radius, padded.shape[-2:])
    affinity = index.edge_to_affinity(padded)[0].pow(beta)
    number = F.pad(torch.arange(h * w, device=edge.device).view(1, h, w), (radius, radius, 0, radius), value=-1)[0]
    source = index.shifted(number, (0, 0)).flatten().expand(index.num_directions, -1)
    target = torch.stack([index.shifted(number, path[0]).flatten() for path in index.paths])
    inside = (source >= 0) & (target >= 0)
    source, target, affinity = source[inside], target[inside], affinity[inside]
    diagonal = torch.arange(h * w, device=edge.device)
    rows = torch.cat([source, target, diagonal])
    columns = torch.cat([target, source, diagonal])
    values = torch.cat([affinity, affinity, torch.ones(h * w, dtype=affinity.dtype, device=edge.device)])
    order = torch.argsort(rows * (h * w) + columns)
    counts = torch.bincount(rows, minlength=h * w)
    crow = F.pad(counts.cumsum(0), (1, 0))
    return torch.sparse_csr_tensor(crow, columns[order], values[order], (h * w, h * w), check_invariants=False)


def power_coefficients(power: int, tolerance: float = 1e-10) -> list[float]:
    """c_0, c_1, ... of x^power = sum_k c_k T_k(x) on [-1, 1], cut where all the rest sums to less than the tolerance.

    c_k = 2 C(power, (power - k) / 2) / 2^power for k of power's parity, half of that for k = 0.
    """

    def coefficient(k: int) -> float:
        if (power - k) % 2:
            return 0.0
        j = (power - k) // 2
        log = math.lgamma(power + 1) - math.lgamma(j + 1) - math.lgamma(power - j + 1) - power * math.log(2)
        return math.exp(log) * (1 if k == 0 else 2)

    coefficients = [coefficient(k) for k in range(power + 1)]
    rest = 0.0
    while len(coefficients) > 1 and rest + coefficients[-1] < tolerance:
        rest += coefficients.pop()
    return coefficients


def random_walk(cam: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8) -> Tensor:
    """Let CAMs walk: the row vector cam * (1 - edge) times T^(2^exp_times); (K, h, w), (h, w) -> (K, h, w).

    T is the affinity matrix with every column divided by its sum d_j. With S = D^-1/2 A D^-1/2, which is symmetric and
    has its spectrum in [-1, 1], T^p = D^1/2 S^p D^-1/2, and S^p is summed from Chebyshev polynomials: T^256 takes about
    90 sparse products in place of 256, or of eight squarings of a dense (hw)^2 matrix. Computed in float64, returned
    in cam's dtype.
    """
    k, h, w = cam.shape
    if k == 0:
        return cam.clone()
    affinity = symmetric_affinity(edge, radius, beta)
    ones = torch.ones(h * w, 1, dtype=torch.float64, device=edge.device)
    root = (affinity @ ones).sqrt()  # A is symmetric: the sums of its rows are those of its columns
    crow, columns = affinity.crow_indices(), affinity.col_indices()
    rows = torch.repeat_interleave(torch.arange(h * w, device=edge.device), crow.diff())
    values = affinity.values() / (root[rows, 0] * root[columns, 0])
    symmetric = torch.sparse_csr_tensor(crow, columns, values, affinity.shape, check_invariants=False)

    start = (cam * (1 - edge)).double().reshape(k, h * w).t() * root
    coefficients = power_coefficients(2**exp_times)
    previous, current = start, symmetric @ start
    result = coefficients[0] * previous
    for c in coefficients[1:]:
        if c:
            result = result + c * current
        previous, current = current, 2 * (symmetric @ current) - previous
    return (result / root).t().reshape(k, h, w).to(cam.dtype)
