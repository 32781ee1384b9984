"""The steps of the chain that run a network: CAMs, edges and their random walk, class probabilities.

Images in, arrays out: stages 2, 5 and 8, tools.predict and the recipes call these, and core.labels for the following
steps.
"""

import numpy as np
import torch
from torch import Tensor, nn

from core.cam import cams_from_maps, multi_scale_maps
from core.data.transforms import normalize
from core.maps import average_cams, normalize_rw
from core.models.affinitynet import predict_edges
from core.models.deeplab import multi_scale_logits
from core.random_walk import BETA, EXP_TIMES, random_walk


def image_cams(
    classifier: nn.Module,
    pixels: list[Tensor],
    labels: np.ndarray | Tensor,
    size: tuple[int, int],
    read_out: str = 'published',
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the CAMs of N images of one size (h, w): for each, cam (K, h/4, w/4) and hr_cam (K, h, w) in [0, 1].

    pixels: (N, h_s, w_s, 3) uint8 on the device at each scale; labels (N, C) multi-hot: K present classes of an image;
    read_out: one of core.cam.READ_OUTS.
    """
    return cams_of(classify(classifier, pixels, read_out)[1], labels, size)


def classify(
    classifier: nn.Module, pixels: list[Tensor], read_out: str = 'published'
) -> tuple[np.ndarray, list[list[Tensor]]]:
    """Return the class probabilities (N, C) of images, and their class maps (see core.cam.multi_scale_maps)."""
    probability, maps = multi_scale_maps(classifier, [normalize(scaled) for scaled in pixels], read_out)
    return probability.cpu().numpy(), maps


def cams_of(
    maps: list[list[Tensor]], labels: np.ndarray | Tensor, size: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the CAMs of the present classes, as `image_cams` does, from the class maps of `classify`."""
    present = torch.as_tensor(labels).to(maps[0][0].device)
    found = [cams_from_maps(scales, present, size) for scales in maps]
    images = zip(*found, strict=True)
    return [tuple(average_cams([[one.cpu().numpy() for one in cam] for cam in cams])) for cams in images]


def image_edges(affinity_net: nn.Module, pixels: Tensor, min_size: int) -> Tensor:
    """Return the edges (N, h/4, w/4) in [0, 1] of images (N, h, w, 3) uint8; smaller images are padded to min_size."""
    return predict_edges(affinity_net, normalize(pixels), min_size)


def walk_cams(
    cam: np.ndarray, edge: Tensor, beta: float = BETA, exp_times: int = EXP_TIMES, rw_normalization: str = 'joint'
) -> np.ndarray:
    """Return the random-walk CAMs (K, h/4, w/4) in [0, 1] of an image, from its cam (K, h/4, w/4) and edges.

    rw_normalization: as `by` of core.maps.normalize_rw.
    """
    walked = random_walk(torch.from_numpy(cam).to(edge.device), edge, beta=beta, exp_times=exp_times)
    return normalize_rw(walked.cpu().numpy(), rw_normalization)


def image_probabilities(segmenter: nn.Module, pixels: list[Tensor], size: tuple[int, int]) -> np.ndarray:
    """Return the class probabilities (N, C+1, h, w) of N images of one size; pixels as in `image_cams`.

    They begin with the background; without one there are C, and the first class is label 1.
    """
    logits = multi_scale_logits(segmenter, [normalize(scaled) for scaled in pixels], size)
    return torch.softmax(logits, 1).cpu().numpy()
