"""The segmentation networks that stage 7 can train, by the name of --architecture."""

from torch import Tensor, nn

from core.models.affinitynet import EdgeHead
from core.models.deeplab import DeepLabV3Plus
from core.models.network import Network, kaiming


class SegModel(Network):
    """`Seg_Model`: a 1x1 convolution without bias on the backbone; logits (N, C+1, H/16, W/16)."""

    def __init__(self, backbone: str, num_classes: int, mode: str = 'fix'):
        super().__init__(backbone, mode)
        self.classifier = nn.Conv2d(self.backbone.channels[-1], num_classes, 1, bias=False)
        kaiming(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x)[-1])


class CSegModel(Network):
    """`CSeg_Model`: AffinityNet's head with C+1 outputs; logits (N, C+1, H/4, W/4)."""

    stride = 4

    def __init__(self, backbone: str, num_classes: int, mode: str = 'fix'):
        super().__init__(backbone, mode)
        self.head = EdgeHead(self.backbone.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


SEGMENTERS = {'DeepLabv3+': DeepLabV3Plus, 'Seg_Model': SegModel, 'CSeg_Model': CSegModel}


def build_segmenter(architecture: str, backbone: str, num_classes: int, mode: str, use_gn: bool) -> nn.Module:
    """Return a network of SEGMENTERS; num_classes includes the background, if any; use_gn is for DeepLabv3+ only."""
    options = {'use_gn': use_gn} if architecture == 'DeepLabv3+' else {}
    return SEGMENTERS[architecture](backbone, num_classes, mode, **options)
