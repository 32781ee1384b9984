"""Files in which np.save pickled a dict of arrays, as the published code wrote CAMs: read without running their code.

No other module unpickles. The unpickler here imports nothing, and hands out neither functions nor types of NumPy or
torch: for the names that arrays and tensors are pickled as, it has its own functions, and it rejects every other name.
These functions make arrays of plain numbers from bytes whose number they have checked.
"""

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from core import UserError
from core.data.files import read_bytes
from core.data.pickles import check_pickle

PLAIN = ('b1', *(f'{kind}{size}' for kind in 'iu' for size in (1, 2, 4, 8)), 'f2', 'f4', 'f8')
OBJECTS = ('O', 'O8')
STORAGES = {'Bool': 'b1', 'Byte': 'u1', 'Char': 'i1', 'Short': 'i2', 'Int': 'i4', 'Long': 'i8'}
STORAGES |= {'Half': 'f2', 'Float': 'f4', 'Double': 'f8'}
TORCH = (0x1950A86A20F9469CFC6C, 1001)  # the first two pickles of a file of torch.save before 1.6, and of a storage


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the dict of arrays in an .npy file, its torch tensors as arrays.

    Raises UserError naming the file if it is missing, damaged or contains something else, with the requested name if
    that is not part of an array or tensor.
    """
    try:
        file = _Bytes(read_bytes(path))
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header[version](file)
        content = _load(file) if (shape, dtype) == ((), object) else None
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    except Exception as error:  # a damaged file can raise anything in numpy or the unpickler
        raise UserError(f'{path}: damaged, or not written by np.save ({type(error).__name__})') from None
    content = content.objects if isinstance(content, _Array) else None
    arrays = content[0] if content else None
    is_dict = isinstance(arrays, dict) and all(
        isinstance(name, str) and isinstance(value, _Array) and value.numbers is not None
        for name, value in arrays.items()
    )
    if not is_dict:
        raise UserError(f'{path}: is not a dict of arrays')
    return {name: value.numbers for name, value in arrays.items()}


# Names that a pickle may use ------------------------------------------------------------------------------------------


class _Call:
    """A function that a pickle may call and cannot change."""

    __slots__ = ('function',)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __setstate__(self, _):
        raise ValueError('a function has no state')


class _Dtype:
    """A dtype: of objects, or one of PLAIN."""

    __slots__ = ('code', 'order')

    def __init__(self, code: object, *_):
        if code not in (*PLAIN, *OBJECTS):
            raise ValueError('a dtype of other than plain numbers')
        self.code, self.order = code, '<'

    def __setstate__(self, state: tuple):
        _, self.order, *fields = state
        if self.order not in ('<', '>', '|', '=') or fields[:3] != [None, None, None]:
            raise ValueError('a dtype with fields')

    def to_numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """An array: its numbers, or its list of objects."""

    __slots__ = ('numbers', 'objects')

    def __init__(self, *_):
        self.numbers = self.objects = None

    def __setstate__(self, state: tuple):
        _, shape, dtype, is_fortran, content = state
        if dtype.code in OBJECTS:
            if shape != () or type(content) is not list or len(content) != 1:
                raise ValueError('an array of several objects')
            self.objects = content
            return
        dtype, count = dtype.to_numpy(), _count(shape)
        if type(content) is not bytes or len(content) != count * dtype.itemsize:
            raise ValueError('an array of other than its bytes')
        order = 'F' if is_fortran else 'C'
        self.numbers = np.frombuffer(content, dtype).astype(dtype.newbyteorder('=')).reshape(shape, order=order)


class _Storage:
    """The numbers of a tensor, one after the other."""

    __slots__ = ('numbers',)

    def __init__(self, numbers: np.ndarray):
        self.numbers = numbers


def _count(shape: object) -> int:
    """Return the number of elements of a shape."""
    if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError('a shape of other than whole numbers')
    return math.prod(shape)


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_) -> _Array:
    """Return a tensor as an array. Raises ValueError if it would leave its storage or repeat numbers of the storage."""
    count, last = _count(size), offset
    _count(stride)
    if type(storage) is not _Storage or type(offset) is not int or len(stride) != len(size) or offset < 0:
        raise ValueError('a tensor without a storage')
    if count:
        last += sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if last >= len(storage.numbers) + (not count) or count > len(storage.numbers):
        raise ValueError('a tensor outside its storage')
    array, numbers = _Array(), storage.numbers[offset:]
    steps = [step * numbers.itemsize for step in stride]
    array.numbers = np.lib.stride_tricks.as_strided(numbers, size, steps).copy() if count else numbers[:0].reshape(size)
    return array


def _load_storage(content: bytes) -> _Storage:
    """Read the storage of a tensor, which torch pickles as the bytes of a torch.save file from before 1.6."""
    file = _Bytes(content)
    if tuple(_load(file) for _ in TORCH) != TORCH:
        raise ValueError('not a storage')
    _, (kind, code, key, *_), keys = (_load(file) for _ in range(3))
    count, numbers = int.from_bytes(file.read(8), 'little'), file.read()
    dtype = np.dtype(f'<{code}') if code in PLAIN else None
    if (kind, keys) != ('storage', [key]) or dtype is None or len(numbers) != count * dtype.itemsize:
        raise ValueError('a storage of other than its bytes')
    return _Storage(np.frombuffer(numbers, dtype))


def _refusal(name: str) -> UserError:
    return UserError(f'asks for {name[:80]!r}, which is not part of an array or tensor: refused')


KNOWN = {
    ('numpy', 'ndarray'): _Call(_Array),
    ('numpy', 'dtype'): _Call(_Dtype),
    # The package had another name before NumPy 2.
    **{(f'numpy.{core}.multiarray', '_reconstruct'): _Call(_Array) for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): _Call(lambda *_: None) for core in ('core', '_core')},
    ('torch._utils', '_rebuild_tensor_v2'): _Call(_rebuild_tensor),
    ('torch.storage', '_load_from_bytes'): _Call(_load_storage),
    **{('torch', f'{name}Storage'): code for name, code in STORAGES.items()},
    ('collections', 'OrderedDict'): _Call(lambda *_: {}),  # the hooks of a tensor
}


class _Bytes(io.BytesIO):
    def readline(self, *size) -> bytes:
        line = super().readline(*size)
        if not line.endswith(b'\n'):
            raise EOFError
        return line


# The unpickler in Python: the C unpickler reserves as much memory as the file asks for.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in KNOWN:
            raise _refusal(f'{module}.{name}')
        return KNOWN[module, name]

    def persistent_load(self, pid: object) -> object:
        if type(pid) is not tuple:  # it would be a second name of a value that can change
            raise ValueError('not the identity of a storage')
        return pid


def _load(file: _Bytes) -> object:
    """Return the content of the next pickle. Raises UserError if that could take unbounded time."""
    begin = file.tell()
    check_pickle(file, len(file.getbuffer()))
    file.seek(begin)
    return _Unpickler(file).load()
