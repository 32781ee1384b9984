"""mIoU from counts, and all thresholds in one pass, against loops over pixels."""

import numpy as np
import pytest

from core import UserError
from core.maps import threshold_cams
from core.metrics import (
    ERROR_SHARES,
    ConfusionMatrix,
    ThresholdSweep,
    average_precision,
    class_counts,
    count_labels,
    drop_absent,
    error_shares,
    f1_score,
    list_thresholds,
    mean_scores,
    summarize,
    summarize_sweep,
)

THRESHOLDS = [round(0.05 * i, 2) for i in range(1, 16)]


def counted(prediction, target, num_classes):
    """Count T, P and TP of each class by a loop over pixels."""
    t, p, tp = ([0] * num_classes for _ in range(3))
    for guess, truth in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if truth != 255:
            t[truth] += 1
            p[guess] += 1
            tp[truth] += guess == truth
    return t, p, tp


def test_confusion_matrix_against_a_double_loop(rng):
    predictions, targets = rng.integers(0, 5, (2, 3, 9, 8))
    predictions[predictions == 4] = 2  # class 4 occurs in masks only
    targets[targets == 3] = 1  # class 3 occurs in predictions only
    targets[rng.random(targets.shape) < 0.2] = 255
    matrix = ConfusionMatrix(6)  # class 5 occurs nowhere
    for prediction, target in zip(predictions, targets, strict=True):
        matrix.update(prediction.astype(np.uint8), target.astype(np.uint8))
    t, p, tp = counted(predictions, targets, 6)
    iou, fp, fn, dice = {}, {}, {}, {}
    for c in range(5):
        union = t[c] + p[c] - tp[c]
        iou[c], fp[c], fn[c] = tp[c] / union, (p[c] - tp[c]) / union, (t[c] - tp[c]) / union
        dice[c] = 2 * tp[c] / (t[c] + p[c])
    assert matrix.counts.sum() == (targets != 255).sum()
    np.testing.assert_allclose(matrix.iou()[:5], list(iou.values()), rtol=1e-14)
    assert np.isnan(matrix.iou()[5])
    assert iou[3] == iou[4] == 0
    assert matrix.miou() == pytest.approx(sum(iou.values()) / 5, rel=1e-14)
    assert matrix.dice() == pytest.approx(sum(dice.values()) / 5, rel=1e-14)
    assert matrix.fp() == pytest.approx(sum(fp[c] for c in range(1, 5)) / 4, rel=1e-14)
    assert matrix.fn() == pytest.approx(sum(fn[c] for c in range(1, 5)) / 4, rel=1e-14)


def test_batch_counts_like_its_images(rng):
    predictions, targets = rng.integers(0, 3, (2, 4, 5, 6))
    batch, parts = ConfusionMatrix(3), ConfusionMatrix(3)
    batch.update(predictions, targets)
    for prediction, target in zip(predictions, targets, strict=True):
        parts.update(prediction, target)
    assert np.array_equal(batch.counts, parts.counts)


def test_perfect_prediction():
    matrix = ConfusionMatrix(21)
    matrix.update(np.array([[0, 3, 7]]), np.array([[0, 3, 255]]))
    assert (matrix.miou(), matrix.fp(), matrix.fn(), matrix.dice()) == (1, 0, 0, 1)


def test_nothing_counted_is_nan():
    matrix = ConfusionMatrix(3)
    matrix.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    assert np.isnan([matrix.miou(), matrix.fp(), matrix.fn(), matrix.dice()]).all()


@pytest.mark.parametrize('prediction, target', [([3], [0]), ([0], [3]), ([-1], [0]), ([255], [0]), ([0], [254])])
def test_unknown_classes_are_rejected(prediction, target):
    matrix = ConfusionMatrix(3)
    with pytest.raises(UserError, match='contains class .* the classes are 0 to 2'):
        matrix.update(np.array(prediction), np.array(target))
    assert not matrix.counts.any()


def test_different_shapes_are_rejected():
    with pytest.raises(UserError, match='cannot be scored on a mask'):
        ConfusionMatrix(3).update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(UserError, match='cannot be scored on a mask'):
        ThresholdSweep(3, [0.5]).update(np.zeros((1, 2, 3)), np.array([0, 1]), np.zeros((3, 2), int))


