"""evaluate.py in several processes: integer counts added up by the first one, parts of killed commands, refusals."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
from core import UserError
from support import REPOSITORY, run_stage, subprocess_environment, without_seconds
from support.chain import CAMS, PREDICTIONS, as_process, commands
from support.programs import refusal
from util import parts
from util.results import pack, unpack


@pytest.fixture
def results(finished, tmp_path, monkeypatch):
    """The folder of the results, without the results; predictions are those of all stages."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / 'experiments/predictions', tmp_path / 'experiments/predictions')
    return Path('experiments/results')


def line_of(data, folder, *more) -> list[str]:
    words = commands(data)['evaluate'][1]
    words[words.index('--experiment_name') + 1] = folder
    words[words.index('--domain') + 1] = 'val' if folder == PREDICTIONS else 'train'
    return [*words, *more]


def score_in(monkeypatch, count, line) -> None:
    """Run the processes one after the other, the first one last."""
    for rank in range(count - 1, -1, -1):
        as_process(monkeypatch, rank, count)
        run_stage(evaluate, line)


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: without_seconds(path) for path in folder.iterdir() if not path.name.endswith('.lock')}


@pytest.mark.parametrize('count', [2, 5])
@pytest.mark.parametrize(
    'folder, more', [(CAMS, ()), (CAMS, ('--crf_iteration', '1', '--threshold', '0.2')), (PREDICTIONS, ())]
)
def test_processes_write_the_bytes_of_one(demo, results, monkeypatch, capsys, folder, more, count):
    """With 5 processes and 4 images, one has nothing to do."""
    line = line_of(demo, folder, *more)
    run_stage(evaluate, line)
    expected, printed = written(results), capsys.readouterr().out
    for path in results.iterdir():
        path.unlink()
    score_in(monkeypatch, count, line)
    assert capsys.readouterr().out.endswith(printed[printed.index('best mIoU') :])
    assert written(results) == expected
    assert len(list(results.iterdir())) == 3  # with one lock


def test_a_part_of_a_killed_command_is_used_again_if_it_is_the_same(demo, results, monkeypatch):
    calls = []

    def count_pixels(mode, dataset, folder, ids, *more, real=evaluate.count_pixels, **options):
        calls.append(ids)
        return real(mode, dataset, folder, ids, *more, **options)

    monkeypatch.setattr(evaluate, 'count_pixels', count_pixels)
    line = line_of(demo, PREDICTIONS)
    as_process(monkeypatch, 1, 2)
    for times in (1, 1):
        run_stage(evaluate, line)
        assert len(calls) == times
    (part,) = results.glob('.*.2of2.npz')
    part.write_bytes(part.read_bytes()[:99])
    run_stage(evaluate, line)
    assert len(calls) == 2
    run_stage(evaluate, [*line, '--csv', 'a.csv'])
    assert len(calls) == 2 and not Path('a.csv').exists()
    (label,) = Path('experiments/predictions', PREDICTIONS).glob('val_00001.png')
    os.utime(label)
    run_stage(evaluate, line)
    assert len(calls) == 3
    run_stage(evaluate, line_of(demo, CAMS))
    run_stage(evaluate, line_of(demo, CAMS, '--step_th', '0.1'))
    assert len(calls) == 5


def test_the_first_process_waits_for_the_others(demo, results, monkeypatch):
    line = line_of(demo, PREDICTIONS)
    run_stage(evaluate, line)
    expected = written(results)
    env = {**subprocess_environment(), 'RANK': '1', 'LOCAL_RANK': '1', 'WORLD_SIZE': '2'}
    timer = threading.Timer(1, subprocess.run, ([sys.executable, f'{REPOSITORY}/evaluate.py', *line],), {'env': env})
    timer.start()
    as_process(monkeypatch, 0, 2)
    run_stage(evaluate, line)
    timer.join()
    assert written(results) == expected


def test_a_process_that_leaves_no_counts_is_named(demo, results, monkeypatch):
    """Whether it has never come or has counted something else."""
    monkeypatch.setattr(parts, 'PATIENCE', 0.3)
    for more in ((), ('--step_th', '0.1')):
        if more:
            as_process(monkeypatch, 1, 2)
            run_stage(evaluate, line_of(demo, CAMS, *more))
        as_process(monkeypatch, 0, 2)
        with pytest.raises(UserError, match=r'@train.json: process 2 of 2 has left no counts of the same images'):
            run_stage(evaluate, line_of(demo, CAMS))
    assert not list(results.glob('*.json'))


def test_a_second_command_is_refused(demo, results, monkeypatch):
    path = results / f'{PREDICTIONS}@val.json'
    for rank, who in ((0, path), (1, f'{path} (process 2 of 2)')):
        as_process(monkeypatch, rank, 2)
        with parts.claimed(path) as is_first, pytest.raises(UserError) as error:
            assert is_first == (rank == 0)
            run_stage(evaluate, line_of(demo, PREDICTIONS))
        assert re.fullmatch(refusal(who, SimpleNamespace(pid=os.getpid())), str(error.value))


def test_the_first_process_packs_the_upload_alone(demo, results, monkeypatch):
    shutil.copytree(demo, 'data')
    shutil.rmtree('data/SegmentationClass')  # not public
    info = json.loads(Path('data/dataset.json').read_text())
    Path('data/dataset.json').write_text(json.dumps({**info, 'lists': {**info['lists'], 'test': info['lists']['val']}}))
    for rank, uploads in ((1, 0), (0, 1)):
        as_process(monkeypatch, rank, 2)
        run_stage(evaluate, line_of('data', PREDICTIONS, '--domain', 'test'))
        assert len([*results.glob('*.tgz')]) == uploads
    assert not [*results.glob('.*.npz')]


def test_images_without_a_class_round_trip():
    """Such as one whose mask is void everywhere."""
    counts = [np.arange(6 * n, dtype=np.uint32).reshape(2, n, 3) for n in (2, 0, 1, 0)]
    by_image = [(np.arange(n.shape[1]) * 3, n) for n in counts]
    found = unpack(pack(by_image), 4)
    for (classes, pixels), (expected, numbers) in zip(found, by_image, strict=True):
        assert np.array_equal(classes, expected) and np.array_equal(pixels, numbers)


def test_torchrun(demo, results):
    line = line_of(demo, CAMS)
    run_stage(evaluate, line)
    expected = written(results)
    for path in results.iterdir():
        path.unlink()
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    run = subprocess.run(
        [*command, f'{REPOSITORY}/evaluate.py', *line, '--num_workers', '1'],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count('best mIoU') == 1
    assert written(results) == expected
