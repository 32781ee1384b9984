"""Pictures for people: masks with labels that can be read, the fonts they are written in."""

import numpy as np
import pytest
from PIL import ImageFont

from core import UserError
from core.data.voc import palette
from util.visualize import (
    blend,
    can_write,
    caption,
    fit,
    heatmap_layer,
    ink,
    label_mask,
    mask_layer,
    open_font,
    overlay_mask,
    stack,
)

PALETTE = palette()
FONT = open_font()


def blocks(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a grey picture and a mask with class i + 1 in the box (top, left, bottom, right) number i."""
    mask = np.zeros(size, np.int64)
    for index, (top, left, bottom, right) in enumerate(boxes, 1):
        mask[top:bottom, left:right] = index
    return np.full((*size, 3), 100, np.uint8), mask


def plate_of(picture: np.ndarray, index: int) -> tuple[int, int, int, int]:
    """Return the box (top, left, bottom, right) of pixels in exactly the colour of a class: its plate."""
    rows, columns = np.nonzero((picture == PALETTE[index]).all(2))
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def test_a_picture_without_classes_is_unchanged():
    image, mask = blocks((30, 40))
    assert np.array_equal(label_mask(image, mask, PALETTE, {}, FONT), image)
    assert np.array_equal(label_mask(image, mask, PALETTE, {1: 'dog 0.93'}, FONT), image)


def test_labels_are_written_where_the_classes_are():
    image, mask = blocks((400, 600), (20, 20, 120, 200), (250, 300, 390, 590))
    picture = label_mask(image, mask, PALETTE, {1: 'dog 0.93', 2: 'cow 0.51'}, FONT)
    assert picture.shape == image.shape
    for index in (1, 2):
        top, left, bottom, right = plate_of(picture, index)
        assert (mask[top:bottom, left:right] == index).all()
        assert (picture[top:bottom, left:right] == 255).all(2).any()  # the text
    far = ~np.isin(np.arange(400), range(240, 400))[:, None] & (np.arange(600) > 210)
    assert np.array_equal(picture[far], overlay_mask(image, mask, PALETTE)[far])


@pytest.mark.parametrize('colour, ink', [((10, 60, 120), 255), ((250, 240, 20), 0)])
def test_text_contrasts_with_its_plate(colour, ink):
    colours = PALETTE.copy()
    colours[1] = colour
    image, mask = blocks((100, 300), (0, 0, 100, 300))
    picture = label_mask(image, mask, colours, {1: 'dog'}, FONT)
    plate = (picture == colour).all(2)
    rows, columns = np.nonzero(plate)
    inside = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (inside == ink).all(2).any()
    assert not (inside == 255 - ink).all(2).any()


@pytest.mark.parametrize('size', [(1, 1), (20, 24), (6, 300), (300, 20), (64, 64)])
def test_small_pictures_are_enlarged_until_labels_fit(size):
    h, w = size
    image, mask = blocks(size, (0, 0, h, w))
    picture = label_mask(image, mask, PALETTE, {1: 'pottedplant 0.93'}, FONT)
    factor = picture.shape[0] // h
    assert picture.shape == (factor * h, factor * w, 3)
    top, left, bottom, right = plate_of(picture, 1)
    assert right - left >= FONT.getlength('pottedplant 0.93') * 14 / 16
    assert right - left <= picture.shape[1] / 2 + 1


def test_labels_do_not_cover_one_another():
    image, mask = blocks((200, 300), (90, 100, 100, 200), (100, 100, 110, 200), (110, 100, 120, 200))
    picture = label_mask(image, mask, PALETTE, {1: 'dog 0.93', 2: 'cow 0.51', 3: 'sheep 0.50'}, FONT)
    boxes = sorted(plate_of(picture, index) for index in (1, 2, 3))
    for (_, _, bottom, _), (top, _, _, _) in zip(boxes, boxes[1:], strict=False):
        assert bottom <= top
    assert min(bottom - top for top, _, bottom, _ in boxes) > 12


def test_more_labels_than_rows_are_all_written():
    boxes = [(0, 2 * i, 4, 2 * i + 2) for i in range(20)]
    image, mask = blocks((4, 4000), *boxes)
    assert label_mask(image, mask, PALETTE, {i: f'class {i}' for i in range(1, 21)}, FONT).shape == (4, 4000, 3)


def test_characters_that_a_font_lacks():
    assert can_write(FONT, 'potted plant_2 0.93 (b)')
    for text in ('猫', 'a猫', 'кот', 'قط'):
        assert not can_write(FONT, text)


def test_fonts(tmp_path):
    assert isinstance(open_font(), ImageFont.FreeTypeFont)
    (tmp_path / 'text.ttf').write_text('not a font')
    for path in (tmp_path / 'text.ttf', tmp_path / 'nowhere.ttf'):
        with pytest.raises(UserError, match=f'^font {path}: cannot be read'):
            open_font(path)
    (tmp_path / 'mine.ttf').write_bytes(FONT.font_bytes)
    assert open_font(tmp_path / 'mine.ttf').getname() == FONT.getname()


def test_blending(rng):
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[:10] = 3
    layer = mask_layer(mask, PALETTE)
    assert layer.shape == (20, 30, 4)
    picture = blend(image, layer)
    assert np.array_equal(picture[10:], image[10:])
    assert np.array_equal(picture[:10], ((image[:10].astype(int) + PALETTE[3]) // 2).astype(np.uint8))
    assert np.array_equal(picture, overlay_mask(image, mask, PALETTE))
    small = blend(image, mask_layer(mask[::2, ::2], PALETTE))  # layers may be smaller than the image
    assert np.array_equal(small, picture)


def test_heat_maps_go_from_blue_to_red():
    layer = heatmap_layer(np.array([[0, 0.5, 1, 2, -1]]))
    assert (layer[..., 3] == 255).all()
    low, middle, high, above, below = layer[0, :, :3].astype(int)
    assert low[2] > 100 and low[0] == 0
    assert high[0] > 100 and high[2] == 0
    assert middle[1] > 200
    assert np.array_equal(above, high) and np.array_equal(below, low)


@pytest.mark.parametrize('colour', [(r, g, b) for r in (0, 128, 255) for g in (0, 100, 255) for b in (0, 180, 255)])
def test_ink_has_the_contrast_of_wcag(colour):
    def luminance(rgb):
        x = np.asarray(rgb) / 255
        return np.dot(np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4), (0.2126, 0.7152, 0.0722))

    values = sorted((luminance(colour), luminance(ink(colour))))
    assert (values[1] + 0.05) / (values[0] + 0.05) >= 4.5


def test_captions_wrap_and_show_colours():
    picture = np.full((50, 120, 3), 77, np.uint8)
    chips = [('dog', (10, 200, 30)), ('potted plant', (200, 10, 30))]
    short = caption(picture, 'CAM', chips[:1], '', FONT)
    assert short.shape[1:] == (120, 3)
    assert np.array_equal(short[:50], picture)
    assert (short[50:] == (10, 200, 30)).all(2).sum() > 100
    long = caption(picture, 'CAM of a run with a long name', chips, 'maximum 0.98', FONT)
    assert len(long) > len(short)
    assert (long[50:] == (200, 10, 30)).all(2).sum() > 100
    assert (long[50:] < 100).all(2).any()  # the text


def test_stack():
    pictures = [np.full((10 + i, 20, 3), i, np.uint8) for i in range(5)]
    page = stack(pictures, 3, pad=4)
    assert page.shape == (4 + 12 + 4 + 14, 3 * 24, 3)
    assert (page[4:14, 4:24] == 0).all()
    assert (page[4:16, 52:72] == 2).all()
    assert (page[20:34, 28:48] == 4).all()
    assert (page[:4] == 255).all() and (page[:, :4] == 255).all()
    assert (page[20:, 52:] == 255).all()


def test_fit():
    assert fit(np.zeros((100, 200, 3), np.uint8), 50).shape == (25, 50, 3)
    tall = fit(np.zeros((200, 100, 3), np.uint8), 50)
    assert tall.shape == (50, 50, 3)
    assert (tall[:, :25] == 0).all() and (tall[:, 25:] == 255).all()
    assert fit(np.zeros((1, 5000, 3), np.uint8), 50).shape == (1, 50, 3)


def test_words_wider_than_a_picture_are_broken():
    picture = np.zeros((20, 60, 3), np.uint8)
    short, long = caption(picture, 'id', [], '', FONT), caption(picture, 'a_very_long_id_of_an_image', [], '', FONT)
    assert len(long) - 20 >= 3 * (len(short) - 20) - 20
    assert long.shape[1] == 60
    assert (long[-14:] < 128).any()  # the end of the name
