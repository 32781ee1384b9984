"""Networks of the published code: recognised, converted to the same function, or refused naming a tensor.

support/published.py imitates them.
"""

import pytest
import torch

from core import UserError
from core.models import backbones
from core.models.backbones import Backbone, build_backbone
from core.models.resnet import ResNet
from core.models.segmenters import build_segmenter
from core.models.weights import PUBLISHED, read_state_dict
from support.published import CLASSES, NARROW, NETWORKS, assert_same_function, published, state_of
from tools.importing.published import Published, convert

SMALL = 'resnet14'
DEEPEST = ('resnet152', 'resnest200', 'resnest269')


@pytest.fixture(autouse=True)
def small_resnet(monkeypatch):
    """Register a ResNet with one block per layer, next to the narrow ResNeSt."""
    monkeypatch.setitem(backbones.BACKBONES, SMALL, Backbone(ResNet, dict(layers=(1, 1, 1, 1))))


# Converting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('backbone', [NARROW, pytest.param(SMALL, marks=pytest.mark.slow)])
def test_same_outputs(name, backbone):
    original = published(name, backbone)
    found = convert(original.state_dict(), CLASSES)
    use_gn = name.endswith('GN') if name.startswith('DeepLab') else None
    assert found[1:] == (name.removesuffix(' GN'), backbone, use_gn)
    assert found.network.mode == ('normal' if name == 'Classifier' else 'fix')
    assert_same_function(found.network, original)


@pytest.mark.parametrize('unused', ['stage', 'backbone.', 'model.fc.', 'path_indices_'])
def test_copies_and_what_has_no_use_may_be_absent(unused):
    state = state_of('AffinityNet')
    rest = {name: value for name, value in state.items() if not name.startswith(unused)}
    assert len(rest) < len(state)
    assert_same_function(convert(rest, CLASSES).network, published('AffinityNet'))


def test_files_without_batch_counts_and_with_other_precisions():
    state = {name: x.double() for name, x in state_of('Classifier').items() if not name.endswith('batches_tracked')}
    network = convert(state, CLASSES).network
    assert {x.dtype for x in network.parameters()} == {torch.float32}
    assert_same_function(network, published('Classifier'))


@pytest.mark.parametrize(
    'backbone', [pytest.param(x, marks=pytest.mark.slow if x in DEEPEST else []) for x in backbones.BACKBONES]
)
def test_every_registered_backbone_is_recognised(backbone):
    with torch.device('meta'):
        names = build_backbone(backbone).state_dict()
        channels = build_backbone(backbone).channels
    state = {f'model.{name}': torch.zeros((), dtype=x.dtype).expand(x.shape) for name, x in names.items()}
    state['classifier.weight'] = torch.zeros(CLASSES, channels[4], 1, 1)
    assert convert(state, CLASSES)[1:] == ('Classifier', backbone, None)


@pytest.mark.parametrize('name', NETWORKS)
def test_is_published(tmp_path, name):
    def form_of(state):
        torch.save(state, tmp_path / 'file.pth')
        return read_state_dict(tmp_path / 'file.pth').form

    state = state_of(name)
    assert form_of(state) == form_of({f'module.{key}': value for key, value in state.items()}) == PUBLISHED
    ours = convert(state, CLASSES)
    assert isinstance(ours, Published)
    assert form_of(ours.network.state_dict()) == form_of(build_backbone(NARROW).state_dict()) == 'a bare state dict'


def test_stages_without_the_names_of_imagenet_are_published_too(tmp_path):
    state = {name: value for name, value in state_of('Classifier').items() if not name.startswith('model.')}
    torch.save(state, tmp_path / 'file.pth')
    assert read_state_dict(tmp_path / 'file.pth').form == PUBLISHED
    assert 'contains no model.*' in refusal(state)


# Refusing -----------------------------------------------------------------------------------------------------------


def refusal(state, num_classes: int = CLASSES) -> str:
    with pytest.raises(UserError) as error:
        convert(state, num_classes)
    text = str(error.value)
    assert '\n' not in text
    return text


