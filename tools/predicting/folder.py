"""The folder of tools.predict: three files per photograph, and the records that let the same command resume. No torch.

args.json and inputs.json are as in the folders of the stages (util/store/create.py). photographs.json has the palette
of the masks and the path of each photograph, so tools.report can show masks without a data set.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np

from core import UserError
from core.data import drawing
from core.data.dataset import Dataset
from core.data.images import encode_label_map
from tools.reporting import pictures
from util.store import arrays, files
from util.store.fingerprints import read_args, read_inputs, read_json
from util.store.folders import Folder
from util.store.formats import EXPERIMENTS, PREDICTED, PREDICTIONS
from util.store.hashes import file_hashes

ROOT = EXPERIMENTS / 'predict'
RECORD = 'photographs.json'
ENTRIES = {'palette': [[int]], 'images': {str: str}}  # content of photographs.json


class Prediction(NamedTuple):
    """Mask (h, w) of class indices, content of the npz file, and the score of each considered class by its index."""

    mask: np.ndarray
    arrays: dict[str, np.ndarray | arrays.Parts]
    scores: dict[int, float]


class MaskFolder(Folder):
    """A folder of predicted masks, written in the colours of the model and with the names of its classes."""

    other = 'another --out'

    def __init__(
        self,
        path: Path,
        dataset: Dataset,
        ids: Sequence[str],
        palette: np.ndarray,
        names: Sequence[str],
        font: Path | None = None,
    ):
        super().__init__(PREDICTED, path, dataset, ids)
        self.palette, self.names, self.font = palette, names, font

    def existing(self) -> list[Path]:
        """Return the existing files of the ids that were requested or recorded: the folder may contain others."""
        ids = dict.fromkeys([*self.ids, *read_inputs(self.path).get('images', ())])
        paths = (self.path / f'{image_id}{ending}' for image_id in ids for ending in PREDICTED.endings)
        return [path for path in paths if os.path.lexists(path)]

    def check(self, image_id: str) -> None:
        """Read the mask and the scores. Raises UserError if one of them is damaged."""
        super().check(image_id)
        arrays.read_arrays(self.path / f'{image_id}.npz', 'keys')

    def summary(self) -> str:
        done = sum(self.file(image_id).is_file() for image_id in self.ids)
        new = sum(self.file(image_id).is_file() for image_id in self.missing)
        return f'{self.path}: masks of {done} of {len(self.ids)} images, {new} of them new'

    def write(self, image_id: str, image: np.ndarray, prediction: Prediction) -> None:
        """Write the three files of an image (h, w, 3), the mask last: without a mask the image counts as missing."""
        arrays.write_npz(self.path / f'{image_id}.npz', **prediction.arrays)
        labels = {index: f'{self.names[index]} {score:.2f}' for index, score in prediction.scores.items()}
        font = drawing.open_font(self.font)
        overlay = pictures.label_mask(image, prediction.mask, self.palette, labels, font)
        files.write_bytes(self.path / f'{image_id}_overlay.png', iio.imwrite('<bytes>', overlay, extension='.png'))
        self._write(image_id, encode_label_map(prediction.mask, self.palette))

    def record_photographs(self, paths: Mapping[str, Path], overwrite: bool) -> None:
        """Add the paths of photographs by id to photographs.json, or write it again."""
        old = {} if overwrite else read_photographs(self.path)
        content = {
            'palette': self.palette.tolist(),
            'images': {**old.get('images', {}), **{image_id: str(path) for image_id, path in paths.items()}},
        }
        if content != old:
            files.write_json(self.path / RECORD, content)


def read_photographs(folder: Path) -> dict:
    """Return the palette and the paths by id of a folder, {} if there are none."""
    content = read_json(folder / RECORD, **ENTRIES)
    return content if ENTRIES.keys() <= content.keys() else {}


def path_of(name: str, kind: str) -> Path:
    """Return the path of an output folder from its name; folders of predicted masks are named by their path."""
    return Path(name) if kind == PREDICTED.title else PREDICTIONS / name


def check_outputs(images: Mapping[str, Path], out: Path, masks: Collection[Path]) -> None:
    """Raise UserError if outputs would replace one another, a photograph, a mask of the data set or other outputs."""
    found = read_args(out).get('format', PREDICTED.title)
    if found != PREDICTED.title:
        raise UserError(f'--out {out}: contains {found}s of a stage: choose another folder')
    for image_id, path in images.items():
        if f'{image_id}_overlay' in images:
            other = images[f'{image_id}_overlay']
            raise UserError(f'{path} and {other}: both would be written as {image_id}_overlay.png: rename one of them')
    inputs = {os.path.realpath(path) for path in (*images.values(), *masks)}
    for path in (out / f'{image_id}{ending}' for image_id in images for ending in PREDICTED.endings):
        if os.path.lexists(path) and os.path.realpath(path) in inputs:
            raise UserError(f'--out {out}: {path} is one of the images or their masks: choose another folder')


def check_recorded(images: Mapping[str, Path], out: Path) -> None:
    """Raise UserError if the folder has files of these ids that are not recorded, or are of other photographs."""
    before, hashes = read_photographs(out).get('images', {}), read_inputs(out).get('images', {})
    unknown = sorted(images.keys() - hashes.keys())
    for path in (out / f'{image_id}{ending}' for image_id in unknown for ending in PREDICTED.endings):
        if os.path.lexists(path):
            remedy = 'choose another folder, or pass --overwrite to replace it'
            raise UserError(
                f'--out {out}: {path.name} exists, and no record says that it is a predicted mask: {remedy}'
            )
    moved = {
        image_id: path
        for image_id, path in images.items()
        if image_id in hashes and os.path.abspath(before.get(image_id, path)) != os.path.abspath(path)
    }
    now = file_hashes(moved)
    for image_id, path in moved.items():
        if now[image_id] != hashes[image_id]:
            fault = f'{image_id}.png is the mask of {before[image_id]}, not of {path}'
            raise UserError(f'--out {out}: {fault}: choose another folder, or pass --overwrite to start over')
