"""Joint image and mask transforms, pixel-exact with Pillow (docs/method.md, "Augmentation").

An operation takes an RGB PIL image and a PIL mask (or None) and returns both. A crop returns the image as a
PaddedCrop, which `normalize` takes, and the mask as a uint8 tensor (h, w). Random numbers come from torch's default
generator, which `Pipeline` seeds for each sample. Colours come from torchvision.transforms.v2. The published crop (a
smaller image at a random position on a canvas) and the published scaling (by the longer side) have no counterpart
there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from core import IGNORE
from core.data.randaugment import RandAugment

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
AUGMENTATIONS = ('colorjitter', 'randaugment', 'randaugment_torchvision')


class PaddedCrop(NamedTuple):
    """A picture on a canvas, or a batch of them. Loaders stack and pin the tensors of a named tuple."""

    pixels: Tensor  # (h, w, 3) uint8, (N, h, w, 3) for a batch
    box: Tensor  # (4,) int64, (N, 4) for a batch: left, top, right and bottom of the picture on the canvas

    def to(self, device: torch.device, non_blocking: bool = False) -> 'PaddedCrop':
        """Like Tensor.to."""
        return PaddedCrop(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


def normalize(images: Tensor | PaddedCrop) -> Tensor:
    """Normalise with the ImageNet mean and std: uint8 (N, h, w, 3) or padded crops -> (N, 3, h, w) float32.

    The canvas becomes 0, the mean colour. Images travel as bytes and are normalised here, on the device.
    """
    pixels, box = images if isinstance(images, PaddedCrop) else (images, None)
    x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = (x.new_tensor(value).view(3, 1, 1) * 255 for value in (MEAN, STD))
    x = x.sub_(mean).div_(std)
    if box is None:
        return x
    left, top, right, bottom = box.view(-1, 4, 1, 1).unbind(1)
    row, column = (torch.arange(side, device=x.device) for side in x.shape[2:])
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)  # each (N, 1, side)
    return x.mul_(rows[:, :, :, None].to(x.dtype)).mul_(columns[:, :, None].to(x.dtype))


def resize(image: Image.Image, size: tuple[int, int], backend: str = 'pillow') -> Image.Image:
    """Resize an RGB image to (w, h): bicubic, antialiased when shrinking.

    Backend 'pillow' gives the published pixels. 'torch' applies the same filter with 15-bit weights instead of 22-bit
    ones: several times as fast, but some bytes are one level lower or higher.
    """
    if size == image.size:
        return image
    if backend == 'pillow':
        return image.resize(size, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pixels = v2.functional.resize(pixels, size[::-1], v2.InterpolationMode.BICUBIC, antialias=True)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def rescale(image: Image.Image, scale: float, backend: str = 'pillow') -> Tensor:
    """Resize an image by a factor s: (round(h s), round(w s), 3) uint8; see `resize` for the backend."""
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return torch.from_numpy(np.array(resize(image, size, backend)))


def _random_int(low: int, high: int) -> int:
    """Return a uniform integer in [low, high], both ends included."""
    return int(torch.randint(low, high + 1, ()))


class Pipeline:
    """Operations in sequence, their randomness seeded by a tuple of integers such as (seed, epoch, sample)."""

    def __init__(self, *operations):
        self.operations = operations

    def __call__(
        self, image: Image.Image, mask: Image.Image | None, seed: tuple[int, ...]
    ) -> tuple[PaddedCrop, Tensor | None]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
            for operation in self.operations:
                image, mask = operation(image, mask)
        return image, mask


class RandomResizeLong:
    """Resize so that the longer side is an integer drawn from [low, high]; the mask by nearest."""

    def __init__(self, low: int, high: int, backend: str = 'pillow'):
        self.low, self.high, self.backend = low, high, backend

    def __call__(self, image, mask):
        scale = _random_int(self.low, self.high) / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        mask = mask and mask.resize(size, Image.Resampling.NEAREST)
        return resize(image, size, self.backend), mask


class RandomFlip:
    """Horizontal flip with probability 1/2."""

    def __call__(self, image, mask):
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask and mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image, mask


class Augment:
    """Colour jitter and RandAugment of the image alone, for training on image-level labels."""

    def __init__(self, names: Sequence[str]):
        known = {
            'colorjitter': lambda: v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
            'randaugment': RandAugment,
            'randaugment_torchvision': lambda: v2.RandAugment(num_ops=2),
        }
        self.operations = [known[name]() for name in AUGMENTATIONS if name in names]

    def __call__(self, image, mask):
        for operation in self.operations:
            image = operation(image)
        return image, mask


class _Crop:
    """A crop of size x size on a canvas: 0 around the image, 255 around the mask."""

    def __init__(self, size: int):
        self.size = size

    def place(self, side: int) -> tuple[int, int]:
        """Return (offset in the image, offset on the canvas) along one side of the image."""
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
        return PaddedCrop(on_canvas(image, np.zeros((*shape, 3), np.uint8)), torch.tensor(box)), mask


class RandomCrop(_Crop):
    """Random crop; a smaller image is placed at random on the canvas."""

    def place(self, side: int) -> tuple[int, int]:
        free = side - self.size
        return (_random_int(0, free), 0) if free >= 0 else (0, _random_int(0, -free))


class TopLeftCrop(_Crop):
    """The top-left corner of the image, for validation during training."""

    def place(self, side: int) -> tuple[int, int]:
        return 0, 0


class ResizeMask:
    """Resize the mask (h, w) to (size, size) by nearest and leave the image: AffinityNet's labels."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, image, mask):
        if mask is not None:
            mask = F.interpolate(mask[None, None], (self.size, self.size), mode='nearest-exact')[0, 0]
        return image, mask


def whole_image_pipeline(size: int, backend: str = 'pillow') -> Pipeline:
    """Return a pipeline that scales an image by its longer side and puts it at the top left of a size x size canvas."""
    return Pipeline(RandomResizeLong(size, size, backend), TopLeftCrop(size))


def training_pipeline(
    longer_side: tuple[int, int],
    crop_size: int,
    backend: str = 'pillow',
    augmentations: Sequence[str] = (),
    mask_size: int | None = None,
) -> Pipeline:
    """Return the augmentation of the trainers: random longer side, flip, colours, random crop.

    `augmentations` are names of AUGMENTATIONS. A mask is cropped in the same way, and then resized to mask_size if it
    is given.
    """
    operations = [
        RandomResizeLong(*longer_side, backend),
        RandomFlip(),
        Augment(augmentations),
        RandomCrop(crop_size),
    ]
    return Pipeline(*operations, *([ResizeMask(mask_size)] if mask_size else []))
