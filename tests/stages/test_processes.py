"""Several processes against one: trainers step by step, scoring, resuming, failures. gloo, small networks.

Two and four processes start once for all tests of this file; each task gives them the environment that torchrun would.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import train_affinitynet
import train_classification_with_puzzle
import train_segmentation
from core import UserError
from core.data.torch_datasets import ImageDataset
from core.models.backbones import BACKBONES, Backbone
from support import REPOSITORY, run_stage, subprocess_environment
from support.chain import commands
from support.networks import Tiny, labels_of, synchronise_on_cpus
from support.programs import SERVER, free_port, held, refusal, served
from tools import check_dataset, report
from util import launcher, script, signals
from util.parallel import batch, processes
from util.store.fingerprints import Record
from util.training.loaders import gather_rows, ordered_loader, training_loader
from util.training.run import Run

NO_OPTIONS = Record({}, {}, {})
SCRIPTS = {'cls': train_classification_with_puzzle, 'aff': train_affinitynet, 'seg': train_segmentation}


# Groups of processes ------------------------------------------------------------------------------------------------


def serve(rank: int, count: int, pipe) -> None:
    """Call what comes through the pipe, as process `rank` of `count`; send back what it returns, or its error."""
    torch.set_num_threads(1)
    while True:
        port, folder, function, arguments = pipe.recv()
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
        os.environ.update(MASTER_ADDR='localhost', MASTER_PORT=str(port))
        os.chdir(folder)
        signals.listen()  # a test before may have sent one
        try:
            pipe.send((function(*arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
        processes.end()


class Group:
    """So many processes that call a function together."""

    def __init__(self, count: int):
        pipes = [SERVER.Pipe() for _ in range(count)]
        self.pipes = [ours for ours, _ in pipes]
        self.members = [served(serve, i, count, pipes[i][1], daemon=True) for i in range(count)]
        for member in self.members:
            member.start()

    def __call__(self, folder: Path, function, *arguments) -> list:
        port = free_port()
        for pipe in self.pipes:
            pipe.send((port, str(folder), function, arguments))
        answers = [pipe.recv() for pipe in self.pipes]
        assert [error for _, error in answers if error] == []
        return [result for result, _ in answers]

    def stop(self) -> None:
        for member in self.members:
            member.kill()


@pytest.fixture(scope='module')
def groups():
    """The processes by their number."""
    started = {count: Group(count) for count in (2, 4)}
    yield started
    for group in started.values():
        group.stop()


# Trainers -----------------------------------------------------------------------------------------------------------


@contextmanager
def in_double(trainer):
    """Inside, the trainer computes in double precision on a backbone of five convolutions, also with --sync_bn."""

    def shared(model, *arguments, real=trainer.SharedModel, **options):
        return real(model.double(), *arguments, **options)

    def normalize(images, real=batch.normalize):
        return real(images).double()

    with (
        mock.patch.dict(BACKBONES, tiny=Backbone(lambda output_stride: Tiny(), {})),
        mock.patch.object(trainer, 'SharedModel', shared),
        mock.patch.object(batch, 'normalize', normalize),
        mock.patch.object(batch, '_synchronise', synchronise_on_cpus),
    ):
        yield


def train(name: str, line: str, stop: int | None = None, overflow: int | None = None) -> dict | str:
    """Run a trainer; return what each step and each scoring gave, and its final state.

    With `stop`, the last process gets a signal in that iteration; return what the trainer says on exit. With
    `overflow`, gradients of the last process are not finite in that iteration.
    """
    trainer, steps, runs = SCRIPTS[name], [], []
    signals.listen()
    is_last = launcher.rank() == launcher.world_size() - 1

    def backward(run, loss, real=Run.backward):
        weight = next(weight for weight in run.network.model.parameters() if weight.requires_grad)
        weight._backward_hooks = None
        if run.iteration == overflow and is_last:
            weight.register_hook(lambda gradient: gradient * np.inf)
        real(run, loss)

    def step(run, *arguments, real=Run.step, **more):
        if run.iteration == stop and is_last:
            os.kill(os.getpid(), signal.SIGTERM)
        rates = [group['lr'] for group in run.optimizer.param_groups]
        real(run, *arguments, **more)
        model = run.network.model
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        steps.append({'gradients': gradients, 'rates': rates})
        runs[:] = [run]

    torch.manual_seed(0)
    with in_double(trainer), mock.patch.object(Run, 'backward', backward), mock.patch.object(Run, 'step', step):
        try:
            trainer.main(trainer.parse_args(line.split()))
        except SystemExit as end:
            return end.code
    (run,) = runs
    return {'steps': steps, 'state': run.network.model.state_dict(), 'curves': run.log.curves}


def train_in_group(name: str, line: str, *more: int | None) -> dict | str:
    """What `train` returns, as arrays: tensors would be sent as open files."""
    found = train(name, line, *more)
    if not isinstance(found, dict):
        return found
    for step in found['steps']:
        step['gradients'] = {name: value.numpy() for name, value in step['gradients'].items()}
    return found | {'state': {name: value.numpy() for name, value in found['state'].items()}}


def assert_equal_runs(one: dict, several: list[dict], tolerance: float = 1e-9) -> None:
    """Check losses, rates, gradients, scores, weights and running statistics."""
    for number, other in enumerate(several):
        assert len(one['steps']) == len(other['steps']) > 0
        for a, b in zip(one['steps'], other['steps'], strict=True):
            assert a['rates'] == b['rates']
            assert a['gradients'].keys() == b['gradients'].keys()
            for name in a['gradients']:
                assert_close(b['gradients'][name], a['gradients'][name], tolerance, f'gradient of {name} in {number}')
        assert one['curves'].keys() == other['curves'].keys()
        for name, points in one['curves'].items():
            np.testing.assert_allclose(other['curves'][name], points, rtol=1e-6, atol=1e-12, err_msg=name)
        assert one['state'].keys() == other['state'].keys()
        for name, value in one['state'].items():
            assert_close(other['state'][name], value, tolerance, f'{name} in {number}')


def assert_close(found, expected, tolerance: float, name: str) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    scale = np.abs(expected).max(initial=1e-6)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale, err_msg=name)


COMMON = '--num_workers 0 --device cpu --weights none --print_ratio 0 --tag run --lr 0.02 --momentum 0.6 --max_epoch 2'
SIZES = '--min_image_size 48 --max_image_size 80 --batch_size 8'


def line_of(demo: Path, name: str, more: str) -> str:
    where = (
        f'--dataset {demo}/dataset.json --data_dir {demo} {COMMON} {SIZES} --image_size {32 if name == "seg" else 64}'
    )
    network = '--backbone tiny' if name == 'seg' else '--architecture tiny'
    labels = '' if name == 'cls' else '--label_name labels'
    return f'{where} {network} {labels} {"--radius 4" if name == "aff" else ""} {more}'


@pytest.fixture
def compare(demo, groups, tmp_path, monkeypatch):
    """A function that runs a trainer in one process and in several and compares the two."""

    def run(name: str, more: str, count: int, alone: str | None = None) -> None:
        folders = tmp_path / 'one', tmp_path / 'several'
        for folder in folders:
            labels_of(demo, folder)
        monkeypatch.chdir(folders[0])
        one = train(name, line_of(demo, name, more if alone is None else alone))
        several = groups[count](folders[1], train_in_group, name, line_of(demo, name, more)) if count > 1 else None
        if several is None:
            monkeypatch.chdir(folders[1])
            several = [train(name, line_of(demo, name, more))]
        assert_equal_runs(one, several)
        written = [{path.relative_to(folder) for path in folder.rglob('*.pth')} for folder in folders]
        assert written[0] == written[1]

    return run


CLASSIFIERS = [  # every option once
    '--loss_option cl --batch_size 4 --bn_replicas 2',  # scores 4 images in one process, 2 in another
    '--re_loss_option none --level cam',
    '--re_loss_option selection --num_pieces 16 --level positive',
    '--loss_option cl_pcl_re_conf --re_loss L2_Loss',
    '--micro_batches 4 --mode fix --level positive',
]
MORE_CLASSIFIERS = [
    '--loss_option cl_pcl_re_conf',
    '--micro_batches 4',
    '--loss_option cl_re --re_loss_option selection --re_loss L2_Loss --mode fix',
    '--loss_option cl_pcl',
    '--loss_option cl_re --re_loss_option none',
    '--loss_option cl_re --re_loss_option masking --re_loss L2_Loss',
    '--loss_option cl_re --re_loss_option selection',
    '--loss_option cl_conf',
    '--loss_option cl_pcl_re_conf --mode fix',
]


@pytest.mark.parametrize('more', [*CLASSIFIERS, *(pytest.param(x, marks=pytest.mark.slow) for x in MORE_CLASSIFIERS)])
def test_classifier(compare, more):
    compare('cls', more, 2 if '--batch_size 4' in more else 4)


@pytest.mark.parametrize('more', ['', '--loss_option cl_pcl_re_conf --re_loss_option selection --micro_batches 4'])
def test_classifier_whose_processes_have_two_replicas(compare, more):
    compare('cls', more, 2)


@pytest.mark.parametrize('count', [2, 4])
def test_affinity_net(compare, count):
    compare('aff', '', count)


def test_affinity_net_whose_processes_have_two_parts(compare):
    compare('aff', '--micro_batches 4', 2)


@pytest.mark.parametrize(
    'more, count',
    [
        ('--mode fix', 4),
        ('--architecture Seg_Model', 4),
        pytest.param('--architecture CSeg_Model', 2, marks=pytest.mark.slow),
        ('--use_gn False --micro_batches 4', 2),
    ],
)
def test_segmentation(compare, more, count):
    """With pixels that have no label, and dropout."""
    compare('seg', more, count)


BATCHNORM = '--mode normal --use_gn False'


@pytest.mark.parametrize(
    'name, more, alone',
    [
        ('cls', '--sync_bn', '--bn_replicas 1'),
        pytest.param('seg', f'{BATCHNORM} --sync_bn', BATCHNORM, marks=pytest.mark.slow),
        # Every process is a replica, and so is every part.
        ('seg', BATCHNORM, f'{BATCHNORM} --micro_batches 4'),
        pytest.param('seg', *[f'{BATCHNORM} --micro_batches 4'] * 2, marks=pytest.mark.slow),
    ],
)
def test_batchnorm_of_the_whole_batch_and_of_each_process(compare, name, more, alone):
    compare(name, more, 4, alone)


def test_runs_remember_in_how_many_groups_batchnorm_saw_a_batch(demo, tmp_path, monkeypatch):
    """But not how many processes or parts shared a batch where that changes rounding only."""
    labels_of(demo, tmp_path)
    monkeypatch.chdir(tmp_path)
    for more, other, groups in (('', '--micro_batches 2', (1, 2)), ('--micro_batches 4', '--sync_bn', (4, 1))):
        line = line_of(demo, 'seg', '--mode normal --use_gn False --overwrite')
        assert train('seg', f'{line} {more}', 0).startswith('stopped at iteration 1 ')
        found = r'different settings \(parts of a batch that BatchNorm normalises [^:]*: {}, requested {}\)'.format(
            *groups
        )
        with pytest.raises(UserError, match=found):
            train('seg', f'{line.replace("--overwrite", "")} {other}')
    assert train('seg', line_of(demo, 'seg', '--overwrite'), 0).startswith('stopped at iteration 1 ')
    assert train('seg', line_of(demo, 'seg', '--micro_batches 2'))['steps']


@pytest.mark.parametrize(
    'name, more',
    [
        ('cls', '--micro_batches 4'),
        ('cls', '--micro_batches 2 --bn_replicas 2 --loss_option cl_pcl_re_conf --re_loss_option selection'),
        pytest.param('cls', '--micro_batches 8 --mode fix', marks=pytest.mark.slow),
        ('aff', '--micro_batches 4'),
        ('seg', '--micro_batches 4'),
        pytest.param('seg', '--micro_batches 8 --architecture Seg_Model', marks=pytest.mark.slow),
    ],
)
def test_micro_batches_change_no_gradient(compare, name, more):
    words = more.split()
    at = words.index('--micro_batches')
    compare(name, more, 1, alone=' '.join(words[:at] + words[at + 2 :]))


@pytest.mark.parametrize('name', [pytest.param('cls', marks=pytest.mark.slow), 'seg'])
def test_resuming_with_another_number_of_processes(demo, groups, tmp_path, monkeypatch, name):
    """Four processes stop at a signal that only one of them gets, in the same iteration; then two; one trains on."""
    line = line_of(demo, name, '--batch_size 4 --bn_replicas 4' if name == 'cls' else '--batch_size 4')
    line = line.replace('--batch_size 4 --bn_replicas 4', '--batch_size 8 --max_epoch 5')
    folders = tmp_path / 'one', tmp_path / 'several'
    for folder in folders:
        labels_of(demo, folder)
    monkeypatch.chdir(folders[0])
    one = train(name, line)
    assert groups[4](folders[1], train_in_group, name, line, 1) == [stopped(2, len(one['steps'])), 1, 1, 1]
    assert groups[2](folders[1], train_in_group, name, line, 3) == [stopped(4, len(one['steps'])), 1]
    monkeypatch.chdir(folders[1])
    rest = train(name, line)
    assert_equal_runs({**one, 'steps': one['steps'][4:]}, [rest])


@pytest.mark.parametrize(
    'name, more',
    [
        ('cls', '--micro_batches 4'),
        pytest.param('aff', '', marks=pytest.mark.slow),
        pytest.param('seg', '--micro_batches 4', marks=pytest.mark.slow),
    ],
)
def test_all_processes_skip_a_step_whose_gradients_overflow_in_one(demo, groups, tmp_path, monkeypatch, name, more):
    line = line_of(demo, name, f'{more} --precision fp16')
    folders = tmp_path / 'one', tmp_path / 'several'
    for folder in folders:
        labels_of(demo, folder)
    monkeypatch.chdir(folders[0])
    one = train(name, line, None, 0)
    several = groups[2](folders[1], train_in_group, name, line, None, 0)
    assert [value for _, value in one['curves']['scale']] == [2.0**15] * len(one['steps'])
    for run in (one, *several):
        skipped = run['steps'].pop(0)
        assert not all(np.isfinite(np.asarray(gradient)).all() for gradient in skipped['gradients'].values())
        assert skipped['rates'] == run['steps'][0]['rates']
    assert_equal_runs(one, several)


def stopped(iteration: int, iterations: int) -> str:
    return f'stopped at iteration {iteration} of {iterations}; run the same command to resume'


@pytest.mark.parametrize('name', ['cls', *(pytest.param(x, marks=pytest.mark.slow) for x in ('aff', 'seg'))])
def test_workers_live_through_a_run(demo, tmp_path, monkeypatch, name):
    """Those that load training batches and those that load scored images are the same processes in all epochs."""
    labels_of(demo, tmp_path)
    monkeypatch.chdir(tmp_path)

    def remember(samples, key, real=ImageDataset.__getitem__):
        with Path(f'{samples.domain}.txt').open('a') as file:
            file.write(f'{os.getpid()}\n')
        return real(samples, key)

    monkeypatch.setattr(ImageDataset, '__getitem__', remember)
    train(name, line_of(demo, name, '--num_workers 1 --max_epoch 3'))
    domains = {'cls': ('train', 'train_aug', 'val'), 'aff': ('train', 'train_aug'), 'seg': ('train_aug', 'val')}
    found = {path.stem: path.read_text().split() for path in tmp_path.glob('*.txt')}
    assert set(found) == set(domains[name])
    for processes_ in found.values():
        assert len(processes_) >= 12
        assert len(set(processes_) - {str(os.getpid())}) == 1


# Loaders and exchanges ----------------------------------------------------------------------------------------------


class Keys(list):
    """A data set whose samples are their keys."""

    def __getitem__(self, key):
        return key


def load_shares() -> tuple[list, list, np.ndarray]:
    cpu = torch.device('cpu')
    loader = training_loader(Keys(range(30)), 8, 0, 1, cpu)
    loader.sampler.start(2, 8)
    shares = [positions.tolist() for _, positions in loader]
    ordered = ordered_loader(Keys(range(7)), 2, 0, cpu)
    batches = [positions.tolist() for positions in ordered]
    processes.start('cpu', 0, NO_OPTIONS)
    rows = [np.array([[i, -i] for i in positions], np.float32) for positions in batches]
    return shares, batches, gather_rows(ordered, rows)


@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_batches(groups, tmp_path, count):
    loader = training_loader(Keys(range(30)), 8, 0, 1, torch.device('cpu'))
    loader.sampler.start(2, 8)
    expected = [positions.tolist() for _, positions in loader]
    assert len(expected) == 2
    found = groups[count](tmp_path, load_shares)
    for number, positions in enumerate(expected):
        assert sum((shares[number] for shares, _, _ in found), []) == positions
    scored = [[0, 1], [2, 3], [4, 5], [6]]
    assert [batches for _, batches, _ in found] == [scored[rank::count] for rank in range(count)]
    for _, _, rows in found:
        np.testing.assert_array_equal(rows, [[i, -i] for i in range(7)])


def exchange() -> tuple:
    processes.start('cpu', 0, NO_OPTIONS)
    rank = launcher.rank()
    part = torch.full((2, 1), float(rank), requires_grad=True)
    whole = processes.gather((part, part[:, 0]))[0]
    (whole * torch.arange(2.0 * len(whole)).reshape(-1, 1)[: len(whole)]).sum().backward()
    try:
        processes.from_main(lambda: (_ for _ in ()).throw(UserError('only here')))
    except UserError as error:
        text = str(error)
    state = processes.from_main(lambda: {'rank': rank, 'value': torch.ones(2)})
    return (
        whole.flatten().tolist(),
        part.grad.flatten().tolist(),
        processes.own(whole).flatten().tolist(),
        processes.add(np.array([1, rank])).tolist(),
        processes.largest(rank),
        text,
        (state['rank'], state['value'].tolist()),
    )


def test_exchanges(groups, tmp_path):
    assert groups[2](tmp_path, exchange) == [
        ([0, 0, 1, 1], [0, 1], [0, 0], [2, 1], 1, 'only here', (0, [1, 1])),
        ([0, 0, 1, 1], [2, 3], [1, 1], [2, 1], 1, 'only here', (0, [1, 1])),
    ]


# Failures -----------------------------------------------------------------------------------------------------------


def run_program(data, folder: str, rank: int, port: int, name: str, more: tuple[str, ...]) -> None:
    """Run a stage as a program of a group of two does; its stderr goes to the file stderr.{rank}."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='localhost')
    os.environ['MASTER_PORT'] = str(port)
    os.chdir(folder)
    os.dup2(os.open(f'stderr.{rank}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    stage, line = commands(data)[name]
    script.run(stage.main, lambda: stage.parse_args([*line, *more]))


def start(data, folder: Path, port: int, rank: int, *more: str, name: str = 'cls'):
    process = served(run_program, data, str(folder), rank, port, name, more)
    process.start()
    return process


def errors(folder: Path) -> list[str]:
    """The last line of each process, if it is an error, without the number of the process and the script.

    Nothing else may look like an error.
    """
    lines = []
    for rank in (0, 1):
        text = (folder / f'stderr.{rank}').read_text()
        assert 'Traceback' not in text
        assert 'frame #' not in text
        assert text.count('error: ') <= 1
        *_, last = text.strip().splitlines() or ['']
        before, _, line = last.partition('error: ')
        assert not line or before == f'process {rank} of 2: {sys.argv[0]}: '
        lines.append(line)
    return lines


ENDED = script.ENDED


@pytest.mark.parametrize('victim', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_process_ends_the_other_and_the_same_command_resumes(demo, tmp_path, monkeypatch, victim):
    port, long = free_port(), ('--max_epoch', '200', '--save_interval', '1')
    members = [start(demo, tmp_path, port, rank, *long) for rank in (0, 1)]
    while not (tmp_path / 'experiments/models/cls.pth').exists():
        assert all(member.is_alive() for member in members)
        time.sleep(0.05)
    members[victim].kill()
    begun = time.monotonic()
    members[1 - victim].join(60)
    assert members[1 - victim].exitcode == 1
    assert time.monotonic() - begun < 60
    assert errors(tmp_path)[1 - victim] == ENDED
    state = torch.load(tmp_path / 'experiments/checkpoints/cls.pth', weights_only=True)
    assert 0 < state['iteration'] < 600
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='stopped at iteration'):
        resume_and_stop(demo, long)


def resume_and_stop(demo, more) -> None:
    """Resume with one process, which a signal stops after a step."""
    stage, line = commands(demo)['cls']

    def step(run, *arguments, real=Run.step, **values):
        os.kill(os.getpid(), signal.SIGTERM)
        real(run, *arguments, **values)

    with mock.patch.object(Run, 'step', step):
        run_stage(stage, [*line, *more])


@pytest.mark.parametrize(
    'difference, line',
    [
        (('--lr', '0.5'), 'in its options (lr: 0.5, there 0.01)'),
        pytest.param(('--micro_batches', '2'), 'in its options (micro_batches: 2, there 1)', marks=pytest.mark.slow),
        ('data', 'in its data (images: '),
    ],
)
def test_processes_that_differ_are_refused(demo, tmp_path, difference, line):
    more = difference
    if difference == 'data':
        other = shutil.copytree(demo, tmp_path / 'other')
        image = next((other / 'JPEGImages').iterdir())
        image.write_bytes(image.read_bytes() + b'0')
        more = ('--data_dir', str(other))
    port = free_port()
    members = [start(demo, tmp_path, port, 0), start(demo, tmp_path, port, 1, *more)]
    first, second = ends(members, tmp_path)
    assert first == second
    assert second.startswith('process 1 on ') and line in second
    assert second.endswith(': use the same options, code and data on all nodes')
    assert not list(tmp_path.rglob('*.pth'))


def ends(members: list, folder: Path) -> list[str]:
    """Wait for two processes that must fail; return the error of each."""
    for member in members:
        member.join(60)
        assert member.exitcode == 1
    return errors(folder)


def test_every_process_prints_its_error_with_its_number(demo, tmp_path):
    port = free_port()
    members = [start(demo, tmp_path, port, rank, '--dataset', 'nonsense.json') for rank in (0, 1)]
    line = '--dataset nonsense.json: cannot be read (No such file or directory)'
    assert ends(members, tmp_path) == [line, line]


def test_run_of_another_process_is_refused_in_all(demo, tmp_path):
    """The first process alone sees the lock, and all end with its line."""
    (tmp_path / 'experiments/checkpoints').mkdir(parents=True)
    with held(tmp_path / 'experiments/checkpoints/.cls.lock') as holder:
        port = free_port()
        members = [start(demo, tmp_path, port, rank) for rank in (0, 1)]
        for line in ends(members, tmp_path):
            assert re.fullmatch(refusal('the run cls', holder), line)


def test_batchnorm_is_not_synchronised_on_cpus(demo, tmp_path):
    port = free_port()
    members = [start(demo, tmp_path, port, rank, '--sync_bn') for rank in (0, 1)]
    line = '--sync_bn: torch synchronises BatchNorm on GPUs only: leave it out, or start one process'
    assert ends(members, tmp_path) == [line, line]
    assert not list(tmp_path.rglob('*.pth'))


def meet(monkeypatch, rank: int, port: int) -> str:
    environment = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='localhost', MASTER_PORT=port)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(processes, 'PATIENCE', timedelta(seconds=1))
    with pytest.raises(UserError) as error:
        processes.start('cpu', 0, NO_OPTIONS)
    return str(error.value)


@pytest.mark.parametrize('rank', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_process_that_never_comes(monkeypatch, rank):
    assert re.fullmatch(
        'cannot meet the other processes: not all came within 1 s: start the same command .*',
        meet(monkeypatch, rank, free_port()),
    )


def test_port_in_use(monkeypatch):
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(('::', 0))
        listener.listen()
        line = meet(monkeypatch, 0, listener.getsockname()[1])
    assert line == 'cannot meet the other processes: the port is in use: choose another one (--master_port)'


@pytest.mark.parametrize(('parse_args', 'words'), [(check_dataset.parse_args, []), (report.parse_args, ['my'])])
def test_tools_refuse_to_run_in_several_processes(monkeypatch, capsys, parse_args, words):
    for rank in ('0', '1'):
        for variable, value in {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': '2'}.items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(SystemExit) as ended:
            parse_args(words)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f'process {rank} of 2: ')
        assert line.endswith(' error: cannot share its work among processes: start it with python3 instead of torchrun')


@pytest.mark.parametrize(
    'name, count, more, line',
    [
        ('aff', 3, '', '--batch_size 4 is not a multiple of the 3 processes, which share a batch'),
        (
            'aff',
            4,
            '--micro_batches 2',
            '--micro_batches 2 is not a multiple of the 4 processes, which share the parts',
        ),
        ('aff', 1, '--micro_batches 3', '--micro_batches 3: --batch_size 4 is not a multiple of it'),
        ('cls', 4, '', '--bn_replicas 2 is not a multiple of the 4 processes: start fewer, or pass --sync_bn'),
        ('cls', 1, '--micro_batches 4', '--micro_batches 4: with --mode normal the parts are the 2 replicas'),
        ('cls', 2, '--mode fix --sync_bn', '--sync_bn: --mode fix has no BatchNorm that trains'),
        ('seg', 4, '--mode normal', '--batch_size 4: --mode normal trains BatchNorm and needs 2 or more for each of 4'),
        ('seg', 1, '--mode normal --sync_bn --micro_batches 2', '--sync_bn: the statistics of the whole batch need it'),
    ],
)
def test_batches_that_cannot_be_shared(demo, monkeypatch, capsys, name, count, more, line):
    for variable, value in {'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': str(count)}.items():
        monkeypatch.setenv(variable, value)
    stage, words = commands(demo)[name]
    with pytest.raises(SystemExit):
        stage.parse_args([*words, *more.split()])
    (found,) = capsys.readouterr().err.splitlines()
    assert found.startswith(f'process 0 of {count}: ' if count > 1 else Path(sys.argv[0]).name)
    assert f'error: {line}' in found


# torchrun -----------------------------------------------------------------------------------------------------------


def test_torchrun(demo, tmp_path):
    """The command of the README, with workers that read images."""
    stage, line = commands(demo)['cls']
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    run = subprocess.run(
        [*command, f'{REPOSITORY}/{stage.__name__}.py', *line, '--num_workers', '1'],
        cwd=tmp_path,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count('scoring CAMs: 2/2') == 0  # one of two batches each
    assert run.stderr.count('experiments/models/cls.pth: best epoch 1') == 1
    assert len(list((tmp_path / 'experiments/tensorboards/cls').iterdir())) == 1
