"""Reading and writing of pictures and of masks. No torch here: stages 3, 6 and 9 import this module and fork.

Photographs are read by Pillow rather than imageio, because Pillow also resizes them, and because imageio turns grey
photographs with an EXIF orientation about the wrong axis.
"""

import hashlib
import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from core import IGNORE, UserError, has_control_characters
from core.data.files import check_regular
from core.data.pixels import Reading, check_memory, upright

# Pillow reads 40 formats, among them some that start other programs. Only the formats that docs/datasets.md names are
# allowed.
FORMATS = ('JPEG', 'PNG', WebPImagePlugin.WebPImageFile.format, 'BMP', TiffImagePlugin.TiffImageFile.format, 'GIF')
FORMATS += ('JPEG2000', *(['AVIF'] if find_spec('PIL.AvifImagePlugin') else []))  # AVIF since Pillow 11.3
# Names of files that are images; in folders others are left out.
ENDINGS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.jfif', '.jpe', '.mpo', '.avif')
ENDINGS += ('.jp2', '.j2k', '.jpf', '.jpx', '.j2c', '.jpc')  # JPEG 2000
ENDINGS += ('.apng', '.avifs')  # animations
AS_THEY_ARE = Reading()
FIRST = Reading(plane='1')  # for the size of a file whose plane is not known yet
UNREADABLE = ('.heic', '.heif')  # photographs that Pillow cannot read
ID_LIMIT = 200  # bytes of an image id: endings and prefixes of output files must fit into the 255 of a file name

Image.MAX_IMAGE_PIXELS = None  # images of any size: `check_memory` checks them
warnings.filterwarnings('ignore', module=r'PIL\.')  # about metadata that is not read here


def make_image_id(path: str) -> str:
    """Return the image id of a relative path: its folders and name joined by '__', without the extension.

    A path that is too long is shortened to ten digits of its hash and its end. Raises UserError if the path is empty,
    absolute, leaves its folder or contains control characters.
    """
    parts = PurePosixPath(path.replace('\\', '/')).parts
    if has_control_characters(path):
        raise UserError(f'{path!r} contains control characters: rename the file')
    if not parts or '..' in parts or parts[0].startswith('/') or parts[0].endswith(':'):
        raise UserError(f'{path!r} is not a relative path of an image')
    image_id = '__'.join([*parts[:-1], PurePosixPath(parts[-1]).stem])
    if image_id.startswith('.'):
        image_id = f'_{image_id}'
    if len(image_id.encode()) > ID_LIMIT:
        digest = hashlib.sha256(image_id.encode()).hexdigest()[:10]
        end = image_id.encode()[-(ID_LIMIT - 12) :].decode(errors='ignore')
        image_id = f'{digest}__{end}'
    return image_id


def find_file(path: Path) -> Path:
    """Return a path as the disk has it: macOS and some archives write 'é' as 'e' and an accent (NFD).

    If neither form exists, the path is returned unchanged.
    """
    if str(path).isascii() or path.exists():
        return path
    parent = find_file(path.parent)
    forms = (parent / unicodedata.normalize(form, path.name) for form in ('NFC', 'NFD'))
    return next((other for other in forms if other.exists()), path)


def find_named(folder: Path, name: str) -> str:
    """Return the path below a folder of an image that a labelling tool names, whose folders may have been moved.

    `name` may be a path of another machine, or an address of Label Studio, which puts 8 digits before names. The
    longest end of it that is a file is returned, or its last part if there is none.
    """
    parts = [part for part in re.split(r'[/\\]', unquote(name.split('?d=')[-1])) if part not in ('', '.')]
    ends = [parts[i:] for i in range(len(parts)) if '..' not in parts[i:]] or [[name]]
    ends.append([*ends[-1][:-1], re.sub('^[0-9a-f]{8}-', '', ends[-1][-1])])
    found = (end for end in ends if find_file(folder.joinpath(*end)).is_file())
    return '/'.join(next(found, ends[-2]))


def image_size(path: Path, reading: Reading = AS_THEY_ARE) -> tuple[int, int]:
    """Return (h, w) of the upright image from its header. Raises UserError naming the file."""
    with _opened(path, 'image') as image:
        return reading.size(path, image)


def sides_in_header(path: Path) -> tuple[int, int]:
    """Return the sides (h, w) of a picture before it is turned upright: nothing is decoded. Raises UserError."""
    with _opened(path, 'picture') as image:
        return image.height, image.width


def read_image(path: Path, reading: Reading = AS_THEY_ARE) -> Image.Image:
    """Return an RGB image, decoded and turned upright by its EXIF orientation. Raises UserError naming the file."""
    with _opened(path, 'image') as image:
        return reading.read(path, image)


def is_mapped(path: Path, reading: Reading) -> bool:
    """Return whether a file has values other than 0 to 255, which need a window. Raises UserError naming the file."""
    with _opened(path, 'image') as image:
        return reading.is_mapped(path, image)


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    """Open a picture. Raises UserError naming the file for any error that Pillow raises, here or inside the context."""
    try:
        check_regular(path)
        with Image.open(path, formats=FORMATS) as image:
            check_memory(path, image)
            if image.format == 'TIFF':
                image.filename = ''  # Pillow maps named files, and garbles grey images that lie on their side
            yield image
    except FileNotFoundError:
        raise UserError(f'{path}: no such {what}') from None
    except UserError:
        raise
    except MemoryError:
        raise UserError(f'{path}: does not fit in memory: use a smaller {what}') from None
    except Exception as error:
        reason = _first_line(error)
        if isinstance(error, UnidentifiedImageError) and path.suffix.lower() in ('.tif', '.tiff'):
            reason = 'no TIFF file, or neither grey nor RGB, or not of integers up to 32 bits or float32'
        raise UserError(f'{path}: not a readable {what} ({reason})') from None


