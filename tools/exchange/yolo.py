"""Ultralytics: semantic masks for `yolo semantic`, or polygons for `yolo segment`, with links to the pictures.

    data.yaml                            folders and names of the classes
    images/{train,val}/{image id}.jpg    a link to the picture, a copy where the file system has no links
    masks/{train,val}/{image id}.png     grey, 0 is background, 255 is ignored
    labels/{train,val}/{image id}.txt    or polygons: a line per object, class and corners from 0 to 1, no holes

Masks are exact. Polygons have no class `background`: Ultralytics adds it itself.
"""

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np

from core.data.files import TEXT_LIMIT, read_bytes, read_text
from tools.exchange import png
from tools.exchange.objects import Picture
from tools.exchange.reading import Box, Content, Found, Polygons, Shape, check_names, list_files
from tools.exchange.shapes import read_box, read_polygons
from tools.exchange.writing import Export, write_png
from util.store.files import make_folder, write_bytes

SHAPES = ('masks', 'polygons')
HAS_HOLES = False
HAS_IGNORED = True
BY_AREA = True  # no order is defined: smaller objects lie on larger ones
YAML = 'data.yaml'
FOLDERS = {'masks': 'masks', 'polygons': 'labels'}


def encode(picture: Picture, export: Export) -> str:
    """Write the mask or the polygons of an image and link the picture; return its list."""
    split = picture.split if picture.split in ('val', 'test') else 'train'
    link = export.out / 'images' / split / f'{picture.image_id}{picture.path.suffix.lower()}'
    make_folder(link.parent)
    try:
        os.symlink(picture.path.resolve(), link)
    except OSError:
        shutil.copyfile(picture.path, link)
    place = export.out / FOLDERS[export.shapes] / split
    if export.shapes == 'masks':
        write_png(place / f'{picture.image_id}.png', picture.label)
        return split
    h, w = picture.size
    lines = []
    for found in picture.objects:
        corners = (export.outline(found).outer / (w, h)).reshape(-1)
        lines.append(' '.join([str(export.classes.index(export.name_of(found.index))), *(f'{x:.6f}' for x in corners)]))
    write_bytes(place / f'{picture.image_id}.txt', ''.join(f'{line}\n' for line in lines).encode())
    return split


def finish(entries: list[str], export: Export) -> None:
    """Write the YAML. Ultralytics needs a list `val`: without one it names the training pictures."""
    splits = {*entries}
    lines = []
    for split in ('train', 'val', *(['test'] if 'test' in splits else [])):
        there = split if split in splits else next(iter(sorted(splits)))
        lines.append(f'{split}: images/{there}')
    names = export.classes
    if export.shapes == 'masks':
        names = export.names
        lines.append('masks_dir: masks')
    lines.append('names:')
    lines += [f'  {number}: {json.dumps(name, ensure_ascii=False)}' for number, name in enumerate(names)]
    write_bytes(export.out / YAML, '\n'.join([*lines, '']).encode())


def is_folder(path: Path) -> bool:
    """Return whether a folder has a YAML with names of classes."""
    return _find_yaml(path) is not None


def _find_yaml(path):
    files = [path / YAML, *sorted(path.glob('*.yaml')), *sorted(path.glob('*.yml'))]
    return next(
        (file for file in files if file.is_file() and re.search(rb'^names\s*:', read_bytes(file, TEXT_LIMIT), re.M)),
        None,
    )


def read_folder(path: Path, names: tuple[str, ...]) -> list[Found]:
    """Return the images that have a mask or a file of polygons. Raises ValueError."""
    entries = read_yaml(_find_yaml(path))
    if 'label_mapping' in entries:
        raise ValueError('"label_mapping" is not read: write masks that have the values of "names"')
    names = entries['names']
    masks = path / (entries.get('masks_dir') or 'masks')
    if masks.is_dir() and masks.resolve().is_relative_to(path.resolve()):
        files = list_files(masks, '.png')
        return [Found(_name(file, masks), str(file), partial(png.load, file, names)) for file in files]
    files = list_files(path / 'labels', '.txt')
    return [Found(_name(file, path / 'labels'), str(file), partial(_load, file, names)) for file in files]


def _name(file, folder):
    return file.relative_to(folder).with_suffix('').as_posix()


def read_yaml(path: Path) -> dict:
    """Return the entries of the top level that are text, and "names", a tuple.

    Only what such files contain is read: [a, b], {0: a} and lines '- a' or '0: a' of names. Raises ValueError.
    """
    lines = [line for line in read_text(path).splitlines() if line.split('#')[0].strip()]
    entries, names, inside = {}, [], False
    for line in lines:
        if not line[0].isspace() and not line.startswith('-'):
            key, _, value = (part.strip() for part in line.partition(':'))
            inside = key == 'names'
            if inside and value and not value.startswith('#'):
                names = [_item(part) for part in _parts(value)]
            elif not inside:
                entries[key] = _scalar(value)
        elif inside:
            is_item = re.match(r'\s*(-\s+\S|\d+\s*:\s)', line)
            names.append(_item(line.strip().removeprefix('- ')) if is_item else (None, ''))
    numbered = dict((i if number is None else number, name) for i, (number, name) in enumerate(names))
    if not names or sorted(numbered) != list(range(len(names))) or '' in numbered.values():
        raise ValueError(f'{path.name}: "names" is not a list of names, or numbered from 0 without gaps')
    check_names(path.name, numbered.values())
    return {**entries, 'names': tuple(numbered[i] for i in range(len(names)))}


def _parts(text):
    """Return the items of [a, b] or {0: a, 1: b}; commas in quotes do not separate."""
    inner = re.fullmatch(r'[\[{](.*)[\]}]\s*(#.*)?', text)
    return re.findall(r"""(?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*'|[^,"'])+""", inner[1]) if inner else []


def _item(text):
    """Return the number, if there is one, and the name of '0: a' or 'a'."""
    numbered = re.fullmatch(r'(\d{1,3})\s*:\s+(.*)', text.strip())
    return (int(numbered[1]), _scalar(numbered[2])) if numbered else (None, _scalar(text))


def _scalar(text):
    text = text.strip()
    if text.startswith('"'):
        return json.loads(re.match(r'"(?:\\.|[^"\\])*"', text)[0]) if re.match(r'"(?:\\.|[^"\\])*"', text) else ''
    if text.startswith("'"):
        return text[1:].split(' #')[0].rstrip().removesuffix("'").replace("''", "'")
    return re.split(r'\s#', text)[0].strip()


def _load(file, names, size, _image):
    h, w = size
    shapes = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        values = np.array([float(word) for word in words[1:]])
        if not words[0].isdecimal() or len(values) < 4 or not np.isfinite(values).all() or np.abs(values).max() > 2:
            raise ValueError(f'line {number} is not a class and corners from 0 to 1')
        index = int(words[0])
        label = names[index] if index < len(names) else f'class {index}'
        if len(values) in (4, 5):  # a box, and the confidence of a prediction
            x, y, width, height = values[:4] * (w, h, w, h)
            shapes.append(Shape(label, Box(read_box([x - width / 2, y - height / 2, width, height]))))
            continue
        corners = values[: len(values) // 2 * 2].reshape(-1, 2)  # the last number alone is a confidence
        shapes.append(Shape(label, Polygons(read_polygons([(corners * (w, h)).reshape(-1)]))))
    return Content(size, shapes, by_area=BY_AREA)
