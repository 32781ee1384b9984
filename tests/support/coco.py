"""A small folder in the layout of COCO."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

H, W = 24, 32
CATEGORIES = [{'id': 7, 'name': 'dog'}, {'id': 90, 'name': 'cat'}, {'id': 2, 'name': 'traffic light, red'}]
NAMES = ['traffic light, red', 'dog', 'cat']  # in order of id


def rectangle(top, left, bottom, right) -> list[float]:
    """Corners of a polygon on pixel borders, which pycocotools fills exactly."""
    return [left, top, right, top, right, bottom, left, bottom]


def filled(*boxes) -> np.ndarray:
    label = np.zeros((H, W), np.uint8)
    for top, left, bottom, right in boxes:
        label[top:bottom, left:right] = 1
    return label


def uncompressed(mask: np.ndarray) -> dict:
    """RLE by columns: the lengths of runs of zeros and ones in turn, zeros first."""
    flat = mask.T.reshape(-1)
    borders = [0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]
    return {'size': list(mask.shape), 'counts': [0] * int(flat[0]) + np.diff(borders).tolist()}


def compressed(mask: np.ndarray) -> dict:
    return {'size': list(mask.shape), 'counts': coco_mask.encode(np.asfortranarray(mask))['counts'].decode()}


def annotation(image_id, category_id, segmentation, area, iscrowd=0) -> dict:
    return {
        'id': 100 * image_id + len(str(segmentation)),
        'image_id': image_id,
        'category_id': category_id,
        'segmentation': segmentation,
        'area': area,
        'iscrowd': iscrowd,
        'bbox': [0, 0, 1, 1],
    }


TRAIN = [
    # The small dog comes first in the file and lies on the large cat.
    annotation(1, 7, [rectangle(8, 8, 12, 12)], 16),
    annotation(1, 90, [rectangle(2, 4, 20, 28)], 432),
    # Two parts of one object, and a crowd that covers one of them.
    annotation(5, 2, [rectangle(0, 0, 4, 4), rectangle(10, 10, 16, 20)], 76),
    annotation(5, 7, uncompressed(filled((0, 0, 5, 2), (20, 30, 24, 32))), 18, iscrowd=1),
    # Outside the image: no pixel of it.
    annotation(6, 90, [rectangle(40, 40, 50, 50)], 100),
]
VAL = [
    annotation(1, 90, compressed(filled((0, 0, 2, 2), (5, 5, 24, 32))), 517, iscrowd=1),
    annotation(1, 2, compressed(filled((0, 0, 24, 1))), 24),
]


def content(year, split, annotations, ids) -> dict:
    """The images are listed from the last to the first."""
    prefix = f'COCO_{split}{year}_' if year == 2014 else ''
    images = [{'id': i, 'file_name': f'{prefix}{i:012d}.jpg', 'height': H, 'width': W} for i in reversed(ids)]
    return {'info': {'year': year}, 'images': images, 'annotations': annotations, 'categories': CATEGORIES}


def write(root, split, entries, year=2017):
    path = root / 'annotations' / f'instances_{split}{year}.json'
    path.write_text(json.dumps(entries))
    return path


def make_coco(root, year=2017):
    (root / 'annotations').mkdir(parents=True)
    for split, annotations, ids in (('train', TRAIN, (1, 4, 5, 6)), ('val', VAL, (1,))):
        entries = content(year, split, annotations, ids)
        write(root, split, entries, year)
        (root / f'{split}{year}').mkdir()
        for image in entries['images']:
            Image.new('RGB', (W, H)).save(root / f'{split}{year}' / image['file_name'])
    return root
