"""The gallery of tools.report: every stage's maps over the images, as data for the page's script. No torch."""

import base64
import io

import cv2
import numpy as np
from PIL import Image

from core.data.dataset import Dataset
from core.metrics import mean_scores
from tools.reporting import find, panels
from tools.reporting.entries import Entry, short_title, stage_number
from tools.reporting.provenance import Step
from util.store import formats

SIDE = 320  # longer side of the pictures, in pixels


def find_sources(entries: list[Entry], steps: list[Step]) -> list[panels.Source]:
    """Return the folders of the entries and the folders upstream of them, in the order of the stages."""
    sources = []
    folders = [step for step in steps if not step.is_run and step.path.is_dir()]
    for step in sorted(folders, key=lambda step: stage_number(step.kind)):
        if step.kind == formats.RANDOM_WALK.title and step.options:
            edges = formats.PREDICTIONS / formats.folder_name(formats.EDGE, step.options, {})
            if edges.is_dir():
                title = short_title(formats.EDGE.title, edges.name)
                sources.append(panels.Source(title, formats.EDGE, edges, {}))
        own = [entry for entry in entries if entry.folder == step.name and not entry.crf]
        thresholds = {entry.domain: entry.result['threshold'] for entry in own if entry.result}
        title = own[0].title if own else short_title(step.kind, step.name)
        sources.append(panels.Source(title, find.format_of(step.path), step.path, thresholds))
    return sources


def choose_ids(ids: list[str], scores: dict[str, float], count: int, wanted: list[str]) -> list[str]:
    """Return the wanted ids, and a third each from the worst, the middle and the best scores: `count` ids in all.

    Ids without a score come last, in their order. All ids if count is 0.
    """
    ranked = sorted(ids, key=lambda image_id: scores.get(image_id, np.inf))
    if count == 0 or count >= len(ranked):
        return ranked
    third = -(-count // 3)
    middle = (len(ranked) - third) // 2
    order = [*wanted, *ranked[:third], *ranked[middle : middle + third], *ranked[::-1][:third], *ranked]
    known = set(ids)
    chosen = set(list(dict.fromkeys(image_id for image_id in order if image_id in known))[:count])
    return [image_id for image_id in ranked if image_id in chosen]


def score_images(ids: list[str], counts: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the IoU (%) of each image: its mean under 'all', and by index of the classes that occur in it.

    `counts` are T, P and TP (N, C, 3).
    """
    target, predicted, both = np.moveaxis(counts.astype(np.int64), 2, 0)
    union = target + predicted - both
    means = mean_scores(counts)['miou']
    scores = {}
    for image_id, mean, row_both, row_union in zip(ids, means, both, union, strict=True):
        present = np.flatnonzero(row_union)
        by_class = {str(c): round(100 * float(row_both[c] / row_union[c]), 1) for c in present}
        scores[image_id] = {'all': round(100 * float(mean), 1), **by_class}
    return scores


def make_card(image: tuple[str, str], dataset: Dataset, sources: list[panels.Source]) -> dict:
    """Return the card of an image (id, list): its classes, and its pictures as data URLs."""
    image_id, domain = image
    image = np.array(dataset.read_image(image_id))
    drawn = panels.draw_image(image_id, image.shape[:2], domain, dataset, sources)
    shown = [
        {
            'title': panel.title,
            'source': index,
            'classes': panel.classes,
            'note': panel.note,
            'errors': panel.errors,
            'layer': encode_layer(panel.layer, panel.is_heatmap),
            'smooth': panel.is_heatmap,
        }
        for index, panel in drawn
    ]
    known = [panel for index, panel in drawn if index is None and panel.classes]  # of tags or mask, or else predicted
    classes = {key for panel in known or [panel for _, panel in drawn] for key in panel.classes if key}
    scale = min(1, SIDE / max(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return {
        'id': image_id,
        'domain': domain,
        'width': width,
        'height': height,
        'classes': sorted(classes),
        'image': encode(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), quality=75),
        'panels': shown,
    }


def encode_layer(layer: np.ndarray | None, is_heatmap: bool) -> str | None:
    """Return a layer as a data URL: heat maps lossy, masks with their exact colours."""
    if layer is None:
        return None
    h, w = layer.shape[:2]
    scale = min(1, SIDE / max(h, w))
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    if is_heatmap:
        return encode(cv2.resize(layer[..., :3], size, interpolation=cv2.INTER_AREA), quality=60)
    return encode(cv2.resize(layer, size, interpolation=cv2.INTER_NEAREST), lossless=True)


def encode(picture: np.ndarray, **options) -> str:
    """Return a picture as the data URL of a WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'WEBP', method=2, **options)
    return 'data:image/webp;base64,' + base64.b64encode(buffer.getvalue()).decode()
