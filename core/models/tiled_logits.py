"""Class probabilities of a large image: its logits by tiles at a lower resolution, and their softmax part by part."""

import torch
import torch.nn.functional as F
from torch import Tensor

from core import STRIDE, UserError
from core.data.tiled import TiledImage
from core.models.network import Network

FINEST = 4  # pixels of the image, at the least, per kept logit: the resolution of DeepLabv3+ and CSeg_Model


class TiledProbabilities:
    """Class probabilities (C+1, h, w) of which parts are computed on request: probabilities[:, rows, columns].

    Kept are the logits of each scale, summed over image and mirror image: the mean of every 4x4 pixels up to the scale
    1.0, of 8x8 up to 2.0, of 16x16 above it. A part is the softmax of their sum over scales, interpolated bilinearly.
    """

    def __init__(self, model: Network, images: list[Tensor | TiledImage], size: tuple[int, int]):
        """Run the network on an image of the size (h, w): at each scale in tiles, or normalised (1, 3, h_s, w_s).

        Raises UserError if the logits are not finite.
        """
        self.size = size
        self.scales: list[tuple[Tensor, list[float]]] = []  # logits (C+1, rows, columns), and their number per pixel
        for batch in images:
            scaled = batch.size if isinstance(batch, TiledImage) else batch.shape[2:]
            ratios = [new / old for new, old in zip(scaled, size, strict=True)]
            self.scales.append((_mean_logits(model, batch, _stride(max(ratios))), ratios))

    @property
    def nbytes(self) -> int:
        return sum(logits.nbytes for logits, _ in self.scales)

    @torch.no_grad()
    def __getitem__(self, part: tuple[slice, slice, slice]):
        """Return a part (C+1, h', w') float32 as an array."""
        _, *sides = part
        total = 0
        for logits, ratios in self.scales:
            at = []
            for side, length, ratio in zip(sides, self.size, ratios, strict=True):
                pixels = torch.arange(length, device=logits.device)[side]
                at.append((pixels + 0.5) * ratio / _stride(max(ratios)) - 0.5)
            total = _interpolate(_interpolate(logits, 1, at[0]), 2, at[1]).add_(total)
        return torch.softmax(total, 0).cpu().numpy()


def _stride(scale: float) -> int:
    """Return the pixels at a scale per kept logit."""
    stride = FINEST
    while stride < FINEST * scale and stride < STRIDE:
        stride *= 2
    return stride


@torch.no_grad()
def _mean_logits(model: Network, images: Tensor | TiledImage, stride: int) -> Tensor:
    """Return the logits (C+1, h_s/stride, w_s/stride) of an image and its mirror image, summed."""

    def mean_logits(x):
        logits, (h, w) = model(torch.cat([x, x.flip(-1)])).float(), x.shape[2:]
        if logits.shape[2:] != (h, w):  # a cell is a square of pixels also where the last one is incomplete
            rounded = [side * model.stride for side in logits.shape[2:]]
            logits = F.interpolate(logits, rounded, mode='bilinear', align_corners=False)[..., :h, :w]
        logits, mirrored = logits.chunk(2)
        return (F.avg_pool2d(logits + mirrored.flip(-1), stride, ceil_mode=True, count_include_pad=False),)

    (logits,) = images.blend(mean_logits, stride) if isinstance(images, TiledImage) else mean_logits(images)
    if not torch.isfinite(logits).all():
        raise UserError('the logits are not finite: the model has diverged, train it again')
    return logits[0]


def _interpolate(maps: Tensor, dim: int, at: Tensor) -> Tensor:
    """Interpolate maps linearly along a dimension, at positions between its first and its last element."""
    at = at.clamp(0, maps.shape[dim] - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=maps.shape[dim] - 1)
    weight = (at - low).view([-1 if i == dim else 1 for i in range(3)])
    return torch.lerp(maps.index_select(dim, low), maps.index_select(dim, high), weight)
