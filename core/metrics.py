"""mIoU and its parts from exact integer pixel counts (docs/method.md, "Evaluation").

No torch here: stage 9 imports this module and forks.
"""

from collections.abc import Sequence

import numpy as np

from core import IGNORE, UserError

MAX_THRESHOLDS = 255  # the number of thresholds that a score exceeds is kept in a byte


def list_thresholds(start: float, end: float, step: float) -> list[float]:
    """Return start, start + step, ... below end, without the rounding errors of the sums.

    Raises UserError if there are none or more than MAX_THRESHOLDS.
    """
    count = int(np.ceil((end - start) / step - 1e-9))
    if not 0 < count <= MAX_THRESHOLDS:
        wanted = f'--min_th {start:g} --max_th {end:g} --step_th {step:g}'
        raise UserError(f'{wanted}: {max(0, count)} thresholds, expected 1 to {MAX_THRESHOLDS}')
    return [round(start + i * step, 6) for i in range(count)]


# Thresholds of a sweep, as published: their start and step, and their ends (exclusive) for CAMs and random-walk CAMs.
SWEEP = {'start': 0.05, 'step': 0.05, 'cam_end': 0.80, 'rw_end': 0.50}
CAM_THRESHOLDS = list_thresholds(SWEEP['start'], SWEEP['cam_end'], SWEEP['step'])
TRAINING_THRESHOLDS = list_thresholds(0.10, 0.50, SWEEP['step'])  # for the single-scale CAMs that choose the epoch


class ConfusionMatrix:
    """Pixel counts by (target, prediction). num_classes includes the background; fractions are in [0, 1]."""

    def __init__(self, num_classes: int, counts: np.ndarray | None = None):
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes), np.int64) if counts is None else counts

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Count an image or a batch: integer arrays of one shape; pixels whose target is 255 are ignored.

        Raises UserError if the shapes differ or a class does not exist.
        """
        if prediction.shape != target.shape:
            raise UserError(f'a prediction of shape {prediction.shape} cannot be scored on a mask of {target.shape}')
        keep = target != IGNORE
        target, prediction = target[keep].astype(np.int64), prediction[keep].astype(np.int64)
        for name, values in (('target', target), ('prediction', prediction)):
            wrong = values[(values < 0) | (values >= self.num_classes)]
            if wrong.size:
                raise UserError(f'{name} contains class {wrong[0]}, the classes are 0 to {self.num_classes - 1}')
        joint = np.bincount(target * self.num_classes + prediction, minlength=self.num_classes**2)
        self.counts += joint.reshape(self.num_classes, self.num_classes)

    def iou(self) -> np.ndarray:
        """Return the IoU (num_classes,), background first; NaN for a class in neither masks nor predictions."""
        union = self.counts.sum(0) + self.counts.sum(1) - np.diag(self.counts)
        return np.diag(self.counts) / np.where(union > 0, union, np.nan)

    def miou(self) -> float:
        """Return the mean IoU over the classes that occur."""
        return float(mean_scores(class_counts(self.counts))['miou'])

    def dice(self) -> float:
        """Return the mean over the classes that occur, background included, of 2 TP / (T + P)."""
        return float(mean_scores(class_counts(self.counts))['dice'])

    def constant_miou(self, label: int) -> float:
        """Return the mIoU of predicting one label everywhere, such as 0, the background."""
        constant = ConfusionMatrix(self.num_classes)
        constant.counts[:, label] = self.counts.sum(1)
        return constant.miou()

    def fp(self) -> float:
        """Return the mean over the foreground classes of (P - TP) / (T + P - TP)."""
        return float(mean_scores(class_counts(self.counts))['fp'])

    def fn(self) -> float:
        """Return the mean over the foreground classes of (T - TP) / (T + P - TP)."""
        return float(mean_scores(class_counts(self.counts))['fn'])


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the average precision of each class: scores (N, C), labels (N, C) multi-hot -> (C,).

    The area under the precision-recall curve without interpolation, sum_k (R_k - R_{k-1}) P_k over the distinct scores
    in decreasing order. NaN for a class without a positive image.
    """
    result = np.full(labels.shape[1], np.nan)
    for c, (score, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        if not label.any():
            continue
        order = np.argsort(-score, kind='stable')
        last_of_ties = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
        hits = np.cumsum(label[order] > 0)[last_of_ties]
        result[c] = np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / (last_of_ties + 1))
    return result


