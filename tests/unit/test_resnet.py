"""ResNet against torchvision's with the same weights and random norms."""

import pytest
import torch
import torchvision

from core.models.backbones import build_backbone
from support import randomised


def reference(name: str, output_stride: int):
    """Return torchvision's network; at output stride 16, layer4 has stride 1 and no dilation."""
    model = torchvision.models.get_model(name, weights=None)
    if output_stride == 16:
        model.layer4[0].conv2.stride = (1, 1)
        model.layer4[0].downsample[0].stride = (1, 1)
    return model


@pytest.mark.parametrize(
    'name, output_stride',
    [('resnet50', 16), ('resnet50', 32), pytest.param('resnet101', 16, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_bit_equal_to_torchvision(name, output_stride, dtype):
    model = randomised(build_backbone(name, output_stride)).to(dtype)
    other = reference(name, output_stride).to(dtype).eval()
    missing = other.load_state_dict(model.state_dict(), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (['fc.weight', 'fc.bias'], [])
    x = torch.randn(2, 3, 64, 49, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model(x)
        x = other.maxpool(other.relu(other.bn1(other.conv1(x))))
        for i, found in enumerate(features):
            x = getattr(other, f'layer{i}')(x) if i else x
            assert torch.equal(found, x)
    assert 0.01 < float((x > 0).double().mean()) < 0.99  # otherwise this compares nothing


@pytest.mark.parametrize('name', ['resnet50', 'resnet101', 'resnet152'])
def test_names_and_shapes_equal_torchvisions(name):
    with torch.device('meta'):
        ours, theirs = build_backbone(name).state_dict(), reference(name, 16).state_dict()
    shapes = {key: value.shape for key, value in theirs.items() if not key.startswith('fc.')}
    assert len(shapes) == len(theirs) - 2
    assert {key: value.shape for key, value in ours.items()} == shapes
    assert list(ours) == list(shapes)
