"""Data loaders: shuffled batches that resume anywhere, ordered batches, workers that fail rather than hang."""

import multiprocessing.queues
import multiprocessing.util
import os
import sys
import time
import traceback
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import torch
from torch.utils.data import DataLoader

from core import UserError
from core.data.torch_datasets import EpochSampler
from util import launcher, signals
from util.parallel import processes
from util.parallel.devices import keep_freed_memory, release_freed_memory, return_large_blocks
from util.parallel.workers import exit_with_parent
from util.script import SHARED_MEMORY_FULL, WORKER_KILLED, progress


class _Loader(DataLoader):
    """A DataLoader with forked workers, which live as long as the loader.

    Forked regardless of Python's default: a spawned process imports torch for seconds. Before the fork the heap's free
    pages are released, because shared pages are copied as the parent writes to them.
    """

    def __init__(self, dataset, num_workers: int, device: torch.device, **options):
        super().__init__(
            dataset,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == 'cuda',
            multiprocessing_context='fork' if num_workers else None,
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # seeds the workers without advancing the default generator
            **options,
        )

    def __iter__(self) -> Iterator:
        if self.num_workers and self._iterator is None:
            release_freed_memory()
            multiprocessing.util.get_temp_dir()  # which the workers share; it is removed even if they are killed
        with signals.held_while_forking():
            batches = super().__iter__()  # forks the workers
        try:
            yield from batches
        except (ConnectionError, FileNotFoundError, EOFError) as error:
            if not self.num_workers or 'in DataLoader worker' in str(error):  # the data set raised it
                raise
            # A batch is fetched through a socket of its worker, which has ended. torch's SIGCHLD handler raises an
            # error with the reason: wait for it.
            time.sleep(5)
            raise OSError(WORKER_KILLED) from None


def init_worker(worker: int) -> None:
    """Set up a data-loading worker so that the main process never waits for a batch that cannot come.

    It changes how this process reports errors of its threads and of queues in the library.
    """
    torch.set_num_threads(1)  # the workers share the cores
    keep_freed_memory()
    signals.leave_to_parent()
    exit_with_parent()
    sys.excepthook = _report_error
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_give_up)


def _report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error of the thread that serves tensors, unless the main process has ended or stopped fetching."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _give_up(error: Exception, batch: object) -> None:
    """Exit when a batch cannot be sent. Python would drop it with a traceback and leave the main process waiting."""
    full = 'No space left' in str(error) or 'shared memory' in str(error)
    if not full:
        traceback.print_exception(error)
    os._exit(SHARED_MEMORY_FULL if full else 1)


def training_loader(dataset, batch_size: int, num_workers: int, seed: int, device: torch.device) -> DataLoader:
    """Return a loader of shuffled batches that drops the incomplete last one (as published).

    With several processes, each one loads its share of every batch.
    """
    if len(dataset) < batch_size:
        raise UserError(f'--batch_size {batch_size}: the training list has only {len(dataset)} images')
    return _Loader(
        dataset,
        num_workers,
        device,
        batch_size=batch_size // launcher.world_size(),
        sampler=EpochSampler(len(dataset), seed, batch_size, launcher.rank(), launcher.world_size()),
        drop_last=True,
    )


def ordered_loader(dataset, batch_size: int | None, num_workers: int, device: torch.device) -> DataLoader:
    """Return a loader of all samples, once and in order; batch_size None yields the data set's own batches.

    Process r of P loads every P-th batch, from batch r on: together the same batches as one process.
    """
    if batch_size is None:
        return _Loader(dataset, num_workers, device, batch_size=None, collate_fn=_unchanged)
    if launcher.world_size() == 1:
        return _Loader(dataset, num_workers, device, batch_size=batch_size)
    batches = [range(i, min(i + batch_size, len(dataset))) for i in range(0, len(dataset), batch_size)]
    shared = batches[launcher.rank() :: launcher.world_size()]
    return _Loader(dataset, num_workers, device, batch_sampler=shared)


def gather_rows(loader: DataLoader, batches: list[np.ndarray]) -> np.ndarray:
    """Return the rows (N, columns) float32 of an ordered loader's batches, in the order of its data set.

    Each process passes the rows of its share of the batches and gets the rows of all.
    """
    if launcher.world_size() == 1:
        return np.concatenate(batches)
    columns = processes.largest(batches[0].shape[1] if batches else 0)
    rows = np.zeros((len(loader.dataset), columns), np.float32)
    for positions, batch in zip(loader.batch_sampler, batches, strict=True):
        rows[positions] = batch
    return processes.add(rows)


def batches_on_device(dataset, num_workers: int, device: torch.device, description: str) -> Iterator:
    """Yield (ids, images, pixels) of a MultiScaleDataset with a progress bar, the pixels moved to the device.

    Images in tiles are loaded one at a time, in this process: the next ones might not fit in memory.
    """
    if dataset.tile:
        return_large_blocks()
        num_workers = 0
    loader = ordered_loader(dataset, None, num_workers, device)
    for ids, images, pixels in progress(loader, description):
        yield ids, images, [scaled.to(device, non_blocking=True) for scaled in pixels]


def _unchanged(sample):
    return sample
