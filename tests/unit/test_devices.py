"""Devices, precision, compiling, GPUs that share a batch, seeds."""

import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from core import UserError
from core.models import Classifier, DeepLabV3Plus
from core.models.backbones import BACKBONES, Backbone
from core.models.batchnorm import forward_in_replicas
from support.networks import Tiny
from util.devices import devices_for, parallel, pick_device, seed_everything, to_device, unwrap

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
    assert devices_for(replicas, torch.device('cuda')) == devices
    assert devices_for(replicas, torch.device('cuda:0')) == 1
    assert devices_for(replicas, torch.device('cpu')) == 1


def test_moving_a_model_does_not_change_its_outputs():
    model = Classifier(NARROW, 5).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        moved = parallel(model, torch.device('cpu'), 1)
        torch.testing.assert_close(moved(images), expected, rtol=1e-4, atol=1e-4)
    assert moved is model


@pytest.mark.parametrize('wrap', [False, True])
def test_unwrap(wrap):
    model = nn.Linear(2, 3)
    assert unwrap(nn.DataParallel(model) if wrap else model) is model


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


@pytest.fixture
def traced(monkeypatch):
    """Inside, torch.compile traces a network and its gradient, but runs what it traced without the C++ compiler."""

    def compile_(self, real=nn.Module.compile, **options):
        real(self, backend='aot_eager', **options)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(nn.Module, 'compile', compile_)
    yield
    torch._dynamo.reset()


def small(build, compiled: bool) -> nn.Module:
    torch.manual_seed(0)
    with mock.patch.dict(BACKBONES, tiny=Backbone(lambda output_stride: Tiny(), {})):
        return to_device(build(), torch.device('cpu'), compiled=compiled).double()


@pytest.mark.parametrize('recompute', [False, True])
def test_compiled_classifier_trains_in_replicas_as_usual(traced, recompute):
    """Maps, gradients and running statistics; a repeated pass moves no statistics."""
    images = torch.rand(8, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        model = small(lambda: Classifier('tiny', 5), compiled).train()
        model.recompute = recompute
        for inputs in (images, images[..., :16, :16]):
            logits, maps = forward_in_replicas(model, inputs, 2)
            (logits.sum() + maps.square().sum()).backward()
        model.eval()
        with torch.no_grad():
            outputs = model(images[:3], with_cam=True)
        found.append((outputs, [p.grad for p in model.parameters()], model.state_dict()))
        assert list(model.state_dict()) == list(small(lambda: Classifier('tiny', 5), False).state_dict())
    torch.testing.assert_close(found[1], found[0])
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0


def test_compiled_dropout_draws_the_same_masks(traced):
    """Of a part of a batch too."""
    images = torch.rand(2, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        model = small(lambda: DeepLabV3Plus('tiny', 4, mode='fix'), compiled).train()
        assert any(isinstance(module, nn.Dropout) for module in model.modules())
        model.at_part(1, 2)
        torch.manual_seed(3)
        found.append([model(images), model(images)])
    torch.testing.assert_close(found[1], found[0])
    assert (found[0][0] - found[0][1]).abs().max() > 1e-3


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


def test_networks_in_several_threads_are_not_compiled():
    with pytest.raises(UserError, match='^--compile: start a process per GPU with torchrun, or pass --device cuda:0'):
        parallel(nn.Linear(2, 3), torch.device('cpu'), 2, compiled=True)


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
    assert devices_for(4, chosen[-1]) == 1
    assert pick_device('cpu') == torch.device('cpu')
    with pytest.raises(UserError, match='^--device cuda:0: under torchrun each process takes a GPU of its own'):
        pick_device('cuda:0')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(UserError, match='^--nproc_per_node: process 1 of this node has no GPU, 1 are visible'):
        pick_device('auto')
