"""What becomes of the images of a file: a mask or tags of each, or the problem that it has."""

from collections import Counter
from typing import NamedTuple

import cv2
import numpy as np

from core import IGNORE, UserError
from core.data.dataset import Dataset
from core.data.images import encode_label_map
from tools.exchange.matching import Images
from tools.exchange.reading import Box, Content, Found, compose
from util.store.files import write_bytes

NOTHING = Counter()


class Result(NamedTuple):
    """What became of an image: the problem if there is one, unknown labels, and what changed by class."""

    problem: str = ''
    unknown: tuple[str, ...] = ()
    is_empty: bool = False  # no object in the file: nothing was written
    classes: frozenset[int] = frozenset()  # in the new mask, or the tags
    before: frozenset[int] | None = None  # in the mask before, None without one
    added: Counter = NOTHING  # pixels by class that had another class before
    removed: Counter = NOTHING
    is_taken: bool = False
    differs: bool = True  # from the mask before
    boxes: int = 0


def match(found: list[Found], images: Images, chosen: list[str]) -> tuple[dict[str, Found], list[str]]:
    """Return the entry of each image by its id, and a line for each that is of no image, or of one that had one.

    Of `chosen` ids, if there are any, only these, and a line for each that has no entry.
    """
    matched: dict[str, Found] = {}
    problems = []
    for entry, image_id in zip(found, images.find_all(entry.name for entry in found), strict=True):
        if isinstance(image_id, ValueError):
            problems += [] if chosen else [f'{entry.where}: {image_id}']
            continue
        if chosen and image_id not in chosen:
            continue
        if image_id in matched:
            problems.append(f'{entry.where}: {entry.name!r} is the image of {matched[image_id].where} too')
            continue
        matched[image_id] = entry
    return matched, problems + [f'{image_id}: is not in the file' for image_id in chosen if image_id not in matched]


def load(entry: Found, dataset: Dataset, image_id: str) -> tuple[Content, tuple[int, int]]:
    """Return what the file says about an image, and the size of the image. Raises UserError naming the file."""
    size = dataset.image_size(image_id)
    try:
        return entry.load(size, dataset.image_path(image_id)), size
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'{entry.where}: cannot be read ({error.strerror})') from None
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f'{entry.where}: {str(error).splitlines()[0]}') from None


def take_mask(image_id, matched, dataset, classes, out, before, keep_empty, changed_only, slack) -> Result:
    """Write the mask of an image, and return what changed. Problems are returned, not raised: others follow."""
    entry = matched[image_id]
    try:
        content, size = load(entry, dataset, image_id)
        indices = [classes.find(shape.label) for shape in content.shapes]
        if None in indices:
            labels = (shape.label for shape, index in zip(content.shapes, indices, strict=True) if index is None)
            return Result(unknown=tuple(labels))
        label = compose(content, indices, size)
        if any(indices) and not label.any():
            raise ValueError('none of its objects covers a pixel of the image: check their coordinates')
        if not dataset.has_background:  # what is in no object, nobody has labelled
            label[label == 0] = IGNORE
        old = read_before(dataset, image_id, before, size)
    except UserError as error:
        return Result(str(error))
    except (ValueError, OverflowError) as error:
        return Result(f'{entry.where}: {error}')
    present = frozenset(np.unique(label).tolist()) - {0}
    was_emptied = before is not None and old is not None and bool(old.any())
    if not (present if dataset.has_background else present - {IGNORE}) and not keep_empty and not was_emptied:
        return Result(is_empty=True)
    differs = np.ones_like(label, bool) if old is None else label != old
    is_changed = old is None or bool((differs & ~near_borders(old, slack)).any())
    if changed_only and not is_changed:
        return Result(differs=False)
    write_bytes(out / f'{image_id}.png', encode_label_map(label, dataset.palette))
    return Result(
        is_taken=True,
        classes=present - {IGNORE},
        before=None if old is None else frozenset(np.unique(old).tolist()) - {0, IGNORE},
        added=_count(label[differs]),
        removed=NOTHING if old is None else _count(old[differs]),
        differs=is_changed,
        boxes=sum(isinstance(shape.content, Box) for shape in content.shapes),
    )


def _count(values: np.ndarray) -> Counter:
    """Return how often each value occurs."""
    return Counter({value: count for value, count in enumerate(np.bincount(values).tolist()) if count})


def read_before(dataset, image_id, before, size):
    """Return the label map (h, w) before the correction, None if there is none, or one in the data set is damaged.

    Raises UserError if one in the folder `before` is damaged.
    """
    if before is not None:
        path = before / f'{image_id}.png'
        return dataset.read_label_map(path, size) if path.is_file() else None
    try:
        return dataset.read_mask(image_id, size) if dataset.has_mask(image_id) else None
    except UserError:
        return None


def near_borders(label: np.ndarray, distance: int) -> np.ndarray:
    """Return which pixels (h, w) are at most `distance` pixels from a border between two classes, or next to it."""
    square = np.ones((3, 3), np.uint8)
    borders = cv2.dilate(label, square) != cv2.erode(label, square)  # a pixel on both sides
    if not distance or not borders.any():
        return np.zeros_like(label, bool)
    return cv2.distanceTransform((~borders).astype(np.uint8), cv2.DIST_C, 3) <= distance - 1


def take_labels(image_id, matched, dataset, classes, keep_empty) -> Result:
    """Return the classes that the file says of an image."""
    try:
        content, _ = load(matched[image_id], dataset, image_id)
    except UserError as error:
        return Result(str(error))
    indices = [classes.find(shape.label) for shape in content.shapes]
    unknown = tuple(shape.label for shape, index in zip(content.shapes, indices, strict=True) if index is None)
    present = frozenset(indices) - {0, IGNORE, None}
    return Result(unknown=unknown, is_empty=not present and not unknown and not keep_empty, classes=present)
