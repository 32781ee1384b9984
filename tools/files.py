"""The npz files between stages, and how every output comes to be: whole, or not at all. No pickle is ever read."""

import fcntl
import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tools import UserError

# What numpy and zipfile raise for files that are not what they should be; NotImplementedError is a RuntimeError.
DAMAGES = (
    OSError,
    MemoryError,
    ValueError,
    KeyError,
    EOFError,
    AttributeError,
    RuntimeError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
)

REPAIR = '; its stage makes it again with --repair'


def write_bytes(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, then rename: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with temporary.open('wb') as file:
            _lock(file)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it has its name: a machine that goes down leaves no half file
            os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f'cannot be written: {error.strerror or error}', str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; a writer that lives holds a lock on its own."""
    for path in folder.glob('.*.tmp'):
        try:
            with path.open('r+b') as file:  # over NFS only what is open for writing can be locked
                if _lock(file):
                    path.unlink(missing_ok=True)
        except OSError:
            pass  # its writer has just renamed it, or it is another user's


def _lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed; False where another holds it, or where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_cam(path: Path, keys: np.ndarray, cam: np.ndarray, hr_cam: np.ndarray) -> None:
    """CAMs in [0, 1]: keys (K+1,), cam (K, h/4, w/4), hr_cam (K, h, w); kept as float16."""
    _write_npz(path, keys=keys, cam=cam.astype(np.float16), hr_cam=hr_cam.astype(np.float16))


def write_rw(path: Path, keys: np.ndarray, rw: np.ndarray) -> None:
    """CAMs after the random walk: keys (K+1,), rw (K, h/4, w/4), scaled to a maximum of 1 and kept as float16."""
    largest = rw.max(initial=0)
    _write_npz(path, keys=keys, rw=(rw / largest if largest > 0 else rw).astype(np.float16))


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f'{path}: "{name}" would not be finite: the model diverged, train it anew')
    # As np.savez_compressed, but at zlib's first level (a fourth of the time for a tenth more bytes) and without dates:
    # the same arrays are the same bytes.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f'{name}.npy')
            archive.writestr(entry, file.getvalue(), compress_type=zipfile.ZIP_DEFLATED, compresslevel=1)
    write_bytes(path, buffer.getvalue())


def maps_inside(path: Path) -> list[str]:
    """The names of the arrays of an npz file; [] where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except DAMAGES:
        return []


def read_maps(
    path: Path, name: str, num_classes: int, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """keys (K+1,) and the maps called `name` (K, h, w) float32 of a file that `write_cam` or `write_rw` made.

    Raises UserError naming the file: not such a file, maps that do not go with the keys, classes beyond num_classes,
    values that are not finite, maps that are not of the size (h, w).
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, maps = file['keys'], file[name]
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except DAMAGES as error:
        raise UserError(
            f'{path}: no npz file with "keys" and "{name}", or damaged ({type(error).__name__}){REPAIR}'
        ) from None
    if (
        keys.ndim != 1
        or maps.ndim != 3
        or len(keys) != len(maps) + 1
        or keys.dtype.kind not in 'iu'
        or maps.dtype.kind != 'f'
    ):
        raise UserError(
            f'{path}: "{name}" of {maps.dtype}{maps.shape} does not go with "keys" of {keys.dtype}{keys.shape}'
        )
    if keys[0] != 0 or (keys[1:] <= keys[:-1]).any() or keys[-1] > num_classes:
        raise UserError(f'{path}: keys {keys.tolist()} are not 0 and rising classes up to {num_classes} (--dataset)')
    if size is not None and maps.shape[1:] != tuple(size):
        raise UserError(f'{path}: "{name}" is {maps.shape[2]}x{maps.shape[1]}, the image is {size[1]}x{size[0]}')
    maps = maps.astype(np.float32)
    lowest, highest = maps.min(initial=0), maps.max(initial=0)  # a nan comes through both
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise UserError(f'{path}: "{name}" holds values that are not finite{REPAIR}')
    if lowest < 0 or highest > 1.001:
        raise UserError(f'{path}: "{name}" holds values outside 0 to 1{REPAIR}')
    return keys, maps
