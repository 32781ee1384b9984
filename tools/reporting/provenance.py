"""The history of an output folder: the folders and training runs upstream of it, and whether they have changed.

Reads args.json of folders and data/{tag}.json of runs. No torch: tools.report forks.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from core import UserError
from core.data.dataset import Dataset
from tools.predicting.folder import path_of
from tools.reporting import find
from util.store import fingerprints
from util.store.current import find_outdated, identity
from util.store.fingerprints import read_args
from util.store.formats import EXPERIMENTS, PREDICTIONS, run_path

RUNS = {'Classifier': 'classifier', 'AffinityNet': 'AffinityNet'}  # by network
SEGMENTER = 'segmentation network'  # any other
FILES = ('weights', 'model', 'affinity')  # options that are model files
KINDS = (*RUNS.values(), SEGMENTER)
NAMES = ('seed', 'tag', 'experiment_name', 'cam_dir', 'label_name', 'model_name')  # what seeds may differ in


class Step(NamedTuple):
    """An output folder, or a training run."""

    kind: str  # one of KINDS, or the title of a format
    name: str  # name of the folder, or tag of the run
    options: dict
    settings: dict  # what the files depend on: options and inputs
    versions: dict
    seconds: float | None  # None: unknown
    curves: dict[str, list]  # [step, value] points by name; {} for a folder

    @property
    def is_run(self) -> bool:
        return self.kind in KINDS

    @property
    def path(self) -> Path:
        return run_path(self.name) if self.is_run else path_of(self.name, self.kind)


def read_folder(name: str, kind: str = 'output') -> Step:
    """Return the step of an output folder. Without a valid args.json it has this kind, and its options are {}."""
    record = read_args(path_of(name, kind))
    return Step(record.get('format', kind), name, *_common(record), {})


def read_run(tag: str) -> Step | None:
    """Return the step of a training run, None if it has not finished an epoch here."""
    record = fingerprints.read_run(tag)
    if not {'network', 'curves'} <= record.keys():
        return None
    return Step(RUNS.get(record['network'], SEGMENTER), tag, *_common(record), record['curves'])


def _common(record: dict) -> tuple[dict, dict, dict, float | None]:
    return *(record.get(name, {}) for name in ('options', 'fingerprint', 'versions')), record.get('seconds')


def trace(folders: Mapping[str, str]) -> list[Step]:
    """Return all steps that led to output folders (kinds by name), each one once, inputs before outputs.

    Steps upstream that no longer exist are left out.
    """
    steps: dict[tuple[bool, str], Step] = {}

    def visit(step: Step | None) -> None:
        if step is None or (step.is_run, step.name) in steps:
            return
        steps[step.is_run, step.name] = step  # already here in case of a loop; moved to its place below
        named = [(option, value) for option, value in step.options.items() if isinstance(value, str)]
        for option, value in [*named, *(('cam_dir', name) for name in step.options.get('cam_dirs', []))]:
            if option in ('experiment_name', 'cam_dir', 'label_name') and (PREDICTIONS / value).is_dir():
                visit(read_folder(value))
            elif option == 'model_name' or (option == 'tag' and not step.is_run):
                visit(read_run(value))
            elif option in FILES and Path(value).parent == EXPERIMENTS / 'models':
                visit(read_run(Path(value).name.removesuffix('.pth')))
        steps[step.is_run, step.name] = steps.pop((step.is_run, step.name))

    for name, kind in folders.items():
        visit(read_folder(name, kind))
    return list(steps.values())


def check_mean(results: Sequence[dict]) -> None:
    """Raise UserError naming two results whose mean would mix stages, or settings other than the seed."""
    find.check_stage(results)
    chains = {}
    for result in results:
        steps = trace({result['experiment_name']: result['format']})
        chains[result['name']] = {
            f'{step.kind}: {name}': value for step in steps for name, value in common_settings(step.settings).items()
        }
    check_equal(chains)


def common_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Return what the runs of several seeds have in common: neither names nor hashes of what they made."""
    is_hash = re.compile('[0-9a-f]{64}').fullmatch
    return {name: value for name, value in settings.items() if name not in NAMES and not is_hash(str(value))}


def check_equal(settings: Mapping[str, Mapping[str, object]]) -> None:
    """Raise UserError naming a run that has other settings than the first one; settings by name of the run."""
    (first, expected), *others = settings.items()
    for name, found in others:
        for what in sorted(expected.keys() & found.keys()):
            if found[what] != expected[what]:
                values = ' and '.join(str(value)[:40] for value in (expected[what], found[what]))
                raise UserError(f'{first} and {name} cannot be in one row: {what} is {values}; use a narrower pattern')


def warn_if_outdated(outputs: Iterable[Path], results: Iterable[dict] = (), dataset: Dataset | None = None) -> None:
    """Print a warning if inputs of folders or model files have changed, or if folders have since they were scored."""
    try:
        line = find_outdated(outputs, dataset)
    except UserError as error:  # of a damaged record; what was scored is printed all the same
        line = str(error)
    stale = next((result['name'] for result in results if find.is_stale(result)), None)
    if line is None and stale:
        line = f'{stale}: its folder has changed since it was scored; run evaluate.py again'
    if line:
        print(f'warning: {line}', file=sys.stderr)


@contextmanager
def unchanged(folders: Iterable[Path]) -> Iterator[None]:
    """Raise UserError on leaving if a folder was written again in the meantime: what was read would be a mixture."""
    before = {path: identity(path) for path in folders}
    yield
    for path, known in before.items():
        if identity(path) != known:
            raise UserError(f'{path}: was written again while it was read: run the same command once more')
