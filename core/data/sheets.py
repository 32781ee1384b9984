"""CSV files as spreadsheets and labelling tools write them: the header, and the cells of each row by column.

The header says whether columns are separated by ',', ';' or tabs, if no line 'sep=;' of a spreadsheet does. Empty cells
at the end of lines, and commas after the comment in the first line, do not count. No torch here: stages 3, 6 and 9
fork.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core import UserError, has_control_characters
from core.data.files import TEXT_LIMIT, fits, read_bytes

FIXED = '# classes:'
COLUMNS = ('image', 'id', 'classes', 'mask', 'split')  # other columns are ignored
# Names of the same columns in files of other programs.
OTHER_NAMES = {
    'image': ('filename', 'file_name', 'file', 'path'),
    'classes': ('class', 'label', 'labels', 'tag', 'tags', 'choice'),
}
MARKS = {'0': False, '1': True, '0.0': False, '1.0': True, 'false': False, 'true': True}  # cells of a column per class
HEADER = 'needs a header with the columns {} and classes, separated by commas'


@dataclass(frozen=True)
class Sheet:
    """The rows of a file: the line that each begins on, its cells by column (COLUMNS), and its classes.

    `class_names` are those that the first line, or a column for each class, fixes with their order.
    """

    rows: list[tuple[int, dict[str, str], tuple[str, ...]]]
    class_names: list[str] | None


def read_sheet(path: Path, keys: tuple[str, ...]) -> Sheet:
    """Read a file with the classes of images, and one of the columns `keys`. Raises UserError naming file and line."""
    try:
        return _parse(path, list(io.StringIO(_decode(path, read_bytes(path, TEXT_LIMIT)), newline='')), keys)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})', option='dataset') from None
    except csv.Error as error:
        raise UserError(f'{path}: is not a CSV file ({error})', option='dataset') from None


def _decode(path: Path, content: bytes) -> str:
    """Return a text in UTF-8. Raises UserError naming the encoding that it seems to have instead."""
    start = content[:200]
    if start[:2] in (b'\xff\xfe', b'\xfe\xff') or 4 * start.count(0) > len(start):
        what = 'UTF-16 ("Unicode text" of a spreadsheet)'
    else:
        try:
            return content.decode('utf-8-sig')
        except UnicodeDecodeError as error:
            line = len(content[: error.start].splitlines()) + content[: error.start].endswith((b'\n', b'\r'))
            what = f'ANSI (such as Windows-1252) in line {line}'
    raise UserError(f'{path}: is not UTF-8 text, but {what}: save it as "CSV UTF-8"', option='dataset')


def _parse(path: Path, lines: list[str], keys: tuple[str, ...]) -> Sheet:
    delimiter, fixed, start = _read_head(lines)
    reader = csv.reader(lines[start:], delimiter=delimiter)
    titles = [title.strip() for title in next(reader, [])]
    cells, previous = [], reader.line_num
    for row in reader:
        line, previous = start + previous + 1, reader.line_num
        if any(cell.strip() for cell in row):
            cells.append((line, [cell.strip() for cell in row]))
    columns = _name_columns(path, start + 1, titles, keys)
    marked = [] if 'classes' in columns else _columns_of_classes(columns, cells, titles)
    for title in [titles[i] for i in marked if titles.count(titles[i]) > 1]:
        raise UserError(f'{path}: line {start + 1} has {titles.count(title)} columns "{title}"', option='dataset')
    if not (marked or 'classes' in columns) or not {*keys} & {*columns}:
        found = f' (line {start + 1} has one column, {titles[0]!r})' if len(titles) == 1 else ''
        raise UserError(f'{path}: {HEADER.format(" or ".join(keys))}{found}', option='dataset')
    if not cells:
        raise UserError(f'{path}: has no rows', option='dataset')
    last = max(marked) if marked else columns.index('classes')
    cells = [(line, _fit(path, line, row, len(titles), last)) for line, row in cells]
    if marked:
        names = [titles[column] for column in marked]
        classes = [_read_marks(path, line, row, marked, titles) for line, row in cells]
    else:
        names, texts = None, [row[last] for _, row in cells]
        # Where ';' separates columns, classes are joined by ',' unless a cell has a ';' in quotes.
        joint = ',' if delimiter == ';' and not any(';' in text for text in texts) else ';'
        classes = [_read_names(path, line, row[last], joint) for line, row in cells]
    named = [(line, {name: row[i] for i, name in enumerate(columns) if i < len(row) and name}) for line, row in cells]
    rows = [(line, row, found) for (line, row), found in zip(named, classes, strict=True)]
    return Sheet(rows, names if fixed is None else fixed)


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
    return delimiter, split_names(text[len(FIXED) :].rstrip(f'{delimiter} '), ';'), start


def _name_columns(path: Path, line: int, titles: list[str], keys: tuple[str, ...]) -> list[str]:
    """Return which of COLUMNS each column is, '' for others. Raises UserError if two may be the same."""
    columns = [title.lower() for title in titles]
    for name in COLUMNS:
        if columns.count(name) > 1:
            raise UserError(f'{path}: line {line} has {columns.count(name)} columns "{name}"', option='dataset')
    for name, others in OTHER_NAMES.items():
        found = [column for column in columns if column in others]
        if name in columns or (name == 'image' and 'id' in keys and 'id' in columns) or not found:
            continue
        if len(found) > 1:
            shown = ' and '.join(f'"{column}"' for column in found)
            raise UserError(f'{path}: line {line} has the columns {shown}: call one of them "{name}"', option='dataset')
        columns[columns.index(found[0])] = name
    return [column if column in COLUMNS else '' for column in columns]


def _columns_of_classes(columns: list[str], cells: list[tuple[int, list[str]]], titles: list[str]) -> list[int]:
    """Return the places of the columns that stand for a class each: all others, if the first row has a mark in one."""
    places = [i for i, (name, title) in enumerate(zip(columns, titles, strict=True)) if not name and title]
    first = cells[0][1] if cells else []
    return places if any(first[i].lower() in MARKS for i in places if i < len(first)) else []


def _read_marks(path: Path, line: int, row: list[str], marked: Sequence[int], titles: list[str]) -> tuple[str, ...]:
    """Return the classes whose columns have the mark 1."""
    for i in marked:
        if row[i].lower() not in MARKS:
            raise UserError(
                f'{path}: line {line} has {row[i]!r} in the column {titles[i]!r}: a class has 0 or 1 '
                'in its column (delete other columns)',
                option='dataset',
            )
    return tuple(titles[i] for i in marked if MARKS[row[i].lower()])


def _read_names(path: Path, line: int, text: str, joint: str) -> tuple[str, ...]:
    """Return the classes in a cell: joined names, or JSON of Label Studio."""
    if has_control_characters(text):
        raise UserError(
            f"{path}: line {line}: {text!r} contains control characters: join classes by '{joint}'", option='dataset'
        )
    if not re.match(r'[\[{]\s*["\[{\]]', text):
        return tuple(split_names(text, joint))
    try:
        return tuple(dict.fromkeys(_names_in_json(json.loads(text))))
    except (ValueError, RecursionError):
        shown = text if len(text) < 80 else f'{text[:76]} ...'
        raise UserError(
            f'{path}: line {line}: {shown} is neither {{"choices": [...]}} nor a list of labels of Label Studio',
            option='dataset',
        ) from None


def _names_in_json(content: object) -> list[str]:
    """Return the names in {"choices": [...]}, [{"rectanglelabels": [...], ...}, ...] or [...]. Raises ValueError.

    Objects in a list may have no names: regions that nobody has labelled.
    """
    if fits(content, [str]):
        return content
    entries = content if isinstance(content, list) else [content]
    if not fits(entries, [{}]):
        raise ValueError
    names = [value for entry in entries for key, value in entry.items() if key == 'choices' or key.endswith('labels')]
    if not fits(names, [[str]]) or not names and isinstance(content, dict):
        raise ValueError
    return [name for value in names for name in value]


def _fit(path: Path, line: int, cells: list[str], width: int, last: int) -> list[str]:
    """Return the cells of a line. Raises UserError if there are too many, or none for the classes up to `last`."""
    while len(cells) > width and not cells[-1]:
        cells.pop()
    count = f'{path}: line {line} has {len(cells)} column{"s" * (len(cells) != 1)}, the header {width}'
    if len(cells) > width:
        raise UserError(f'{count} (names with commas need quotes)', option='dataset')
    if len(cells) <= last:
        raise UserError(f'{count}: an image without classes needs an empty cell for them', option='dataset')
    return cells


def split_names(text: str, joint: str) -> list[str]:
    """Return the joined names, without repetitions."""
    return list(dict.fromkeys(name.strip() for name in text.split(joint) if name.strip()))
