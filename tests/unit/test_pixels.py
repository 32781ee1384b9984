"""core/data/pixels.py: the window of values and the plane of a stack; files without a rule are refused in one line."""

import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from core import UserError
from core.data import exports, pixels
from core.data.dataset import open_dataset
from core.data.images import image_size, read_image
from core.data.pixels import Reading, parse_plane, parse_window
from support import voc_xml
from support.orientations import UPRIGHT

VALUES = np.linspace(300, 4000, 7 * 9).reshape(7, 9)
COLOURS = np.stack([VALUES, VALUES[::-1], VALUES[:, ::-1]], -1)
PLANES = [np.roll(VALUES, shift, 1) for shift in range(3)]


def save(path: Path, *planes: np.ndarray, **options) -> Path:
    first, *rest = (Image.fromarray(plane) for plane in planes)
    first.save(path, **({'save_all': True, 'append_images': rest} if rest else {}), **options)
    return path


def save_colours(path: Path, *planes: np.ndarray) -> Path:
    """Write planes (h, w, 3) or (h, w, 4) in RGB, which Pillow cannot write in 16 bits."""
    order = [2, 1, 0, 3][: planes[0].shape[-1]]
    cv2.imwritemulti(str(path), [np.ascontiguousarray(plane[..., order]) for plane in planes])
    return path


def oriented(path: Path, orientation: int) -> Path:
    """Give a PNG file an EXIF orientation."""
    exif, content = Image.Exif(), path.read_bytes()
    exif[0x0112] = orientation
    data = b'eXIf' + exif.tobytes().removeprefix(b'Exif\0\0')
    at = content.index(b'IDAT') - 4
    chunk = struct.pack('>I', len(data) - 4) + data + struct.pack('>I', zlib.crc32(data))
    path.write_bytes(content[:at] + chunk + content[at:])
    return path


def mapped(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return what the window makes of values, (h, w, 3), by Python's own numbers."""
    one = np.vectorize(lambda value: round(min(max(255 * (value - low) / (high - low), 0), 255)), otypes=[np.uint8])
    return one(np.asarray(values, float)) if values.ndim == 3 else np.dstack([one(np.asarray(values, float))] * 3)


def fault_of(path: Path, **rule) -> str:
    with pytest.raises(UserError) as error:
        read_image(path, Reading(**rule))
    assert '\n' not in str(error.value)
    return str(error.value).removeprefix(f'{path}: ')


# The window ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['uint16', 'int32', 'float32'])
@pytest.mark.parametrize('window', [(0, 4095), (500.5, 2000), (-100, 400)])
def test_values_are_mapped_linearly_and_clipped(tmp_path, dtype, window):
    values = VALUES.astype(dtype)
    found = read_image(save(tmp_path / 'a.tiff', values), Reading('{},{}'.format(*window)))
    assert (found.mode, found.size) == ('RGB', (9, 7))
    assert np.array_equal(np.array(found), mapped(values, *window))


def test_values_below_0_and_above_31_bits(tmp_path):
    negative = (VALUES - 2000).astype(np.int32)
    assert np.array_equal(
        np.array(read_image(save(tmp_path / 'a.tif', negative), Reading('-2000,2000'))), mapped(negative, -2000, 2000)
    )
    large = VALUES * 1e6
    cv2.imwrite(str(tmp_path / 'b.tiff'), large.astype(np.uint32))
    if cv2.imread(str(tmp_path / 'b.tiff'), cv2.IMREAD_UNCHANGED) is not None:  # OpenCV 5
        found = np.array(read_image(tmp_path / 'b.tiff', Reading('0,4e9')))
        assert np.abs(found.astype(int) - mapped(large, 0, 4e9)).max() == 0


def test_16_bits_in_a_png(tmp_path):
    path = save(tmp_path / 'a.png', VALUES.astype(np.uint16))
    assert np.array_equal(np.array(read_image(path, Reading('0,4095'))), mapped(VALUES.astype(int), 0, 4095))


@pytest.mark.parametrize('name', ['a.png', 'a.tiff'])
def test_16_bits_in_colour(tmp_path, name):
    path = save_colours(tmp_path / name, COLOURS.astype(np.uint16))
    assert np.array_equal(np.array(read_image(path, Reading('0,4095'))), mapped(COLOURS.astype(int), 0, 4095))
    assert fault_of(path).startswith('has more than 8 bits per channel, with values from 300 to 4000: ')


@pytest.mark.parametrize('name', ['a.png', 'a.tiff'])
def test_transparent_pixels_of_16_bits_become_white(tmp_path, name):
    alpha = np.full((7, 9), 65535)
    alpha[:3] = 0
    path = save_colours(tmp_path / name, np.dstack([COLOURS, alpha]).astype(np.uint16))
    expected = mapped(COLOURS.astype(int), 0, 4095)
    expected[:3] = 255
    assert np.array_equal(np.array(read_image(path, Reading('0,4095'))), expected)


def test_percentiles_are_of_each_image_and_skip_what_is_not_a_number(tmp_path):
    values = VALUES.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    found = np.array(read_image(save(tmp_path / 'a.tif', values), Reading('10%,90%')))[..., 0]
    low, high = np.percentile(values[np.isfinite(values)], (10, 90))
    assert found[0, :3].tolist() == [0, 255, 0]
    assert np.array_equal(found[1:], mapped(values[1:], low, high)[..., 0])
    assert (found == 0).mean() >= 0.1


def test_an_image_of_one_value_and_one_without_numbers_are_black_at_percentiles(tmp_path):
    for value in (5, np.nan):
        path = save(tmp_path / 'a.tif', np.full((4, 5), value, np.float32))
        assert not np.array(read_image(path, Reading('1%,99%'))).any()


def test_images_of_8_bits_are_not_touched(tmp_path):
    for mode in ('RGB', 'L', '1', 'P'):
        picture = Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9)).convert(mode)
        picture.save(tmp_path / 'a.png')
        found = read_image(tmp_path / 'a.png', Reading('10,20', 'max'))
        assert np.array_equal(np.array(found), np.array(picture.convert('RGB')))


