"""How a batch is shared: replicas, micro-batches, dropout, repeated passes, scoring. Several processes: stages/."""

import copy
from unittest import mock

import pytest
import torch
from torch import nn

from core import UserError
from core.data.transforms import PaddedCrop, normalize
from core.models import Classifier, DeepLabV3Plus
from core.models.backbones import BACKBONES, Backbone
from support import assert_identical, batchnorms, statistics
from support.networks import Tiny
from util.parallel import batch as batch_module
from util.parallel.batch import SharedModel
from util.parallel.devices import count_devices

NARROW = 'resnest14_narrow'
CPU = torch.device('cpu')
IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def classifier(mode: str = 'normal') -> Classifier:
    torch.manual_seed(0)
    return Classifier(NARROW, 7, mode)


def whole(model: nn.Module, replicas: int = 4, **options) -> SharedModel:
    """Share batches of 8 images as stage 1 does."""
    return SharedModel(model, CPU, batch_size=8, bn_replicas=replicas, whole_batch=True, **options)


# BatchNorm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('micro_batches', [1, 4])
@pytest.mark.parametrize('replicas', [1, 2, 4])
def test_replicas_against_an_emulation_of_each_device(replicas, micro_batches):
    network = whole(classifier(), replicas, micro_batches=micro_batches)
    model, size = network.model, 8 // replicas
    devices = [copy.deepcopy(model) for _ in range(replicas)]
    outputs = [device(IMAGES[i * size : (i + 1) * size], with_cam=True) for i, device in enumerate(devices)]
    logits, maps = network(IMAGES, with_cam=True)
    assert torch.equal(logits, torch.cat([output[0] for output in outputs]))
    assert torch.equal(maps, torch.cat([output[1] for output in outputs]))

    # The gradient is the sum over the devices.
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    for i, output in enumerate(outputs):
        (output[0] * weights[i * size : (i + 1) * size]).sum().backward()
    for (name, found), *others in zip(
        model.named_parameters(), *(device.parameters() for device in devices), strict=True
    ):
        expected = sum(other.grad for other in others)
        torch.testing.assert_close(found.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()), msg=name)
    assert_identical(statistics(model), statistics(devices[0]))


def test_each_pass_updates_the_statistics_once():
    network = whole(classifier())
    for _ in range(2):
        network(IMAGES, with_cam=True)
    assert {int(norm.num_batches_tracked) for norm in batchnorms(network.model).values()} == {2}
    assert all(norm.track_running_stats and norm.training for norm in batchnorms(network.model).values())


def test_only_the_first_micro_batch_moves_the_running_statistics():
    network = SharedModel(classifier(), CPU, batch_size=8, micro_batches=2)
    alone = copy.deepcopy(network.model)
    alone(IMAGES[:4])
    sizes = [len(network(some['x'])) for some in network.micro_batches({'x': IMAGES})]
    assert sizes == [4, 4]
    assert_identical(statistics(network.model), statistics(alone))


@pytest.mark.parametrize(
    'gpus, processes, options, groups',
    [
        (1, 1, {'bn_replicas': 4}, 4),
        (2, 1, {'bn_replicas': 4}, 4),
        (3, 1, {'bn_replicas': 4}, 4),
        (8, 1, {'bn_replicas': 4}, 4),
        (1, 4, {'bn_replicas': 4}, 4),
        (1, 2, {'bn_replicas': 4, 'micro_batches': 4}, 4),
        (4, 1, {'bn_replicas': 1, 'sync_bn': True}, 1),
        (1, 1, {}, 1),
        (4, 1, {}, 4),
        (1, 4, {}, 4),
        (1, 1, {'micro_batches': 2}, 2),
        (4, 1, {'micro_batches': 2}, 8),
        (1, 2, {'micro_batches': 4}, 4),
        (4, 1, {'sync_bn': True}, 1),
    ],
)
def test_number_of_groups_that_batchnorm_normalises(monkeypatch, gpus, processes, options, groups):
    """bn_replicas of stage 1, whatever shares them; elsewhere everything that shares a batch is a group."""
    for name, value in {'RANK': 0, 'LOCAL_RANK': 0, 'WORLD_SIZE': processes}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(batch_module, 'count_devices', lambda count, _: count_devices(count, torch.device('cuda')))
    monkeypatch.setattr(nn, 'DataParallel', lambda module, device_ids: module)
    whole_batch = 'bn_replicas' in options
    network = SharedModel(classifier(), CPU, batch_size=8, whole_batch=whole_batch, **options)
    assert network.norm_groups == groups


# Dropout and repeated passes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('micro_batches', [1, 2, 4])
def test_dropout_of_a_micro_batch_is_that_of_the_whole_batch(layout, micro_batches):
    x = torch.randn(8, 3, 5, 7).contiguous(memory_format=layout)
    torch.manual_seed(0)
    expected, after = nn.Dropout(0.4)(x), torch.rand(3)
    network = SharedModel(nn.Sequential(nn.Dropout(0.4)), CPU, batch_size=8, micro_batches=micro_batches)
    found = []
    torch.manual_seed(0)
    for some in network.micro_batches({'x': x}):
        found.append(network(some['x']))
        assert torch.equal(torch.rand(3), after)  # and the generator is where one process has it
    assert len(found) == micro_batches
    torch.testing.assert_close(torch.cat(found), expected)
    network.model.eval()
    assert torch.equal(network.model(x), x)


