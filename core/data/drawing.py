"""Drawing: heat maps, masks and labels over images, and grids of them. All pictures are (h, w, 3) uint8 RGB.

A layer is drawn over an image: (h', w', 4) uint8 RGBA of any resolution, each pixel opaque or transparent.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core import UserError

ROWS = 256  # of a picture that are blended at once: in double precision a large one would take gigabytes
NO_CHARACTER = '\U0010ffff'  # in no font: drawn as the sign for a missing character


def heatmap_layer(score: np.ndarray) -> np.ndarray:
    """Return a score (h, w) in [0, 1] as a layer of colours from blue to red, opaque everywhere."""
    levels = (np.clip(score, 0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGBA)


def mask_layer(mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return a mask of class indices (h, w) as a layer in the palette's colours; the background is transparent."""
    return np.dstack([palette[mask], np.where(mask > 0, 255, 0)]).astype(np.uint8)


def blend(image: np.ndarray, layer: np.ndarray, is_heatmap: bool) -> np.ndarray:
    """Lay a layer (h', w', 4) half transparently over an image; pixels of alpha 0 show the image alone.

    The colours of a heat map are interpolated; the colours of a mask are classes.
    """
    h, w = image.shape[:2]
    layer = cv2.resize(layer, (w, h), interpolation=cv2.INTER_LINEAR if is_heatmap else cv2.INTER_NEAREST)
    mixed = (0.5 * image + 0.5 * layer[..., :3]).astype(np.uint8)
    return np.where(layer[..., 3:] > 0, mixed, image)


def overlay_heatmap(image: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Blend a score in [0, 1] of any resolution (h', w') as a heat map over the image."""
    h, w = image.shape[:2]
    score = cv2.resize(np.clip(score, 0, 1).astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    return blend(image, heatmap_layer(score), is_heatmap=True)


def overlay_mask(image: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Blend a mask of class indices (h', w') in the palette's colours over the image, except the background."""
    if mask.shape != image.shape[:2]:
        return blend(image, mask_layer(mask, palette), is_heatmap=False)
    overlay = np.empty_like(image)
    for y in range(0, len(image), ROWS):
        rows = slice(y, y + ROWS)
        overlay[rows] = blend(image[rows], mask_layer(mask[rows], palette), is_heatmap=False)
    return overlay


def open_font(path: Path | None = None) -> ImageFont.FreeTypeFont:
    """Return the font of a file or of a name such as DejaVuSans.ttf; by default Pillow's font, which has only ASCII.

    Raises UserError naming the file.
    """
    if path is None:
        return ImageFont.load_default(16)
    try:
        return ImageFont.truetype(path, 16)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error})', option='font') from None


def can_write(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Return whether a font has every character of a text."""
    missing = bytes(font.getmask(NO_CHARACTER))
    return all(character.isspace() or bytes(font.getmask(character)) != missing for character in text)


def ink(colour: Sequence[int]) -> tuple[int, int, int]:
    """Return black or white, whichever has the higher contrast to a colour: at least 4.5 by WCAG 2.2, section 1.4.3."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in np.asarray(colour) / 255]
    luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
    return (0, 0, 0) if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else (255, 255, 255)


def caption(
    picture: np.ndarray, title: str, chips: Sequence[tuple[str, Sequence[int]]], note: str, font: ImageFont.FreeTypeFont
) -> np.ndarray:
    """Put a caption below a picture: the title, class names in their colours (name, RGB), and a note; lines wrap."""
    h, w = picture.shape[:2]
    line, gap = sum(font.getmetrics()) + 2, math.ceil(font.size / 3)
    words = [(word, None) for word in title.split()] + list(chips)
    placed, x, y = [], 0, 0
    for line_words in filter(None, (words, [(word, None) for word in note.split()])):
        for text, colour in line_words:
            while colour is None and len(text) > 1 and font.getlength(text) > w:  # a long word
                end = next(n for n in range(len(text) - 1, 0, -1) if n == 1 or font.getlength(text[:n]) <= w)
                x, y = (0, y + line) if x else (x, y)
                placed.append((0, y, w, text[:end], None))
                text, y = text[end:], y + line
            width = math.ceil(font.getlength(text)) + (2 * gap if colour is not None else 0)
            if x and x + width > w:
                x, y = 0, y + line
            placed.append((x, y, width, text, colour))
            x += width + gap
        x, y = 0, y + line
    canvas = Image.new('RGB', (w, h + y + gap), 'white')
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for x, y, width, text, colour in placed:
        top = h + y + 2
        if colour is None:
            draw.text((x, top), text, (0, 0, 0), font)
        else:
            draw.rectangle((x, top, x + width - 1, top + line - 3), tuple(colour), (0, 0, 0))
            draw.text((x + gap, top), text, ink(colour), font)
    return np.array(canvas)


def stack(pictures: Sequence[np.ndarray], columns: int, pad: int = 8) -> np.ndarray:
    """Put pictures of any size next to one another, `columns` in a row, with white gaps to the left and above each."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    width = max(sum(pad + picture.shape[1] for picture in row) for row in rows)
    canvas, y = np.full((sum(heights) + pad * len(rows), width, 3), 255, np.uint8), pad
    for row, height in zip(rows, heights, strict=True):
        x = pad
        for picture in row:
            canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += picture.shape[1] + pad
        y += height + pad
    return canvas
