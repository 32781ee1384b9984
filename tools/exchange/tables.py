"""The CSV file of a data set with other masks or tags."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from core import IGNORE, UserError
from core.data import voc
from core.data.dataset import Dataset
from tools.exchange.matching import name_of
from tools.exchange.writing import BACKGROUND, IGNORED
from util.store.files import write_bytes, write_json

DOMAINS = ('train_aug', 'train', 'val', 'test')
SPLITS = {('train_aug', 'train'): 'train', ('train_aug',): 'train_aug', ('val',): 'val', ('test',): 'test'}


def check_absent(out: Path, masks: Path) -> None:
    """Raise UserError if a file or folder that would be written exists."""
    for path in (out, out.with_suffix('.json'), masks):
        if path.exists():
            raise UserError(f'{path}: exists: pass another --out')


def list_rows(
    dataset: Dataset, ids: Iterable[str], masks: Mapping[str, str], labels: Mapping[str, list[str]]
) -> list[tuple[str, str, str, str]]:
    """Return the rows of images, with other masks and tags by id where there are any: image, classes, mask, split."""
    lists = {domain: set(dataset.ids(domain)) for domain in dataset.lists}
    rows = []
    for image_id in ids:
        tags = labels.get(image_id, dataset.source.read_tags(image_id))
        mask = masks.get(image_id, dataset.source.row(image_id).mask)
        split = SPLITS[tuple(domain for domain in DOMAINS if image_id in lists.get(domain, ()))]
        rows.append((name_of(dataset, image_id), ';'.join(tags), mask, split))
    return rows


def write_table(path: Path, rows: list[tuple], dataset: Dataset, keeps_values: bool) -> None:
    """Write the CSV file, and before it what the old one's JSON file says of classes, colours and values of masks.

    After an error neither is left.
    """
    text = io.StringIO(newline='')
    csv.writer(text, lineterminator='\n').writerows([('image', 'classes', 'mask', 'split'), *rows])
    entries = {'name': dataset.name, **dataset.class_entries}
    if (dataset.palette != voc.palette()).any():
        entries['palette'] = dataset.palette[dataset.first_label :].tolist()
    if keeps_values and dataset.mask_values:
        names = {0: BACKGROUND, **dict(enumerate(dataset.class_names, 1)), IGNORE: IGNORED}
        shown = '#{:06x}' if dataset.mask_values.are_colours else '{}'
        entries['mask_values'] = {shown.format(value): names[i] for value, i in dataset.mask_values.indices.items()}
    write_json(path.with_suffix('.json'), entries)
    try:
        write_bytes(path, text.getvalue().encode())
    except BaseException:
        path.with_suffix('.json').unlink()
        raise
