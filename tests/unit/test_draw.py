"""Grids of pictures: what is in each row, in which colours, under which names."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.data import drawing
from core.data.voc import palette
from util import draw
from util.draw import draw_cams, draw_rows

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

    monkeypatch.setattr(drawing, 'caption', caption)
    return drawn


def images(number: int) -> np.ndarray:
    return np.stack([np.full((SIDE, SIDE, 3), 20 * i + 10, np.uint8) for i in range(number)])


def batch(pixels: np.ndarray, **more) -> dict:
    """Return a batch of crops, as a training step has it."""
    return {'crops': SimpleNamespace(pixels=torch.from_numpy(pixels)), **more}


def colour(index: int) -> tuple:
    return tuple(DATASET.palette[index])


def test_captions_name_the_classes_of_each_picture(captions):
    mask = np.zeros((64, 64), np.uint8)
    mask[:20], mask[20:30], mask[30:40] = 2, 255, 3
    cams = [[('CAM', np.ones((4, 4)), 1)], [('edge', np.zeros((8, 8)), 0)]]
    draw_rows(DATASET, batch(images(2)), {'ground truth': [mask, None], 'prediction': [mask * 0, mask * 0 + 1]}, cams)
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
    grid = draw_rows(DATASET, batch(picture), {'ground truth': torch.from_numpy(mask)}, [[('edge', score, 0)]] * 3)
    for i in range(3):
        top = 8 + i * (len(grid) // 3)
        cells = [grid[top : top + SIDE, 8 + j * (SIDE + 8) :][:, :SIDE] for j in range(3)]
        expected = [
            picture[i],
            drawing.overlay_mask(picture[i], mask[i], DATASET.palette),
            drawing.overlay_heatmap(picture[i], score),
        ]
        for cell, other in zip(cells, expected, strict=True):
            assert np.array_equal(cell, other)


def test_cams_of_the_labels_are_drawn(monkeypatch, captions):
    mask = np.zeros((64, 64), np.uint8)
    monkeypatch.setattr(draw, 'ground_truth', lambda samples, count: [mask + 3, None])
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    draw_cams(SimpleNamespace(dataset=DATASET), batch(images(2), labels=labels), maps)
    expected = [('image', {}), ('ground truth', {'class 3': colour(3)})]
    expected += [('CAM', {'dog': colour(1)}), ('CAM', {'class 3': colour(3)})]
    assert captions == [*expected, ('image', {})]


def test_small_pictures_are_enlarged():
    small = np.zeros((1, 64, 64, 3), np.uint8)
    grid = draw_rows(DATASET, batch(small), {})
    assert grid.shape[1] == 8 + 3 * 64
    assert (grid[8 : 8 + 192, 8:] == 0).all()


def test_only_the_first_images_are_drawn(captions):
    draw_rows(DATASET, batch(images(12)), {'ground truth': [None] * 12})
    assert captions == [('image', {})] * draw.ROWS
