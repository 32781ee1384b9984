"""ResNeSt (Zhang et al., "ResNeSt: Split-Attention Networks") with the names of the authors' released state dicts.

Radix 2, one cardinal group, deep stem, average-pooled downsampling, average pooling after the split-attention
convolution (`avd`). Output stride 16: layer4 has stride 1 and dilation 2, its first block dilation 1 (docs/method.md,
"Backbones").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RADIX = 2


class SplitAttention(nn.Module):
    """A 3x3 convolution to RADIX splits of `channels`, summed with weights from the splits' global context."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        inner = max(channels * RADIX // 4, 32)
        self.conv = nn.Conv2d(
            channels, channels * RADIX, 3, padding=dilation, dilation=dilation, groups=RADIX, bias=False
        )
        self.bn0 = nn.BatchNorm2d(channels * RADIX)
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.fc2 = nn.Conv2d(inner, channels * RADIX, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv(x)), inplace=True)
        context = x.mean((2, 3), keepdim=True).unflatten(1, (RADIX, -1)).sum(1)
        attention = self.fc2(F.relu(self.bn1(self.fc1(context)))).unflatten(1, (RADIX, -1)).softmax(1)
        # Two products: in torch, a sum over a dimension of two takes longer than the convolution.
        splits = x.chunk(RADIX, 1)
        return torch.addcmul(splits[0] * attention[:, 0], splits[1], attention[:, 1])


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, dilation: int, pooled: bool):
        """pooled: average pooling after the split attention, in the first block of layers 2 to 4 at any stride."""
        super().__init__()
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = SplitAttention(planes, dilation)
        self.avd_layer = nn.AvgPool2d(3, stride, padding=1) if pooled else None
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.downsample = None
        if stride != 1 or inplanes != outplanes:
            pool = (
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            )
            projection = nn.Conv2d(inplanes, outplanes, 1, bias=False)
            self.downsample = nn.Sequential(pool, projection, nn.BatchNorm2d(outplanes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.conv2(out)
        if self.avd_layer is not None:
            out = self.avd_layer(out)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ResNeSt(nn.Module):
    """Images (N, 3, H, W) -> five feature maps. layers: blocks per layer; width: planes of layer1 (published: 64)."""

    def __init__(self, layers: tuple[int, ...], stem_width: int, width: int = 64, output_stride: int = 16):
        super().__init__()
        self.channels = (2 * stem_width, *(width * 2**i * Bottleneck.expansion for i in range(4)))
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, stem_width, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
            nn.Conv2d(stem_width, stem_width, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
            nn.Conv2d(stem_width, 2 * stem_width, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(2 * stem_width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inplanes = 2 * stem_width
        for i in range(4):
            stride, dilation = (1 if i == 0 else 2), 1
            if i == 3 and output_stride == 16:
                stride, dilation = 1, 2
            planes = width * 2**i
            blocks = [Bottleneck(inplanes, planes, stride, 1, pooled=i > 0)]
            inplanes = planes * Bottleneck.expansion
            blocks += [Bottleneck(inplanes, planes, 1, dilation, pooled=False) for _ in range(layers[i] - 1)]
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def stages(self) -> list[list[nn.Module]]:
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features.append(layer(features[-1]))
        return features
