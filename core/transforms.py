"""Image pipelines of METHOD, section 2: one class an operation, image and mask together, pixels as Pillow makes them.

An operation takes an RGB PIL image and a PIL mask (or None) and returns both; the last one of a pipeline returns
uint8 tensors, the image (h, w, 4) as `network_input` takes it and the mask (h, w). Random numbers come from torch's
default generator, which `Pipeline` seeds for each sample. Colours come from torchvision.transforms.v2; the published
crop (a smaller image at a random place of a canvas) and the published scaling (by the longer side) have no counterpart
there.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from core import IGNORE

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
AUGMENTATIONS = ('colorjitter', 'randaugment')


def network_input(images: Tensor) -> Tensor:
    """uint8 (N, h, w, 3 or 4) on any device -> (N, 3, h, w) float32, ImageNet's mean and deviation taken out.

    A fourth channel is 255 where there is a picture and 0 where the canvas is, which becomes 0: the mean colour. Images
    travel as bytes and are normalised here, on the device that computes.
    """
    images = images.permute(0, 3, 1, 2)
    x = images[:, :3].to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = (x.new_tensor(value).view(3, 1, 1) * 255 for value in (MEAN, STD))
    x = x.sub_(mean).div_(std)
    return x.mul_(images[:, 3:] > 0) if images.shape[1] == 4 else x


def scaled(image: Image.Image, scale: float) -> Tensor:
    """The image at a scale of the original, (round(h s), round(w s), 3) uint8, bicubic."""
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return torch.from_numpy(np.array(image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)))


def _random_int(low: int, high: int) -> int:
    """Uniform in [low, high], both included."""
    return int(torch.randint(low, high + 1, ()))


class Pipeline:
    """Operations in a row, their randomness drawn from a seed of integers such as (seed, epoch, sample)."""

    def __init__(self, *operations):
        self.operations = operations

    def __call__(
        self, image: Image.Image, mask: Image.Image | None, seed: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
            for operation in self.operations:
                image, mask = operation(image, mask)
        return image, mask


class RandomLongerSide:
    """Scale so that the longer side is an integer drawn from [low, high]; image bicubic, mask nearest."""

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high

    def __call__(self, image, mask):
        scale = _random_int(self.low, self.high) / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        mask = mask and mask.resize(size, Image.Resampling.NEAREST)
        return image.resize(size, Image.Resampling.BICUBIC), mask


class RandomFlip:
    """Mirror with probability 1/2."""

    def __call__(self, image, mask):
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask and mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image, mask


class Augment:
    """Colour jitter and RandAugment, of the image alone: for training with image-level labels."""

    def __init__(self, names: list[str]):
        known = {
            'colorjitter': lambda: v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
            'randaugment': lambda: v2.RandAugment(num_ops=2),
        }
        self.operations = [known[name]() for name in AUGMENTATIONS if name in names]

    def __call__(self, image, mask):
        for operation in self.operations:
            image = operation(image)
        return image, mask


class _Crop:
    """A window of size x size: the image with a fourth channel, 255 in the picture, 0 around; 255 around the mask."""

    def __init__(self, size: int):
        self.size = size

    def place(self, side: int) -> tuple[int, int]:
        """(offset in the image, offset in the window) along a side of the image."""
        raise NotImplementedError

    def __call__(self, image, mask):
        (x, to_x), (y, to_y) = (self.place(side) for side in image.size)
        left, top = x - to_x, y - to_y
        window = image.convert('RGBA').crop((left, top, left + self.size, top + self.size))  # zeros where there is none
        if mask is not None:
            box = (x, y, min(x + self.size, mask.width), min(y + self.size, mask.height))
            classes = np.full((self.size, self.size), IGNORE, np.uint8)
            classes[to_y : to_y + box[3] - y, to_x : to_x + box[2] - x] = mask.crop(box)
            mask = torch.from_numpy(classes)
        return torch.from_numpy(np.array(window)), mask


class RandomCrop(_Crop):
    """At random; an image smaller than the window lies at a random place in it."""

    def place(self, side: int) -> tuple[int, int]:
        free = side - self.size
        return (_random_int(0, free), 0) if free >= 0 else (0, _random_int(0, -free))


class TopLeftCrop(_Crop):
    """The corner of the image: what validation inside training sees."""

    def place(self, side: int) -> tuple[int, int]:
        return 0, 0


class ResizeMask:
    """Bring the mask (h, w) to (size, size) by nearest, the image staying as it is: AffinityNet's labels."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, image, mask):
        if mask is not None:
            mask = F.interpolate(mask[None, None], (self.size, self.size), mode='nearest-exact')[0, 0]
        return image, mask
