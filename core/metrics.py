"""mIoU and its parts, from exact integer counts of pixels (METHOD, section 9). NumPy alone."""

import numpy as np

from core import IGNORE, InputError


class ConfusionMatrix:
    """Pixels counted by (target, prediction). num_classes includes the background; fractions are in [0, 1]."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Count an image or a batch: integer arrays of one shape; pixels whose target is 255 count nowhere.

        Raises InputError for shapes that differ and for classes that do not exist.
        """
        if prediction.shape != target.shape:
            raise InputError(f'a prediction of shape {prediction.shape} cannot be scored on a mask of {target.shape}')
        keep = target != IGNORE
        target, prediction = target[keep].astype(np.int64), prediction[keep].astype(np.int64)
        for name, values in (('target', target), ('prediction', prediction)):
            if values.size and not 0 <= values.min() <= values.max() < self.num_classes:
                raise InputError(f'{name} holds class {values.max()}, there are {self.num_classes} classes from 0')
        joint = np.bincount(target * self.num_classes + prediction, minlength=self.num_classes**2)
        self.counts += joint.reshape(self.num_classes, self.num_classes)

    def _union(self) -> np.ndarray:
        """T + P - TP by class, nan where neither masks nor predictions contain the class: it counts in no mean."""
        union = self.counts.sum(0) + self.counts.sum(1) - np.diag(self.counts)
        return np.where(union > 0, union, np.nan)

    def iou(self) -> np.ndarray:
        """(num_classes,) IoU, background first; nan for a class that neither masks nor predictions contain."""
        return np.diag(self.counts) / self._union()

    def miou(self) -> float:
        """The mean IoU over the classes that occur."""
        return _mean(self.iou())

    def fp(self) -> float:
        """Mean over the foreground classes of (P - TP) / (T + P - TP)."""
        return _mean(((self.counts.sum(0) - np.diag(self.counts)) / self._union())[1:])

    def fn(self) -> float:
        """Mean over the foreground classes of (T - TP) / (T + P - TP)."""
        return _mean(((self.counts.sum(1) - np.diag(self.counts)) / self._union())[1:])


class ThresholdSweep:
    """The confusion matrices of all background thresholds at once, from one look at each pixel.

    The background enters a prediction only as a threshold on the best foreground score, so a pixel is described by its
    target, its best foreground class and the number of thresholds that its best score exceeds.
    """

    def __init__(self, num_classes: int, thresholds: list[float]):
        if sorted(set(thresholds)) != list(thresholds):
            raise InputError('thresholds must rise')
        self.num_classes, self.thresholds = num_classes, list(thresholds)
        self._limits = np.asarray(thresholds, np.float32)
        self.counts = np.zeros((num_classes, num_classes, len(thresholds) + 1), np.int64)

    def update(self, maps: np.ndarray, keys: np.ndarray, target: np.ndarray) -> None:
        """maps (K, h, w) are the scores of the classes keys[1:] (keys[0] is the background); target (h, w)."""
        if len(maps) and maps.shape[1:] != target.shape:
            raise InputError(f'maps of {maps.shape[1:]} cannot be scored on a mask of {target.shape}')
        wrong = (target >= self.num_classes) & (target != IGNORE)
        if wrong.any():
            raise InputError(f'target holds class {target[wrong].max()}, there are {self.num_classes} classes from 0')

        # Bands of rows that stay in the processor's cache: half as long as the whole image at once.
        for y in range(0, len(target), 32):
            self._count(maps[:, y : y + 32], keys, target[y : y + 32])

    def _count(self, maps: np.ndarray, keys: np.ndarray, target: np.ndarray) -> None:
        # One look at each map: the best score, whose it is, and how many thresholds it exceeds.
        best, passed = np.zeros(target.shape, np.uint8), np.zeros(target.shape, np.uint8)
        if len(maps):
            top = maps[0].astype(np.float32)
            best += np.uint8(keys[1])
            for key, score in zip(keys[2:], maps[1:], strict=True):
                won = score > top
                best = best * ~won + won * np.uint8(key)  # many times as fast as best[won] = key
                np.maximum(top, score, out=top)
            for limit in self._limits:
                passed += top > limit

        # A pixel's place in the counts; the ignored ones have a row of their own behind the last.
        steps = self.counts.shape[2]
        row = np.arange(IGNORE + 1, dtype=np.int32) * (self.num_classes * steps)
        row[IGNORE] = self.counts.size
        found = np.bincount((row[target] + best * np.int32(steps) + passed).ravel(), minlength=self.counts.size)
        self.counts += found[: self.counts.size].reshape(self.counts.shape)

    def matrices(self) -> list[ConfusionMatrix]:
        """The confusion matrix of each threshold, in their order."""
        result = []
        for i in range(len(self.thresholds)):
            matrix = ConfusionMatrix(self.num_classes)
            matrix.counts += self.counts[:, :, i + 1 :].sum(2)
            matrix.counts[:, 0] += self.counts[:, :, : i + 1].sum((1, 2))
            result.append(matrix)
        return result


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float('nan')
