"""MobileNetV2 against torchvision's with the same weights, in double precision."""

import pytest
import torch
import torchvision
from torch import nn

from core.models.backbones import build_backbone
from support import randomised


@pytest.mark.parametrize('output_stride', [32, 16])
def test_equals_torchvision(output_stride):
    model = randomised(build_backbone('mobilenet_v2', output_stride))
    other = torchvision.models.mobilenet_v2().double().eval()
    missing = other.load_state_dict(model.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) == {'classifier.1.weight', 'classifier.1.bias'}
    if output_stride == 16:
        strided = [module for module in other.features[14].modules() if isinstance(module, nn.Conv2d)]
        assert [module.stride for module in strided].count((2, 2)) == 1
        for module in strided:
            module.stride = (1, 1)
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images)[-1], other.features(images), rtol=1e-12, atol=1e-12)