@pytest.mark.parametrize('mode', ['normal', 'fix'])
def test_repeated_pass_gives_the_same_gradients_and_statistics(mode):
    """For less than a tenth of the memory, as long as nothing is repeated."""
    gradients, moved, kept = [], [], []
    for micro_batches in (1, 4):
        network = whole(classifier(mode), micro_batches=micro_batches)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            logits, _ = network(IMAGES, with_cam=True)
        kept.append(sum(saved))
        logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in network.model.named_parameters() if p.grad is not None})
        moved.append(statistics(network.model))
    if mode == 'normal':  # the same four replicas
        assert_identical(*gradients)
    else:
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    assert_identical(*moved)
    assert kept[1] < 0.1 * kept[0]


# Images, scoring, precision -----------------------------------------------------------------------------------------


def crops(count: int) -> PaddedCrop:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 32, 48, 3), dtype=torch.uint8, generator=generator)
    return PaddedCrop(pixels, torch.tensor([[0, 0, 48, 32]] * count))


def test_images_are_received_normalised_and_as_they_came():
    given = {'images': crops(2), 'labels': torch.ones(2, 3)}
    found = SharedModel(classifier(), CPU, batch_size=2).receive(given)
    assert torch.equal(found['images'], normalize(crops(2)))
    assert torch.equal(found['crops'].pixels, crops(2).pixels)
    assert torch.equal(found['labels'], given['labels'])


@pytest.mark.parametrize('micro_batches', [1, 4])
def test_scoring_evaluates_and_leaves_the_network_in_training(micro_batches):
    network = whole(classifier(), micro_batches=micro_batches)
    before, sizes = statistics(network.model), []
    loader = [{'images': crops(count), 'labels': torch.arange(count)} for count in (4, 3)]
    assert network.model.training
    for (batch, outputs), given in zip(network.infer(loader, 'scoring', with_cam=True), loader, strict=True):
        assert not network.model.training
        with torch.no_grad():
            expected = network.model(normalize(given['images']), with_cam=True)
        assert all(map(torch.equal, outputs, expected))
        assert not any(output.requires_grad for output in outputs)
        assert torch.equal(batch['labels'], given['labels'])
        assert torch.equal(batch['images'], normalize(given['images']))
        sizes.append(len(batch['crops'].pixels))
    assert sizes == [4, 3]
    assert network.model.training
    assert all(norm.training for norm in batchnorms(network.model).values())
    assert_identical(statistics(network.model), before)


@pytest.mark.parametrize('precision, half', [('fp32', None), ('tf32', None), ('bf16', torch.bfloat16)])
def test_precision_is_that_of_the_flag(precision, half):
    network = whole(classifier('fix'), precision=precision)
    assert (network.precision, network.model.half) == (precision, half)
    logits, _ = network(IMAGES, with_cam=True)
    exact = copy.deepcopy(network.model)
    exact.half = None
    assert torch.equal(logits, exact(IMAGES)) == (half is None)
    assert logits.dtype == torch.float32


def test_batches_of_one_process_are_added_to_nothing():
    counts = torch.tensor([1, 2])
    for network in (whole(classifier()), SharedModel(classifier(), CPU, batch_size=8)):
        assert network.total(counts).tolist() == network.add(counts).tolist() == [1, 2]


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


def small(build) -> nn.Module:
    torch.manual_seed(0)
    with mock.patch.dict(BACKBONES, tiny=Backbone(lambda output_stride: Tiny(), {})):
        return build('tiny').double()


@pytest.mark.slow
@pytest.mark.parametrize('micro_batches', [1, 2])
def test_compiled_classifier_trains_in_replicas_as_usual(traced, micro_batches):
    """Maps, gradients and running statistics; a repeated pass moves no statistics."""
    images = torch.rand(8, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        model = small(lambda name: Classifier(name, 5))
        names = list(model.state_dict())
        network = whole(model, 2, micro_batches=micro_batches, compile=compiled)
        for inputs in (images, images[..., :16, :16]):
            logits, maps = network(inputs, with_cam=True)
            (logits.sum() + maps.square().sum()).backward()
        model.eval()
        with torch.no_grad():
            outputs = model(images[:3], with_cam=True)
        found.append((outputs, [p.grad for p in model.parameters()], model.state_dict()))
        assert list(model.state_dict()) == names
    torch.testing.assert_close(found[1], found[0])
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0


def test_compiled_dropout_draws_the_same_masks(traced):
    """Of a part of a batch too."""
    images = torch.rand(4, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        model = small(lambda name: DeepLabV3Plus(name, 4, mode='fix'))
        assert any(isinstance(module, nn.Dropout) for module in model.modules())
        network = SharedModel(model, CPU, batch_size=4, micro_batches=2, compile=compiled)
        torch.manual_seed(3)
        found.append([network(some['x']) for _ in range(2) for some in network.micro_batches({'x': images})])
    torch.testing.assert_close(found[1], found[0])
    assert (found[0][1] - found[0][3]).abs().max() > 1e-3


def test_networks_in_several_threads_are_not_compiled(monkeypatch):
    monkeypatch.setattr(batch_module, 'count_devices', lambda count, device: 2)
    with pytest.raises(UserError, match='^--compile: start a process per GPU with torchrun, or pass --device cuda:0'):
        SharedModel(classifier(), CPU, batch_size=8, compile=True)
