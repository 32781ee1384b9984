"""Grids of pictures that the trainers log: a row per image, each picture with its caption and class names."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from core import IGNORE
from core.cam import make_cam
from core.data import drawing
from core.data.dataset import Dataset
from core.data.torch_datasets import ImageDataset, ground_truth

ROWS = 8
WIDTH = 160  # minimum width of a picture


def draw_rows(
    dataset: Dataset,
    batch: dict,
    label_maps: dict[str, Tensor | Sequence[np.ndarray | None]],
    heatmaps: Sequence[Sequence[tuple[str, np.ndarray, int]]] = (),
) -> np.ndarray:
    """Return a grid of the first images of a batch: a row of the image, its label map of each title, its heat maps.

    Maps are of any resolution. An image may lack a label map (None). A heat map is a title, scores (h, w) in [0, 1] and
    the index of their class, or 0 if they belong to no class.
    """
    label_maps = {title: maps.cpu().numpy() if isinstance(maps, Tensor) else maps for title, maps in label_maps.items()}
    rows = []
    for i, image in enumerate(batch['crops'].pixels[:ROWS].cpu().numpy()):
        row = [_captioned(dataset, image, 'image', [])]
        for title, maps in label_maps.items():
            if maps[i] is not None:
                present = [index for index in np.unique(maps[i]).tolist() if index not in (0, IGNORE)]
                row.append(_captioned(dataset, drawing.overlay_mask(image, maps[i], dataset.palette), title, present))
        for title, scores, index in heatmaps[i] if heatmaps else ():
            row.append(_captioned(dataset, drawing.overlay_heatmap(image, scores), title, [index] if index else []))
        rows.append(drawing.stack(row, len(row)))
    return drawing.stack(rows, 1, pad=0)


def draw_cams(samples: ImageDataset, batch: dict, maps: Tensor) -> np.ndarray:
    """Return a grid of the first images: image, ground truth, the CAMs of its labels.

    `batch` is the first batch of samples, with labels (N, C); maps (N, C, h, w) are its class maps.
    """
    cams = make_cam(maps.float()).cpu().numpy()
    heatmaps = [
        [('CAM', cam[index], index + 1) for index in np.flatnonzero(labels)]
        for cam, labels in zip(cams, batch['labels'].cpu().numpy(), strict=True)
    ]
    return draw_rows(samples.dataset, batch, {'ground truth': ground_truth(samples, ROWS)}, heatmaps)


def _captioned(dataset: Dataset, picture: np.ndarray, title: str, classes: Sequence[int]) -> np.ndarray:
    """Return a picture, enlarged by a whole factor if it is small, over its title and class names.

    If Pillow's own font lacks a character of a name, its number is shown instead.
    """
    factor = max(1, math.ceil(WIDTH / picture.shape[1]))
    picture, font = picture.repeat(factor, 0).repeat(factor, 1), drawing.open_font()
    font = font.font_variant(size=max(13, round(0.04 * picture.shape[1])))
    names = {index: dataset.class_names[index - 1] for index in classes}
    chips = [
        (name if drawing.can_write(font, name) else f'class {index}', dataset.palette[index].tolist())
        for index, name in names.items()
    ]
    return drawing.caption(picture, title, chips, '', font)
