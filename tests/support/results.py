"""Results of evaluate.py of chosen scores, for tests of what reads them."""

import re
from pathlib import Path

import numpy as np

from core import image_scores
from util.store import results
from util.store.files import write_json
from util.store.formats import result_path


class Masks:
    """A data set, as far as results ask for one."""

    name, num_classes, mask_values = 'drawn', 1, None

    def mask_path(self, image_id):
        return Path(f'{image_id}.png')


def write_result(name, miou, threshold=0.3, domain='train', folder=None, **more) -> None:
    """Write the JSON file of a result, without counts per image."""
    content = {
        'miou': miou,
        'fp': 20.04,
        'fn': 70 - miou,
        'dice': miou + 10,
        'threshold': threshold,
        'images': 6,
        'all_background_miou': 12.5,
        'thresholds': [{'threshold': threshold, 'miou': miou}]
        + ([] if threshold is None else [{'threshold': 0.2, 'miou': miou - 3}]),
        'domain': domain,
        'experiment_name': re.sub(rf'(@dcrf=\d+)?@{domain}$', '', name) if folder is None else folder,
        'format': 'CAM',
        'crf_iteration': 0,
        'dataset': 'drawn',
        'masks': 'a' * 64,
        'iou': {'background': 80.0, 'cat': 20.0},
        'confusion': [[1, 0], [0, 1]],
        'made_with': {'options': {}},
        'two_fold': None if threshold is None else {'miou': miou - 1, 'dice': miou + 9, 'thresholds': [0.2, threshold]},
        'false_masks': {'images': 2, 'share': 50.0, 'classes': {'cat': 25.0}},
        'by_size': {size: {'objects': i, 'iou': 10.0 * i if i else None} for i, size in enumerate(image_scores.SIZES)},
    }
    write_json(result_path(name), {**content, **more})


def write_counts(name, by_image, confusion, thresholds=(0.3,), scores=None, **more) -> dict:
    """Write both files of a result at the last threshold, as evaluate.py does; return the content of the JSON file."""
    scores = (
        {'miou': 30.0, 'fp': 30.0, 'fn': 30.0, 'dice': 45.0, 'iou': {'background': 80.0}} if scores is None else scores
    )
    content = {
        **scores,
        'all_background_miou': 30.0,
        'thresholds': [{**scores, 'threshold': threshold} for threshold in thresholds],
        'threshold': thresholds[-1],
        'confusion': np.asarray(confusion).tolist(),
        'domain': 'train',
        'experiment_name': name.removesuffix('@train'),
        'format': 'CAM',
        'crf_iteration': 0,
        'made_with': {},
    }
    ids, packed = [f'image{i}' for i in range(len(by_image))], results.pack(by_image)
    of_images = {'thresholds': list(thresholds), 'best': thresholds[-1], 'names': [*map(str, range(len(confusion)))]}
    content |= image_scores.summarize(ids, **packed, **of_images)
    return results.write(name, {**content, **more}, Masks(), ids, packed)
