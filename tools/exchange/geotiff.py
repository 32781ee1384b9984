"""GeoTIFFs of class indices where their images are on the ground, for QGIS and other GIS; classes.txt as in `png`.

The tags of the image that say where it is are copied as they are, so any reference system is kept. An image with only a
world file gives its affine map, without a reference system. Ignored pixels stay 255.
"""

import io
from functools import partial
from pathlib import Path

from PIL import Image, TiffImagePlugin

from tools.exchange import georeference, png
from tools.exchange.objects import Picture
from tools.exchange.png import finish as finish
from tools.exchange.reading import Found, list_files
from tools.exchange.writing import Export
from util.store.files import write_bytes

SHAPES = ('masks',)
HAS_HOLES = True
HAS_IGNORED = True
BY_AREA = False


def encode(picture: Picture, export: Export) -> None:
    """Write the label map of an image, in the colours of its classes."""
    mask = Image.fromarray(picture.label, mode='P')
    mask.putpalette(export.palette.tobytes())
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, (kind, values) in georeference.tags_of(picture.path).items():
        tags.tagtype[tag] = kind
        tags[tag] = values
    buffer = io.BytesIO()
    mask.save(buffer, 'TIFF', compression='tiff_adobe_deflate', tiffinfo=tags)
    write_bytes(export.place(picture.name, '.tif'), buffer.getvalue())


def is_folder(path: Path) -> bool:
    """Return whether a folder contains TIFFs and the names of their classes."""
    return (path / png.CLASSES).is_file() and bool(list_files(path, '.tif'))


def read_folder(path: Path, names: tuple[str, ...]) -> list[Found]:
    """Return the masks below a folder."""
    names = png.read_names(path, names)
    return [
        Found(file.relative_to(path).as_posix(), str(file), partial(png.load, file, names))
        for file in list_files(path, '.tif')
    ]
