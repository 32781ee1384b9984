"""timm's convolutional networks as backbones (`timm/NAME`): its `features_only` networks at output stride 16.

timm returns the four maps at strides 4, 8, 16 and 16. The first of the five maps is the end of the stem if the stem
ends at stride 4: after the max pool of a ResNet, after the patches of a ConvNeXt. If the stem ends at stride 2 (RegNet,
EfficientNet, MobileNet), timm's map at stride 4 is both the first and the second map.

timm is imported only for such a network, so everything else works without it.
"""

import importlib
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from core import UserError
from core.maps import strided_size
from core.models.renormalise import Renormalise

PREFIX = 'timm/'
PROBE = (80, 112)  # an image whose sides are multiples of 16 and of no larger stride


def check_name(name: str) -> None:
    """Raise UserError if timm or the network (named without prefix) is missing, or if our network is better."""
    if name.startswith('resnest'):
        lost = "timm's loses the average pooling at output stride 16"
        raise UserError(f'{PREFIX}{name}: {lost}: take one of the ResNeSts without the prefix', option='backbone')
    if not _timm(name).is_model(name):
        raise UserError(f'{PREFIX}{name}: timm has no network of this name', option='backbone')


def read_pretrained(name: str) -> dict[str, Tensor]:
    """Return the state dict of timm's whole network with its default weights, downloaded once into timm's cache.

    Raises UserError if there are none, or if they cannot be read.
    """
    timm = _timm(name)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f'imagenet: timm has no weights for {name}: pass none or a local file', option='weights')
    try:
        with torch.random.fork_rng(devices=[]):  # timm draws random weights first
            return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # an error of network or disk, a damaged file, or any error of a library
        save = f"torch.save(timm.create_model('{name}', pretrained=True).state_dict(), 'FILE')"
        raise UserError(
            f'imagenet: timm cannot load the weights of {name} ({_reason(error)}): run "import timm, torch; {save}" '
            'elsewhere and pass the local file',
            option='weights',
        ) from None


def _timm(name: str) -> ModuleType:
    try:
        return importlib.import_module('timm')  # imported here: everything else works without timm
    except ImportError:
        raise UserError(f'{PREFIX}{name} needs the package timm: pip install timm', option='backbone') from None


