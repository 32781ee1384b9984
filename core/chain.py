"""The steps of the chain that run a network: CAMs, edges and their random walk, class probabilities.

Images in, arrays out: stages 2, 5 and 8, tools.predict and the recipes call these, and core.labels for the following
steps. An image that is too large for a network is alone in its batch and comes in tiles (core/data/tiled.py).
"""

import numpy as np
import torch
from torch import Tensor, nn

from core.cam import cams_from_maps, multi_scale_maps
from core.data.tiled import TiledImage
from core.data.transforms import normalize
from core.maps import average_cams, normalize_rw, strided_size
from core.models.affinitynet import predict_edges
from core.models.deeplab import multi_scale_logits
from core.models.tiled_logits import TiledProbabilities
from core.random_walk import BETA, EXP_TIMES, random_walk, walk_by_tiles


def image_cams(
    classifier: nn.Module,
    pixels: list[Tensor | TiledImage],
    labels: np.ndarray | Tensor,
    size: tuple[int, int],
    read_out: str = 'published',
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the CAMs of N images of one size (h, w): for each, cam (K, h/4, w/4) and hr_cam (K, h, w) in [0, 1].

    pixels: (N, h_s, w_s, 3) uint8 on the device at each scale, or tiles; labels (N, C) multi-hot: K present classes of
    an image; read_out: one of core.cam.READ_OUTS.
    """
    return cams_of(classify(classifier, pixels, read_out)[1], labels, size, is_tiled(pixels))


def is_tiled(pixels: list[Tensor | TiledImage]) -> bool:
    """Return whether an image comes in tiles at some scale."""
    return any(isinstance(scaled, TiledImage) for scaled in pixels)


def _normalized(pixels: list[Tensor | TiledImage]) -> list[Tensor | TiledImage]:
    return [scaled if isinstance(scaled, TiledImage) else normalize(scaled) for scaled in pixels]


def classify(
    classifier: nn.Module, pixels: list[Tensor | TiledImage], read_out: str = 'published'
) -> tuple[np.ndarray, list[list[Tensor]]]:
    """Return the class probabilities (N, C) of images, and their class maps (see core.cam.multi_scale_maps)."""
    probability, maps = multi_scale_maps(classifier, _normalized(pixels), read_out)
    return probability.cpu().numpy(), maps


def cams_of(
    maps: list[list[Tensor]], labels: np.ndarray | Tensor, size: tuple[int, int], one_by_one: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the CAMs of the present classes, as `image_cams` does, from the class maps of `classify`.

    `one_by_one`: class by class, rounded to float16, of a single image. A class of 10,000 x 10,000 pixels takes 0.4 GB
    in single precision.
    """
    if one_by_one:
        (classes,) = np.asarray(labels)
        shapes = strided_size(size), size
        cam, hr_cam = (np.zeros((np.count_nonzero(classes), *shape), np.float16) for shape in shapes)
        for k, index in enumerate(np.flatnonzero(classes)):
            one = np.eye(1, len(classes), index, dtype=np.float32)
            ((cam[k : k + 1], hr_cam[k : k + 1]),) = cams_of(maps, one, size)
        return [(cam, hr_cam)]
    present = torch.as_tensor(labels).to(maps[0][0].device)
    found = [cams_from_maps(scales, present, size) for scales in maps]
    images = zip(*found, strict=True)
    return [tuple(average_cams([[one.cpu().numpy() for one in cam] for cam in cams])) for cams in images]


def image_edges(affinity_net: nn.Module, pixels: Tensor | TiledImage, min_size: int) -> Tensor:
    """Return the edges (N, h/4, w/4) in [0, 1] of images (N, h, w, 3) uint8, or of an image in tiles.

    Smaller images are padded to min_size.
    """
    return predict_edges(affinity_net, *_normalized([pixels]), min_size)


def walk_cams(
    cam: np.ndarray,
    edge: Tensor,
    beta: float = BETA,
    exp_times: int = EXP_TIMES,
    rw_normalization: str = 'joint',
    tile: int | None = None,
) -> np.ndarray:
    """Return the random-walk CAMs (K, h/4, w/4) in [0, 1] of an image, from its cam (K, h/4, w/4) and edges.

    rw_normalization: as `by` of core.maps.normalize_rw. With a `tile` (pixels of the image), larger images are walked
    by tiles (core.random_walk.walk_by_tiles).
    """
    cams, options = torch.from_numpy(cam).to(edge.device), {'beta': beta, 'exp_times': exp_times}
    walked = random_walk(cams, edge, **options) if tile is None else walk_by_tiles(cams, edge, tile // 4, **options)
    return normalize_rw(walked.cpu().numpy(), rw_normalization)


def image_probabilities(
    segmenter: nn.Module, pixels: list[Tensor | TiledImage], size: tuple[int, int]
) -> np.ndarray | list[TiledProbabilities]:
    """Return the class probabilities (N, C+1, h, w) of N images of one size; pixels as in `image_cams`.

    They begin with the background; without one there are C, and the first class is label 1. Of an image in tiles, they
    are computed when a part of them is read.
    """
    if is_tiled(pixels):
        return [TiledProbabilities(segmenter, _normalized(pixels), size)]
    logits = multi_scale_logits(segmenter, _normalized(pixels), size)
    return torch.softmax(logits, 1).cpu().numpy()
