"""Grey PNGs of class indices under the images' own paths, and classes.txt, whose k-th line is the class of the value k.

Ignored pixels stay 255. Nothing is lost, but touching objects of a class are not told apart.
"""

from functools import partial
from pathlib import Path

import numpy as np

from core import IGNORE
from core.data.files import read_text
from core.data.images import read_label_map, sides_in_header
from tools.exchange.objects import Picture
from tools.exchange.reading import Content, Found, Shape, check_names, check_pixels, check_size, list_files
from tools.exchange.writing import BACKGROUND, Export, write_png
from util.store.files import write_bytes

SHAPES = ('masks',)
HAS_HOLES = True
HAS_IGNORED = True
BY_AREA = False
CLASSES = 'classes.txt'


def encode(picture: Picture, export: Export) -> None:
    """Write the label map of an image."""
    write_png(export.place(picture.name, '.png'), picture.label)


def finish(entries: list[None], export: Export) -> None:
    """Write the names of the classes."""
    write_bytes(export.out / CLASSES, ''.join(f'{name}\n' for name in export.names).encode())


def is_folder(path: Path) -> bool:
    """Return whether a folder contains PNGs."""
    return bool(list_files(path, '.png'))


def read_folder(path: Path, names: tuple[str, ...]) -> list[Found]:
    """Return the masks below a folder; `names` are the classes of its values unless it has classes.txt."""
    names = read_names(path, names)
    files = list_files(path, '.png')
    overlays = {file.with_name(f'{file.stem}_overlay.png') for file in files}  # of tools.predict
    return [
        Found(file.relative_to(path).as_posix(), str(file), partial(load, file, names))
        for file in files
        if file not in overlays
    ]


def read_names(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in classes.txt of a folder, `names` if it has none. Raises ValueError."""
    if not (path / CLASSES).is_file():
        return names
    listed = tuple(read_text(path / CLASSES).splitlines())
    check_names(CLASSES, listed)
    return listed


def load(file: Path, names: tuple[str, ...], size: tuple[int, int], _image: Path) -> Content:
    """Return the classes in a mask of class indices. Raises ValueError naming a value without a name."""
    check_pixels(sides_in_header(file), size)
    return split(read_label_map(file, IGNORE), names, size)


def split(label: np.ndarray, names: tuple[str, ...], size: tuple[int, int]) -> Content:
    """Return a shape for each class in a label map (h', w') of indices into `names`; 255 is ignored."""
    check_size(label.shape, size)
    values = np.unique(label).tolist()
    wrong = [value for value in values if len(names) <= value < IGNORE]
    if wrong:
        raise ValueError(f'contains the value {wrong[0]}, but its classes end at {len(names) - 1}')
    named = {value: None if value == IGNORE else names[value] for value in values}
    shapes = [Shape(name, label == value) for value, name in named.items() if name != BACKGROUND]
    return Content(label.shape, shapes)
