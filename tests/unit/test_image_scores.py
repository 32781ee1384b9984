"""Scores from the counts of single images, against loops over images and pixels."""

import numpy as np
import pytest

from core.image_scores import (
    SIZES,
    choose_on_other_fold,
    choose_without_each,
    false_masks,
    iou_by_size,
    judge_best,
    summarize,
    two_folds,
    unpack,
)
from core.metrics import ConfusionMatrix, ThresholdSweep, class_counts, drop_absent
from util.store.results import pack

NAMES = ('background', 'cat', 'dog', 'cow')
THRESHOLDS = [0.2, 0.4, 0.6, 0.8]
LIMITS = (1, 5, 20)  # % of an image


def draw_images(rng, count=14):
    """Return ids, and (maps, mask) of images of 20x30 pixels; the last two without an object, one of these all void."""
    images = []
    for i in range(count):
        mask = np.zeros((20, 30), np.uint8)
        h, w = rng.integers(1, 18, 2)
        mask[1 : 1 + h, 2 : 2 + w] = rng.integers(1, 4)
        mask[15:, 25:] = rng.integers(0, 4)
        if i >= count - 2:
            mask[:] = 255 if i == count - 1 else 0
        mask[0] = 255
        # Scores are higher where the mask has the class, by a contrast of each image.
        maps = np.stack([(mask == c) * rng.uniform(0.1, 0.7) + rng.random(mask.shape) * 0.6 for c in (1, 2, 3)])
        images.append((maps.astype(np.float32), mask))
    return [f'image{i}' for i in range(count)], images


def label_of(maps, threshold):
    return np.where(maps.max(0) > np.float32(threshold), 1 + maps.argmax(0), 0).astype(np.uint8)


def pack_images(images):
    by_image = []
    for maps, mask in images:
        sweep = ThresholdSweep(4, THRESHOLDS)
        sweep.update(maps, np.arange(4), mask)
        classes, counts = drop_absent(sweep.confusion())
        by_image.append((classes, class_counts(counts)))
    return pack(by_image)


def score(images, thresholds):
    """Return the confusion matrix of images, each at its threshold."""
    matrix = ConfusionMatrix(4)
    for (maps, mask), threshold in zip(images, thresholds, strict=True):
        matrix.update(label_of(maps, threshold), mask)
    return matrix


def test_folds_follow_from_the_set_of_ids(rng):
    ids = [f'2007_{i:06d}' for i in range(101)]
    folds = dict(zip(ids, two_folds(ids).tolist(), strict=True))
    assert sorted(folds.values()) == 50 * [0] + 51 * [1]
    shuffled = [ids[i] for i in rng.permutation(101)]
    assert dict(zip(shuffled, two_folds(shuffled).tolist(), strict=True)) == folds
    assert two_folds(ids[:10]).tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1, 0]  # results of two commits are compared


def test_folds_do_not_follow_names():
    """Left and right pictures of a pair, and the first and the second half of a list, are in both folds."""
    ids = [f'{i // 2:03d}_{"lr"[i % 2]}' for i in range(200)]
    folds = two_folds(ids)
    for part in (folds[::2], folds[1::2], folds[:100], folds[100:]):
        assert 30 < part.sum() < 70


def test_folds_of_few_images():
    assert two_folds([]).tolist() == []
    assert two_folds(['a']).tolist() == [1]
    assert sorted(two_folds(['a', 'b']).tolist()) == [0, 1]
    assert len(two_folds(['caf\udce9', 'é'])) == 2  # names of files that are not UTF-8


def test_each_fold_is_scored_at_the_threshold_of_the_other(rng):
    ids, images = draw_images(rng)
    packed, folds = pack_images(images), two_folds(ids)
    parts = [[image for image, fold in zip(images, folds, strict=True) if fold == which] for which in (0, 1)]
    best = [max(THRESHOLDS, key=lambda t, part=part: score(part, len(part) * [t]).miou()) for part in parts]
    found = summarize(ids, **packed, thresholds=THRESHOLDS, best=0.4, names=NAMES)['two_fold']
    assert found['thresholds'] == best[::-1]
    matrix = score(images, [best[1 - fold] for fold in folds])
    for name in ('miou', 'dice', 'fp', 'fn'):
        assert found[name] == pytest.approx(100 * getattr(matrix, name)())


