"""Dense CRFs of Kraehenbuehl and Koltun (METHOD, section 8), through pydensecrf; the only place that imports it."""

import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_labels, unary_from_softmax


class _CRF:
    """Pairwise terms of an image: Gaussian sxy 3, compat 3; bilateral of the given sxy and srgb, compat 10."""

    def __init__(self, image: np.ndarray, num_labels: int, sxy: float, srgb: float):
        self.shape = (num_labels, *image.shape[:2])
        self.crf = dcrf.DenseCRF2D(image.shape[1], image.shape[0], num_labels)
        self.crf.addPairwiseGaussian(sxy=3, compat=3)
        self.crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=np.ascontiguousarray(image), compat=10)

    def infer(self, unary: np.ndarray, iterations: int) -> np.ndarray:
        """(labels, h, w) probabilities from unary energies (labels, h*w)."""
        self.crf.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
        return np.asarray(self.crf.inference(iterations), np.float32).reshape(self.shape)


def crf_from_labels(
    image: np.ndarray, labels: list[np.ndarray], num_labels: int, iterations: int = 10
) -> list[np.ndarray]:
    """`crf_from_label` of several label maps of one image, whose lattices are built once."""
    if num_labels < 2 or iterations == 0:
        return [label.copy() for label in labels]
    crf = _CRF(image, num_labels, 50, 5)
    refined = []
    for label in labels:
        unary = unary_from_labels(np.ascontiguousarray(label), num_labels, gt_prob=0.7, zero_unsure=False)
        refined.append(crf.infer(unary, iterations).argmax(0).astype(label.dtype))
    return refined


def crf_from_label(image: np.ndarray, label: np.ndarray, num_labels: int, iterations: int = 10) -> np.ndarray:
    """Refine a label map that is believed with probability 0.7: image (h, w, 3) uint8, label (h, w) in 0..num_labels-1.

    Returns (h, w) of label's dtype. One label alone (an image without foreground) has nothing to refine, nor has
    `iterations` 0.
    """
    return crf_from_labels(image, [label], num_labels, iterations)[0]


def crf_from_probability(image: np.ndarray, probability: np.ndarray, iterations: int = 10) -> np.ndarray:
    """Refine class probabilities: image (h, w, 3) uint8, probability (C+1, h, w) -> (C+1, h, w) float32."""
    if iterations == 0:
        return probability.astype(np.float32)
    unary = unary_from_softmax(np.ascontiguousarray(probability))
    return _CRF(image, len(probability), 80, 13).infer(unary, iterations)
