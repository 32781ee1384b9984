"""Commands that have to end with one line on invalid input, and to leave every existing file as it was."""

import re
import shutil
from pathlib import Path

import pytest

from support.chain import AFFINITY_LABELS, CAMS, FOLDERS, PREDICTIONS, PSEUDO, RANDOM_WALKS, TAGS, commands
from support.folders import record_as_written
from util.script import run as run_script

SHORT = {
    'cams': CAMS,
    'labels': AFFINITY_LABELS,
    'random_walks': RANDOM_WALKS,
    'pseudo': PSEUDO,
    'predictions': PREDICTIONS,
}


def forget(folder: Path, name: str) -> None:
    """Remove the outputs of a stage, so that it has something to do."""
    if name in FOLDERS:
        shutil.rmtree(folder / 'experiments/predictions' / FOLDERS[name], ignore_errors=True)
    for kind in ('models', 'checkpoints'):
        if name in TAGS:
            for path in (folder / 'experiments' / kind).glob(f'{name}.*'):
                path.unlink()


def files_of(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return what changes when a file is written, of every file except logs, which grow, and locks."""
    paths = [
        path for path in folder.rglob('*') if path.is_file() and not {'tensorboards', 'logs', 'cache'} & {*path.parts}
    ]
    found = {path: path.stat() for path in paths if not path.name.endswith('.lock')}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def check_line(data: Path, capsys, name: str, more: str, line: str) -> None:
    """Run a stage on the data and on experiments/ next to it, and compare the line that it ends with.

    The line starts as expected: with the file or the flag at fault and, after any text (*), what to do about it.
    {D} is the folder of the data set, {cams}, {labels}, ... are folders of predictions.
    """
    before = files_of(data.parent)
    script, words = commands(data)[name]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_script(script.main, lambda: script.parse_args([*words, *more.split()]))

    # sys.exit prints a string to stderr and exits with 1; argparse prints its own line and exits with 2.
    if isinstance(ended.value.code, str):
        text = ended.value.code
    else:
        assert ended.value.code == 2
        text = capsys.readouterr().err.removesuffix('\n')
    assert '\n' not in text
    assert 'Traceback' not in text
    names = {'D': str(data), **{key: f'experiments/predictions/{folder}' for key, folder in SHORT.items()}}
    for key, value in names.items():
        line = line.replace(f'{{{key}}}', value)
    pattern = '.*'.join(re.escape(part.strip()) for part in line.split('*'))
    assert re.match(f'[^:]*: error: {pattern}', text), text

    after = files_of(data.parent)
    assert {path: after.get(path) for path in before} == before


def accept(folder: Path) -> None:
    """Let the records of folders say that the files were written as they are, and take models as they are."""
    for record in (folder / 'experiments/predictions').glob('*/files.json'):
        record_as_written(record.parent)
    for path in [*(folder / 'experiments/data').glob('*.json'), *(folder / 'experiments/checkpoints').glob('*.pth')]:
        path.unlink()
