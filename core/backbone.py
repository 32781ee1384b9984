"""The registry of backbones: what each is called, how it is built, where its ImageNet weights come from.

A backbone is a module whose `channels` tells the channels of its five stages (stem after the max pool, layer1 to
layer4), whose `stages()` gives the modules of each, and whose forward returns the five feature maps, at strides
4, 4, 8, 16, 16. Everything built on one asks it for its channels.
"""

import hashlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

from core import InputError

if TYPE_CHECKING:  # this module is imported by flags, which must not wait for torch
    from torch import nn


@dataclass(frozen=True)
class Entry:
    """`build(output_stride)` makes the backbone; `url()` tells its ImageNet file, {name}-{start of sha256}.pth."""

    build: Callable
    url: Callable[[], str] | None = None


def _resnet(layers: tuple[int, ...], weights: str) -> Entry:
    def build(output_stride: int = 16):
        from core.resnet import ResNet

        return ResNet(layers, output_stride)

    return Entry(build, lambda: _torchvision_url(weights))


def _resnest(layers: tuple[int, ...], stem_width: int, file: str | None = None, width: int = 64) -> Entry:
    def build(output_stride: int = 16):
        from core.resnest import ResNeSt

        return ResNeSt(layers, stem_width, width, output_stride)

    release = 'https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/'
    return Entry(build, (lambda: release + file) if file else None)


def _mobilenet_v2(output_stride: int = 16):
    from core.mobilenet import MobileNetV2

    return MobileNetV2(output_stride)


def _torchvision_url(weights: str) -> str:
    import torchvision.models

    return torchvision.models.get_weight(f'{weights}.IMAGENET1K_V1').url


BACKBONES = {
    'resnet50': _resnet((3, 4, 6, 3), 'ResNet50_Weights'),
    'resnet101': _resnet((3, 4, 23, 3), 'ResNet101_Weights'),
    'resnet152': _resnet((3, 8, 36, 3), 'ResNet152_Weights'),
    'resnest14': _resnest((1, 1, 1, 1), 32),
    'resnest26': _resnest((2, 2, 2, 2), 32),
    'resnest50': _resnest((3, 4, 6, 3), 32, 'resnest50-528c19ca.pth'),
    'resnest101': _resnest((3, 4, 23, 3), 64, 'resnest101-22405ba7.pth'),
    'resnest200': _resnest((3, 24, 36, 3), 64, 'resnest200-75117900.pth'),
    'resnest269': _resnest((3, 30, 48, 8), 64, 'resnest269-0cc87c48.pth'),
    # A quarter as wide as resnest14: for the drawn demo set, from scratch, on a laptop.
    'resnest14_narrow': _resnest((1, 1, 1, 1), 16, width=16),
    'mobilenet_v2': Entry(_mobilenet_v2, lambda: _torchvision_url('MobileNet_V2_Weights')),
}


def build_backbone(name: str, output_stride: int = 16) -> 'nn.Module':
    """The backbone of a name, at random weights. Raises InputError for a name that is not registered."""
    if name not in BACKBONES:
        raise InputError(f'backbone {name!r} is none of {", ".join(BACKBONES)}')
    return BACKBONES[name].build(output_stride)


def load_weights(backbone: 'nn.Module', name: str, source: str) -> None:
    """Give a backbone its weights: source is 'none' (keep the random ones), 'imagenet' or the path of a local file.

    'imagenet' downloads once into torch's hub cache and checks the hash. A file is a state dict with the released
    names, or one that this repository made: then its backbone is taken. Raises InputError where that cannot be.
    """
    if source == 'none':
        return
    if source == 'imagenet':
        state, where = _download(name), f'the ImageNet file of {name}'
    else:
        state, where = _read(Path(source)), f'--weights {source}'
    if any(key.startswith('backbone.') for key in state):
        state = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
    own = backbone.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    wrong = [key for key in own if key not in fitting and not key.endswith('num_batches_tracked')]
    wrong += [key for key in state if key not in own and not key.startswith(('fc.', 'classifier.'))]  # ImageNet's head
    if wrong:
        count = f'{len(wrong)} tensors are missing, too many or of another shape'
        raise InputError(f'{where}: does not fit {name}: {count}, first {wrong[0]}')
    backbone.load_state_dict(fitting, strict=False)


def _download(name: str) -> dict:
    import torch

    entry = BACKBONES[name]
    if entry.url is None:
        raise InputError(f'--weights imagenet: no ImageNet file is published for {name}: pass none or a local file')
    url = entry.url()
    file = Path(torch.hub.get_dir()) / 'checkpoints' / url.rsplit('/', 1)[1]
    hint = f'fetch {url} elsewhere and pass it as --weights PATH'
    try:
        # torch.hub checks the hash only of what it downloads; a file that lies in the cache is checked below.
        state = torch.hub.load_state_dict_from_url(url, map_location='cpu', progress=False, weights_only=True)
    except (URLError, OSError) as error:
        raise InputError(f'--weights imagenet: {file.name} cannot be downloaded ({error}): {hint}') from None
    except Exception as error:
        raise InputError(
            f'--weights imagenet: {file} is damaged ({type(error).__name__}): delete it, or {hint}'
        ) from None
    expected = re.search(r'-([0-9a-f]{8,})\.pth$', file.name)[1]
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(expected):
        raise InputError(
            f'--weights imagenet: {file} is damaged (its sha256 does not start with {expected}): delete it'
        )
    return state


def _read(path: Path) -> dict:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            state = torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise InputError(f'--weights {path}: cannot be read ({error.strerror}); or pass imagenet or none') from None
    except Exception as error:  # whatever a damaged or foreign file makes of the unpickler
        raise InputError(f'--weights {path}: is no state dict ({type(error).__name__})') from None
    whole = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not whole or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f'--weights {path}: is no state dict (names with a tensor each)')
    return state
