"""Scores of output folders: pixel counts against masks, and the result files of evaluate.py.

experiments/results/{name}.json holds the scores, {name}.npz the pixel counts of every image:
    ids         (N,) text
    thresholds  (thresholds,) float64; empty for label maps, whose counts have one row
    images      (entries,) index into ids; an entry is an image and a class in its mask or its predictions
    classes     (entries,) 0 is the background
    counts      (entries, thresholds, 3), T, P and TP as the smallest unsigned integers that fit
{name}.tgz is the upload for the VOC test server.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from core import IGNORE, UserError, metrics
from core.crf import crf_from_labels
from core.data.dataset import Dataset
from core.labels import refine_best
from core.maps import threshold_cams
from util.parallel.workers import parallel_map
from util.store.arrays import write_npz
from util.store.files import check_name, remove_leftovers, write_bytes, write_json
from util.store.fingerprints import versions
from util.store.folders import Folder
from util.store.formats import result_path
from util.store.hashes import digest, mask_hashes
from util.store.locks import lock_path, locked

COLUMNS = ('threshold', 'mIoU', 'FP', 'FN')  # the first ones of a table
CSV_BEGINS = ','.join(COLUMNS).encode()
BEST, GIVEN = 'best on these masks', 'given'  # how the threshold was chosen


def read_prediction(folder: Folder, image_id: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a label map (h, w). Raises UserError if it contains 255, as affinity labels do."""
    prediction = folder.read_label(image_id, size)
    if (prediction == IGNORE).any():
        raise UserError(f'{folder.file(image_id)}: contains {IGNORE} (ignore); affinity labels cannot be scored')
    return prediction


def count_image(
    image_id: str, folder: Folder, dataset: Dataset, thresholds: Sequence[float | None], crf_iteration: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of an image and their pixel counts (thresholds, target, prediction).

    Maps are thresholded, and with crf_iteration refined by a dense CRF. Label maps have the one threshold None, and so
    have maps without a background, of which the best class counts.
    """
    image = np.array(dataset.read_image(image_id)) if crf_iteration else None
    mask = dataset.read_mask(image_id, image.shape[:2] if crf_iteration else None)
    classes = dataset.num_classes + 1
    if not folder.kind.maps:
        return metrics.drop_absent(metrics.count_labels([read_prediction(folder, image_id, mask.shape)], mask, classes))
    keys, maps = folder.read_scores(image_id, mask.shape)
    if not dataset.has_background:
        label = keys[refine_best(image, maps, crf_iteration)]
        return metrics.drop_absent(metrics.count_labels([label], mask, classes))
    if not crf_iteration:
        return metrics.drop_absent(metrics.count_maps(maps, keys, mask, thresholds, classes))
    labels = [threshold_cams(maps, threshold) for threshold in thresholds]
    refined = crf_from_labels(image, labels, len(keys), crf_iteration)
    return metrics.drop_absent(metrics.count_labels([keys[label] for label in refined], mask, classes))


def count_pixels(
    folder: Folder,
    dataset: Dataset,
    ids: Sequence[str],
    thresholds: Sequence[float | None],
    num_workers: int = 0,
    crf_iteration: int = 0,
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the counts of all images (thresholds, target, prediction); and per image its classes, and T, P and TP."""
    count = partial(count_image, folder=folder, dataset=dataset, thresholds=thresholds, crf_iteration=crf_iteration)
    total, by_image = np.zeros((len(thresholds), *2 * [dataset.num_classes + 1]), np.int64), []
    for classes, counts in parallel_map(count, ids, num_workers, 'scoring'):
        total[:, classes[:, None], classes] += counts
        by_image.append((classes, metrics.class_counts(counts).astype(np.uint32)))
    return total, by_image


@contextmanager
def claimed(name: str) -> Iterator[Path]:
    """Hold the lock of a result inside, without leftovers of killed processes; return the path of its JSON file."""
    path = result_path(name)
    check_name(path, '--experiment_name')
    with locked(lock_path(path), str(path)):
        remove_leftovers(path, result_path(name, 'npz'), result_path(name, 'tgz'))
        yield path


def write(name: str, content: dict, dataset: Dataset, ids: list[str], packed: dict[str, np.ndarray]) -> dict:
    """Write a result, and return the content of its JSON file.

    content: the output and its scores. The data set, a hash of the masks of the ids, how the threshold was chosen, and
    the versions are added. packed: `images`, `classes` and `counts` as above.
    """
    thresholds = [row['threshold'] for row in content['thresholds'] if row['threshold'] is not None]
    masks = digest(mask_hashes({image_id: dataset.mask_path(image_id) for image_id in ids}, dataset.mask_values))
    about = {'dataset': dataset.name, 'num_classes': dataset.num_classes, 'masks': masks, 'images': len(ids)}
    choice = (GIVEN if len(thresholds) == 1 else BEST) if thresholds else None
    content = {**content, **about, 'threshold_choice': choice, 'versions': versions()}
    arrays = {'ids': np.array(ids), 'thresholds': np.array(thresholds, np.float64), **packed}
    write_npz(result_path(name, 'npz'), **arrays)
    write_json(result_path(name), content)
    return content


def pack(by_image: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return `images`, `classes` and `counts` as above from K classes and counts (thresholds, K, 3) per image."""
    arrays = {
        'images': np.repeat(np.arange(len(by_image)), [len(classes) for classes, _ in by_image]),
        'classes': np.concatenate([classes for classes, _ in by_image]),
        'counts': np.concatenate([counts.swapaxes(0, 1) for _, counts in by_image]),
    }
    return {key: array.astype(np.min_scalar_type(array.max(initial=0))) for key, array in arrays.items()}


def write_csv(path: Path, content: dict) -> None:
    """Write a row per threshold: threshold, mIoU, FP, FN, then the IoU of the classes; empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow([*COLUMNS, *content['iou']])
    for row in content['thresholds']:
        writer.writerow([row['threshold'], row['miou'], row['fp'], row['fn'], *row['iou'].values()])
    write_bytes(path, text.getvalue().encode())


def format_threshold(threshold: float | None) -> str:
    """Return a threshold with at least two decimals; '-' for label maps, which have none."""
    if threshold is None:
        return '-'
    return f'{threshold:.2f}' if threshold == round(threshold, 2) else f'{threshold:g}'
