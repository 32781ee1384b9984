"""Losses against loops in double precision."""

import itertools
import math

import pytest
import torch
from torch import nn

from core.cam import make_cam
from core.losses import (
    TERMS,
    affinity_loss,
    alpha_at,
    classification_loss,
    confidence_loss,
    puzzle_losses,
    reconstruction_loss,
)

N, C, H, W = 4, 5, 3, 2
LABELS = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(N, C, H, W, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)]


def test_classification_loss():
    logits = torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    total = 0
    for n in range(N):
        for c in range(C):
            p, y = sigmoid(float(logits[n, c])), float(LABELS[n, c])
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    assert float(classification_loss(logits, LABELS)) == pytest.approx(total / (N * C), rel=1e-12)


@pytest.mark.parametrize('smoothing', [0.1, 1.0])
def test_label_smoothing(smoothing):
    """Labels move towards 1/2."""
    logits = torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    total = 0
    for n in range(N):
        for c in range(C):
            p, y = sigmoid(float(logits[n, c])), 1 - smoothing / 2 if LABELS[n, c] else smoothing / 2
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    assert float(classification_loss(logits, LABELS, smoothing)) == pytest.approx(total / (N * C), rel=1e-12)


def test_without_label_smoothing_nothing_changes():
    logits = torch.randn(N, C, generator=torch.Generator().manual_seed(2), requires_grad=True)
    labels = LABELS.float()
    plain = torch.nn.functional.multilabel_soft_margin_loss(logits, labels)
    (expected,) = torch.autograd.grad(plain, logits)
    loss = classification_loss(logits, labels, 0.0)
    assert torch.equal(loss, plain)
    assert torch.equal(torch.autograd.grad(loss, logits)[0], expected)


@pytest.mark.parametrize('re_loss', ['L1_Loss', 'L2_Loss'])
@pytest.mark.parametrize('option', ['masking', 'selection', 'none'])
def test_reconstruction_loss(pair, re_loss, option):
    maps, merged = pair
    values, others = maps.tolist(), merged.tolist()
    means = []  # per image: the mean distance of each class
    for n in range(N):
        means.append([])
        for c in range(C):
            total = 0
            for y in range(H):
                for x in range(W):
                    difference = values[n][c][y][x] - others[n][c][y][x]
                    total += abs(difference) if re_loss == 'L1_Loss' else difference**2
            means[n].append(total / (H * W))
    if option == 'none':
        expected = sum(sum(row) for row in means) / (N * C)
    elif option == 'masking':  # absent classes count as zeros
        expected = sum(means[n][c] * float(LABELS[n, c]) for n in range(N) for c in range(C)) / (N * C)
    else:  # the second image has no class and is left out
        rows = [[means[n][c] for c in range(C) if LABELS[n, c]] for n in range(N)]
        rows = [sum(row) / len(row) for row in rows if row]
        assert len(rows) == 3
        expected = sum(rows) / len(rows)
    loss = reconstruction_loss(maps, merged, LABELS, re_loss, option)
    assert loss.item() == pytest.approx(expected, rel=1e-12)

    # Neither branch is detached: their gradients are opposite.
    loss.backward()
    assert maps.grad.abs().sum() > 0
    torch.testing.assert_close(maps.grad, -merged.grad, rtol=0, atol=0)
    if option != 'none':
        assert not maps.grad[LABELS == 0].any()


def test_absent_classes_weaken_the_published_reconstruction_loss(pair):
    """With ten times as many classes, none of them present, it is a tenth; --re_loss_option selection is the same."""
    maps, merged = (torch.cat([x, torch.randn(N, 9 * C, H, W, dtype=x.dtype)], 1) for x in pair)
    labels = torch.cat([LABELS, LABELS.new_zeros(N, 9 * C)], 1)
    few, many = reconstruction_loss(*pair, LABELS), reconstruction_loss(maps, merged, labels)
    torch.testing.assert_close(many, few / 10)
    few, many = (reconstruction_loss(*x, option='selection') for x in ((*pair, LABELS), (maps, merged, labels)))
    torch.testing.assert_close(many, few)


def test_reconstruction_loss_defaults_to_the_published_options(pair):
    expected = reconstruction_loss(*pair, LABELS, 'L1_Loss', 'masking')
    assert torch.equal(reconstruction_loss(*pair, LABELS), expected)


@pytest.mark.parametrize('option', ['masking', 'selection'])
def test_reconstruction_loss_of_a_batch_without_classes_is_zero(pair, option):
    assert reconstruction_loss(*pair, torch.zeros(N, C), option=option).item() == 0


def test_unknown_options_raise(pair):
    with pytest.raises(ValueError, match="'mask' is not one of masking, selection, none"):
        reconstruction_loss(*pair, LABELS, option='mask')
    with pytest.raises(KeyError):
        reconstruction_loss(*pair, LABELS, re_loss='L3_Loss')


