"""Grids of pictures: what is in each row, in which colours, under which names."""

from types import SimpleNamespace

import numpy as np
import pytest

from core.data.voc import palette
from util import pictures, visualize
from util.pictures import Heatmap, draw_rows

DATASET = SimpleNamespace(class_names=('dog', 'cow', '猫'), palette=palette())
SIDE = 256


@pytest.fixture
def captions(monkeypatch):
    """The captions drawn: texts and names with their colours."""
    drawn = []

    def caption(picture, title, chips, note, font):
        assert note == ''
        drawn.append((title, {name: tuple(colour) for name, colour in chips}))
        return picture

    monkeypatch.setattr(visualize, 'caption', caption)
    return drawn


def images(number: int) -> np.ndarray:
    return np.stack([np.full((SIDE, SIDE, 3), 20 * i + 10, np.uint8) for i in range(number)])


def colour(index: int) -> tuple:
    return tuple(DATASET.palette[index])


def test_captions_name_the_classes_of_each_picture(captions):
    mask = np.zeros((64, 64), np.uint8)
    mask[:20], mask[20:30], mask[30:40] = 2, 255, 3
    cams = [[Heatmap('CAM', np.ones((4, 4)), 1)], [Heatmap('edge', np.zeros((8, 8)))]]
    draw_rows(DATASET, images(2), {'ground truth': [mask, None], 'prediction': [mask * 0, mask * 0 + 1]}, cams)
    assert captions == [
        ('image', {}),
        ('ground truth', {'cow': colour(2), 'class 3': colour(3)}),
        ('prediction', {}),
        ('CAM', {'dog': colour(1)}),
        ('image', {}),
        ('prediction', {'dog': colour(1)}),
        ('edge', {}),
    ]


def test_pictures_are_the_overlays_of_their_images():
    picture, score = images(3), np.linspace(0, 1, 16).reshape(4, 4)
    mask = np.zeros((3, 64, 64), np.uint8)
    mask[:, :32] = 2
    grid = draw_rows(DATASET, picture, {'ground truth': mask}, [[Heatmap('edge', score)]] * 3)
    for i in range(3):
        top = 8 + i * (len(grid) // 3)
        cells = [grid[top : top + SIDE, 8 + j * (SIDE + 8) :][:, :SIDE] for j in range(3)]
        expected = [
            picture[i],
            visualize.overlay_mask(picture[i], mask[i], DATASET.palette),
            visualize.overlay_heatmap(picture[i], score),
        ]
        for cell, other in zip(cells, expected, strict=True):
            assert np.array_equal(cell, other)


def test_small_pictures_are_enlarged():
    small = np.zeros((1, 64, 64, 3), np.uint8)
    grid = draw_rows(DATASET, small, {})
    assert grid.shape[1] == 8 + 3 * 64
    assert (grid[8 : 8 + 192, 8:] == 0).all()


def test_only_the_first_images_are_drawn(captions):
    draw_rows(DATASET, images(12), {'ground truth': [None] * 12})
    assert captions == [('image', {})] * pictures.ROWS
