"""Data sets in the VOC layout: one JSON says its classes and lists, a root folder holds images, labels and masks.

Under the root: JPEGImages/{id}.jpg, Annotations/{id}.xml, SegmentationClass/{id}.png (palette; 255 void).
"""

import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

import numpy as np
from PIL import Image

from core import IGNORE, InputError


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set's JSON says. Roles of lists: `train_aug` trains, `train` and `val` score, `test` is secret."""

    name: str
    class_names: tuple[str, ...]  # the foreground; index 0 of every map is the background
    palette: np.ndarray  # (256, 3) uint8
    lists: dict[str, Path]

    @property
    def num_classes(self) -> int:
        """The number of foreground classes, C."""
        return len(self.class_names)

    def ids(self, domain: str) -> list[str]:
        """The image ids of a list. Raises InputError for a list the JSON does not name, that is empty or unsafe."""
        if domain not in self.lists:
            raise InputError(f'--domain {domain}: the data set "{self.name}" has the lists {", ".join(self.lists)}')
        path = self.lists[domain]
        try:
            ids = path.read_text(encoding='utf-8-sig').split()
        except (OSError, ValueError) as error:
            raise InputError(
                f'{path}: the list "{domain}" of --dataset cannot be read ({type(error).__name__})'
            ) from None
        if not ids:
            raise InputError(f'{path}: the list "{domain}" of --dataset is empty')
        for image_id in ids:
            if '/' in image_id or '\\' in image_id or image_id.startswith('.') or not image_id.isprintable():
                raise InputError(f'{path}: {image_id!r} is no image id (a file name without folder and ending)')
        if len(set(ids)) < len(ids):
            twice = next(image_id for i, image_id in enumerate(ids) if image_id in ids[:i])
            raise InputError(f'{path}: {twice!r} stands there twice (one image id a line is expected)')
        return ids


def voc_palette() -> np.ndarray:
    """VOC's colours, (256, 3) uint8: three bits of the index at a time go to the top bits of red, green and blue."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for step in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * step + channel)) & 1) << (7 - step)).astype(np.uint8)
    return palette


def load_info(path: str | Path) -> DatasetInfo:
    """Read a data set's JSON: {"name", "classes": [...], "lists": {domain: file}, "palette": [[r, g, b]]}.

    The palette may be left out. List files lie beside the JSON. Raises InputError for anything that is not so.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding='utf-8-sig'))
    except OSError as error:
        raise InputError(f'--dataset {path}: cannot be read ({error.strerror})') from None
    except (ValueError, RecursionError) as error:
        raise InputError(f'--dataset {path}: is no JSON ({error})') from None
    if not isinstance(content, dict) or not {'classes', 'lists'} <= content.keys():
        raise InputError(f'--dataset {path}: needs the entries "classes" and "lists"')
    classes, lists = content['classes'], content['lists']
    is_list_of_names = isinstance(classes, list) and all(
        isinstance(name, str) and name not in ('', 'background') for name in classes
    )
    if not is_list_of_names or not 0 < len(classes) < IGNORE or len(set(classes)) < len(classes):
        raise InputError(f'--dataset {path}: "classes" must be 1 to 254 different names, without the background')
    if not isinstance(lists, dict) or not all(isinstance(file, str) for file in lists.values()):
        raise InputError(f'--dataset {path}: "lists" must name a file for each domain')
    palette = voc_palette()
    if 'palette' in content:
        try:
            colours = np.asarray(content['palette'])
            if colours.dtype.kind != 'i' or colours.shape[1:] != (3,) or colours.min() < 0 or colours.max() > 255:
                raise ValueError
            palette[: len(colours)] = colours.astype(np.uint8)
        except (ValueError, TypeError):
            raise InputError(f'--dataset {path}: "palette" must be up to 256 [r, g, b] colours') from None
    files = {domain: path.parent / file for domain, file in lists.items()}
    return DatasetInfo(str(content.get('name', path.stem)), tuple(classes), palette, files)


def image_path(data_dir: str | Path, image_id: str) -> Path:
    """Of a root in the VOC layout."""
    return Path(data_dir) / 'JPEGImages' / f'{image_id}.jpg'


