"""Networks of the published code: recognised, converted to the same function, or refused naming a tensor.

The classes here imitate them: their modules have the same names, and docs/method.md describes each network.
"""

import pytest
import torch
import torch.nn.functional as F
from conftest import randomised
from torch import nn

from core import UserError
from core.models import backbones
from core.models.backbones import Backbone, build_backbone
from core.models.published import Published, convert, is_published
from core.models.resnet import ResNet
from core.models.segmenters import build_segmenter

NARROW, SMALL = 'resnest14_narrow', 'resnet14'
CLASSES = 3


@pytest.fixture(autouse=True)
def small_resnet(monkeypatch):
    """Register a ResNet with one block per layer, next to the narrow ResNeSt."""
    monkeypatch.setitem(backbones.BACKBONES, SMALL, Backbone(ResNet, dict(layers=(1, 1, 1, 1))))


# Imitations ---------------------------------------------------------------------------------------------------------


class Stages(nn.Module):
    """The backbone under its own names, with ImageNet's unused head, and again as five stages."""

    def __init__(self, backbone: str):
        super().__init__()
        self.model = build_backbone(backbone)
        self.channels = self.model.channels
        self.model.fc = nn.Linear(8, 5)
        stem = (self.model.conv1, self.model.bn1, nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.stage1 = nn.Sequential(*stem)
        for i in range(1, 5):
            setattr(self, f'stage{i + 1}', nn.Sequential(getattr(self.model, f'layer{i}')))

    def features(self, x):
        outputs = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4, self.stage5):
            x = stage(x)
            outputs.append(x)
        return outputs


class PublishedClassifier(Stages):
    def __init__(self, backbone, outputs=CLASSES):
        super().__init__(backbone)
        self.classifier = nn.Conv2d(self.channels[4], outputs, 1, bias=False)

    def forward(self, x):
        return self.classifier(self.features(x)[4])


class PublishedSegModel(PublishedClassifier):
    def __init__(self, backbone, outputs=CLASSES + 1):
        super().__init__(backbone, outputs)


class PublishedEdges(Stages):
    def __init__(self, backbone, outputs=1):
        super().__init__(backbone)
        for i, channels in enumerate(self.channels, 1):
            layers = [nn.Conv2d(channels, 32, 1, bias=False), nn.GroupNorm(4, 32)]
            if i > 2:
                layers.append(nn.Upsample(scale_factor=2 if i == 3 else 4, mode='bilinear', align_corners=False))
            setattr(self, f'fc_edge{i}', nn.Sequential(*layers, nn.ReLU()))
        self.fc_edge6 = nn.Conv2d(5 * 32, outputs, 1)
        self.backbone = nn.ModuleList([self.stage1, self.stage2, self.stage3, self.stage4, self.stage5])
        self.register_buffer('path_indices_0', torch.zeros(4, 1, 9, dtype=torch.int64))

    def forward(self, x):
        edges = [getattr(self, f'fc_edge{i}')(feature) for i, feature in enumerate(self.features(x), 1)]
        h, w = edges[0].shape[2:]
        return self.fc_edge6(torch.cat([edge[..., :h, :w] for edge in edges], 1))


class PublishedCSegModel(PublishedEdges):
    def __init__(self, backbone):
        super().__init__(backbone, CLASSES + 1)


class AtrousUnit(nn.Module):
    def __init__(self, inputs, kernel, dilation, norm):
        super().__init__()
        padding = dilation if kernel == 3 else 0
        self.atrous_conv = nn.Conv2d(inputs, 256, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = norm(256)

    def forward(self, x):
        return F.relu(self.bn(self.atrous_conv(x)))


class PublishedASPP(nn.Module):
    def __init__(self, inputs, norm):
        super().__init__()
        for i, dilation in enumerate((1, 6, 12, 18), 1):
            setattr(self, f'aspp{i}', AtrousUnit(inputs, 1 if i == 1 else 3, dilation, norm))
        pool = nn.AdaptiveAvgPool2d(1)
        self.global_avg_pool = nn.Sequential(pool, nn.Conv2d(inputs, 256, 1, bias=False), norm(256), nn.ReLU())
        self.conv1 = nn.Conv2d(5 * 256, 256, 1, bias=False)
        self.bn1 = norm(256)

    def forward(self, x):
        pooled = F.interpolate(self.global_avg_pool(x), x.shape[2:], mode='bilinear', align_corners=True)
        branches = [self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), pooled]
        return F.relu(self.bn1(self.conv1(torch.cat(branches, 1))))


