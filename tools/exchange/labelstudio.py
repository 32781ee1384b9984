"""Label Studio: tasks with predictions to correct, and the labelling interface for them. Read: its exports as JSON.

    tasks.json   to import; each prediction becomes an annotation when somebody opens the task
    config.xml   to paste in Settings, Labeling Interface, Code

Brush masks are exact. Polygons can be edited by their points, but have no holes.
"""

import re
from functools import partial
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from core.data.files import fits
from tools.exchange import brush
from tools.exchange.objects import Picture
from tools.exchange.reading import Box, Content, Found, Polygons, Shape, check_size, read_size
from tools.exchange.shapes import read_box, read_polygons
from tools.exchange.writing import Export, write_compact
from util.store.files import write_bytes
from util.store.hashes import digest

SHAPES = ('masks', 'polygons')
HAS_HOLES = False
HAS_IGNORED = False
BY_AREA = False
IMAGE = re.compile(r'\.(jpe?g|jfif|png|webp|bmp|gif|tiff?|avif|jp2|j2k)$', re.IGNORECASE)
TAGS = ('choices', 'taxonomy')  # results about a whole image
SHAPED = ('brushlabels', 'polygonlabels', 'rectanglelabels')
WORDS = ('rating', 'textarea', 'number', 'datetime', 'pairwise', 'ranker', 'relation')  # results without an area


def encode(picture: Picture, export: Export) -> dict:
    """Return the task of an image."""
    results = [_result(number, found, picture, export) for number, found in enumerate(picture.objects)]
    scores = [found.score for found in picture.objects if found.score is not None]
    prediction = {'model_version': export.source, 'result': results}
    if scores:
        prediction['score'] = round(sum(scores) / len(scores), 4)
    return {'data': {'image': f'{export.image_prefix}{quote(picture.name)}'}, 'predictions': [prediction]}


def _result(number, found, picture, export):
    (h, w), kind = picture.size, 'brush' if export.shapes == 'masks' else 'polygon'
    value = {f'{kind}labels': [export.name_of(found.index)]}
    if kind == 'brush':
        value |= {'format': 'rle', 'rle': brush.encode(found.mask((h, w)) > 0)}
    else:
        points = export.outline(found).outer * (100 / w, 100 / h)
        value |= {'points': points.round(6).tolist(), 'closed': True}
    entry = {
        'id': digest([picture.name, number])[:10],
        'type': f'{kind}labels',
        'from_name': kind,
        'to_name': 'image',
        'original_width': w,
        'original_height': h,
        'image_rotation': 0,
        'value': value,
    }
    return entry if found.score is None else {**entry, 'score': found.score}


def finish(entries: list[dict], export: Export) -> None:
    """Write the tasks and the interface."""
    write_compact(export.out / 'tasks.json', entries)
    labels = ''.join(
        f'\n    <Label value={quoteattr(name)} background="#{bytes(export.colour_of(name)).hex()}"/>'
        for name in export.classes
    )
    kinds = (('Brush', 'brush'), ('Polygon', 'polygon'))
    controls = ''.join(
        f'  <{tag}Labels name="{name}" toName="image">{labels}\n  </{tag}Labels>\n' for tag, name in kinds
    )
    text = f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n{controls}</View>\n'
    write_bytes(export.out / 'config.xml', text.encode())


def is_content(content: object) -> bool:
    """Return whether JSON is an export of Label Studio, or tasks to import."""
    return (
        fits(content, [dict])
        and bool(content)
        and all('annotations' in task or 'predictions' in task for task in content)
    )


def read_file(path: Path, content: list) -> list[Found]:
    """Return the images of the tasks that somebody has annotated: predictions alone are not corrections."""
    found = []
    for number, task in enumerate(content, 1):
        where = f'{path}: task {task.get("id", number)}'
        annotations = [entry for entry in task.get('annotations') or [] if not _get(entry, 'was_cancelled')]
        if annotations:
            latest = max(annotations, key=lambda entry: str(_get(entry, 'updated_at') or ''))
            found.append(Found(_image_of(task.get('data'), where), where, partial(_load, _get(latest, 'result'))))
    if not found:
        raise ValueError('no task has an annotation; predictions that nobody has submitted are not taken')
    return found


def _get(entry, name):
    return entry.get(name) if isinstance(entry, dict) else None


def _image_of(data, where):
    """Return the address of the picture: the entry "image", or the only one that looks like a picture."""
    texts = {name: text for name, text in data.items() if isinstance(text, str)} if isinstance(data, dict) else {}
    named = texts.get('image') or next((text for text in texts.values() if IMAGE.search(text)), None)
    if named is None:
        raise ValueError(f'{where}: its "data" names no picture')
    return named


def _load(results, size, _image):
    if not fits(results, [dict]):
        raise ValueError('"result" is not a list')
    shapes = [shape for entry in results for shape in _read_result(entry, size)]
    return Content(size, shapes)


def _read_result(entry, size):
    """Yield the shapes of a result, one a label, at the size of the image."""
    kind, value = entry.get('type'), entry.get('value')
    if kind in WORDS:
        return
    if kind not in (*SHAPED, *TAGS) or not isinstance(value, dict):
        raise ValueError(f'a result is of the type {str(kind)[:20]!r}: draw it with the brush or as a polygon')
    labels = [label[-1] if isinstance(label, list) and label else label for label in value.get(kind) or []]
    if not fits(labels, [str]):
        raise ValueError(f'the labels of a result of the type {kind} are not names')
    if kind in TAGS:
        content = None
    else:
        if entry.get('image_rotation'):
            raise ValueError('is rotated in Label Studio: rotate it back, or rotate the photograph itself')
        stated = read_size(entry.get('original_height'), entry.get('original_width')) or size
        check_size(stated, size)
        content = _read_value(kind, value, stated, size)
    yield from (Shape(label, content) for label in labels)


def _read_value(kind, value, stated, size):
    if kind == 'brushlabels':
        return brush.decode(value.get('rle'), stated)
    factors = np.array([size[1] / 100, size[0] / 100])
    if kind == 'polygonlabels':
        if not fits(value, {'points': [[float]]}) or any(len(point) != 2 for point in value['points']):
            raise ValueError('"points" of a polygon are not pairs')
        return Polygons(read_polygons([(np.array(value['points'], np.float64).reshape(-1, 2) * factors).reshape(-1)]))
    box = {name: value.get(name) for name in ('x', 'y', 'width', 'height')}
    if not fits(box, {str: float}):
        raise ValueError('a rectangle lacks "x", "y", "width" or "height"')
    return Box(read_box((np.array(list(box.values()), np.float64).reshape(2, 2) * factors).reshape(-1).tolist()))
