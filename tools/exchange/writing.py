"""What the writers of all formats share: the settings of an export, and an output folder that is complete or absent."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np

from core import IGNORE, UserError
from tools.exchange.objects import Object, Outline
from util.store.files import make_folder, write_bytes

BACKGROUND = 'background'
IGNORED = 'ignore'  # name of the class of ignored pixels


class Export(NamedTuple):
    """How label maps are written."""

    out: Path  # where the files are written; they are moved to `target` at the end
    target: Path
    source: str  # name of the folder of label maps
    names: tuple[str, ...]  # of the classes, background first
    palette: np.ndarray  # (256, 3) uint8
    shapes: str  # 'masks' or 'polygons'
    tolerance: float  # pixels by which polygons may leave the border of an object
    keep_ignored: bool
    image_prefix: str  # of the images' addresses in Label Studio

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that objects may have."""
        return (*self.names[1:], IGNORED) if self.keep_ignored else self.names[1:]

    def name_of(self, index: int) -> str:
        return IGNORED if index == IGNORE else self.names[index]

    def colour_of(self, name: str) -> list[int]:
        return self.palette[IGNORE if name == IGNORED and self.keep_ignored else self.names.index(name)].tolist()

    def outline(self, found: Object) -> Outline:
        return found.outline(self.tolerance)

    def place(self, name: str, ending: str, *folders: str) -> Path:
        """Return where the file of an image is written: under the image's own path, with another ending."""
        return self.out.joinpath(*folders, PurePosixPath(name).parent, f'{PurePosixPath(name).stem}{ending}')


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a grey (h, w) or coloured (h, w, 3) picture."""
    write_bytes(path, iio.imwrite('<bytes>', picture, extension='.png'))


def write_compact(path: Path, content: object) -> None:
    """Write JSON on one line: lists of coordinates would take a line a number."""
    write_bytes(path, json.dumps(content, ensure_ascii=False, separators=(',', ':')).encode())


@contextmanager
def staged_folder(target: Path, flag: str) -> Iterator[Path]:
    """Yield a folder to fill, which gets the name `target` at the end; after an error nothing is left of it.

    Raises UserError naming the flag if there is something at `target` before or at the end, but an empty folder.
    """
    taken = UserError(f'{flag} {target}: exists and is not an empty folder: name another one')
    target = Path(os.path.abspath(target))
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise taken
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix='.', suffix='.partial', dir=target.parent) as folder:
        staged = Path(folder) / target.name
        staged.mkdir()
        yield staged
        try:
            os.replace(staged, target)
        except OSError:
            raise taken from None
