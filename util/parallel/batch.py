"""How a batch is shared: BatchNorm replicas, micro-batches, processes, GPUs, behind one object called like a network.

A batch has `batch_size` images. The processes of torchrun have equal shares of it; a process passes its share through
the network in chunks, one after the other, each of which its GPUs (nn.DataParallel) may divide again. Whatever the
division, the losses and gradients equal the losses and gradients of the whole batch, and random numbers are drawn for
the whole batch. Only BatchNorm in training depends on the division: a batch is normalised in `norm_groups` groups.
"""

import warnings
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from core import UserError
from core.data.transforms import normalize
from core.models.batchnorm import running_statistics_kept
from core.models.network import Network
from util import launcher
from util.parallel import processes
from util.parallel.devices import compile_in_place, count_devices, set_precision
from util.script import progress


class SharedModel:
    """A network in training whose batches are shared. `model` is the network itself.

    whole_batch: `Run.batches` yields, and the network returns, the whole batch in every process, so a loss may mix its
        images (stage 1). A process runs its share in `chunks`, and the outputs of the other processes are gathered.
        Otherwise a process has only its share, and `micro_batches` cuts it into chunks whose losses add up.
    bn_replicas: the groups in which a whole batch is normalised where BatchNorm trains.
    micro_batches: the chunks in which a batch passes through the network, to save memory. With whole_batch only the
        inputs and outputs of a chunk are kept, and the backward pass repeats its forward pass.
    sync_bn: BatchNorm normalises the whole batch, over all processes.
    """

    def __init__(
        self,
        model: Network,
        device: torch.device,
        *,
        batch_size: int,
        micro_batches: int = 1,
        bn_replicas: int | None = None,
        sync_bn: bool = False,
        precision: str = 'fp32',
        compile: bool = False,
        whole_batch: bool = False,
    ):
        self.model, self.device, self.whole_batch = model, device, whole_batch
        self.precision, self.chunk = precision, 0
        count = launcher.world_size()
        groups = bn_replicas if whole_batch and model.mode == 'normal' else micro_batches
        divided = batch_size // micro_batches if not whole_batch else batch_size if model.mode == 'fix' else groups
        num_devices = 1 if sync_bn else count_devices(divided, device)
        if compile and num_devices > 1:
            raise UserError('--compile: start a process per GPU with torchrun, or pass --device cuda:0')
        self.chunks = max(1, groups // (num_devices * count if whole_batch else count))
        self.norm_groups = 1 if sync_bn else self.chunks * num_devices * count

        # Swap the layers that depend on the whole batch, and move the network to its device.
        self.dropouts = _share_dropout(model) if count * self.chunks > 1 and not whole_batch else []
        if sync_bn:
            _synchronise(model, device)
        set_precision(model, precision)
        model.to(device, memory_format=torch.channels_last).train()
        if compile:
            compile_in_place(model)

        # Wrap it: the repeated pass is inside the sum of the gradients.
        self.runner = _Recomputed(model) if whole_batch and micro_batches > 1 else model
        if num_devices > 1:
            self.runner = nn.DataParallel(self.runner, device_ids=list(range(num_devices)))
        elif dist.is_initialized():
            self.runner = _distribute(self.runner, device)

    def __call__(self, images: Tensor, **options) -> Tensor | tuple[Tensor, ...]:
        """Return the network's outputs for a batch in training; see above for the images that it contains."""
        if not self.whole_batch:  # a chunk of `micro_batches`
            return self._run(images, first=self.chunk == 0, **options)
        chunks = processes.own(images).chunk(self.chunks)
        outputs = [self._run(chunk, first=i == 0, **options) for i, chunk in enumerate(chunks)]
        return tuple(processes.gather(torch.cat(output)) for output in zip(*outputs, strict=True))

    def _run(self, images: Tensor, first: bool, **options) -> Tensor | tuple[Tensor, ...]:
        """Run a chunk. As under nn.DataParallel, only a batch's first chunk updates BatchNorm's running statistics."""
        with nullcontext() if first and launcher.is_main() else running_statistics_kept(self.model):
            return self.runner(images, **options)

    def receive(self, batch: dict) -> dict:
        """Return a batch of this process's loader on the device, its images both normalised and as loaded (`crops`).

        With whole_batch, return the images of all processes.
        """
        batch = self._to_device(batch)
        return _normalised(processes.gather(batch) if self.whole_batch else batch)

    @torch.no_grad()
    def infer(self, loader: DataLoader, description: str, **options) -> Iterator[tuple[dict, Tensor | tuple]]:
        """Yield each batch of a loader, prepared as by `receive`, and the network's outputs in evaluation mode."""
        self.model.eval()
        for batch in progress(loader, description):
            batch = _normalised(self._to_device(batch))
            outputs = self.runner(batch['images'], **options)
            yield batch, outputs
        self.model.train()

    def _to_device(self, batch: dict) -> dict:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def micro_batches(self, batch: dict) -> Iterator[dict]:
        """Yield the chunks of this process's share of a batch; run each one, and its backward pass, inside the loop.

        All processes draw the same random numbers and use their part. Gradients are added over the processes after the
        last chunk.
        """
        random = _random_state() if self.chunks > 1 else None
        for chunk in range(self.chunks):
            self.chunk = chunk
            for dropout in self.dropouts:
                number = launcher.rank() * self.chunks + chunk
                dropout.number, dropout.count = number, launcher.world_size() * self.chunks
            if random:
                _set_random_state(random)
            adds = chunk == self.chunks - 1 or not isinstance(self.runner, DistributedDataParallel)
            with nullcontext() if adds else self.runner.no_sync():
                yield {name: _chunk(value, self.chunks, chunk) for name, value in batch.items()}

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over the whole batch of a value that this process computed on its share."""
        return value if self.whole_batch else self.add(value)

    def add(self, value: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Return the sum over the processes of the counts in their batches of a list."""
        return processes.add(value)


class _Recomputed(nn.Module):
    """Keeps nothing of a forward pass, because the backward pass repeats it: only one chunk at a time has a graph."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, **options) -> Tensor | tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return self.network(images, **options)

        def contexts():  # first and repeated pass: only the first one updates the running statistics
            return nullcontext(), running_statistics_kept(self.network)

        return checkpoint(self.network, images, use_reentrant=False, context_fn=contexts, **options)


class _SharedDropout(nn.Dropout):
    """Dropout of a chunk of a batch: its mask is cut out of the mask of the whole batch, however it is divided.

    Every chunk must begin with the same state of the random numbers.
    """

    number, count = 0, 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.count == 1:
            return super().forward(x)
        by_channel = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if by_channel else torch.contiguous_format  # masks are drawn in memory order
        shape = (self.count * len(x), *x.shape[1:])
        whole = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout).fill_(1)
        return x * super().forward(whole).chunk(self.count)[self.number].clone()


def _share_dropout(model: nn.Module) -> list[_SharedDropout]:
    """Make the network's Dropout cut its masks out of the masks of the whole batch; return these layers."""
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for module in dropouts:
        module.__class__ = _SharedDropout
    return dropouts


def _synchronise(model: nn.Module, device: torch.device) -> None:
    """Make BatchNorm train on the statistics of the whole batch; a single process already does.

    Parameters and the names of the state dict stay. Raises UserError on CPUs, which torch's layer does not support.
    """
    if launcher.world_size() == 1:
        return
    if device.type != 'cuda':
        raise UserError('--sync_bn: torch synchronises BatchNorm on GPUs only: leave it out, or start one process')
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm) and hasattr(module, 'act'):
            # timm's BatchNorm also applies the activation, which the new layer does not.
            module.register_forward_hook(lambda norm, _, output: norm.act(output))


def _distribute(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Sum the gradients of the processes, where DistributedDataParallel would take their mean."""
    ids = [device] if device.type == 'cuda' else None
    with warnings.catch_warnings():  # torch 2.14 renamed an option; torch 2.6 has only the old name
        warnings.simplefilter('ignore', FutureWarning)
        distributed = DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)
    distributed.register_comm_hook(None, _sum_gradients)
    return distributed


def _sum_gradients(_, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


def _normalised(batch: dict) -> dict:
    return {**batch, 'images': normalize(batch['images']), 'crops': batch['images']}


def _chunk(value: Tensor | tuple, count: int, number: int) -> Tensor | tuple:
    """Return a chunk of a tensor, or of a named tuple of tensors."""
    if count == 1:
        return value
    if isinstance(value, Tensor):
        return value.chunk(count)[number]
    return type(value)(*(_chunk(tensor, count, number) for tensor in value))


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    for value, setter in zip(state, (torch.set_rng_state, torch.cuda.set_rng_state), strict=False):
        setter(value)
