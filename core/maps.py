"""Score maps of the present classes between stages: their sizes, and what they predict. NumPy and OpenCV alone."""

import cv2
import numpy as np


def strided_size(size: tuple[int, int], stride: int = 4) -> tuple[int, int]:
    """(h, w) at every `stride`-th pixel: ((h-1)//stride + 1, ...)."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def finish_walk(walked: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring walked CAMs (K, h/4, w/4) to the image: (K, h, w) float32, maximum 1 over ALL classes and pixels (KEEP).

    Bilinear by 4, pixel centres aligned (torch's align_corners=False), then cropped. What is kept on disk is at stride
    4, so this is done on reading.
    """
    h, w = size
    maps = np.zeros((len(walked), h, w), np.float32)
    for target, source in zip(maps, walked.astype(np.float32), strict=True):
        target[:] = cv2.resize(source, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)[:h, :w]
    largest = maps.max(initial=0)
    return maps / largest if largest > 0 else maps


def predict(maps: np.ndarray, threshold: float) -> np.ndarray:
    """Index into `keys` of each pixel, argmax over [threshold, maps...]: (K, h, w) -> (h, w) int64.

    A pixel is foreground where the largest score exceeds the threshold as float32.
    """
    background = np.full((1, *maps.shape[1:]), threshold, np.float32)
    return np.concatenate([background, maps.astype(np.float32)]).argmax(0)
