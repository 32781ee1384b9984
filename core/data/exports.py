"""Tags in the files of labelling tools: the classes of an image, not the outlines (tools.prepare_coco draws masks).

COCO (CVAT, Label Studio, Roboflow) and CVAT's XML have one file for many images, VOC and labelme a file beside each. A
new format is a reader and a row in MANY or BESIDE. No torch here: stages 3, 6 and 9 import this module and fork.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import defusedxml

from core import UserError
from core.data import voc
from core.data.entries import read_json
from core.data.files import fits, load_json
from core.data.images import FIRST, image_size
from core.data.voc import Box, Thing

COCO = {'images': list, 'annotations': list, 'categories': list}
NOT_CLASSES = ('background', '_background_', '__ignore__')  # names that labelme and its converters add
SIDES = {  # of shapes in CVAT's XML: left, top, right and bottom; or left, top, width and height
    'box': ('xtl', 'ytl', 'xbr', 'ybr'),
    'mask': ('left', 'top', 'width', 'height'),
}
SHAPES = (*SIDES, 'polygon', 'polyline', 'points', 'ellipse', 'cuboid', 'skeleton', 'tag')


class Picture(NamedTuple):
    """An image in a file for many: its name there, its objects, and the subset that the tool put it into, if any."""

    name: str
    things: list[Thing]
    subset: str = ''


class Export(NamedTuple):
    """A file for many images. Classes in `optional` count only if an object has them."""

    classes: list[str]
    pictures: list[Picture]
    optional: frozenset[str] = frozenset()


def tags_of(things: Iterable[Thing]) -> list[str]:
    """Return the classes of some objects, without repetitions."""
    return list(dict.fromkeys(thing.name for thing in things))


def boxes_of(things: Iterable[Thing]) -> tuple[Box, ...]:
    """Return the boxes of those objects whose boxes are known."""
    return tuple(thing.box for thing in things if thing.box)


def classes_of(exports: Iterable[Export]) -> list[str]:
    """Return the classes of some files, in their order, without the optional ones that no object has."""
    exports = list(exports)
    used = {thing.name for export in exports for picture in export.pictures for thing in picture.things}
    found = {name: None for export in exports for name in export.classes}
    return [name for name in found if name in used or not any(name in export.optional for export in exports)]


# One file for many images -------------------------------------------------------------------------------------------


def is_coco(content: object) -> bool:
    """Return whether the content of a JSON file is annotations in COCO's format."""
    return fits(content, COCO)


def read_many(path: Path) -> Export:
    """Return what a file for many images contains, by its ending. Raises UserError naming it."""
    return MANY[path.suffix.lower()](path)


def read_coco(path: Path, content: dict | None = None) -> Export:
    """Read annotations in COCO's format: ids may be numbers or texts, and of an annotation only the ids are needed.

    Roboflow writes a category that only groups the others: it is optional. `content`: the parsed file, if known.
    """
    content = read_json(path) if content is None else content
    if not is_coco(content):
        raise UserError(f'{path}: not COCO annotations: needs the lists {", ".join(COCO)}', option='dataset')
    names: dict[object, str] = {}
    for entry in content['categories']:
        if not fits(entry, {'id': (int, str), 'name': str}) or entry['id'] in names:
            raise UserError(f'{path}: each category must have a unique "id" and a "name"', option='dataset')
        names[entry['id']] = entry['name'].strip()
    pictures: dict[object, Picture] = {}
    for entry in content['images']:
        if not fits(entry, {'id': (int, str), 'file_name': str}) or entry['id'] in pictures:
            raise UserError(f'{path}: each image must have a unique "id" and a "file_name"', option='dataset')
        pictures[entry['id']] = Picture(entry['file_name'], [])
    for entry in content['annotations']:
        if not fits(entry, {'image_id': (int, str), 'category_id': (int, str)}):
            raise UserError(f'{path}: an annotation lacks "image_id" or "category_id"', option='dataset')
        for key, known in (('image_id', pictures), ('category_id', names)):
            if entry[key] not in known:
                raise UserError(f'{path}: {key} {entry[key]} of an annotation is unknown', option='dataset')
        box = entry.get('bbox')
        size: Box | None = (box[2], box[3]) if fits(box, [float]) and len(box) == 4 else None
        pictures[entry['image_id']].things.append(Thing(names[entry['category_id']], size))
    return Export(list(names.values()), list(pictures.values()), optional_names(content['categories']))


