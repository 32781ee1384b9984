"""The .npz files of maps: written atomically and without dates, checked when read."""

import io
import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import UserError
from core.data.files import available_memory, check_regular
from util.store.files import write_bytes

BLOCK = 2**24  # bytes that are compressed at a time
PLAIN = 'biufU'  # kinds of arrays in these files: numbers and text
PAIRS = ('if', 'uf')  # kinds of keys and maps
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}  # by version
REPAIR = '; run its stage with --repair to regenerate it'


def names_inside(path: Path) -> list[str]:
    """Return the names of the arrays of an npz file, [] if it is not one."""
    try:
        check_regular(path)
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except Exception:  # whatever a damaged file raises in NumPy
        return []


class Header(NamedTuple):
    """What an array is said to be, before it is read: a small file can unpack to gigabytes."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f'{self.dtype}{self.shape}'


class Parts(NamedTuple):
    """An array that does not exist as a whole, because it is large: its parts along the first axis are written."""

    header: Header
    parts: Iterable[np.ndarray]


def read_edge(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the edge map (h, w) float32 of a file. Raises UserError like `read_maps`."""

    def check(edge: Header) -> None:
        if len(edge.shape) != 2 or edge.dtype.kind != 'f':
            raise UserError(f'{path}: "edge" {edge} is not an edge map{REPAIR}')
        _check_size(path, 'edge', edge.shape, size)

    (edge,) = read_arrays(path, 'edge', check=check)
    return check_scores(path, 'edge', edge)


def read_maps(
    path: Path, name: str, num_classes: int, size: tuple[int, int] | None = None, kept: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return keys (K+1,) and the maps `name` (K, h, w) of a file of CAMs or random-walk CAMs: float32, or as `kept`.

    Raises UserError naming the file if it is missing or damaged, its maps and keys disagree, a class is above
    num_classes, a value is outside [0, 1], or the maps are not of the size (h, w).
    """
    other = 'it belongs to another data set: check --dataset'

    def check(keys: Header, maps: Header) -> None:
        ranks = len(keys.shape), len(maps.shape)
        if ranks != (1, 3) or keys.shape[0] != maps.shape[0] + 1 or (keys.dtype.kind + maps.dtype.kind) not in PAIRS:
            raise UserError(f'{path}: "{name}" {maps} does not match "keys" {keys}{REPAIR}')
        if maps.shape[0] > num_classes:
            raise UserError(f'{path}: has maps of {maps.shape[0]} classes, the data set has {num_classes}: {other}')
        _check_size(path, name, maps.shape, size)

    keys, maps = read_arrays(path, 'keys', name, check=check)
    if keys[0] != 0 or (keys[1:] <= keys[:-1]).any() or keys[-1] > num_classes:
        raise UserError(
            f'{path}: keys {str(keys.tolist())[:80]} are not 0 followed by increasing classes up to {num_classes}: '
            f'{other}'
        )
    return keys, check_scores(path, name, maps, kept)


def read_arrays(path: Path, *names: str, check: Callable[..., None] | None = None) -> list[np.ndarray]:
    """Return arrays of an npz file. Raises UserError naming the file if it is missing, damaged or lacks one.

    `check` is called with the Header of each, before any of them is read.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            headers = [_read_header(archive, name) for name in names]
            if check:
                check(*headers)
            needed, left = sum(header.bytes for header in headers), available_memory()
            if needed > left:
                raise UserError(f'{path}: takes {needed / 1e9:.1f} GB of memory, {left / 1e9:.1f} GB are available')
            return [_read_array(archive, name) for name in names]
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except PermissionError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file raises in NumPy
        expected = ' and '.join(f'"{name}"' for name in names)
        raise UserError(
            f'{path}: not an npz file with {expected}, or damaged ({type(error).__name__}){REPAIR}'
        ) from None


def _read_header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(f'{name}.npy') as file:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    if dtype.kind not in PLAIN:
        raise TypeError
    return Header(shape, dtype)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f'{name}.npy') as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_size(path: Path, name: str, shape: tuple[int, ...], size: tuple[int, int] | None) -> None:
    if size is not None and shape[-2:] != tuple(size):
        h, w = shape[-2:]
        raise UserError(f'{path}: "{name}" is {w}x{h}, the image is {size[1]}x{size[0]}')


def check_scores(path: Path, name: str, maps: np.ndarray, kept: bool = False) -> np.ndarray:
    """Return maps (..., h, w) as float32, or as they are `kept`. Raises UserError if they are not in [0, 1]."""
    with np.errstate(over='ignore', invalid='ignore'):  # such values are errors below
        maps = maps if kept else maps.astype(np.float32)
    lowest, highest = maps.min(initial=0), maps.max(initial=0)  # min and max propagate NaN
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise UserError(f'{path}: "{name}" contains non-finite values{REPAIR}')
    if lowest < 0 or highest > 1.001:
        raise UserError(f'{path}: "{name}" contains values outside 0 to 1{REPAIR}')
    return maps


def write_npz(path: Path, **arrays: np.ndarray | Parts) -> None:
    """Write arrays as a compressed npz file. Raises UserError like `encode_npz`."""
    write_bytes(path, encode_npz(path, **arrays))


def encode_npz(path: Path, **arrays: np.ndarray | Parts) -> bytes:
    """Return the bytes of a compressed npz file. Raises UserError naming the file if a number is not finite."""
    # Like np.savez_compressed, but at zlib level 1 (a quarter of the time for a tenth more bytes) and without dates:
    # equal arrays give equal bytes.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            header, parts = array if isinstance(array, Parts) else (Header(array.shape, array.dtype), [array])
            with archive.open(f'{name}.npy', 'w', force_zip64=1.05 * header.bytes > zipfile.ZIP64_LIMIT) as file:
                described = {'descr': header.dtype.str, 'fortran_order': False, 'shape': header.shape}
                np.lib.format.write_array_header_1_0(file, described)
                for part in parts:
                    if part.dtype.kind == 'f' and not all(np.isfinite(row).all() for row in part):
                        fault = f'"{name}" would not be finite: the model has diverged, train it again'
                        raise UserError(f'{path}: {fault}')
                    content = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
                    for start in range(0, len(content), BLOCK):
                        file.write(content[start : start + BLOCK].data)
    return buffer.getvalue()
