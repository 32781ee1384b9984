"""The CSV kind of data set: a row per image with its classes and, if there are any, its mask and split.

    image,classes,mask,split
    pets/rex.jpg,dog;sofa,masks/rex.png,train
    garden/empty.png,,,val

Paths are relative to the root folder, classes are joined by ';'. An image without classes is a negative example.
Rows of one image, such as one for each object, are joined. Instead of `classes` there may be a column of 0 and 1 for
each class. core/data/sheets.py reads the variants that other programs write.
Images of the split `train` are trained on and scored, images of `train_aug` are only trained on; without splits all are
`train`. A first line '# classes: cat;dog' fixes the names and order of the classes; otherwise the names that occur are
sorted. Other entries (core/data/dataset.py) are in a JSON file of the same name next to it. No torch here: stages 3, 6
and 9 import this module and fork.
"""

import re
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from core import DataWarning, UserError, has_control_characters
from core.data import exports
from core.data.entries import read_sidecar
from core.data.images import find_named
from core.data.sheets import FIXED, read_sheet
from core.data.source import SPLITS, Box, Row, Rows

ADDRESS = re.compile(r'/data/|[a-z0-9]+://')  # start of an address in Label Studio


@dataclass(frozen=True)
class Labels:
    """The classes, and the boxes where they are known, by image: the entry "labels" of a JSON data set.

    The file is a CSV file of `id` or `image`, and `classes`, or one of a labelling tool (core/data/exports.py).
    """

    path: Path
    classes: dict[str, tuple[str, ...]]
    boxes: dict[str, tuple[Box, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> 'Labels':
        """Read the file. Raises UserError naming it."""
        if path.suffix.lower() in exports.MANY:
            pictures = {_normal(picture.name): picture.things for picture in exports.read_many(path).pictures}
            for name in [*pictures]:  # without its folders, unless another image has this name
                pictures.setdefault(PurePosixPath(name.replace('\\', '/')).name, pictures[name])
            classes = {name: tuple(exports.tags_of(things)) for name, things in pictures.items()}
            return cls(path, classes, {name: exports.boxes_of(things) for name, things in pictures.items()})
        rows = _join(path, read_rows(path, ('id', 'image'))[0], lambda row, key: _normal(key or row.image))
        return cls(path, {name: row.classes or () for name, row in rows.items()})

    def of(self, image_id: str, image: str) -> list[str]:
        """Return the classes of an image by its id or its path. Raises UserError if it has no row."""
        return list(self.classes[self._key(image_id, image)])

    def boxes_of(self, image_id: str, image: str) -> list[Box]:
        """Return the boxes of the objects of an image, [] if they are unknown."""
        return list(self.boxes.get(self._key(image_id, image), ()))

    def _key(self, image_id: str, image: str) -> str:
        for name in (image_id, image, PurePosixPath(image).name):
            if _normal(name) in self.classes:
                return _normal(name)
        raise UserError(f'{self.path}: has no row for the image {image_id!r}')


def open_table(path: Path, root: Path) -> tuple[Path, dict, Rows]:
    """Return the file of the entries, the entries and the rows. Raises UserError naming the file and the line."""
    rows, fixed = read_table(path, root)
    classes = fixed if fixed is not None else sorted({name for row in rows for name in row.classes or ()})
    source, more = Rows.of(path, root, rows), read_sidecar(path)
    if fixed is not None and more.get('classes', fixed) != fixed:
        other = path.with_suffix('.json')
        raise UserError(f'{path}: has other classes, or another order, than "classes" in {other}', option='dataset')
    if fixed is None and 'classes' not in more:
        for name in [name for name in classes if ',' in name]:
            remedy = f"join classes by ';', or confirm the name in a first line '{FIXED} ...'"
            warnings.warn(f'{path}: {name!r} is a single class: {remedy}', DataWarning, stacklevel=2)
    return (path.with_suffix('.json') if more else path), {'classes': classes, **more}, source


def read_table(path: Path, root: Path) -> tuple[list[Row], list[str] | None]:
    """Return a row for each image, and the classes if the file fixes them. Raises UserError naming file and line."""
    found, fixed = read_rows(path, ('image',), root)
    rows = list(_join(path, found, lambda row, _: row.image).values())
    for row in rows:
        if row.mask and (PurePosixPath(row.mask).is_absolute() or '..' in PurePosixPath(row.mask).parts):
            raise UserError(
                f'{path}: line {row.line}: {row.mask!r} is not a path relative to --data_dir', option='dataset'
            )
    if not any(row.classes for row in rows):
        raise UserError(f'{path}: no row names a class', option='dataset')
    return rows, fixed


def read_rows(
    path: Path, keys: tuple[str, ...], root: Path | None = None
) -> tuple[list[tuple[Row, str]], list[str] | None]:
    """Return the rows of a CSV file, each with its `id` if that is a key, and the classes if the file fixes them.

    Images that Label Studio names are looked for below `root`.
    """
    sheet, rows, addresses = read_sheet(path, keys), [], {}
    for line, cells, classes in sheet.rows:
        image_id = cells.get('id', '') if 'id' in keys else ''
        if not (image_id if 'id' in keys and 'id' in cells else cells.get('image')):
            raise UserError(f'{path}: line {line} names no image', option='dataset')
        row, name = _read_row(path, line, cells, classes, root), cells.get('image', '')
        rows.append((row, image_id))
        if root is not None and ADDRESS.match(name) and addresses.setdefault(row.image, name) != name:
            both = f'{addresses[row.image]} and {name} both lead to {row.image}'
            raise UserError(f'{path}: line {line}: {both}: give the photographs different names', option='dataset')
    return rows, sheet.class_names


def _read_row(path: Path, line: int, cells: dict[str, str], classes: tuple[str, ...], root: Path | None) -> Row:
    where = f'{path}: line {line}'
    for name in ('image', 'id', 'mask', 'split'):
        if has_control_characters(cells.get(name, '')):
            raise UserError(f'{where}: {cells[name]!r} contains control characters: rename the file', option='dataset')
    split = cells.get('split', '') or 'train'
    if split not in SPLITS:
        raise UserError(f'{where}: the split {split!r} is not one of {", ".join(SPLITS)}', option='dataset')
    image, mask = (cells.get(name, '').replace('\\', '/') for name in ('image', 'mask'))
    if root is not None and ADDRESS.match(image):
        image = find_named(root, image)
    if any(name.casefold() == 'background' for name in classes):
        raise UserError(
            f'{where}: background is not a class: leave the cell of an image without objects empty', option='dataset'
        )
    return Row(str(PurePosixPath(image)) if image else '', classes, mask, split, path, line)


def _join(path: Path, rows: list[tuple[Row, str]], key: Callable[[Row, str], str]) -> dict[str, Row]:
    """Return a row for each key, with the classes of all its rows. Raises UserError if rows contradict each other."""
    joined: dict[str, Row] = {}
    for row, image_id in rows:
        name = key(row, image_id)
        other = joined.setdefault(name, row)
        if other is row:
            continue
        for what, differs in (
            ('with another mask', row.mask != other.mask),
            ('with another split', row.split != other.split),
            ('once without classes', bool(row.classes) != bool(other.classes)),
        ):
            if differs:
                twice = f'is in line {other.line} and again in line {row.line}'
                raise UserError(f'{path}: {name} {twice}, {what}', option='dataset')
        joined[name] = replace(other, classes=tuple(dict.fromkeys((*(other.classes or ()), *(row.classes or ())))))
    return joined


def _normal(name: str) -> str:
    """Return a name in the Unicode form in which names are compared."""
    return unicodedata.normalize('NFC', name)
