"""Layers over images, captions in fonts that have their characters, and grids."""

import numpy as np
import pytest
from PIL import ImageFont

from core import UserError
from core.data.drawing import blend, can_write, caption, heatmap_layer, ink, mask_layer, open_font, overlay_mask, stack
from core.data.voc import palette

PALETTE = palette()
FONT = open_font()


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
    picture = blend(image, layer, is_heatmap=False)
    assert np.array_equal(picture[10:], image[10:])
    assert np.array_equal(picture[:10], ((image[:10].astype(int) + PALETTE[3]) // 2).astype(np.uint8))
    assert np.array_equal(picture, overlay_mask(image, mask, PALETTE))
    small = blend(image, mask_layer(mask[::2, ::2], PALETTE), is_heatmap=False)  # layers may be smaller than the image
    assert np.array_equal(small, picture)


def test_colours_of_a_mask_that_covers_the_image_are_not_mixed():
    image, mask = np.zeros((8, 8, 3), np.uint8), np.repeat([[1, 2], [3, 1]], 2, 1)
    found = {tuple(colour) for colour in overlay_mask(image, mask, PALETTE).reshape(-1, 3).tolist()}
    assert found == {tuple(colour) for colour in (PALETTE[1:4] // 2).tolist()}


def test_a_tall_picture_is_blended_in_parts(rng):
    image = rng.integers(0, 256, (600, 20, 3), dtype=np.uint8)
    mask = rng.integers(0, 3, (600, 20), dtype=np.uint8)
    assert np.array_equal(overlay_mask(image, mask, PALETTE), blend(image, mask_layer(mask, PALETTE), is_heatmap=False))


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


def test_words_wider_than_a_picture_are_broken():
    picture = np.zeros((20, 60, 3), np.uint8)
    short, long = caption(picture, 'id', [], '', FONT), caption(picture, 'a_very_long_id_of_an_image', [], '', FONT)
    assert len(long) - 20 >= 3 * (len(short) - 20) - 20
    assert long.shape[1] == 60
    assert (long[-14:] < 128).any()  # the end of the name
