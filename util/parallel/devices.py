"""Where to compute: device, precision, compilation, seeds, and glibc's malloc."""

import ctypes
import random
import sys

import numpy as np
import torch
from torch import nn

from core import UserError
from util import launcher

HALVES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


def pick_device(name: str, seed: int | None = None) -> torch.device:
    """Return a device; 'auto': the GPUs if there are any, otherwise the CPU. With a seed, also seed every generator.

    Under torchrun each process gets its own GPU. Raises UserError if the device cannot be used.
    """
    if seed is not None:
        seed_everything(seed)
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if launcher.is_launched() and name.startswith('cuda'):
        name = _own_gpu(name)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f'--device {name}: not usable here; auto picks an available device') from None
    if device.type not in ('cpu', 'cuda'):
        raise UserError(f'--device {name}: is neither cpu nor cuda')
    if device.type == 'cpu':
        keep_freed_memory()
    return device


def _own_gpu(name: str) -> str:
    """Return the GPU of this process of torchrun, and make it the current one."""
    own, visible = launcher.local_rank(), torch.cuda.device_count()
    if name != 'cuda':
        raise UserError(f'--device {name}: under torchrun each process takes its own GPU: leave it out')
    if own >= visible:
        raise UserError(f'--nproc_per_node: process {own} of this node has no GPU, {visible} are visible: lower it')
    torch.cuda.set_device(own)  # NCCL and pinned memory would otherwise take memory of GPU 0
    return f'cuda:{own}'


def count_devices(count: int, device: torch.device) -> int:
    """Return how many devices divide `count` images or groups of them: the largest number of visible GPUs that does.

    It is 1 for the CPU and for 'cuda:1', and so for each process of torchrun.
    """
    visible = torch.cuda.device_count() if device.type == 'cuda' and device.index is None else 1
    return max(number for number in range(1, visible + 1) if count % number == 0)


def set_precision(model: nn.Module, precision: str) -> None:
    """Set the precision of a network: 'tf32' lets GPUs round the factors of products to 10 bits.

    'bf16' and 'fp16' are applied by core.models.network.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    model.half = HALVES.get(precision)


def to_device(model: nn.Module, device: torch.device, precision: str = 'fp32', compiled: bool = False) -> nn.Module:
    """Move a network to its device, channels last: the same sums, faster (1.4 times for mobilenet_v2 on a CPU).

    With `compiled`, torch.compile generates its code when it first runs. Raises UserError if this torch cannot.
    """
    set_precision(model, precision)
    model = model.to(device, memory_format=torch.channels_last)
    if compiled:
        compile_in_place(model)
    return model


def compile_in_place(model: nn.Module) -> None:
    """Compile a network in place, so the names of its state dict stay; at inference for images of any size."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # compiled code would draw other random numbers
            module.forward = torch.compiler.disable(module.forward)
    try:
        model.compile(dynamic=None if model.training else True)
    except RuntimeError as error:
        raise UserError(f'--compile: {str(error).splitlines()[0]}: leave it out') from None


def seed_everything(seed: int) -> None:
    """Seed every generator of weights, dropout and data order. Augmentation has its own seeds."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def glibc() -> ctypes.CDLL | None:
    """Return the C library if it is GNU's, None elsewhere."""
    library = ctypes.CDLL(None) if sys.platform == 'linux' else None
    return library if hasattr(library, 'gnu_get_libc_version') else None


def keep_freed_memory() -> None:
    """Keep freed memory in malloc for the next layer or image.

    By default glibc returns large blocks to the system and gets them back zeroed, with a page fault per 4 kB. That is a
    third of the time of a training step of mobilenet_v2 on 8 images of 512 pixels.
    """
    if library := glibc():
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        library.mallopt(m_mmap_max, 0)
        library.mallopt(m_trim_threshold, -1)


def return_large_blocks() -> None:
    """Return freed blocks of 32 MB or more to the system at once: the maps of a large image take hundreds of MB each.

    32 MB is the largest limit that glibc takes.
    """
    if library := glibc():
        m_mmap_threshold, m_mmap_max = -3, -4  # malloc.h
        library.mallopt(m_mmap_threshold, 2**25)
        library.mallopt(m_mmap_max, 2**16)


def release_freed_memory() -> None:
    """Return freed memory to the system. Forked children would share its pages, and each write would copy one."""
    if library := glibc():
        library.malloc_trim(0)
