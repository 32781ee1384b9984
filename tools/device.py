"""The one place that knows devices and processes: where to compute, how to spread a batch, how to feed it."""

import ctypes
import random
import signal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from tools import UserError


def pick_device(name: str) -> torch.device:
    """'auto' is the GPUs if there are any, else the CPU. Raises UserError for a device that cannot be used."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f'--device {name}: cannot be used here; auto finds what there is') from None
    if device.type not in ('cpu', 'cuda'):
        raise UserError(f'--device {name}: neither cpu nor cuda')
    if device.type == 'cpu':
        _keep_freed_memory()
    return device


def _glibc() -> ctypes.CDLL | None:
    """The C library where it is GNU's, to tune its malloc; None elsewhere."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, 'gnu_get_libc_version') else None


def _keep_freed_memory() -> None:
    """Let malloc keep what a CPU network frees for its next layer, a loader for its next image.

    Left alone it hands large blocks back to the system and takes them anew, zeroed, a page fault every 4 kB: a third of
    the time of a training step of mobilenet_v2 on 8 images of 512 pixels.
    """
    if glibc := _glibc():
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        glibc.mallopt(m_mmap_max, 0)
        glibc.mallopt(m_trim_threshold, -1)


class _Loader(DataLoader):
    """A DataLoader whose workers are forked from a heap without free pages.

    Forked, whatever Python's default: a process that starts from nothing imports torch for seconds. Pages that parent
    and workers share are copied one by one as the parent writes them, the kept ones (above) too.
    """

    def __init__(self, dataset, num_workers: int, device: torch.device, **options):
        super().__init__(
            dataset,
            num_workers=num_workers,
            pin_memory=device.type == 'cuda',
            multiprocessing_context='fork' if num_workers else None,
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # seeds workers from here: the default generator stays where it was
            **options,
        )

    def __iter__(self):
        if self.num_workers and (glibc := _glibc()):
            glibc.malloc_trim(0)
        return super().__iter__()


def devices_for(replicas: int, device: torch.device) -> int:
    """How many devices share a batch that is split among `replicas`: the largest number of visible GPUs dividing it.

    'cuda:1' and the CPU stand alone. The batch then takes replicas / devices passes (core.networks).
    """
    visible = torch.cuda.device_count() if device.type == 'cuda' and device.index is None else 1
    return max(count for count in range(1, visible + 1) if replicas % count == 0)


def place(model: nn.Module, device: torch.device, precision: str = 'fp32') -> nn.Module:
    """The model on its device, channels last: the same sums, faster (1.4 times for mobilenet_v2 on a CPU).

    precision 'tf32' lets GPUs round what they multiply to 10 bits; 'bf16' is for the network to act on (core.networks).
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    model.bf16 = precision == 'bf16'
    return model.to(device, memory_format=torch.channels_last)


def parallel(model: nn.Module, device: torch.device, devices: int, precision: str = 'fp32') -> nn.Module:
    """The model on its device, in nn.DataParallel where several GPUs share the batch (split as published)."""
    model = place(model, device, precision)
    return nn.DataParallel(model, device_ids=list(range(devices))) if devices > 1 else model


def seed_all(seed: int) -> None:
    """Seed every generator that a stage may touch: weights, dropout, data order. Augmentation has its own seeds."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class EpochSampler(Sampler):
    """Keys (epoch, position) in an order drawn from (seed, epoch) alone; `start` chooses where the next pass begins."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed
        self.start(0)

    def start(self, epoch: int, skip: int = 0) -> None:
        """The next pass is that of an epoch, without its first `skip` samples."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter([(self.epoch, int(position)) for position in order[self.skip :]])


def training_loader(dataset, batch_size: int, num_workers: int, seed: int, device: torch.device) -> DataLoader:
    """Shuffled batches, the incomplete last one dropped (as published)."""
    if len(dataset) < batch_size:
        raise UserError(f'--batch_size {batch_size}: the training list has only {len(dataset)} images')
    return _Loader(
        dataset,
        num_workers,
        device,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), seed),
        drop_last=True,
        persistent_workers=num_workers > 0,
    )


def ordered_loader(dataset, batch_size: int | None, num_workers: int, device: torch.device) -> DataLoader:
    """Everything once, in order; batch_size None gives single samples as the data set makes them."""
    collate = _same if batch_size is None else None
    return _Loader(dataset, num_workers, device, batch_size=batch_size, collate_fn=collate)


def init_worker(worker: int) -> None:
    """What a process of a loader does first: the workers share the cores, and images are large blocks too."""
    torch.set_num_threads(1)
    _keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the main process takes care


def _same(sample):
    return sample