class PublishedDecoder(nn.Module):
    def __init__(self, inputs, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 48, 1, bias=False)
        self.bn1 = norm(48)
        self.classifier = nn.Sequential(
            *(nn.Conv2d(304, 256, 3, padding=1, bias=False), norm(256), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Conv2d(256, 256, 3, padding=1, bias=False), norm(256), nn.ReLU(), nn.Dropout(0.1)),
            nn.Conv2d(256, CLASSES + 1, 1),
        )

    def forward(self, x, low):
        low = F.relu(self.bn1(self.conv1(low)))
        x = F.interpolate(x, low.shape[2:], mode='bilinear', align_corners=True)
        return self.classifier(torch.cat([x, low], 1))


class PublishedDeepLab(Stages):
    def __init__(self, backbone, use_gn):
        super().__init__(backbone)
        norm = (lambda channels: nn.GroupNorm(4, channels)) if use_gn else nn.BatchNorm2d
        self.aspp = PublishedASPP(self.channels[4], norm)
        self.decoder = PublishedDecoder(self.channels[1], norm)

    def forward(self, x):
        features = self.features(x)
        logits = self.decoder(self.aspp(features[4]), features[1])
        return F.interpolate(logits, x.shape[2:], mode='bilinear', align_corners=True)


NETWORKS = {
    'Classifier': PublishedClassifier,
    'AffinityNet': PublishedEdges,
    'Seg_Model': PublishedSegModel,
    'CSeg_Model': PublishedCSegModel,
    'DeepLabv3+ GN': lambda backbone: PublishedDeepLab(backbone, True),
    'DeepLabv3+': lambda backbone: PublishedDeepLab(backbone, False),
}


def published(name: str, backbone: str = NARROW, seed: int = 0) -> nn.Module:
    """Return an imitation with random weights, norms and statistics."""
    torch.manual_seed(seed)
    return randomised(NETWORKS[name](backbone)).float()


def state_of(name: str, backbone: str = NARROW) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in published(name, backbone).state_dict().items()}


@torch.no_grad()
def assert_same_function(network: nn.Module, original: nn.Module) -> None:
    """Compare class maps, edges or logits on random images."""
    images = torch.randn(2, 3, 80, 64, generator=torch.Generator().manual_seed(1))
    network.eval()
    maps = network(images, with_cam=True)[1] if type(network).__name__ == 'Classifier' else network(images)
    expected = original(images)
    assert maps.shape == expected.shape
    assert expected.std() > 0
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


# Converting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('backbone', [NARROW, SMALL])
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


@pytest.mark.parametrize('backbone', backbones.BACKBONES)
def test_every_registered_backbone_is_recognised(backbone):
    with torch.device('meta'):
        names = build_backbone(backbone).state_dict()
        channels = build_backbone(backbone).channels
    state = {f'model.{name}': torch.zeros((), dtype=x.dtype).expand(x.shape) for name, x in names.items()}
    state['classifier.weight'] = torch.zeros(CLASSES, channels[4], 1, 1)
    assert convert(state, CLASSES)[1:] == ('Classifier', backbone, None)


@pytest.mark.parametrize('name', NETWORKS)
def test_is_published(name):
    assert is_published(state_of(name))
    ours = convert(state_of(name), CLASSES)
    assert isinstance(ours, Published)
    assert not is_published(ours.network.state_dict())
    assert not is_published(build_backbone(NARROW).state_dict())


def test_stages_without_the_names_of_imagenet_are_published_too():
    state = {name: value for name, value in state_of('Classifier').items() if not name.startswith('model.')}
    assert is_published(state)
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
