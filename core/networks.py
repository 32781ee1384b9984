"""The networks of the pipeline, each a backbone and a head."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.backbone import build_backbone

MODES = ('normal', 'fix')


def _kaiming(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)


class _Network(nn.Module):
    """A backbone in one of two modes: 'normal' trains BatchNorm, 'fix' keeps its running statistics.

    Everything but `self.backbone` is new and learns 10 times as fast (tools.optim). With `bf16` set it multiplies in
    bfloat16 where torch.autocast holds that to be safe; weights and what comes out stay float32.
    """

    bf16 = False

    def __init__(self, architecture: str, mode: str):
        super().__init__()
        assert mode in MODES, mode
        self.mode = mode
        self.backbone = build_backbone(architecture)

    def __call__(self, x: Tensor, *args, **kwargs):
        if not self.bf16:
            return super().__call__(x, *args, **kwargs)
        with torch.autocast(x.device.type, torch.bfloat16):  # here, for nn.DataParallel's threads know no outer one
            outputs = super().__call__(x, *args, **kwargs)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.mode == 'fix':
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


class Classifier(_Network):
    """Image-level classifier (paper, section 2.1): a 1x1 convolution makes class maps, their spatial mean is the logit.

    mode 'fix' freezes the stem, layer1 and layer2 too: frozen statistics alone diverge at the published learning rate.
    """

    def __init__(self, architecture: str, num_classes: int = 20, mode: str = 'normal'):
        super().__init__(architecture, mode)
        self.classifier = nn.Conv2d(self.backbone.channels[-1], num_classes, 1, bias=False)
        _kaiming(self.classifier)
        if mode == 'fix':
            for modules in self.backbone.stages()[:3]:
                for module in modules:
                    module.requires_grad_(False)

    def forward(self, x: Tensor, with_cam: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> logits (N, C), and with_cam the class maps before ReLU (N, C, H/16, W/16)."""
        maps = self.classifier(self.backbone(x)[-1])
        logits = maps.mean((2, 3))
        return (logits, maps) if with_cam else logits


class EdgeHead(nn.Module):
    """All five stages -> (N, outputs, h/4, w/4): each to 32 channels, brought to layer1's size, concatenated."""

    factors = (1, 1, 2, 4, 4)  # the strides of the stages over layer1's

    def __init__(self, channels: tuple[int, ...], outputs: int = 1):
        super().__init__()
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, 32, 1, bias=False), nn.GroupNorm(4, 32)) for inputs in channels
        )
        self.classify = nn.Conv2d(32 * len(channels), outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        h, w = features[1].shape[2:]
        reduced = []
        for reduce, x, factor in zip(self.reduce, features, self.factors, strict=True):
            x = reduce(x)
            if factor > 1:
                x = F.interpolate(x, scale_factor=factor, mode='bilinear', align_corners=False)
            reduced.append(F.relu(x)[..., :h, :w])
        return self.classify(torch.cat(reduced, 1))


class AffinityNet(_Network):
    """Edges from a frozen ImageNet backbone (METHOD, section 5; IRNet's edge branch): only the head trains."""

    def __init__(self, architecture: str):
        super().__init__(architecture, 'fix')
        self.backbone.requires_grad_(False)
        self.head = EdgeHead(self.backbone.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> edge logits (N, 1, H/4, W/4)."""
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


class DeepLabV3Plus(_Network):
    """DeepLabv3+ (METHOD, section 7). use_gn: GroupNorm with 4 groups in the head in place of the backbone's norm."""

    def __init__(self, backbone: str, num_classes: int = 21, mode: str = 'fix', use_gn: bool = True):
        from core.deeplab import ASPP, Decoder

        super().__init__(backbone, mode)
        norm = (lambda channels: nn.GroupNorm(4, channels)) if use_gn else nn.BatchNorm2d
        self.aspp = ASPP(self.backbone.channels[-1], norm)
        self.decoder = Decoder(self.backbone.channels[1], num_classes, norm)
        _kaiming(self.aspp)
        _kaiming(self.decoder)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, C+1, H, W)."""
        features = self.backbone(x)
        logits = self.decoder(self.aspp(features[-1]), features[1])
        return F.interpolate(logits, x.shape[2:], mode='bilinear', align_corners=True)


class SegModel(_Network):
    """`Seg_Model`: a 1x1 convolution without bias on the backbone; logits (N, C+1, H/16, W/16)."""

    def __init__(self, backbone: str, num_classes: int = 21, mode: str = 'fix'):
        super().__init__(backbone, mode)
        self.classifier = nn.Conv2d(self.backbone.channels[-1], num_classes, 1, bias=False)
        _kaiming(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x)[-1])


class CSegModel(_Network):
    """`CSeg_Model`: AffinityNet's head with C+1 outputs; logits (N, C+1, H/4, W/4)."""

    def __init__(self, backbone: str, num_classes: int = 21, mode: str = 'fix'):
        super().__init__(backbone, mode)
        self.head = EdgeHead(self.backbone.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


SEGMENTERS = ('DeepLabv3+', 'Seg_Model', 'CSeg_Model')


def build_segmenter(architecture: str, backbone: str, num_classes: int, mode: str, use_gn: bool) -> nn.Module:
    """The network of `--architecture`; num_classes counts the background; use_gn concerns DeepLabv3+ alone."""
    if architecture == 'DeepLabv3+':
        return DeepLabV3Plus(backbone, num_classes, mode, use_gn)
    return {'Seg_Model': SegModel, 'CSeg_Model': CSegModel}[architecture](backbone, num_classes, mode)


def for_inference(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, each BatchNorm of its backbone put into the convolution that feeds it.

    The same function up to rounding, without passes over memory that cost a CPU a quarter of its time. Its state dict
    is another one: what is kept in files is the network as it was trained.
    """
    network.eval()
    traced = torch.fx.symbolic_trace(network.backbone)
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        source = node.args[0] if node.args else None
        if not isinstance(modules.get(node.target), nn.BatchNorm2d) or source.op != 'call_module':
            continue
        if isinstance(modules[source.target], nn.Conv2d) and len(source.users) == 1:
            traced.set_submodule(source.target, fuse_conv_bn_eval(modules[source.target], modules[node.target]))
            traced.set_submodule(node.target, nn.Identity())
    network.backbone = traced
    return network.eval()


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Inside, training BatchNorm normalises by its batch as always but leaves the running statistics alone."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def forward_in_replicas(model: nn.Module, images: Tensor, replicas: int) -> tuple[Tensor, Tensor]:
    """A classifier's logits and class maps, its BatchNorm acting as under nn.DataParallel on `replicas` devices.

    The batch goes through in that many chunks; each is normalised by itself, the first alone moves the running
    statistics (METHOD, section 3). The gradient is that of the whole batch.
    """
    outputs = []
    for i, chunk in enumerate(images.chunk(replicas)):
        if i == 0:
            outputs.append(model(chunk, with_cam=True))
        else:
            with running_statistics_kept(model):
                outputs.append(model(chunk, with_cam=True))
    logits, maps = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(maps)
