"""The processes of torchrun: how they meet, exchange, add up and agree. A single process needs none of this.

NCCL on GPUs, gloo on CPUs and for data outside GPUs. What they exchange: docs/method.md, "Several processes".
"""

import os
import socket
import time
from collections.abc import Callable, Iterable
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from core import UserError
from util import launcher, signals
from util.parallel.devices import pick_device
from util.store.fingerprints import Record, versions

PATIENCE = timedelta(minutes=5)  # longest wait for the other processes at the start
READING = timedelta(minutes=60)  # longest wait until all have read and hashed their files
TIMEOUT = timedelta(minutes=2)  # limit of an exchange; a dead process is noticed at once
OBEDIENCE = 5  # seconds in which a signal ends a process that is meeting the others

_store: dist.Store | None = None

# The group ----------------------------------------------------------------------------------------------------------


def start(device: str, seed: int, record: Record) -> torch.device:
    """Return the device of this process and seed its generators; under torchrun, meet the other processes first.

    Raises UserError if they cannot meet, or if they were started with other options (`record`) or code.
    """
    if not launcher.is_launched():
        return pick_device(device, seed)
    with signals.obeyed_within(OBEDIENCE):
        _meet()
        place = pick_device(device, seed)
        backend = 'cpu:gloo,cuda:nccl' if place.type == 'cuda' else 'gloo'
        rank, count = launcher.rank(), launcher.world_size()
        dist.init_process_group(backend, store=_store, timeout=TIMEOUT, rank=rank, world_size=count)
    check_equal('options', {**record.settings('batch'), 'device': place.type})
    check_equal('versions', versions())
    return place


def _meet() -> None:
    """Wait until every process has come to the store of the first one (or of torchrun)."""
    global _store
    try:
        store, _, _ = next(dist.rendezvous('env://', timeout=PATIENCE))
        # torchrun restarts all processes when one fails (--max_restarts), and its store keeps their entries.
        _store = dist.PrefixStore(f'puzzle-cam {os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)
        _wait_for_all('started', PATIENCE)
    except (RuntimeError, ValueError) as error:  # the network, or variables that torchrun did not set
        where = 'cannot meet the other processes'
        text = str(error)
        if 'EADDRINUSE' in text or 'address already in use' in text.lower():
            raise UserError(f'{where}: the port is in use: choose another one (--master_port)') from None
        if isinstance(error, ValueError):
            raise UserError(f'{where}: {text.splitlines()[0]}') from None
        raise UserError(
            f'{where}: not all came within {PATIENCE.total_seconds():.0f} s: start the same command on every '
            'node, and check --master_addr, --master_port and the network'
        ) from None


def _wait_for_all(what: str, patience: timedelta) -> None:
    """Wait until every process has come here, one second at a time, so that signals are handled."""
    _store.set(f'{what} {launcher.rank()}', '')
    until = time.monotonic() + patience.total_seconds()
    for rank in range(launcher.world_size()):
        while not _store.check([f'{what} {rank}']):
            if time.monotonic() > until:
                raise RuntimeError(f'process {rank} has not come')
            time.sleep(0.1)


def end() -> None:
    """Leave the group after a successful run."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_equal(name: str, content: dict) -> None:
    """Raise UserError in all processes, naming the first one whose content differs from process 0."""
    if not dist.is_initialized():
        return
    _wait_for_all(name, READING)
    found = [None] * launcher.world_size()
    dist.all_gather_object(found, (socket.gethostname(), content))
    first = found[0][1]
    for rank, (host, own) in enumerate(found):
        if own != first:
            differing = sorted(key for key in {*first, *own} if first.get(key) != own.get(key))
            shown = '; '.join(f'{key}: {str(own.get(key))[:40]}, there {str(first.get(key))[:40]}' for key in differing)
            raise UserError(
                f'process {rank} on {host} differs from process 0 in its {name} ({shown}): '
                'use the same options, code and data on all nodes'
            )


# Exchanges ----------------------------------------------------------------------------------------------------------


class _Gather(torch.autograd.Function):
    """The shares of all processes in order. The gradient covers the share of this process; others compute theirs."""

    @staticmethod
    def forward(ctx, share: Tensor) -> Tensor:
        share = share.contiguous()
        shares = [torch.empty_like(share) for _ in range(launcher.world_size())]
        dist.all_gather(shares, share)
        return torch.cat(shares)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.chunk(launcher.world_size())[launcher.rank()]


def gather(value: Tensor | tuple | dict) -> Tensor | tuple | dict:
    """Return the tensors of all processes, joined along the first dimension: a tensor, or a tuple or dict of tensors.

    The gradient flows only to the share of this process.
    """
    if not dist.is_initialized():
        return value
    if isinstance(value, dict):
        return {name: gather(share) for name, share in value.items()}
    if isinstance(value, tuple):
        whole = [gather(share) for share in value]
        return type(value)(*whole) if hasattr(value, '_fields') else tuple(whole)
    return _Gather.apply(value)


def own(whole: Tensor) -> Tensor:
    """Return the share of this process, a contiguous part of a batch."""
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
    found = torch.tensor(value)  # on the CPU, so that no GPU has to be waited for
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with the tensors of the first process."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_main(function: Callable[[], object]) -> object:
    """Call a function in the first process only, and return its result in all processes.

    A UserError is raised in all processes.
    """
    if not dist.is_initialized():
        return function()
    found = [None, None]
    if launcher.is_main():
        try:
            found[0] = function()
        except UserError as error:
            found[1] = str(error)
    dist.broadcast_object_list(found, 0)
    if found[1]:
        raise UserError(found[1])
    return found[0]
