"""Pictures of the tools: masks with the names of their classes, pictures of one size."""

import math
import sys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.data.drawing import can_write, ink, overlay_mask

LONGEST_SIDE = 4096  # small pictures are enlarged for their labels, but not beyond this size


def label_mask(
    image: np.ndarray, mask: np.ndarray, palette: np.ndarray, labels: dict[int, str], font: ImageFont.FreeTypeFont
) -> np.ndarray:
    """Overlay a mask (h, w) with outlines, and write the label of each class into it on a plate in its colour.

    `labels` is by class index; classes without a pixel get no label. A picture that is too small for its labels is
    enlarged by a whole factor.
    """
    h, w = mask.shape
    font = font.font_variant(size=max(14, round(0.04 * min(h, w))))
    height, pad = sum(font.getmetrics()), math.ceil(font.size / 4)
    labels = {index: text for index, text in labels.items() if (mask == index).any()}
    widths = {index: math.ceil(font.getlength(text)) + 2 * pad for index, text in labels.items()}
    needed = max(2 * max(widths.values(), default=0) / w, 3 * len(labels) * height / h)
    factor = max(1, min(math.ceil(needed), LONGEST_SIDE // max(h, w)))

    overlay = enlarge(overlay_mask(image, mask, palette), factor)
    colours = {index: tuple(palette[index].tolist()) for index in labels}
    inks = {index: ink(colour) for index, colour in colours.items()}
    for index, line in inks.items():
        region = enlarge((mask == index).view(np.uint8), factor)
        outlines, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(overlay, outlines, -1, line, font.size // 10)

    picture = Image.fromarray(overlay)
    del overlay  # of a large image it takes hundreds of MB
    draw = ImageDraw.Draw(picture)
    plates = []  # top, left and right of the plates so far
    for index, text in labels.items():
        x, y = (factor * (at + 0.5) for at in _innermost(mask == index))
        left = max(0, min(round(x - widths[index] / 2), picture.width - widths[index]))
        right = left + widths[index]
        top = _free_row(round(y - height / 2), picture.height - height, height, left, right, plates)
        plates.append((top, left, right))
        draw.rectangle((left, top, right - 1, top + height - 1), colours[index], inks[index])
        draw.text((left + pad, top), text, inks[index], font)
    return np.array(picture)


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Repeat pixels (h, w, ...) by a whole factor; 1 returns them as they are."""
    return pixels if factor == 1 else pixels.repeat(factor, 0).repeat(factor, 1)


def _innermost(region: np.ndarray) -> tuple[int, int]:
    """Return (x, y) of the pixel that is farthest from the border of a region (h, w)."""
    inside = cv2.copyMakeBorder(region.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    _, _, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(inside, cv2.DIST_L2, 3))
    return x - 1, y - 1


def _free_row(top: int, last: int, height: int, left: int, right: int, plates: list[tuple[int, int, int]]) -> int:
    """Return the row nearest to `top`, in 0..last, where a plate would cover no other; `top` if there is none."""
    top = max(0, min(top, last))
    for row in sorted(range(max(0, last) + 1), key=lambda row: abs(row - top)):
        if all(abs(row - other) >= height or right <= start or left >= end for other, start, end in plates):
            return row
    return top


def fit(picture: np.ndarray, side: int) -> np.ndarray:
    """Scale a picture to fit into (side, side) and pad it with white to the width of side."""
    h, w = picture.shape[:2]
    scale = side / max(h, w)
    h, w = max(1, round(h * scale)), max(1, round(w * scale))
    canvas = np.full((h, side, 3), 255, np.uint8)
    canvas[:, :w] = cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA)
    return canvas


def names_on_pictures(names: Sequence[str], font: ImageFont.FreeTypeFont) -> list[str]:
    """Return class names, or numbers for names that the font cannot write, and print a warning about these."""
    missing = [name for name in names if not can_write(font, name)]
    if missing:
        hint = 'pass --font a file that has them, such as DejaVuSans.ttf or one of Noto Sans'
        what = f'the font lacks characters of {len(missing)} class names ({missing[0]}, ...), shown as numbers'
        print(f'warning: {what}: {hint}', file=sys.stderr)
    return [f'class {index}' if name in missing else name for index, name in enumerate(names)]
