"""Grids of pictures that the trainers log: a row per image, each picture with its caption and class names."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from core import IGNORE
from util import visualize

ROWS = 8


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
        row = [visualize.caption(image, 'image')]
        for title, maps in label_maps.items():
            if maps[i] is not None:
                present = [index for index in np.unique(maps[i]).tolist() if index not in (0, IGNORE)]
                overlay = visualize.overlay_mask(image, maps[i], dataset.palette)
                row.append(visualize.caption(overlay, title, _plates(dataset, present)))
        for heatmap in heatmaps[i] if heatmaps else ():
            overlay = visualize.overlay_heatmap(image, heatmap.score)
            present = [heatmap.index] if heatmap.index else []
            row.append(visualize.caption(overlay, heatmap.title, _plates(dataset, present)))
        rows.append(row)
    return visualize.image_grid(rows)


def _plates(dataset: Classes, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the colours of classes by name, or by number where Pillow's own font lacks a character of the name."""
    font = visualize.open_font()
    names = {index: dataset.class_names[index - 1] for index in indices}
    return {
        name if visualize.can_write(font, name) else f'class {index}': dataset.palette[index]
        for index, name in names.items()
    }