def test_without_a_window_the_refusal_has_the_range_the_flag_and_the_entry(tmp_path):
    path = save(tmp_path / 'a.tif', VALUES.astype(np.uint16))
    assert fault_of(path) == (
        'has more than 8 bits per channel, with values from 300 to 4000: pass --window=300,4000, or percentiles such '
        'as --window=0.5%,99.5%, or give the data set the entry "window"'
    )
    assert '--window=0,65535' in fault_of(save(tmp_path / 'a.tif', np.full((4, 5), 7, np.uint16)))
    assert 'values from -2.5 to 1.5: ' in fault_of(save(tmp_path / 'a.tif', np.float32([[-2.5, 1.5, np.nan]])))


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('kind', ['8 bits', '16 bits', 'float', 'png', 'coloured png'])
def test_orientation(tmp_path, orientation, kind):
    dtype = {'8 bits': np.uint8, 'float': np.float32}.get(kind, np.uint16)
    stored = (VALUES / 16 if kind == '8 bits' else VALUES).astype(dtype)
    if kind.endswith('png'):
        stored = COLOURS.astype(dtype) if kind == 'coloured png' else stored
        write = save_colours if kind == 'coloured png' else save
        path = oriented(write(tmp_path / 'a.png', stored), orientation)
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / 'a.tif', stored, exif=exif)
    expected = np.dstack([stored] * 3) if kind == '8 bits' else mapped(stored, 0, 4095)
    found = np.array(read_image(path, Reading('0,4095')))
    assert np.array_equal(found, UPRIGHT[orientation](expected))
    assert image_size(path) == found.shape[:2]


@pytest.mark.parametrize(
    'text, normal',
    [('0,4095', '0,4095'), (' 0 , 4095.0', '0,4095'), ('-1e3,.5', '-1000,0.5'), ('0.5%, 99.50%', '0.5%,99.5%')],
)
def test_normal_form_of_windows(text, normal):
    assert parse_window(text) == parse_window(normal) == normal


@pytest.mark.parametrize(
    'text', ['', '5', '5,5', '9,1', '1,2,3', 'a,b', '0,inf', 'nan,1', '0%,100', '-1%,50%', '5%,101%']
)
def test_windows_that_are_refused(text):
    with pytest.raises(ValueError, match='is not LOW,HIGH with LOW below HIGH, such as 0,4095, or percentiles'):
        parse_window(text)


def test_planes_as_flags():
    assert [parse_plane(text) for text in ('1', '07', 'max')] == ['1', '7', 'max']
    for text in ('0', '-1', '1.5', 'min', '', '²'):
        with pytest.raises(ValueError, match='is not the number of a plane, from 1, or max'):
            parse_plane(text)


