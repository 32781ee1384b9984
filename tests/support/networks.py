"""A backbone of five convolutions, BatchNorm of several processes on CPUs, and labels to train a network on."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from core.data.dataset import open_dataset
from util import launcher
from util.parallel import processes

STRIDES = (4, 1, 2, 2, 1)
CHANNELS = (4, 5, 6, 7, 8)


class Tiny(nn.Module):
    """A convolution, a BatchNorm and a ReLU per stage."""

    channels = CHANNELS

    def __init__(self):
        super().__init__()
        for i, (inputs, outputs) in enumerate(zip((3, *CHANNELS), CHANNELS, strict=False)):
            self.add_module(f'conv{i}', nn.Conv2d(inputs, outputs, 3, STRIDES[i], padding=1, bias=i == 3))
            self.add_module(f'bn{i}', nn.BatchNorm2d(outputs))
            nn.init.normal_(self.get_submodule(f'bn{i}').running_mean, std=0.1)

    def stages(self):
        return [[self.get_submodule(f'conv{i}'), self.get_submodule(f'bn{i}')] for i in range(5)]

    def forward(self, x):
        features = []
        for conv, norm in self.stages():
            x = torch.relu(norm(conv(x)))
            features.append(x)
        return features


class Add(torch.autograd.Function):
    """The sum over the processes, through which gradients flow: each process has a part of the loss."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return processes.add(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return processes.add(gradient)


class SyncBatchNorm(nn.BatchNorm2d):
    """torch's SyncBatchNorm, which takes tensors of GPUs only, on CPUs. All processes have as many images."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = launcher.world_size() * x.numel() / x.shape[1]
        mean = Add.apply(x.sum((0, 2, 3))) / count
        centred = x - mean.view(1, -1, 1, 1)
        variance = Add.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def synchronise_on_cpus(model: nn.Module, device: torch.device) -> None:
    """Do on CPUs what util.parallel.batch._synchronise does on GPUs."""
    assert device.type == 'cpu'
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and launcher.world_size() > 1:
            module.__class__ = SyncBatchNorm


def labels_of(demo, folder) -> str:
    """Write a folder of labels 0, 1, 2 and 255 in patches, one per training image; return its name."""
    rng = np.random.default_rng(0)
    folder = folder / 'experiments' / 'predictions' / 'labels'
    folder.mkdir(parents=True)
    for image_id in open_dataset(demo / 'dataset.json', demo).ids('train_aug'):
        with Image.open(demo / 'JPEGImages' / f'{image_id}.jpg') as image:
            coarse = Image.fromarray(rng.choice([0, 0, 1, 2, 255], (5, 5)).astype(np.uint8))
            coarse.resize(image.size, Image.Resampling.NEAREST).save(folder / f'{image_id}.png')
    return folder.name
