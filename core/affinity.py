"""Pixel pairs within a radius: their paths, labels and affinities (IRNet, section 4; docs/method.md, "AffinityNet").

Predicted affinities are scored on the pairs of ground-truth masks (docs/method.md, "Scores of edges").
"""

import torch
from torch import Tensor

from core import IGNORE, UserError

THRESHOLDS = tuple(i / 20 for i in range(1, 20))  # thresholds of affinities, increasing
HALF = THRESHOLDS.index(0.5)
PAIR_COUNTS = 2, len(THRESHOLDS) + 1  # the shape of what `count_pairs` returns


def search_paths(radius: int) -> list[list[tuple[int, int]]]:
    """Return the path of each direction in the half disc of a radius, grouped by length; a path starts at its far end.

    A path is a list of (y, x) offsets from the source: every grid point of the bounding box of (0, 0) and the far end
    whose squared distance to the line between them is below 1. Radius 5 has 34 directions, radius 10 has 152.
    """
    ends = [(0, x) for x in range(1, radius)]
    ends += [(y, x) for y in range(1, radius) for x in range(-radius + 1, radius) if y * y + x * x < radius**2]
    paths = []
    for end_y, end_x in ends:
        box = [(y, x) for y in range(end_y + 1) for x in range(min(0, end_x), max(0, end_x) + 1)]
        on_path = [p for p in box if (p[0] * end_x - p[1] * end_y) ** 2 < end_y**2 + end_x**2]
        paths.append(sorted(on_path, key=lambda p: -p[0] - abs(p[1])))
    return sorted(paths, key=len)


class PathIndex:
    """The pixel pairs within a radius on an (h, w) map. No index tensors: a direction is a shift of the whole map.

    Sources are the pixels whose directions all stay inside the map: the first h-(r-1) rows, columns r-1 .. w-r, by row.
    """

    def __init__(self, radius: int, size: int | tuple[int, int]):
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.radius = radius
        self.rows, self.columns = self.height - (radius - 1), self.width - 2 * (radius - 1)
        if radius < 2 or self.rows < 1 or self.columns < 1:
            raise UserError(f'{radius} is too large for a {self.height}x{self.width} edge map', option='radius')
        self.paths = search_paths(radius)

    @property
    def num_directions(self) -> int:
        return len(self.paths)

    @property
    def num_sources(self) -> int:
        return self.rows * self.columns

    def shifted(self, maps: Tensor, offset: tuple[int, int]) -> Tensor:
        """Return the values at an offset from each source: (..., h, w) -> a view (..., rows, columns)."""
        y, x = offset[0], offset[1] + self.radius - 1
        return maps[..., y : y + self.rows, x : x + self.columns]

    def edge_to_affinity(self, edge: Tensor) -> Tensor:
        """Return 1 - the largest edge on the path of each pair: (N, [1,] h, w) -> (N, directions, sources)."""
        edge = edge.squeeze(1) if edge.dim() == 4 else edge
        if edge.shape[-2:] != (self.height, self.width):
            raise UserError(
                f'the edge map is {tuple(edge.shape[-2:])}, the pairs are of a {self.height}x{self.width} map'
            )
        return 1 - _PathMaximum.apply(edge, self).flatten(2)


