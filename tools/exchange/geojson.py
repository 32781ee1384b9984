"""GeoJSON: a file of polygons with holes per image, for QGIS and QuPath.

Coordinates are pixels, x to the right and y down, unless the image is a GeoTIFF or has a world file: then they are in
its reference system, which is named if the GeoTIFF says its EPSG number. Longitude and latitude are not computed.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np

from core.data.files import fits
from tools.exchange import georeference
from tools.exchange.objects import Picture
from tools.exchange.reading import Content, Found, Polygons, Shape
from tools.exchange.shapes import read_polygons
from tools.exchange.writing import Export, write_compact

SHAPES = ('polygons',)
HAS_HOLES = True
HAS_IGNORED = False
BY_AREA = False


def encode(picture: Picture, export: Export) -> None:
    """Write the file of an image."""
    reference = georeference.find(picture.path)
    content = {
        'type': 'FeatureCollection',
        'features': [_feature(found, picture, export, reference) for found in picture.objects],
    }
    if reference is not None and reference.epsg:
        content['crs'] = {'type': 'name', 'properties': {'name': f'urn:ogc:def:crs:EPSG::{reference.epsg}'}}
    write_compact(export.place(picture.name, '.geojson'), content)


def _feature(found, picture, export, reference):
    outline, name = export.outline(found), export.name_of(found.index)
    rings = [ring if reference is None else reference.to_ground(ring) for ring in (outline.outer, *outline.holes)]
    properties = {
        'image': picture.name,
        'objectType': 'annotation',
        'classification': {'name': name, 'color': export.colour_of(name)},
        'area': found.area,
    }
    if found.score is not None:
        properties['score'] = found.score
    coordinates = [[*ring.tolist(), ring[0].tolist()] for ring in rings]
    return {'type': 'Feature', 'properties': properties, 'geometry': {'type': 'Polygon', 'coordinates': coordinates}}


def finish(entries: list[None], export: Export) -> None:
    """Write nothing more."""


def is_content(content: object) -> bool:
    """Return whether JSON is a collection of features."""
    return isinstance(content, dict) and content.get('type') == 'FeatureCollection'


def read_file(path: Path, content: dict) -> list[Found]:
    """Return the image of a file: the one that a feature names, otherwise the one that the file is named after.

    Raises ValueError.
    """
    features = content.get('features')
    if not fits(features, [dict]):
        raise ValueError('"features" is not a list of features')
    names = {name for feature in features if fits(name := _properties(feature).get('image'), str)}
    if len(names) > 1:
        raise ValueError(f'names {len(names)} images: a file must be of one')
    return [Found(next(iter(names), path.stem), str(path), partial(_load, features, _epsg(content)))]


def _properties(feature):
    return feature['properties'] if isinstance(feature.get('properties'), dict) else {}


def _epsg(content):
    """Return the EPSG number of the reference system that a file names, None if it names none or another one."""
    named = content.get('crs')
    name = named['properties']['name'] if fits(named, {'properties': {'name': str}}) else ''
    if name.endswith('CRS84'):
        return 4326
    number = re.search(r'EPSG:.*?(\d{1,6})$', name)
    return int(number[1]) if number else None


def _load(features, epsg, size, image):
    reference = georeference.find(image)
    if reference is not None and reference.epsg and epsg not in (None, reference.epsg):
        raise ValueError(
            f'its coordinates are in EPSG:{epsg}, the image in EPSG:{reference.epsg}: save it in the latter'
        )
    return Content(size, [shape for feature in features for shape in _read_feature(feature, reference)])


def _read_feature(feature, reference):
    """Yield the shapes of a feature."""
    properties, geometry = _properties(feature), feature.get('geometry')
    named = properties.get('classification')
    label = named.get('name') if isinstance(named, dict) else properties.get('label', properties.get('class'))
    if not isinstance(label, str):
        raise ValueError('a feature has no class: neither "classification" with a "name" nor "label" nor "class"')
    kind = geometry.get('type') if isinstance(geometry, dict) else None
    if kind not in ('Polygon', 'MultiPolygon'):
        raise ValueError(f'{label!r} is a {str(kind)[:20]}, which has no area: draw a polygon')
    parts = [geometry.get('coordinates')] if kind == 'Polygon' else geometry.get('coordinates')
    if not fits(parts, [[[[float]]]]) or not all(
        rings and all(len(point) >= 2 for ring in rings for point in ring) for rings in parts
    ):
        raise ValueError(f'the coordinates of {label!r} are not rings of points')
    ring = partial(_read_ring, reference=reference)
    for outer, *holes in parts:
        yield Shape(label, Polygons(ring(outer), tuple(polygon for hole in holes for polygon in ring(hole))))


def _read_ring(points, reference):
    ring = np.array([point[:2] for point in points], np.float64)
    return read_polygons([(ring if reference is None else reference.to_pixels(ring)).reshape(-1)])
