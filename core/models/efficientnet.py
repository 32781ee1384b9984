"""EfficientNet-Lite as backbones, with the names of the released state dicts, at output stride 16.

EfficientNets (Tan and Le, ICML 2019) without squeeze-excitation, with ReLU6 and TensorFlow's SAME padding. The last
stride of 2 is removed, without dilation (docs/method.md, "Backbones").
"""

from itertools import accumulate, pairwise
from math import ceil

import torch.nn.functional as F
from torch import Tensor, nn

from core.models.renormalise import Renormalise

# Kernel, repeats, stride, expansion and channels of each group of blocks. The stride is the stride of its first block.
GROUPS = (
    (3, 1, 1, 1, 16),
    (3, 2, 2, 6, 24),
    (5, 2, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (5, 3, 1, 6, 112),
    (5, 4, 2, 6, 192),
    (3, 1, 1, 6, 320),
)
STEM, HEAD = 32, 1280


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _pad(x: Tensor, kernel: int) -> Tensor:
    """Pad for a convolution of stride 2 as SAME does: an even side gets one pixel less on the left or at the top."""
    half = kernel // 2
    return F.pad(x, (half - (x.shape[3] + 1) % 2, half, half - (x.shape[2] + 1) % 2, half))


class MBConv(nn.Module):
    """1x1 convolution to more channels (left out for expansion 1), depthwise convolution, 1x1 convolution to fewer."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.kernel, self.stride, self.residual = kernel, stride, stride == 1 and inputs == outputs
        self._expand_conv = None
        if expansion > 1:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        padding = kernel // 2 if stride == 1 else 0
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, padding, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        if self._expand_conv is not None:
            out = F.relu6(self._bn0(self._expand_conv(out)), inplace=True)
        if self.stride == 2:
            out = _pad(out, self.kernel)
        out = F.relu6(self._bn1(self._depthwise_conv(out)), inplace=True)
        out = self._bn2(self._project_conv(out))
        return out + x if self.residual else out


class EfficientNetLite(nn.Module):
    """Images (N, 3, H, W) -> five feature maps. width and depth multiply channels and repeats of the groups.

    It was trained on pixels with mean 0.5 and standard deviation 0.5, so it converts the normalised images first.
    """

    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, width: float = 1.0, depth: float = 1.0, output_stride: int = 16):
        super().__init__()
        self.renormalise = Renormalise(self.mean, self.std)
        self._conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self._bn0 = _norm(STEM)
        self._blocks = nn.ModuleList()
        inputs, total_stride, sizes, counts = STEM, 2, [], []
        for i, (kernel, repeats, stride, expansion, channels) in enumerate(GROUPS):
            if total_stride == output_stride:
                stride = 1
            total_stride *= stride
            outputs = 8 * int(channels * width / 8 + 0.5)
            count = repeats if i in (0, len(GROUPS) - 1) else ceil(repeats * depth)
            for j in range(count):
                self._blocks.append(MBConv(inputs, outputs, kernel, stride if j == 0 else 1, expansion))
                inputs = outputs
            sizes.append(outputs)
            counts.append(count)
        self._conv_head = nn.Conv2d(inputs, HEAD, 1, bias=False)
        self._bn1 = _norm(HEAD)
        # The first stage ends with the first block at stride 4, as the max pool of other backbones does.
        ends = list(accumulate(counts))
        self.bounds = (0, ends[0] + 1, ends[1], ends[2], ends[4], ends[6])
        self.channels = (sizes[1], sizes[1], sizes[2], sizes[4], HEAD)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def stages(self) -> list[list[nn.Module]]:
        stages = [list(self._blocks[start:end]) for start, end in pairwise(self.bounds)]
        stages[0] = [self._conv_stem, self._bn0, *stages[0]]
        stages[-1] += [self._conv_head, self._bn1]
        return stages

    def forward(self, x: Tensor) -> list[Tensor]:
        x = _pad(self.renormalise(x), 3)
        x = F.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        features = []
        for start, end in pairwise(self.bounds):
            for block in self._blocks[start:end]:
                x = block(x)
            features.append(x)
        features[-1] = F.relu6(self._bn1(self._conv_head(x)), inplace=True)
        return features
