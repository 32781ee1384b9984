"""COCO instances: one JSON file, which most tools read. RLE keeps holes; polygons, one an object, do not."""

from functools import partial
from pathlib import Path

from core.data.files import Some, fits
from tools.exchange.objects import Picture
from tools.exchange.reading import Box, Content, Found, Polygons, Shape, check_size, read_size
from tools.exchange.shapes import read_box, read_polygons, read_rle
from tools.exchange.writing import Export, write_compact

SHAPES = ('masks', 'polygons')
HAS_HOLES = False  # of polygons
HAS_IGNORED = False
BY_AREA = True  # no order is defined: smaller objects lie on larger ones
LISTS = ('images', 'annotations', 'categories')


def encode(picture: Picture, export: Export) -> dict:
    """Return an image and its annotations, without ids."""
    return {
        'file_name': picture.name,
        'size': picture.size,
        'annotations': [_annotation(found, picture.size, export) for found in picture.objects],
    }


def _annotation(found, size, export):
    if export.shapes == 'masks':
        segmentation = found.rle(size)
    else:
        segmentation = [export.outline(found).outer.reshape(-1).tolist()]
    entry = {
        'category_id': 1 + export.classes.index(export.name_of(found.index)),
        'segmentation': segmentation,
        'area': found.area,
        'bbox': list(found.box),
        'iscrowd': 0,
    }
    return entry if found.score is None else {**entry, 'score': found.score}


def finish(entries: list[dict], export: Export) -> None:
    """Write the file: images and annotations are numbered from 1 in order, categories in the order of the classes."""
    images, annotations = [], []
    for number, entry in enumerate(entries, 1):
        h, w = entry['size']
        images.append({'id': number, 'file_name': entry['file_name'], 'width': w, 'height': h})
        for annotation in entry['annotations']:
            annotations.append({'id': len(annotations) + 1, 'image_id': number, **annotation})
    categories = [{'id': number, 'name': name} for number, name in enumerate(export.classes, 1)]
    content = {'info': {'description': export.source}, 'images': images, 'annotations': annotations}
    write_compact(export.out / 'annotations.json', {**content, 'categories': categories})


def is_content(content: object) -> bool:
    """Return whether JSON is COCO instances."""
    return fits(content, dict.fromkeys(LISTS, list))


def read_file(path: Path, content: dict) -> list[Found]:
    """Return the images of a file. Raises ValueError."""
    for what in LISTS:
        if not fits(content[what], [dict]):
            raise ValueError(f'an entry of "{what}" is not an object')
    for what in ('categories', 'images'):
        numbers = [str(entry.get('id')) for entry in content[what]]
        if len({*numbers}) < len(numbers):
            raise ValueError(f'two entries of "{what}" have the same "id"')
    names = {entry.get('id'): entry.get('name') for entry in content['categories']}
    if not all(isinstance(name, str) for name in names.values()):
        raise ValueError('a category lacks its "name"')
    annotations: dict = {}
    for annotation in content['annotations']:
        if not fits(annotation, Some({'image_id': (int, str), 'category_id': (int, str)})):
            raise ValueError('"image_id" and "category_id" of an annotation must be integers or texts')
        annotations.setdefault(annotation.get('image_id'), []).append(annotation)
    found = []
    for image in content['images']:
        if not fits(image, {'file_name': str, 'id': (int, str)}):
            raise ValueError('an image lacks its "id" or "file_name"')
        entries = annotations.pop(image['id'], [])
        load = partial(_load, image.get('height'), image.get('width'), entries, names)
        found.append(Found(image['file_name'], f'{path}: image {image["id"]}', load))
    if annotations:
        raise ValueError(f'the image_id {next(iter(annotations))!r} of an annotation is not in "images"')
    return found


def _load(height, width, entries, names, size, _image):
    stated = read_size(height, width)
    check_size(stated, size)
    shapes = []
    for entry in entries:
        number = entry.get('category_id')
        label, shape = names.get(number, f'category {number}'), entry.get('segmentation')
        if isinstance(shape, dict):
            rle = read_rle(shape)
            check_size(tuple(map(int, rle['size'])), size)
            shapes.append(Shape(label, rle))
            continue
        if not isinstance(shape, list | None):
            raise ValueError('"segmentation" must be a list of polygons, or RLE')
        polygons = read_polygons(shape or [])
        box = None if entry.get('bbox') is None else Box(read_box(entry['bbox']))
        shapes.append(Shape(label, Polygons(polygons) if polygons else box))
    return Content(stated, shapes, by_area=BY_AREA)
