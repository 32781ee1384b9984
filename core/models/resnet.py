"""torchvision's ResNet-50/101/152 as backbones, with torchvision's names, at output stride 16 without dilation.

Stride 1 without dilation in layer4 is as published (docs/method.md, "Backbones").
"""

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import Bottleneck


class ResNet(models.ResNet):
    """Images (N, 3, H, W) -> five feature maps. `layers` is the number of blocks per layer."""

    channels = (64, 256, 512, 1024, 2048)

    def __init__(self, layers: tuple[int, ...], output_stride: int = 16):
        super().__init__(Bottleneck, list(layers))
        del self.avgpool, self.fc
        if output_stride == 16:
            self.layer4[0].conv2.stride = self.layer4[0].downsample[0].stride = (1, 1)

    def stages(self) -> list[list[nn.Module]]:
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.maxpool(self.relu(self.bn1(self.conv1(x))))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features.append(layer(features[-1]))
        return features
