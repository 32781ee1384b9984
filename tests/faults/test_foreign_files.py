"""Files of others that would harm: made to crash a reader, to run code or to fill the memory."""

import argparse
import io
import json
import os
import pickle
import re
import struct
import subprocess
import time
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image

from core import UserError
from core.data import pixels
from core.data.dataset import open_dataset
from core.data.files import fits, load_json
from core.data.images import image_size, read_image, read_label_map
from core.models.model_file import ModelFile
from support import REPOSITORY
from support.coco import annotation, content, make_coco
from support.coco import write as write_coco
from tools import prepare_coco
from tools.importing import unpickle
from tools.importing.unpickle import KNOWN, read_arrays
from util import crf_flags, flags
from util.store.fingerprints import read_args, read_inputs, read_json

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
    for tensor in (
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
        np.save(tmp_path / 'b.npy', {'a': tensor})
        assert 'damaged, or not written by np.save' in line_of(tmp_path / 'b.npy', (tmp_path / 'b.npy').read_bytes())


# Pictures -----------------------------------------------------------------------------------------------------------

READERS = [read_image, image_size, lambda path: read_label_map(path, 3)]


def refused(path, *readers) -> list[str]:
    lines = []
    for read in readers or READERS:
        with pytest.raises(UserError) as error:
            read(path)
        assert '\n' not in str(error.value)
        assert str(error.value).startswith(f'{path}: ')
        lines.append(str(error.value))
    return lines


def exif(*entries) -> bytes:
    """Return EXIF data of tags, types, counts and values."""
    out, data = struct.pack('<H', len(entries)), b''
    for tag, kind, count, value in entries:
        where = struct.pack('<I', 8 + 2 + 12 * len(entries) + 4 + len(data))
        out += struct.pack('<HHI', tag, kind, count) + (value.ljust(4, b'\0') if len(value) <= 4 else where)
        data += b'' if len(value) <= 4 else value
    return b'Exif\0\0II*\0\x08\0\0\0' + out + b'\0\0\0\0' + data


SIXTH = (0x0112, 3, 1, struct.pack('<H', 6))
METADATA = {
    'text as width': (True, ((0x0100, 2, 5, b'4000\0'), SIXTH)),
    'bytes as width': (True, ((0x0100, 7, 4, b'abcd'), SIXTH)),
    'single precision as width': (True, ((0x0100, 11, 1, struct.pack('<f', 32.0)), SIXTH)),
    'resolution 0/0': (True, (SIXTH, (0x011A, 5, 1, struct.pack('<II', 0, 0)))),
    'exposure -1/0': (True, (SIXTH, (0x9204, 10, 1, struct.pack('<ii', -1, 0)))),
    'two resolutions': (True, (SIXTH, (0x011A, 5, 2, struct.pack('<IIII', 72, 1, 72, 1)))),
    'orientation as text': (False, ((0x0112, 2, 2, b'6\0'),)),
    'orientation 9': (False, ((0x0112, 3, 1, struct.pack('<H', 9)),)),
    'orientation -1/0': (False, ((0x0112, 10, 1, struct.pack('<ii', -1, 0)),)),
    'beyond the end': (False, ((0x0112, 5, 1000, b'\xff\xff\xff\xff'),)),
}


@pytest.mark.parametrize('name', METADATA)
def test_photographs_are_turned_by_their_orientation_alone(tmp_path, name):
    is_turned, entries = METADATA[name]
    Image.new('RGB', (32, 24)).save(tmp_path / 'a.jpg', exif=exif(*entries))
    assert read_image(tmp_path / 'a.jpg').size == ((24, 32) if is_turned else (32, 24))
    assert image_size(tmp_path / 'a.jpg') == ((32, 24) if is_turned else (24, 32))


@pytest.mark.parametrize('kind', ['EPS', 'PPM', 'TGA', 'PCX', 'ICO', 'SPIDER', 'DDS', 'PDF'])
def test_formats_that_no_document_names_are_refused(tmp_path, kind):
    """Whatever the name of the file; EPS would start another program."""
    Image.new('F' if kind == 'SPIDER' else 'RGB', (32, 24)).save(tmp_path / 'a', kind)
    (tmp_path / 'a').rename(tmp_path / 'a.jpg')
    for line in refused(tmp_path / 'a.jpg'):
        assert 'cannot identify image file' in line


def test_what_is_not_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'fifo.jpg')
    (tmp_path / 'folder.jpg').mkdir()
    for name in ('fifo.jpg', 'folder.jpg'):
        refused(tmp_path / name)
        line_ends = {read.__name__: None for read in (read_arrays, ModelFile)}
        for read in (read_arrays, ModelFile, load_json):
            with pytest.raises((UserError, OSError)) as error:
                read(tmp_path / name)
            line_ends[read.__name__] = str(error.value)
        assert all('egular file' in line or 'directory' in line for line in line_ends.values()), line_ends
    with pytest.raises(UserError, match='fifo.jpg: is not a regular file: remove it$'):
        read_json(tmp_path / 'fifo.jpg')