def images_with_ties(rng):
    """Yield (maps, keys, target) with scores at, just above and just below float32 thresholds; one has no class."""
    limits = np.array(THRESHOLDS, np.float32)
    special = np.concatenate(
        [limits, np.nextafter(limits, np.float32(2)), np.nextafter(limits, np.float32(-1)), [0, 1]]
    )
    for keys in ([0, 2, 3, 6], [0, 1], [0], [0, 5, 6]):
        shape = (len(keys) - 1, 13, 17)
        maps = np.where(rng.random(shape) < 0.6, rng.choice(special, shape), rng.random(shape)).astype(np.float32)
        target = rng.choice([0, 0, 1, 2, 3, 5, 6, 255], (13, 17)).astype(np.uint8)
        yield maps, np.array(keys), target


def test_sweep_equals_one_prediction_per_threshold(rng):
    sweep = ThresholdSweep(7, THRESHOLDS)
    expected_matrices = [ConfusionMatrix(7) for _ in THRESHOLDS]
    for maps, keys, target in images_with_ties(rng):
        sweep.update(maps, keys, target)
        for threshold, matrix in zip(THRESHOLDS, expected_matrices, strict=True):
            matrix.update(keys[threshold_cams(maps, threshold)], target)
    assert sweep.thresholds == THRESHOLDS
    for found, expected in zip(sweep.matrices(), expected_matrices, strict=True):
        assert np.array_equal(found.counts, expected.counts)
    counts = {matrix.counts[0, 0] for matrix in expected_matrices}
    assert len(counts) == len(THRESHOLDS)  # otherwise this compares nothing


def test_sweep_rejects_unsorted_thresholds_and_unknown_classes():
    for thresholds in ([0.2, 0.1], [0.1, 0.1]):
        with pytest.raises(UserError, match='thresholds must be increasing'):
            ThresholdSweep(3, thresholds)
    for target in (3, 254):
        with pytest.raises(UserError, match=f'target contains class {target}'):
            ThresholdSweep(3, [0.1]).update(np.zeros((1, 1, 1)), np.array([0, 1]), np.array([[target]], np.uint8))


def test_scores_of_many_tables_are_those_of_each_matrix(rng):
    """Classes 4 and 5 are missing in some tables, the foreground in one, everything in another."""
    confusion = rng.integers(0, 50, (3, 5, 6, 6))
    confusion[0, :, 4:] = confusion[0, :, :, 4:] = 0
    confusion[1, 0, 1:] = confusion[1, 0, :, 1:] = 0
    confusion[2, 4] = 0
    counts = class_counts(confusion)
    assert counts.shape == (3, 5, 6, 3)
    for target, prediction, both in counts[0, 0]:
        assert 0 <= both <= min(target, prediction)
    found = mean_scores(counts)
    for index in np.ndindex(3, 5):
        matrix = ConfusionMatrix(6, confusion[index])
        for name in ('miou', 'fp', 'fn', 'dice'):
            np.testing.assert_allclose(found[name][index], getattr(matrix, name)(), rtol=1e-13)
    assert np.isnan([found['miou'][2, 4], found['fp'][1, 0], found['fn'][2, 4]]).all()


def test_class_counts_against_a_loop(rng):
    labels, target = rng.integers(0, 4, (3, 7, 6)), rng.choice([0, 1, 2, 3, 255], (7, 6))
    counts = class_counts(count_labels(list(labels), target, 5))
    for label, found in zip(labels, counts, strict=True):
        assert found.T.tolist() == [*map(list, counted(label, target, 5))]


def test_counts_without_absent_classes():
    """Class 1 is only in the mask, class 3 only in the second prediction, 0 and 2 nowhere."""
    confusion = np.zeros((2, 4, 4), np.int64)
    confusion[0, 1, 1], confusion[1, 1, 3] = 5, 6
    classes, counts = drop_absent(confusion)
    assert classes.tolist() == [1, 3]
    assert counts.tolist() == [[[5, 0], [0, 0]], [[0, 6], [0, 0]]]
    assert np.array_equal(class_counts(counts), class_counts(confusion)[:, classes])
    assert [part.shape for part in drop_absent(np.zeros((2, 4, 4), int))] == [(0,), (2, 0, 0)]


def test_summary_is_in_percent_and_needs_a_class():
    result = summarize(np.array([[6, 1, 0], [1, 2, 0], [0, 0, 0]]), ('background', 'cat', 'dog'))
    assert result['iou'] == {'background': 75.0, 'cat': 50.0, 'dog': None}
    assert (result['miou'], result['fp'], result['fn']) == (62.5, 25.0, 25.0)
    assert result['dice'] == pytest.approx(100 * (12 / 14 + 4 / 6) / 2)
    with pytest.raises(UserError, match='contain a class'):
        summarize(np.array([[6, 0], [0, 0]]), ('background', 'cat'))


