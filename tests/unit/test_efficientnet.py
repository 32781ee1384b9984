"""EfficientNet-Lite against timm's with the same weights and random norm statistics, and the released files."""

import importlib.util

import pytest
import torch
from torch import nn

from core.data.transforms import MEAN, STD
from core.models.backbones import BACKBONES, build_backbone
from core.models.weights import load_weights
from support import batchnorms, randomised

timm = pytest.importorskip('timm')
NAMES = ('efficientnet_lite0', 'efficientnet_lite1', 'efficientnet_lite2')
CHANNELS = {
    'efficientnet_lite0': (24, 24, 40, 112, 1280),
    'efficientnet_lite1': (24, 24, 40, 112, 1280),
    'efficientnet_lite2': (24, 24, 48, 120, 1280),
}
# The last block of each stage in timm's groups of blocks.
ENDS = ((1, 0), (1, -1), (2, -1), (4, -1))


def reference(name: str, output_stride: int) -> nn.Module:
    """Return timm's network. At stride 16 timm would also dilate the convolutions after the removed stride."""
    model = timm.create_model(f'tf_{name}', pretrained=False)
    if output_stride == 16:
        conv = model.blocks[5][0].conv_dw
        assert conv.stride == (2, 2) and type(conv).__name__ == 'Conv2dSame'
        conv.stride = (1, 1)
    return model


def theirs(state: dict) -> dict:
    """Rename tensors as timm does: a convolution and its norm at a time, blocks counted in each group."""
    blocks = max(int(name.split('.')[1]) for name in state if name.startswith('_blocks.')) + 1
    assert blocks in (16, 21)
    repeats = (1, 2, 2, 3, 3, 4, 1) if blocks == 16 else (1, 3, 3, 4, 4, 5, 1)
    places = [(group, j) for group, repeat in enumerate(repeats) for j in range(repeat)]
    plain = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}
    first = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}
    other = {
        '_expand_conv': 'conv_pw',
        '_bn0': 'bn1',
        '_depthwise_conv': 'conv_dw',
        '_bn1': 'bn2',
        '_project_conv': 'conv_pwl',
        '_bn2': 'bn3',
    }
    renamed = {}
    for name, value in state.items():
        *place, module, tensor = name.split('.')
        if place:
            group, j = places[int(place[1])]
            renamed[f'blocks.{group}.{j}.{(other if group else first)[module]}.{tensor}'] = value
        else:
            renamed[f'{plain[module]}.{tensor}'] = value
    return renamed


def stage_outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the five feature maps of timm's network for images of mean and deviation 0.5."""
    found = {}
    for group, j in ENDS:
        model.blocks[group][j].register_forward_hook(lambda _, __, y, key=(group, j): found.update({key: y}))
    last = model.forward_features(x)
    return [*(found[end] for end in ENDS), last]


def pixels(size: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.rand(2, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def imagenet(x: torch.Tensor) -> torch.Tensor:
    mean, std = (x.new_tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return (x - mean) / std


@pytest.mark.parametrize('name', [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
@pytest.mark.parametrize('output_stride', [32, 16])
@pytest.mark.parametrize('size', [(96, 64), (65, 82), (35, 47)])
def test_equals_timm(name, output_stride, size):
    """Sides that are even or odd at different strides test the padding."""
    model = randomised(build_backbone(name, output_stride))
    other = reference(name, output_stride).double().eval()
    missing = other.load_state_dict(theirs(model.state_dict()), strict=False)
    assert missing.unexpected_keys == [] and set(missing.missing_keys) == {'classifier.weight', 'classifier.bias'}
    x = pixels(size, torch.float64)
    with torch.no_grad():
        features, expected = model(imagenet(x)), stage_outputs(other, (x - 0.5) / 0.5)
    for found, wanted in zip(features, expected, strict=True):
        assert found.shape == wanted.shape
        # The mean and the deviation are rounded to float32.
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    assert 0.01 < float((features[-1] > 0).double().mean()) < 0.99  # otherwise this compares nothing


def test_norms():
    """The published momentum of 0.99 in TensorFlow's terms; timm's networks have the same eps."""
    norms = batchnorms(build_backbone('efficientnet_lite0')).values()
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert {norm.eps for norm in reference('efficientnet_lite0', 16).modules() if hasattr(norm, 'eps')} == {1e-3}


@pytest.mark.parametrize('name', NAMES)
def test_names_and_channels(name):
    with torch.device('meta'):
        model = build_backbone(name)
    assert model.channels == CHANNELS[name]
    names = {key.rsplit('.', 1)[0] for key in model.state_dict()}
    block = {'_expand_conv', '_bn0', '_depthwise_conv', '_bn1', '_project_conv', '_bn2'}
    count = 16 if name == 'efficientnet_lite0' else 21
    expected = {f'_blocks.{i}.{part}' for i in range(count) for part in block}
    expected -= {'_blocks.0._expand_conv', '_blocks.0._bn0'}
    assert names == expected | {'_conv_stem', '_bn0', '_conv_head', '_bn1'}


def test_canvas_is_the_mean_colour():
    """Zeros, the canvas after normalisation, are pixels of the ImageNet mean, not of the network's own mean."""
    model = build_backbone('efficientnet_lite0').eval()
    seen = []
    model._conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.zeros(1, 3, 32, 32))
    expected = (torch.tensor(MEAN).view(3, 1, 1) - 0.5) / 0.5
    torch.testing.assert_close(seen[0][0, :, :32, :32], expected.expand(3, 32, 32))
    assert seen[0][0, :, 32:].abs().max() == seen[0][0, :, :, 32:].abs().max() == 0  # SAME pads with mid grey


@pytest.mark.parametrize('name', NAMES)
def test_released_file(name):
    """The file of the package, if it is installed, has the names of timm's network, with its 1,000 classes."""
    module, inside = BACKBONES[name].package.split('/', 1)
    spec = importlib.util.find_spec(module)
    if spec is None:
        pytest.skip(f'{module} is not installed')
    model = build_backbone(name)
    load_weights(model, name, 'imagenet')
    state = torch.load(f'{spec.submodule_search_locations[0]}/{inside}', weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    timm.create_model(f'tf_{name}', pretrained=False).load_state_dict(theirs(state))
