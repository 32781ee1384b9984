"""Killed at any moment and started again with the same command, every stage ends with the same bytes.

Each stage runs in its own process, forked from a server that has done the imports, and is killed with SIGKILL.
"""

import io
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from core.data.dataset import open_dataset
from support import chain, fault_of, without_seconds
from support.chain import (
    ALL,
    CAMS,
    FOLDERS,
    PSEUDO,
    STAGES,
    again,
    commands,
    contents,
    copy_outputs,
    copy_without,
    finish,
    refused,
    start,
)
from support.folders import record_as_written
from support.programs import held, refusal
from util.store.arrays import read_maps
from util.store.fingerprints import read_args
from util.training.models import BestAndLast
from util.training.run import Run

TRAINERS = chain.TAGS


def kill_and_resume(demo, undisturbed, folder, name, kills, seed):
    """Kill a stage `kills` times, each time after a random part of its duration, then let it end."""
    expected, seconds = undisturbed
    copy_without(expected, folder, name)
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
    assert contents(folder) == contents(expected)
    return killed


# A trainer, a stage with a network and one that forks its workers; the others only if there is time.
KILLED = ('cls', 'cams', 'pseudo')


@pytest.mark.parametrize(
    'name', [name if name in KILLED else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
@pytest.mark.parametrize('kills', [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_stages_end_with_the_same_bytes(demo, undisturbed, tmp_path, name, kills):
    """Repeated until enough kills have come before the end: under a changing load some come too late."""
    killed = 0
    for seed in range(5 * kills):
        (tmp_path / str(seed)).mkdir()
        killed += kill_and_resume(demo, undisturbed, tmp_path / str(seed), name, 2 + seed % 3, f'{name} {seed}')
        if killed >= kills:
            return
    raise AssertionError(f'only {killed} kills came before the end')


@pytest.mark.parametrize(
    'name, number',
    [
        ('cls', signal.SIGTERM),
        ('aff', signal.SIGINT),
        *(pytest.param(name, signal.SIGTERM, marks=pytest.mark.slow) for name in ('aff', 'seg')),
        *(pytest.param(name, signal.SIGINT, marks=pytest.mark.slow) for name in ('cls', 'seg')),
    ],
)
def test_a_signal_saves_and_exits(demo, undisturbed, tmp_path, name, number):
    expected, _ = undisturbed
    copy_without(expected, tmp_path, name)
    process = start(demo, name, tmp_path)
    checkpoint = tmp_path / f'experiments/checkpoints/{name}.pth'
    while not checkpoint.exists():  # written on starting: training is under way
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode in (0, 1)  # 0 where the signal came after the last iteration
    finish(demo, name, tmp_path)
    assert contents(tmp_path) == contents(expected)


@pytest.mark.parametrize('name', [pytest.param('cls', marks=pytest.mark.slow), 'seg'])
def test_killed_after_the_first_model_and_before_its_checkpoint(demo, undisturbed, tmp_path, monkeypatch, name):
    copy_without(undisturbed[0], tmp_path, name)
    monkeypatch.chdir(tmp_path)

    def save_and_be_killed(self, *arguments, save=BestAndLast.save, **meta):
        save(self, *arguments, **meta)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BestAndLast, 'save', save_and_be_killed)
        again(demo, name, '--save_interval', '1000')
    assert (tmp_path / f'experiments/models/{name}.pth').is_file()
    finish(demo, name, tmp_path)
    assert contents(tmp_path) == contents(undisturbed[0])


def be_stopped(run, *score, **pictures):
    raise KeyboardInterrupt


@pytest.mark.parametrize('name', [pytest.param('cls', marks=pytest.mark.slow), 'aff', 'seg'])
def test_stopped_while_an_epoch_is_scored(demo, undisturbed, tmp_path, monkeypatch, name):
    """Nothing of the last batch is left then."""
    copy_without(undisturbed[0], tmp_path, name)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, 'end_epoch', be_stopped)
        again(demo, name)
    finish(demo, name, tmp_path)
    assert contents(tmp_path) == contents(undisturbed[0])


def test_stopped_at_the_end_of_an_epoch_that_has_no_masks(copy, monkeypatch):
    for image_id in open_dataset(copy / 'dataset.json', copy).ids('val'):
        (copy / 'SegmentationClass' / f'{image_id}.png').unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, 'end_epoch', be_stopped)
        again(copy, 'seg', '--overwrite')
    model = Path('experiments/models/seg.pth')
    assert not model.exists()
    again(copy, 'seg')
    assert model.is_file()


def without_options(found: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out the files that contain all options."""
    return {
        path: content
        for path, content in found.items()
        if not path.endswith('args.json') and not path.startswith('experiments/data/')
    }


def test_workers_do_not_change_results(demo, undisturbed, tmp_path):
    for name in ('cls', 'cams', 'affinity_labels'):
        finish(demo, name, tmp_path, '--num_workers', '2')
    found, expected = without_options(contents(tmp_path)), contents(undisturbed[0])
    assert found == {path: expected[path] for path in found}


@pytest.mark.parametrize(
    'name',
    ['cls', 'affinity_labels', *(pytest.param(name, marks=pytest.mark.slow) for name in ('cams', 'predictions'))],
)
def test_killed_stages_with_workers_resume_at_once(demo, undisturbed, tmp_path, name):
    """Their workers end with them, and the lock is free."""
    copy_without(undisturbed[0], tmp_path, name)
    folder = 'checkpoints' if name in TRAINERS else f'predictions/{FOLDERS[name]}'
    pattern = f'{name}.pth' if name in TRAINERS else '*_*'
    process = start(demo, name, tmp_path, '--num_workers', '2')
    while not list((tmp_path / 'experiments' / folder).glob(pattern)):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    finish(demo, name, tmp_path, '--num_workers', '2')
    assert without_options(contents(tmp_path)) == without_options(contents(undisturbed[0]))


# A stage with a network and one that forks; the others under -m slow.
SOME_FOLDERS = [x if x in ('cams', 'pseudo') else pytest.param(x, marks=pytest.mark.slow) for x in FOLDERS]

# In this process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def experiments(demo, undisturbed, tmp_path, monkeypatch):
    """A copy of all outputs; tests may change it."""
    copy_outputs(undisturbed[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'experiments'


@pytest.mark.parametrize('name', STAGES)
def test_finished_stages_do_nothing(demo, experiments, capsys, name):
    before = {path: path.stat().st_mtime_ns for path in experiments.rglob('*.p[nt]*')}
    again(demo, name)
    assert {path: path.stat().st_mtime_ns for path in experiments.rglob('*.p[nt]*')} == before
    assert ('finished' if name in TRAINERS else '0 of them new') in capsys.readouterr().out


@pytest.mark.parametrize(
    'name, option, value',
    [
        ('cls', 'alpha', '1'),
        ('cls', 'seed', '1'),
        ('aff', 'lr', '0.5'),
        ('seg', 'select', 'last'),
        ('random_walk', 'image_size', '128'),
        ('pseudo', 'threshold', '0.2'),
    ],
)
def test_other_options_are_refused(demo, experiments, capsys, name, option, value):
    line = refused(demo, name, capsys, f'--{option}', value)
    assert f' exists with different settings ({option}: ' in line
    assert f', requested {value}' in line
    assert '--overwrite' in line


@pytest.mark.parametrize('name', ['cls', 'cams'])
def test_an_option_that_came_after_an_output_has_its_default(demo, experiments, capsys, name):
    """The output resumes and keeps the fingerprint of its first command; other values are refused."""
    if name == 'cls':
        path = experiments / 'checkpoints' / 'cls.pth'
        record = torch.load(path, weights_only=True)
        assert record['fingerprint'].pop('resize') == 'pillow'
        torch.save(record, path)
    else:
        path = experiments / 'predictions' / CAMS / 'args.json'
        record = json.loads(path.read_text())
        assert record['fingerprint'].pop('resize') == 'pillow'
        path.write_text(json.dumps(record))
        (path.parent / 'train_00001.npz').unlink()
    before = without_seconds(path)
    assert '(resize: pillow, requested torch)' in refused(demo, name, capsys, '--resize', 'torch')
    again(demo, name)
    assert without_seconds(path) == before


@pytest.mark.parametrize('name', SOME_FOLDERS)
def test_options_that_change_no_result_resume_and_are_recorded(demo, experiments, name):
    folder = experiments / 'predictions' / FOLDERS[name]
    removed = sorted(folder.glob('*_0*'))[1]
    expected = removed.read_bytes()
    removed.unlink()
    before = read_args(folder)
    again(demo, name, '--num_workers', '1')
    assert removed.read_bytes() == expected
    record = read_args(folder)
    assert record['fingerprint'] == before['fingerprint']
    assert (before['options']['num_workers'], record['options']['num_workers']) == (0, 1)
    assert record['history'] == [{'options': before['options'], 'versions': before['versions']}]
    again(demo, name, '--num_workers', '1')
    assert read_args(folder) == record


@pytest.mark.parametrize('name', SOME_FOLDERS)
def test_folder_without_outputs_starts_with_any_settings(demo, experiments, name):
    folder = experiments / 'predictions' / FOLDERS[name]
    for path in folder.glob('*_0*'):
        path.unlink()
    record = read_args(folder)
    (folder / 'args.json').write_text(json.dumps({**record, 'fingerprint': {**record['fingerprint'], 'lr': 1}}))
    again(demo, name)
    assert {**read_args(folder), 'seconds': record['seconds']} == record


@pytest.mark.parametrize(
    'name', [x if x in KILLED else pytest.param(x, marks=pytest.mark.slow) for x in (*FOLDERS, *TRAINERS)]
)
def test_second_process_is_refused(demo, experiments, capsys, name):
    """Also with --overwrite, which removes nothing."""
    if name in TRAINERS:
        lock, what = experiments / f'checkpoints/.{name}.lock', f'the run {name}'
    else:
        path = Path('experiments/predictions', FOLDERS[name])
        lock, what = path / '.lock', path
    with held(lock.absolute()) as process:
        for more in ((), ('--overwrite',)):
            assert re.fullmatch(f'.*: error: {refusal(what, process)}', refused(demo, name, capsys, *more))
    again(demo, name)


def test_overwrite_regenerates_the_folder(demo, experiments):
    folder = experiments / 'predictions' / PSEUDO
    before = {path: path.stat().st_mtime_ns for path in experiments.rglob('*') if path.is_file()}
    again(demo, 'pseudo', '--threshold', '0.05', '--overwrite')
    changed = {path for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed - {folder / '.lock', experiments / 'cache/files.json'} == {
        path for path in folder.iterdir() if path.name != '.lock'
    }


def test_another_model_is_refused(demo, experiments, capsys):
    content = torch.load(experiments / 'models/cls.pth', weights_only=True)
    content['model']['classifier.weight'] += 1
    torch.save(content, experiments / 'models/cls.pth')
    assert 'models/cls.pth: is not as recorded' in refused(demo, 'cams', capsys)


def test_stale_inputs_of_inputs_are_refused(demo, experiments, capsys):
    """Affinity labels of other CAMs: their folder has the same name but other inputs."""
    again(demo, 'affinity_labels', '--overwrite')
    again(demo, 'pseudo')
    again(demo, 'cams', '--overwrite', '--resize', 'torch')
    assert 'the folder of --experiment_name changed' in refused(demo, 'affinity_labels', capsys)
    assert 'changed; run make_affinity_labels.py again' in refused(demo, 'random_walk', capsys)


def test_train_and_train_aug_share_a_folder(demo, experiments):
    folder = experiments / 'predictions' / CAMS
    kept = (folder / 'train_00000.npz').stat().st_mtime_ns
    (folder / 'train_00001.npz').unlink()
    again(demo, 'cams', '--domain', 'train')
    assert (folder / 'train_00001.npz').is_file()
    assert (folder / 'train_00000.npz').stat().st_mtime_ns == kept


@pytest.mark.parametrize('name', FOLDERS)
def test_leftovers_of_killed_writers_are_removed(demo, experiments, name):
    folder = experiments / 'predictions' / FOLDERS[name]
    leftover, other = folder / '.0123456789abcdef.12.tmp', folder / 'notes.txt'
    for path in (leftover, other):
        path.write_bytes(b'')
    again(demo, name)
    assert not leftover.exists()
    assert other.exists()


@pytest.mark.parametrize('name', SOME_FOLDERS)
def test_files_that_are_not_as_recorded_are_made_again(demo, experiments, capsys, name):
    """And nothing else: an edited file, one of another image, and one that is damaged."""
    expected, paths = contents(Path()), sorted((experiments / 'predictions' / FOLDERS[name]).glob('*_0*'))
    paths[0].write_bytes(paths[0].read_bytes() + b' ')
    paths[1].write_bytes(paths[2].read_bytes() + b'.')  # predictions may be equal
    paths[3].write_bytes(b'')
    before = {path: path.stat().st_mtime_ns for path in paths}
    again(demo, name)
    assert contents(Path()) == expected
    changed = [path for path in paths if path.stat().st_mtime_ns != before[path]]
    assert changed == [paths[0], paths[1], paths[3]]
    assert f': 3 of {len(paths)} files are not as recorded ({paths[0].name}, ' in capsys.readouterr().err


@pytest.mark.parametrize('name', SOME_FOLDERS)
def test_repair_regenerates_damaged_files(demo, experiments, capsys, name):
    expected = contents(Path())
    path = sorted((experiments / 'predictions' / FOLDERS[name]).glob('*_0*'))[1]
    path.write_bytes(path.read_bytes()[:50])
    record_as_written(path.parent)
    again(demo, name)
    assert path.stat().st_size == 50  # existing files are not read
    capsys.readouterr()
    again(demo, name, '--repair')
    found, arguments = contents(Path()), f'experiments/predictions/{FOLDERS[name]}/args.json'
    history = json.loads(found.pop(arguments))['history']
    assert [entry['options']['repair'] for entry in history] == [False]
    assert found == {name: content for name, content in expected.items() if name != arguments}
    assert f'regenerating: {path.relative_to(Path.cwd())}: ' in capsys.readouterr().out


def test_files_without_args_are_refused(demo, experiments, capsys):
    (experiments / 'predictions' / PSEUDO / 'args.json').unlink()
    assert 'contains files but no valid args.json' in refused(demo, 'pseudo', capsys)


def test_model_without_its_checkpoint_is_refused(demo, experiments, capsys):
    (experiments / 'checkpoints/cls.pth').unlink()
    assert 'pass --overwrite' in refused(demo, 'cls', capsys)


@pytest.mark.parametrize('damage', [b'', b'PK', None])
def test_damaged_checkpoint_is_named(demo, experiments, capsys, damage):
    path = experiments / 'checkpoints/aff.pth'
    path.write_bytes(path.read_bytes()[:-2000] if damage is None else damage)
    assert 'checkpoints/aff.pth: damaged' in refused(demo, 'aff', capsys)


def test_loss_that_is_not_finite_ends_the_run_and_harms_no_other(demo, experiments, capsys):
    before = contents(Path())
    script, line = commands(demo)['cls']
    text = fault_of(script, [*line, '--tag', 'diverging', '--lr', '1e30', '--max_epoch', '3'], capsys)
    assert 'not finite at iteration' in text
    found = contents(Path())
    assert {path: found[path] for path in before} == before


@pytest.mark.parametrize('name', TRAINERS)
def test_weights_that_are_not_finite_are_never_saved(demo, experiments, capsys, name):
    """Neither at an interval nor at the end of an epoch, though no log line has shown the loss yet."""
    script, line = commands(demo)[name]
    options = ['--tag', 'diverging', '--lr', '1e36', '--print_ratio', '1', '--save_interval', '2', '--max_epoch', '1']
    assert 'non-finite' in fault_of(script, [*line, *options], capsys)
    assert torch.load(experiments / 'checkpoints/diverging.pth', weights_only=True)['iteration'] == 0
    for path in [*(experiments / 'checkpoints').glob('diverging*'), *(experiments / 'models').glob('diverging*')]:
        content = torch.load(path, weights_only=True)
        state = content['state']['model'] if path.parent.name == 'checkpoints' else content['model']
        assert all(torch.isfinite(value).all() for value in state.values()), path


def test_full_disk_leaves_no_partial_file(demo, experiments, monkeypatch):
    folder = experiments / 'predictions' / CAMS
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
    assert {path.name for path in folder.glob('.*')} == {'.lock'}
    again(demo, 'cams')
    read_maps(folder / 'train_00001.npz', 'cam', 6)
