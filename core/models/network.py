"""What all networks share: a backbone, two modes of BatchNorm, half precision, parts of a batch."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from core.models.backbones import build_backbone
from core.models.batchnorm import fold_batchnorm, running_statistics_kept

MODES = ('normal', 'fix')
PASS_PIXELS = (
    2**24
)  # of the images of one pass at inference, such as four of 640x640 at scale 2 and their mirror images


class Network(nn.Module):
    """A backbone in one of two modes: 'normal' trains BatchNorm, 'fix' freezes its running statistics.

    All parameters outside `self.backbone` are new and learn 10 times as fast (docs/method.md, "Optimisation"). With
    `half` set, the network runs under autocast to that type; weights and outputs stay float32. With `recompute` set, a
    forward pass keeps nothing for the backward pass, which repeats it: of several passes only one has its graph.
    """

    half: torch.dtype | None = None
    recompute = False
    part = 0

    def __init__(self, architecture: str, mode: str):
        super().__init__()
        assert mode in MODES, mode
        self.mode = mode
        self.backbone = build_backbone(architecture)

    def __call__(self, x: Tensor, *args, **kwargs):
        call = super().__call__
        if self.recompute and torch.is_grad_enabled():
            call = partial(checkpoint, call, use_reentrant=False, context_fn=self._contexts)
        with ExitStack() as stack:
            if self.part > 0:
                stack.enter_context(running_statistics_kept(self))
            if self.half is None:
                return call(x, *args, **kwargs)
            # Autocast is thread-local, and nn.DataParallel runs replicas in threads: so enter it here.
            stack.enter_context(torch.autocast(x.device.type, self.half))
            outputs = call(x, *args, **kwargs)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)

    def _contexts(self) -> tuple:
        """Return those of a first and of a repeated pass: only the first one moves the running statistics."""
        return nullcontext(), running_statistics_kept(self)

    def at_part(self, part: int, parts: int) -> None:
        """Say which part of a batch the network will see: only the first one moves the running statistics."""
        self.part = part
        for module in self.modules():
            if isinstance(module, Dropout):
                module.part, module.parts = part, parts

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


class Dropout(nn.Dropout):
    """Dropout of a part of a batch: its mask is cut out of that of the whole batch, so it does not depend on the split.

    Every part must begin with the same state of the random numbers.
    """

    part, parts = 0, 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.parts == 1:
            return super().forward(x)
        by_channel = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if by_channel else torch.contiguous_format  # masks are drawn in memory order
        shape = (self.parts * len(x), *x.shape[1:])
        whole = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout).fill_(1)
        return x * super().forward(whole).chunk(self.parts)[self.part].clone()


def kaiming(module: nn.Module) -> None:
    """Initialise every convolution inside with Kaiming-normal weights."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