def test_other_networks():
    line = 'is not a network of the published code, which has one of classifier.weight, fc_edge6.weight, decoder'
    assert refusal({'a': torch.zeros(1)}).startswith(line)
    ours = build_segmenter('DeepLabv3+', NARROW, CLASSES + 1, 'fix', True)
    assert refusal(ours.state_dict()).startswith(line)


@pytest.mark.parametrize(
    'name, line',
    [
        ('Classifier', 'classifier.weight has 3 outputs, expected 20 (Classifier) or 21 (Seg_Model): is it of another'),
        ('Seg_Model', 'classifier.weight has 4 outputs, expected 20 (Classifier) or 21 (Seg_Model): is it of another'),
        ('CSeg_Model', 'fc_edge6.weight has 4 outputs, expected 1 (AffinityNet) or 21 (CSeg_Model): is it of another'),
        ('DeepLabv3+', 'decoder.classifier.8.weight has 4 outputs, expected 21 (DeepLabv3+): is it of another data'),
    ],
)
def test_other_number_of_classes(name, line):
    assert refusal(state_of(name), 20).startswith(line)


def test_edges_do_not_depend_on_the_number_of_classes():
    assert convert(state_of('AffinityNet'), 20).name == 'AffinityNet'


@pytest.mark.parametrize(
    'name, missing',
    [
        ('AffinityNet', 'fc_edge3.1.bias'),
        ('AffinityNet', 'fc_edge6.bias'),
        ('CSeg_Model', 'fc_edge1.0.weight'),
        ('DeepLabv3+ GN', 'aspp.aspp2.bn.weight'),
        ('DeepLabv3+', 'decoder.classifier.5.running_var'),
        ('DeepLabv3+', 'aspp.global_avg_pool.1.weight'),
    ],
)
def test_missing_tensor_of_the_head(name, missing):
    state = state_of(name)
    del state[missing]
    assert refusal(state) == f'{missing} is missing'


@pytest.mark.parametrize('damage', ['missing', 'left over', 'shape'])
def test_backbone_that_is_not_registered(damage):
    state = state_of('Classifier')
    if damage == 'missing':
        name = 'model.layer3.0.conv3.weight'
        del state[name]
    elif damage == 'left over':
        name = 'model.layer3.1.conv3.weight'
        state[name] = torch.zeros(1)
    else:
        name = 'model.layer3.0.bn3.bias'
        state[name] = torch.zeros(1)
    count = '1 tensors are missing, unknown or of another shape'
    assert refusal(state) == f'fits no registered backbone; the nearest is {NARROW}: {count}, the first is {name}'


@pytest.mark.parametrize('name', NETWORKS)
def test_tensor_that_is_left_over(name):
    state = {**state_of(name), 'decoder.extra.weight': torch.zeros(1)}
    assert refusal(state) == 'contains decoder.extra.weight, which is not a tensor of the published network'


def test_other_shapes_of_the_head():
    state = state_of('AffinityNet')
    state['fc_edge2.0.weight'] = torch.zeros(16, 64, 1, 1)
    assert refusal(state) == 'fc_edge2.0.weight has the shape (16, 64, 1, 1), expected (32, 64, 1, 1)'
    state = state_of('Classifier')
    state['classifier.weight'] = torch.tensor(1.0)
    assert refusal(state).startswith('classifier.weight has 0 outputs')


@pytest.mark.parametrize('name', ['model.layer1.0.bn1.running_var', 'classifier.weight'])
def test_tensors_that_are_not_finite(name):
    state = state_of('Classifier')
    state[name].view(-1)[1] = float('nan')
    assert refusal(state) == f'{name} contains non-finite values'


@pytest.mark.parametrize(
    'name, original',
    [
        ('stage1.0.0.weight', 'model.conv1.0.weight'),
        ('stage1.1.running_mean', 'model.bn1.running_mean'),
        ('stage2.0.0.conv1.weight', 'model.layer1.0.conv1.weight'),
        ('stage5.0.0.conv2.fc2.bias', 'model.layer4.0.conv2.fc2.bias'),
    ],
)
def test_copies_that_differ(name, original):
    state = state_of('Classifier')
    state[name].view(-1)[0] += 1
    assert refusal(state) == f'{name} differs from {original}, of which it should be a copy'
