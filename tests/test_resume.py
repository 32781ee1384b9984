"""Killed at any moment and started again with the same command, every stage ends with the same bytes.

Each stage runs in a process of its own, forked from a server that has done the imports, and is killed for real.
"""

import fcntl
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import fault_of
from test_pipeline import AFFINITY_LABELS, CAMS, PREDICTIONS, PSEUDO, WALKED, commands
from tools.checkpoint import ModelKeeper
from tools.files import read_maps

from core import InputError
from tools import experiment, stage

STAGES = ('cls', 'cams', 'affinity_labels', 'aff', 'walk', 'pseudo', 'seg', 'predictions')
ALL = (*STAGES, 'evaluate')  # the last one keeps nothing to go on from
FOLDERS = {
    'cams': CAMS,
    'affinity_labels': AFFINITY_LABELS,
    'walk': WALKED,
    'pseudo': PSEUDO,
    'predictions': PREDICTIONS,
}
TRAINERS = ('cls', 'aff', 'seg')
LONGER = ('--max_epoch', '3', '--save_interval', '2')

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['test_pipeline', 'torch.utils.tensorboard'])


def line_of(data, name: str, *more: str) -> list[str]:
    return [*commands(data)[name][1], *(LONGER if name in TRAINERS else ()), *more]


def run_stage(data, name: str, folder: str, more: tuple[str, ...]) -> None:
    """In a child: a stage as its guard runs it."""
    os.chdir(folder)
    torch.set_num_threads(1)
    script = commands(data)[name][0]
    stage.run(script.main, script.parse_args(line_of(data, name, *more)), InputError)


def start(data, name: str, folder, *more: str):
    process = SERVER.Process(target=run_stage, args=(data, name, str(folder), more))
    process.start()
    return process


def finish(data, name: str, folder, *more: str) -> float:
    """Run to the end; the seconds it took."""
    begun = time.monotonic()
    process = start(data, name, folder, *more)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - begun