# Planes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float32'])
def test_a_plane_or_the_maximum_of_a_stack(tmp_path, dtype):
    planes = [(plane / 16 if dtype == 'uint8' else plane).astype(dtype) for plane in PLANES]
    path = save(tmp_path / 'a.tif', *planes)
    window = None if dtype == 'uint8' else '0,4095'

    def shown(values):
        return np.dstack([values] * 3) if dtype == 'uint8' else mapped(values, 0, 4095)

    for number, plane in enumerate(planes, 1):
        assert np.array_equal(np.array(read_image(path, Reading(window, str(number)))), shown(plane))
    assert np.array_equal(np.array(read_image(path, Reading(window, 'max'))), shown(np.max(planes, 0)))


def test_planes_in_colour(tmp_path):
    planes = [np.roll(COLOURS, shift, 1).astype(np.uint16) for shift in range(3)]
    path = save_colours(tmp_path / 'a.tiff', *planes)
    assert np.array_equal(np.array(read_image(path, Reading('0,4095', '2'))), mapped(planes[1], 0, 4095))
    assert np.array_equal(np.array(read_image(path, Reading('0,4095', 'max'))), mapped(np.max(planes, 0), 0, 4095))


def test_stacks_without_a_plane_are_refused_with_their_number_and_the_flag(tmp_path):
    small = save(tmp_path / 'a.tif', *(plane.astype(np.uint8) for plane in PLANES))
    fault = 'has 3 planes: pass --plane N (1 to 3) or --plane max, or give the data set the entry "plane"'
    assert fault_of(small) == fault
    with pytest.raises(UserError, match='has 3 planes: pass --plane N'):  # before anything is decoded
        image_size(small)
    wide = save(tmp_path / 'b.tif', *(plane.astype(np.uint16) for plane in PLANES))
    assert fault_of(wide) == f'{fault} (and a --window, because they have more than 8 bits)'
    assert fault_of(small, plane='4') == 'has 3 planes, no plane 4 (--plane, or the entry "plane")'


@pytest.mark.parametrize('ending', ['gif', 'webp', 'png'])
def test_pictures_of_an_animation_are_planes(tmp_path, ending):
    pictures = [np.full((8, 8, 3), value, np.uint8) for value in (0, 90, 200)]
    path = save(tmp_path / f'a.{ending}', *pictures, **({'lossless': True} if ending == 'webp' else {}))
    assert fault_of(path).startswith('has 3 planes: pass --plane N (1 to 3)')
    assert np.array(read_image(path, Reading(plane='2'))).mean() == pytest.approx(90, abs=1)
    assert np.array(read_image(path, Reading(plane='max'))).mean() == pytest.approx(200, abs=1)


def test_previews_smaller_copies_and_masks_are_not_planes(tmp_path):
    photograph = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    save(tmp_path / 'a.mpo', *[np.dstack([photograph] * 3)] * 2)
    assert read_image(tmp_path / 'a.mpo').size == (16, 16)

    buffer = io.BytesIO()
    first, second, third = (Image.fromarray(x) for x in (photograph, photograph[::2, ::2], photograph))
    first.save(buffer, 'TIFF', save_all=True, append_images=[second, third])
    (tmp_path / 'b.tif').write_bytes(buffer.getvalue())
    assert fault_of(tmp_path / 'b.tif').startswith('has 3 planes')
    assert fault_of(tmp_path / 'b.tif', plane='max') == (
        'its planes differ in size or kind: pass --plane N instead of max'
    )
    pages = []
    for picture, kind in ((first, 0), (second, 1), (third, 4)):
        picture.encoderinfo = {'tiffinfo': {254: kind}}
        pages.append(picture)
    first.save(tmp_path / 'c.tif', save_all=True, append_images=pages[1:], tiffinfo={254: 0})
    with Image.open(tmp_path / 'c.tif') as file:
        kinds = [file.seek(frame) or file.tag_v2.get(254) for frame in range(3)]
    assert kinds == [0, 1, 4]
    assert np.array_equal(np.array(read_image(tmp_path / 'c.tif'))[..., 0], photograph)


@pytest.mark.parametrize(
    'description', ['ImageJ=1.53t\nimages=60\nslices=60\nloop=false\n', '{"shape": [60, 7, 9], "truncated": true}']
)
def test_planes_that_are_not_pages_are_refused(tmp_path, description):
    """ImageJ and tifffile write large stacks as one page, of which Pillow sees the first plane."""
    path = save(tmp_path / 'a.tif', VALUES.astype(np.uint16), tiffinfo={270: description})
    assert fault_of(path, window='0,4095', plane='1') == (
        'has 60 planes by its description, of which 1 can be read: save each plane as a file '
        '(in ImageJ: Save As, Image Sequence)'
    )


