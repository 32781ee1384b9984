"""Intervals over images and seeds: against slow loops and on known cases."""

import numpy as np
import pytest

from core import UserError
from core.intervals import bootstrap, difference_interval, score_interval, t_interval
from core.metrics import mean_scores


def draw_counts(rng, images: int, quality: float = 0.8, classes: int = 4) -> np.ndarray:
    """T, P and TP of images of 100 pixels with the background and one class each; quality varies by image."""
    counts = np.zeros((images, classes, 3), np.uint16)
    for row in counts:
        c, size = rng.integers(1, classes), rng.integers(5, 60)
        hit = rng.binomial(size, np.clip(quality + 0.15 * rng.standard_normal(), 0, 1))
        extra = rng.binomial(20, 0.3)
        row[c] = size, hit + extra, hit
        row[0] = 100 - size, 100 - hit - extra, 100 - size - extra
    return counts


def test_bootstrap_against_a_loop(rng):
    """The resamples of a loop over images, scored one by one as confusion matrices are."""
    counts = draw_counts(rng, 7)
    found = bootstrap(counts, resamples=20, seed=3)
    drawn = np.random.default_rng(3).integers(0, 7, (20, 7))
    for b, images in enumerate(drawn):
        total = np.zeros((4, 3), np.int64)
        for i in images:
            total += counts[i]
        scores = mean_scores(total)
        for name in ('miou', 'fp', 'fn'):
            assert found[name][b] == pytest.approx(float(scores[name]), rel=1e-12)
    assert len({tuple(sorted(images)) for images in drawn.tolist()}) > 10


def test_blocks_do_not_change_the_resamples(rng, monkeypatch):
    counts = draw_counts(rng, 11)
    whole = bootstrap(counts, resamples=50)
    monkeypatch.setattr('core.intervals.BLOCK', 40)
    assert np.array_equal(bootstrap(counts, resamples=50)['miou'], whole['miou'])


def test_interval_is_the_percentiles_of_the_scores(rng):
    counts = draw_counts(rng, 30)
    scores = np.sort(bootstrap(counts)['miou'])
    low, high = score_interval(counts)['miou']
    assert scores[24] <= low <= scores[25]
    assert scores[974] <= high <= scores[975]
    assert low < mean_scores(counts.sum(0, dtype=np.int64))['miou'] < high


def test_equal_images_leave_no_doubt(rng):
    counts = np.repeat(draw_counts(rng, 1), 9, axis=0)
    for low, high in score_interval(counts).values():
        assert low == pytest.approx(high)


def test_interval_covers_the_population(rng):
    """95 % of 300 intervals over 80 images; a binomial count strays by at most 4 points from it (3 deviations)."""
    truth = float(mean_scores(draw_counts(rng, 40_000).sum(0, dtype=np.int64))['miou'])
    covered = 0
    for seed in range(300):
        low, high = score_interval(draw_counts(rng, 80), resamples=400, seed=seed)['miou']
        covered += low <= truth <= high
    assert 0.89 <= covered / 300 <= 0.985


def test_difference_of_identical_runs_is_zero(rng):
    counts = draw_counts(rng, 20)
    assert difference_interval(counts, counts.copy()) == dict.fromkeys(('miou', 'fp', 'fn', 'dice'), (0, 0))


def test_paired_difference_is_taken_on_the_same_resamples(rng):
    first = draw_counts(rng, 40)
    second = first.copy()
    missed = (second[:, 1:, 0] - second[:, 1:, 2]) // 2  # half of the missed pixels are found
    second[:, 1:, 1:] += missed[..., None]
    second[:, 0, 1] -= missed.sum(1)
    found = difference_interval(first, second)
    expected = bootstrap(second)['miou'] - bootstrap(first)['miou']
    assert found['miou'] == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))
    low, high = found['miou']
    assert 0 < low < high
    assert found['fn'][1] < 0
    assert difference_interval(second, first)['miou'] == pytest.approx((-high, -low))
    (a, b), (c, d) = score_interval(first)['miou'], score_interval(second)['miou']
    assert high - low < min(b - a, d - c)  # what makes an image hard for both cancels


def test_runs_on_other_images_are_not_compared(rng):
    first = draw_counts(rng, 5)
    for second in (first[:4], draw_counts(rng, 5)):
        with pytest.raises(UserError, match='different images or masks'):
            difference_interval(first, second)


def test_interval_over_seeds():
    """Student's t with 2 and 3 degrees of freedom, from a printed table: 4.303 and 3.182."""
    assert t_interval(np.array([1, 2, 3])) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    deviation = np.std([4, 4, 6, 6], ddof=1)
    assert t_interval([4, 4, 6, 6])[1] == pytest.approx(5 + 3.182 * deviation / 2, abs=1e-3)
