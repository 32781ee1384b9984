"""A signal ends a stage within a second wherever it comes, leaves nothing behind, and the same command completes it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import subprocess_environment
from support.chain import FOLDERS, commands, contents, copy_without
from support.programs import run_program, start_program
from util.store.locks import is_held

WORKERS = ('--num_workers', '2')
PATIENCE = 10  # seconds for a signal to be heard: one second alone on the machine, tests share it


def words_of(demo, name: str, *more: str) -> list[str]:
    script, line = commands(demo)[name]
    return [script.__file__, *line, *more]


def children_of(process: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    found = Path(f'/proc/{process}/task/{process}/children')
    children = [int(child) for child in found.read_text().split()] if found.exists() else []
    return children + [grandchild for child in children for grandchild in children_of(child)]


def is_running(process: int) -> bool:
    try:
        return Path(f'/proc/{process}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def listens(process: int) -> bool:
    """Return whether a process has a handler for SIGTERM."""
    status = Path(f'/proc/{process}/status')
    caught = next(line for line in status.read_text().splitlines() if line.startswith('SigCgt:'))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def wait_until(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def stop(words: list[str], folder: Path, delay: float, number: int, log: Path) -> int | None:
    """Run a program, send a signal after a delay, and return its status; None if it had ended before."""
    with log.open('w') as output:
        process = start_program(words, output.fileno(), output.fileno(), folder)
        process.join(delay)
        if not process.is_alive():
            return None
        children = children_of(process.pid)
        os.kill(process.pid, number)
        children += children_of(process.pid)
        process.join(PATIENCE)
        assert not process.is_alive(), 'the signal was not heard'
    until = time.monotonic() + 3
    while any(map(is_running, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, children)), 'workers were left'
    return process.exitcode


@pytest.mark.parametrize('count', [4, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', ['cams', 'affinity_labels', 'pseudo'])
def test_signals_at_random_moments(demo, undisturbed, tmp_path, name, count):
    """Stages 2, 3 and 6 with two workers: a status, no traceback, no lock, no orphan, the same bytes."""
    expected, _ = undisturbed
    copy_without(expected, tmp_path, name)
    folder, log = tmp_path / 'experiments/predictions' / FOLDERS[name], tmp_path / 'log.txt'
    words, moments = words_of(demo, name, *WORKERS), random.Random(f'{name} {count}')
    run_program([*words, '--overwrite'], tmp_path)  # how long it takes
    begun = time.monotonic()
    run_program([*words, '--overwrite'], tmp_path)
    seconds = time.monotonic() - begun
    for _ in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        number = moments.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        status = stop(words, tmp_path, moments.uniform(0, seconds), number, log)
        text = log.read_text()
        if folder.exists():  # before, it may not be a program yet; -number: while Python shuts down
            assert status in (None, 0, 128 + number, -number), (status, text)
            assert 'Traceback' not in text and 'Exception ignored' not in text, text
            assert not is_held(folder / '.lock')
    finished = run_program(words, tmp_path)
    assert finished.returncode == 0, finished.stderr
    found, wanted = ({k: v for k, v in contents(f).items() if FOLDERS[name] in k} for f in (tmp_path, expected))
    assert without_options(found) == without_options(wanted)


def without_options(found: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in found.items() if not path.endswith(('args.json', '.lock'))}


def test_shards_that_are_stopped_leave_no_lock(demo, undisturbed, tmp_path):
    """A shard that gets SIGTERM ends at once, and the other one goes on."""
    expected, _ = undisturbed
    copy_without(expected, tmp_path, 'affinity_labels')
    moments = random.Random(3)
    for round_ in range(3):
        log = tmp_path / f'{round_}.txt'
        first, second = (words_of(demo, 'affinity_labels', *WORKERS, '--shard', f'{i}/2') for i in (1, 2))
        with log.open('w') as output:
            other = start_program(second, output.fileno(), output.fileno(), tmp_path)
            stop(first, tmp_path, moments.uniform(0, 1.5), signal.SIGTERM, tmp_path / 'stopped.txt')
            other.join(60)
        assert other.exitcode == 0, log.read_text()
    finished = run_program(words_of(demo, 'affinity_labels'), tmp_path)
    assert finished.returncode == 0, finished.stderr
    labels = FOLDERS['affinity_labels']
    found, wanted = ({k: v for k, v in contents(f).items() if labels in k} for f in (tmp_path, expected))
    assert without_options(found) == without_options(wanted)


BROKEN = """
import sys
sys.argv = sys.argv[1:]
import {module} as script
from core.data.dataset import Dataset
from util.script import run

def fail(self, image_id):
    raise ZeroDivisionError('a bug')

{patch}
run(script.main, script.parse_args)
"""


@pytest.mark.parametrize(
    'name',
    [
        'cls',
        'cams',
        'affinity_labels',
        *(pytest.param(name, marks=pytest.mark.slow) for name in ('random_walk', 'pseudo', 'predictions')),
    ],
)
@pytest.mark.parametrize('where', ['in a worker', 'outside'])
def test_unexpected_errors_end_the_process(demo, undisturbed, tmp_path, name, where):
    """Also while loader workers or forked workers live."""
    copy_without(undisturbed[0], tmp_path, name)
    script, line = commands(demo)[name]
    patch = 'Dataset.read_image = fail'
    if where == 'outside':
        patch = 'import util.script\nutil.script.print = fail'
        patch += '\nimport util.store.folders, util.training.run\n'
        patch += 'util.store.folders.Folder.summary = lambda self: 1 / 0\n'
        patch += 'util.training.run.Run.step = lambda self, *a, **b: 1 / 0'
    program = BROKEN.format(module=script.__name__, patch=patch)
    ended = run_program(['-c', program, script.__file__, *line, *WORKERS], tmp_path, timeout=60)
    assert ended.returncode == 1


def test_an_error_of_a_loader_ends_an_interpreter(tmp_path):
    program = (
        'import sys; sys.argv = ["x"]\n'
        'from argparse import Namespace\n'
        'import torch\n'
        'from util.script import run\n'
        'from util.training.loaders import ordered_loader\n'
        'class Samples(torch.utils.data.Dataset):\n'
        '    def __len__(self): return 8\n'
        '    def __getitem__(self, i): return torch.zeros(3) if i < 5 else 1 / 0\n'
        'def main(args):\n'
        '    for batch in ordered_loader(Samples(), 1, 1, torch.device("cpu")): pass\n'
        'run(main, Namespace)\n'
    )
    ended = subprocess.run(
        [sys.executable, '-c', program], env=subprocess_environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1


def test_a_process_that_waits_for_the_others_hears_a_signal(demo, tmp_path):
    """Of two processes only one is started: it waits for the other until SIGTERM ends it."""
    script, line = commands(demo)['cls']
    where = {'RANK': 1, 'LOCAL_RANK': 1, 'WORLD_SIZE': 2, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': 29599}
    environment = {**subprocess_environment(), **{name: str(value) for name, value in where.items()}}
    with (tmp_path / 'log').open('w') as output:
        process = start_program([script.__file__, *line], output.fileno(), output.fileno(), tmp_path, environment)
        wait_until(lambda: listens(process.pid))
        process.join(0.5)
        assert process.is_alive()
        process.terminate()
        process.join(PATIENCE)
    assert process.exitcode == 143
