"""Fixtures: a small drawn data set, the outputs of all nine stages on it, an empty working directory."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from support import chain, made_once, run_stage
from support.made_outputs import make_experiment
from tools import make_demo_data
from util import signals

# pytest-xdist runs one process per core: more threads would only wait for one another.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def signals_of_their_own() -> Iterator[None]:
    """Tests call the main functions of scripts, and send signals to their process; the next test does not hear them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope='session')
def demo(tmp_path_factory) -> Path:
    """A drawn data set of 64 pixels: 12 images in train_aug, 6 of them also in train, and 4 in val."""

    def draw(folder):
        sizes = '--num_train_aug 12 --num_train 6 --num_val 4 --size 64 --seed 5 --num_workers 1'
        make_demo_data.main(make_demo_data.parse_args(['--out', 'set', *sizes.split()]))

    return made_once(tmp_path_factory, 'demo', draw) / 'set'


@pytest.fixture(scope='session')
def experiment(demo, tmp_path_factory) -> Path:
    """A working directory with the outputs of all stages on the drawn set, made from its masks, and their results.

    The runs are my@puzzle, my@affinity and my@deeplab. Nothing is random; no test may write into experiments/ there.
    """
    return made_once(tmp_path_factory, 'experiment', lambda folder: make_experiment(demo))


@pytest.fixture(scope='session')
def finished(demo, tmp_path_factory) -> Path:
    """A working directory in which all nine stages have run; no test may write into it."""

    def run_all(folder):
        for script, line in chain.commands(demo).values():
            run_stage(script, line)

    return made_once(tmp_path_factory, 'finished', run_all)


@pytest.fixture(scope='session')
def undisturbed(demo, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """A directory in which all stages have run to the end, trainers for longer, and the seconds that each took."""

    def run_all(folder):
        chain.start_server()  # its imports do not count
        seconds = {name: chain.finish(demo, name, folder) for name in chain.ALL}
        (folder / 'seconds.json').write_text(json.dumps(seconds))

    folder = made_once(tmp_path_factory, 'undisturbed', run_all)
    return folder, json.loads((folder / 'seconds.json').read_text())


@pytest.fixture
def experiments(finished, monkeypatch) -> Path:
    """The experiments/ of all stages in the working directory; tests only read it."""
    monkeypatch.chdir(finished)
    return finished / 'experiments'


@pytest.fixture
def copy(finished, demo, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the data, next to a copy of all outputs in the working directory; tests may damage both.

    The largest files are links (`chain.copy_outputs`): a test that writes into one unlinks it first.
    """
    large = {path: path.stat().st_mtime_ns for path in finished.rglob('seg*.pth')}
    chain.copy_outputs(finished, tmp_path)
    monkeypatch.chdir(tmp_path)
    yield shutil.copytree(demo, tmp_path / 'data')
    assert {path: path.stat().st_mtime_ns for path in large} == large, 'a link was written into'


@pytest.fixture
def in_tmp(tmp_path, monkeypatch) -> Path:
    """An empty working directory, which will hold the experiments/ of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
