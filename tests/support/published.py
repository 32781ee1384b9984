"""Imitations of the networks of the published code: their modules have the same names.

docs/method.md describes each network.
"""

import torch
import torch.nn.functional as F
from torch import nn

from core.models.backbones import build_backbone
from support import randomised

NARROW = 'resnest14_narrow'
CLASSES = 3


class Stages(nn.Module):
    """The backbone under its own names, with ImageNet's unused head, and again as five stages."""

    def __init__(self, backbone: str):
        super().__init__()
        self.model = build_backbone(backbone)
        self.channels = self.model.channels
        self.model.fc = nn.Linear(8, 5)
        stem = (self.model.conv1, self.model.bn1, nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.stage1 = nn.Sequential(*stem)
        for i in range(1, 5):
            setattr(self, f'stage{i + 1}', nn.Sequential(getattr(self.model, f'layer{i}')))

    def features(self, x):
        outputs = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4, self.stage5):
            x = stage(x)
            outputs.append(x)
        return outputs


class PublishedClassifier(Stages):
    def __init__(self, backbone, outputs=CLASSES):
        super().__init__(backbone)
        self.classifier = nn.Conv2d(self.channels[4], outputs, 1, bias=False)

    def forward(self, x):
        return self.classifier(self.features(x)[4])


class PublishedSegModel(PublishedClassifier):
    def __init__(self, backbone, outputs=CLASSES + 1):
        super().__init__(backbone, outputs)


class PublishedEdges(Stages):
    def __init__(self, backbone, outputs=1):
        super().__init__(backbone)
        for i, channels in enumerate(self.channels, 1):
            layers = [nn.Conv2d(channels, 32, 1, bias=False), nn.GroupNorm(4, 32)]
            if i > 2:
                layers.append(nn.Upsample(scale_factor=2 if i == 3 else 4, mode='bilinear', align_corners=False))
            setattr(self, f'fc_edge{i}', nn.Sequential(*layers, nn.ReLU()))
        self.fc_edge6 = nn.Conv2d(5 * 32, outputs, 1)
        self.backbone = nn.ModuleList([self.stage1, self.stage2, self.stage3, self.stage4, self.stage5])
        self.register_buffer('path_indices_0', torch.zeros(4, 1, 9, dtype=torch.int64))

    def forward(self, x):
        edges = [getattr(self, f'fc_edge{i}')(feature) for i, feature in enumerate(self.features(x), 1)]
        h, w = edges[0].shape[2:]
        return self.fc_edge6(torch.cat([edge[..., :h, :w] for edge in edges], 1))


class PublishedCSegModel(PublishedEdges):
    def __init__(self, backbone):
        super().__init__(backbone, CLASSES + 1)


class AtrousUnit(nn.Module):
    def __init__(self, inputs, kernel, dilation, norm):
        super().__init__()
        padding = dilation if kernel == 3 else 0
        self.atrous_conv = nn.Conv2d(inputs, 256, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = norm(256)

    def forward(self, x):
        return F.relu(self.bn(self.atrous_conv(x)))


class PublishedASPP(nn.Module):
    def __init__(self, inputs, norm):
        super().__init__()
        for i, dilation in enumerate((1, 6, 12, 18), 1):
            setattr(self, f'aspp{i}', AtrousUnit(inputs, 1 if i == 1 else 3, dilation, norm))
        pool = nn.AdaptiveAvgPool2d(1)
        self.global_avg_pool = nn.Sequential(pool, nn.Conv2d(inputs, 256, 1, bias=False), norm(256), nn.ReLU())
        self.conv1 = nn.Conv2d(5 * 256, 256, 1, bias=False)
        self.bn1 = norm(256)

    def forward(self, x):
        pooled = F.interpolate(self.global_avg_pool(x), x.shape[2:], mode='bilinear', align_corners=True)
        branches = [self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), pooled]
        return F.relu(self.bn1(self.conv1(torch.cat(branches, 1))))


class PublishedDecoder(nn.Module):
    def __init__(self, inputs, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 48, 1, bias=False)
        self.bn1 = norm(48)
        self.classifier = nn.Sequential(
            *(nn.Conv2d(304, 256, 3, padding=1, bias=False), norm(256), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Conv2d(256, 256, 3, padding=1, bias=False), norm(256), nn.ReLU(), nn.Dropout(0.1)),
            nn.Conv2d(256, CLASSES + 1, 1),
        )

    def forward(self, x, low):
        low = F.relu(self.bn1(self.conv1(low)))
        x = F.interpolate(x, low.shape[2:], mode='bilinear', align_corners=True)
        return self.classifier(torch.cat([x, low], 1))


class PublishedDeepLab(Stages):
    def __init__(self, backbone, use_gn):
        super().__init__(backbone)
        norm = (lambda channels: nn.GroupNorm(4, channels)) if use_gn else nn.BatchNorm2d
        self.aspp = PublishedASPP(self.channels[4], norm)
        self.decoder = PublishedDecoder(self.channels[1], norm)

    def forward(self, x):
        features = self.features(x)
        logits = self.decoder(self.aspp(features[4]), features[1])
        return F.interpolate(logits, x.shape[2:], mode='bilinear', align_corners=True)


NETWORKS = {
    'Classifier': PublishedClassifier,
    'AffinityNet': PublishedEdges,
    'Seg_Model': PublishedSegModel,
    'CSeg_Model': PublishedCSegModel,
    'DeepLabv3+ GN': lambda backbone: PublishedDeepLab(backbone, True),
    'DeepLabv3+': lambda backbone: PublishedDeepLab(backbone, False),
}


def published(name: str, backbone: str = NARROW, seed: int = 0) -> nn.Module:
    """Return an imitation with random weights, norms and statistics."""
    torch.manual_seed(seed)
    return randomised(NETWORKS[name](backbone)).float()


def state_of(name: str, backbone: str = NARROW) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in published(name, backbone).state_dict().items()}


@torch.no_grad()
def assert_same_function(network: nn.Module, original: nn.Module) -> None:
    """Compare class maps, edges or logits on random images."""
    images = torch.randn(2, 3, 80, 64, generator=torch.Generator().manual_seed(1))
    network.eval()
    maps = network(images, with_cam=True)[1] if type(network).__name__ == 'Classifier' else network(images)
    expected = original(images)
    assert maps.shape == expected.shape
    assert expected.std() > 0
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
