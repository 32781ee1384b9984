"""Reading and writing of pictures and label maps: modes, EXIF orientation, and damaged files named in one line."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core import UserError, has_control_characters
from core.data.images import (
    ID_LIMIT,
    encode_label_map,
    image_size,
    make_image_id,
    read_image,
    read_label_map,
)
from core.data.voc import palette
from support import claim_sides, draw_image
from support.orientations import UPRIGHT

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# Image ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'path, image_id',
    [
        ('cat.jpg', 'cat'),
        ('./cat.JPG', 'cat'),
        ('pets/2024/my cat 1.jpeg', 'pets__2024__my cat 1'),
        ('pets\\cat.png', 'pets__cat'),
        ('猫/ねこ.webp', '猫__ねこ'),
        ('a.b/c.d.tif', 'a.b__c.d'),
        ('.hidden/cat.bmp', '_.hidden__cat'),
        ('cat', 'cat'),
        ('Screenshot at 1.00\u202fPM.png', 'Screenshot at 1.00\u202fPM'),
        ('\u0645\u06cc\u200c\u062e.jpg', '\u0645\u06cc\u200c\u062e'),
    ],
)
def test_image_ids_come_from_paths(path, image_id):
    assert make_image_id(path) == image_id


def test_long_paths_keep_their_end():
    first, second = (make_image_id(f'{top}/{"猫" * 100}/cat.jpg') for top in 'ab')
    assert first != second
    for image_id in (first, second):
        assert len(image_id.encode()) <= ID_LIMIT
        assert image_id.endswith('猫__cat')


@pytest.mark.parametrize(
    'path', ['', '.', '/etc/cat.jpg', '../cat.jpg', 'a/../cat.jpg', 'C:/cat.jpg', 'a\nb.jpg', 'a\0.jpg']
)
def test_paths_that_are_not_relative_are_refused(path):
    with pytest.raises(UserError, match='is not a relative path of an image|contains control characters'):
        make_image_id(path)


@QUICK
@given(path=st.text('ab./\\ 猫é\0', max_size=300))
def test_image_ids_are_safe_file_names(path):
    try:
        image_id = make_image_id(path)
    except UserError:
        return
    assert image_id
    assert not has_control_characters(image_id)
    assert not image_id.startswith('.')
    assert '/' not in image_id
    assert '\\' not in image_id
    assert len(image_id.encode()) <= ID_LIMIT


# Photographs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'RGBA', 'CMYK', '1'])
def test_images_become_rgb(tmp_path, mode):
    image = draw_image(tmp_path / 'a.jpg').convert(mode)
    image.save(tmp_path / 'b.tiff')
    found = read_image(tmp_path / 'b.tiff')
    assert found.mode == 'RGB'
    assert np.array_equal(np.array(found), np.array(image.convert('RGB')))


def test_image_size(tmp_path):
    draw_image(tmp_path / 'a.jpg', (50, 37))
    assert image_size(tmp_path / 'a.jpg') == (37, 50)
    (tmp_path / 'b.jpg').write_bytes(b'text')
    for name, fault in (('b.jpg', 'not a readable image'), ('nowhere.jpg', 'no such image')):
        with pytest.raises(UserError, match=f'{name}: {fault}') as error:
            image_size(tmp_path / name)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_exif_orientation(tmp_path, orientation, mode):
    path = tmp_path / 'a.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw_image(path, (50, 37)).convert(mode).save(path, exif=exif)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == orientation
        assert image.size == (50, 37)
        stored = np.array(image.convert('RGB'))
    found = read_image(path)
    assert found.mode == 'RGB'
    assert np.array_equal(np.array(found), UPRIGHT[orientation](stored))
    assert image_size(path) == found.size[::-1] == ((50, 37) if orientation >= 5 else (37, 50))

    # OpenCV reads orientations by itself, with its own JPEG decoder.
    other = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(np.array(found, int) - other).mean() < 1


@pytest.mark.parametrize('orientation', [0, 9, 65535])
def test_unknown_exif_orientation_is_ignored(tmp_path, orientation):
    path = tmp_path / 'a.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = draw_image(path, (50, 37))
    image.save(path, exif=exif, quality=95)
    with Image.open(path) as stored:
        assert np.array_equal(np.array(read_image(path)), np.array(stored))
    assert image_size(path) == (37, 50)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
@pytest.mark.parametrize('exif', [b'Exif\0\0garbage-garbage', b'Exif\0\0II*\0\x08\0\0\0\xff\xff', b'Exif\0\0'])
def test_damaged_exif_is_ignored(tmp_path, exif):
    image = draw_image(tmp_path / 'a.jpg', (50, 37))
    image.save(tmp_path / 'a.jpg', exif=exif)
    assert image_size(tmp_path / 'a.jpg') == (37, 50)
    assert read_image(tmp_path / 'a.jpg').size == (50, 37)


@pytest.mark.parametrize('content', [b'', b'text', b'\xff\xd8\xff\xe0'])
def test_unreadable_images_and_masks_are_named(tmp_path, content):
    (tmp_path / 'a.png').write_bytes(content)
    for read in (read_image, lambda path: read_label_map(path, 20)):
        with pytest.raises(UserError, match='a.png: not a readable') as error:
            read(tmp_path / 'a.png')
        assert '\n' not in str(error.value)
        with pytest.raises(UserError, match='nowhere.png: no such'):
            read(tmp_path / 'nowhere.png')
        with pytest.raises(UserError, match='not a readable'):
            read(tmp_path)


def test_truncated_image(tmp_path):
    draw_image(tmp_path / 'a.jpg', (200, 200))
    content = (tmp_path / 'a.jpg').read_bytes()
    (tmp_path / 'a.jpg').write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match='a.jpg: not a readable image'):
        read_image(tmp_path / 'a.jpg')


# Label maps ---------------------------------------------------------------------------------------------------------


def test_label_maps_round_trip_as_palette_pngs(tmp_path, rng):
    label = rng.choice([0, 1, 20, 255], (7, 9)).astype(np.uint8)
    (tmp_path / 'a.png').write_bytes(encode_label_map(label, palette()))
    with Image.open(tmp_path / 'a.png') as picture:
        assert (picture.mode, picture.format) == ('P', 'PNG')
        assert np.array_equal(np.array(picture.getpalette(), np.uint8).reshape(-1, 3), palette())
    found = read_label_map(tmp_path / 'a.png', 20, (7, 9))
    assert found.dtype == np.uint8
    assert np.array_equal(found, label)
    # 64-bit predictions of argmax and any memory layout give the same file.
    assert encode_label_map(label.astype(np.int64), palette()) == (tmp_path / 'a.png').read_bytes()
    assert encode_label_map(label.T, palette()) == encode_label_map(label.T.copy(), palette())
    assert np.array_equal(np.array(Image.open(io.BytesIO(encode_label_map(label.T, palette())))), label.T)


def test_grey_masks_are_read_and_colour_masks_refused(tmp_path):
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    Image.fromarray(mask).save(tmp_path / 'grey.png')
    assert np.array_equal(read_label_map(tmp_path / 'grey.png', 2), mask)
    Image.fromarray(np.stack([mask] * 3, -1)).save(tmp_path / 'colour.png')
    with pytest.raises(UserError, match='colour.png: a mask must be an 8-bit palette or grey PNG .*, not mode RGB'):
        read_label_map(tmp_path / 'colour.png', 20)


def test_masks_of_another_size_or_with_unknown_classes(tmp_path):
    Image.fromarray(np.full((4, 6), 21, np.uint8)).save(tmp_path / 'a.png')
    with pytest.raises(UserError, match='a.png: the mask is 6x4, the image is 4x6') as error:
        read_label_map(tmp_path / 'a.png', 21, (6, 4))
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='a.png: contains class 21, the largest class is 20'):
        read_label_map(tmp_path / 'a.png', 20)


def test_masks_of_another_size_are_not_decoded(tmp_path):
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / 'a.png')
    claim_sides(tmp_path / 'a.png', 9000, 8000)
    with pytest.raises(UserError, match='a.png: the mask is 9000x8000, the image is 4x6'):
        read_label_map(tmp_path / 'a.png', 21, (6, 4))
    with pytest.raises(UserError, match='not a readable mask'):
        read_label_map(tmp_path / 'a.png', 21)


@QUICK
@given(data=st.data())
def test_damaged_pictures_give_pixels_or_a_user_error(tmp_path, data):
    label = np.random.default_rng(0).integers(0, 3, (9, 9), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_image(tmp_path / 'a.jpg', (9, 9)).save(tmp_path / 'a.jpg', exif=exif)
    for content, readers in (
        (encode_label_map(label, palette()), [lambda path: read_label_map(path, 20)]),
        ((tmp_path / 'a.jpg').read_bytes(), [read_image, image_size]),
    ):
        content = bytearray(content)
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / 'damaged').write_bytes(content[: data.draw(st.integers(1, len(content)))])
        for read in readers:
            try:
                read(tmp_path / 'damaged')
            except UserError as error:
                assert 'damaged' in str(error)
                assert '\n' not in str(error)


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('mode', ['P', 'L'])
def test_masks_are_turned_upright_too(tmp_path, orientation, mode):
    stored = np.random.default_rng(0).integers(0, 4, (5, 7), dtype=np.uint8)
    picture, exif = Image.fromarray(stored, mode='L'), Image.Exif()
    if mode == 'P':
        picture = Image.fromarray(stored, mode='P')
        picture.putpalette(palette().tobytes())
    exif[0x0112] = orientation
    picture.save(tmp_path / 'a.png', exif=exif)
    assert np.array_equal(read_label_map(tmp_path / 'a.png', 3), UPRIGHT[orientation](stored))
