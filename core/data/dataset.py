"""A data set: its classes and lists, and the image, image-level label and mask of an id.

Stages use `Dataset`, which is independent of the layout. Its source (core/data/source.py) finds the files of an id.
Each kind of file or folder that --dataset accepts has a function that opens a source: lists.py for JSON, table.py for
CSV, tree.py for folders and files of labelling tools. A new kind is such a function and a row in KINDS. No torch:
stages 3, 6 and 9 import this module and fork.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from core import IGNORE, UserError, has_control_characters
from core.data import exports, images, voc
from core.data.entries import look_alikes, parse_background, parse_classes, parse_palette, read_json, warn_of_misspelled
from core.data.lists import open_lists
from core.data.pixels import Reading
from core.data.source import Source
from core.data.table import open_table
from core.data.tree import open_export, open_tree

BATCH_PIXELS = 2**22  # pixels of a batch for inference, such as four images of 1024x1024


@dataclass(frozen=True)
class Dataset:
    """Classes, lists and files. Lists: `train_aug` to train on, `train` and `val` to score, `test` without masks.

    In masks and label maps, class k has the value k + 1, 0 is the background and 255 is ignored. A data set without a
    background has the same values, but never 0: each of its pixels has a class, or is ignored.
    """

    name: str
    class_names: tuple[str, ...]  # without the background
    palette: np.ndarray  # (256, 3) uint8
    mask_values: images.MaskValues | None  # for ground-truth masks that do not contain class indices
    root: Path
    source: Source
    has_background: bool = True  # whether pixels may have no class
    reading: Reading = images.AS_THEY_ARE  # the plane and the window of values of images that need one

    def __getstate__(self) -> dict:
        """Leave out the source, which can be a large table: a pickled data set only reads and writes label maps.

        Data-loading workers and the workers of util.parallel.parallel_map are forked, so they inherit the source.
        """
        return {**self.__dict__, 'source': None}

    @property
    def num_classes(self) -> int:
        """Number of classes without the background, C."""
        return len(self.class_names)

    @property
    def first_label(self) -> int:
        """The smallest value in label maps, which is the value of a segmentation network's first output."""
        return 0 if self.has_background else 1

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the values 0 to C in label maps; '' for 0 without a background."""
        return ('background' if self.has_background else '', *self.class_names)

    @property
    def class_entries(self) -> dict[str, object]:
        """What outputs and models record of the classes; they say nothing of a background that there is."""
        return {'classes': self.class_names, **({} if self.has_background else {'background': False})}

    @property
    def lists(self) -> tuple[str, ...]:
        """Names of the lists."""
        return self.source.domains

    def ids(self, domain: str, with_images: bool = False) -> list[str]:
        """Return the image ids of a list.

        Raises UserError if the list is unknown, empty or malformed, and with_images also if an image is missing.
        """
        if domain not in self.lists:
            raise UserError(
                f'{domain!r}: the data set "{self.name}" has the lists {", ".join(self.lists)}', option='domain'
            )
        ids = self.source.ids(domain)
        if with_images:
            _check_files([self.image_path(image_id) for image_id in ids], self.list_path(domain))
        return ids

    def list_path(self, domain: str) -> Path:
        """Return the file that lists the images of a list."""
        return self.source.list_path(domain)

    def image_path(self, image_id: str) -> Path:
        return self.source.image_path(image_id)

    def labels_path(self, image_id: str) -> Path | str:
        """Return the file of the image-level label, with the line if it is a CSV file."""
        return self.source.labels_path(image_id)

    def mask_path(self, image_id: str) -> Path | None:
        """Return the path of the ground-truth mask, which may not exist; None if the data set names none."""
        return self.source.mask_path(image_id)

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Return (h, w) from the header of the image."""
        return images.image_size(self.image_path(image_id), self.reading)

    def batches(self, ids: Sequence[str], batch_size: int) -> list[list[str]]:
        """Return ids in groups of one image size: at most batch_size ids, or fewer if images are large (BATCH_PIXELS).

        The ids of some of these batches, grouped again in the order of the list, give the same batches.
        """
        unfinished: dict[tuple[int, int], list[str]] = {}
        batches: list[list[str]] = []
        for image_id in ids:
            size = self.image_size(image_id)
            batch = unfinished.get(size)
            if batch is None or len(batch) == max(1, min(batch_size, BATCH_PIXELS // (size[0] * size[1]))):
                batch = unfinished[size] = []
                batches.append(batch)
            batch.append(image_id)
        return batches

    def read_image(self, image_id: str) -> Image.Image:
        """Return the RGB image, upright."""
        return images.read_image(self.image_path(image_id), self.reading)

    def read_labels(self, image_id: str) -> np.ndarray:
        """Return the image-level label, (C,) float32 multi-hot; all zeros for an image without classes.

        Raises UserError naming the file if it is missing or names an unknown class, and without a background if it
        names none.
        """
        labels = np.zeros(self.num_classes, np.float32)
        tags = self.source.read_tags(image_id)
        if tags is None:
            present = np.unique(self.read_mask(image_id))
            labels[present[(present > 0) & (present != IGNORE)] - 1] = 1
        for name in tags or ():
            if name not in self.class_names:
                alike = next((known for known in self.class_names if look_alikes([known, name])), None)
                hint = f', but {alike!a} is, and looks the same as {name!a}' if alike else ''
                where = self.labels_path(image_id)
                raise UserError(f'{where}: {name!r} is not a class of the data set "{self.name}"{hint}')
            labels[self.class_names.index(name)] = 1
        if not self.has_background and not labels.any():
            fault = f'{image_id} has no class, but the data set "{self.name}" has no background'
            raise UserError(f'{self.labels_path(image_id)}: {fault}: add its classes, or remove it from the lists')
        return labels

    def read_all_labels(self, ids: Sequence[str]) -> np.ndarray:
        """Return the image-level labels (N, C). Raises UserError with the first error and the number of errors."""
        labels, errors = np.zeros((len(ids), self.num_classes), np.float32), []
        for label, image_id in zip(labels, ids, strict=True):
            try:
                label[:] = self.read_labels(image_id)
            except UserError as error:
                errors.append(error)
        if len(errors) > 1:
            raise UserError(
                f'{errors[0]} ({len(errors)} of {len(ids)} labels are wrong: python3 -m tools.check_dataset lists them)'
            )
        if errors:
            raise errors[0]
        return labels

    def without_contrast(self, labels: np.ndarray) -> str:
        """Return a warning of classes that all labels (N, C) of train_aug have, '' if there are none."""
        everywhere = [name for name, is_in_all in zip(self.class_names, labels.all(0), strict=True) if is_in_all]
        if not len(labels) or not everywhere:
            return ''
        if self.num_classes == 1:
            what = f'the only class, {everywhere[0]}: add images without it, or it cannot be learned'
        else:
            what = f'the class {", ".join(everywhere)}: add images without it, or its mask can be anything'
        return f'every image of train_aug has {what}'

    def scored_labels(self) -> tuple[str, list[str], np.ndarray]:
        """Return the list on which predicted classes are scored, its ids and labels: val if it is labelled, else train.

        Raises UserError naming the file if an image of train is missing or a label of it is wrong.
        """
        try:
            ids = self.ids('val', with_images=True)
            labels = self.read_all_labels(ids)
            if labels.any():
                return 'val', ids, labels
        except UserError:  # the list is missing or lacks images or labels, and nothing else needs it
            pass
        domain = 'train' if 'train' in self.lists else 'train_aug'
        ids = self.ids(domain, with_images=True)
        return domain, ids, self.read_all_labels(ids)

    def read_mask(self, image_id: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the ground-truth mask (h, w) uint8: first_label..C, 255 void. Raises UserError if there is none."""
        if self.mask_path(image_id) is None:
            raise UserError(f'{self.labels_path(image_id)}: names no mask')
        name, values = self.source.masked_class(image_id), self.mask_values
        if name in self.class_names:
            values = images.MaskValues.of_class(self.class_names.index(name) + 1)
        return images.read_label_map(self.mask_path(image_id), self.num_classes, size, values, self.has_background)

    def read_boxes(self, image_id: str) -> list[voc.Box]:
        """Return the (width, height) of the boxes of the objects, [] if they are unknown. Raises UserError."""
        return self.source.read_boxes(image_id)

    def read_label_map(self, path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return a label map of this data set's classes; see core.data.images.read_label_map."""
        return images.read_label_map(path, self.num_classes, size, has_background=self.has_background)

    def encode_label_map(self, label: np.ndarray) -> bytes:
        """Encode a label map (h, w) as a PNG with this data set's palette."""
        return images.encode_label_map(label, self.palette)

    def has_mask(self, image_id: str) -> bool:
        """Return whether a mask exists or is named by the data set."""
        return self.source.has_mask(image_id)

    def ids_with_masks(self, domain: str, with_images: bool = False) -> list[str]:
        """Return the ids of a list that have a mask, [] for an unknown list.

        Raises UserError if a mask that the data set names is missing, with_images also if an image is, or if no mask
        contains an object: masks are read until one does. Many tools write 0 and 255 for two classes. Here 255 means
        ignore, so scores on such masks would be meaningless.
        """
        if domain not in self.lists:
            return []
        ids = [image_id for image_id in self.ids(domain) if self.has_mask(image_id)]
        _check_files([self.mask_path(image_id) for image_id in ids])
        if with_images:
            _check_files([self.image_path(image_id) for image_id in ids], self.list_path(domain))
        values = set()
        for image_id in ids:
            values |= set(np.unique(self.read_mask(image_id)).tolist())
            if values - {0, IGNORE}:
                return ids
        if not ids:
            return []
        raise UserError(
            f'{self.mask_path(ids[0]).parent}: the {len(ids)} masks of the list contain only the values '
            f'{sorted(values)}, so no object: pixels of class k must have the value k, from 1 to {self.num_classes} '
            f'({IGNORE} is ignored), or the data set needs the entry "mask_values"'
        )


def _open_json(path: Path, root: Path) -> tuple[Path, dict, Source]:
    """Open lists of ids, or annotations in COCO's format."""
    content = read_json(path)
    return (open_export if exports.is_coco(content) else open_lists)(path, root, content)


KINDS = {'.json': _open_json, '.csv': open_table, '.tsv': open_table, '.xml': open_export}  # of files, by their ending


def open_dataset(path: str | Path, root: str | Path, window: str | None = None, plane: str | None = None) -> Dataset:
    """Open a data set: a file of one of KINDS, with the root folder of its images, or a folder, which is its own root.

    Entries of the JSON, or of a JSON of the same name next to another kind: "classes", and optionally "name",
    "background" (false: every pixel has a class), "palette" [[r, g, b]], "mask_values" {value or "#rrggbb": class},
    "window" and "plane" (core/data/pixels.py). The arguments `window` and `plane`, if given, replace the entries.
    Raises UserError naming the file.
    """
    path, root = Path(path), Path(root)
    kind = open_tree if path.is_dir() else KINDS.get(path.suffix.lower(), _open_json)
    where, entries, source = kind(path, root)
    warn_of_misspelled(where, entries)
    class_names = parse_classes(where, entries['classes'])
    has_background = parse_background(where, entries.get('background', True), class_names)
    palette = parse_palette(where, entries.get('palette'), 0 if has_background else 1)
    name, mask_values = str(entries.get('name', path.stem or path.resolve().stem)), None
    if has_control_characters(name):
        raise UserError(f'{where}: "name" contains control characters', option='dataset')
    if 'mask_values' in entries:
        try:
            mask_values = images.MaskValues.parse(entries['mask_values'], class_names, has_background)
        except ValueError as error:
            raise UserError(f'{where}: "mask_values" must {error}', option='dataset') from None
    reading = Reading.of(where, entries, window, plane)
    return Dataset(name, class_names, palette, mask_values, source.root, source, has_background, reading)


def _check_files(paths: list[Path], listed: Path | None = None) -> None:
    """Raise UserError naming the first missing file, and files with a similar name.

    `listed` is the file that lists the images, if images may be left out.
    """
    missing = [path for path in paths if not path.is_file()]
    if not missing:
        return
    first, remedy = missing[0], 'check the folder of the data set'
    if first.exists():
        raise UserError(f'{first}: is not a regular file')
    if listed and len(missing) < len(paths):
        remedy += f', or remove {"its line" if len(missing) == 1 else "their lines"} from {listed} to go on without'
    count = f'{len(missing)} of {len(paths)} are missing'
    raise UserError(f'{first}: no such file ({count}){voc.similar_names(first, remedy)}')
