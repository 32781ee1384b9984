"""Dense CRFs (Kraehenbuehl and Koltun, NIPS 2011; docs/method.md, "Dense CRF") through pydensecrf.

A Gaussian kernel is given as (sxy, weight), a bilateral one as (sxy, srgb, weight).

No torch here: stages 3 and 6 import this module and fork. pydensecrf has to be compiled, so it may be missing. Then
calls with 0 iterations still work.
"""

from collections.abc import Sequence

import numpy as np

from core import UserError

try:
    import pydensecrf.densecrf as dcrf
    from pydensecrf.utils import unary_from_labels, unary_from_softmax

    FAULT = None
except ImportError as error:
    FAULT = str(error)

# pydensecrf2 pins a Cython that fails on Python 3.13 but builds with Cython 3, without pip's build isolation.
INSTALL = "pip install 'cython>=3.0.11,<4' setuptools wheel && pip install --no-build-isolation -r requirements-crf.txt"

# Labels whose probabilities differ by less might change their order when maps are refined together. Over 316 VOC
# photographs rounding moved a probability by at most 2e-5, so the difference of two by at most 4e-5, and changed no
# label even without this margin. (Labels drawn at random, unlike any CAM, are moved by up to 6e-5.)
TIE = 1e-4

# Probabilities that are refined together at most, 134 MB per array. Maps with more are refined one after the other,
# with the same result and half the memory.
TOGETHER = 2**25


def check_installed(iterations: int) -> None:
    """Raise UserError with the command that installs pydensecrf if it is missing and `iterations` is above 0."""
    if iterations and FAULT:
        remedy = f'install it (a C++ compiler is needed) or pass --crf_iteration 0: {INSTALL}'
        raise UserError(f'the dense CRF needs pydensecrf ({FAULT}): {remedy}')


def crf_from_probability(
    image: np.ndarray,
    probability: np.ndarray,
    iterations: int = 10,
    gaussian: Sequence[float] = (3, 3),
    bilateral: Sequence[float] = (80, 13, 10),
) -> np.ndarray:
    """Refine class probabilities: image (h, w, 3) uint8, probability (L, h, w) -> (L, h, w) float32."""
    if iterations == 0:
        return probability.astype(np.float32)
    crf = _CRF(image, len(probability), gaussian, bilateral)
    return crf.infer(unary_from_softmax(np.ascontiguousarray(probability)), iterations)


def crf_from_label(
    image: np.ndarray, label: np.ndarray, num_labels: int, iterations: int = 10, **options
) -> np.ndarray:
    """Refine a label map (h, w) of 0..num_labels-1, right with probability gt_prob; image (h, w, 3) uint8.

    `options` are keyword arguments of `crf_from_labels`. Returns (h, w) in label's dtype. The label is returned
    unchanged for 0 iterations and for num_labels 1 (an image without foreground, or of one class alone).
    """
    return crf_from_labels(image, [label], num_labels, iterations, **options)[0]


def crf_from_labels(
    image: np.ndarray,
    labels: list[np.ndarray],
    num_labels: int,
    iterations: int = 10,
    gt_prob: float = 0.7,
    gaussian: Sequence[float] = (3, 3),
    bilateral: Sequence[float] = (50, 5, 10),
) -> list[np.ndarray]:
    """Apply `crf_from_label` to several label maps of one image in one inference, with the same result (see TIE)."""
    if num_labels < 2 or iterations == 0:
        return [label.copy() for label in labels]
    crf = _CRF(image, num_labels, gaussian, bilateral)
    together = [None] * len(labels)
    if len(labels) > 1 and len(labels) * num_labels * labels[0].size <= TOGETHER:
        together = crf.infer_together([_unary(label, num_labels, gt_prob) for label in labels], iterations)
    refined = []
    for label, probability in zip(labels, together, strict=True):
        if probability is None or _has_tie(probability):
            probability = crf.infer(_unary(label, num_labels, gt_prob), iterations)
        refined.append(probability.argmax(0).astype(label.dtype))
        del probability  # free it before the next one is computed
    return refined


def _unary(label: np.ndarray, num_labels: int, gt_prob: float) -> np.ndarray:
    return unary_from_labels(np.ascontiguousarray(label), num_labels, gt_prob, zero_unsure=False)


class _CRF:
    """A CRF with the pairwise terms of an image."""

    def __init__(self, image: np.ndarray, num_labels: int, gaussian: Sequence[float], bilateral: Sequence[float]):
        check_installed(1)
        self.shape = (num_labels, *image.shape[:2])
        self.crf = dcrf.DenseCRF2D(image.shape[1], image.shape[0], num_labels)
        sxy, weight = gaussian
        self.crf.addPairwiseGaussian(sxy=sxy, compat=weight)
        image = np.require(image, requirements=('C', 'W'))  # pydensecrf rejects read-only arrays
        sxy, srgb, weight = bilateral
        self.crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=weight)

    def infer(self, unary: np.ndarray, iterations: int) -> np.ndarray:
        """Return (labels, h, w) probabilities from unary energies (labels, h*w)."""
        self.crf.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
        # Bit for bit the result of crf.inference, which holds one more array of this size.
        matrix, *scratch = self.crf.startInference()
        for _ in range(iterations):
            self.crf.stepInference(matrix, *scratch)
        return np.asarray(matrix, np.float32).reshape(self.shape)

    def infer_together(self, unaries: list[np.ndarray], iterations: int) -> list[np.ndarray]:
        """Refine several maps at once: (labels, h, w) probabilities of each from its unary energies (labels, h*w).

        Mean-field messages are linear in the probabilities, and the lattices filter four labels as fast as two. So the
        labels of all maps share one CRF, and after each step every map is normalised by itself. Up to rounding this
        computes what `infer` computes.
        """
        # setUnaryEnergy insists on the CRF's own number of labels; neither setUnary nor the steps depend on it.
        self.crf.setUnary(dcrf.ConstUnary(np.ascontiguousarray(np.concatenate(unaries), np.float32)))
        matrix, *scratch = self.crf.startInference()
        together = np.array(matrix, copy=False)  # pydensecrf's own memory: written here, read by the next step
        maps = np.split(together, len(unaries))
        _normalize(maps)
        for _ in range(iterations):
            self.crf.stepInference(matrix, *scratch)
            _normalize(maps)
        return [np.ascontiguousarray(probability).reshape(-1, *self.shape[1:]) for probability in maps]


def _normalize(maps: list[np.ndarray]) -> None:
    """Divide each map (labels, points) by its sum over labels, in place and one label at a time: contiguous access."""
    for labels in maps:
        total = labels[0].copy()
        for label in labels[1:]:
            total += label
        for label in labels:
            label /= total


def _has_tie(probability: np.ndarray) -> bool:
    near_best = ~(probability < probability.max(0) - TIE)  # NaN counts as a tie
    return np.count_nonzero(near_best) > probability[0].size
