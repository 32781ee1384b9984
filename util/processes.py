"""The processes of torchrun: how they meet, share a batch, add up and agree. One process is the special case.

NCCL on GPUs, gloo on CPUs and for what is not on a GPU. What they exchange: docs/method.md, "Several processes".
"""

import hashlib
import io
import json
import os
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from core import UserError
from util import launcher, stage
from util.devices import pick_device
from util.fingerprint import fingerprint, versions

PATIENCE = timedelta(minutes=5)  # to wait for the other processes at the start
TIMEOUT = timedelta(minutes=30)  # of an exchange: a process that dies is noticed at once, one that hangs after this
STORE_OUTLIVES = 3  # seconds that the first process waits before it ends with an error

_store: dist.Store | None = None


# The group ----------------------------------------------------------------------------------------------------------


def start(args: Namespace) -> torch.device:
    """Return the device of this process and seed its generators; under torchrun, meet the other processes first.

    Raises UserError if they cannot meet, or if they were started with other options or code.
    """
    if not launcher.is_launched():
        return pick_device(args.device, args.seed)
    _meet()
    device = pick_device(args.device, args.seed)
    dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo', store=_store, timeout=TIMEOUT,
                            rank=launcher.rank(), world_size=launcher.world_size())  # fmt: skip
    unrecorded = {name: vars(args).get(name) for name in ('micro_batches', 'sync_bn')}
    check_equal('options', fingerprint(args, device=device.type, **unrecorded))
    check_equal('versions', versions())
    return device


def _meet() -> None:
    """Wait until every process has come to the store of the first one (or of torchrun)."""
    global _store
    rank, count = launcher.rank(), launcher.world_size()
    try:
        with _quiet():
            store, _, _ = next(dist.rendezvous('env://', timeout=PATIENCE))
            _store = dist.PrefixStore('puzzle-cam', store)
            _store.set(f'host {rank}', socket.gethostname())
            _store.wait([f'host {i}' for i in range(count)], PATIENCE)
    except (RuntimeError, ValueError) as error:  # of the network; of an environment that torchrun did not write
        where = f'process {rank} of {count} cannot meet the others'
        text = str(error)
        if 'EADDRINUSE' in text or 'address already in use' in text.lower():
            raise UserError(f'{where}: the port is in use: choose another one (--master_port)') from None
        if isinstance(error, ValueError):
            raise UserError(f'{where}: {text.splitlines()[0]}') from None
        raise UserError(
            f'{where}: not all came within {PATIENCE.total_seconds():.0f} s: start the same command on every '
            'node, and check --master_addr, --master_port and the network'
        ) from None
    stage.is_news = _is_news


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, nothing is printed on stderr: torch prints each attempt to connect, with its stack."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _is_news(line: str) -> bool:
    """Return whether no other process has printed the same error line yet."""
    if stage.ENDED in line:
        return True  # the process that ended may have had the store
    name = hashlib.sha256(line.encode()).hexdigest()
    try:
        with _quiet():
            number = _store.add(name, 1)
            # The first process may have the store: wait for the others to ask.
            until = time.monotonic() + STORE_OUTLIVES
            while launcher.is_main() and _store.add(name, 0) < launcher.world_size() and time.monotonic() < until:
                time.sleep(0.1)
        return number == 1
    except RuntimeError:
        return True


def end() -> None:
    """Leave the group after a run that went well."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_equal(name: str, content: dict) -> None:
    """Raise UserError if the content, anything that JSON knows, is not that of the first process."""
    if not dist.is_initialized():
        return
    own = json.dumps(content, sort_keys=True)
    if launcher.is_main():
        _store.set(name, own)
    largest(0)  # wait for the first process, and notice if it ends
    first = _store.get(name).decode()
    if own != first:
        first, own = json.loads(first), json.loads(own)
        differing = sorted(key for key in {*first, *own} if first.get(key) != own.get(key))
        shown = '; '.join(f'{key}: {str(own.get(key))[:40]}, there {str(first.get(key))[:40]}' for key in differing)
        raise UserError(
            f'process {launcher.rank()} on {socket.gethostname()} differs from process 0 in its {name} ({shown}): '
            'use the same options, code and data on all nodes'
        )
    largest(0)  # wait for those that find a difference


def count() -> int:
    """Return the number of processes."""
    return launcher.world_size()


# Exchanges ----------------------------------------------------------------------------------------------------------


class _Gather(torch.autograd.Function):
    """The parts of all processes in order. Its gradient is the part of this process: the others compute theirs."""

    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(launcher.world_size())]
        dist.all_gather(parts, part)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.chunk(launcher.world_size())[launcher.rank()]


def gather(value: Tensor | tuple | dict) -> Tensor | tuple | dict:
    """Return what all processes have, joined along the first dimension: tensors, or tuples or a dict of them.

    The gradient flows to the part of this process alone.
    """
    if not dist.is_initialized():
        return value
    if isinstance(value, dict):
        return {name: gather(part) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = [gather(part) for part in value]
        return type(value)(*parts) if hasattr(value, '_fields') else tuple(parts)
    return _Gather.apply(value)


def own(whole: Tensor) -> Tensor:
    """Return the part of this process: a contiguous share of a batch of all."""
    return whole.chunk(launcher.world_size())[launcher.rank()] if dist.is_initialized() else whole


def add(value: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Return the sum over the processes."""
    if not dist.is_initialized():
        return value
    total = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value.clone()
    dist.all_reduce(total)
    return total.numpy() if isinstance(value, np.ndarray) else total


def largest(value: int) -> int:
    """Return the largest value of all processes."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value)  # on the CPU: a GPU need not be waited for
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_main(function: Callable[[], object]) -> object:
    """Return what a function returns in the first process, the only one that calls it.

    It may be anything that torch.load takes with weights_only. A UserError is raised in all processes.
    """
    if not dist.is_initialized():
        return function()
    result = error = None
    if launcher.is_main():
        try:
            result = function()
        except UserError as found:
            error = str(found)
    buffer = io.BytesIO()
    torch.save((result, error), buffer)
    length = torch.tensor(buffer.tell())
    dist.broadcast(length, 0)
    content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    content = content if launcher.is_main() else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, 0)
    if not launcher.is_main():
        result, error = torch.load(io.BytesIO(content.numpy().tobytes()), map_location='cpu', weights_only=True)
    if error:
        raise UserError(error)
    return result


# BatchNorm ----------------------------------------------------------------------------------------------------------


class _Add(torch.autograd.Function):
    """The sum over the processes, through which gradients flow: each process has a part of the loss."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return add(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return add(gradient)


class _SyncBatchNorm(nn.BatchNorm2d):
    """torch's SyncBatchNorm on the CPU. All processes have as many images."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = launcher.world_size() * x.numel() / x.shape[1]
        mean = _Add.apply(x.sum((0, 2, 3))) / count
        centred = x - mean.view(1, -1, 1, 1)
        variance = _Add.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def synchronise(model: nn.Module, device: torch.device) -> None:
    """Make BatchNorm train on the statistics of the whole batch (--sync_bn); one process alone does already.

    Call it before the model moves to its device. Parameters and the names of the state dict stay.
    """
    if launcher.world_size() == 1:
        return
    if device.type == 'cuda':
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _SyncBatchNorm  # torch's takes tensors of GPUs only
