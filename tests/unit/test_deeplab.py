"""DeepLabv3+: its layers, what trains, and multi-scale inference."""

import pytest
import torch
from torch import nn

from core import UserError
from core.models import DeepLabV3Plus
from core.models.deeplab import multi_scale_logits
from support import assert_identical, bilinear, statistics

NARROW = 'resnest14_narrow'
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('use_gn, groups', [(True, 9), (False, 0)])
def test_layers(use_gn, groups):
    model = DeepLabV3Plus(NARROW, 5, 'fix', use_gn)
    head = [*model.aspp.modules(), *model.decoder.modules()]
    norms = [m for m in head if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))]
    assert len(norms) == 9
    assert sum(isinstance(m, nn.GroupNorm) and m.num_groups == 4 for m in norms) == groups
    convs = [m for m in head if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs if m.bias is not None] == [5]
    assert sorted(m.dilation[0] for m in convs) == [1] * 7 + [6, 12, 18]
    assert sorted((m.in_channels, m.out_channels) for m in convs if m.kernel_size == (3, 3)) == [
        (256, 256), (304, 256), (512, 256), (512, 256), (512, 256),
    ]  # fmt: skip
    assert (1280, 256) in [(m.in_channels, m.out_channels) for m in convs if m.kernel_size == (1, 1)]
    assert sorted(m.p for m in head if isinstance(m, nn.Dropout)) == [0.1, 0.5, 0.5]
    for size in ((64, 48), (65, 50)):
        assert model.eval()(IMAGES.new_zeros(2, 3, *size)).shape == (2, 5, *size)


def test_number_of_classes_is_required():
    with pytest.raises(TypeError, match='num_classes'):
        DeepLabV3Plus(NARROW)


def test_mode_fix_trains_everything_but_the_statistics():
    model = DeepLabV3Plus(NARROW, 5).train()
    before = statistics(model.backbone)
    model(IMAGES).square().sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    assert_identical(statistics(model.backbone), before)
    model = DeepLabV3Plus(NARROW, 5, mode='normal').train()
    before = statistics(model.backbone)
    model(IMAGES)
    assert all(not torch.equal(x, before[name]) for name, x in statistics(model.backbone).items())


def test_multi_scale_logits():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 8, 8)
    scales = [torch.randn(2, 3, 16, 24), torch.randn(2, 3, 32, 48)]
    found = multi_scale_logits(model, scales, (20, 30))
    assert found.shape == (2, 4, 20, 30)
    for i in range(2):
        expected = 0
        for images in scales:
            with torch.no_grad():
                direct, mirrored = model(images[i : i + 1])[0], model(images[i : i + 1].flip(-1))[0]
            expected = expected + bilinear(direct.double().numpy(), (20, 30))
            expected = expected + bilinear(mirrored.double().numpy(), (20, 30))[:, :, ::-1]
        torch.testing.assert_close(found[i].double(), torch.from_numpy(expected.copy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_logits_that_are_not_finite(value):
    model = nn.Conv2d(3, 4, 8, 8)
    images = torch.zeros(2, 3, 16, 24)
    images[1, 0, 0, 0] = value
    with pytest.raises(UserError, match='the logits are not finite'):
        multi_scale_logits(model, [images], (16, 24))