def contents(folder: Path) -> dict[str, bytes]:
    """Every output that must be the same: all but logs, which tell times."""
    kinds = ('models', 'checkpoints', 'data', 'predictions', 'results')
    paths = [path for kind in kinds for path in (folder / 'experiments' / kind).rglob('*') if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def copy_without(made: Path, target: Path, name: str) -> None:
    """What a stage finds: the outputs of the others."""
    shutil.copytree(made / 'experiments', target / 'experiments')
    remove_output(target, name)


def remove_output(folder: Path, name: str) -> None:
    if name in FOLDERS:
        shutil.rmtree(folder / 'experiments/predictions' / FOLDERS[name])
    if name == 'evaluate':
        shutil.rmtree(folder / 'experiments/results')
    for path in (folder / 'experiments').glob(f'*/{name}.*'):
        path.unlink()
    shutil.rmtree(folder / f'experiments/tensorboards/{name}', ignore_errors=True)


@pytest.fixture(scope='module')
def undisturbed(demo, tmp_path_factory):
    """A directory in which all stages have run to the end, and how long each took."""
    folder = tmp_path_factory.mktemp('undisturbed')
    # Starting the server of processes, with its imports, is no part of what a stage takes.
    first = SERVER.Process(target=int)
    first.start()
    first.join()
    return folder, {name: finish(demo, name, folder) for name in ALL}


def kill_and_go_on(demo, undisturbed, folder, name, kills, seed):
    """Kill a stage so many times, each time after a random part of what it takes, then let it end."""
    made, seconds = undisturbed
    copy_without(made, folder, name)
    moments = random.Random(seed)
    killed = 0
    for _ in range(kills):
        process = start(demo, name, folder)
        process.join(moments.uniform(0.05, 1.0) * seconds[name])
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
    finish(demo, name, folder)
    assert contents(folder) == contents(made)
    return killed


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('kills', [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_stages_end_with_the_same_bytes(demo, undisturbed, tmp_path, name, kills):
    """However often, until so many kills have come before the end (on a machine of a changing load some do not)."""
    killed = 0
    for seed in range(5 * kills):
        (tmp_path / str(seed)).mkdir()
        killed += kill_and_go_on(demo, undisturbed, tmp_path / str(seed), name, 2 + seed % 3, f'{name} {seed}')
        if killed >= kills:
            return
    raise AssertionError(f'only {killed} kills came before the end')


@pytest.mark.parametrize('name', TRAINERS)
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(demo, undisturbed, tmp_path, name, number):
    made, _ = undisturbed
    copy_without(made, tmp_path, name)
    process = start(demo, name, tmp_path)
    checkpoint = tmp_path / f'experiments/checkpoints/{name}.pth'
    while not checkpoint.exists():  # the end of the first epoch: training is under way
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode in (0, 1)  # 0 where the signal came after the last iteration
    finish(demo, name, tmp_path)
    assert contents(tmp_path) == contents(made)


@pytest.mark.parametrize('name', ['cls', 'seg'])
def test_killed_after_the_first_model_and_before_the_first_state(demo, undisturbed, tmp_path, monkeypatch, name):
    copy_without(undisturbed[0], tmp_path, name)
    monkeypatch.chdir(tmp_path)

    def keep_and_be_killed(self, *arguments, keep=ModelKeeper.keep):
        keep(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ModelKeeper, 'keep', keep_and_be_killed)
        again(demo, name, '--save_interval', '1000')
    assert (tmp_path / f'experiments/models/{name}.pth').is_file()
    finish(demo, name, tmp_path)
    assert contents(tmp_path) == contents(undisturbed[0])


def test_workers_change_nothing(demo, undisturbed, tmp_path):
    made, _ = undisturbed
    for name in ('cls', 'cams', 'affinity_labels'):
        finish(demo, name, tmp_path, '--num_workers', '2')
    found, expected = contents(tmp_path), contents(made)
    ignored = {path for path in found if path.endswith('args.json') or path.startswith('experiments/data/')}
    assert {path: found[path] for path in found if path not in ignored} == {
        path: expected[path] for path in found if path not in ignored
    }


# In this process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def at(demo, undisturbed, tmp_path, monkeypatch):
    """A copy of what was made, to change."""
    shutil.copytree(undisturbed[0] / 'experiments', tmp_path / 'experiments')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'experiments'


def again(demo, name: str, *more: str) -> None:
    script = commands(demo)[name][0]
    try:
        script.main(script.parse_args(line_of(demo, name, *more)))
    except SystemExit as end:  # of a trainer that is finished
        assert end.code is None


def refusal(demo, name: str, capsys, *more: str) -> str:
    """The line with which a stage refuses to go on, nothing having changed."""
    before = contents(Path())
    script = commands(demo)[name][0]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        stage.run(script.main, script.parse_args(line_of(demo, name, *more)), InputError)
    assert contents(Path()) == before
    assert '\n' not in ended.value.code
    return ended.value.code


@pytest.mark.parametrize('name', STAGES)
def test_finished_stages_do_nothing(demo, at, capsys, name):
    before = {path: path.stat().st_mtime_ns for path in at.rglob('*.p[nt]*')}
    again(demo, name)
    assert {path: path.stat().st_mtime_ns for path in at.rglob('*.p[nt]*')} == before
    assert ('finished' if name in TRAINERS else '0 of them new') in capsys.readouterr().out


@pytest.mark.parametrize(
    'name, option, value',
    [
        ('cls', 'alpha', '1'),
        ('cls', 'seed', '1'),
        ('aff', 'lr', '0.5'),
        ('seg', 'select', 'last'),
        ('walk', 'image_size', '128'),
        ('pseudo', 'threshold', '0.2'),
    ],
)
def test_other_options_are_refused_by_name(demo, at, capsys, name, option, value):
    line = refusal(demo, name, capsys, f'--{option}', value)
    assert f'{option}: ' in line
    assert value in line
    assert '--overwrite' in line


@pytest.mark.parametrize('name', ['cls', 'cams'])
def test_what_was_made_before_an_option_came_is_still_good(demo, at, capsys, name):
    if name == 'cls':
        path = at / 'checkpoints' / 'cls.pth'
        record = torch.load(path, weights_only=True)
        assert record['identity'].pop('resize') == 'pillow'
        torch.save(record, path)
    else:
        path = at / 'predictions' / CAMS / 'args.json'
        record = json.loads(path.read_text())
        assert record['identity'].pop('resize') == 'pillow'
        path.write_text(json.dumps(record))
    again(demo, name)
    assert ('finished' if name == 'cls' else '0 of them new') in capsys.readouterr().out
    assert 'resize: pillow there, torch now' in refusal(demo, name, capsys, '--resize', 'torch')


def test_overwrite_makes_the_folder_anew(demo, at):
    before = {path: path.stat().st_mtime_ns for path in at.rglob('*') if path.is_file()}
    again(demo, 'pseudo', '--threshold', '0.05', '--overwrite')
    changed = {path for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {path for path in before if path.parent.name == PSEUDO}


def test_another_model_is_refused(demo, at, capsys):
    shutil.copy(at / 'models/cls.last.pth', at / 'models/cls.pth')
    state = torch.load(at / 'models/cls.pth', weights_only=True)
    state['classifier.weight'] += 1
    torch.save(state, at / 'models/cls.pth')
    assert 'model: ' in refusal(demo, 'cams', capsys)


def test_stale_inputs_of_inputs_are_refused(demo, at, capsys):
    """Affinity labels of other CAMs: the folder's name is the same, what is behind it is not."""
    again(demo, 'affinity_labels', '--overwrite')
    again(demo, 'pseudo')
    finishing = commands(demo)['cams'][1]
    assert finishing
    again(demo, 'cams', '--overwrite', '--batch_size', '2')
    assert 'maps: ' in refusal(demo, 'affinity_labels', capsys)
    assert 'cams: ' in refusal(demo, 'walk', capsys)


def test_train_and_train_aug_share_a_folder(demo, at):
    folder = at / 'predictions' / CAMS
    kept = (folder / 'train_00000.npz').stat().st_mtime_ns
    (folder / 'train_00001.npz').unlink()
    again(demo, 'cams', '--domain', 'train')
    assert (folder / 'train_00001.npz').is_file()
    assert (folder / 'train_00000.npz').stat().st_mtime_ns == kept


def test_leftovers_of_killed_writers_go_and_those_of_others_stay(demo, at):
    folder = at / 'predictions' / PSEUDO
    gone = folder / '.train_00000.png.12.tmp'
    stays = [folder / '.train_00000.png.13.tmp', folder / 'notes.txt']
    for path in [gone, *stays]:
        path.write_bytes(b'')
    with stays[0].open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as its writer does
        again(demo, 'pseudo')
    assert not gone.exists()
    assert all(path.exists() for path in stays)


def test_leftovers_of_models_go(demo, at):
    gone = [at / kind / '.seg.x.12.tmp' for kind in ('models', 'checkpoints', 'data')]
    for path in gone:
        path.write_bytes(b'half')
    again(demo, 'seg')
    assert not any(path.exists() for path in gone)


@pytest.mark.parametrize('name', FOLDERS)
def test_repair_makes_damaged_files_again(demo, at, capsys, name):
    expected = contents(Path())
    path = sorted((at / 'predictions' / FOLDERS[name]).glob('*_0*'))[1]
    path.write_bytes(path.read_bytes()[:50])
    again(demo, name)
    assert contents(Path()) != expected  # a file that is there is believed
    again(demo, name, '--repair')
    assert contents(Path()) == expected
    assert path.name in capsys.readouterr().out


def test_files_without_args_are_refused(demo, at, capsys):
    (at / 'predictions' / PSEUDO / 'args.json').unlink()
    assert 'without args.json' in refusal(demo, 'pseudo', capsys)


def test_a_model_without_its_state_is_refused(demo, at, capsys):
    (at / 'checkpoints/cls.pth').unlink()
    assert 'pass --overwrite' in refusal(demo, 'cls', capsys)


@pytest.mark.parametrize('damage', [b'', b'PK', None])
def test_a_damaged_state_is_named(demo, at, capsys, damage):
    path = at / 'checkpoints/aff.pth'
    path.write_bytes(path.read_bytes()[:-2000] if damage is None else damage)
    assert 'checkpoints/aff.pth: damaged' in refusal(demo, 'aff', capsys)


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_good(demo, at, capsys):
    before = contents(Path())
    script, line = commands(demo)['cls']
    text = fault_of(script, [*line, '--tag', 'diverging', '--lr', '1e30', '--max_epoch', '3'], capsys)
    assert 'not finite at iteration' in text
    found = contents(Path())
    assert {path: found[path] for path in before} == before


@pytest.mark.parametrize('name', TRAINERS)
def test_weights_that_are_not_finite_are_never_saved(demo, at, capsys, name):
    """Neither at an interval nor at the end of an epoch, though no line of the log has seen the loss yet."""
    script, line = commands(demo)[name]
    options = ['--tag', 'diverging', '--lr', '1e36', '--print_ratio', '1', '--save_interval', '2', '--max_epoch', '1']
    assert 'not finite' in fault_of(script, [*line, *options], capsys)
    assert torch.load(at / 'checkpoints/diverging.pth', weights_only=True)['iteration'] == 0
    for path in [*(at / 'checkpoints').glob('diverging*'), *(at / 'models').glob('diverging*')]:
        state = torch.load(path, weights_only=True)
        state = state['parts']['model'] if path.parent.name == 'checkpoints' else state
        assert all(torch.isfinite(value).all() for value in state.values()), path


def test_a_full_disk_leaves_no_half_file(demo, at, monkeypatch):
    folder = at / 'predictions' / CAMS
    (folder / 'train_00001.npz').unlink()

    class Full(io.FileIO):
        def write(self, content):
            super().write(content[:10])
            raise OSError(28, 'No space left on device', self.name)

    def on_a_full_disk(path, *mode, real=Path.open, **options):
        return Full(path, 'w') if path.name.endswith('.tmp') else real(path, *mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'open', on_a_full_disk)
        with pytest.raises(OSError, match='No space'):
            again(demo, 'cams')
    assert not (folder / 'train_00001.npz').exists()
    assert not list(folder.glob('.*'))
    again(demo, 'cams')
    read_maps(folder / 'train_00001.npz', 'cam', 6)


def test_identities_see_what_matters():
    from argparse import Namespace

    one = experiment.identity_of(Namespace(lr=0.1, num_workers=1), model='a')
    experiment.check_identity('x', one, experiment.identity_of(Namespace(lr=0.1, num_workers=8), model='a'))
    for other in (
        experiment.identity_of(Namespace(lr=0.2, num_workers=1), model='a'),
        experiment.identity_of(Namespace(lr=0.1, num_workers=1), model='b'),
        experiment.identity_of(Namespace(lr=0.1, wd=0, num_workers=1), model='a'),
    ):
        with pytest.raises(Exception, match='made otherwise'):
            experiment.check_identity('x', one, other)