def f1_score(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return 2 TP / (2 TP + FP + FN) of each class: bool (N, C) twice -> (C,); NaN if neither has the class."""
    counts = (predictions.astype(np.int64) + labels.astype(np.int64)).sum(0)
    both = 2 * (predictions.astype(bool) & labels.astype(bool)).sum(0)
    return np.where(counts > 0, both / np.maximum(counts, 1), np.nan)


class ThresholdSweep:
    """The confusion matrices of all background thresholds at once, in one pass over the pixels.

    The background enters a prediction only as a threshold on the best foreground score. So a pixel is described by its
    target, its best foreground class and the number of thresholds that its best score exceeds.
    """

    def __init__(self, num_classes: int, thresholds: list[float]):
        if sorted(set(thresholds)) != list(thresholds):
            raise UserError('thresholds must be increasing')
        self.num_classes, self.thresholds = num_classes, list(thresholds)
        self._limits = np.asarray(thresholds, np.float32)
        self.counts = np.zeros((num_classes, num_classes, len(thresholds) + 1), np.int64)

    def update(self, maps: np.ndarray, keys: np.ndarray, target: np.ndarray) -> None:
        """Count an image: maps (K, h, w) are the scores of the classes keys[1:], target is the mask (h, w)."""
        if len(maps) and maps.shape[1:] != target.shape:
            raise UserError(f'maps of {maps.shape[1:]} cannot be scored on a mask of {target.shape}')
        wrong = (target >= self.num_classes) & (target != IGNORE)
        if wrong.any():
            raise UserError(f'target contains class {target[wrong].max()}, the classes are 0 to {self.num_classes - 1}')

        # Work on bands of rows that stay in the cache: half the time of processing the whole image at once.
        for y in range(0, len(target), 32):
            self._count(maps[:, y : y + 32], keys, target[y : y + 32])

    def _count(self, maps: np.ndarray, keys: np.ndarray, target: np.ndarray) -> None:
        # Find the best score, its class, and how many thresholds it exceeds.
        best, passed = np.zeros(target.shape, np.uint8), np.zeros(target.shape, np.uint8)
        if len(maps):
            top = maps[0].astype(np.float32)
            best += np.uint8(keys[1])
            for key, score in zip(keys[2:], maps[1:], strict=True):
                won = score > top
                best = best * ~won + won * np.uint8(key)  # many times faster than best[won] = key
                np.maximum(top, score, out=top)
            for limit in self._limits:
                passed += top > limit

        # Add up (target, class, thresholds passed); ignored pixels get an extra row that is dropped.
        steps = self.counts.shape[2]
        row = np.arange(IGNORE + 1, dtype=np.int32) * (self.num_classes * steps)
        row[IGNORE] = self.counts.size
        found = np.bincount((row[target] + best * np.int32(steps) + passed).ravel(), minlength=self.counts.size)
        self.counts += found[: self.counts.size].reshape(self.counts.shape)

    def confusion(self) -> np.ndarray:
        """Return the counts (thresholds, target, prediction)."""
        # Pixels that exceed threshold i have passed at least i + 1; all others are background.
        above = self.counts[:, :, ::-1].cumsum(2)[:, :, ::-1]
        result = np.moveaxis(above[:, :, 1:], 2, 0).copy()
        result[:, :, 0] += above[:, :, 0].sum(1) - result.sum(2)
        return result

    def matrices(self) -> list[ConfusionMatrix]:
        """Return the confusion matrix of each threshold, in order."""
        return [ConfusionMatrix(self.num_classes, counts) for counts in self.confusion()]


def count_labels(labels: list[np.ndarray], target: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the pixel counts of label maps of one image: (len(labels), target, prediction)."""
    matrices = [ConfusionMatrix(num_classes) for _ in labels]
    for matrix, label in zip(matrices, labels, strict=True):
        matrix.update(label, target)
    return np.stack([matrix.counts for matrix in matrices])


def count_maps(
    maps: np.ndarray, keys: np.ndarray, target: np.ndarray, thresholds: list[float], num_classes: int
) -> np.ndarray:
    """Return the pixel counts of maps (K, h, w) of the classes keys[1:]: (thresholds, target, prediction)."""
    sweep = ThresholdSweep(num_classes, thresholds)
    sweep.update(maps, keys, target)
    return sweep.confusion()


def summarize(counts: np.ndarray, names: tuple[str, ...]) -> dict:
    """Return mIoU, FP, FN, Dice and the IoU per class in percent, None for a class that does not occur.

    Takes counts (target, prediction) and the names of the labels, '' for the background of a data set without one.
    Raises UserError if no class but the background occurs.
    """
    matrix = ConfusionMatrix(len(names), counts)
    named = zip(names, matrix.iou(), strict=True)
    iou = {name: None if np.isnan(x) else round(100 * x, 4) for name, x in named if name}
    means = {'miou': matrix.miou(), 'fp': matrix.fp(), 'fn': matrix.fn(), 'dice': matrix.dice()}
    if np.isnan(means['fp']):
        raise UserError('neither masks nor predictions contain a class: check --domain and --data_dir')
    return {**{name: 100 * value for name, value in means.items()}, 'iou': iou}


def summarize_sweep(total: np.ndarray, thresholds: Sequence[float | None], names: tuple[str, ...]) -> dict:
    """Return the scores of counts (thresholds, target, prediction): at the best threshold, and at all of them.

    All in percent: the entries of `summarize` at the threshold of the highest mIoU, its `confusion`, the mIoU of
    predicting background everywhere, and the scores at all `thresholds`. Without a background, the mIoU of predicting
    the most frequent class of the masks everywhere is `one_class`.
    """
    rows = [{'threshold': t, **summarize(counts, names)} for t, counts in zip(thresholds, total, strict=True)]
    best = max(range(len(rows)), key=lambda i: rows[i]['miou'])
    most = int(total[0].sum(1).argmax())
    constant = 100 * ConfusionMatrix(len(names), total[0]).constant_miou(0 if names[0] else most)
    return {
        **rows[best],
        'confusion': total[best].tolist(),
        'all_background_miou': constant if names[0] else None,
        **({} if names[0] else {'one_class': {'class': names[most], 'miou': constant}}),
        'thresholds': rows,
    }


def drop_absent(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the K classes that occur in counts (thresholds, target, prediction), and the counts of these alone.

    An image has few of a data set's classes, and the counts grow with their square.
    """
    classes = np.flatnonzero(confusion.any((0, 1)) | confusion.any((0, 2)))
    return classes, confusion[:, classes[:, None], classes]


def class_counts(confusion: np.ndarray) -> np.ndarray:
    """Return T, P and TP of each class: counts (..., target, prediction) -> (..., C, 3)."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([confusion.sum(-1), confusion.sum(-2), both], -1)


def mean_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return mIoU, FP, FN and Dice of tables of T, P and TP: (..., C, 3) -> {'miou', 'fp', 'fn', 'dice'}, each (...).

    As in `ConfusionMatrix`, a class in neither masks nor predictions is left out, and NaN is the mean of none.
    """
    target, predicted, both = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    union = target + predicted - both

    def mean(part: np.ndarray, union: np.ndarray) -> np.ndarray:
        present = union > 0
        ratios = np.divide(part, union, out=np.zeros_like(union), where=present)
        count = present.sum(-1)
        return np.where(count > 0, ratios.sum(-1) / np.maximum(count, 1), np.nan)

    errors = {'fp': predicted - both, 'fn': target - both}
    foreground = {name: mean(part[..., 1:], union[..., 1:]) for name, part in errors.items()}
    return {'miou': mean(both, union), **foreground, 'dice': mean(2 * both, target + predicted)}


ERROR_SHARES = ('IoU', 'missed', 'too much', 'taken for another class', 'another class taken for it')


def error_shares(confusion: np.ndarray) -> np.ndarray:
    """Return the parts of each class's union of mask and prediction: counts (target, prediction) -> (C, 5).

    The columns are ERROR_SHARES and add up to 1; NaN for a class that does not occur. A class is missed where the
    background is predicted, and too much where the mask is background. For the background these two are errors of the
    objects, so it has only the last two columns.
    """
    counts = np.asarray(confusion, np.float64)
    both = np.diag(counts)
    missed, surplus = counts[:, 0].copy(), counts[0].copy()
    missed[0] = surplus[0] = 0
    shares = np.stack([both, missed, surplus, counts.sum(1) - both - missed, counts.sum(0) - both - surplus], 1)
    union = shares.sum(1, keepdims=True)
    return np.divide(shares, union, out=np.full_like(shares, np.nan), where=union > 0)
