"""What led to an output folder: the folders and training runs upstream of it, with the options that made them.

Reads args.json of folders and data/{tag}.json of runs. No torch: tools.report forks.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from util.artifacts import EXPERIMENTS, PREDICTIONS, format_of, read_args

RUNS = {'num_pieces': 'classifier', 'radius': 'AffinityNet', 'backbone': 'segmentation network'}  # by an own option


class Step(NamedTuple):
    """An output folder, or a training run."""

    kind: str  # a value of RUNS or the title of a format
    name: str  # of the folder, or the tag
    options: dict
    versions: dict
    seconds: float | None  # None: written by a version that did not record it
    curves: dict[str, list]  # [step, value] points by name; {} for a folder

    @property
    def is_run(self) -> bool:
        return self.kind in RUNS.values()

    @property
    def path(self) -> Path:
        return EXPERIMENTS / 'data' / f'{self.name}.json' if self.is_run else PREDICTIONS / self.name


def read_folder(name: str) -> Step:
    """Return the step of an output folder. Its options are {} if its args.json is missing or damaged."""
    record = read_args(PREDICTIONS / name)
    return Step(format_of(name).title, name, *_common(record), {})


def read_run(tag: str) -> Step | None:
    """Return the step of a training run, None if it has not finished an epoch here."""
    path = EXPERIMENTS / 'data' / f'{tag}.json'
    try:
        record = json.loads(path.read_text())
        options, versions, seconds = _common(record)
        kind = next(kind for option, kind in RUNS.items() if option in options)
        return Step(kind, tag, options, versions, seconds, dict(record['curves']))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None


def _common(record: dict) -> tuple[dict, dict, float | None]:
    return record.get('options', {}), record.get('versions', {}), record.get('seconds')


def trace(names: Iterable[str]) -> list[Step]:
    """Return everything that led to some output folders, each step once, inputs before what was made from them.

    Steps that no longer exist are left out.
    """
    steps: dict[tuple[bool, str], Step] = {}

    def visit(step: Step | None) -> None:
        if step is None or (step.is_run, step.name) in steps:
            return
        steps[step.is_run, step.name] = step  # already here in case of a loop; moved to its place below
        for option, value in step.options.items():
            if not isinstance(value, str):
                continue
            if option in ('experiment_name', 'cam_dir', 'label_name') and (PREDICTIONS / value).is_dir():
                visit(read_folder(value))
            elif option == 'model_name' or (option == 'tag' and not step.is_run):
                visit(read_run(value))
            elif option == 'weights' and Path(value).parent == EXPERIMENTS / 'models':
                visit(read_run(Path(value).name.removesuffix('.pth')))
        steps[step.is_run, step.name] = steps.pop((step.is_run, step.name))

    for name in names:
        visit(read_folder(name))
    return list(steps.values())
