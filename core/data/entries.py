"""Entries of the JSON file of a data set: class names, background, palette. No torch here: stages 3, 6 and 9 fork."""

import os
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from core import IGNORE, DataWarning, UserError, has_control_characters
from core.data import voc
from core.data.files import load_json

ENTRIES = {'name', 'classes', 'background', 'palette', 'mask_values', 'window', 'plane'}
ENTRIES |= {'lists', 'images', 'masks', 'annotations', 'labels', 'negatives'}
# Letters of the Cyrillic and Greek alphabets that look like Latin ones.
LATIN = str.maketrans(
    '\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420'
    '\u0421\u0422\u0425\u0423\u0406\u03bf\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7',
    'aeopcyxijshABEKMHOPCTXYIoABEZHIKMNOPTYX',
)


def read_json(path: Path) -> dict:
    """Return the entries of the JSON file of a data set. Raises UserError naming it."""
    try:
        content = load_json(path)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})', option='dataset') from None
    except ValueError as error:
        raise UserError(f'{path}: is not valid JSON ({error})', option='dataset') from None
    if not isinstance(content, dict):
        raise UserError(f'{path}: must contain a JSON object', option='dataset')
    return content


def read_sidecar(path: Path) -> dict:
    """Return the entries of the JSON file of the same name beside a CSV file or a folder, {} if there is none.

    Raises UserError if something of that name cannot be read, such as a broken link.
    """
    place = path.resolve()
    sidecar = place.with_name(f'{place.name}.json') if path.is_dir() else path.with_suffix('.json')
    return read_json(sidecar) if os.path.lexists(sidecar) else {}


def warn_of_misspelled(path: Path, entries: Mapping[str, object]) -> None:
    """Warn of an unknown entry whose name is similar to a known one, which would be missing."""
    for name in entries.keys() - ENTRIES:
        near = get_close_matches(name, ENTRIES - entries.keys(), 1, 0.8)
        if near:
            warnings.warn(f'{path}: {name!r} is not an entry: did you mean {near[0]!r}?', DataWarning, stacklevel=2)


def parse_classes(path: Path | str, classes: object, option: str = 'dataset') -> tuple[str, ...]:
    """Return the names of the foreground classes. Raises UserError naming the file or the flag `option`.

    Warns of names that look alike.
    """
    are_names = isinstance(classes, list) and all(
        isinstance(name, str) and name.casefold() not in ('', 'background') for name in classes
    )
    if not are_names or not 0 < len(classes) < IGNORE or len(set(classes)) < len(classes):
        raise UserError(f'{path}: "classes" must be 1 to 254 different names, without the background', option=option)
    wrong = next(filter(has_control_characters, classes), None)
    if wrong is not None:
        raise UserError(f'{path}: the class {wrong!r} contains control characters: rename it', option=option)
    for names in look_alikes(classes):
        shown = ' and '.join(map(ascii, names))
        warnings.warn(f'{path}: {shown} are different classes that look the same', DataWarning, stacklevel=2)
    return tuple(classes)


def look_alikes(names: Sequence[str]) -> list[list[str]]:
    """Return the groups of names that differ only in Unicode form, blanks, invisible or similar characters."""
    groups: dict[str, list[str]] = {}
    for name in names:
        seen = ''.join(
            c for c in unicodedata.normalize('NFKC', name).translate(LATIN) if unicodedata.category(c) != 'Cf'
        )
        groups.setdefault(' '.join(seen.split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def parse_background(path: Path, value: object, class_names: Sequence[str]) -> bool:
    """Return whether pixels may have no class: the entry "background". Raises UserError naming the file."""
    if not isinstance(value, bool):
        raise UserError(f'{path}: "background" must be true or false', option='dataset')
    if not value and len(class_names) < 2:
        raise UserError(f'{path}: without a background, a data set needs at least two classes', option='dataset')
    return value


def parse_palette(path: Path, colours: object, first_label: int = 0) -> np.ndarray:
    """Return VOC's palette (256, 3) uint8, its colours replaced by the data set's `palette` unless it is None.

    The first colour of `palette` is for the label `first_label`.
    """
    palette = voc.palette()
    if colours is None:
        return palette
    try:
        colours = np.asarray(colours)
        if colours.dtype.kind != 'i' or colours.shape[1:] != (3,) or colours.min() < 0 or colours.max() > 255:
            raise ValueError
        palette[first_label : first_label + len(colours)] = colours.astype(np.uint8)
    except (ValueError, TypeError):
        raise UserError(f'{path}: "palette" must be up to 256 [r, g, b] colours', option='dataset') from None
    return palette
