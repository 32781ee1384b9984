"""How far a score can be trusted: intervals over images, and over seeds.

Over images: the percentile interval of the bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13). Images are drawn with replacement, as many as there are, and scored together. Two runs on the same images
are compared on the same draws, so images that are hard for both runs cancel out. Over seeds: Student's t.

`counts` are T, P and TP of each image and class, (N, C, 3); see core.metrics.class_counts.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import stdtrit

from core import UserError
from core.metrics import mean_scores

LEVEL = 0.95
RESAMPLES = 1000
BLOCK = 1 << 22  # weights in memory at once


def bootstrap(counts: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the scores of `mean_scores` of each resample: (N, C, 3) -> {'miou', ...}, each (resamples,)."""
    table = counts.reshape(len(counts), -1).astype(np.float64)
    blocks = [weights @ table for weights in _draw_weights(len(counts), resamples, seed)]
    return mean_scores(np.concatenate(blocks).reshape(resamples, *counts.shape[1:]))


def score_interval(counts: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval over images of mIoU, FP, FN and Dice, as fractions."""
    return {name: _percentiles(values) for name, values in bootstrap(counts, resamples, seed).items()}


def difference_interval(
    first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval over images of second - first in mIoU, FP, FN and Dice, for two runs on the same images.

    Raises UserError if the masks behind the counts differ.
    """
    if first.shape != second.shape or not np.array_equal(first[..., 0], second[..., 0]):
        raise UserError('the two runs were scored on different images or masks')
    before, after = (bootstrap(counts, resamples, seed) for counts in (first, second))
    return {name: _percentiles(after[name] - before[name]) for name in before}


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of at least two values, such as differences by seed."""
    values = np.asarray(values, np.float64)
    half = stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _draw_weights(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each resample contains each image: blocks of (B, N), whose rows add up to N."""
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // images)
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = rng.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