class TimmBackbone(nn.Module):
    """Images (N, 3, H, W) -> five feature maps. Dropout and stochastic depth are switched off.

    Images are padded on the right and at the bottom, with the mean colour, to multiples of 16, because some networks
    (ConvNeXt) drop the pixels that fill no patch. The maps are cropped to the sizes that other backbones return. The
    mean and standard deviation of the network's configuration are part of the state dict, because another version of
    timm may have other values.
    """

    def __init__(self, name: str, output_stride: int = 16):
        super().__init__()
        self.strides = (4, 4, 8, 16, output_stride)
        self.network = _create(name, output_stride)
        config = self.network.pretrained_cfg
        self.renormalise = Renormalise(config['mean'], config['std'], persistent=True)
        _switch_off_randomness(self.network)
        self._prepare(name)

    def _prepare(self, name: str) -> None:
        """Find the end of the stem and the channels with an image. Raises UserError for other strides."""
        image = torch.zeros(1, 3, *PROBE, device=self.renormalise.scale.device)
        self.network.eval()
        try:
            with torch.no_grad():
                self.stem = _end_of_stem(self.network, image)
                if self.stem is not None:
                    self.network.return_layers[self.stem] = 'stem'
                sizes = [x.shape[1:] for x in self.network(image)]
        except Exception as error:  # for instance attention to a fixed image size
            size = f'{PROBE[0]}x{PROBE[1]} pixels'
            raise UserError(
                f'{PREFIX}{name}: fails on an image of {size}: {_reason(error)}', option='backbone'
            ) from None
        self.network.train()
        expected = [strided_size(PROBE, stride) for stride in self.strides]
        if [size[1:] for size in self._five(sizes)] != expected:
            found = ', '.join(str(PROBE[0] // size[1]) for size in sizes)
            raise _other_strides(name, f'are at strides {found}')
        if None in self._ends():
            raise UserError(f'{PREFIX}{name}: its maps are not at the ends of its modules', option='backbone')
        self.channels = tuple(size[0] for size in self._five(sizes))

    def _five(self, maps: list) -> list:
        """Return the five maps, given timm's maps, the first of which may have stride 2."""
        return maps[-5:] if self.stem is not None else [*maps[-4:-3], *maps[-4:]]

    def _units(self) -> dict[str, nn.Module]:
        """Return the modules that timm's network runs one after the other; each group in `blocks` counts as one."""
        units = {}
        for name, module in self.network.named_children():
            inside = module.named_children() if name == 'blocks' else [('', module)]
            units.update({f'{name}_{child}'.rstrip('_'): part for child, part in inside})
        return units

    def _ends(self) -> list[int | None]:
        """Return the position behind the last unit of each stage, None where a map is taken inside a unit."""
        units = list(self._units())
        layers = [name.replace('.', '_') for name in self.network.feature_info.module_name()[-4:]]
        first = layers[0] if self.stem is None else self.stem
        return [units.index(name) + 1 if name in units else None for name in (first, *layers)]

    def stages(self) -> list[list[nn.Module]]:
        units, ends = list(self._units().values()), self._ends()
        return [units[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def forward(self, x: Tensor) -> list[Tensor]:
        size = x.shape[2:]
        x = self.renormalise(F.pad(x, (0, -size[1] % 16, 0, -size[0] % 16)))
        maps = []
        for features, stride in zip(self._five(self.network(x)), self.strides, strict=True):
            rows, columns = strided_size(size, stride)
            maps.append(features[..., :rows, :columns])
        return maps

    def own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict of timm's whole network with the names of this network; any other is returned unchanged.

        In timm's `features_only` networks, the first two parts of some names are joined (`stages.0` is `stages_0`), and
        the modules after the last map, such as the head, are missing.
        """
        own = self.state_dict()
        if any(key in own for key in state):
            return state
        children = dict(self.network.named_children())
        renamed = {key: own[key] for key in ('renormalise.scale', 'renormalise.shift')}
        for key, value in state.items():
            for name in (key, key.replace('.', '_', 1)):
                if name.split('.')[0] in children:
                    renamed[f'network.{name}'] = value
        return renamed


def _create(name: str, output_stride: int) -> nn.Module:
    create = _timm(name).create_model
    try:
        return create(name, features_only=True, output_stride=output_stride)
    except Exception as error:  # such as TypeError for an unknown argument, or AssertionError without a text
        reason = _reason(error)
    try:
        strides = create(name, features_only=True).feature_info.reduction()
    except Exception:
        raise UserError(f'{PREFIX}{name}: timm cannot build it: {reason}', option='backbone') from None
    raise _other_strides(name, f'are at strides {", ".join(map(str, strides))} and it cannot be dilated')


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _other_strides(name: str, found: str) -> UserError:
    return UserError(f"{PREFIX}{name}: timm's maps {found}: they have to be at 4, 8, 16 and 16", option='backbone')


def _switch_off_randomness(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for attribute in ('drop_prob', 'drop_rate'):  # attributes of timm's DropPath, DropBlock and blocks
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)


def _end_of_stem(network: nn.Module, image: Tensor) -> str | None:
    """Return the last module before timm's map at stride 4 that already outputs stride 4, or None."""
    stem = None
    if hasattr(network, 'return_layers'):  # otherwise timm does not run its modules in a row
        first = network.feature_info.module_name()[-4].replace('.', '_')
        for name, module in network.items():
            if name == first:
                break
            image = module(image)
            stem = name if image.shape[2:] == strided_size(PROBE) else None
    return stem
