"""A data set: its classes and lists, and the image, image-level label and mask of an id.

One JSON file gives the classes and lists; a root folder in the VOC layout (core/data/voc.py) holds the files. Stages
ask `Dataset` and know no layout, so a new kind of data set is added here. No torch: stages 3, 6 and 9 import this
module and fork.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from core import IGNORE, UserError
from core.data import images, voc


@dataclass(frozen=True)
class Dataset:
    """Classes, lists and files. Lists: `train_aug` to train on, `train` and `val` to score, `test` without masks."""

    name: str
    class_names: tuple[str, ...]  # foreground only; index 0 of every map is the background
    palette: np.ndarray  # (256, 3) uint8
    lists: dict[str, Path]
    root: Path

    @property
    def num_classes(self) -> int:
        """Number of foreground classes, C."""
        return len(self.class_names)

    def ids(self, domain: str, with_images: bool = False) -> list[str]:
        """Return the image ids of a list.

        Raises UserError if the list is unknown, empty or malformed, and with_images also if an image is missing.
        """
        if domain not in self.lists:
            raise UserError(f'domain {domain!r}: the data set "{self.name}" has the lists {", ".join(self.lists)}')
        path = self.lists[domain]
        try:
            lines = path.read_text(encoding='utf-8-sig').splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f'{path}: the list "{domain}" cannot be read ({type(error).__name__})') from None
        ids = [line.strip() for line in lines if line.strip()]
        if not ids:
            raise UserError(f'{path}: the list "{domain}" is empty')
        seen = set()
        for image_id in ids:
            if '/' in image_id or '\\' in image_id or image_id.startswith('.') or not image_id.isprintable():
                raise UserError(
                    f'{path}: {image_id!r} is not a valid image id (file name without directory or extension)'
                )
            if image_id in seen:
                raise UserError(f'{path}: duplicate image id {image_id!r} (expected one id per line)')
            seen.add(image_id)
        if with_images:
            _check_files([self.image_path(image_id) for image_id in ids])
        return ids

    def image_path(self, image_id: str) -> Path:
        return voc.image_path(self.root, image_id)

    def xml_path(self, image_id: str) -> Path:
        return voc.xml_path(self.root, image_id)

    def mask_path(self, image_id: str) -> Path:
        return voc.mask_path(self.root, image_id)

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Return (h, w) from the header of the image."""
        return images.image_size(self.image_path(image_id))

    def read_image(self, image_id: str) -> Image.Image:
        """Return the RGB image, upright."""
        return images.read_image(self.image_path(image_id))

    def read_labels(self, image_id: str) -> np.ndarray:
        """Return the image-level label, (C,) float32 multi-hot.

        Raises UserError naming the file if it is missing, names an unknown class or contains no object.
        """
        path = self.xml_path(image_id)
        labels = np.zeros(self.num_classes, np.float32)
        for name in voc.read_tags(path, self.image_size(image_id)):
            if name not in self.class_names:
                raise UserError(f'{path}: object {name!r} is not a class of the data set "{self.name}"')
            labels[self.class_names.index(name)] = 1
        if not labels.any():
            raise UserError(f'{path}: no object of any class, and so without an image-level label (remove the id)')
        return labels

    def read_mask(self, image_id: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the ground-truth mask (h, w) uint8: 0..C, 255 void."""
        return self.read_label_map(self.mask_path(image_id), size)

    def read_label_map(self, path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return a label map of this data set's classes; see core.data.images.read_label_map."""
        return images.read_label_map(path, self.num_classes, size)

    def encode_label_map(self, label: np.ndarray) -> bytes:
        """Encode a label map (h, w) as a PNG with this data set's palette."""
        return images.encode_label_map(label, self.palette)

    def has_masks(self, ids: Iterable[str]) -> bool:
        """Return whether any of the images has a mask."""
        return any(self.mask_path(image_id).is_file() for image_id in ids)

    def check_masks(self, ids: Iterable[str]) -> None:
        """Raise UserError if a mask is missing, or if no mask of the list contains an object.

        Reads masks until one contains an object. Masks of 0 and 255 are written by many tools for two classes; here 255
        means ignore, so that every score on them would be meaningless.
        """
        paths = [self.mask_path(image_id) for image_id in ids]
        _check_files(paths)
        values = set()
        for path in paths:
            values |= set(np.unique(self.read_label_map(path)).tolist())
            if values - {0, IGNORE}:
                return
        raise UserError(
            f'{paths[0].parent}: the {len(paths)} masks of the list contain only the values {sorted(values)}, so no '
            f'object: pixels of class k must have the value k, from 1 to {self.num_classes} ({IGNORE} is ignored)'
        )


def open_dataset(path: str | Path, root: str | Path) -> Dataset:
    """Open a data set: {"name", "classes": [...], "lists": {domain: file}, "palette": [[r, g, b]]} and its root folder.

    "name" and "palette" are optional. List files are relative to the JSON. Raises UserError naming the file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding='utf-8-sig'))
    except OSError as error:
        raise UserError(f'dataset {path}: cannot be read ({error.strerror})') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'dataset {path}: is not valid JSON ({error})') from None
    if not isinstance(content, dict) or not {'classes', 'lists'} <= content.keys():
        raise UserError(f'dataset {path}: needs the entries "classes" and "lists"')
    classes, lists = content['classes'], content['lists']
    are_names = isinstance(classes, list) and all(
        isinstance(name, str) and name not in ('', 'background') for name in classes
    )
    if not are_names or not 0 < len(classes) < IGNORE or len(set(classes)) < len(classes):
        raise UserError(f'dataset {path}: "classes" must be 1 to 254 different names, without the background')
    if not isinstance(lists, dict) or not all(isinstance(file, str) for file in lists.values()):
        raise UserError(f'dataset {path}: "lists" must name a file for each domain')
    palette = voc.palette()
    if 'palette' in content:
        try:
            colours = np.asarray(content['palette'])
            if colours.dtype.kind != 'i' or colours.shape[1:] != (3,) or colours.min() < 0 or colours.max() > 255:
                raise ValueError
            palette[: len(colours)] = colours.astype(np.uint8)
        except (ValueError, TypeError):
            raise UserError(f'dataset {path}: "palette" must be up to 256 [r, g, b] colours') from None
    files = {domain: path.parent / file for domain, file in lists.items()}
    return Dataset(str(content.get('name', path.stem)), tuple(classes), palette, files, Path(root))


def _check_files(paths: list[Path]) -> None:
    """Raise UserError naming the first missing file, and what is there under a similar name."""
    missing = [path for path in paths if not path.is_file()]
    if not missing:
        return
    first = missing[0]
    raise UserError(f'{first}: no such file ({len(missing)} of {len(paths)} are missing){voc.similar_names(first)}')
