"""core/data/pickles.py: pickles that would take for ever are refused within their size, all others pass."""

import io
import pickle
import re
import time
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

from core import UserError
from core.data.pickles import check_pickle
from core.models.model_file import ModelFile
from core.models.weights import read_torch
from tools.importing.unpickle import read_arrays

DOUBLED = b'q\0h\0\x86' * 60  # a tuple of two values that are the same tuple of two values ...
TUPLES = b')' + DOUBLED
FROM_ABOVE = b']q\0' + b''.join(b'h%c]q%cah%ca0' % (i, i + 1, i + 1) for i in range(60))
LARGE = (1 << 200).to_bytes(26, 'little')

HARMFUL = {
    'key of tuples': b'}' + TUPLES + b'K\1s',
    'keys of tuples': b'}(' + TUPLES + b'K\1u',
    'set of tuples': b'\x8f(' + TUPLES + b'\x90',
    'frozen set of tuples': b'(' + TUPLES + b'\x91',
    'text of tuples': b'}X\1\0\0\0a' + TUPLES + b's',
    'key of two numbers': b'}K\1K\2\x86K\1s',
    'lists filled from above': FROM_ABOVE,
    'list of itself': b']q\0h\0a',
    'list under two names': b']2K\1a',
    'keys of equal hashes': b'}(' + 200 * (b'\x8a\x1a' + LARGE + b'K\1') + b'u',
    'long text again and again': b'B' + (10**5).to_bytes(4, 'little') + 10**5 * b'x' + b'q\0' + b'h\0\x850' * 10**5,
}


@pytest.mark.parametrize('program', HARMFUL.values(), ids=HARMFUL)
def test_unbounded_time(program):
    content, begun = b'\x80\2' + program + b'.', time.process_time()
    with pytest.raises(UserError, match='refused'):
        check_pickle(io.BytesIO(content), len(content))
    assert time.process_time() - begun < 2


@pytest.mark.parametrize('program', [b'', b')0', b'h\0', b'0', b'a', b'(a', b'(q\0', b'\xff', b'X\xff\0\0\0a', b'Lx\n'])
def test_damage(program):
    with pytest.raises((ValueError, IndexError, KeyError)):
        check_pickle(io.BytesIO(program + b'.'), 9)


shared = (1, 'a')
VALUES = [
    {'curves': {f'curve {c}': [[i, 0.5 * i] for i in range(3000)] for c in range(3)}, 'images': {'a': 'ff', 'b': ''}},
    [shared, shared, {'x': shared, 5: [shared], 1.5: None}, b'bytes' * 1000, 'text' * 1000, -(1 << 60)],
    OrderedDict(a=np.arange(3.0), b=np.ones((2, 2), np.float16), c=[np.float32(1)]),
    Counter('abc'),
    {*'abc'},
]


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('value', VALUES, ids=range(len(VALUES)))
def test_ordinary_values(value, protocol):
    file = io.BytesIO(pickle.dumps(value, protocol) + b'more')
    check_pickle(file, len(file.getbuffer()))
    assert file.read() == b'more'


# Files --------------------------------------------------------------------------------------------------------------


def harmful(path, zipped: bool):
    """Write a state dict whose metadata has a key of tuples."""
    meta, program = {'classes': 'AAAA'}, b'}' + TUPLES + b'K\1s'
    torch.save({'model': {'a': torch.zeros(2)}, 'meta': meta}, path, _use_new_zipfile_serialization=zipped)
    if not zipped:
        content = path.read_bytes()
        path.write_bytes(re.sub(rb'X\x04\0\0\0AAAA(q.)?', lambda _: program, content))
        return
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in entries:
            archive.writestr(name, re.sub(rb'X\x04\0\0\0AAAA(q.)?', lambda _: program, content))


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before torch 1.6'])
def test_weights(tmp_path, zipped):
    harmful(tmp_path / 'a.pth', zipped)
    with pytest.raises(UserError, match=re.escape(f'{tmp_path}/a.pth: has keys') + '|describes more'):
        ModelFile(tmp_path / 'a.pth')
    with pytest.raises(UserError):
        read_torch(tmp_path / 'a.pth')


def test_cams_of_the_published_code(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {'descr': '|O', 'fortran_order': False, 'shape': ()})
    (tmp_path / 'a.npy').write_bytes(buffer.getvalue() + b'\x80\2}' + TUPLES + b'K\1s.')
    with pytest.raises(UserError, match='a.npy: .*: refused'):
        read_arrays(tmp_path / 'a.npy')


def test_compressed_zeros(tmp_path):
    """torch.save does not compress, so a file that unpacks to far more than its size was made to fill the memory."""
    torch.save({'model': {'a': torch.zeros(10**6)}}, tmp_path / 'a.pth')
    ModelFile(tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth') as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            archive.writestr(*entry)
    with pytest.raises(UserError, match=r'a.pth: unpacks to 0.0 GB, but torch.save does not compress: refused'):
        ModelFile(tmp_path / 'a.pth')
