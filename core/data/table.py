"""The CSV kind of data set: a row per image with its classes and, if there are any, its mask and split.

    image,classes,mask,split
    pets/rex.jpg,dog;sofa,masks/rex.png,train
    garden/empty.png,,,val

Paths are relative to the root folder, classes are joined by ';'. An image without classes is a negative example.
Rows of one image, such as one for each object, are joined. The header says whether columns are separated by ',', ';' or
tabs; in a file with ';', classes may be joined by ','.
Images of the split `train` are trained on and scored, images of `train_aug` are only trained on; without splits all are
`train`. A first line '# classes: cat;dog' fixes the names and order of the classes; otherwise the names that occur are
sorted. Other entries (core/data/dataset.py) are in a JSON file of the same name next to it. No torch here: stages 3, 6
and 9 import this module and fork.
"""

import csv
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from core import DataWarning, UserError, has_control_characters
from core.data.entries import read_json
from core.data.files import check_regular
from core.data.images import find_file, make_image_id

SPLITS = {'train': ('train_aug', 'train'), 'train_aug': ('train_aug',), 'val': ('val',), 'test': ('test',)}
FIXED = '# classes:'
COLUMNS = ('image', 'id', 'classes', 'mask', 'split')  # other columns are ignored


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

    def list_path(self, domain: str) -> Path:
        return self.path

    def row(self, image_id: str) -> Row:
        """Return the row of an image. Raises UserError if there is none."""
        if image_id not in self.rows:
            raise UserError(f'{self.path}: has no row for the image {image_id!r}')
        return self.rows[image_id]

    def image_path(self, image_id: str) -> Path:
        return find_file(self.root / self.row(image_id).image)

    def mask_path(self, image_id: str) -> Path | None:
        mask = self.row(image_id).mask
        return find_file(self.root / mask) if mask else None

    def has_mask(self, image_id: str) -> bool:
        """Return whether the row names a mask, even if its file is missing."""
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
        rows = _join(path, rows, lambda row: _normal(row.id or row.image))
        return cls(path, {_normal(row.id or row.image): row.classes for row in rows})

    def of(self, image_id: str, image: str) -> list[str]:
        """Return the classes of an image by its id or its path. Raises UserError if it has no row."""
        found = self.classes.get(_normal(image_id), self.classes.get(_normal(image)))
        if found is None:
            raise UserError(f'{self.path}: has no row for the image {image_id!r}')
        return list(found)


def open_table(path: Path, root: Path) -> tuple[Path, dict, Table]:
    """Return the file of the entries, the entries and the table. Raises UserError naming the file and the line."""
    rows, fixed = _read_rows(path, ('image',))
    by_id: dict[str, Row] = {}
    lists: dict[str, list[str]] = {}
    for row in _join(path, rows, lambda row: row.image):
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
    more = read_json(sidecar) if sidecar.is_file() else {}
    if fixed is None and 'classes' not in more:
        for name in [name for name in classes if ',' in name]:
            remedy = f"join classes by ';', or confirm the name in a first line '{FIXED} ...'"
            warnings.warn(f'{path}: {name!r} is a single class: {remedy}', DataWarning, stacklevel=2)
    return (sidecar if more else path), {'classes': classes, **more}, table


def _read_rows(path: Path, keys: tuple[str, ...]) -> tuple[list[Row], list[str] | None]:
    """Return the rows of a CSV file with the column `classes` and one of `keys`, and the classes of its first line."""
    try:
        check_regular(path)
        with path.open(encoding='utf-8-sig', newline='') as file:
            return _parse(path, list(file), keys)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})', option='dataset') from None
    except UnicodeDecodeError:
        raise UserError(f'{path}: is not UTF-8 text: save it as "CSV UTF-8"', option='dataset') from None
    except csv.Error as error:
        raise UserError(f'{path}: is not a CSV file ({error})', option='dataset') from None


