"""Pickled dicts of arrays: read back, and everything else refused without running it."""

import builtins
import io
import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from core import UserError
from support import Call
from tools.importing.unpickle import read_arrays

MAPS = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
KEYS = np.array([0, 3, 20])


def npy(content, protocol: int = 3) -> bytes:
    """Return the file that np.save writes for a dict, with the pickle protocol of a NumPy of choice."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {'descr': '|O', 'fortran_order': False, 'shape': ()})
    array = np.empty((), object)
    array[()] = content
    return buffer.getvalue() + pickle.dumps(array, protocol)


HEADER = npy({}).partition(b'\x80')[0]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def assert_read(path: Path, expected: dict[str, np.ndarray]) -> None:
    found = read_arrays(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (type(found[name]), found[name].dtype) == (np.ndarray, value.dtype)
        np.testing.assert_array_equal(found[name], value)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_arrays(path)
    text = str(error.value)
    assert text.startswith(f'{path}: ')
    assert '\n' not in text
    return text.removeprefix(f'{path}: ')


# Arrays and tensors -------------------------------------------------------------------------------------------------


def test_file_of_np_save(tmp_path):
    np.save(tmp_path / 'a.npy', {'keys': KEYS, 'cam': torch.from_numpy(MAPS), 'hr_cam': MAPS})
    assert_read(tmp_path / 'a.npy', {'keys': KEYS, 'cam': MAPS, 'hr_cam': MAPS})


@pytest.mark.parametrize('protocol', [3, 4])
def test_protocols_of_earlier_numpys(tmp_path, protocol):
    content = npy({'keys': KEYS, 'rw': MAPS, 'half': torch.from_numpy(MAPS).half()}, protocol)
    assert_read(written(tmp_path / 'a.npy', content), {'keys': KEYS, 'rw': MAPS, 'half': MAPS.astype(np.float16)})


def test_name_of_the_package_before_numpy_2(tmp_path):
    content = npy({'keys': KEYS, 'rw': MAPS})
    assert b'numpy._core.multiarray' in content
    path = written(tmp_path / 'a.npy', content.replace(b'numpy._core.', b'numpy.core.'))
    assert_read(path, {'keys': KEYS, 'rw': MAPS})


@pytest.mark.parametrize(
    'tensor',
    [
        torch.from_numpy(MAPS)[:, 1:, ::2],
        torch.from_numpy(MAPS).permute(2, 0, 1),
        torch.from_numpy(MAPS).double().requires_grad_(),
        torch.from_numpy(KEYS),
        torch.zeros(0, 3, 4),
    ],
    ids=['part', 'permuted', 'double', 'integers', 'empty'],
)
def test_tensors_come_out_as_arrays(tmp_path, tensor):
    np.save(tmp_path / 'a.npy', {'a': tensor})
    assert_read(tmp_path / 'a.npy', {'a': tensor.detach().numpy()})


def test_scalar_is_read_but_is_not_an_array(tmp_path):
    path = written(tmp_path / 'a.npy', npy({'a': np.float32(3)}))
    assert refusal(path) == 'is not a dict of arrays'


# Everything else ----------------------------------------------------------------------------------------------------


COMMAND = 'touch sprung'
CODE = "open('sprung', 'w').close()"
CALLS = {
    f'{os.system.__module__}.system': Call(os.system, COMMAND),
    'builtins.eval': Call(eval, CODE),
    'builtins.exec': Call(exec, CODE),
    'builtins.__import__': Call(builtins.__import__, 'os'),
    'subprocess.check_output': Call(subprocess.check_output, ['touch', 'sprung']),
    'pickle._loads': Call(pickle._loads, b'N.'),
    'torch.serialization.load': Call(torch.load, 'x'),
    'numpy.load': Call(np.load, 'x'),
}


@pytest.mark.parametrize('protocol', [3, 4])
@pytest.mark.parametrize('name', CALLS)
def test_other_names_are_refused_and_nothing_runs(in_tmp, name, protocol):
    path = written(in_tmp / 'a.npy', npy({'keys': KEYS, 'rw': CALLS[name]}, protocol))
    assert refusal(path) == f'asks for {name!r}, which is not part of an array or tensor: refused'
    assert [file.name for file in in_tmp.iterdir()] == ['a.npy']


def stack_global(module: str, name: str) -> bytes:
    """Return a pickle that asks for a name in either of the two ways to do so, and calls it with CODE."""
    return b''.join(
        [
            b'\x80\x04',
            *(b'\x8c' + bytes([len(text)]) + text.encode() for text in (module, name)),
            b'\x93',
            b'\x8c' + bytes([len(CODE)]) + CODE.encode(),
            b'\x85R.',
        ]
    )


NAMES = [
    ('os', 'system'),
    ('numpy.testing', 'runstring'),
    ('numpy.testing._private.utils', 'runstring'),
    ('numpy.core.multiarray', 'fromfile'),
    ('numpy', 'core.multiarray._reconstruct'),
    ('numpy', 'f2py.os.system'),
    ('torch', 'load'),
    ('torch.serialization', 'load'),
    ('torch._utils', '_rebuild_parameter'),
    ('torch.storage', '_load_from_bytes.__globals__'),
    ('util.unpickle', 'pickle.loads'),
    ('collections', 'namedtuple'),
    ('a\nb', 'c\nd'),
]


@pytest.mark.parametrize('module, name', NAMES)
def test_names_written_by_hand(in_tmp, module, name):
    path = written(in_tmp / 'a.npy', HEADER + stack_global(module, name))
    assert refusal(path) == f'asks for {f"{module}.{name}"!r}, which is not part of an array or tensor: refused'
    if '\n' not in module:
        protocol_0 = f'c{module}\n{name}\n(V{CODE}\ntR.'.encode()
        assert f"'{module}.{name}'" in refusal(written(path, HEADER + protocol_0))
        instance = f'(V{CODE}\ni{module}\n{name}\n.'.encode()
        assert f"'{module}.{name}'" in refusal(written(path, HEADER + instance))
    assert [file.name for file in in_tmp.iterdir()] == ['a.npy']


class Storage:
    """A tensor's storage whose bytes are a file of torch.save with a call inside."""

    def __init__(self, content):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=False)
        self.content = buffer.getvalue()

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


