"""The .npz files of maps: written atomically and without dates, checked when read."""

import io
import zipfile
from pathlib import Path

import numpy as np

from core import UserError
from core.data.files import check_regular
from util.store.files import write_bytes

PLAIN = 'biufU'  # kinds of arrays in these files: numbers and text
REPAIR = '; run its stage with --repair to regenerate it'


def names_inside(path: Path) -> list[str]:
    """Return the names of the arrays of an npz file, [] if it is not one."""
    try:
        check_regular(path)
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except Exception:  # whatever a damaged file raises in NumPy
        return []


def read_edge(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the edge map (h, w) float32 of a file. Raises UserError like `read_maps`."""
    (edge,) = read_arrays(path, 'edge')
    if edge.ndim != 2 or edge.dtype.kind != 'f':
        raise UserError(f'{path}: "edge" {edge.dtype}{edge.shape} is not an edge map{REPAIR}')
    return _checked(path, 'edge', edge, size)


def read_maps(
    path: Path, name: str, num_classes: int, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return keys (K+1,) and the maps `name` (K, h, w) float32 of a file of CAMs or random-walk CAMs.

    Raises UserError naming the file if it is missing or damaged, its maps and keys disagree, a class is above
    num_classes, a value is outside [0, 1], or the maps are not of the size (h, w).
    """
    keys, maps = read_arrays(path, 'keys', name)
    if (
        keys.ndim != 1
        or maps.ndim != 3
        or len(keys) != len(maps) + 1
        or keys.dtype.kind not in 'iu'
        or maps.dtype.kind != 'f'
    ):
        raise UserError(
            f'{path}: "{name}" {maps.dtype}{maps.shape} does not match "keys" {keys.dtype}{keys.shape}{REPAIR}'
        )
    if keys[0] != 0 or (keys[1:] <= keys[:-1]).any() or keys[-1] > num_classes:
        raise UserError(
            f'{path}: keys {str(keys.tolist())[:80]} are not 0 followed by increasing classes up to {num_classes}: '
            'it belongs to another data set: check --dataset'
        )
    return keys, _checked(path, name, maps, size)


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Return arrays of an npz file. Raises UserError naming the file if it is missing, damaged or lacks one."""
    try:
        check_regular(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in names]
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in PLAIN for array in arrays):
            raise TypeError
        return arrays
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except Exception as error:  # whatever a damaged file raises in NumPy
        expected = ' and '.join(f'"{name}"' for name in names)
        raise UserError(
            f'{path}: not an npz file with {expected}, or damaged ({type(error).__name__}){REPAIR}'
        ) from None


def _checked(path: Path, name: str, maps: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Return maps (..., h, w) as float32. Raises UserError if they are not in [0, 1] or not of the size (h, w)."""
    if size is not None and maps.shape[-2:] != tuple(size):
        h, w = maps.shape[-2:]
        raise UserError(f'{path}: "{name}" is {w}x{h}, the image is {size[1]}x{size[0]}')
    with np.errstate(over='ignore', invalid='ignore'):  # such values are errors below
        maps = maps.astype(np.float32)
    lowest, highest = maps.min(initial=0), maps.max(initial=0)  # min and max propagate NaN
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise UserError(f'{path}: "{name}" contains non-finite values{REPAIR}')
    if lowest < 0 or highest > 1.001:
        raise UserError(f'{path}: "{name}" contains values outside 0 to 1{REPAIR}')
    return maps


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as a compressed npz file. Raises UserError if a number is not finite."""
    for name, array in arrays.items():
        if array.dtype.kind == 'f' and not np.isfinite(array).all():
            raise UserError(f'{path}: "{name}" would not be finite: the model has diverged, train it again')
    # Like np.savez_compressed, but at zlib level 1 (a quarter of the time for a tenth more bytes) and without dates:
    # equal arrays give equal bytes.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    write_bytes(path, buffer.getvalue())