def test_summary_without_a_background():
    """The mean is over the classes; the baseline is the most frequent one of the masks, everywhere."""
    counts = np.array([[0, 0, 0], [0, 4, 1], [0, 2, 3]])
    result = summarize_sweep(counts[None], [None], ('', 'wood', 'water'))
    assert result['iou'] == {'wood': pytest.approx(100 * 4 / 7, abs=1e-4), 'water': 50.0}
    assert result['miou'] == pytest.approx(100 * (4 / 7 + 3 / 6) / 2)
    assert result['fp'] == pytest.approx(100 * (2 / 7 + 1 / 6) / 2)
    assert result['all_background_miou'] is None
    assert result['one_class'] == {'class': 'wood', 'miou': 25.0}
    assert 'one_class' not in summarize_sweep(counts[None], [None], ('background', 'wood', 'water'))


def test_list_of_thresholds():
    assert list_thresholds(0.05, 0.80, 0.05) == THRESHOLDS
    assert list_thresholds(0.05, 0.50, 0.05) == THRESHOLDS[:9]
    assert list_thresholds(0.05, 1.0, 0.05)[-1] == 0.95
    assert list_thresholds(0.1, 0.32, 0.1) == [0.1, 0.2, 0.3]
    assert list_thresholds(0, 0.01, 0.005) == [0, 0.005]
    assert len(list_thresholds(0, 2.55, 0.01)) == 255


@pytest.mark.parametrize(
    'limits, count', [((0.5, 0.5, 0.1), 0), ((0.6, 0.5, 0.1), 0), ((0.0, 2.56, 0.01), 256), ((0.0, 1.0, 1e-5), 100000)]
)
def test_no_thresholds_or_too_many_are_refused(limits, count):
    with pytest.raises(UserError) as error:
        list_thresholds(*limits)
    flags = '--min_th {:g} --max_th {:g} --step_th {:g}'.format(*limits)
    assert str(error.value) == f'{flags}: {count} thresholds, expected 1 to 255'


# Tags ---------------------------------------------------------------------------------------------------------------


def test_average_precision_is_the_area_under_all_operating_points(rng):
    """Each distinct score is a threshold; its precision counts for the recall that it adds."""
    for _ in range(20):
        scores, labels = rng.integers(0, 6, (12, 3)) / 5, rng.integers(0, 2, (12, 3))
        labels[0] = 1
        for c, found in enumerate(average_precision(scores, labels)):
            area, recall = 0, 0
            for threshold in sorted(set(scores[:, c].tolist()), reverse=True):
                chosen = [i for i in range(12) if scores[i, c] >= threshold]
                hits = sum(labels[i, c] for i in chosen)
                new = hits / labels[:, c].sum()
                area, recall = area + (new - recall) * hits / len(chosen), new
            assert found == pytest.approx(area, rel=1e-12)


def test_known_average_precision():
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    assert average_precision(scores, np.array([[1], [0], [1], [0]])) == pytest.approx([(1 + 2 / 3) / 2])
    assert average_precision(scores, np.array([[1], [1], [0], [0]])) == pytest.approx([1])
    assert average_precision(np.zeros((4, 1)), np.array([[1], [0], [0], [0]])) == pytest.approx([0.25])
    assert np.isnan(average_precision(scores, np.zeros((4, 1)))).all()


def test_f1_score():
    predictions = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], bool)
    labels = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    assert f1_score(predictions, labels)[:2] == pytest.approx([2 / 3, 2 / 3])
    assert np.isnan(f1_score(predictions, labels)[2])
    assert f1_score(predictions, labels)[3] == 0


def test_error_shares_divide_the_union():
    confusion = np.array([[50, 3, 2, 0], [10, 20, 5, 0], [0, 4, 30, 0], [0, 0, 0, 0]])
    shares = error_shares(confusion)
    assert shares.shape == (4, len(ERROR_SHARES))
    np.testing.assert_allclose(shares[:3].sum(1), 1)
    # Class 1: 20 right; 10 missed, 3 too much, 5 taken for class 2, 4 of class 2 taken for it.
    np.testing.assert_allclose(shares[1], np.array([20, 10, 3, 5, 4]) / 42)
    np.testing.assert_allclose(shares[2], np.array([30, 0, 2, 4, 5]) / 41)
    # The background: 5 taken for objects, 10 of objects taken for it.
    np.testing.assert_allclose(shares[0], np.array([50, 0, 0, 5, 10]) / 65)
    assert np.isnan(shares[3]).all()
    np.testing.assert_allclose(shares[:, 0], ConfusionMatrix(4, confusion).iou())
