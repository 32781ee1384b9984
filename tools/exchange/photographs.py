"""A folder of photographs as a data set: for label maps or labels of images that no CSV lists."""

import os
from pathlib import Path

from PIL import Image

from core import UserError
from core.data import voc
from core.data.dataset import Dataset
from core.data.images import FORMATS
from core.data.pixels import Reading
from core.data.source import Row, Rows
from tools.exchange.reading import list_files

FIRST = Reading(plane='1')


def open_photographs(folder: Path, class_names: tuple[str, ...], reading: Reading = FIRST) -> Dataset:
    """Return the images below a folder as a data set without tags, of which only the sizes are read.

    Raises UserError if there are none.
    """
    endings = [ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS]
    rows = [Row(path.relative_to(folder).as_posix(), (), where=folder) for path in list_files(folder, *endings)]
    if not rows:
        raise UserError(f'{folder}: contains no photographs', option='data_dir')
    source = Rows.of(Path(os.path.abspath(folder)), folder, rows)
    return Dataset(folder.name, class_names, voc.palette(), None, folder, source, reading=reading)