def test_confidence_loss():
    logits = 4 * torch.randn(7, C, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    total = 0
    for row in logits.tolist():
        for x in row:
            total -= sigmoid(x) * math.log(sigmoid(x) + 1e-5)
    assert float(confidence_loss(logits)) == pytest.approx(total / 7, rel=1e-12)


class Maps(nn.Module):
    """A network whose maps differ at the borders of tiles; it remembers the sizes of its images."""

    def __init__(self):
        super().__init__()
        self.conv, self.seen = nn.Conv2d(3, C, 3, padding=1).double(), []

    def forward(self, images, with_cam):
        assert with_cam
        self.seen.append(images.shape)
        maps = self.conv(images)
        return maps.mean((2, 3)), maps


@pytest.fixture
def network():
    torch.manual_seed(5)
    return Maps()


IMAGES = torch.randn(N, 3, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
SETS = [('cl', *some) for count in range(4) for some in itertools.combinations(TERMS[1:], count)]


@pytest.mark.parametrize('options', [{}, {'level': 'cam', 're_loss': 'L2_Loss', 're_loss_option': 'selection'}])
@pytest.mark.parametrize('terms', SETS, ids='_'.join)
def test_puzzle_losses_of_any_set_of_terms(network, terms, options):
    found = puzzle_losses(network, IMAGES, LABELS, terms[::-1], 4, smoothing=0.1, **options)
    assert list(found) == list(terms)
    logits, maps = network(IMAGES, with_cam=True)
    a, b, c, d = (network(IMAGES[:, :, y : y + 6, x : x + 4], with_cam=True) for y in (0, 6) for x in (0, 4))
    merged = torch.cat([torch.cat([a[1], b[1]], 3), torch.cat([c[1], d[1]], 3)], 2)
    if options:
        re = reconstruction_loss(make_cam(maps), make_cam(merged), LABELS, 'L2_Loss', 'selection')
    else:
        re = reconstruction_loss(maps, merged, LABELS)
    expected = {
        'cl': classification_loss(logits, LABELS, 0.1),
        'pcl': classification_loss(merged.mean((2, 3)), LABELS, 0.1),
        're': re,
        'conf': confidence_loss(torch.cat([a[0], b[0], c[0], d[0]])),
    }
    assert expected['re'] > 0.001
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
        assert value.requires_grad


@pytest.mark.parametrize('terms', SETS, ids='_'.join)
def test_tiles_pass_through_the_network_only_if_a_term_needs_them(network, terms):
    puzzle_losses(network, IMAGES, LABELS, terms, 16)
    assert network.seen == [IMAGES.shape, *([(16 * N, 3, 3, 2)] if len(terms) > 1 else [])]


@pytest.mark.parametrize('empty', [None, 0, 1, 2])
def test_affinity_loss(empty):
    """`empty` is the term without pairs: it must be 0, not NaN."""
    generator = torch.Generator().manual_seed(4)
    shape = (2, 3, 11)
    affinity = torch.rand(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    kind = torch.randint(0, 4, shape, generator=generator)  # bg+, fg+, neg or none of them
    kind[kind == (-1 if empty is None else empty)] = 3
    pairs = [kind == i for i in range(3)]
    terms = []
    for i in range(3):
        total, count = 0, 0
        for p, k in zip(affinity.flatten().tolist(), kind.flatten().tolist(), strict=True):
            if k == i:
                total -= math.log((1 - p if i == 2 else p) + 1e-5)
                count += 1
        terms.append(total / (count + 1e-5))
    if empty == 0:
        alone = affinity_loss(affinity, *pairs, has_background=False)
        assert alone.item() == pytest.approx((terms[1] + terms[2]) / 2, rel=1e-6)
    loss = affinity_loss(affinity, *(p.double() for p in pairs))
    assert loss.item() == pytest.approx(((terms[0] + terms[1]) / 2 + terms[2]) / 2, rel=1e-12)
    assert affinity_loss(affinity, *pairs).item() == pytest.approx(loss.item(), rel=1e-6)  # pairs as bool
    loss.backward()
    assert torch.isfinite(affinity.grad).all()
    assert (affinity.grad[pairs[0] | pairs[1]] < 0).all()
    assert (affinity.grad[pairs[2]] > 0).all()
    assert not affinity.grad[kind == 3].any()


@pytest.mark.parametrize('affinity', [0.0, 1.0])
def test_affinity_loss_is_finite_at_0_and_1(affinity):
    pairs = torch.ones(1, 2, 3, dtype=torch.bool)
    assert torch.isfinite(affinity_loss(torch.full((1, 2, 3), affinity), pairs, pairs, pairs))


@pytest.mark.parametrize('iteration, alpha', [(0, 0), (1, 0.08), (25, 2), (49, 3.92), (50, 4), (51, 4), (99, 4)])
def test_alpha_ramps_up_over_half_of_the_iterations(iteration, alpha):
    assert alpha_at(iteration, 100, 4, 0.5) == pytest.approx(alpha)


def test_alpha_schedule_zero_is_constant():
    assert [alpha_at(t, 100, 4, 0) for t in (0, 1, 99)] == [4, 4, 4]
