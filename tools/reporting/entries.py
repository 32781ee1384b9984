"""The entries of a report: output folders by name, with their results, and the data set that they record."""

from argparse import Namespace
from collections import Counter
from functools import cache
from typing import NamedTuple

from core import UserError
from core.data.dataset import Dataset, open_dataset
from core.data.files import fits
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
    label: str = ''  # the title, with the list if there are several

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
        """Whether the folder was written again since it was scored, as far as that is recorded."""
        return self.result is not None and find.is_stale(self.result)

    def on_list_of(self, dataset: Dataset) -> 'Entry':
        """Return this entry on `train` if it was made for `train_aug`, which shares the folder of train."""
        moved = self.domain == 'train_aug' and 'train' in dataset.lists
        return self._replace(domain='train') if moved else self


def find_entries(rows: list[str]) -> list[Entry]:
    """Return the entries that the arguments mean, in the order of the stages. Raises UserError if there is none."""
    found = {}
    for row in rows or ['*']:
        title, _, name = (part.strip() for part in row.rpartition('|'))
        for folder, domain, result in find_outputs(name):
            kind = result['format'] if result else find.format_of(formats.PREDICTIONS / folder).title
            entry = Entry(title, folder, kind, domain, result)
            found.setdefault((folder, domain, entry.crf), entry)
    if not found:
        raise UserError(f'{formats.EXPERIMENTS} contains neither results nor output folders; run the stages first')
    entries = sorted(found.values(), key=lambda entry: (stage_number(entry.kind), entry.domain, entry.folder))
    for what, value_of in (('data set', _dataset_of), ('list of classes', _classes_of)):
        folders = {value: entry.folder for entry in entries[::-1] if (value := value_of(entry))}
        if len(folders) > 1:
            shown = ', '.join(f'{folder} of "{value[:40]}"' for value, folder in [*folders.items()][:-3:-1])
            advice = f'name the outputs of one, such as: python3 -m tools.report {[*folders.values()][-1]}'
            raise UserError(f'a report is of one {what}, these are of {len(folders)} ({shown}): {advice}')
    return entries


def _dataset_of(entry: Entry) -> str | None:
    """Return the name of an entry's data set, None if the recorded data set can no longer be opened."""
    if entry.result:
        return entry.result['dataset']
    options = read_args(formats.PREDICTIONS / entry.folder).get('options', {})
    if not fits(options, {'dataset': str, 'data_dir': str}):
        return None
    try:
        return _name_of(options['dataset'], options['data_dir'])
    except UserError:
        return None


@cache
def _name_of(dataset: str, data_dir: str) -> str:
    return open_dataset(dataset, data_dir).name


def _classes_of(entry: Entry) -> str | None:
    return ', '.join(entry.result['iou']) if entry.result else None


def find_outputs(name: str) -> list[tuple[str, str, dict | None]]:
    """Return (folder, list, result or None) of the results and other output folders that match a name."""
    folders = sorted(path.name for path in formats.PREDICTIONS.glob('[!.]*') if path.is_dir())
    others = [folder for folder in folders if name in ('*', folder) or folder.startswith(f'{name}@')]
    try:
        scored = find.find(name)
    except UserError:
        if not others and name != '*':
            raise
        scored = []
    found = [(result['experiment_name'], result['domain'], result) for result in scored]
    known = {folder for folder, *_ in found}
    for folder in others:
        domain = read_args(formats.PREDICTIONS / folder).get('options', {}).get('domain')
        kind = find.format_of(formats.PREDICTIONS / folder)
        if folder not in known and fits(domain, str) and domain and kind not in (None, *NOT_SCORED):
            found.append((folder, domain, None))
    return found


def stage_number(kind: str) -> int:
    return ORDER.index(kind) if kind in ORDER else len(ORDER)


def name_entries(entries: list[Entry]) -> list[Entry]:
    """Give entries without a title a title that is unique in their list, and give all entries unique labels."""
    short = [entry.title or short_title(entry.kind, entry.folder, entry.crf) for entry in entries]
    used = Counter((title, entry.domain) for title, entry in zip(short, entries, strict=True))
    several = len({entry.domain for entry in entries}) > 1
    named = []
    for entry, title in zip(entries, short, strict=True):
        title = title if used[title, entry.domain] == 1 else f'{entry.kind}{entry.crf}: {entry.folder}'
        named.append(entry._replace(title=title, label=f'{title} on {entry.domain}' if several else title))
    return named


def short_title(kind: str, folder: str, crf: str = '') -> str:
    """Return the kind of a folder and the tag of the run that it is named after."""
    tags = (path.stem for path in (formats.EXPERIMENTS / 'data').glob('*.json'))
    tag = max((tag for tag in tags if folder.startswith(f'{tag}@')), key=len, default=folder)
    return f'{kind}{crf}: {tag}'


def add_recorded_data(parser: flags.Parser) -> None:
    """Add --dataset and --data_dir, which `open_recorded` reads."""
    data = parser.groups['data']
    data.add_argument('--dataset', help='data set, a file or a folder (default: recorded in args.json of the output)')
    data.add_argument('--data_dir', help='folder of the images (default: recorded in args.json of the output)')


def open_recorded(args: Namespace, what: str, *records: dict) -> Dataset:
    """Open the data set of --dataset and --data_dir, by default from the first record that has these options.

    `records` are contents of args.json. Raises UserError naming the flag if none has them.
    """
    given = [record.get('options') for record in records]
    recorded = next((found for found in given if fits(found, {'dataset': str, 'data_dir': str})), {})
    options = {name: getattr(args, name) or recorded.get(name) for name in ('dataset', 'data_dir')}
    for name, value in options.items():
        if value is None:
            raise UserError(f'--{name}: args.json of {what} does not record it: pass it')
    return open_dataset(options['dataset'], options['data_dir'])
