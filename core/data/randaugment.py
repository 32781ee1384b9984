"""RandAugment as FixMatch draws it (Sohn et al., NeurIPS 2020; docs/method.md, "Augmentation"), with Pillow.

Every operation takes an RGB image and an integer v in 1..9, its strength. Random numbers come from torch's default
generator.
"""

import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

SQUARE = 16


def _enhance(kind: type):
    return lambda image, v: kind(image).enhance(0.05 + 0.9 * v / 10)


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    """Resample by nearest; (a, b, c, d, e, f) take the pixel (x, y) from (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST)


def _sign() -> int:
    return 1 if torch.rand(()) < 0.5 else -1


OPERATIONS = {
    'AutoContrast': lambda image, v: ImageOps.autocontrast(image),
    'Brightness': _enhance(ImageEnhance.Brightness),
    'Color': _enhance(ImageEnhance.Color),
    'Contrast': _enhance(ImageEnhance.Contrast),
    'Equalize': lambda image, v: ImageOps.equalize(image),
    'Identity': lambda image, v: image,
    'Posterize': lambda image, v: ImageOps.posterize(image, 4 + 4 * v // 10),
    'Rotate': lambda image, v: image.rotate(_sign() * 3 * v, Image.Resampling.NEAREST),
    'Sharpness': _enhance(ImageEnhance.Sharpness),
    'ShearX': lambda image, v: _affine(image, 1, _sign() * 0.3 * v / 10, 0, 0, 1, 0),
    'ShearY': lambda image, v: _affine(image, 1, 0, 0, _sign() * 0.3 * v / 10, 1, 0),
    'Solarize': lambda image, v: ImageOps.solarize(image, 256 - 256 * v // 10),
    'TranslateX': lambda image, v: _affine(image, 1, 0, _sign() * 0.3 * v / 10 * image.width, 0, 1, 0),
    'TranslateY': lambda image, v: _affine(image, 1, 0, 0, 0, 1, _sign() * 0.3 * v / 10 * image.height),
}


class RandAugment:
    """Two operations, drawn with replacement and each applied with probability 1/2, then always a black square."""

    def __call__(self, image: Image.Image) -> Image.Image:
        names = list(OPERATIONS)
        for i in torch.randint(len(names), (2,)).tolist():
            v = int(torch.randint(1, 10, ()))
            if torch.rand(()) < 0.5:
                image = OPERATIONS[names[i]](image, v)
        image = image.copy()  # the identity returns the caller's image
        left, top = (int(max(0, float(torch.rand(())) * side - SQUARE / 2)) for side in image.size)
        # The first and the last row and column are included: 17 pixels per side unless the border cuts the square.
        ImageDraw.Draw(image).rectangle((left, top, left + SQUARE, top + SQUARE), fill=(0, 0, 0))
        return image
