"""Scores that need the counts of single images: thresholds chosen on other images, false masks, IoU by size of object.

docs/method.md, "Evaluation" defines them. The counts are packed: there is an entry for each image and each class in its
mask or predictions. `images` (entries,) numbers the images, `classes` (entries,) the classes with the background as 0,
and `counts` (entries, thresholds, 3) holds T, P and TP. Unpacked counts at one threshold per image are (N, C, 3).

No torch here: stage 9 imports this module and forks.
"""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from core.intervals import difference_interval, score_interval
from core.metrics import mean_scores

# Sizes of objects: the share of its image that a class covers. A size includes its lower limit.
SIZE_LIMITS = (0.01, 0.05, 0.20)
SIZES = ('< 1 %', '1 to 5 %', '5 to 20 %', '>= 20 %')


def two_folds(ids: Sequence[str]) -> np.ndarray:
    """Return the fold of each image, 0 or 1: (N,).

    The folds follow from the set of ids alone: sorted by the SHA-256 of the id, the first half is fold 0. So they are
    of equal size up to one image, the same in every program, and unrelated to what a name says.
    """
    order = sorted(range(len(ids)), key=lambda i: sha256(ids[i].encode(errors='surrogateescape')).digest())
    folds = np.zeros(len(ids), np.int64)
    folds[order[len(ids) // 2 :]] = 1
    return folds


def choose_on_other_fold(
    folds: np.ndarray, images: np.ndarray, classes: np.ndarray, counts: np.ndarray, num_classes: int
) -> list[int] | None:
    """Return which threshold the images of each fold are scored at: the one of the highest mIoU on the other fold.

    num_classes includes the background. None if the masks of a fold contain no object, or if it has no image.
    """
    totals = np.zeros((2, num_classes, *counts.shape[1:]), np.int64)
    np.add.at(totals, (folds[images], classes), counts)
    if not totals[:, 1:, :, 0].any((1, 2)).all():
        return None
    best = mean_scores(totals.swapaxes(1, 2))['miou'].argmax(1)
    return best[::-1].tolist()


def choose_without_each(
    num_images: int, images: np.ndarray, classes: np.ndarray, counts: np.ndarray, num_classes: int
) -> np.ndarray:
    """Return which threshold each image is scored at: the one of the highest mIoU on all other images, (N,).

    num_classes includes the background. With few images this leaves more to choose by than two folds.
    """
    totals = np.zeros((num_classes, *counts.shape[1:]), np.int64)
    np.add.at(totals, classes, counts)
    chosen = np.zeros(num_images, np.int64)
    for i in range(num_images):
        own, rest = images == i, totals.copy()
        rest[classes[own]] -= counts[own].astype(np.int64)
        chosen[i] = mean_scores(rest.swapaxes(0, 1))['miou'].argmax()
    return chosen


def unpack(
    chosen: np.ndarray, images: np.ndarray, classes: np.ndarray, counts: np.ndarray, num_classes: int
) -> np.ndarray:
    """Return T, P and TP of each image at its threshold, `chosen` (N,): (N, C, 3)."""
    table = np.zeros((len(chosen), num_classes, 3), counts.dtype)
    table[images, classes] = counts[np.arange(len(images)), chosen[images]]
    return table


def judge_best(
    num_images: int, images: np.ndarray, classes: np.ndarray, counts: np.ndarray, compared: int, num_classes: int
) -> dict:
    """Find the best of the thresholds, which may be any settings, and compare it with another one; in percent.

    `best` has the highest mIoU on all images (`miou_same_images`). Its `miou` is at `without_each`, which
    `choose_without_each` returns, so that no image helps to choose its own setting. `gain` is the difference to
    `compared_miou`. The intervals are over images.
    """
    packed = images, classes, counts, num_classes

    tables = [unpack(np.full(num_images, setting), *packed) for setting in range(counts.shape[1])]
    mious = [_miou(table) for table in tables]
    without = choose_without_each(num_images, *packed)
    return {
        'best': int(np.argmax(mious)),
        **compare(tables[compared], unpack(without, *packed)),
        'miou_same_images': max(mious),
        'without_each': without.tolist(),
    }


def compare(old: np.ndarray, new: np.ndarray) -> dict:
    """Return the mIoU of two tables of the same images, (N, C, 3) each, and the gain of the second, in percent.

    The intervals are over images.
    """
    before, after = _miou(old), _miou(new)
    return {
        'compared_miou': before,
        'miou': after,
        'interval': [100 * end for end in score_interval(new)['miou']],
        'gain': after - before,
        'gain_interval': [100 * end for end in difference_interval(old, new)['miou']],
    }


def _miou(by_image: np.ndarray) -> float:
    return 100 * float(mean_scores(by_image.sum(0, dtype=np.int64))['miou'])


def false_masks(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many images lack each class, and the share of these in which it is predicted: (N, C, 3) -> (C,) twice.

    Entry 0 is about any object: the images without an object, and the share of these in which any class is predicted.
    One pixel is enough. The share of no image is NaN. Images without a pixel that counts are left out.
    """
    target, predicted = np.moveaxis(counts[counts[..., 0].any(1)] > 0, 2, 0)[:2].copy()
    for there in (target, predicted):
        there[:, 0] = there[:, 1:].any(1)
    lacking = (~target).sum(0)
    wrong = (predicted & ~target).sum(0)
    return lacking, np.divide(wrong, lacking, out=np.full(len(lacking), np.nan), where=lacking > 0)


def iou_by_size(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of objects of each of SIZES, and their mean IoU: (N, C, 3) -> (4,) twice; NaN without one.

    An object is what a class covers of an image in its mask, its size the share of the pixels that count. Each object
    has the same weight.
    """
    image, c = np.nonzero(counts[:, 1:, 0])
    target, predicted, both = counts[image, c + 1].astype(np.int64).T
    sizes = np.digitize(target / counts[..., 0].sum(1, dtype=np.int64)[image], SIZE_LIMITS)
    iou = both / (target + predicted - both)
    number = np.bincount(sizes, minlength=len(SIZES))
    total = np.bincount(sizes, iou, len(SIZES))
    return number, np.divide(total, number, out=np.full(len(SIZES), np.nan), where=number > 0)


def summarize(
    ids: Sequence[str],
    images: np.ndarray,
    classes: np.ndarray,
    counts: np.ndarray,
    thresholds: Sequence[float | None],
    best: float | None,
    names: Sequence[str],
) -> dict:
    """Return the scores of packed counts in percent, None for a mean of nothing; names begin with the background or ''.

    `two_fold`: mIoU, Dice, FP and FN of maps, each fold scored at the threshold of the highest mIoU on the other one,
    and these two `thresholds`; None for a single threshold, or if a fold has no object. `false_masks` and `by_size`:
    see the functions above, at the threshold `best`.
    """
    packed = images, classes, counts
    at_best = unpack(np.full(len(ids), thresholds.index(best)), *packed, len(names))
    lacking, shares = false_masks(at_best)
    number, iou = iou_by_size(at_best)
    content = {
        'two_fold': None,
        'false_masks': {
            'images': int(lacking[0]),
            'share': _percent(shares[0]),
            'classes': dict(zip(names[1:], map(_percent, shares[1:]), strict=True)),
        },
        'by_size': {
            size: {'objects': int(n), 'iou': _percent(value)} for size, n, value in zip(SIZES, number, iou, strict=True)
        },
    }
    folds = two_folds(ids)
    chosen = choose_on_other_fold(folds, *packed, len(names)) if len(thresholds) > 1 else None
    if chosen:
        scores = mean_scores(unpack(np.array(chosen)[folds], *packed, len(names)).sum(0, dtype=np.int64))
        content['two_fold'] = {name: 100 * float(value) for name, value in scores.items()}
        content['two_fold']['thresholds'] = [thresholds[index] for index in chosen]
    return content


def _percent(fraction: float) -> float | None:
    return None if np.isnan(fraction) else round(100 * float(fraction), 4)
