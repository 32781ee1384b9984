"""ResNet against torchvision's with the same weights and random norm statistics, in double precision."""

import pytest
import torch
import torchvision
from conftest import randomised
from core.backbone import build_backbone


def reference(name: str, output_stride: int):
    """torchvision's network; at output stride 16 layer4 does not stride, and nothing is dilated."""
    model = torchvision.models.get_model(name, weights=None)
    if output_stride == 16:
        model.layer4[0].conv2.stride = (1, 1)
        model.layer4[0].downsample[0].stride = (1, 1)
    return model


@pytest.mark.parametrize('name, output_stride', [('resnet50', 16), ('resnet50', 32), ('resnet101', 16)])
def test_equals_torchvision(name, output_stride):
    model = randomised(build_backbone(name, output_stride))
    other = reference(name, output_stride).double().eval()
    missing = other.load_state_dict(model.state_dict(), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (['fc.weight', 'fc.bias'], [])
    x = torch.randn(2, 3, 64, 49, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model(x)
        x = other.maxpool(other.relu(other.bn1(other.conv1(x))))
        for i, found in enumerate(features):
            x = getattr(other, f'layer{i}')(x) if i else x
            torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9 * float(x.abs().max()))
    assert 0.01 < float((x > 0).double().mean()) < 0.99  # or this compares nothing


@pytest.mark.parametrize('name', ['resnet50', 'resnet101', 'resnet152'])
def test_names_and_shapes_are_torchvisions(name):
    with torch.device('meta'):
        ours, theirs = build_backbone(name).state_dict(), reference(name, 16).state_dict()
    shapes = {key: value.shape for key, value in theirs.items() if not key.startswith('fc.')}
    assert {key: value.shape for key, value in ours.items()} == shapes
