"""Devices, precision, compiling, how many GPUs share a batch, seeds."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from core import UserError
from core.models import Classifier
from util.parallel.devices import count_devices, pick_device, seed_everything, to_device

NARROW = 'resnest14_narrow'


def test_pick_device():
    assert pick_device('cpu') == torch.device('cpu')
    assert pick_device('auto').type in ('cpu', 'cuda')
    for name in ('nonsense', 'cuda:99', 'cpu:x', '', 'meta', 'meta:-3'):
        with pytest.raises(UserError, match='--device') as error:
            pick_device(name)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'visible, replicas, devices', [(1, 4, 1), (2, 4, 2), (3, 4, 2), (4, 4, 4), (8, 4, 4), (2, 3, 1)]
)
def test_replicas_are_shared_among_gpus(monkeypatch, visible, replicas, devices):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: visible)
    assert count_devices(replicas, torch.device('cuda')) == devices
    assert count_devices(replicas, torch.device('cuda:0')) == 1
    assert count_devices(replicas, torch.device('cpu')) == 1


def test_moving_a_model_does_not_change_its_outputs():
    model = Classifier(NARROW, 5).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        moved = to_device(model, torch.device('cpu'))
        torch.testing.assert_close(moved(images), expected, rtol=1e-4, atol=1e-4)
    assert moved is model


def test_precision_is_that_of_the_flag():
    cpu, allowed = torch.device('cpu'), {}
    for precision in ('tf32', 'bf16', 'fp16', 'fp32'):
        model = to_device(Classifier(NARROW, 5), cpu, precision)
        allowed[precision] = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, model.half
    assert allowed == {
        'tf32': (True, True, None),
        'bf16': (False, False, torch.bfloat16),
        'fp16': (False, False, torch.float16),
        'fp32': (False, False, None),
    }


# Compiling ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a C++ compiler')
def test_compiled_code_computes_the_same():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = network(images)
        compiled = to_device(network, torch.device('cpu'), compiled=True)
        torch.testing.assert_close(compiled(images), expected)
    assert list(compiled.state_dict()) == ['0.weight', '0.bias']


def test_without_torch_compile_its_flag_is_refused(monkeypatch):
    def compile_(self, **options):
        raise RuntimeError('torch.compile is not supported on Python 4.0\nmore')

    monkeypatch.setattr(nn.Module, 'compile', compile_)
    with pytest.raises(UserError) as error:
        to_device(nn.Linear(2, 3), torch.device('cpu'), compiled=True)
    assert str(error.value) == '--compile: torch.compile is not supported on Python 4.0: leave it out'


def test_seeds():
    def drawn(seed):
        seed_everything(seed)
        return [float(torch.rand(())), float(np.random.rand())]

    def drawn_after_picking(seed):
        assert pick_device('cpu', seed) == torch.device('cpu')
        return [float(torch.rand(())), float(np.random.rand())]

    assert drawn(1) == drawn(1) == drawn_after_picking(1)
    assert all(a != b for a, b in zip(drawn(1), drawn(2), strict=True))


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch):
    for name, value in {'RANK': '5', 'LOCAL_RANK': '1', 'WORLD_SIZE': '8'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    chosen, current = [], []
    monkeypatch.setattr(torch.cuda, 'set_device', current.append)
    monkeypatch.setattr(torch, 'zeros', lambda *_, device: chosen.append(device))
    for name in ('auto', 'cuda'):
        assert pick_device(name) == torch.device('cuda:1')
    assert current == [1, 1]
    assert count_devices(4, chosen[-1]) == 1
    assert pick_device('cpu') == torch.device('cpu')
    with pytest.raises(UserError, match='^--device cuda:0: under torchrun each process takes its own GPU'):
        pick_device('cuda:0')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(UserError, match='^--nproc_per_node: process 1 of this node has no GPU, 1 are visible'):
        pick_device('auto')
