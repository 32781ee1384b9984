"""What all networks share: a backbone, two modes of BatchNorm, bfloat16."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.models.backbones import build_backbone
from core.models.batchnorm import fold_batchnorm

MODES = ('normal', 'fix')
PASS_PIXELS = (
    2**24
)  # of the images of one pass at inference, such as four of 640x640 at scale 2 and their mirror images


class Network(nn.Module):
    """A backbone in one of two modes: 'normal' trains BatchNorm, 'fix' freezes its running statistics.

    All parameters outside `self.backbone` are new and learn 10 times as fast (docs/method.md, "Optimisation"). With
    `bf16` set, the network runs under bfloat16 autocast; weights and outputs stay float32.
    """

    bf16 = False

    def __init__(self, architecture: str, mode: str):
        super().__init__()
        assert mode in MODES, mode
        self.mode = mode
        self.backbone = build_backbone(architecture)

    def __call__(self, x: Tensor, *args, **kwargs):
        if not self.bf16:
            return super().__call__(x, *args, **kwargs)
        # Autocast is thread-local, and nn.DataParallel runs replicas in threads: so enter it here.
        with torch.autocast(x.device.type, torch.bfloat16):
            outputs = super().__call__(x, *args, **kwargs)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.mode == 'fix':
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def for_inference(self) -> 'Network':
        """Fold BatchNorm and return the network in evaluation mode. Call it after loading: the state dict changes."""
        return fold_batchnorm(self)


def run_with_mirror_images(function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
    """Return function(images and then their mirror images), from as many passes as PASS_PIXELS asks for.

    An image is not divided, so one at a time bounds the memory of large ones.
    """
    count = max(1, PASS_PIXELS // (images.shape[2] * images.shape[3]))
    if 2 * len(images) <= count:
        return function(torch.cat([images, images.flip(-1)]))
    parts = images.split(count)
    outputs = [function(part) for part in parts] + [function(part.flip(-1)) for part in parts]
    return tuple(torch.cat(output) for output in zip(*outputs, strict=True))


def kaiming(module: nn.Module) -> None:
    """Initialise every convolution inside with Kaiming-normal weights."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