def png_of(width: int, height: int) -> bytes:
    """Return a grey PNG of a size, without most of its pixels."""
    buffer = io.BytesIO()
    Image.new('L', (4, 4)).save(buffer, 'PNG')
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack('>II', width, height)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    return bytes(content)


def test_any_size_that_fits_in_memory(tmp_path, monkeypatch):
    (tmp_path / 'a.png').write_bytes(png_of(20_000, 15_000))
    monkeypatch.setattr(pixels, 'PIXEL_BYTES', 0)
    assert image_size(tmp_path / 'a.png') == (15_000, 20_000)
    monkeypatch.setattr(pixels, 'PIXEL_BYTES', 10**9)
    for line in refused(tmp_path / 'a.png'):
        assert re.search(r'has 20000x15000 pixels: decoding takes \S+ GB of memory, \S+ GB are available$', line)


# Sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['table', 'labels', 'set', 'list', 'annotation', 'coco'])
def test_text_larger_than_any_data_set_is_not_read(tmp_path, kind):
    """A sparse file of zeros takes no space on the disk, and the whole memory when it is read."""
    names = {'table': 'set.csv', 'labels': 'labels.csv', 'list': 'list.txt', 'annotation': 'Annotations/a.xml'}
    large = tmp_path / names.get(kind, 'set.json')
    entries = {
        'classes': ['cat'],
        'lists': {'train': 'list.txt'},
        **({'labels': large.name} if kind == 'labels' else {}),
    }
    (tmp_path / 'set.json').write_text(json.dumps(entries))
    (tmp_path / 'list.txt').write_text('a')
    for folder in ('Annotations', 'JPEGImages'):
        (tmp_path / folder).mkdir()
    Image.new('RGB', (4, 3)).save(tmp_path / 'JPEGImages/a.jpg')
    with large.open('ab') as file:
        file.truncate(200 * 10**9)
    with pytest.raises(UserError) as error:
        if kind == 'coco':
            prepare_coco.read_annotations(large, tmp_path)
        dataset = open_dataset(tmp_path / ('set.csv' if kind == 'table' else 'set.json'), tmp_path)
        dataset.read_all_labels(dataset.ids('train'))
    line = str(error.value)
    assert re.search(r'cannot be read \(has 200\.0 GB, .* GB can be read: check that it is the right file\)$', line)
    assert str(large) in line


@pytest.mark.parametrize('read', [ModelFile, read_arrays])
def test_what_does_not_fit_in_memory_is_not_read(tmp_path, read):
    with (tmp_path / 'a').open('wb') as file:
        file.truncate(10**13)
    with pytest.raises(UserError, match=r'a: cannot be read \(has 10000\.0 GB, .* GB can be read'):
        read(tmp_path / 'a')


