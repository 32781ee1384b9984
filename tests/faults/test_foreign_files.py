"""Files of others that would harm: made to crash a reader, to run code or to fill the memory."""

import io
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch

from core import UserError
from tools.importing import unpickle
from tools.importing.unpickle import KNOWN, read_arrays

# CAMs of the published code -----------------------------------------------------------------------------------------


def npy(stack: bytes) -> bytes:
    """Return an .npy file of an object whose pickle is this program of opcodes, without its end."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {'descr': '|O', 'fortran_order': False, 'shape': ()})
    return buffer.getvalue() + b'\x80\x02' + stack + b'.'


def ask(module: str, name: str) -> bytes:
    return f'c{module}\n{name}\n'.encode()


def state(dtype: bytes, shape: tuple, content, order: str = '<', fields: tuple = (None, None, None)) -> bytes:
    """Return the opcodes of an array of a dtype ('f4'), a shape and a content."""
    described = pickle.dumps((3, order, *fields, -1, -1, 0), 2)[2:-1]
    made = ask('numpy', 'dtype') + pickle.dumps((dtype.decode(), False, True), 2)[2:-1] + b'R' + described + b'b'
    begin = ask('numpy.core.multiarray', '_reconstruct') + b'(' + ask('numpy', 'ndarray') + b'K\x00\x85C\x01btR'
    return begin + b'(K\x01' + pickle.dumps(shape, 2)[2:-1] + made + b'\x89' + pickle.dumps(content, 3)[2:-1] + b'tb'


def in_dict(array: bytes) -> bytes:
    """Return the opcodes of the object array of np.save, which holds a dict of one array."""
    made = ask('numpy', 'dtype') + pickle.dumps(('O8', False, True), 2)[2:-1] + b'R'
    begin = ask('numpy.core.multiarray', '_reconstruct') + b'(' + ask('numpy', 'ndarray') + b'K\x00\x85C\x01btR'
    return begin + b'(K\x01)' + made + b'\x89]}X\x01\0\0\0a' + array + b'satb'


def line_of(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_arrays(path)
    assert '\n' not in str(error.value)
    return str(error.value)


FLOATS = np.arange(6, dtype=np.float32).tobytes()


def test_array_written_by_hand(tmp_path):
    (tmp_path / 'a.npy').write_bytes(npy(in_dict(state(b'f4', (2, 3), FLOATS))))
    np.testing.assert_array_equal(read_arrays(tmp_path / 'a.npy')['a'], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    'array',
    [
        state(b'f4', (2, 4), FLOATS),
        state(b'f4', (2, 2), FLOATS),
        state(b'f4', (2**62, 4), FLOATS),
        state(b'f4', (-2, -3), FLOATS),
        state(b'f4', (2.0, 3), FLOATS),
        state(b'f8', (2, 3), FLOATS),
        state(b'O8', (3,), FLOATS),
        state(b'O', (), FLOATS),
        state(b'V4', (6,), FLOATS),
        state(b'S4', (6,), FLOATS),
        state(b'U1', (6,), FLOATS),
        state(b'c8', (3,), FLOATS),
        state(b'M8', (3,), FLOATS),
        state(b'f4,f4', (3,), FLOATS),
        state(b'f4', (2, 3), FLOATS, order='?'),
        state(b'f4', (2, 3), FLOATS, fields=('O', None, None)),
        state(b'f4', (2, 3), FLOATS, fields=(None, ('a',), {'a': 1})),
        state(b'f4', (2, 3), [1, 2, 3, 4, 5, 6]),
        state(b'f4', (2, 3), FLOATS.decode('latin1')),
        state(b'O8', (), [1, 2]),
    ],
)
def test_arrays_of_other_than_counted_plain_numbers(tmp_path, array):
    text = line_of(tmp_path / 'a.npy', npy(in_dict(array)))
    assert 'damaged, or not written by np.save' in text or 'is not a dict of arrays' in text


def test_object_array_over_raw_bytes(tmp_path):
    """The object would be at an address that the file chooses."""
    address = struct.pack('<Q', 0x4142434445464740)
    stack = b'cnumpy\nndarray\n(K\x01\x85cnumpy\ndtype\nX\x01\0\0\0O\x85RB' + struct.pack('<I', 8) + address + b'tR'
    assert 'is not a dict of arrays' in line_of(tmp_path / 'a.npy', npy(stack))
    assert 'is not a dict of arrays' in line_of(tmp_path / 'a.npy', npy(in_dict(stack)))


@pytest.mark.parametrize('name', KNOWN, ids='.'.join)
def test_whatever_a_pickle_may_ask_for_cannot_be_changed(tmp_path, name):
    """Opcodes call it with anything, build it, put items into it, and make instances of it."""
    before = {key: (value, getattr(value, 'function', value)) for key, value in KNOWN.items()}
    attributes = [b'__code__', b'__class__', b'__defaults__', b'__setstate__', b'function', b'code', b'numbers']
    states = [b'(dX%c\0\0\0%sK\x01s' % (len(attribute), attribute) for attribute in attributes]
    changes = [asked + b'b' for asked in states] + [b'(N' + asked + b'tb' for asked in states]
    changes += [b'NNs', b'Na', b'(NNe', b')\x81', b'}\x92', b'(NN\x90', b'(K\x01K\x02u']
    calls = [b')R', b'NR', b'K\x01\x85R', b'K\x01K\x02\x86R', b'C\x04abcd\x85R', b'(NNNNNNtR', b'((K\x01K\x01)tR']
    asked = ask(*name)
    for program in [*changes, *calls, *(call + change for call in calls for change in changes)]:
        try:
            unpickle._Unpickler(unpickle._Bytes(asked + program + b'.')).load()
        except Exception as error:
            assert not isinstance(error, MemoryError)
    assert {key: (value, getattr(value, 'function', value)) for key, value in KNOWN.items()} == before
    np.save(tmp_path / 'b.npy', {'a': torch.arange(3), 'b': np.arange(3.0)})
    assert {key: value.tolist() for key, value in read_arrays(tmp_path / 'b.npy').items()} == {
        'a': [0, 1, 2],
        'b': [0, 1, 2],
    }


def test_no_type_of_numpy_or_torch_is_within_reach():
    for value in KNOWN.values():
        assert type(value) is unpickle._Call or value in unpickle.PLAIN
        function = getattr(value, 'function', None)
        assert function is None or function.__module__ == unpickle.__name__
        with pytest.raises((ValueError, AttributeError)):
            value.__setstate__({})


def test_tensors_of_a_counted_storage(tmp_path):
    class Storage:
        def __init__(self, change):
            buffer = io.BytesIO()
            torch.save(torch.arange(4.0)._typed_storage(), buffer, _use_new_zipfile_serialization=False)
            self.content = change(buffer.getvalue())

        def __reduce__(self):
            return torch.storage._load_from_bytes, (self.content,)

    class Tensor:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (*self.arguments, False, OrderedDict())

    whole = Storage(lambda content: content)
    np.save(tmp_path / 'a.npy', {'a': Tensor(whole, 0, (2, 2), (2, 1))})
    assert read_arrays(tmp_path / 'a.npy')['a'].tolist() == [[0, 1], [2, 3]]
    count = struct.pack('<Q', 4)
    for content in (
        Tensor(Storage(lambda content: content[:-1]), 0, (2,), (1,)),
        Tensor(Storage(lambda content: content + b'\0'), 0, (2,), (1,)),
        Tensor(Storage(lambda content: content.replace(count, struct.pack('<Q', 2**40))), 0, (2,), (1,)),
        Tensor(Storage(lambda content: content.replace(b'FloatStorage', b'DoubleStorage')), 0, (2,), (1,)),
        Tensor(whole, 0, (2**40,), (0,)),
        Tensor(whole, 0, (5,), (1,)),
        Tensor(whole, 4, (1,), (1,)),
        Tensor(whole, -1, (1,), (1,)),
        Tensor(whole, 2**70, (1,), (1,)),
        Tensor(whole, 0, (2,), (1, 1)),
        Tensor(whole, 0, (2, 2**62), (2**62, 1)),
        Tensor(np.arange(4.0), 0, (2,), (1,)),
    ):
        np.save(tmp_path / 'b.npy', {'a': content})
        assert 'damaged, or not written by np.save' in line_of(tmp_path / 'b.npy', (tmp_path / 'b.npy').read_bytes())
