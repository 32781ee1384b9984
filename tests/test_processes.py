"""Several processes against one: trainers step by step, scoring, resuming, failures. gloo, small networks.

Two and four processes start once for all tests of this file; each task gives them the environment that torchrun would.
"""

import multiprocessing
import os
import socket
import traceback
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from test_training_step import Tiny, labels_of

import train_affinitynet
import train_classification_with_puzzle
import train_segmentation
from core.models.backbones import BACKBONES, Backbone
from util import devices, processes
from util.run import Run

SCRIPTS = {'cls': train_classification_with_puzzle, 'aff': train_affinitynet, 'seg': train_segmentation}
FORK = multiprocessing.get_context('forkserver')
FORK.set_forkserver_preload(['test_pipeline', 'torch.utils.tensorboard'])


# Groups of processes ------------------------------------------------------------------------------------------------


def serve(rank: int, count: int, pipe) -> None:
    """Call what comes through the pipe, as process `rank` of `count`; send back what it returns, or its error."""
    torch.set_num_threads(1)
    while True:
        port, folder, function, arguments = pipe.recv()
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
        os.environ.update(MASTER_ADDR='localhost', MASTER_PORT=str(port))
        os.chdir(folder)
        try:
            pipe.send((function(*arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
        processes.end()


class Group:
    """So many processes that call a function together."""

    def __init__(self, count: int):
        pipes = [FORK.Pipe() for _ in range(count)]
        self.pipes = [ours for ours, _ in pipes]
        self.members = [FORK.Process(target=serve, args=(i, count, pipes[i][1]), daemon=True) for i in range(count)]
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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('localhost', 0))
        return listener.getsockname()[1]


@pytest.fixture(scope='module')
def groups():
    """The processes by their number."""
    started = {count: Group(count) for count in (2, 4)}
    yield started
    for group in started.values():
        group.stop()


# Trainers -----------------------------------------------------------------------------------------------------------


@contextmanager
def in_double(script):
    """Inside, the trainer computes in double precision on a backbone of five convolutions."""
    owner = getattr(script, 'transforms', script)  # where the script looks `normalize` up

    def to_device(model, device, precision='fp32'):
        return model.double()

    def normalize(images, real=owner.normalize):
        return real(images).double()

    with (
        mock.patch.dict(BACKBONES, tiny=Backbone(lambda output_stride: Tiny(), {})),
        mock.patch.object(devices, 'to_device', to_device),
        mock.patch.object(owner, 'normalize', normalize),
    ):
        yield


def train(name: str, line: str) -> dict:
    """Run a trainer; return what each step and each scoring gave, and its final state."""
    script, steps, runs = SCRIPTS[name], [], []

    def step(run, *arguments, real=Run.step, **more):
        before, rates = run.iteration, [group['lr'] for group in run.optimizer.param_groups]
        real(run, *arguments, **more)
        if run.iteration > before:
            model = devices.unwrap(run.model)
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            steps.append({'gradients': gradients, 'rates': rates})
            runs[:] = [run]

    torch.manual_seed(0)
    with in_double(script), mock.patch.object(Run, 'step', step):
        script.main(script.parse_args(line.split()))
    (run,) = runs
    return {'steps': steps, 'state': devices.unwrap(run.model).state_dict(), 'curves': run.log.curves}


def train_in_group(name: str, line: str) -> dict:
    """What `train` returns, as arrays: tensors would be sent as open files."""
    found = train(name, line)
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
SIZES = '--image_size 64 --min_image_size 48 --max_image_size 80 --batch_size 8'


def line_of(demo: Path, name: str, more: str) -> str:
    where = f'--dataset {demo}/dataset.json --data_dir {demo} {COMMON} {SIZES}'
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


@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize(
    'more',
    [
        '--loss_option cl',
        '--loss_option cl_pcl',
        '--loss_option cl_re --re_loss_option none',
        '--loss_option cl_re --re_loss_option masking --re_loss L2_Loss',
        '--loss_option cl_re --re_loss_option selection',
        '--loss_option cl_conf',
        '--re_loss_option none --level cam',
        '--re_loss_option masking',
        '--re_loss_option selection --num_pieces 16',
        '--loss_option cl_pcl_re_conf',
        '--loss_option cl_pcl_re_conf --mode fix',
        '--loss_option cl_re --re_loss_option selection --mode fix',
        '--micro_batches 4',
        '--micro_batches 4 --mode fix',
    ],
)
def test_classifier(compare, more, count):
    compare('cls', more, count)


@pytest.mark.parametrize('count', [2, 4])
def test_affinity_net(compare, count):
    compare('aff', '', count)


@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize(
    'more', ['--mode fix', '--architecture Seg_Model', '--architecture CSeg_Model', '--use_gn False --micro_batches 4']
)
def test_segmentation(compare, more, count):
    """Pixels without a label, dropout and (in the last case) BatchNorm's replicas as with one process."""
    compare('seg', more, count)


@pytest.mark.parametrize(
    'name, more, alone',
    [
        ('cls', '--sync_bn', '--bn_replicas 1'),
        ('seg', '--mode normal --use_gn False --sync_bn', '--mode normal --use_gn False'),
        # Every process is a replica, and so is every part.
        ('seg', '--mode normal --use_gn False', '--mode normal --use_gn False --micro_batches 4'),
        ('seg', '--mode normal --use_gn False --micro_batches 4', '--mode normal --use_gn False --micro_batches 4'),
    ],
)
def test_batchnorm_of_the_whole_batch_and_of_each_process(compare, name, more, alone):
    compare(name, more, 4, alone)


@pytest.mark.parametrize(
    'name, more',
    [
        ('cls', '--micro_batches 4'),
        ('cls', '--micro_batches 2 --bn_replicas 2 --loss_option cl_pcl_re_conf --re_loss_option selection'),
        ('cls', '--micro_batches 8 --mode fix'),
        ('aff', '--micro_batches 4'),
        ('seg', '--micro_batches 4'),
        ('seg', '--micro_batches 8 --architecture Seg_Model'),
    ],
)
def test_micro_batches_change_no_gradient(compare, name, more):
    words = more.split()
    at = words.index('--micro_batches')
    compare(name, more, 1, alone=' '.join(words[:at] + words[at + 2 :]))