def test_the_choice_does_not_see_the_images_that_it_is_used_on():
    """Fold 0 is best at the first threshold, fold 1 at the second: each gets the other's, where nothing is hit."""
    hit, missed = [[9, 9, 9], [1, 1, 1]], [[9, 10, 9], [1, 0, 0]]
    packed = pack([([0, 1], np.array(by_threshold)) for by_threshold in ([hit, missed], [missed, hit])])
    folds = np.array([0, 1])
    assert choose_on_other_fold(folds, **packed, num_classes=2) == [1, 0]
    table = unpack(np.array([1, 0])[folds], **packed, num_classes=2)
    assert table[:, 1].tolist() == [[1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize('ids, with_objects', [(['a'], 1), (['a', 'b', 'c', 'd'], 0), (['a', 'b', 'c', 'd'], 1)])
def test_a_fold_without_an_object_chooses_nothing(ids, with_objects):
    counts = np.array([[[9, 9, 9], [1, 1, 1]]] * 2)  # thresholds, classes
    by_image = [([0, 1], counts) if fold == with_objects else ([0], counts[:, :1]) for fold in two_folds(ids)]
    summary = summarize(ids, **pack(by_image), thresholds=[0.1, 0.2], best=0.1, names=NAMES[:2])
    assert summary['two_fold'] is None


def test_a_single_threshold_is_not_chosen(rng):
    ids, images = draw_images(rng)
    packed = pack_images(images)
    for thresholds in ([0.2], [None]):
        one = {**packed, 'counts': packed['counts'][:, :1]}
        assert summarize(ids, **one, thresholds=thresholds, best=thresholds[0], names=NAMES)['two_fold'] is None


def test_false_masks_against_a_loop_over_pixels(rng):
    ids, images = draw_images(rng)
    summary = summarize(ids, **pack_images(images), thresholds=THRESHOLDS, best=0.6, names=NAMES)['false_masks']
    labels = [(label_of(maps, 0.6)[mask != 255], mask[mask != 255]) for maps, mask in images[:-1]]  # the last is void
    assert (summary['images'], summary['share']) == (1, 100 * bool(labels[-1][0].any()))
    for c, name in enumerate(NAMES[1:], 1):
        lacking = [c in label for label, mask in labels if c not in mask]
        assert 0 < len(lacking) < len(labels)
        assert summary['classes'][name] == pytest.approx(100 * sum(lacking) / len(lacking), abs=1e-4)


def test_one_pixel_is_a_false_mask():
    """Three images: cat; nothing, with a pixel of dog; nothing. T, P, TP."""
    counts = np.array([
        [[9, 9, 9], [1, 1, 1], [0, 0, 0]],
        [[10, 9, 9], [0, 0, 0], [0, 1, 0]],
        [[10, 10, 10], [0, 0, 0], [0, 0, 0]],
    ])  # fmt: skip
    lacking, share = false_masks(counts)
    assert lacking.tolist() == [2, 2, 3]
    assert share.tolist() == pytest.approx([1 / 2, 0, 1 / 3])
    lacking, share = false_masks(counts[:1])
    assert lacking.tolist() == [0, 0, 1]
    assert np.isnan(share).tolist() == [True, True, False]


def test_iou_by_size_against_a_loop_over_pixels(rng):
    ids, images = draw_images(rng, 40)
    expected = {size: [] for size in SIZES}
    for maps, mask in images:
        label, counted = label_of(maps, 0.4), mask != 255
        for c in set(np.unique(mask).tolist()) - {0, 255}:
            share = 100 * (mask == c).sum() / counted.sum()
            union = (((mask == c) | (label == c)) & counted).sum()
            expected[SIZES[sum(share >= limit for limit in LIMITS)]].append(((mask == c) & (label == c)).sum() / union)
    found = summarize(ids, **pack_images(images), thresholds=THRESHOLDS, best=0.4, names=NAMES)['by_size']
    assert list(found) == list(SIZES)
    assert min(map(len, expected.values())) > 0
    for size, values in expected.items():
        assert found[size]['objects'] == len(values)
        assert found[size]['iou'] == pytest.approx(100 * np.mean(values), abs=1e-4)


def test_a_size_includes_its_lower_limit():
    """Objects of 0.9, 1, 5 and 20 % of an image of 1,000 pixels; the last size has no other."""
    counts = np.zeros((4, 2, 3), np.uint32)
    counts[:, 1] = [[9, 0, 0], [10, 10, 10], [50, 100, 50], [200, 100, 100]]
    counts[:, 0, 0] = 1000 - counts[:, 1, 0]
    number, iou = iou_by_size(counts)
    assert number.tolist() == [1, 1, 1, 1]
    assert iou.tolist() == [0, 1, 0.5, 0.5]
    number, iou = iou_by_size(counts[:0])
    assert number.tolist() == [0, 0, 0, 0]
    assert np.isnan(iou).all()


def test_each_image_is_scored_at_the_threshold_that_is_best_on_all_others(rng):
    _, images = draw_images(rng)
    found = choose_without_each(len(images), **pack_images(images), num_classes=4)
    for i in range(len(images)):
        others = images[:i] + images[i + 1 :]
        mious = [score(others, len(others) * [threshold]).miou() for threshold in THRESHOLDS]
        assert found[i] == np.argmax(mious)


def test_a_choice_owes_nothing_to_the_images_that_judge_it():
    """Two images that are right only at the first threshold, and two that are right only at the second."""
    right, wrong = [10, 10, 10], [10, 0, 0]
    background = [[90, 90, 90], [90, 100, 90]]
    by_image = []
    for first in (True, True, False, False):
        order = (0, 1) if first else (1, 0)
        counts = np.array([[background[i], (right, wrong)[i]] for i in order])
        by_image.append((np.array([0, 1]), counts))
    judged = judge_best(4, **pack(by_image), compared=1, num_classes=2)
    # Of the other three, two are right at the threshold at which this image is wrong.
    assert judged['without_each'] == [1, 1, 0, 0]
    assert judged['best'] == 0
    assert judged['miou'] == pytest.approx(100 * (0.9 + 0) / 2)
    same = 100 * ((360 / 380) + 0.5) / 2
    assert judged['miou_same_images'] == judged['compared_miou'] == pytest.approx(same)
    assert judged['gain'] == pytest.approx(45 - same)
    assert judged['interval'] == pytest.approx([45, 45])
    low, high = judged['gain_interval']
    assert low <= judged['gain'] <= high


def test_a_choice_among_settings_that_all_others_agree_on_is_scored_at_it(rng):
    _, images = draw_images(rng)
    packed = pack_images(images)
    judged = judge_best(len(images), **packed, compared=3, num_classes=4)
    mious = [100 * score(images, len(images) * [threshold]).miou() for threshold in THRESHOLDS]
    assert judged['best'] == np.argmax(mious)
    assert judged['miou_same_images'] == pytest.approx(max(mious))
    assert judged['compared_miou'] == pytest.approx(mious[3])
    where = [THRESHOLDS[i] for i in judged['without_each']]
    assert judged['miou'] == pytest.approx(100 * score(images, where).miou())