# Names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['dog\x1b[2J', 'dog\ncat', 'dog\x7f', 'dog\u202egod', 'dog\u2028dog', 'dog\x9b2J'])
def test_control_characters_in_class_names(tmp_path, name):
    (tmp_path / 'table.csv').write_text(f'image,classes\na.jpg,"{name}"\n', encoding='utf-8')
    (tmp_path / 'list.txt').write_text('a\n')
    entries = {'classes': [name], 'lists': {'train': 'list.txt'}}
    (tmp_path / 'a.json').write_text(json.dumps(entries))
    (tmp_path / 'b.json').write_text(json.dumps({**entries, 'classes': ['dog'], 'name': name}))
    (tmp_path / 'c.json').write_text(json.dumps({**entries, 'classes': ['dog'], 'lists': {name: 'list.txt'}}))
    torch.save({'model': {'a': torch.zeros(1)}, 'meta': {'classes': [name]}}, tmp_path / 'a.pth')
    torch.save({'model': {'a': torch.zeros(1)}, 'meta': {'network': name}}, tmp_path / 'b.pth')
    for file in ('table.csv', 'a.json', 'b.json', 'c.json', 'a.pth', 'b.pth'):
        with pytest.raises(UserError) as error:
            ModelFile(tmp_path / file) if file.endswith('.pth') else open_dataset(tmp_path / file, tmp_path)
        assert str(error.value).isprintable()
        assert str(tmp_path / file) in str(error.value)


def test_errors_show_control_characters_as_escapes():
    assert str(UserError('a\x1b[2Jb\u202ec\ud800 é猫')) == 'a\\x1b[2Jb\\u202ec\\ud800 é猫'
    assert len(str(UserError('x' * 10**6))) < 2000


# JSON ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text', ['[' * 100_000, '{"a":' * 100_000, '{"a": "\\ud800"}', '{"\\uDFFF": 1}', '\xff', '', '[1']
)
def test_json_that_cannot_be_used(tmp_path, text):
    for name in ('args.json', 'inputs.json', 'set.json'):
        (tmp_path / name).write_text(text, encoding='latin1')
    with pytest.raises(ValueError):
        load_json(tmp_path / 'set.json')
    assert read_args(tmp_path) == read_inputs(tmp_path) == {}
    with pytest.raises(UserError, match='set.json: is not valid JSON'):
        open_dataset(tmp_path / 'set.json', tmp_path)


def test_pairs_of_surrogates_are_characters(tmp_path):
    (tmp_path / 'a.json').write_text('{"a": "\\ud83d\\ude00"}')
    assert load_json(tmp_path / 'a.json') == {'a': '\U0001f600'}


@pytest.mark.parametrize('digits', [400, 6000])
def test_integers_beyond_any_float_are_infinite(tmp_path, digits):
    """Python would refuse thousands of digits, and divide no integer of hundreds."""
    (tmp_path / 'a.json').write_text(f'[-1{"0" * digits}, {2**70}]')
    assert load_json(tmp_path / 'a.json') == [-float('inf'), 2**70]


def test_types_of_records():
    assert fits({'a': 1, 'b': [[1, 2.5]]}, {'a': int, 'b': [[float]]})
    assert fits({'x': {'y': 'z'}}, {str: {str: str}})
    assert fits(None, (float, None))
    for value, kind in (
        ({'a': True}, {'a': int}),
        ({}, {'a': int}),
        ([1, None], [float]),
        ([], dict),
        ({'a': 1}, {str: str}),
    ):
        assert not fits(value, kind)


# COCO ---------------------------------------------------------------------------------------------------------------


def masks_of(root, segmentation):
    """Return the line or the classes of the image that has an annotation of a shape."""
    entries = content(2017, 'train', [annotation(4, 90, segmentation, 10)], (4,))
    _, pictures = prepare_coco.read_annotations(write_coco(root, 'train', entries), root / 'train2017')
    return prepare_coco.write_mask(root / 'train2017', root, {7: 1, 90: 2, 2: 3}, 'keep', pictures[0])


