"""Score maps of the present classes between stages: their sizes and their predictions.

No torch here: stages 3, 6 and 9 import this module and fork.
"""

from collections.abc import Sequence

import cv2
import numpy as np

EPSILON = 1e-5  # added to the maximum that a CAM is divided by


def strided_size(size: tuple[int, int], stride: int = 4) -> tuple[int, int]:
    """Return (h, w) at every `stride`-th pixel: ((h-1)//stride + 1, (w-1)//stride + 1)."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def present_keys(labels: np.ndarray) -> np.ndarray:
    """Return the keys of an image: (C,) multi-hot -> [0, c1+1, ..., cK+1], the background and the present classes.

    The 0 is there without a background too, so that files have one format; no pixel gets it then.
    """
    return np.concatenate([[0], np.flatnonzero(labels) + 1]).astype(np.int64)


def average_cams(cams: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Return the mean of several CAMs of an image, each map divided by its maximum + 1e-5 again.

    cams: of each CAM its maps, such as cam (K, h/4, w/4) and hr_cam (K, h, w). A single one is returned as it is.
    """
    if len(cams) == 1:
        return list(cams[0])
    means = [np.mean(maps, axis=0) for maps in zip(*cams, strict=True)]
    return [mean / (mean.max((1, 2), keepdims=True, initial=0) + np.float32(EPSILON)) for mean in means]


def normalize_rw(rw: np.ndarray, by: str = 'joint') -> np.ndarray:
    """Divide random-walk CAMs (K, h, w) by their maximum: over all classes ('joint'), or of each class ('class').

    'joint' follows the published code. With 'class', the weaker of two classes can pass the threshold too
    (docs/method.md, "Random walk").
    """
    largest = rw.max((1, 2) if by == 'class' else None, keepdims=True, initial=0)
    return rw / np.where(largest > 0, largest, 1)


def upsample_rw(rw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample random-walk CAMs (K, h/4, w/4) to the image size: (K, h, w) float32, maximum 1 over ALL classes.

    Bilinear by 4 with pixel centres aligned (torch's align_corners=False), then cropped. One maximum over all classes
    and pixels, as published (docs/method.md, "Random walk"): the threshold of 0.35 depends on it.
    """
    h, w = size
    maps = np.zeros((len(rw), h, w), np.float32)
    for target, source in zip(maps, rw.astype(np.float32), strict=True):
        target[:] = cv2.resize(source, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)[:h, :w]
    largest = maps.max(initial=0)
    if largest > 0:
        maps /= largest
    return maps


class UpsampledRW:
    """What `upsample_rw` returns, of which parts are computed on request: maps[:, rows, columns]."""

    def __init__(self, rw: np.ndarray, size: tuple[int, int]):
        self.rw, self.size, self.largest = rw.astype(np.float32), size, 0.0
        self.largest = max((float(self[k : k + 1, :, :].max()) for k in range(len(rw))), default=0.0) or 1.0

    def __getitem__(self, part: tuple[slice, slice, slice]) -> np.ndarray:
        (top, bottom, _), (left, right, _) = (side.indices(n) for side, n in zip(part[1:], self.size, strict=True))
        y, x = max(0, top // 4 - 1), max(0, left // 4 - 1)  # bilinear by 4 reads one cell to each side
        source = self.rw[part[0], y : bottom // 4 + 2, x : right // 4 + 2]
        maps = np.zeros((len(source), bottom - top, right - left), np.float32)
        for target, cells in zip(maps, source, strict=True):
            pixels = cv2.resize(np.ascontiguousarray(cells), None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
            target[:] = pixels[top - 4 * y :, left - 4 * x :][: bottom - top, : right - left]
        return maps / self.largest if self.largest else maps


def threshold_cams(maps: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return the index into `keys` per pixel, argmax over [threshold, maps...]: (K, h, w) -> (h, w) int64.

    A pixel is foreground where its largest score exceeds the threshold as float32. None is for data sets without a
    background: the largest score wins wherever it is, the first one of equals.
    """
    label = np.zeros(maps.shape[1:], np.int64)
    largest = np.full(maps.shape[1:], -np.inf if threshold is None else threshold, np.float32)
    for i, scores in enumerate(maps, 1):  # class by class: a copy of 20 maps of 2000x1500 takes 240 MB
        scores = scores.astype(np.float32)
        label[scores > largest] = i
        np.maximum(largest, scores, out=largest)
    return label
