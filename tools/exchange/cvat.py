"""CVAT's "Segmentation mask 1.1", as CVAT and datumaro write and read it.

    labelmap.txt                         label:r,g,b:: of each class, background first
    ImageSets/Segmentation/default.txt   paths of the images without their ending
    SegmentationClass/{path}.png         the colours of the classes
    SegmentationObject/{path}.png        VOC's colours of the numbers 1, 2, ... of the objects

Black is background. Nothing is lost. A picture has at most 255 objects: of more, the smallest of a class become one.
"""

import re
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from core import UserError
from core.data import voc
from core.data.files import read_text
from core.data.images import read_image, read_label_map, sides_in_header
from tools.exchange.objects import Picture
from tools.exchange.png import split
from tools.exchange.reading import Content, Found, Shape, check_names, check_pixels, check_size, list_files
from tools.exchange.writing import BACKGROUND, Export, write_png
from util.store.files import write_bytes

SHAPES = ('masks',)
HAS_HOLES = True
HAS_IGNORED = False
BY_AREA = False
LABELS, LIST = 'labelmap.txt', 'ImageSets/Segmentation/default.txt'
MASKS, OBJECTS = 'SegmentationClass', 'SegmentationObject'
LARGEST = 255  # number of an object


def encode(picture: Picture, export: Export) -> str:
    """Write the two masks of an image, and return its name in the list."""
    colours = np.zeros((256, 3), np.uint8)
    for index in {found.index for found in picture.objects}:
        colours[index] = _colours(export)[export.name_of(index)]
    write_png(export.place(picture.name, '.png', MASKS), colours[picture.label])
    write_png(export.place(picture.name, '.png', OBJECTS), voc.palette()[_numbers(picture)])
    return PurePosixPath(picture.name).with_suffix('').as_posix()


def _numbers(picture):
    """Return the number of the object at each pixel (h, w); the last numbers are shared by the smallest of a class."""
    numbers = np.zeros(picture.size, np.uint8)
    classes = sorted({found.index for found in picture.objects})
    alone = LARGEST if len(picture.objects) <= LARGEST else LARGEST - len(classes)
    for i, found in enumerate(picture.objects):
        found.lay(numbers, i + 1 if i < alone else alone + 1 + classes.index(found.index))
    return numbers


def _colours(export):
    """Return the colour of each class: VOC's colours if the data set has a colour twice, or black."""
    names = (BACKGROUND, *export.classes)
    colours = {name: tuple(export.colour_of(name)) for name in names}
    if len(set(colours.values())) < len(names) or colours[BACKGROUND] != (0, 0, 0):
        colours = dict(zip(names, map(tuple, voc.palette().tolist()), strict=False))
    return colours


def finish(entries: list[str], export: Export) -> None:
    """Write the colours and the list."""
    wrong = next((name for name in export.classes if re.search('[:#]', name)), None)
    if wrong is not None:
        raise UserError(f'the class {wrong!r}: {LABELS} of CVAT cannot hold ":" or "#" in a name: rename the class')
    lines = [f'{name}:{",".join(map(str, colour))}::' for name, colour in _colours(export).items()]
    write_bytes(export.out / LABELS, '\n'.join(['# label:color_rgb:parts:actions', *lines, '']).encode())
    write_bytes(export.out / LIST, ''.join(f'{name}\n' for name in entries).encode())


def is_folder(path: Path) -> bool:
    """Return whether a folder is an unpacked archive."""
    return (path / LABELS).is_file() and (path / MASKS).is_dir()


def read_folder(path: Path, names: tuple[str, ...]) -> list[Found]:
    """Return the images that have a mask, and listed images that have none. Raises ValueError or OSError."""
    colours = _read_labels(path / LABELS)
    files = {
        file.relative_to(path / MASKS).with_suffix('').as_posix(): file for file in list_files(path / MASKS, '.png')
    }
    found = [Found(name, str(file), partial(_load, file, colours)) for name, file in files.items()]
    for list_file in list_files(path / 'ImageSets' / 'Segmentation', '.txt'):
        listed = [line.strip() for line in read_text(list_file).splitlines()]
        for name in dict.fromkeys(name for name in listed if name and not name.startswith('#') and name not in files):
            found.append(Found(name, str(list_file), lambda *_: Content(None, [])))
    return found


def _read_labels(path):
    """Return the names of the classes by colour 0xrrggbb, in order; without colours, VOC's."""
    colours, names = {}, []
    lines = [line.strip() for line in read_text(path).splitlines()]
    for number, line in enumerate(line for line in lines if line and not line.startswith('#')):
        name, colour, *_ = [*line.split(':'), '', '']
        colour = colour or ','.join(map(str, voc.palette()[min(number, 255)].tolist()))
        if not re.fullmatch(r'\s*\d{1,3}\s*(,\s*\d{1,3}\s*){2}', colour) or max(map(int, colour.split(','))) > 255:
            raise ValueError(f'{path.name}: {colour[:40]!r} is not a colour r,g,b')
        red, green, blue = map(int, colour.split(','))
        names.append(name.strip())
        other = colours.setdefault(red << 16 | green << 8 | blue, name.strip())
        if other != name.strip():
            raise ValueError(f'{path.name}: {other[:40]!r} and {name.strip()[:40]!r} have the same colour {colour}')
    if not colours:
        raise ValueError(f'{path.name}: names no class')
    check_names(path.name, names)
    return colours


def _load(file, colours, size, _image):
    """Return the classes of a mask of colours, or of indices in the order of the labels."""
    check_pixels(sides_in_header(file), size)
    image = read_image(file)
    check_size(image.size[::-1], size)
    values, where = np.unique(np.array(image).astype(np.int64) @ [1 << 16, 1 << 8, 1], return_inverse=True)
    names = [{0: BACKGROUND, **colours}.get(value) for value in values.tolist()]
    if None not in names:
        where = where.reshape(image.size[::-1])
        return Content(where.shape, [Shape(name, where == i) for i, name in enumerate(names) if name != BACKGROUND])
    try:
        label = read_label_map(file, len(colours) - 1)
    except UserError:
        wrong = _text(values[names.index(None)])
        raise ValueError(f'contains the colour {wrong}, which {LABELS} does not name') from None
    return split(label, tuple(colours.values()), size)


def _text(colour):
    return f'{colour >> 16},{colour >> 8 & 255},{colour & 255}'