def optional_names(categories: list[dict]) -> frozenset[str]:
    """Return the names of COCO's categories that are classes only if an object has them: groups, and helpers."""
    parents = [(entry['name'], entry.get('supercategory')) for entry in categories]
    groups = {parent for name, parent in parents if isinstance(parent, str) and parent != name}
    return frozenset({*groups, *NOT_CLASSES})


def read_cvat(path: Path) -> Export:
    """Read CVAT's own format, "CVAT for images 1.1"."""
    try:
        root = voc.parse_xml(path)
    except defusedxml.DTDForbidden:
        raise UserError(f'{path}: declares a document type, which CVAT does not', option='dataset') from None
    except (OSError, ParseError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'{path}: not annotations of CVAT ({reason})', option='dataset') from None
    if root.find('track') is not None:
        raise UserError(f'{path}: is "CVAT for video": export it as "CVAT for images 1.1"', option='dataset')
    images = root.findall('image')
    if root.tag != 'annotations' or not all(image.get('name') for image in images):
        raise UserError(f'{path}: not annotations of CVAT ("CVAT for images 1.1")', option='dataset')
    classes = [(name.text or '').strip() for name in root.findall('meta//labels/label/name')]
    pictures = [Picture(image.get('name', ''), _shapes(image), image.get('subset', '')) for image in images]
    used = tags_of(thing for picture in pictures for thing in picture.things)
    return Export(list(dict.fromkeys([*classes, *used])), pictures, frozenset(NOT_CLASSES))


def _shapes(image: Element) -> list[Thing]:
    """Return the shapes of an image in CVAT's XML."""
    return [Thing(shape.get('label', ''), _cvat_box(shape)) for shape in image if shape.tag in SHAPES]


def _cvat_box(shape: Element) -> Box | None:
    """Return the width and height of a shape, None if they are unknown."""
    try:
        if shape.tag in SIDES:
            left, top, right, bottom = (float(shape.get(side, '')) for side in SIDES[shape.tag])
            return (right, bottom) if shape.tag == 'mask' else (right - left, bottom - top)
        points = [tuple(map(float, point.split(','))) for point in shape.get('points', '').split(';')]
        return _extent(points) if shape.tag == 'polygon' else None
    except ValueError:
        return None


def _extent(points: list) -> Box:
    """Return the width and height of some points (x, y). Raises ValueError if they are not pairs."""
    x, y = zip(*((x, y) for x, y in points), strict=True)
    return max(x) - min(x), max(y) - min(y)


MANY = {'.json': read_coco, '.xml': read_cvat}


# A file beside each image -------------------------------------------------------------------------------------------


def read_beside(path: Path, image: Path) -> list[Thing]:
    """Return the objects in the file of one image, by its ending. Raises UserError naming the file."""
    return BESIDE[path.suffix.lower()](path, image)


def names_beside(path: Path) -> list[str]:
    """Return the classes in the file of one image without a look at the image. Raises UserError naming the file."""
    return voc.read_names(path) if path.suffix.lower() == '.xml' else tags_of(read_labelme(path, path))


def read_voc(path: Path, image: Path) -> list[Thing]:
    """Read an annotation in VOC's format."""
    return voc.read_things(path, image_size(image, FIRST))


def read_labelme(path: Path, image: Path) -> list[Thing]:
    """Read a file of labelme: the labels of its shapes, and the flags of the image that are set."""
    try:
        status = path.stat()
        return [*_parse_labelme(path, status.st_size, status.st_mtime_ns, status.st_ino)]
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path}: cannot be read ({str(error).splitlines()[0]})') from None


@lru_cache(None)
def _parse_labelme(path: Path, *stamp: int) -> tuple[Thing, ...]:
    """Parse a file of labelme, which by default contains the image too, only once while it stays the same."""
    content = load_json(path)
    if not fits(content, {'shapes': [{'label': str}]}):
        raise UserError(f'{path}: not a file of labelme: needs "shapes" with a "label" each')
    flags = content.get('flags') if isinstance(content.get('flags'), dict) else {}
    things = [Thing(name) for name, is_set in flags.items() if is_set is True]
    for shape in content['shapes']:
        points = shape.get('points')
        is_area = fits(points, [[float]]) and len(points) > 1 and all(len(point) == 2 for point in points)
        things.append(Thing(shape['label'].strip(), _extent(points) if is_area else None))
    return tuple(thing for thing in things if thing.name not in NOT_CLASSES)


BESIDE = {'.xml': read_voc, '.json': read_labelme}
