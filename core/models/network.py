"""What all networks share: a backbone, two modes of BatchNorm, half precision."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core import STRIDE
from core.data.tiled import TiledImage
from core.maps import strided_size
from core.models.backbones import build_backbone
from core.models.batchnorm import fold_batchnorm

MODES = ('normal', 'fix')
# Pixels of one pass at inference, such as four images of 640x640 at scale 2 and their mirror images.
PASS_PIXELS = 2**24


class Network(nn.Module):
    """A backbone in one of two modes: 'normal' trains BatchNorm, 'fix' freezes its running statistics.

    All parameters outside `self.backbone` are new and learn 10 times as fast (docs/method.md, "Optimisation"). With
    `half` set, the network runs under autocast to that type; weights and outputs stay float32.
    """

    stride = STRIDE  # image pixels per output
    half: torch.dtype | None = None
    # Names, without the background, and whether there is one; set by core.models.model_file.load.
    classes: tuple[str, ...] = ()
    has_background: bool = True

    def __init__(self, architecture: str, mode: str):
        super().__init__()
        assert mode in MODES, mode
        self.mode = mode
        self.backbone = build_backbone(architecture)

    def __call__(self, x: Tensor, *args, **kwargs):
        if self.half is None:
            return super().__call__(x, *args, **kwargs)
        # Autocast is thread-local, and nn.DataParallel runs replicas in threads, so it is entered here.
        with torch.autocast(x.device.type, self.half):
            outputs = super().__call__(x, *args, **kwargs)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.mode == 'fix':
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the outputs on images of a size, both (h, w)."""
        return strided_size(size, self.stride)

    def for_inference(self) -> 'Network':
        """Fold BatchNorm and return the network in evaluation mode. Call it after loading: the state dict changes."""
        return fold_batchnorm(self)


def run_with_mirror_images(
    function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor | TiledImage, stride: int = STRIDE
) -> tuple[Tensor, ...]:
    """Return function(images and then their mirror images), computed in passes of at most PASS_PIXELS.

    A single image is not divided, unless it comes in tiles: then the maps that the function returns for tiles, at a
    stride, are blended.
    """
    if isinstance(images, TiledImage):
        both = images.blend(function, stride), images.mirror().blend(function, stride)
        return tuple(torch.cat(pair) for pair in zip(*both, strict=True))
    count = max(1, PASS_PIXELS // (images.shape[2] * images.shape[3]))
    if 2 * len(images) <= count:
        return function(torch.cat([images, images.flip(-1)]))
    passes = images.split(count)
    outputs = [function(some) for some in passes] + [function(some.flip(-1)) for some in passes]
    return tuple(torch.cat(output) for output in zip(*outputs, strict=True))


def kaiming(module: nn.Module) -> None:
    """Initialise every convolution inside with Kaiming-normal weights."""
    for inner in module.modules():
        if isinstance(inner, nn.Conv2d):
            nn.init.kaiming_normal_(inner.weight)
