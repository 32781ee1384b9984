"""Grids of pictures that the trainers log: a row per image, each picture with its caption and class names."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from core import IGNORE
from util import visualize

ROWS = 8
WIDTH = 160  # at least, of a picture


class Classes(Protocol):
    """What this module asks of a data set (core.data.dataset.Dataset)."""

    class_names: tuple[str, ...]
    palette: np.ndarray


class Heatmap(NamedTuple):
    """A score map (h, w) in [0, 1] with a title, and the index of its class, 0 if it is not of one."""

    title: str
    score: np.ndarray
    index: int = 0


def draw_rows(
    dataset: Classes,
    images: Sequence[np.ndarray],
    label_maps: dict[str, Sequence[np.ndarray | None]],
    heatmaps: Sequence[Sequence[Heatmap]] | None = None,
) -> np.ndarray:
    """Return a grid of the first images: a row of the image, its label map of each title, its heat maps.

    Images are (h, w, 3) uint8 of one size, maps of any resolution. An image may lack a label map (None).
    """
    rows = []
    for i, image in enumerate(images[:ROWS]):
        row = [_caption(dataset, image, 'image', [])]
        for title, maps in label_maps.items():
            if maps[i] is not None:
                present = [index for index in np.unique(maps[i]).tolist() if index not in (0, IGNORE)]
                row.append(_caption(dataset, visualize.overlay_mask(image, maps[i], dataset.palette), title, present))
        for heatmap in heatmaps[i] if heatmaps else ():
            present = [heatmap.index] if heatmap.index else []
            row.append(_caption(dataset, visualize.overlay_heatmap(image, heatmap.score), heatmap.title, present))
        rows.append(visualize.stack(row, len(row)))
    return visualize.stack(rows, 1, pad=0)


def draw_cams(dataset: Classes, batch: dict, masks: Sequence[np.ndarray | None], cams: np.ndarray) -> np.ndarray:
    """Return a grid of the first images of a batch: image, ground truth, the CAMs (N, C, h, w) of its labels."""
    heatmaps = [
        [Heatmap('CAM', cam[index], index + 1) for index in np.flatnonzero(labels)]
        for cam, labels in zip(cams, batch['labels'].numpy(), strict=True)
    ]
    return draw_rows(dataset, batch['images'].pixels.numpy(), {'ground truth': masks}, heatmaps)


def _caption(dataset: Classes, picture: np.ndarray, title: str, classes: Sequence[int]) -> np.ndarray:
    """Return a picture, enlarged by a whole factor if it is small, over its title and class names.

    Names of which Pillow's own font lacks a character are shown as numbers.
    """
    factor = max(1, math.ceil(WIDTH / picture.shape[1]))
    picture, font = picture.repeat(factor, 0).repeat(factor, 1), visualize.open_font()
    font = font.font_variant(size=max(13, round(0.04 * picture.shape[1])))
    names = {index: dataset.class_names[index - 1] for index in classes}
    chips = [
        (name if visualize.can_write(font, name) else f'class {index}', dataset.palette[index].tolist())
        for index, name in names.items()
    ]
    return visualize.caption(picture, title, chips, '', font)