def test_polygons_far_outside_are_clipped(tmp_path):
    root, begun = make_coco(tmp_path / 'COCO'), time.monotonic()
    far = 1e6
    assert masks_of(root, [[-far, -far, far, -far, far, far, -far, far]]) == [2]
    np.testing.assert_array_equal(np.array(Image.open(root / '000000000004.png')), np.full((24, 32), 2))
    assert masks_of(root, [[far, far, far, 2 * 5e5, 9e5, far]]) == []
    zigzag = [coordinate for i in range(2000) for coordinate in ((-1) ** i * far, i % 24)]
    masks_of(root, [zigzag])
    assert time.monotonic() - begun < 5


def test_outline_that_is_too_long():
    zigzag = np.array([[(i % 2) * 65_000, i] for i in range(1000)], float)
    with pytest.raises(ValueError, match='the outline of an annotation is 65'):
        prepare_coco.encode_shape((zigzag.tobytes(),), (65_535, 65_535))


@pytest.mark.parametrize('counts', [[65_535**2], 'oooooo' * 100 + '0', '0' * 10_000])
def test_large_run_lengths_take_no_memory(counts):
    rle = {'size': [65_535, 65_535], 'counts': counts}
    try:
        prepare_coco.read_rle(rle)
    except ValueError as error:
        assert 'do not add up to 65535x65535 pixels' in str(error)


# Flags and recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'widths, text', [(1, '1e-30,3'), (1, '0.05,3'), (1, '1e5,3'), (1, '3,1e9'), (2, '50,1e-30,10'), (2, '1e-6,5,10')]
)
def test_widths_that_crash_the_crf(widths, text):
    with pytest.raises(argparse.ArgumentTypeError, match='of 0.1 to 10000 and a weight up to 10000'):
        crf_flags.kernel(widths)(text)


def test_numbers_beyond_single_precision():
    assert flags.real(0)('1e36') == 1e36
    for text in ('1e300', 'inf', 'nan'):
        with pytest.raises(argparse.ArgumentTypeError, match='out of range: 0'):
            flags.real(0)(text)


@pytest.mark.parametrize('name', ['chain.sh', 'coco.sh', 'slurm/chain.sh'])
def test_folders_with_blanks(name):
    _, _, text = (REPOSITORY / 'recipes' / name).read_text().partition('source ')
    text = re.sub(r'^submit\(\) \{.*?^\}', '', text.split('\n', 1)[1], flags=re.M | re.S)
    fakes = 'python() { printf "<%s>" "$@"; echo; }; submit() { JOB=1; python "$@"; }'
    program = f'set -euo pipefail; {fakes}; DRY_RUN=1 D="my data" W="my weights"\n{text}'
    printed = subprocess.run(['bash', '-c', program], capture_output=True, text=True, check=True).stdout
    commands = [line for line in printed.splitlines() if '<--data_dir>' in line]
    assert len(commands) >= 8
    assert all('<--data_dir><my data>' in line for line in commands)
    assert '<--weights><my weights>' in printed


def count_photographs(path) -> str:
    """Return what recipes/own.sh counts."""
    lines = re.search(r'^PHOTOGRAPHS=.*?(?=^EPOCHS=)', (REPOSITORY / 'recipes/own.sh').read_text(), re.M | re.S)[0]
    program = f'set -euo pipefail; CSV={path}; {lines}\necho $PHOTOGRAPHS'
    return subprocess.run(['bash', '-c', program], capture_output=True, text=True, check=True).stdout.strip()


def test_photographs_of_a_folder_per_class_are_counted(tmp_path):
    for name in ('cat/1.jpg', 'cat/2.jpg', 'dog/1.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert count_photographs(tmp_path) == '3'


@pytest.mark.parametrize('end, last', [('\n', '\n'), ('\r\n', '\r\n'), ('\r', '\r'), ('\n', ''), ('\r', '')])
def test_photographs_are_counted_with_any_line_end(tmp_path, end, last):
    (tmp_path / 'a.csv').write_text(end.join(['image,classes', 'a.jpg,cat', 'b.jpg,']) + last, newline='')
    assert count_photographs(tmp_path / 'a.csv') == '3'
