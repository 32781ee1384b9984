"""Pixel counts of evaluate.py in several processes: each counts a part of the images, and the first one adds them up.

The others write theirs to a hidden file next to the result, `.{hash}.{i}of{n}.npz`, and end. The file says what was
counted, so that one of a killed command is used again only if it is the same. No torch: stage 9 imports this module and
forks.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from core import UserError
from util import launcher
from util.artifacts import NPZ_ERRORS, Folder, write_npz
from util.files import is_held, lock_path, locked, remove_leftovers
from util.fingerprint import digest, file_hashes, versions
from util.results import pack, unpack

# Of all images (thresholds, target, prediction); and of each image its classes, and T, P and TP (thresholds, K, 3).
Counts = tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]
PATIENCE = 120  # seconds to wait for a process that is not counting (yet, or any more)


class Masks(Protocol):
    """What this module asks of a data set (core.data.dataset.Dataset)."""

    class_names: tuple[str, ...]

    def image_path(self, image_id: str) -> Path: ...

    def mask_path(self, image_id: str) -> Path | None: ...


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold the lock of a result inside, or that of the part of this process; return whether it is the first one.

    When the first one leaves without an error, the parts are removed.
    """
    if not launcher.is_main():
        part = _part(path, launcher.rank())
        with locked(part.with_suffix('.lock'), f'{path} ({_who(launcher.rank())})'):
            remove_leftovers(part)
            yield False
        return
    with locked(lock_path(path), str(path)):
        remove_leftovers(path, path.with_suffix('.npz'), path.with_suffix('.tgz'))
        yield True
        for part in path.parent.glob(f'{lock_path(path).stem}.*of*.*'):
            part.unlink(missing_ok=True)


def add_up(
    path: Path, folder: Folder, dataset: Masks, ids: list[str], options: dict, count: Callable[[list[str]], Counts]
) -> Counts | None:
    """Return the counts of all images in the first process, None in the others. Call it inside `claimed`.

    `count` returns those of some images; `options` (thresholds, crf_iteration) are what they depend on besides files.
    """
    number, rank = launcher.world_size(), launcher.rank()
    own = ids[rank::number]
    if number == 1:
        return count(own)
    made_of = _identify(folder, dataset, options)
    if not launcher.is_main():
        if own and _read(_part(path, rank), made_of(own), len(own)) is None:
            total, by_image = count(own)
            write_npz(_part(path, rank), made_of=np.array(made_of(own)), total=total, **pack(by_image))
        return None
    by_image = [()] * len(ids)
    total, by_image[::number] = count(own)
    for other in range(1, min(number, len(ids))):
        more, by_image[other::number] = _wait_for(path, other, made_of, ids[other::number])
        total = total + more
    return total, by_image


def hash_masks(dataset: Masks, ids: list[str]) -> str:
    """Return a hash of the masks of images."""
    return digest(file_hashes({image_id: dataset.mask_path(image_id) for image_id in ids}))


def _identify(folder: Folder, dataset: Masks, options: dict) -> Callable[[list[str]], str]:
    """Return a function that returns a hash of all that the counts of some images depend on."""
    common = {**options, 'format': folder.kind.title, 'classes': dataset.class_names, 'versions': versions()}

    def made_of(ids: list[str]) -> str:
        stats = [folder.file(image_id).stat() for image_id in ids]
        files = [(status.st_size, status.st_mtime_ns) for status in stats]
        read = ids if options['crf_iteration'] else []
        images = file_hashes({image_id: dataset.image_path(image_id) for image_id in read})
        return digest({**common, 'ids': ids, 'files': files, 'images': images, 'masks': hash_masks(dataset, ids)})

    return made_of


def _wait_for(path: Path, rank: int, made_of: Callable[[list[str]], str], ids: list[str]) -> Counts:
    """Return the counts of the images of another process when it has written them."""
    part, expected, until = _part(path, rank), made_of(ids), 0.0
    while (counts := _read(part, expected, len(ids))) is None:
        if not until or is_held(part.with_suffix('.lock')):
            until = time.monotonic() + PATIENCE
        if time.monotonic() > until:
            raise UserError(
                f'{path}: {_who(rank)} has left no counts of the same images and options: its message says why; '
                'use the same command, code and data on all nodes'
            )
        time.sleep(0.2)
    return counts


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f'{lock_path(path).stem}.{rank + 1}of{launcher.world_size()}.npz')


def _who(rank: int) -> str:
    return f'process {rank + 1} of {launcher.world_size()}'


def _read(part: Path, made_of: str, length: int) -> Counts | None:
    """Return the counts of a part of so many images; None if it is missing, damaged or of something else."""
    try:
        with np.load(part, allow_pickle=False) as file:
            if file['made_of'] == made_of:
                return file['total'], unpack(file, length)
    except NPZ_ERRORS:
        pass
    return None
