"""Pictures for people: heat maps, masks and labels over images, grids of them. All are (h, w, 3) uint8 RGB."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core import UserError

NO_CHARACTER = '\U0010ffff'  # in no font: drawn as what a font shows for a character that it lacks
LONGEST_SIDE = 4096  # small pictures are enlarged for their labels, but not beyond this


def overlay_heatmap(image: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Blend a score in [0, 1] of any resolution (h', w') as a heat map over the image."""
    h, w = image.shape[:2]
    score = cv2.resize(np.clip(score, 0, 1).astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((score * 255).round().astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return (0.5 * image + 0.5 * colours).astype(np.uint8)


def overlay_mask(image: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Blend a mask of class indices (h', w') in the palette's colours over the image, except the background."""
    h, w = image.shape[:2]
    mask = cv2.resize(mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
    return np.where(mask[..., None] > 0, (0.5 * image + 0.5 * palette[mask]).astype(np.uint8), image)


def open_font(path: Path | None = None) -> ImageFont.FreeTypeFont:
    """Return the font of a file or of a name such as DejaVuSans.ttf, by default Pillow's own, which has ASCII only.

    Raises UserError naming the file.
    """
    if path is None:
        return ImageFont.load_default(16)
    try:
        return ImageFont.truetype(path, 16)
    except OSError as error:
        raise UserError(f'font {path}: cannot be read ({error})') from None


def can_write(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Return whether a font has every character of a text."""
    missing = bytes(font.getmask(NO_CHARACTER))
    return all(character.isspace() or bytes(font.getmask(character)) != missing for character in text)


def label_mask(
    image: np.ndarray, mask: np.ndarray, palette: np.ndarray, labels: dict[int, str], font: ImageFont.FreeTypeFont
) -> np.ndarray:
    """Overlay a mask (h, w) with outlines, and write the label of each class into it on a plate in its colour.

    `labels` is by class index; classes without a pixel get none. A picture that is small next to its labels is enlarged
    by a whole factor.
    """
    h, w = mask.shape
    font = font.font_variant(size=max(14, round(0.04 * min(h, w))))
    height, pad = sum(font.getmetrics()), math.ceil(font.size / 4)
    labels = {index: text for index, text in labels.items() if (mask == index).any()}
    widths = {index: math.ceil(font.getlength(text)) + 2 * pad for index, text in labels.items()}
    needed = max(2 * max(widths.values(), default=0) / w, 3 * len(labels) * height / h)
    factor = max(1, min(math.ceil(needed), LONGEST_SIDE // max(h, w)))

    overlay = overlay_mask(image, mask, palette).repeat(factor, 0).repeat(factor, 1)
    colours = {index: tuple(palette[index].tolist()) for index in labels}
    inks = {index: _ink(colour) for index, colour in colours.items()}
    for index, ink in inks.items():
        region = (mask == index).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
        outlines, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(overlay, outlines, -1, ink, font.size // 10)

    picture = Image.fromarray(overlay)
    draw = ImageDraw.Draw(picture)
    plates = []  # top, left and right of those so far
    for index, text in labels.items():
        x, y = (factor * (at + 0.5) for at in _innermost(mask == index))
        left = max(0, min(round(x - widths[index] / 2), picture.width - widths[index]))
        right = left + widths[index]
        top = _free_row(round(y - height / 2), picture.height - height, height, left, right, plates)
        plates.append((top, left, right))
        draw.rectangle((left, top, right - 1, top + height - 1), colours[index], inks[index])
        draw.text((left + pad, top), text, inks[index], font)
    return np.array(picture)


def _ink(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever can be read on a colour."""
    return (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 128 else (255, 255, 255)


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


def letterbox(picture: np.ndarray, side: int) -> np.ndarray:
    """Scale a picture and pad it with white to (side, side)."""
    h, w = picture.shape[:2]
    scale = side / max(h, w)
    small = cv2.resize(picture, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=cv2.INTER_AREA)
    canvas = np.full((side, side, 3), 255, np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    return canvas


def image_grid(rows: list[list[np.ndarray]], titles: Sequence[str] = (), pad: int = 4) -> np.ndarray:
    """Put rows of pictures of one size together as one picture, under a title per column; gaps are white."""
    h, w = rows[0][0].shape[:2]
    columns = max(map(len, rows))
    head = 24 if titles else 0
    canvas = np.full((head + len(rows) * (h + pad), columns * (w + pad), 3), 255, np.uint8)
    for j, title in enumerate(titles):
        font, place = cv2.FONT_HERSHEY_SIMPLEX, (j * (w + pad) + 2, 17)
        (width, _), _ = cv2.getTextSize(title, font, 0.45, 1)
        cv2.putText(canvas, title, place, font, 0.45 * min(1, (w - 4) / max(width, 1)), (0, 0, 0), 1, cv2.LINE_AA)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            canvas[head + i * (h + pad) :, j * (w + pad) :][: picture.shape[0], : picture.shape[1]] = picture
    return canvas
