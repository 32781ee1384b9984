"""DeepLabv3+ (Chen et al., ECCV 2018; docs/method.md, "DeepLabv3+") and its multi-scale inference."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import UserError
from core.models.network import Network, kaiming, run_with_mirror_images

Norm = Callable[[int], nn.Module]


def _unit(inputs: int, outputs: int, kernel: int, norm: Norm, dilation: int = 1, dropout: float = 0) -> nn.Sequential:
    """Size-preserving convolution without bias, norm, ReLU and optional dropout."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, norm(outputs), nn.ReLU(inplace=True), *([nn.Dropout(dropout)] if dropout else []))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling at output stride 16: (N, inputs, h, w) -> (N, 256, h, w)."""

    def __init__(self, inputs: int, norm: Norm):
        super().__init__()
        self.branches = nn.ModuleList([_unit(inputs, 256, 1, norm)])
        self.branches.extend(_unit(inputs, 256, 3, norm, dilation) for dilation in (6, 12, 18))
        self.pooled = _unit(inputs, 256, 1, norm)
        self.project = _unit(5 * 256, 256, 1, norm, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))


class Decoder(nn.Module):
    """ASPP's output and layer1's features -> logits at layer1's size, (N, num_classes, h/4, w/4)."""

    def __init__(self, low_channels: int, num_classes: int, norm: Norm):
        super().__init__()
        self.low = _unit(low_channels, 48, 1, norm)
        self.fuse = nn.Sequential(_unit(256 + 48, 256, 3, norm, dropout=0.5), _unit(256, 256, 3, norm, dropout=0.1))
        self.classify = nn.Conv2d(256, num_classes, 1)

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        low = self.low(low)
        x = torch.cat([F.interpolate(x, low.shape[2:], mode='bilinear', align_corners=True), low], 1)
        del low  # without gradients, memory is freed as soon as nothing refers to it
        return self.classify(self.fuse(x))


class DeepLabV3Plus(Network):
    """ASPP on layer4 and a decoder with layer1. use_gn: GroupNorm with 4 groups in the head instead of BatchNorm."""

    stride = 1  # image pixels per logit

    def __init__(self, backbone: str, num_classes: int, mode: str = 'fix', use_gn: bool = True):
        super().__init__(backbone, mode)
        norm = (lambda channels: nn.GroupNorm(4, channels)) if use_gn else nn.BatchNorm2d
        self.aspp = ASPP(self.backbone.channels[-1], norm)
        self.decoder = Decoder(self.backbone.channels[1], num_classes, norm)
        kaiming(self.aspp)
        kaiming(self.decoder)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, C+1, H, W)."""
        features = self.backbone(x)
        logits = self.decoder(self.aspp(features[-1]), features[1])
        del features
        return F.interpolate(logits, x.shape[2:], mode='bilinear', align_corners=True)


@torch.no_grad()
def multi_scale_logits(model: nn.Module, images: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum logits over scales and mirror image: normalised images (N, 3, h_s, w_s) -> (N, C+1, h, w).

    Raises UserError if they are not finite.
    """

    def resized_logits(x):
        return (F.interpolate(model(x).float(), size, mode='bilinear', align_corners=False),)

    total = 0
    for batch in images:
        (logits,) = run_with_mirror_images(resized_logits, batch)
        logits, mirrored = logits.chunk(2)
        total = logits.add_(total).add_(mirrored.flip(-1))
        del logits, mirrored
    if not torch.isfinite(total).all():
        raise UserError('the logits are not finite: the model has diverged, train it again')
    return total
