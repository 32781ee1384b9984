"""The entries of a report: output folders by name, with their results, and the data set that they record."""

import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import UserError
from core.data import voc
from core.data.dataset import Dataset, open_dataset
from core.data.files import fits
from core.data.pixels import Reading
from tools.predicting.folder import ROOT, path_of, read_photographs
from tools.predicting.photographs import DOMAIN, make_dataset
from tools.reporting import find
from util import flags
from util.store import formats
from util.store.fingerprints import read_args

# Kinds of steps in the order of the stages; those that are not listed come after them.
ORDER = ('classifier', 'CAM', 'affinity label', 'AffinityNet', 'edge map', 'random-walk CAM', 'pseudo-label')
NOT_SCORED = (formats.AFFINITY_LABEL, formats.EDGE)


class Entry(NamedTuple):
    """An output folder on the images of a list, with its result if it was scored."""

    title: str
    folder: str
    kind: str
    domain: str
    result: dict | None
    pattern: str = ''  # the NAME that found it, if it has a *
    given: str = ''  # the title that the argument has
    label: str = ''  # the title, with the list if there are several

    @property
    def path(self) -> Path:
        return path_of(self.folder, self.kind)

    @property
    def is_photographs(self) -> bool:
        """Whether these are predicted masks of photographs that are in no data set."""
        return self.kind == formats.PREDICTED.title and self.domain == DOMAIN

    @property
    def scores(self) -> dict:
        return self.result or {}

    @property
    def crf(self) -> str:
        """The dense CRF of evaluate.py --crf_iteration, if any."""
        iterations = self.scores.get('crf_iteration')
        return f' + CRF ({iterations})' if iterations else ''

    @property
    def is_stale(self) -> bool:
        """Whether the folder has changed since it was scored, as far as that is recorded."""
        return self.result is not None and find.is_stale(self.result)

    def on_list_of(self, dataset: Dataset) -> 'Entry':
        """Return this entry on `train` if it was made for `train_aug`, which shares the folder of train."""
        moved = self.domain == 'train_aug' and 'train' in dataset.lists
        return self._replace(domain='train') if moved else self


def find_entries(rows: list[str]) -> list[Entry]:
    """Return the entries that the arguments mean, in the order of the stages. Raises UserError if there is none.

    Masks of photographs that are in no data set are left out if there is anything else, unless their path is given.
    """
    found = {}
    for row in rows or ['*']:
        title, _, name = (part.strip() for part in row.rpartition('|'))
        for folder, domain, result in find_outputs(name):
            kind = result['format'] if result else _kind_of(folder)
            entry = Entry(title, folder, kind, domain, result, name if rows and '*' in name else '', title)
            found.setdefault((folder, domain, entry.crf), entry)
    if not found:
        raise UserError(f'{formats.EXPERIMENTS} contains neither results nor output folders; run the stages first')
    entries = sorted(found.values(), key=lambda entry: (stage_number(entry.kind), entry.domain, entry.folder))
    if not any('/' in row for row in rows):
        entries = _without_photographs(entries)
    for what, value_of in (('data set', _dataset_of), ('list of classes', _classes_of)):
        folders = {value: entry.folder for entry in entries[::-1] if (value := value_of(entry))}
        if len(folders) > 1:
            shown = ', '.join(f'{folder} of "{value[:40]}"' for value, folder in [*folders.items()][:-3:-1])
            advice = f'name the outputs of one, such as: python3 -m tools.report {[*folders.values()][-1]}'
            raise UserError(f'a report is of one {what}, these are of {len(folders)} ({shown}): {advice}')
    return entries


def _without_photographs(entries: list[Entry]) -> list[Entry]:
    """Return the entries of data sets, and print what is left out; without entries of data sets, return all."""
    kept = [entry for entry in entries if not entry.is_photographs]
    others = [entry.folder for entry in entries if entry.is_photographs]
    if not kept or not others:
        return entries
    what = f'{len(others)} folders of photographs that are in no data set'
    print(f'left out: {what}; for their page: python3 -m tools.report {others[0]}', file=sys.stderr)
    return kept


