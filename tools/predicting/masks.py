"""Masks of single photographs: loading in workers, the networks in this process, CRF and files in the background.

The same functions as in stages 2, 5, 6 and 8, with one image per batch (docs/method.md, "Single photographs").
"""

import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from core import UserError, chain
from core.crf import crf_from_probability
from core.data.dataset import Dataset
from core.data.tiled import TiledImage, at_scales
from core.labels import pseudo_label
from core.maps import UpsampledRW, present_keys, upsample_rw
from core.models.tiled_logits import TiledProbabilities
from core.tiles import cut, is_cut, label_by_tiles
from tools.predicting.folder import MaskFolder, Prediction
from util.store.arrays import Header, Parts

TOO_LARGE = 'does not fit in memory: pass --tile 1024, or use a smaller image or smaller --scales'


class Job(NamedTuple):
    """What remains to be done in the background: make(image, *arrays) returns the prediction."""

    make: Callable[..., Prediction]
    arrays: Sequence[np.ndarray]


class Outcome(NamedTuple):
    """What became of an image: scores by class index and whether the mask has classes, or the fault."""

    image_id: str
    scores: dict[int, float]
    has_classes: bool = False
    fault: str = ''


class Pictures:
    """Photographs for a loader: (id, image (h, w, 3) uint8, [image (1, h_s, w_s, 3) uint8 per scale, or tiles]).

    For a photograph that cannot be read, the second is the text of the error.
    """

    def __init__(
        self, dataset: Dataset, ids: Sequence[str], scales: Sequence[float], backend: str, tile: int | None = None
    ):
        self.dataset, self.ids, self.scales, self.backend, self.tile = dataset, ids, scales, backend, tile

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> tuple[str, np.ndarray | str, list[Tensor | TiledImage]]:
        image_id = self.ids[position]
        try:
            return image_id, *at_scales(self.dataset.read_image(image_id), self.scales, self.tile, self.backend)
        except (UserError, MemoryError, RuntimeError) as error:
            return image_id, explain(error, self.dataset.image_path(image_id)), []


def explain(error: Exception, path) -> str:
    """Return the line of an error that ends only its image. Raises any other error, which is a bug."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or 'DefaultCPUAllocator' in str(error):
        return f'{path}: {TOO_LARGE}'
    if isinstance(error, UserError):
        return str(error)
    raise error from None


def look_for_classes(
    image: np.ndarray,
    pixels: list[Tensor | TiledImage],
    labels: np.ndarray | None,
    *,
    model: str,
    classifier: nn.Module,
    affinity_net: nn.Module | None,
    cam: str,
    class_threshold: float,
    threshold: float | None,
    crf_iteration: int,
    image_size: int | None,
    walking: dict[str, object],
    tile: int | None,
) -> Job:
    """Return the job of a classifier for an image (h, w, 3); labels (C,) multi-hot, None for the predicted classes.

    pixels: the image at each scale and, with AffinityNet, at last as it is. `cam`: one of core.cam.READ_OUTS.
    `walking`: options of core.chain.walk_cams. A threshold of None is for models without a background, for which some
    class is present: the most probable one at least.
    """
    size = image.shape[:2]
    *scales, whole = pixels if affinity_net is not None else [*pixels, None]
    (probability,), maps = chain.classify(classifier, scales, cam)
    if not np.isfinite(probability).all():
        raise UserError(f'{model}: its scores are not finite: the model has diverged, train it again')
    present = (probability > class_threshold if labels is None else labels).astype(np.float32)
    if threshold is None and not present.any():
        present[probability.argmax()] = 1
    keys = present_keys(present)
    shown = keys[1:] if len(keys) > 1 else [1 + int(probability.argmax())]
    scores = {int(key): float(probability[key - 1]) for key in shown}

    # The CAMs, rounded as in the files of stage 2.
    (cams,) = chain.cams_of(maps, present[None], size, chain.is_tiled(scales))
    found = [keys, *(array.astype(np.float16, copy=False) for array in cams)]

    # Their random walk, rounded as in the files of stage 5.
    if affinity_net is not None:
        (edge,) = chain.image_edges(affinity_net, whole, image_size)
        found.append(chain.walk_cams(found[1].astype(np.float32), edge, **walking).astype(np.float16))
    return Job(partial(threshold_scores, scores, threshold, crf_iteration, tile), found)


def threshold_scores(
    scores: dict[int, float],
    threshold: float | None,
    iterations: int,
    tile: int | None,
    image: np.ndarray,
    keys: np.ndarray,
    cam: np.ndarray,
    hr_cam: np.ndarray,
    rw: np.ndarray | None = None,
) -> Prediction:
    """Return the prediction from the CAMs of an image, or from their random walk: the pseudo-label of stage 6."""
    found = {'keys': keys, 'cam': cam, 'hr_cam': hr_cam, **({} if rw is None else {'rw': rw})}
    upsample = UpsampledRW if is_cut(image.shape[:2], tile) else upsample_rw
    maps = hr_cam if rw is None else upsample(rw, image.shape[:2])
    options = {'keys': keys, 'threshold': threshold, 'iterations': iterations}
    return Prediction(label_by_tiles(pseudo_label, image, maps, tile, **options), found, scores)


def segment(
    image: np.ndarray,
    pixels: list[Tensor | TiledImage],
    labels: None,
    *,
    segmenter: nn.Module,
    crf_iteration: int,
    first_label: int,
    tile: int | None,
) -> Job:
    """Return the job of a segmentation network for an image (h, w, 3), as in stage 8.

    first_label: the label of its first output.
    """
    (probability,) = chain.image_probabilities(segmenter, pixels, image.shape[:2])
    make = partial(refine_by_tiles, tile) if chain.is_tiled(pixels) else refine
    return Job(partial(make, crf_iteration, first_label), [probability])


def refine(iterations: int, first_label: int, image: np.ndarray, probability: np.ndarray) -> Prediction:
    """Return the prediction from class probabilities (outputs, h, w); a class's score is the mean over its pixels."""
    probability = crf_from_probability(image, probability, iterations)
    mask = probability.argmax(0) + first_label
    keys = np.unique(mask) if first_label else np.union1d([0], mask)
    kept = probability[keys - first_label]
    scores = {int(key): float(scores[mask == key].mean()) for key, scores in zip(keys, kept, strict=True) if key}
    return Prediction(mask, {'keys': keys, 'probability': kept.astype(np.float16)}, scores)