def xml_path(data_dir: str | Path, image_id: str) -> Path:
    """Of a root in the VOC layout."""
    return Path(data_dir) / 'Annotations' / f'{image_id}.xml'


def mask_path(data_dir: str | Path, image_id: str) -> Path:
    """Of the root or, where people pass it, of the mask folder itself."""
    folder = Path(data_dir) / 'SegmentationClass'
    return (folder if folder.is_dir() else Path(data_dir)) / f'{image_id}.png'


def label_path(folder: str | Path, image_id: str) -> Path:
    """A label map that an earlier stage wrote."""
    return Path(folder) / f'{image_id}.png'


def check_files(paths: list[Path], advice: str) -> None:
    """Raise InputError naming the first file that is not there: a stage starts whole or not at all."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f'{missing[0]}: no such file ({len(missing)} of {len(paths)} are missing): {advice}')


def image_size(path: Path) -> tuple[int, int]:
    """(h, w) from the header of an image file."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f'{path}: not a readable image ({_first_line(error)})') from None


def read_image(path: Path) -> Image.Image:
    """An RGB image, wholly decoded. Raises InputError naming the file."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(('I', 'F')):
                raise InputError(f'{path}: has more than 8 bits a channel ({image.mode}): convert it')
            image.load()
            return image if image.mode == 'RGB' else image.convert('RGB')
    except FileNotFoundError:
        raise InputError(f'{path}: no such image (check --data_dir)') from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f'{path}: not a readable image ({_first_line(error)})') from None


def read_mask(path: Path, num_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask or label map (h, w) uint8 of 0..num_classes and 255, from a palette or grey PNG.

    Raises InputError naming the file: missing, no such picture, a class beyond num_classes, not of the size (h, w).
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ('P', 'L'):
                raise InputError(
                    f'{path}: a mask must be an 8-bit palette or grey PNG of class indices, not {image.mode}'
                )
            mask = np.array(image)
    except FileNotFoundError:
        raise InputError(f'{path}: no such mask') from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f'{path}: not a readable mask ({_first_line(error)})') from None
    if size is not None and mask.shape != tuple(size):
        raise InputError(f'{path}: a mask of {mask.shape[1]}x{mask.shape[0]} for an image of {size[1]}x{size[0]}')
    wrong = (mask > num_classes) & (mask != IGNORE)
    if wrong.any():
        raise InputError(f'{path}: holds class {mask[wrong].max()}, the data set ends at {num_classes} (and 255)')
    return mask


def encode_mask(mask: np.ndarray, palette: np.ndarray) -> bytes:
    """An (h, w) uint8 mask as the bytes of an 8-bit palette PNG whose indices are the classes."""
    picture = Image.fromarray(np.ascontiguousarray(mask, np.uint8), mode='P')
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    return buffer.getvalue()


def _parse_xml(path: Path) -> ET.Element:
    """The root element; a document type is refused, so no entity is ever expanded."""
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_):
        raise InputError(f'{path}: declares a document type, which VOC annotations do not')

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(path.read_bytes(), True)
    return builder.close()


def read_labels(path: Path, info: DatasetInfo) -> np.ndarray:
    """The image-level label of a VOC XML: (C,) float32 multi-hot, `difficult` objects included (as published).

    A box of zero width or height after clipping to the image is skipped. Raises InputError naming the file: missing,
    no VOC XML, a name that is no class of the data set, or no object at all.
    """
    try:
        root = _parse_xml(path)
        width, height = float(root.findtext('size/width', 'nan')), float(root.findtext('size/height', 'nan'))
        labels = np.zeros(info.num_classes, np.float32)
        for thing in root.iter('object'):
            name = (thing.findtext('name') or '').strip()
            if name not in info.class_names:
                raise InputError(f'{path}: object {name!r} is no class of the data set "{info.name}" (--dataset)')
            x = [float(thing.findtext(f'bndbox/{side}', 'nan')) for side in ('xmin', 'xmax')]
            y = [float(thing.findtext(f'bndbox/{side}', 'nan')) for side in ('ymin', 'ymax')]
            if not np.isfinite([*x, *y, width, height]).all():
                raise InputError(f'{path}: the size or the box of {name!r} lacks a number')
            x, y = np.clip(x, 0, width), np.clip(y, 0, height)
            if x[1] > x[0] and y[1] > y[0]:
                labels[info.class_names.index(name)] = 1
    except FileNotFoundError:
        raise InputError(f'{path}: no such annotation (check --data_dir)') from None
    except InputError:
        raise
    except (OSError, expat.ExpatError, ValueError, LookupError) as error:
        raise InputError(f'{path}: not a VOC annotation ({_first_line(error)})') from None
    if not labels.any():
        raise InputError(
            f'{path}: no object of any class: an image-level label is needed (take the id out of the list)'
        )
    return labels


def keys_of(labels: np.ndarray) -> np.ndarray:
    """(C,) multi-hot -> [0, c1+1, ..., cK+1], the background and the present classes."""
    return np.concatenate([[0], np.flatnonzero(labels) + 1]).astype(np.int64)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class ImageSet:
    """Samples for training and scoring: dicts of `images` and, where asked for, `labels` and `masks`.

    `transform(image, mask, seed)` makes of an RGB image and a mask (or None) what batches are stacked of. A key is a
    position or a pair (epoch, position): then augmentation is drawn from (seed, epoch, position) in whatever worker.
    masks come from mask_of(image_id). Labels are read at once: a bad annotation stops a run before it has begun.
    """

    def __init__(
        self,
        info: DatasetInfo,
        data_dir: str | Path,
        domain: str,
        transform: Callable,
        with_labels: bool = False,
        mask_of: Callable[[str], Path] | None = None,
        seed: int = 0,
    ):
        self.info, self.data_dir, self.transform, self.mask_of, self.seed = info, data_dir, transform, mask_of, seed
        self.ids = info.ids(domain)
        self.labels = None
        if with_labels:
            self.labels = np.stack([read_labels(xml_path(data_dir, image_id), info) for image_id in self.ids])
        check_files([image_path(data_dir, image_id) for image_id in self.ids], 'check --data_dir')
        if mask_of:
            check_files([mask_of(image_id) for image_id in self.ids], 'an earlier stage or the data set should hold it')

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, position = key if isinstance(key, tuple) else (0, key)
        image_id = self.ids[position]
        image = read_image(image_path(self.data_dir, image_id))
        mask = None
        if self.mask_of:
            mask = Image.fromarray(read_mask(self.mask_of(image_id), self.info.num_classes, image.size[::-1]))
        image, mask = self.transform(image, mask, (self.seed, epoch, position))
        sample = {'images': image}
        if mask is not None:
            sample['masks'] = mask
        if self.labels is not None:
            sample['labels'] = self.labels[position]
        return sample


class ScaledBatches:
    """Samples for inference: (ids, [image (h, w, 3) uint8, ...], [images (N, h_s, w_s, 3) of each scale]).

    Images of one size go together, at most batch_size of them. How they are grouped follows from the list alone, so
    what comes out for an image does not depend on what has been done before.
    """

    def __init__(
        self,
        data_dir: str | Path,
        ids: list[str],
        scales: list[float],
        batch_size: int,
        to_tensor: Callable,
        stack: Callable,
    ):
        self.data_dir, self.scales, self.to_tensor, self.stack = data_dir, scales, to_tensor, stack
        check_files([image_path(data_dir, image_id) for image_id in ids], 'check --data_dir')
        open_groups: dict[tuple[int, int], list[str]] = {}
        self.batches: list[list[str]] = []
        for image_id in ids:
            size = image_size(image_path(data_dir, image_id))
            group = open_groups.get(size)
            if group is None or len(group) == batch_size:
                group = open_groups[size] = []
                self.batches.append(group)
            group.append(image_id)

    def keep(self, todo: list[str]) -> None:
        """Leave out the batches without any of these ids."""
        wanted = set(todo)
        self.batches = [group for group in self.batches if not wanted.isdisjoint(group)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> tuple[list[str], list[np.ndarray], list]:
        ids = self.batches[position]
        images = [read_image(image_path(self.data_dir, image_id)) for image_id in ids]
        versions = [self.stack([self.to_tensor(image, scale) for image in images]) for scale in self.scales]
        return ids, [np.array(image) for image in images], versions