def test_stacks_of_tifffile(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    planes = np.stack(PLANES).astype(np.uint16)
    for options in ({'imagej': True}, {'ome': True}, {'photometric': 'minisblack', 'compression': 'zlib'}):
        tifffile.imwrite(tmp_path / 'a.tif', planes, **options)
        found = np.array(read_image(tmp_path / 'a.tif', Reading('0,4095', '3')))
        assert np.array_equal(found, mapped(planes[2], 0, 4095))
    tifffile.imwrite(tmp_path / 'b.tif', COLOURS.astype(np.uint16).transpose(2, 0, 1), photometric='rgb')
    assert 'in a layout that cannot be read' in fault_of(tmp_path / 'b.tif', window='0,4095')
    tifffile.imwrite(tmp_path / 'c.tif', VALUES)
    assert 'or not of integers up to 32 bits or float32' in fault_of(tmp_path / 'c.tif', window='0,4095')


def test_sizes_of_annotations_need_no_plane(tmp_path):
    """The size of the first plane is the size of all."""
    path = save(tmp_path / 'a.tif', *(plane.astype(np.uint16) for plane in PLANES))
    (tmp_path / 'a.xml').write_text(voc_xml('cat', size=(9, 7), box=(1, 1, 5, 5)))
    (thing,) = exports.read_beside(tmp_path / 'a.xml', path)
    assert thing.name == 'cat'


def test_pages_larger_than_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, 'MANY_PIXELS', 50)
    monkeypatch.setattr(pixels, 'PIXEL_BYTES', 10**12)
    path = save(tmp_path / 'a.tif', np.zeros((5, 9), np.uint8), np.zeros((6, 9), np.uint8))
    assert read_image(path, Reading(plane='1')).size == (9, 5)
    assert 'has 9x6 pixels: decoding takes' in fault_of(path, plane='2')


# The entries of a data set ------------------------------------------------------------------------------------------


def reading_of(folder: Path, entries: dict, *flags) -> Reading:
    (folder / 'set.csv').write_text('image,classes\na.tif,cat\n')
    (folder / 'set.json').write_text(json.dumps(entries))
    return open_dataset(folder / 'set.csv', folder, *flags).reading


@pytest.mark.parametrize(
    'entries, rule',
    [
        ({}, (None, None)),
        ({'window': [0, 4095]}, ('0,4095', None)),
        ({'window': {'percentiles': [0.5, 99.5]}, 'plane': 2}, ('0.5%,99.5%', '2')),
        ({'plane': 'max'}, (None, 'max')),
    ],
)
def test_entries(tmp_path, entries, rule):
    assert reading_of(tmp_path, entries) == Reading(*rule)


def test_flags_replace_entries(tmp_path):
    assert reading_of(tmp_path, {'window': [0, 4095], 'plane': 2}, '5,9') == Reading('5,9', '2')
    assert reading_of(tmp_path, {'window': [0, 4095], 'plane': 2}, None, 'max') == Reading('0,4095', 'max')
    with pytest.raises(UserError, match="plane 'first' is not the number of a plane"):
        reading_of(tmp_path, {}, None, 'first')


@pytest.mark.parametrize(
    'entries',
    [
        *(
            {'window': value}
            for value in ('0,4095', [0], [5, 5], [0, '1'], [0, True], {'percentiles': [0, 101]}, {}, 7)
        ),
        *({'plane': value} for value in (0, -1, 1.5, True, 'first', [1])),
    ],
)
def test_wrong_entries_are_named(tmp_path, entries):
    (name,) = entries
    with pytest.raises(UserError, match=f'set.json: "{name}" must be') as error:
        reading_of(tmp_path, entries)
    assert '\n' not in str(error.value)


def test_the_data_set_reads_by_its_rule(tmp_path):
    save(tmp_path / 'a.tif', *(plane.astype(np.uint16) for plane in PLANES))
    reading_of(tmp_path, {'window': [0, 4095], 'plane': 'max'})
    dataset = open_dataset(tmp_path / 'set.csv', tmp_path)
    expected = mapped(np.max(PLANES, 0).astype(int), 0, 4095)
    assert np.array_equal(np.array(dataset.read_image('a')), expected)
    assert dataset.image_size('a') == (7, 9)
