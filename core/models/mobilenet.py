"""torchvision's MobileNetV2 as a backbone for laptops, with torchvision's names, at output stride 16."""

from torch import Tensor, nn
from torchvision.models import mobilenet_v2

# The blocks of each stage. The last one has stride 2 in torchvision.
STAGES = (slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 14), slice(14, 19))


class MobileNetV2(nn.Module):
    """Images (N, 3, H, W) -> five feature maps."""

    channels = (24, 24, 32, 96, 1280)

    def __init__(self, output_stride: int = 16):
        super().__init__()
        self.features = mobilenet_v2().features
        if output_stride == 16:
            for module in self.features[14].modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)

    def stages(self) -> list[list[nn.Module]]:
        return [list(self.features[blocks]) for blocks in STAGES]

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for blocks in STAGES:
            for block in self.features[blocks]:
                x = block(x)
            features.append(x)
        return features
