"""AffinityNet: edges between objects, from a frozen ImageNet backbone (IRNet's edge branch, Ahn, Cho and Kwak 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data.tiled import TiledImage
from core.maps import strided_size
from core.models.network import Network, run_with_mirror_images


class EdgeHead(nn.Module):
    """All five stages, each reduced to 32 channels and resized to layer1, concatenated -> (N, outputs, h/4, w/4)."""

    factors = (1, 1, 2, 4, 4)  # stride of each stage divided by layer1's

    def __init__(self, channels: tuple[int, ...], outputs: int = 1):
        super().__init__()
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, 32, 1, bias=False), nn.GroupNorm(4, 32)) for inputs in channels
        )
        self.classify = nn.Conv2d(32 * len(channels), outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        h, w = features[1].shape[2:]
        reduced = []
        for reduce, x, factor in zip(self.reduce, features, self.factors, strict=True):
            x = reduce(x)
            if factor > 1:
                x = F.interpolate(x, scale_factor=factor, mode='bilinear', align_corners=False)
            reduced.append(F.relu(x)[..., :h, :w])
        return self.classify(torch.cat(reduced, 1))


class AffinityNet(Network):
    """Edge logits; only the head trains (docs/method.md, "AffinityNet")."""

    stride = 4

    def __init__(self, architecture: str):
        super().__init__(architecture, 'fix')
        self.backbone.requires_grad_(False)
        self.head = EdgeHead(self.backbone.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> edge logits (N, 1, H/4, W/4)."""
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


@torch.no_grad()
def predict_edges(model: nn.Module, images: Tensor | TiledImage, min_size: int) -> Tensor:
    """Return edges in [0, 1] at stride 4: normalised images (N, 3, h, w) -> (N, (h-1)//4+1, (w-1)//4+1).

    Images smaller than min_size are padded with zeros to it; tiles are not. The logits of image and mirror image are
    averaged.
    """
    if isinstance(images, TiledImage):
        h, w = images.size
    else:
        h, w = images.shape[2:]
        images = F.pad(images, (0, max(0, min_size - w), 0, max(0, min_size - h)))
    (logits,) = run_with_mirror_images(lambda x: (model(x),), images, AffinityNet.stride)
    logits, mirrored = logits[:, 0].float().chunk(2)
    rows, columns = strided_size((h, w))
    return torch.sigmoid((logits + mirrored.flip(-1)) / 2)[:, :rows, :columns]