def refine_by_tiles(
    tile: int, iterations: int, first_label: int, image: np.ndarray, probability: TiledProbabilities
) -> Prediction:
    """Return what `refine` does, tile by tile: each pixel is from the tile that it is farthest inside of.

    The probabilities of the prediction can be written once: they are unpacked class by class.
    """
    size = image.shape[:2]
    mask, sums, packed, places = np.zeros(size, np.uint8), {}, tempfile.TemporaryFile(), []
    for rows, columns in cut(size, tile):
        part = image[rows.whole, columns.whole], probability[:, rows.whole, columns.whole]
        own = crf_from_probability(*part, iterations)[:, rows.inner, columns.inner]
        found = mask[rows.own, columns.own] = own.argmax(0) + first_label
        for key in np.unique(found):
            here = own[key - first_label][found == key]
            sums[int(key)] = sums.get(int(key), 0) + np.array([here.sum(dtype=np.float64), here.size])

        # Which classes the mask contains is known at the end: until then, keep the probabilities of all on the disk.
        compressed = (zlib.compress(one.astype(np.float16).tobytes(), 1) for one in own)
        places.append([(packed.tell(), packed.write(content)) for content in compressed])
    keys = np.array(sorted(sums)) if first_label else np.union1d([0], sorted(sums))

    def unpack() -> Iterator[np.ndarray]:
        whole = np.empty(size, np.float16)
        for key in keys:
            for (rows, columns), of_tile in zip(cut(size, tile), places, strict=True):
                start, length = of_tile[key - first_label]
                packed.seek(start)
                own = whole[rows.own, columns.own]
                own[:] = np.frombuffer(zlib.decompress(packed.read(length)), np.float16).reshape(own.shape)
            yield whole
        packed.close()

    kept = Parts(Header((len(keys), *size), np.dtype(np.float16)), unpack())
    scores = {int(key): float(sums[key][0] / sums[key][1]) for key in keys if key}
    return Prediction(mask, {'keys': keys, 'probability': kept}, scores)


def finish(
    folder: MaskFolder, image_id: str, path: str, make: Callable[..., Prediction], image: np.ndarray, *maps: np.ndarray
) -> Outcome:
    """Make and write the mask of an image; runs in a background process."""
    try:
        prediction = make(image, *maps)
        folder.write(image_id, image, prediction)
    except (UserError, MemoryError) as error:
        return Outcome(image_id, {}, fault=explain(error, path))
    return Outcome(image_id, prediction.scores, bool(prediction.arrays['keys'].any()))