def _kind_of(folder: str) -> str:
    found = find.format_of(formats.PREDICTIONS / folder)
    return found.title if found else formats.PREDICTED.title


def _dataset_of(entry: Entry) -> str | None:
    """Return the name of an entry's data set, None if the recorded data set can no longer be opened."""
    if entry.result:
        return entry.result['dataset']
    if entry.is_photographs:
        return DOMAIN
    options = read_args(entry.path).get('options', {})
    if not fits(options, {'dataset': str, 'data_dir': str}):
        return None
    try:
        return _open(options['dataset'], options['data_dir']).name
    except UserError:
        return None


_open = cache(open_dataset)


def _classes_of(entry: Entry) -> str | None:
    if entry.is_photographs:
        found = read_args(entry.path)['fingerprint']
        return ', '.join((*(['background'] if found.get('background', True) else []), *found['classes']))
    return ', '.join(entry.result['iou']) if entry.result else None


def find_outputs(name: str) -> list[tuple[str, str, dict | None]]:
    """Return (folder, list, result or None) of the results and other output folders that match a name."""
    is_path = '/' in name or (not (ROOT / name).is_dir() and Path(name, 'args.json').is_file())
    predicted = list(_find_predicted(name, is_path))
    if predicted and is_path:
        return predicted
    folders = [path.name for path in find.list_folder(formats.PREDICTIONS) if path.is_dir()]
    others = [folder for folder in folders if name in ('*', folder) or folder.startswith(f'{name}@')]
    find.list_folder(find.FOLDER)  # no results are not the same as results that may not be read
    try:
        scored = find.find(name, skip_damaged=True)
    except UserError:
        if not others and not predicted and name != '*':
            raise
        scored = []
    found = [(result['experiment_name'], result['domain'], result) for result in scored]
    known = {folder for folder, *_ in found}
    for folder in others:
        domain = read_args(formats.PREDICTIONS / folder).get('options', {}).get('domain')
        kind = find.format_of(formats.PREDICTIONS / folder)
        if folder not in known and fits(domain, str) and domain and kind not in (None, *NOT_SCORED):
            found.append((folder, domain, None))
    return found + predicted


def _find_predicted(name: str, is_path: bool) -> Iterator[tuple[str, str, None]]:
    """Yield the folders of tools.predict that match a name or a path, on each list of which they have a mask."""
    named = [Path(name)] if is_path else find.list_folder(ROOT)
    for path in named:
        record = read_args(path)
        if record.get('format') != formats.PREDICTED.title or not (is_path or fnmatchcase(path.name, name)):
            continue
        options = record['options']
        if not fits(options, {'dataset': str, 'data_dir': str}):
            yield str(path), DOMAIN, None
            continue
        with suppress(UserError):  # the data set no longer exists
            dataset = _open(options['dataset'], options['data_dir'])
            for domain in dataset.lists:
                again = domain == 'train_aug' and 'train' in dataset.lists
                if not again and any((path / f'{image_id}.png').is_file() for image_id in dataset.ids(domain)):
                    yield str(path), domain, None


def open_photographs(entries: Sequence[Entry]) -> Dataset:
    """Return the data set of the photographs whose predicted masks are in folders of tools.predict.

    Raises UserError if two folders have masks of different photographs under one id.
    """
    paths, records = {}, [(entry, read_photographs(entry.path)) for entry in entries]
    for entry, record in records:
        for image_id, path in record.get('images', {}).items():
            if not (entry.path / f'{image_id}.png').is_file():
                continue
            other = paths.setdefault(image_id, Path(path))
            if os.path.abspath(other) != os.path.abspath(path):
                fault = f'{image_id}.png in {entry.folder} is the mask of {path}, in another folder of {other}'
                raise UserError(f'{fault}: name one folder, such as: python3 -m tools.report {entry.folder}')
    palette = voc.palette()
    colours = np.array(records[0][1].get('palette', palette), np.uint8)
    palette = colours if colours.shape == palette.shape else palette
    first = read_args(entries[0].path)
    found, reading = first['fingerprint'], Reading().completed(first['options'])
    return make_dataset(paths, found['classes'], palette, found.get('background', True), reading)


