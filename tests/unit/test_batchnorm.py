"""BatchNorm: without moving its running statistics, and folded into convolutions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace
from torch.fx.proxy import TraceError

from core.models import AffinityNet, Classifier, DeepLabV3Plus
from core.models.batchnorm import fold_batchnorm, running_statistics_kept
from support import assert_identical, batchnorms, statistics

NARROW = 'resnest14_narrow'
IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# Running statistics -------------------------------------------------------------------------------------------------


def test_running_statistics_are_kept_inside_only():
    """Inside, BatchNorm normalises by the batch as usual."""
    torch.manual_seed(0)
    model = Classifier(NARROW, 7).train()
    before = statistics(model)
    with running_statistics_kept(model):
        inside = model(IMAGES)
    assert_identical(statistics(model), before)
    assert torch.equal(model(IMAGES), inside)
    assert {int(norm.num_batches_tracked) for norm in batchnorms(model).values()} == {1}


def test_running_statistics_are_tracked_again_after_an_error():
    model = Classifier(NARROW, 7).train()
    before = statistics(model)
    with pytest.raises(RuntimeError, match='memory'), running_statistics_kept(model):
        model(IMAGES)
        raise RuntimeError('out of memory')
    assert_identical(statistics(model), before)
    model(IMAGES)
    assert {int(norm.num_batches_tracked) for norm in batchnorms(model).values()} == {1}


def test_frozen_running_statistics_are_left_alone():
    model = Classifier(NARROW, 7, 'fix').train()
    before = {name: id(value) for name, value in model.named_buffers()}
    with running_statistics_kept(model):
        assert {name: id(value) for name, value in model.named_buffers()} == before


# Folding ------------------------------------------------------------------------------------------------------------


def randomise_norms(model: nn.Module) -> None:
    for norm in batchnorms(model).values():
        for value, (low, high) in zip(
            norm.state_dict().values(), ((0.5, 1.5), (-1, 1), (-1, 1), (0.5, 1.5)), strict=False
        ):
            value.uniform_(low, high)


@pytest.mark.parametrize(
    'architecture',
    [
        NARROW,
        'mobilenet_v2',
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ('resnet50', 'resnest14', 'resnest26', 'efficientnet_lite0')
        ),
    ],
)
@pytest.mark.parametrize('build', [lambda name: Classifier(name, 7), AffinityNet, lambda name: DeepLabV3Plus(name, 8)])
def test_folded_network_is_the_same_function_without_batchnorm(architecture, build):
    torch.manual_seed(0)
    model = build(architecture).double().eval()
    randomise_norms(model)
    images = IMAGES[:2, :, :48].double()
    with torch.no_grad():
        before = model(images)
        folded = fold_batchnorm(copy.deepcopy(model).train())
        assert not batchnorms(folded.backbone) and not any(module.training for module in folded.modules())
        torch.testing.assert_close(folded(images), before, rtol=1e-9, atol=1e-9 * before.abs().max().item())
        assert torch.equal(model(images), before)  # the model itself is unchanged


class Unit(nn.Sequential):
    """Convolution, BatchNorm and ReLU: can be traced."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(nn.Conv2d(inputs, outputs, 3, 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class PaddedUnit(nn.Module):
    """Pads to a multiple of 8 and to at least 16 pixels with Python's max() and %: cannot be traced."""

    def __init__(self, inner: nn.Module, norm: nn.Module):
        super().__init__()
        self.inner, self.norm = inner, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[2:]
        x = F.pad(x, (0, max(16 - w, -w % 8), 0, max(16 - h, -h % 8)))
        if x.shape[2] > x.shape[3]:
            x = x.flip(-1)
        return self.norm(self.inner(x))


class PaddedBackbone(nn.Module):
    """A backbone that pads depending on the shape, at two depths."""

    channels = (4, 4, 8, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(Unit(3, 4))
        self.blocks = nn.ModuleList([PaddedUnit(Unit(4, 8), nn.BatchNorm2d(8)), PaddedUnit(Unit(8, 8), nn.Identity())])
        self.last = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        h, w = x.shape[2:]
        x = F.pad(x, (0, max(32 - w, 0), 0, max(32 - h, -h % 16)))
        features = [self.stem(x)] * 2
        for block in self.blocks:
            features.append(block(features[-1]))
        return [*features, self.last(features[-1])]


@pytest.mark.parametrize('size', [(64, 64), (50, 33), (20, 70)])
def test_backbone_that_cannot_be_traced_as_a_whole(size):
    torch.manual_seed(0)
    model = Classifier(NARROW, 8)
    model.backbone = PaddedBackbone()
    model.classifier = nn.Conv2d(8, 8, 1, bias=False)
    model = model.double().eval()
    randomise_norms(model)
    for part in (model.backbone, *model.backbone.blocks):
        with pytest.raises(TraceError):
            symbolic_trace(part)
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(images, with_cam=True)
        assert len(batchnorms(model)) == 5
        folded = fold_batchnorm(copy.deepcopy(model).train())
        # Folded wherever convolution and BatchNorm are in one traceable child; the one on its own stays.
        assert set(batchnorms(folded)) == {'backbone.blocks.0.norm'}
        assert not any(module.training for module in folded.modules())
        for found, expected in zip(folded(images, with_cam=True), before, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())
        for found, expected in zip(model(images, with_cam=True), before, strict=True):
            assert torch.equal(found, expected)


class Optional(nn.Module):
    """Doubles without a mask: tracing it with the mask as a symbol would fix the other branch."""

    def __init__(self):
        super().__init__()
        self.unit = Unit(3, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.unit(x)
        return x * 2 if mask is None else x * mask


class OptionalBackbone(nn.Module):
    channels = (8, 8, 8, 8, 8)

    def __init__(self):
        super().__init__()
        self.block = Optional()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.block(F.pad(x, (0, max(16 - x.shape[3], 0))))] * 5


def test_optional_arguments_keep_their_branch():
    torch.manual_seed(0)
    model = Classifier(NARROW, 8)
    model.backbone, model.classifier = OptionalBackbone(), nn.Conv2d(8, 8, 1, bias=False)
    model = model.double().eval()
    randomise_norms(model)
    images = torch.randn(2, 3, 20, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images)
        folded = fold_batchnorm(model)
        torch.testing.assert_close(folded(images), expected, rtol=1e-12, atol=1e-12)
    assert not batchnorms(folded)
