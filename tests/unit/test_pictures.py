"""Pictures of the tools: masks with labels that can be read, pictures of one size."""

import numpy as np
import pytest

from core.data.drawing import open_font, overlay_mask
from core.data.voc import palette
from tools.reporting.pictures import fit, label_mask, names_on_pictures

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


def test_fit():
    assert fit(np.zeros((100, 200, 3), np.uint8), 50).shape == (25, 50, 3)
    tall = fit(np.zeros((200, 100, 3), np.uint8), 50)
    assert tall.shape == (50, 50, 3)
    assert (tall[:, :25] == 0).all() and (tall[:, 25:] == 255).all()
    assert fit(np.zeros((1, 5000, 3), np.uint8), 50).shape == (1, 50, 3)


def test_names_that_the_font_lacks_are_numbers(capsys):
    assert names_on_pictures(('background', 'dog', '猫', 'кот'), FONT) == ['background', 'dog', 'class 2', 'class 3']
    line = (
        'warning: the font lacks characters of 2 class names (猫, ...), shown as numbers: pass --font a file that has'
    )
    assert capsys.readouterr().err.startswith(line)
    assert names_on_pictures(('background', 'dog'), FONT) == ['background', 'dog']
    assert capsys.readouterr().err == ''