def stage_number(kind: str) -> int:
    return ORDER.index(kind) if kind in ORDER else len(ORDER)


def name_entries(entries: list[Entry]) -> list[Entry]:
    """Give entries without a title a title that is unique in their list, and give all entries unique labels.

    A title that several entries were given is followed by their seeds or, if these do not tell them apart, folders.
    """
    short = [entry.title or short_title(entry.kind, entry.folder, entry.crf) for entry in entries]
    for more in (_with_seed, _with_folder):
        used = Counter((title, entry.domain) for title, entry in zip(short, entries, strict=True))
        short = [
            title if used[title, entry.domain] == 1 else more(title, entry)
            for title, entry in zip(short, entries, strict=True)
        ]
    several = len({entry.domain for entry in entries}) > 1
    return [
        entry._replace(title=title, label=f'{title} on {entry.domain}' if several else title)
        for title, entry in zip(short, entries, strict=True)
    ]


def _with_seed(title: str, entry: Entry) -> str:
    """Return the title that several entries were given, with the seed of one of them if it is known."""
    if not entry.title or not entry.result:
        return title
    with suppress(UserError):
        return f'{title} (seed {find.seed_of(entry.result)})'
    return title


def _with_folder(title: str, entry: Entry) -> str:
    return f'{entry.title or f"{entry.kind}{entry.crf}"}: {entry.folder}'


def short_title(kind: str, folder: str, crf: str = '') -> str:
    """Return the kind of a folder and the tag of the run that it is named after."""
    tags = (path.stem for path in (formats.EXPERIMENTS / 'data').glob('*.json'))
    folder = Path(folder).name
    tag = max((tag for tag in tags if folder.startswith(f'{tag}@')), key=len, default=folder)
    return f'{kind}{crf}: {tag}'


def add_recorded_data(parser: flags.Parser) -> None:
    """Add the flags of the data set, which `open_recorded` reads."""
    data = parser.groups['data']
    data.add_argument('--dataset', help='data set, a file or a folder (default: recorded in args.json of the output)')
    data.add_argument('--data_dir', help='folder of the images (default: recorded in args.json of the output)')
    for flag in flags.READING:
        parser.add_table([flag._replace(help=flag.help.replace('(default: ', '(default: the recorded flag, or '))])


def open_recorded(args: Namespace, what: str, *records: dict) -> Dataset:
    """Open the data set of the flags, by default from the first record that has --dataset and --data_dir.

    `records` are contents of args.json. Raises UserError naming the flag if none has them.
    """
    given = [record.get('options') for record in records]
    recorded = next((found for found in given if fits(found, {'dataset': str, 'data_dir': str})), {})
    names = ('dataset', 'data_dir', 'window', 'plane')
    options = {name: getattr(args, name) or recorded.get(name) for name in names}
    for name in names[:2]:
        if options[name] is None:
            raise UserError(f'--{name}: args.json of {what} does not record it: pass it')
    return open_dataset(*options.values())


def check_classes(dataset: Dataset, folder: Path, record: dict) -> None:
    """Raise UserError if a folder was made with other classes: its labels would be shown under wrong names.

    `record` is the content of its args.json.
    """
    made_with = record.get('fingerprint', {})
    before = 'background' if made_with.get('background', True) else '', *made_with.get('classes', dataset.class_names)
    if 'classes' in made_with and before != dataset.label_names:
        shown, now = (', '.join(filter(None, names)) for names in (before, dataset.label_names))
        fault = f'its labels are of {shown}, the data set "{dataset.name}" has {now}'
        raise UserError(f'{folder}: {fault}: pass the data set that it was made with')
