"""Files in which np.save pickled a dict of arrays, as the published code wrote CAMs: read without running their code.

No other module unpickles. The unpickler here imports nothing: it knows by name what NumPy arrays and torch tensors are
pickled as, and refuses every other name.
"""

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch.storage import TypedStorage

from core import UserError


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the dict of arrays in an .npy file, its torch tensors as arrays.

    Raises UserError naming the file if it is missing, damaged or contains something else, and also the name that it
    asks for if that is not part of an array or tensor.
    """
    try:
        with path.open('rb') as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[version](file)
            content = _ArrayUnpickler(file).load().item() if (shape, dtype) == ((), object) else None
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    except Exception as error:  # of numpy, torch or the unpickler, in which a damaged file can raise anything
        raise UserError(f'{path}: damaged, or not written by np.save ({type(error).__name__})') from None
    is_dict = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in content.items()
    )
    if not is_dict:
        raise UserError(f'{path}: is not a dict of arrays')
    return content


def _rebuild_tensor(storage: TypedStorage, offset: int, size: tuple, stride: tuple, *_) -> np.ndarray:
    """Return a tensor as an array. as_strided raises if it would leave the storage."""
    return torch.empty(0, dtype=storage.dtype).set_(storage).as_strided(size, stride, offset).numpy()


def _load_storage(content: bytes) -> TypedStorage:
    """Read the storage of a tensor, which torch pickles as the bytes of a file of torch.save."""
    try:
        return torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r'GLOBAL (\S+)', str(error))
        if forbidden is None:
            raise
        raise _refusal(forbidden[1]) from None


def _refusal(name: str) -> UserError:
    return UserError(f'asks for {name[:80]!r}, which is not part of an array or tensor: refused')


MULTIARRAY = {'_reconstruct': np.zeros(1).__reduce__()[0], 'scalar': np.float32(0).__reduce__()[0]}
KNOWN = {
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    **{('numpy.core.multiarray', name): function for name, function in MULTIARRAY.items()},  # before numpy 2
    **{('numpy._core.multiarray', name): function for name, function in MULTIARRAY.items()},
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch.storage', '_load_from_bytes'): _load_storage,
    ('collections', 'OrderedDict'): OrderedDict,  # the hooks of a tensor
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in KNOWN:
            raise _refusal(f'{module}.{name}')
        return KNOWN[module, name]
