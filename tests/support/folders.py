"""A data set and the maps and options of an output folder, for tests of folders and shares."""

import hashlib
import json
from pathlib import Path

import numpy as np

from core.data.images import encode_label_map, image_size, read_label_map
from core.data.pixels import Reading
from core.data.voc import palette
from util.flags import OUTPUT
from util.store import CAM, create_folder, formats
from util.store.files import write_json
from util.store.fingerprints import Record, read_args
from util.store.folders import Folder

KEYS = np.array([0, 3, 20])
CAMS = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
HR_CAMS = np.random.default_rng(1).random((2, 9, 14)).astype(np.float32)
ARGS = dict(
    tag='x', domain='train', scales='1.0', alpha=4.0, batch_size=4, device='cpu', num_workers=3, overwrite=False,
    repair=False, cam='published',
)  # fmt: skip
AFFECTS = dict(
    domain='input', batch_size='batch', device='speed', num_workers='speed', overwrite='speed', repair='speed',
    shard='share', cam_dir='random-walk CAM', beta='random-walk CAM', exp_times='random-walk CAM',
)  # fmt: skip
FOLDER = formats.PREDICTIONS / 'x@train@scale=1.0'
IDS = ['a', 'b']


class LabelMaps:
    """A data set of 20 classes, as far as folders ask for one. No two images are in a batch."""

    num_classes = 20
    class_names = tuple(f'class {i}' for i in range(1, 21))
    reading = Reading()
    class_entries = {'classes': class_names}
    has_background = True

    def image_path(self, image_id):
        return Path(f'{image_id}.jpg')

    def image_size(self, image_id):
        return image_size(self.image_path(image_id))

    def batches(self, ids, batch_size):
        return [[image_id] for image_id in ids]

    def read_label_map(self, path, size=None):
        return read_label_map(path, self.num_classes, size)

    def encode_label_map(self, label):
        return encode_label_map(label, palette())


def folder_at(path, kind, ids=('a',)) -> Folder:
    return Folder(kind, path, LabelMaps(), ids)


def write_rw(path, keys, maps) -> None:
    folder_at(path.parent, formats.RANDOM_WALK).write_maps(path.stem, keys, maps)


def record(**options) -> Record:
    """Return the record of a command with the options ARGS, which are the defaults, and others."""
    options = {**ARGS, **options}
    affects = {name: AFFECTS.get(name, 'result') for name in options}
    return Record(options, affects, {name: ARGS.get(name) for name in options})


def created(kind=CAM, ids=IDS, inputs=None, **changes):
    """Create the folder of a command with ARGS and other options."""
    command = record(**changes)
    output = {name: command.options[name] for name in OUTPUT if name in command.options}
    return create_folder(kind, command, LabelMaps(), list(ids), **output, **(inputs or {'model': '1234'}))


def args_json() -> dict:
    return json.loads((FOLDER / 'args.json').read_text())


def record_as_written(folder: Path) -> None:
    """Let files.json say that the files were written as they are now."""
    kind, hashes = formats.RECORDED.get(read_args(folder).get('format')), {}
    for image_id in json.loads((folder / 'files.json').read_text()) if kind else ():
        paths = [folder / f'{image_id}{ending}' for ending in kind.endings]
        if paths[0].is_file():
            hashes[image_id] = ','.join(hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths)
    write_json(folder / 'files.json', hashes)


def fill(folder: Folder, ids=None) -> None:
    """Write the maps of some images, or of all that are missing."""
    for image_id in sorted(folder.missing) if ids is None else ids:
        folder.write_maps(image_id, KEYS, CAMS, HR_CAMS)
