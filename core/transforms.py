"""Image pipelines of METHOD, section 2: one class an operation, image and mask together, pixels as Pillow makes them.

An operation takes an RGB PIL image and a PIL mask (or None) and returns both; a crop makes the image a Window, as
`network_input` takes it, and the mask a uint8 tensor (h, w). Random numbers come from torch's default generator, which
`Pipeline` seeds for each sample. Colours come from torchvision.transforms.v2; the published crop (a smaller image at a
random place of a canvas) and the published scaling (by the longer side) have no counterpart there.
"""

from typing import NamedTuple

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


class Window(NamedTuple):
    """A picture on a canvas, or a batch of them; loaders stack and pin what lies in a named tuple."""

    pixels: Tensor  # (h, w, 3) uint8, (N, h, w, 3) for a batch
    box: Tensor  # (4,) int64, (N, 4) for a batch: left, top, right and bottom of the picture, the canvas around it

    def to(self, device: torch.device, non_blocking: bool = False) -> 'Window':
        """As of a tensor."""
        return Window(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


def network_input(images: Tensor | Window) -> Tensor:
    """uint8 (N, h, w, 3) or windows on any device -> (N, 3, h, w) float32, ImageNet's mean and deviation taken out.

    The canvas becomes 0: the mean colour. Images travel as bytes and are normalised here, on the device that computes.
    """
    pixels, box = images if isinstance(images, Window) else (images, None)
    x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = (x.new_tensor(value).view(3, 1, 1) * 255 for value in (MEAN, STD))
    x = x.sub_(mean).div_(std)
    if box is None:
        return x
    left, top, right, bottom = box.view(-1, 4, 1, 1).unbind(1)
    row, column = (torch.arange(side, device=x.device) for side in x.shape[2:])
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)  # each (N, 1, side)
    return x.mul_(rows[:, :, :, None].to(x.dtype)).mul_(columns[:, :, None].to(x.dtype))


def resized(image: Image.Image, size: tuple[int, int], by: str = 'pillow') -> Image.Image:
    """The RGB image at a size (w, h), bicubic, antialiased when shrinking (METHOD, section 2).

    by 'pillow' makes the published pixels. 'torch' is the same filter with weights of 15 bits in place of 22, which its
    vector units add up several times as fast: some bytes are one level lower or higher.
    """
    if size == image.size:
        return image
    if by == 'pillow':
        return image.resize(size, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pixels = v2.functional.resize(pixels, size[::-1], v2.InterpolationMode.BICUBIC, antialias=True)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def scaled(image: Image.Image, scale: float, by: str = 'pillow') -> Tensor:
    """The image at a scale of the original, (round(h s), round(w s), 3) uint8, by whom `resized` says."""
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return torch.from_numpy(np.array(resized(image, size, by)))


def _random_int(low: int, high: int) -> int:
    """Uniform in [low, high], both included."""
    return int(torch.randint(low, high + 1, ()))


class Pipeline:
    """Operations in a row, their randomness drawn from a seed of integers such as (seed, epoch, sample)."""

    def __init__(self, *operations):
        self.operations = operations

    def __call__(
        self, image: Image.Image, mask: Image.Image | None, seed: tuple[int, ...]
    ) -> tuple[Window, Tensor | None]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
            for operation in self.operations:
                image, mask = operation(image, mask)
        return image, mask


class RandomLongerSide:
    """Scale so that the longer side is an integer drawn from [low, high]; image as `resized` does, mask nearest."""

    def __init__(self, low: int, high: int, by: str = 'pillow'):
        self.low, self.high, self.by = low, high, by

    def __call__(self, image, mask):
        scale = _random_int(self.low, self.high) / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        mask = mask and mask.resize(size, Image.Resampling.NEAREST)
        return resized(image, size, self.by), mask


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
    """A window of size x size: 0 around the image, 255 around the mask."""

    def __init__(self, size: int):
        self.size = size

    def place(self, side: int) -> tuple[int, int]:
        """(offset in the image, offset in the window) along a side of the image."""
        raise NotImplementedError

    def __call__(self, image, mask):
        (x, to_x), (y, to_y) = (self.place(side) for side in image.size)
        right, bottom = (min(start + self.size, side) for start, side in zip((x, y), image.size, strict=True))
        box = (to_x, to_y, to_x + right - x, to_y + bottom - y)

        def on_canvas(picture, canvas):
            canvas[box[1] : box[3], box[0] : box[2]] = picture.crop((x, y, right, bottom))
            return torch.from_numpy(canvas)

        shape = (self.size, self.size)
        mask = mask and on_canvas(mask, np.full(shape, IGNORE, np.uint8))
        return Window(on_canvas(image, np.zeros((*shape, 3), np.uint8)), torch.tensor(box)), mask


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