@pytest.mark.parametrize('function, name', [(os.system, f'{os.system.__module__}.system'), (np.load, 'numpy.load')])
def test_call_inside_the_storage_of_a_tensor(in_tmp, function, name):
    path = written(in_tmp / 'a.npy', npy({'rw': Storage(Call(function, COMMAND))}))
    assert refusal(path) == f'asks for {name!r}, which is not part of an array or tensor: refused'
    assert [file.name for file in in_tmp.iterdir()] == ['a.npy']


def tensor_pickle(offset: int, size: tuple, stride: tuple, storage=None) -> Call:
    storage = Storage(torch.arange(4.0)._typed_storage()) if storage is None else storage
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


@pytest.mark.parametrize(
    'call',
    [
        tensor_pickle(2, (3,), (1,)),
        tensor_pickle(0, (3, 3), (2, 1)),
        tensor_pickle(-1, (2,), (1,)),
        tensor_pickle(0, (2,), (-1,)),
        tensor_pickle(0, (-2,), (1,)),
        tensor_pickle(0, (2,), (1,), [1.0, 2.0]),
        tensor_pickle(0, (2,), (1,), Storage({'a': 1})),
    ],
)
def test_tensor_that_leaves_its_storage(tmp_path, call):
    inside = npy({'a': tensor_pickle(1, (2,), (2,))})
    assert_read(written(tmp_path / 'a.npy', inside), {'a': np.array([1, 3], np.float32)})
    path = written(tmp_path / 'a.npy', npy({'a': call}))
    assert refusal(path).startswith('damaged, or not written by np.save (')


def test_functions_cannot_be_changed_for_the_next_file(tmp_path):
    """The opcode BUILD sets attributes, but none that changes how the next file is read."""
    for module, name in (('torch.storage', '_load_from_bytes'), ('numpy', 'ndarray'), ('collections', 'OrderedDict')):
        for attribute in ('__code__', '__call__', '__defaults__', '__globals__', '__setstate__'):
            attack = f'c{module}\n{name}\n(N(dV{attribute}\n(I1\ntstb.'.encode()
            refusal(written(tmp_path / 'a.npy', HEADER + attack))
    np.save(tmp_path / 'b.npy', {'a': torch.from_numpy(MAPS)})
    assert_read(tmp_path / 'b.npy', {'a': MAPS})


@pytest.mark.parametrize(
    'content',
    [[MAPS], {'a': 1}, {'a': [1]}, {1: MAPS}, {'a': {'b': MAPS}}, {'a': None}, None, 'text', MAPS],
    ids=['list', 'number', 'list inside', 'number as name', 'nested', 'none inside', 'none', 'text', 'array'],
)
def test_other_contents(tmp_path, content):
    assert refusal(written(tmp_path / 'a.npy', npy(content))) == 'is not a dict of arrays'


def test_array_without_a_pickle(tmp_path):
    np.save(tmp_path / 'a.npy', MAPS)
    assert refusal(tmp_path / 'a.npy') == 'is not a dict of arrays'
    np.save(tmp_path / 'a.npy', np.array([{'a': MAPS}], dtype=object))
    assert refusal(tmp_path / 'a.npy') == 'is not a dict of arrays'


def test_missing_file(tmp_path):
    assert refusal(tmp_path / 'a.npy') == 'cannot be read (No such file or directory)'


def test_damaged_files(tmp_path):
    content = npy({'keys': torch.from_numpy(KEYS), 'rw': MAPS})
    for length in range(0, len(content), 7):
        assert refusal(written(tmp_path / 'a.npy', content[:length])).startswith('damaged, or not written by np.save')
    for other in (b'not an array', b'PK\x03\x04', pickle.dumps({'a': 1}), bytes(500)):
        assert refusal(written(tmp_path / 'a.npy', other)).startswith('damaged, or not written by np.save')
