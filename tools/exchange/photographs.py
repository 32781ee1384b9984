"""A folder of photographs as a data set: for label maps or labels of images that no CSV lists."""

import os
from pathlib import Path

from PIL import Image

from core import UserError
from core.data import voc
from core.data.dataset import Dataset
from core.data.images import FORMATS, make_image_id
from core.data.table import Row, Table
from tools.exchange.reading import list_files


def open_photographs(folder: Path, class_names: tuple[str, ...]) -> Dataset:
    """Return the images below a folder as a data set without tags. Raises UserError if there are none."""
    endings = [ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS]
    rows: dict[str, Row] = {}
    for path in list_files(folder, *endings):
        name = path.relative_to(folder).as_posix()
        image_id = make_image_id(name)
        if image_id in rows:
            raise UserError(f'{folder}: {rows[image_id].image} and {name} have the same id {image_id!r}: rename one')
        rows[image_id] = Row(len(rows) + 1, name, (), '', 'train', '')
    if not rows:
        raise UserError(f'{folder}: contains no photographs', option='data_dir')
    table = Table(Path(os.path.abspath(folder)), folder, rows, {'train_aug': list(rows), 'train': list(rows)})
    return Dataset(folder.name, class_names, voc.palette(), None, folder, table)
