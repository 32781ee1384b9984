"""The losses of the paper (Puzzle-CAM, section 2; AffinityNet's loss as in IRNet), short enough to read next to it."""

from collections.abc import Callable, Collection, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from core import puzzle
from core.cam import make_cam

EPSILON = 1e-5
TERMS = ('cl', 'pcl', 're', 'conf')  # L_cls, L_p-cls, L_re, L_conf


def puzzle_losses(
    network: Callable[..., tuple[Tensor, ...]],
    images: Tensor,
    labels: Tensor,
    terms: Collection[str] = ('cl', 'pcl', 're'),
    num_pieces: int = 4,
    level: str = 'feature',
    re_loss: str = 'L1_Loss',
    re_loss_option: str = 'masking',
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """Return the unweighted terms of the loss of stage 1 by name (sections 2.2, 2.3; docs/method.md, "Losses").

    network(images, with_cam=True) gives logits (N, C) and class maps (N, C, h, w); images (N, 3, H, W) are normalised,
    labels (N, C) multi-hot. The tiles pass through the network only if a term needs them. `level` says what L_re
    compares: class maps ('feature', published), CAMs ('cam'), or class maps of the positive weights alone ('positive',
    where network(images, with_cam=True, positive=True) gives them as well).
    """
    read = partial(network, with_cam=True, **({'positive': True} if level == 'positive' else {}))
    logits, *maps = read(images)
    losses = {'cl': classification_loss(logits, labels, smoothing)}
    if not {*terms} - {'cl'}:
        return losses
    tile_logits, *tile_maps = read(puzzle.tile(images, num_pieces))
    merged = [puzzle.merge(one, num_pieces) for one in tile_maps]
    if 'pcl' in terms:
        losses['pcl'] = classification_loss(merged[0].mean((2, 3)), labels, smoothing)
    if 're' in terms:
        compared = maps[-1], merged[-1]
        if level == 'cam':
            compared = [make_cam(one) for one in compared]
        losses['re'] = reconstruction_loss(*compared, labels, re_loss, re_loss_option)
    if 'conf' in terms:
        losses['conf'] = confidence_loss(tile_logits)
    return losses


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """L_cls and L_p-cls (equations 2, 3): multi-label soft margin, mean over images and classes.

    logits (N, C) are spatial means of class maps; labels (N, C) are multi-hot. With smoothing s, a label y becomes
    (1 - s) y + s / 2: 1 - s / 2 for present classes and s / 2 for absent ones.
    """
    return F.multilabel_soft_margin_loss(logits, (1 - smoothing) * labels + smoothing / 2)


def reconstruction_loss(
    maps: Tensor, merged: Tensor, labels: Tensor, re_loss: str = 'L1_Loss', option: str = 'masking'
) -> Tensor:
    """L_re (equation 4): distance between the class maps of the image and the maps merged from its tiles.

    maps, merged (N, C, h, w); labels (N, C) multi-hot. option 'masking': absent classes count as zeros in the mean over
    N, C, h, w (published); 'selection': the mean over each image's present classes, then over the images that have any;
    'none': no mask. Gradients flow through both arguments.
    """
    distance = {'L1_Loss': torch.abs, 'L2_Loss': torch.square}[re_loss](maps - merged)
    if option == 'none':
        return distance.mean()
    if option == 'masking':
        return (distance * labels[:, :, None, None]).mean()
    if option == 'selection':
        present = labels.sum(1)
        per_image = (distance.mean((2, 3)) * labels).sum(1) / present.clamp(min=1)
        return per_image.sum() / (present > 0).sum().clamp(min=1)
    raise ValueError(f'option {option!r} is not one of masking, selection, none')


def confidence_loss(tile_logits: Tensor) -> Tensor:
    """L_conf: mean over tiles of -sum_c p log(p + 1e-5), p = sigmoid(tile_logits) with tile_logits (g*g*N, C)."""
    p = torch.sigmoid(tile_logits)
    return -(p * torch.log(p + EPSILON)).sum(1).mean()


def alpha_at(iteration: int, total: int, alpha: float, alpha_schedule: float) -> float:
    """Return the weight of L_re at an iteration.

    Linear ramp to alpha over the first alpha_schedule of the `total` iterations; constant if alpha_schedule is 0.
    """
    if alpha_schedule == 0:
        return alpha
    return min(alpha * iteration / (total * alpha_schedule), alpha)


def affinity_loss(
    affinity: Tensor,
    bg_pos: Tensor,
    fg_pos: Tensor,
    neg: Tensor,
    counts: Iterable[Tensor] | None = None,
    has_background: bool = True,
) -> Tensor:
    """AffinityNet's loss: ((bg+ + fg+)/2 + neg)/2, each term the mean of -log over its own pairs in the whole batch.

    affinity (N, directions, sources) in [0, 1]; bg_pos, fg_pos, neg have the same shape, bool or 0/1. For a part of
    a batch, `counts` are the numbers of pairs of each kind in the whole batch, and the losses of the parts add up.
    Without a background, all pairs of one class are fg+, and the loss is (fg+ + neg)/2.
    Source: Ahn, Cho and Kwak, IRNet (CVPR 2019), section 4; docs/method.md, "AffinityNet".
    """

    def term(pairs: Tensor, p: Tensor, count: Tensor) -> Tensor:
        return (pairs * -torch.log(p + EPSILON)).sum() / (count.to(p.dtype) + EPSILON)

    bg_count, fg_count, neg_count = (bg_pos.sum(), fg_pos.sum(), neg.sum()) if counts is None else counts
    positive = term(fg_pos, affinity, fg_count)
    if has_background:
        positive = (term(bg_pos, affinity, bg_count) + positive) / 2
    return (positive + term(neg, 1 - affinity, neg_count)) / 2
