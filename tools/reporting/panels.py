"""Drawings of the outputs of the stages: a panel per map of an image, with its caption. No torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from core import IGNORE, UserError
from core.data import drawing
from core.data.dataset import Dataset
from core.maps import strided_size, threshold_cams, upsample_rw
from util.store import arrays, formats

MAPS = {'hr_cam': formats.CAM.title, 'rw': formats.RANDOM_WALK.title}
# Colours of the errors of a label map, distinguishable for colour-blind people.
MISSED, SURPLUS, CONFUSED, UNSCORED = (0, 114, 178), (230, 159, 0), (204, 51, 119), (128, 128, 128)
ERRORS = {'missed': MISSED, 'too much': SURPLUS, 'wrong class': CONFUSED, 'not scored': UNSCORED}


class Panel(NamedTuple):
    """A layer over an image, and the parts of its caption."""

    title: str
    layer: np.ndarray | None = None  # (h, w, 4); None: the image alone
    classes: tuple[int, ...] = ()  # named in the caption, each in its colour; the background only if alone
    note: str = ''
    errors: tuple[float, ...] = ()  # % of the scored pixels that are missed, too much, or of a wrong class
    is_heatmap: bool = False


class Source(NamedTuple):
    """A folder whose maps are shown."""

    title: str  # '' to name each panel after its output
    kind: formats.Format | None  # of label maps, whose files do not record it; None for files of tools.predict
    path: Path
    thresholds: dict[str, float | None]  # the threshold of its maps, by scored list


class Output(NamedTuple):
    """A folder's output for an image: maps (K, h, w) of the classes keys[1:], a label map or an edge map (h, w)."""

    title: str
    keys: np.ndarray | None = None
    maps: np.ndarray | None = None
    label: np.ndarray | None = None
    edge: np.ndarray | None = None

    def predicted_label(self, size: tuple[int, int], threshold: float | None) -> np.ndarray:
        """Return the label map that is scored: (h, w) of the size of the image; maps are thresholded."""
        if self.label is not None:
            return self.label
        maps = upsample_rw(self.maps, size) if self.title == MAPS['rw'] else self.maps
        return self.keys[threshold_cams(maps, threshold)]


def has_output(folder: Path, image_id: str) -> bool:
    """Return whether an output folder has a file of an image."""
    return any((folder / f'{image_id}{suffix}').is_file() for suffix in ('.npz', '.png'))


def read_outputs(dataset: Dataset, source: Source, image_id: str, size: tuple[int, int]) -> list[Output]:
    """Return a folder's outputs for an image: one, or the maps and the mask of tools.predict; [] if there are none.

    Raises UserError naming a file that cannot be read.
    """
    maps, label = (source.path / f'{image_id}{suffix}' for suffix in ('.npz', '.png'))
    names = arrays.names_inside(maps) if maps.is_file() else []
    outputs = []
    for name in MAPS:
        if name in names:
            expected = strided_size(size) if name == 'rw' else size
            outputs.append(Output(MAPS[name], *arrays.read_maps(maps, name, dataset.num_classes, expected)))
    if 'edge' in names:
        outputs.append(Output(formats.EDGE.title, edge=arrays.read_edge(maps, strided_size(size))))
    if label.is_file():
        kind = source.kind or formats.PREDICTION
        outputs.append(Output(kind.title, label=dataset.read_label_map(label, size)))
    if maps.is_file() and not outputs:
        raise UserError(f'{maps}: contains none of {", ".join((*MAPS, "edge"))}{arrays.REPAIR}')
    return outputs


def draw_output(title: str, output: Output, palette: np.ndarray) -> list[Panel]:
    """Return a panel per class for maps, one for a label map or edge map."""
    if output.label is not None:
        return [draw_label(title, output.label, palette)]
    if output.edge is not None:
        return [Panel(title, drawing.heatmap_layer(output.edge), is_heatmap=True)]
    panels = []
    for key, scores in zip(output.keys[1:].tolist(), output.maps, strict=True):
        if output.title != MAPS['rw']:  # which are small already
            scores = cv2.resize(scores, strided_size(scores.shape)[::-1], interpolation=cv2.INTER_AREA)
        layer, note = drawing.heatmap_layer(scores), f'maximum {scores.max():.2f}'
        panels.append(Panel(title, layer, (key,), note, is_heatmap=True))
    return panels or [Panel(title, note='no class')]


def draw_label(title: str, label: np.ndarray, palette: np.ndarray) -> Panel:
    """Return the panel of a label map or mask (h, w)."""
    classes = np.unique(label).tolist()
    unsure = f'{100 * np.mean(label == IGNORE):.0f} % ignored' if IGNORE in classes else ''
    shown = tuple(index for index in classes if index not in (0, IGNORE)) or ((0,) if 0 in classes else ())
    return Panel(title, drawing.mask_layer(label, palette), shown, unsure)


def draw_errors(title: str, label: np.ndarray, mask: np.ndarray) -> Panel:
    """Return the panel of a label map's errors against a mask, both (h, w): missed, too much, wrong class."""
    scored = mask != IGNORE
    kinds = (
        (scored & (label == 0) & (mask > 0), MISSED),
        (scored & (label > 0) & (mask == 0), SURPLUS),
        (scored & (label > 0) & (mask > 0) & (label != mask), CONFUSED),
        (~scored, UNSCORED),
    )
    layer = np.zeros((*mask.shape, 4), np.uint8)
    for where, colour in kinds:
        layer[where] = (*colour, 255)
    shares = tuple(round(100 * float(where.sum() / max(1, scored.sum())), 1) for where, _ in kinds[:3])
    return Panel(title, layer, errors=shares)


def draw_image(
    image_id: str, size: tuple[int, int], domain: str, dataset: Dataset, sources: Sequence[Source]
) -> list[tuple[int | None, Panel]]:
    """Return the panels of an image, each with the index of its source or None: image, mask, then each source's panels.

    If there is a mask, label maps, and maps that were scored on the list `domain`, are followed by their errors.
    """
    drawn = [(None, Panel('image', classes=read_tags(dataset, image_id)))]
    mask = dataset.read_mask(image_id, size) if dataset.has_mask(image_id) else None
    if mask is not None:
        drawn.append((None, draw_label('ground truth', mask, dataset.palette)))
    for index, source in enumerate(sources):
        outputs = read_outputs(dataset, source, image_id, size)
        for output in outputs:
            title = source.title or output.title
            title = f'{title}: {output.title}' if source.title and len(outputs) > 1 else title
            drawn += [(index, panel) for panel in draw_output(title, output, dataset.palette)]
            if output.label is not None:
                is_scored = source.kind != formats.AFFINITY_LABEL
            else:
                is_scored = output.maps is not None and domain in source.thresholds
            if mask is not None and is_scored:
                label = output.predicted_label(size, source.thresholds.get(domain))
                drawn.append((index, draw_errors(f'errors of {title}', label, mask)))
    return drawn


def read_tags(dataset: Dataset, image_id: str) -> tuple[int, ...]:
    """Return the classes of the image-level label, the background for an image without objects, () if unknown."""
    try:
        return tuple((np.flatnonzero(dataset.read_labels(image_id)) + 1).tolist()) or (0,)
    except UserError:  # VOC's test images, and other lists that only have masks, are not labelled
        return ()
