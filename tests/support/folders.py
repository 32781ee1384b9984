"""A data set and the maps and options of an output folder, for tests of folders and shares."""

import argparse
from pathlib import Path

import numpy as np

from core.data.images import encode_label_map, read_label_map
from core.data.voc import palette
from util import artifacts

KEYS = np.array([0, 3, 20])
CAMS = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
HR_CAMS = np.random.default_rng(1).random((2, 9, 14)).astype(np.float32)
ARGS = dict(
    tag='x', domain='train', scales='1.0', alpha=4.0, batch_size=4, device='cpu', num_workers=3, overwrite=False,
    repair=False,
)  # fmt: skip
FOLDER = artifacts.PREDICTIONS / 'x@train@scale=1.0'


class LabelMaps:
    """A data set of 20 classes, as far as folders ask for one."""

    num_classes = 20
    class_names = tuple(f'class {i}' for i in range(1, 21))

    def image_path(self, image_id):
        return Path(f'{image_id}.jpg')

    def read_label_map(self, path, size=None):
        return read_label_map(path, self.num_classes, size)

    def encode_label_map(self, label):
        return encode_label_map(label, palette())


def options(**values) -> argparse.Namespace:
    return argparse.Namespace(**values)