class _PathMaximum(torch.autograd.Function):
    """The largest value on each path: (N, h, w) -> (N, directions, rows, columns).

    Autograd would keep each of the 2,000 shifts of radius 10 for the backward pass (gigabytes). Only the position of
    the maximum on its path is kept here, in one byte.
    """

    @staticmethod
    def forward(ctx, edge: Tensor, index: PathIndex) -> Tensor:
        shape = (len(edge), index.num_directions, index.rows, index.columns)
        best = edge.new_empty(shape)
        place = torch.zeros(shape, dtype=torch.uint8, device=edge.device) if ctx.needs_input_grad[0] else None
        for d, path in enumerate(index.paths):
            best[:, d] = index.shifted(edge, path[0])
            for i, offset in enumerate(path[1:], 1):
                candidate = index.shifted(edge, offset)
                if place is not None:
                    place[:, d].masked_fill_(candidate > best[:, d], i)
                torch.maximum(best[:, d], candidate, out=best[:, d])
        ctx.save_for_backward(place)
        ctx.index, ctx.edge_shape = index, edge.shape
        return best

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        index = ctx.index
        grad_edge = grad.new_zeros(ctx.edge_shape)
        for d, path in enumerate(index.paths):
            for i, offset in enumerate(path):
                index.shifted(grad_edge, offset).add_(grad[:, d] * (place[:, d] == i))
        return grad_edge, None


def affinity_labels(label: Tensor, path_index: PathIndex, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the label of each pair: (..., h, w) integers -> bg_pos, fg_pos, neg, bool (..., directions, sources).

    bg_pos: both background; fg_pos: equal and not background; neg: different. A pair with an end at 255 is in none of
    the three. num_classes is the number of foreground classes; a larger label other than 255 raises UserError.
    """
    label = torch.as_tensor(label)
    if ((label > num_classes) & (label != IGNORE) | (label < 0)).any():
        raise UserError(f'a label map contains classes above {num_classes} other than {IGNORE}')
    label = label.to(torch.uint8)  # 64 MB instead of 509 MB per batch of 32 (152 directions at 128x128)
    source = path_index.shifted(label, (0, 0))
    target = torch.stack([path_index.shifted(label, path[0]) for path in path_index.paths], dim=-3)
    source = source.unsqueeze(-3)
    valid = (source != IGNORE) & (target != IGNORE)
    equal = (source == target) & valid
    background = source == 0
    return tuple(x.flatten(-2) for x in (equal & background, equal & ~background, valid & (source != target)))


@torch.no_grad()
def count_pairs(edges: Tensor, masks: Tensor, path_index: PathIndex, num_classes: int) -> Tensor:
    """Count the pairs of edge maps and masks, both (N, h, w), by label and affinity: (2, len(THRESHOLDS) + 1) int64.

    Row 0 counts pairs of one class, row 1 pairs of different classes. Pairs with an end at 255 are not counted. The
    column is the number of THRESHOLDS that the affinity exceeds.
    """
    counts = edges.new_zeros(PAIR_COUNTS, dtype=torch.int64)
    thresholds = edges.new_tensor(THRESHOLDS)
    for edge, mask in zip(edges, masks, strict=True):  # one after the other: radius 10 takes 40 MB per image
        exceeded = torch.bucketize(path_index.edge_to_affinity(edge[None])[0], thresholds, out_int32=True)
        bg_pos, fg_pos, neg = affinity_labels(mask, path_index, num_classes)
        for row, pairs in zip(counts, (bg_pos | fg_pos, neg), strict=True):
            row += torch.bincount(exceeded[pairs], minlength=len(row))
    return counts


def pair_scores(counts: Tensor) -> dict[str, float]:
    """Return scores in [0, 1] from counts of `count_pairs`; NaN for a denominator of 0.

    Precision and recall of pairs across a boundary (affinity at most 0.5) and of affine pairs (above 0.5), and the
    average precision of boundaries over THRESHOLDS.
    """
    same, different = counts.double()
    below, above = (slice(0, HALF + 1), slice(HALF + 1, None))
    hits, found = different.cumsum(0), (same + different).cumsum(0)
    precision_at = hits / found.clamp(min=1)
    scores = {
        'boundary precision': different[below].sum() / (same + different)[below].sum(),
        'boundary recall': different[below].sum() / different.sum(),
        'boundary AP': (different * precision_at).sum() / different.sum(),
        'affinity precision': same[above].sum() / (same + different)[above].sum(),
        'affinity recall': same[above].sum() / same.sum(),
    }
    return {name: float(value) for name, value in scores.items()}
