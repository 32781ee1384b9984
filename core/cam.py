"""Class activation maps: while training, over scales for a whole image, and as predictions (METHOD, sections 3, 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import STRIDE

EPSILON = 1e-5


def make_cam(maps: Tensor) -> Tensor:
    """Class maps (N, C, h, w) before ReLU -> CAMs in [0, 1], each map by its own maximum."""
    maps = F.relu(maps)
    largest = maps.amax((2, 3), keepdim=True)
    return F.relu(maps - EPSILON) / (largest + EPSILON)


def strided_size(size: tuple[int, int], stride: int = 4) -> tuple[int, int]:
    """(h, w) at every `stride`-th pixel: ((h-1)//stride + 1, ...)."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


@torch.no_grad()
def multi_scale_cam(
    classifier: nn.Module, images: list[Tensor], labels: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """CAMs of the present classes, summed over scales and mirror image.

    images: the normalised image (3, h_s, w_s) at each scale; labels (C,) multi-hot, K present; size (h, w).
    Returns cam (K, (h-1)//4+1, (w-1)//4+1) and hr_cam (K, h, w), each map divided by its maximum + 1e-5.
    """
    h, w = size
    rounded = (-(-h // STRIDE) * STRIDE, -(-w // STRIDE) * STRIDE)
    present = labels.bool()
    cam, hr_cam = 0, 0
    for image in images:
        _, maps = classifier(torch.stack([image, image.flip(-1)]), with_cam=True)
        maps = F.relu(maps[:, present].float())
        maps = (maps[0] + maps[1].flip(-1))[None]
        cam = cam + F.interpolate(maps, strided_size(size), mode='bilinear', align_corners=False)[0]
        hr_cam = hr_cam + F.interpolate(maps, rounded, mode='bilinear', align_corners=False)[0, :, :h, :w]
    return tuple(x / (x.amax((1, 2), keepdim=True) + EPSILON) for x in (cam, hr_cam))
