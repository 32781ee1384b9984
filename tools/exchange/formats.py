"""The formats of labelling tools by name, and which of them a file or folder is."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from core import UserError
from core.data.files import load_json
from tools.exchange import coco, cvat, geojson, geotiff, labelme, labelstudio, png, yolo
from tools.exchange.objects import Picture
from tools.exchange.reading import Found, list_files
from tools.exchange.writing import Export


class Format(Protocol):
    """What the module of a format has.

    It reads either JSON files, with `is_content` and `read_file`, or folders, with `is_folder` and `read_folder`.
    """

    SHAPES: tuple[str, ...]  # what it can hold, 'masks' and 'polygons', the default first
    HAS_HOLES: bool  # of its polygons
    HAS_IGNORED: bool  # whether its masks have a value for ignored pixels
    BY_AREA: bool  # whether smaller objects lie on larger ones, whatever their order

    def encode(self, picture: Picture, export: Export) -> object:
        """Write the files of an image, in a worker process; return what `finish` needs of it."""

    def finish(self, entries: list, export: Export) -> None:
        """Write the files that are about all images."""


FORMATS: dict[str, Format] = {
    'coco': coco,
    'cvat': cvat,
    'labelme': labelme,
    'labelstudio': labelstudio,
    'yolo': yolo,
    'geotiff': geotiff,
    'png': png,
    'geojson': geojson,
}
JSON = {name: module for name, module in FORMATS.items() if hasattr(module, 'read_file')}
FOLDERS = {name: module for name, module in FORMATS.items() if hasattr(module, 'read_folder')}  # png comes last
ENDINGS = ('.json', '.geojson')


def read(path: Path, names: tuple[str, ...], chosen: str | None = None) -> tuple[str, list[Found]]:
    """Return the format of a file or folder and the images in it; `names` are the classes of plain PNGs.

    Raises UserError if it is none, or not the chosen one.
    """
    if path.is_file():
        if path.suffix.lower() == '.zip':
            raise UserError(f'{path}: is an archive: unpack it, and pass the folder')
        if path.suffix.lower() not in ENDINGS:
            raise UserError(f'{path}: is not a JSON file: pass the folder that it is in')
        name, found = _read_json([path], chosen)
        if not found:
            raise UserError(_unknown(path, chosen))
        return name, found
    if not path.is_dir():
        raise UserError(f'{path}: no such file or folder')
    special = [name for name, module in FOLDERS.items() if name != 'png' and module.is_folder(path)]
    files = list_files(path, *ENDINGS)
    name, found = chosen or next(iter(special), None), []
    if name not in FOLDERS:
        name, found = _read_json(files, name)
    name = name or 'png'  # args.json and inputs.json of a stage are of no format
    if name in FOLDERS and FOLDERS[name].is_folder(path):
        with _naming(path):
            found = FOLDERS[name].read_folder(path, names)
    elif not found:
        raise UserError(_unknown(path, chosen))
    if not found:
        raise UserError(f'{path}: contains no image with masks')
    return name, found


def _read_json(files: list[Path], chosen: str | None) -> tuple[str | None, list[Found]]:
    """Return the format of the first JSON file that is of one (None: of none), and the images of all its files."""
    name, found, others = chosen, [], []
    for file in files:
        with _naming(file):
            content = load_json(file)
            name = name or next((other for other, module in JSON.items() if module.is_content(content)), None)
            if name and JSON[name].is_content(content):
                found += JSON[name].read_file(file, content)
            else:
                others.append(file)
    if found and others:
        shown = ', '.join(map(str, others[:3])) + (', ...' if len(others) > 3 else '')
        print(
            f'warning: files that are not of the format {name} are left out: {len(others)} ({shown})', file=sys.stderr
        )
    return name, found


def _unknown(path: Path, chosen: str | None) -> str:
    if chosen:
        return f'{path}: is not of the format {chosen}'
    return f'{path}: is not recognised: a file or folder of {", ".join(FORMATS)} is needed'


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise UserError naming the file for what a damaged one raises inside."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    except (ValueError, TypeError) as error:
        raise UserError(f'{path}: {str(error).splitlines()[0]}') from None
