"""Results under experiments/results/: the only module that writes, reads and finds them.

{name}.json holds the scores of evaluate.py, {name}.npz the pixel counts of every image:
    ids         (N,) text
    thresholds  (thresholds,) float64; empty for label maps, whose counts have one row
    counts      (N, thresholds, classes, 3), T, P and TP as the smallest unsigned integers that fit; background first
{name}.tgz is the upload for the VOC test server. No torch: stage 9 imports this module and forks.
"""

import csv
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from util.artifacts import results_path, write_npz
from util.files import write_bytes, write_json

BEST, GIVEN = 'best on these masks', 'given'  # how the threshold of a result was chosen


def write(name: str, content: dict, ids: list[str], by_image: np.ndarray) -> None:
    """Write a result: the content of the JSON file, and T, P and TP per image (N, thresholds, classes, 3)."""
    thresholds = [row['threshold'] for row in content['thresholds'] if row['threshold'] is not None]
    smallest = np.min_scalar_type(by_image.max())
    counts = {'thresholds': np.array(thresholds, np.float64), 'counts': by_image.astype(smallest)}
    write_npz(results_path(name, 'npz'), ids=np.array(ids), **counts)
    write_json(results_path(name, 'json'), content)


def write_csv(path: Path, content: dict) -> None:
    """Write a row per threshold: threshold, mIoU, FP, FN, then the IoU of the classes; empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['threshold', 'mIoU', 'FP', 'FN', *content['iou']])
    for row in content['thresholds']:
        writer.writerow([row['threshold'], row['miou'], row['fp'], row['fn'], *row['iou'].values()])
    write_bytes(path, text.getvalue().encode())


def write_upload(path: Path, label_maps: Iterable[tuple[str, bytes]]) -> None:
    """Write the upload for the VOC test server: (image id, 8-bit palette PNG of class indices) in a .tgz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for image_id, content in label_maps:
            member = tarfile.TarInfo(f'results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    write_bytes(path, buffer.getvalue())


def format_threshold(threshold: float | None) -> str:
    """Return a threshold with two decimals, or as many as it has; '-' for that of label maps."""
    if threshold is None:
        return '-'
    return f'{threshold:.2f}' if threshold == round(threshold, 2) else f'{threshold:g}'
