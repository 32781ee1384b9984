"""ResNeSt against timm's with the same weights and random norm statistics, in double precision."""

import pytest
import timm
import torch
from torch import nn

from core.models.backbones import build_backbone
from support import randomised

# Small images suffice for the deep ones; an odd size tests the rounding of pooling.
CASES = [
    ('resnest14', 'resnest14d', (80, 65)),
    pytest.param('resnest26', 'resnest26d', (80, 65), marks=pytest.mark.slow),
    pytest.param('resnest50', 'resnest50d', (64, 49), marks=pytest.mark.slow),
    ('resnest101', 'resnest101e', (64, 32)),
]


def reference(name: str, output_stride: int) -> nn.Module:
    """Return timm's network as the authors published it: at stride 16, the first block of layer4 pools differently."""
    model = timm.create_model(name, pretrained=False, output_stride=output_stride, num_classes=0)
    if output_stride == 16:
        block = model.layer4[0]
        block.downsample[0] = nn.Identity()
        block.avd_last = nn.AvgPool2d(3, 1, 1)
    return model


@pytest.mark.parametrize('ours, theirs, size', CASES)
@pytest.mark.parametrize('output_stride', [32, 16])
def test_equals_timm(ours, theirs, size, output_stride):
    model = randomised(build_backbone(ours, output_stride))
    other = reference(theirs, output_stride).double().eval()
    state = model.state_dict()
    assert set(state) == set(other.state_dict())
    other.load_state_dict(state)
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model(images)
        expected = other.maxpool(other.act1(other.bn1(other.conv1(images))))
        for i, found in enumerate(features):
            expected = getattr(other, f'layer{i}')(expected) if i else expected
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        last = other.forward_features(images)
    torch.testing.assert_close(features[-1], last, rtol=1e-9, atol=1e-9 * float(last.abs().max()))
    assert 0.01 < float((last > 0).double().mean()) < 0.99  # otherwise this compares nothing


def test_training_statistics_equal_timms():
    torch.manual_seed(0)
    model = build_backbone('resnest14').train()
    other = reference('resnest14d', 16).train()
    other.load_state_dict(model.state_dict())
    images = torch.randn(4, 3, 64, 64)
    model(images)
    other.forward_features(images)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-4)


def test_layer4_is_dilated_from_its_second_block():
    with torch.device('meta'):
        layer4 = build_backbone('resnest50').layer4
    assert [block.conv2.conv.dilation for block in layer4] == [(1, 1), (2, 2), (2, 2)]
    assert {module.stride for module in layer4.modules() if isinstance(module, nn.Conv2d)} == {(1, 1)}


def test_stem_widths_of_the_published_networks():
    with torch.device('meta'):
        widths = {name: build_backbone(f'resnest{name}').conv1[0].out_channels for name in (50, 101, 200, 269)}
    assert widths == {50: 32, 101: 64, 200: 64, 269: 64}
