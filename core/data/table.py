"""The CSV kind of data set: a row per image with its classes and, if there are any, its mask and split.

    image,classes,mask,split
    pets/rex.jpg,dog;sofa,masks/rex.png,train
    garden/empty.png,,,val

Paths are relative to the root folder, classes are joined by ';'. An image without classes is one of background alone.
Images of the split `train` are learned from and scored, those of `train_aug` only learned from; without splits all are
`train`. A first line '# classes: cat;dog' fixes names and order of the classes; otherwise they are those that occur,
sorted. Other entries (core/data/dataset.py) are in a JSON file of the same name next to it. No torch here: stages 3,
6 and 9 import this module and fork.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from core import UserError
from core.data.entries import read_json
from core.data.files import check_regular
from core.data.images import make_image_id

SPLITS = {'train': ('train_aug', 'train'), 'train_aug': ('train_aug',), 'val': ('val',), 'test': ('test',)}
FIXED = '# classes:'


@dataclass(frozen=True)
class Row:
    """A row: the line of the file it begins on, and the text of its columns."""

    line: int
    image: str
    classes: tuple[str, ...]
    mask: str
    split: str
    id: str


@dataclass(frozen=True)
class Table:
    """The rows by image id, and the ids of each list."""

    path: Path
    root: Path
    rows: dict[str, Row]
    lists: dict[str, list[str]]

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.lists)

    def ids(self, domain: str) -> list[str]:
        return list(self.lists[domain])

    def row(self, image_id: str) -> Row:
        """Return the row of an image. Raises UserError if there is none."""
        if image_id not in self.rows:
            raise UserError(f'{self.path}: has no row for the image {image_id!r}')
        return self.rows[image_id]

    def image_path(self, image_id: str) -> Path:
        return self.root / self.row(image_id).image

    def mask_path(self, image_id: str) -> Path | None:
        mask = self.row(image_id).mask
        return self.root / mask if mask else None

    def has_mask(self, image_id: str) -> bool:
        """Return whether a mask is named, whose file may be missing nevertheless."""
        return bool(self.rows[image_id].mask)

    def labels_path(self, image_id: str) -> str:
        return f'{self.path}, line {self.rows[image_id].line}'

    def read_tags(self, image_id: str) -> list[str]:
        """Return the names of the classes of an image."""
        return list(self.rows[image_id].classes)


@dataclass(frozen=True)
class Labels:
    """The classes in a CSV file of `id` or `image`, and `classes`: the entry "labels" of a JSON data set."""

    path: Path
    classes: dict[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> 'Labels':
        """Read the file. Raises UserError naming it."""
        rows, _ = _read_rows(path, ('id', 'image'))
        lines: dict[str, int] = {}
        for row in rows:
            key = row.id or row.image
            if key in lines:
                raise UserError(f'{path}: {key} is in line {lines[key]} and again in line {row.line}', option='dataset')
            lines[key] = row.line
        return cls(path, {row.id or row.image: row.classes for row in rows})

    def of(self, image_id: str, image: str) -> list[str]:
        """Return the classes of an image by its id or its path. Raises UserError if it has no row."""
        found = self.classes.get(image_id, self.classes.get(image))
        if found is None:
            raise UserError(f'{self.path}: has no row for the image {image_id!r}')
        return list(found)


def open_table(path: Path, root: Path) -> tuple[Path, dict, Table]:
    """Return the file of the entries, the entries and the table. Raises UserError naming the file and the line."""
    rows, fixed = _read_rows(path, ('image',))
    by_id: dict[str, Row] = {}
    lists: dict[str, list[str]] = {}
    for row in rows:
        try:
            image_id = make_image_id(row.image)
        except UserError as error:
            raise UserError(f'{path}: line {row.line}: {error}', option='dataset') from None
        if row.mask and (PurePosixPath(row.mask).is_absolute() or '..' in PurePosixPath(row.mask).parts):
            raise UserError(
                f'{path}: line {row.line}: {row.mask!r} is not a path relative to --data_dir', option='dataset'
            )
        if image_id in by_id:
            other = by_id[image_id]
            if other.image == row.image:
                raise UserError(
                    f'{path}: {row.image} is in line {other.line} and again in line {row.line}', option='dataset'
                )
            raise UserError(
                f'{path}: {other.image} (line {other.line}) and {row.image} (line {row.line}) both have the '
                f'image id {image_id!r}: rename one of them',
                option='dataset',
            )
        by_id[image_id] = row
        for domain in SPLITS[row.split]:
            lists.setdefault(domain, []).append(image_id)
    if not any(row.classes for row in rows):
        raise UserError(f'{path}: no row names a class', option='dataset')
    classes = fixed if fixed is not None else sorted({name for row in rows for name in row.classes})
    table, sidecar = Table(path, root, by_id, lists), path.with_suffix('.json')
    if sidecar.is_file():
        return sidecar, {'classes': classes, **read_json(sidecar)}, table
    return path, {'classes': classes}, table


def _read_rows(path: Path, keys: tuple[str, ...]) -> tuple[list[Row], list[str] | None]:
    """Return the rows of a CSV file with the column `classes` and one of `keys`, and the classes of its first line."""
    try:
        check_regular(path)
        with path.open(encoding='utf-8-sig', newline='') as file:
            return _parse(path, file, keys)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})', option='dataset') from None
    except UnicodeDecodeError:
        raise UserError(f'{path}: is not UTF-8 text: save it as "CSV UTF-8"', option='dataset') from None
    except csv.Error as error:
        raise UserError(f'{path}: is not a CSV file ({error})', option='dataset') from None


def _parse(path: Path, lines: Iterator[str], keys: tuple[str, ...]) -> tuple[list[Row], list[str] | None]:
    reader = csv.reader(lines)
    header, fixed = next(reader, []), None
    if header and header[0].strip().lower().startswith(FIXED):
        fixed = _split_names(','.join(header).strip()[len(FIXED) :])
        header = next(reader, [])
    columns = [name.strip().lower() for name in header]
    if 'classes' not in columns or not {*keys} & {*columns}:
        raise UserError(
            f'{path}: needs a header with the columns {" or ".join(keys)} and classes, separated by commas',
            option='dataset',
        )
    rows = []
    previous = reader.line_num
    for cells in reader:
        line, previous = previous + 1, reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(columns):
            raise UserError(
                f'{path}: line {line} has {len(cells)} columns, the header {len(columns)} '
                '(names with commas need quotes)',
                option='dataset',
            )
        row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
        split = row.get('split', '') or 'train'
        if split not in SPLITS:
            raise UserError(
                f'{path}: line {line}: the split {split!r} is not one of {", ".join(SPLITS)}', option='dataset'
            )
        image, mask = (row.get(name, '').replace('\\', '/') for name in ('image', 'mask'))
        image = str(PurePosixPath(image)) if image else ''
        image_id = row.get('id', '')
        if not (image_id if 'id' in keys and 'id' in columns else image):
            raise UserError(f'{path}: line {line} names no image', option='dataset')
        rows.append(Row(line, image, tuple(_split_names(row.get('classes', ''))), mask, split, image_id))
    if not rows:
        raise UserError(f'{path}: has no rows', option='dataset')
    return rows, fixed


def _split_names(text: str) -> list[str]:
    """Return the names joined by ';', without repetitions."""
    return list(dict.fromkeys(name.strip() for name in text.split(';') if name.strip()))
