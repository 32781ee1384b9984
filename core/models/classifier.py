"""The image-level classifier whose class maps become CAMs (Puzzle-CAM, section 2.1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from core.models.network import Network, kaiming


class Classifier(Network):
    """A 1x1 convolution gives class maps, and their spatial mean is the logit (docs/method.md, "Classifier").

    Mode 'fix' also freezes the stem, layer1 and layer2: frozen statistics alone diverge at the published learning rate.
    """

    def __init__(self, architecture: str, num_classes: int, mode: str = 'normal'):
        super().__init__(architecture, mode)
        self.classifier = nn.Conv2d(self.backbone.channels[-1], num_classes, 1, bias=False)
        kaiming(self.classifier)
        if mode == 'fix':
            for modules in self.backbone.stages()[:3]:
                for module in modules:
                    module.requires_grad_(False)

    def forward(self, x: Tensor, with_cam: bool = False, positive: bool = False) -> Tensor | tuple[Tensor, ...]:
        """(N, 3, H, W) -> logits (N, C); with_cam also returns the class maps before ReLU (N, C, H/16, W/16).

        With `positive` a third output follows: the class maps that the positive weights of the classifier give alone.
        """
        features = self.backbone(x)[-1]
        maps = self.classifier(features)
        outputs = (maps.mean((2, 3)), maps)
        if positive:
            outputs = (*outputs, F.conv2d(features, self.classifier.weight.clamp(min=0)))
        return outputs if with_cam else outputs[0]
