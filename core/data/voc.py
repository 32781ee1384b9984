"""PASCAL VOC: its folders, its annotations, its palette. No torch here: stages 3, 6 and 9 import this module and fork.

Under a root: JPEGImages/{id}.jpg, Annotations/{id}.xml, SegmentationClass/{id}.png (palette; 255 void).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import numpy as np
from defusedxml.ElementTree import fromstring

from core import UserError
from core.data.files import TEXT_LIMIT, read_bytes

Box = tuple[float, float]  # width and height in pixels


class Thing(NamedTuple):
    """An object in an annotation: the name of its class, and its box where it is known."""

    name: str
    box: Box | None = None


def image_path(root: Path, image_id: str) -> Path:
    """Return the path of the JPEG under a VOC root."""
    return root / 'JPEGImages' / f'{image_id}.jpg'


def xml_path(root: Path, image_id: str) -> Path:
    """Return the path of the annotation under a VOC root."""
    return root / 'Annotations' / f'{image_id}.xml'


def mask_path(root: Path, image_id: str) -> Path:
    """Return the path of the mask under a VOC root, or in `root` if that is the folder of masks itself."""
    folders = (root / 'SegmentationClass', root / 'SegmentationClassAug', root)
    return next((folder for folder in folders if folder.is_dir()), root) / f'{image_id}.png'


def similar_names(missing: Path, remedy: str = 'check the folder of the data set') -> str:
    """Return the end of an error line: files that differ from a missing one in case or extension, or the remedy."""
    similar = sorted(path.name for path in missing.parent.glob('*') if path.stem.lower() == missing.stem.lower())
    return f', but {", ".join(similar[:3])} exists: rename it' if similar else f': {remedy}'


def palette() -> np.ndarray:
    """Return VOC's colours, (256, 3) uint8: three bits of the index at a time become the top bits of R, G and B."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for step in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * step + channel)) & 1) << (7 - step)).astype(np.uint8)
    return colours


def read_tags(path: Path, size: tuple[int, int]) -> list[str]:
    """Return the names of the objects in an annotation of an image of the size (h, w); see `read_things`."""
    return [thing.name for thing in read_things(path, size)]


def read_things(path: Path, size: tuple[int, int]) -> list[Thing]:
    """Return the objects in an annotation of an image of the size (h, w), `difficult` ones included.

    A box without area after clipping to the image is skipped, as published. Boxes and <size> are optional. Raises
    UserError naming the file if it is not a VOC annotation, its <size> contradicts the image, or a box lies outside it.
    """
    with _reading(path):
        root = _read_annotation(path)
        _check_size(path, root, size)
        things = [_read_thing(path, element, size) for element in root.iter('object')]
        return [thing for thing in things if thing.box is None or min(thing.box) > 0]


def read_names(path: Path) -> list[str]:
    """Return the names of the objects in an annotation, whatever else is in it. Raises UserError naming the file."""
    with _reading(path):
        return [(element.findtext('name') or '').strip() for element in _read_annotation(path).iter('object')]


def parse_xml(path: Path) -> Element:
    """Return the root of an XML file without a document type, its elements without namespaces.

    Raises what defusedxml and reading raise.
    """
    root = fromstring(read_bytes(path, TEXT_LIMIT), forbid_dtd=True)
    for element in root.iter():
        element.tag = element.tag.rpartition('}')[2]
    return root


def _read_annotation(path: Path) -> Element:
    root = parse_xml(path)
    if root.tag != 'annotation':
        raise UserError(f'{path}: not a VOC annotation (its root is <{root.tag}>, not <annotation>)')
    return root


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise UserError naming the file for whatever an annotation raises inside."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f'{path}: no such annotation{similar_names(path)}') from None
    except defusedxml.DTDForbidden:
        raise UserError(f'{path}: declares a document type, which VOC annotations do not') from None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    except (ParseError, ValueError, LookupError) as error:
        raise UserError(f'{path}: not a VOC annotation ({str(error).splitlines()[0]})') from None


def _check_size(path: Path, root: Element, size: tuple[int, int]) -> None:
    if not root.findall('size/*'):
        return
    stated = tuple(_number(path, root, f'size/{side}') for side in ('height', 'width'))
    if stated != tuple(size):
        raise UserError(f'{path}: <size> is {stated[1]:g}x{stated[0]:g}, the image is {size[1]}x{size[0]}: correct it')


def _read_thing(path: Path, element: Element, size: tuple[int, int]) -> Thing:
    """Return an object with its box, clipped to the image."""
    name = (element.findtext('name') or '').strip()
    if not element.findall('bndbox/*'):
        return Thing(name)
    h, w = size
    x = sorted(_number(path, element, f'bndbox/{side}') for side in ('xmin', 'xmax'))
    y = sorted(_number(path, element, f'bndbox/{side}') for side in ('ymin', 'ymax'))
    if x[1] < 0 or y[1] < 0 or x[0] > w or y[0] > h:
        raise UserError(f'{path}: the box of {name!r} lies outside the {w}x{h} image: correct or remove it')
    (left, right), (top, bottom) = np.clip(x, 0, w).tolist(), np.clip(y, 0, h).tolist()
    return Thing(name, (right - left, bottom - top))


def _number(path: Path, element: Element, tag: str) -> float:
    text = element.findtext(tag, '')
    try:
        value = float(text)
    except ValueError:
        value = float('nan')
    if not np.isfinite(value):
        raise UserError(f'{path}: <{tag}> is {text.strip()!r}, not a number')
    return value