def _parse(path: Path, lines: list[str], keys: tuple[str, ...]) -> tuple[list[Row], list[str] | None]:
    delimiter, fixed, start = _read_head(lines)
    reader = csv.reader(lines[start:], delimiter=delimiter)
    columns = [name.strip().lower() for name in next(reader, [])]
    if 'classes' not in columns or not {*keys} & {*columns}:
        found = f' (line {start + 1} has one column, {columns[0]!r})' if len(columns) == 1 else ''
        raise UserError(
            f'{path}: needs a header with the columns {" or ".join(keys)} and classes, separated by commas{found}',
            option='dataset',
        )
    for name in [name for name in COLUMNS if columns.count(name) > 1]:
        raise UserError(f'{path}: line {start + 1} has {columns.count(name)} columns "{name}"', option='dataset')

    found, previous = [], reader.line_num
    for cells in reader:
        line, previous = start + previous + 1, reader.line_num
        if any(cell.strip() for cell in cells):
            found.append((line, _fit(path, line, [cell.strip() for cell in cells], columns)))
    if not found:
        raise UserError(f'{path}: has no rows', option='dataset')
    # Where ';' separates columns, classes are joined by ',' unless a cell has a ';' in quotes.
    joint = ',' if delimiter == ';' and not any(';' in row['classes'] for _, row in found) else ';'
    return [_read_row(path, line, row, keys, joint) for line, row in found], fixed


def _read_head(lines: list[str]) -> tuple[str, list[str] | None, int]:
    """Return the separator of the columns, the classes of a first line that fixes them, and the index of the header."""
    delimiter, fixed, start = '', '', 0
    if lines and lines[0].lower().startswith('sep='):  # Excel writes it
        delimiter, start = lines[0][4:5], 1
    if start < len(lines) and lines[start].lstrip('" ').lower().startswith(FIXED):
        fixed, start = lines[start], start + 1
    header = lines[start] if start < len(lines) else ''
    delimiter = delimiter if delimiter and delimiter in ',;\t' else max(',;\t', key=header.count)
    if not fixed:
        return delimiter, None, start
    # Spreadsheets fill the line up with empty cells.
    text = delimiter.join(next(csv.reader([fixed], delimiter=delimiter))).strip()
    return delimiter, _split_names(text[len(FIXED) :].rstrip(f'{delimiter} '), ';'), start


def _fit(path: Path, line: int, cells: list[str], columns: list[str]) -> dict[str, str]:
    """Return the cells of a line by column. Raises UserError if there are too many, or none for the classes."""
    while len(cells) > len(columns) and not cells[-1]:
        cells.pop()
    count = f'{path}: line {line} has {len(cells)} column{"s" * (len(cells) != 1)}, the header {len(columns)}'
    if len(cells) > len(columns):
        raise UserError(f'{count} (names with commas need quotes)', option='dataset')
    if len(cells) <= columns.index('classes'):
        raise UserError(f'{count}: an image without classes needs an empty cell for them', option='dataset')
    return dict(zip(columns, cells, strict=False))


def _read_row(path: Path, line: int, row: dict[str, str], keys: tuple[str, ...], joint: str) -> Row:
    where = f'{path}: line {line}'
    for name in COLUMNS:
        if has_control_characters(row.get(name, '')):
            remedy = f"join classes by '{joint}'" if name == 'classes' else 'rename the file'
            raise UserError(f'{where}: {row[name]!r} contains control characters: {remedy}', option='dataset')
    split = row.get('split', '') or 'train'
    if split not in SPLITS:
        raise UserError(f'{where}: the split {split!r} is not one of {", ".join(SPLITS)}', option='dataset')
    image, mask = (row.get(name, '').replace('\\', '/') for name in ('image', 'mask'))
    image = str(PurePosixPath(image)) if image else ''
    if not (row.get('id', '') if 'id' in keys and 'id' in row else image):
        raise UserError(f'{where} names no image', option='dataset')
    classes = tuple(_split_names(row['classes'], joint))
    if 'background' in classes:
        raise UserError(
            f'{where}: background is not a class: leave the cell of an image without objects empty', option='dataset'
        )
    return Row(line, image, classes, mask, split, row.get('id', ''))


def _join(path: Path, rows: list[Row], key: Callable[[Row], str]) -> list[Row]:
    """Return a row for each key, with the classes of all its rows. Raises UserError if rows contradict each other."""
    joined: dict[str, Row] = {}
    for row in rows:
        name = key(row)
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
        joined[name] = replace(other, classes=tuple(dict.fromkeys(other.classes + row.classes)))
    return list(joined.values())


def _normal(name: str) -> str:
    """Return a name in the Unicode form in which names are compared."""
    return unicodedata.normalize('NFC', name)


def _split_names(text: str, joint: str) -> list[str]:
    """Return the joined names, without repetitions."""
    return list(dict.fromkeys(name.strip() for name in text.split(joint) if name.strip()))
