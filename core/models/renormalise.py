"""Conversion of normalised images for a network that was trained with another mean and standard deviation."""

import torch
from torch import Tensor, nn

from core.data.transforms import MEAN, STD


class Renormalise(nn.Module):
    """Images normalised with the ImageNet mean and standard deviation -> the same images with `mean` and `std`.

    persistent: both are part of the state dict, as `scale` and `shift`.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], persistent: bool = False):
        super().__init__()
        mean, std = torch.tensor((mean, MEAN)), torch.tensor((std, STD))
        self.register_buffer('scale', (std[1] / std[0]).view(3, 1, 1), persistent)
        self.register_buffer('shift', ((mean[1] - mean[0]) / std[0]).view(3, 1, 1), persistent)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift
