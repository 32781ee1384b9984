"""Pictures for people: heat maps and masks over images, grids of them. All are (h, w, 3) uint8 RGB."""

from collections.abc import Sequence

import cv2
import numpy as np


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
