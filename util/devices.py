"""Where to compute: device, precision, one GPU or several, seeds."""

import random
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core import UserError
from util import launcher
from util.memory import keep_freed_memory

HALVES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


def pick_device(name: str, seed: int | None = None) -> torch.device:
    """Return a device; 'auto' is the GPUs if there are any, else the CPU. With a seed, also seed every generator.

    Under torchrun a GPU is that of the process. Raises UserError if the device cannot be used.
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
        raise UserError(f'--device {name}: under torchrun each process takes a GPU of its own: leave it out')
    if own >= visible:
        raise UserError(f'--nproc_per_node: process {own} of this node has no GPU, {visible} are visible: lower it')
    torch.cuda.set_device(own)  # for NCCL and pinned memory, which would otherwise take memory of GPU 0
    return f'cuda:{own}'


def devices_for(replicas: int, device: torch.device) -> int:
    """Return how many devices share a batch split into `replicas`: the largest number of visible GPUs that divides it.

    It is 1 for 'cuda:1' (so for each process of torchrun) and the CPU. Each device then runs replicas / devices chunks
    (core/models/batchnorm.py).
    """
    visible = torch.cuda.device_count() if device.type == 'cuda' and device.index is None else 1
    return max(count for count in range(1, visible + 1) if replicas % count == 0)


def to_device(model: nn.Module, device: torch.device, precision: str = 'fp32', compiled: bool = False) -> nn.Module:
    """Move a model to its device, channels last: the same sums, faster (1.4 times for mobilenet_v2 on a CPU).

    Precision 'tf32' lets GPUs round the factors of products to 10 bits; 'bf16' and 'fp16' are applied by
    core.models.network. With `compiled`, torch.compile generates the code of the network when it first runs. Raises
    UserError if this torch cannot.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    model.half = HALVES.get(precision)
    model = model.to(device, memory_format=torch.channels_last)
    if compiled:
        _compile(model)
    return model


def _compile(model: nn.Module) -> None:
    """Compile a network in place, so the names of its state dict stay; at inference for images of any size."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # compiled code would draw other random numbers
            module.forward = torch.compiler.disable(module.forward)
    try:
        model.compile(dynamic=None if model.training else True)
    except RuntimeError as error:
        raise UserError(f'--compile: {str(error).splitlines()[0]}: leave it out') from None


def parallel(
    model: nn.Module, device: torch.device, devices: int, precision: str = 'fp32', compiled: bool = False
) -> nn.Module:
    """Move a model to its device, in nn.DataParallel if several GPUs share the batch (split as published).

    Under torchrun, in DistributedDataParallel, and as the part of the batch that this process has. Gradients are
    summed: each process has that of its part in the loss of the whole batch.
    """
    if compiled and devices > 1:
        raise UserError('--compile: start a process per GPU with torchrun, or pass --device cuda:0')
    model = to_device(model, device, precision, compiled)
    if devices > 1:
        return nn.DataParallel(model, device_ids=list(range(devices)))
    if not dist.is_initialized():
        return model
    model.at_part(launcher.rank(), launcher.world_size())
    ids = [device] if device.type == 'cuda' else None
    with warnings.catch_warnings():  # torch 2.14 has another name for an option, which torch 2.6 does not know
        warnings.simplefilter('ignore', FutureWarning)
        model = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    model.register_comm_hook(None, _sum_gradients)
    return model


def _sum_gradients(_, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Add a bucket of gradients over the processes, where DistributedDataParallel would take their mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside nn.DataParallel or DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, (nn.DataParallel, DistributedDataParallel)) else model


def seed_everything(seed: int) -> None:
    """Seed every generator of weights, dropout and data order. Augmentation has its own seeds."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
