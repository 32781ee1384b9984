"""Dense CRFs of Kraehenbuehl and Koltun (METHOD, section 8), through pydensecrf; the only place that imports it."""

import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_labels, unary_from_softmax


def _infer(image: np.ndarray, unary: np.ndarray, sxy: float, srgb: float, iterations: int) -> np.ndarray:
    """(labels, h, w) probabilities: Gaussian sxy 3, compat 3; bilateral of the given sxy and srgb, compat 10."""
    h, w = image.shape[:2]
    labels = len(unary)
    crf = dcrf.DenseCRF2D(w, h, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=np.ascontiguousarray(image), compat=10)
    return np.asarray(crf.inference(iterations), np.float32).reshape(labels, h, w)


def crf_from_label(image: np.ndarray, label: np.ndarray, num_labels: int, iterations: int = 10) -> np.ndarray:
    """Refine a label map that is believed with probability 0.7: image (h, w, 3) uint8, label (h, w) in 0..num_labels-1.

    Returns (h, w) of label's dtype. One label alone (an image without foreground) has nothing to refine, nor has
    `iterations` 0.
    """
    if num_labels < 2 or iterations == 0:
        return label.copy()
    unary = unary_from_labels(np.ascontiguousarray(label), num_labels, gt_prob=0.7, zero_unsure=False)
    return _infer(image, unary, 50, 5, iterations).argmax(0).astype(label.dtype)


def crf_from_probability(image: np.ndarray, probability: np.ndarray, iterations: int = 10) -> np.ndarray:
    """Refine class probabilities: image (h, w, 3) uint8, probability (C+1, h, w) -> (C+1, h, w) float32."""
    if iterations == 0:
        return probability.astype(np.float32)
    return _infer(image, unary_from_softmax(np.ascontiguousarray(probability)), 80, 13, iterations)