@dataclass(frozen=True)
class MaskValues:
    """What the pixels of masks mean if they are not class indices: grey or palette values, or colours.

    A colour is the number 0xrrggbb.
    """

    indices: dict[int, int]  # 0: background, 255: ignore
    are_colours: bool
    named_by: str = '"mask_values" does not name'  # end of the error for another value

    @classmethod
    def of_class(cls, index: int) -> 'MaskValues':
        """Return the values of masks of a single class: 0, and 1 or 255."""
        return cls({0: 0, 1: index, 255: index}, False, 'is neither 0, nor 1 or 255 for its class')

    @classmethod
    def parse(cls, content: object, class_names: tuple[str, ...], has_background: bool = True) -> 'MaskValues':
        """Read {"0": "background", "255": "cat", "128": "ignore"}, or {"#ff0000": "cat", ...} for colours.

        In a data set without a background, pixels of the background are those that nobody labelled: ignored. Raises
        ValueError whose message continues '"mask_values" must'.
        """
        if not isinstance(content, dict) or not content:
            raise ValueError('map values such as "255", or colours such as "#ff0000", to class names')
        are_colours = all(re.fullmatch('#[0-9a-fA-F]{6}', value) for value in content)
        if not are_colours and not all(re.fullmatch('[0-9]{1,5}', value) for value in content):
            raise ValueError('have only whole numbers or only colours such as "#ff0000" as keys')
        if 'ignore' in class_names and 'ignore' in content.values():
            raise ValueError('not name "ignore" (ignored pixels), which is also the name of a class: rename the class')
        known = {'ignore': IGNORE, 'background': 0 if has_background else IGNORE}
        known |= {name: k for k, name in enumerate(class_names, 1)}
        for name in content.values():
            if not isinstance(name, str) or name not in known:
                raise ValueError(f'name classes, "background" or "ignore", not {name!r}')
        base = 16 if are_colours else 10
        return cls({int(value.lstrip('#'), base): known[name] for value, name in content.items()}, are_colours)

    def read(self, image: Image.Image) -> np.ndarray:
        """Return the label map (h, w) uint8 of a decoded mask. Raises ValueError for a value without meaning."""
        if self.are_colours:
            pixels = np.array(image.convert('RGB')).astype(np.int64) @ [1 << 16, 1 << 8, 1]
        else:
            pixels = np.array(image.convert('L') if image.mode in ('1', 'LA') else image)
            if image.mode == '1':
                pixels = pixels // 255
            if pixels.ndim == 3:  # grey, stored as colours
                if (pixels[..., :3] != pixels[..., :1]).any():
                    raise ValueError('is coloured, but "mask_values" has no colours')
                pixels = pixels[..., 0]
        values, where = np.unique(pixels, return_inverse=True)
        for value in values:
            if int(value) not in self.indices:
                text = f'#{value:06x}' if self.are_colours else str(value)
                raise ValueError(f'contains {text}, which {self.named_by}')
        return np.array([self.indices[int(value)] for value in values], np.uint8)[where].reshape(pixels.shape)


def read_label_map(
    path: Path,
    num_classes: int,
    size: tuple[int, int] | None = None,
    values: MaskValues | None = None,
    has_background: bool = True,
) -> np.ndarray:
    """Return a mask or label map (h, w) uint8 of 0..num_classes and 255; 0 is the background.

    Its pixels are class indices of a palette or grey PNG, or `values`. Raises UserError naming the file if it is
    missing or unreadable, contains a class above num_classes or a background that the data set does not have, or is not
    of the size (h, w).
    """
    with _opened(path, 'mask') as image:
        if values is None and image.mode not in ('P', 'L', '1'):
            raise UserError(
                f'{path}: a mask must be an 8-bit palette or grey PNG of class indices, not mode {image.mode} '
                '(or the data set needs the entry "mask_values")'
            )
        if size is not None and sorted(image.size) != sorted(size):  # before decoding: it may be large
            raise UserError(_other_size(path, *image.size, size))
        image = upright(image)
        try:
            label = np.array(image, np.uint8) if values is None else values.read(image)
        except ValueError as error:
            raise UserError(f'{path}: {error}') from None
    if size is not None and label.shape != tuple(size):
        raise UserError(_other_size(path, *label.shape[::-1], size))
    wrong = (label > num_classes) & (label != IGNORE)
    if wrong.any():
        raise UserError(
            f'{path}: contains class {label[wrong].max()}, the largest class is {num_classes} (255: ignore)'
        )
    if not has_background and not label.all():
        raise UserError(
            f'{path}: contains 0, but without a background the classes have the values 1 to {num_classes} and pixels '
            'without a class 255; the entry "mask_values" of the data set names other values: {"0": CLASS or "ignore"}'
        )
    return label


def _other_size(path: Path, width: int, height: int, size: tuple[int, int]) -> str:
    return f'{path}: the mask is {width}x{height}, the image is {size[1]}x{size[0]}'


def encode_label_map(label: np.ndarray, palette: np.ndarray) -> bytes:
    """Encode an (h, w) uint8 label map as an 8-bit palette PNG whose indices are the classes."""
    picture = Image.fromarray(np.ascontiguousarray(label, np.uint8), mode='P')
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
