"""Pixel pairs: paths derived again from docs/method.md, affinities and their gradient, labels and scores of pairs."""

import math

import pytest
import torch

from core import UserError
from core.affinity import THRESHOLDS, PathIndex, affinity_labels, count_pairs, pair_scores, search_paths
from support import directions_of


@pytest.mark.parametrize('radius, number', [(2, 4), (5, 34), (10, 152)])
def test_paths(radius, number):
    paths = search_paths(radius)
    expected = directions_of(radius)
    assert len(paths) == len(expected) == number
    assert {path[0]: set(path) for path in paths} == expected
    assert all(len(path) == len(set(path)) and path[-1] == (0, 0) for path in paths)
    assert [len(path) for path in paths] == sorted(len(path) for path in paths)
    for path in paths:  # ordered from the far end
        lengths = [y * y + x * x for y, x in path]
        assert lengths[0] == max(lengths)


def test_number_of_directions_and_sources():
    index = PathIndex(10, 128)
    assert (index.num_directions, index.num_sources) == (152, 13090)
    assert PathIndex(5, (94, 125)).num_directions == 34
    assert PathIndex(5, (94, 125)).num_sources == 90 * 117


@pytest.mark.parametrize('radius, size', [(3, (6, 7)), (4, (9, 8)), (2, (2, 3))])
def test_edge_to_affinity_against_a_loop(radius, size):
    h, w = size
    edge = torch.rand(2, 1, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = PathIndex(radius, size)
    affinity = index.edge_to_affinity(edge)
    assert affinity.shape == (2, index.num_directions, index.num_sources)
    assert torch.equal(index.edge_to_affinity(edge[:, 0]), affinity)
    paths = directions_of(radius)
    for n in range(2):
        for d, path in enumerate(index.paths):
            sources = [(y, x) for y in range(h - radius + 1) for x in range(radius - 1, w - radius + 1)]
            assert len(sources) == index.num_sources
            for s, (y, x) in enumerate(sources):
                largest = max(float(edge[n, 0, y + dy, x + dx]) for dy, dx in paths[path[0]])
                assert float(affinity[n, d, s]) == pytest.approx(1 - largest, abs=1e-15)


def gathered_affinity(edge: torch.Tensor, index: PathIndex) -> torch.Tensor:
    """Gather every path point and take the maximum, which autograd differentiates."""
    grid = torch.arange(index.height * index.width).view(index.height, index.width)
    source = grid[: index.rows, index.radius - 1 : index.radius - 1 + index.columns].flatten()
    flat = edge.flatten(1)
    rows = []
    for path in index.paths:
        places = torch.stack([source + y * index.width + x for y, x in path])
        rows.append(1 - flat[:, places].amax(1))
    return torch.stack(rows, 1)


def test_gradient_against_autograd_of_a_gather():
    generator = torch.Generator().manual_seed(1)
    edge = torch.randperm(2 * 17 * 19, generator=generator).double().view(2, 17, 19) / 1000
    ours, reference = (edge.clone().requires_grad_() for _ in range(2))
    index = PathIndex(5, (17, 19))
    found, expected = index.edge_to_affinity(ours), gathered_affinity(reference, index)
    assert torch.equal(found, expected)
    weights = torch.randn(found.shape, dtype=torch.float64, generator=generator)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    edge = torch.randperm(6 * 8, generator=torch.Generator().manual_seed(2)).double().view(1, 1, 6, 8) / 48
    assert torch.autograd.gradcheck(PathIndex(3, (6, 8)).edge_to_affinity, edge.requires_grad_())


def test_gradient_of_equal_edges_goes_to_one_point_per_path():
    edge = torch.full((1, 5, 7), 0.5, dtype=torch.float64, requires_grad=True)
    index = PathIndex(3, (5, 7))
    index.edge_to_affinity(edge).sum().backward()
    assert float(edge.grad.sum()) == -index.num_directions * index.num_sources


@pytest.mark.parametrize('num_classes', [1, 20, 100, 254])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
def test_affinity_labels_against_loops(num_classes, dtype):
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor([0, 0, 1, (num_classes + 1) // 2, num_classes, 255])
    label = values[torch.randint(0, len(values), (2, 7, 9), generator=generator)].to(dtype)
    index = PathIndex(3, (7, 9))
    found = affinity_labels(label, index, num_classes)
    assert all(x.dtype == torch.bool and x.shape == (2, index.num_directions, index.num_sources) for x in found)
    for n in range(2):
        for d, path in enumerate(index.paths):
            dy, dx = path[0]
            for s in range(index.num_sources):
                y, x = s // index.columns, s % index.columns + 2
                a, b = int(label[n, y, x]), int(label[n, y + dy, x + dx])
                valid = a != 255 and b != 255
                expected = (valid and a == b == 0, valid and a == b != 0, valid and a != b)
                assert tuple(bool(kind[n, d, s]) for kind in found) == expected
    assert all(kind.any() for kind in found)


def test_affinity_labels_of_a_single_map():
    label = torch.randint(0, 4, (3, 7, 9), generator=torch.Generator().manual_seed(4))
    index = PathIndex(3, (7, 9))
    for batch, single in zip(affinity_labels(label, index, 3), affinity_labels(label[1], index, 3), strict=True):
        assert torch.equal(batch[1], single)


@pytest.mark.parametrize('value', [-1, 4, 254, 256])
def test_unknown_classes_are_rejected(value):
    label = torch.zeros(7, 9, dtype=torch.int64)
    label[0, 0] = value
    with pytest.raises(UserError, match='classes above 3 other than 255'):
        affinity_labels(label, PathIndex(3, (7, 9)), 3)


@pytest.mark.parametrize('radius, size', [(10, 16), (10, (9, 128)), (10, (128, 18)), (1, 16), (0, 16)])
def test_radius_that_does_not_fit_the_map(radius, size):
    with pytest.raises(UserError, match=f'radius {radius} is too large'):
        PathIndex(radius, size)


def test_edge_map_of_another_size():
    with pytest.raises(UserError, match=r'edge map is \(9, 7\).*7x9'):
        PathIndex(3, (7, 9)).edge_to_affinity(torch.zeros(1, 1, 9, 7))


# Scores of predicted affinities -------------------------------------------------------------------------------------


def scores_by_loops(edges, masks, radius) -> dict[str, float]:
    """Return what `pair_scores` should, from the affinity of each pair of pixels."""
    pairs = []  # affinity, whether the classes differ
    for edge, mask in zip(edges.tolist(), masks.tolist(), strict=True):
        h, w = len(edge), len(edge[0])
        for y in range(h - radius + 1):
            for x in range(radius - 1, w - radius + 1):
                for (dy, dx), path in directions_of(radius).items():
                    ends = mask[y][x], mask[y + dy][x + dx]
                    if 255 not in ends:
                        affinity = 1 - max(edge[y + py][x + px] for py, px in path)
                        pairs.append((affinity, ends[0] != ends[1]))

    def ratio(some, of):
        return sum(some) / sum(of) if sum(of) else math.nan

    boundaries = [differ for _, differ in pairs]
    cut = [affinity <= 0.5 for affinity, _ in pairs]
    hits = [a and b for a, b in zip(cut, boundaries, strict=True)]
    kept = [not a and not b for a, b in zip(cut, boundaries, strict=True)]
    area, recall_before = 0, 0
    for threshold in [*THRESHOLDS, 2]:
        below = [affinity <= threshold for affinity, _ in pairs]
        found = [a and b for a, b in zip(below, boundaries, strict=True)]
        recall = ratio(found, boundaries)
        area += (recall - recall_before) * (ratio(found, below) if any(below) else 0)
        recall_before = recall
    return {
        'boundary precision': ratio(hits, cut),
        'boundary recall': ratio(hits, boundaries),
        'boundary AP': area,
        'affinity precision': ratio(kept, [not a for a in cut]),
        'affinity recall': ratio(kept, [not b for b in boundaries]),
    }


@pytest.mark.parametrize('radius, size', [(2, (3, 5)), (3, (7, 8)), (4, (9, 12))])
def test_scores_of_pairs_against_loops(rng, radius, size):
    index = PathIndex(radius, size)
    edges = torch.from_numpy(rng.random((3, *size)) ** 3)
    edges[0, 1:3] = 0.5  # an affinity of exactly 0.5 is not affine
    masks = torch.from_numpy(rng.choice([0, 1, 2, 255], (3, *size), p=[0.5, 0.2, 0.2, 0.1]))
    counts = count_pairs(edges, masks, index, 2)
    assert pair_scores(counts) == pytest.approx(scores_by_loops(edges, masks, radius))
    one_by_one = [count_pairs(edges[i : i + 1], masks[i : i + 1], index, 2) for i in range(3)]
    assert torch.equal(counts, sum(one_by_one))


def test_perfect_and_inverted_edges():
    """An edge on both sides of a vertical boundary, and everywhere else."""
    mask = torch.zeros(1, 8, 9, dtype=torch.long)
    mask[..., 4:] = 1
    edge = torch.zeros(1, 8, 9)
    edge[..., 3:5] = 1
    index = PathIndex(2, (8, 9))
    scores = pair_scores(count_pairs(edge, mask, index, 1))
    assert scores['boundary recall'] == scores['boundary AP'] / scores['boundary precision'] == 1
    assert scores['affinity precision'] == 1
    assert 0.5 < scores['affinity recall'] < 1  # the pairs along the edge are cut too
    inverted = pair_scores(count_pairs(torch.ones_like(edge), mask, index, 1))
    assert inverted['boundary recall'] == 1
    assert inverted['affinity recall'] == 0
    assert math.isnan(inverted['affinity precision'])


def test_scores_without_pairs_are_nan():
    index = PathIndex(2, (4, 5))
    nothing = count_pairs(torch.zeros(1, 4, 5), torch.full((1, 4, 5), 255), index, 1)
    assert not nothing.any()
    assert all(math.isnan(value) for value in pair_scores(nothing).values())
    alike = pair_scores(count_pairs(torch.zeros(1, 4, 5), torch.ones(1, 4, 5).long(), index, 1))
    assert (alike['affinity precision'], alike['affinity recall']) == (1, 1)
    assert all(math.isnan(alike[name]) for name in ('boundary precision', 'boundary recall', 'boundary AP'))
