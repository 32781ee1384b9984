"""BatchNorm: folding it into convolutions for inference, and normalising without updating its running statistics."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Return the network in evaluation mode with the BatchNorms of its backbone folded into the convolutions.

    Same function up to rounding, without the memory passes that cost a CPU a quarter of its time. Call it after
    loading: the state dict changes.
    """
    network.eval()
    network.backbone = _fold(network.backbone)
    return network.eval()


def _fold(module: nn.Module) -> nn.Module:
    if not any(module.children()):
        return module
    try:
        if _takes_one_tensor(module):
            return fuse(module)
    except Exception:  # forward cannot be traced, for instance because it depends on the input's shape
        pass
    for name, child in module.named_children():
        setattr(module, name, _fold(child))
    return module


def _takes_one_tensor(module: nn.Module) -> bool:
    """Return whether forward has a single argument. Tracing would fix the branches that optional ones decide."""
    (first, *others) = inspect.signature(module.forward).parameters.values()
    return not others and first.kind is first.POSITIONAL_OR_KEYWORD


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Inside, training BatchNorm normalises by its batch as usual but does not update the running statistics.

    It updates copies instead. Without copies, fewer tensors would be saved for the backward pass, and
    torch.utils.checkpoint would report another function.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, value in buffers.items():
            setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value)
