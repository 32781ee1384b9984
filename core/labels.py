"""Label maps from CAMs: confident affinity labels (stage 3) and pseudo-labels (stage 6), both refined by a dense CRF.

No torch: these stages fork (docs/architecture.md).
"""

import numpy as np

from core import IGNORE
from core.crf import crf_from_label, crf_from_labels
from core.maps import threshold_cams

FG_THRESHOLD, BG_THRESHOLD = 0.40, 0.10  # published, of affinity labels
PSEUDO_THRESHOLD = 0.35  # published, of random-walk CAMs


def affinity_label(
    image: np.ndarray,
    keys: np.ndarray,
    maps: np.ndarray,
    fg_threshold: float = FG_THRESHOLD,
    bg_threshold: float | None = BG_THRESHOLD,
    iterations: int = 10,
    **crf,
) -> np.ndarray:
    """Return the affinity label (h, w): a class, background 0, or 255 where the maps are undecided.

    image (h, w, 3) uint8, maps (K, h, w) of the classes keys[1:]; `crf` are options of core.crf.crf_from_labels.
    Source: IRNet, section 3.2; docs/method.md, "Affinity labels". A bg_threshold of None is for data sets without a
    background (docs/method.md, "Without a background"): the best class, where only one map exceeds fg_threshold.
    """
    if bg_threshold is None:
        label = keys[refine_best(image, maps, iterations, **crf)]
        label[(maps > np.float32(fg_threshold)).sum(0) != 1] = IGNORE
        return label
    thresholded = [threshold_cams(maps, threshold) for threshold in (fg_threshold, bg_threshold)]
    fg, bg = crf_from_labels(image, thresholded, len(keys), iterations, **crf)

    # Foreground above the high threshold, background below the low one, ignore in between.
    label = keys[fg]
    label[(fg == 0) & (bg != 0)] = IGNORE
    return label


def pseudo_label(
    image: np.ndarray,
    keys: np.ndarray,
    maps: np.ndarray,
    threshold: float | None = PSEUDO_THRESHOLD,
    iterations: int = 1,
    **crf,
) -> np.ndarray:
    """Return the pseudo-label (h, w) of an image (h, w, 3) from maps (K, h, w) of the classes keys[1:].

    `crf` are options of core.crf.crf_from_label. A threshold of None is for data sets without a background.
    """
    if threshold is None:
        return keys[refine_best(image, maps, iterations, **crf)]
    label = threshold_cams(maps, threshold)
    return keys[crf_from_label(image, label, len(keys), iterations, **crf)]


def refine_best(image: np.ndarray, maps: np.ndarray, iterations: int, **crf) -> np.ndarray:
    """Return the index into `keys` per pixel (h, w) of the best of maps (K, h, w), refined by a CRF of K labels."""
    return 1 + crf_from_label(image, threshold_cams(maps, None) - 1, len(maps), iterations, **crf)
