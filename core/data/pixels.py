"""How the pixels of a file become an image of 8 bits: the plane of a stack, and the window of grey values.

A file of one plane with 8 bits per channel needs no rule. Any other file does not say which of its planes is meant, or
which values are black and white. No torch here: stages 3, 6 and 9 import this module and fork.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core import UserError
from core.data.files import available_memory, read_bytes

ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height
TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # by orientation: Image.Transpose
SUBFILE, BITS, DESCRIPTION, PLANAR, SAMPLES = 254, 258, 270, 284, 339  # tags of TIFF
SMALLER_OR_MASK = 0b101  # bits of the tag SUBFILE: a smaller copy of another page, a mask of transparency
HYPERSTACK = re.compile(r'ImageJ=.*?^images=(\d+)$', re.DOTALL | re.MULTILINE)  # all planes after a single page
SHAPED = re.compile(r'\{"shape": \[(\d+), .*"truncated": true')  # the same by tifffile
MAXIMUM = 'max'  # as plane: the largest value of all planes
ROWS = 256  # rows that are mapped at a time, to save memory
MANY_PIXELS = 2**25  # images with fewer pixels are opened without checking the memory
PIXEL_BYTES = 12  # bytes per pixel to decode, turn and convert an image
WINDOW_FORM = 'LOW,HIGH with LOW below HIGH, such as 0,4095, or percentiles of each image, such as 0.5%,99.5%'
PLANE_FORM = f'the number of a plane, from 1, or {MAXIMUM}'
ENTRY_FORMS = {'window': '[LOW, HIGH] with LOW below HIGH, or {"percentiles": [0.5, 99.5]}'}
ENTRY_FORMS |= {'plane': f'the number of a plane, from 1, or "{MAXIMUM}"'}


def parse_window(text: str) -> str:
    """Return 'LOW,HIGH' or 'LOW%,HIGH%' in its normal form. Raises ValueError with a line for any other text."""
    try:
        low, high, are_percentiles = _limits(text)
    except ValueError:
        low = high = np.nan
    if not -np.inf < low < high < np.inf or (are_percentiles and not 0 <= low < high <= 100):
        raise ValueError(f'{text!r} is not {WINDOW_FORM}')
    sign = '%' if are_percentiles else ''
    return f'{low:.12g}{sign},{high:.12g}{sign}'


def parse_plane(text: str) -> str:
    """Return the number of a plane or 'max' in its normal form. Raises ValueError with a line for any other text."""
    if text != MAXIMUM and not (re.fullmatch('[0-9]{1,9}', text) and int(text)):
        raise ValueError(f'{text!r} is not {PLANE_FORM}')
    return text if text == MAXIMUM else str(int(text))


def _limits(window: str) -> tuple[float, float, bool]:
    """Return LOW, HIGH and whether they are percentiles. Raises ValueError."""
    low, high = (part.strip() for part in window.split(','))
    are_percentiles = low.endswith('%') and high.endswith('%')
    if are_percentiles:
        low, high = low[:-1], high[:-1]
    return float(low), float(high), are_percentiles


@dataclass(frozen=True)
class Reading:
    """The rule: the window of values, as of `parse_window`, and the plane, as of `parse_plane`; None: there is none.

    The window is applied to images whose values are not of 8 bits, and the plane to files of several planes. All others
    are read as they are, so a data set may mix both.
    """

    window: str | None = None
    plane: str | None = None

    @classmethod
    def of(cls, where: Path, entries: Mapping[str, object], window: str | None, plane: str | None) -> 'Reading':
        """Return the rule of the flags, or else of the entries of a data set. Raises UserError naming the file."""
        read = {}
        for name, given, parse, entry in (
            ('window', window, parse_window, _window_entry),
            ('plane', plane, parse_plane, _plane_entry),
        ):
            try:
                own = None if entries.get(name) is None else parse(entry(entries[name]))
            except (ValueError, TypeError, KeyError):
                raise UserError(f'{where}: "{name}" must be {ENTRY_FORMS[name]}', option='dataset') from None
            try:
                read[name] = own if given is None else parse(given)
            except ValueError as error:
                raise UserError(str(error), option=name) from None
        return cls(**read)

    def record(self) -> dict[str, str]:
        """Return what outputs and model files record: the parts of the rule that there are."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def flags(self) -> list[str]:
        """Return the flags that mean the rule. A LOW below 0 needs the equals sign."""
        return [f'--{name}={value}' for name, value in self.record().items()]

    def difference(self, record: Mapping[str, object]) -> str:
        """Return in words how images were read by a record, and how they are now; '' if these are the same."""
        before = Reading().completed(record)
        shown = (' '.join(rule.flags()) or 'neither --window nor --plane' for rule in (before, self))
        return '' if before == self else 'images were read with {}, now with {}'.format(*shown)

    def completed(self, record: Mapping[str, str]) -> 'Reading':
        """Return the rule with what it lacks from a record."""
        return Reading(self.window or record.get('window'), self.plane or record.get('plane'))

    def planes(self, path: Path, image: Image.Image) -> Sequence[int]:
        """Return the numbers of the frames of an opened file to read, from 0. Raises UserError naming the file."""
        frames = find_planes(path, image)
        if len(frames) == 1:
            return frames
        if self.plane is None:
            pick = f'pass --plane N (1 to {len(frames)}) or --plane {MAXIMUM}, or give the data set the entry "plane"'
            more = ' (and a --window, because they have more than 8 bits)' if is_wide(image) and not self.window else ''
            raise UserError(f'{path}: has {len(frames)} planes: {pick}{more}')
        if self.plane == MAXIMUM:
            return frames
        if int(self.plane) > len(frames):
            raise UserError(f'{path}: has {len(frames)} planes, no plane {self.plane} (--plane, or the entry "plane")')
        return [frames[int(self.plane) - 1]]

    def seek(self, path: Path, image: Image.Image) -> Iterator[int]:
        """Go to each frame of an opened file to read, and yield its number. Raises UserError naming the file."""
        for frame in self.planes(path, image):
            if frame != image.tell():
                image.seek(frame)
                check_memory(path, image)  # pages may be larger than the first
            yield frame

    def size(self, path: Path, image: Image.Image) -> tuple[int, int]:
        """Return (h, w) of the upright image. Raises UserError naming the file."""
        next(self.seek(path, image))
        if image.format == 'TIFF':
            image.load()  # Pillow itself turns these upright
        size = image.height, image.width
        return size[::-1] if orientation(image) >= 5 else size

    def is_mapped(self, path: Path, image: Image.Image) -> bool:
        """Return whether the window is for an opened file. Raises UserError naming the file."""
        next(self.seek(path, image))
        return is_wide(image)

    def read(self, path: Path, image: Image.Image) -> Image.Image:
        """Return the upright RGB image of an opened file. Raises UserError naming the file."""
        values = None
        for frame in self.seek(path, image):
            wide = is_wide(image)
            if not wide and self.plane != MAXIMUM:
                return _to_rgb(upright(image))
            new = _values(path, image, frame) if wide else np.array(_to_rgb(upright(image)))
            if values is not None and (values.shape, values.dtype) != (new.shape, new.dtype):
                raise UserError(f'{path}: its planes differ in size or kind: pass --plane N instead of {MAXIMUM}')
            values = new if values is None else np.fmax(values, new)  # NaN only if all are
        if not wide:
            return Image.fromarray(values)
        # OpenCV has turned a TIFF file upright, but not a PNG file, and Pillow has turned what is grey.
        turn = TURNS.get(orientation(image)) if image.format == 'PNG' and values.ndim == 3 else None
        picture = Image.fromarray(self.to_8_bits(path, values))
        return _to_rgb(picture if turn is None else picture.transpose(turn))

    def to_8_bits(self, path: Path, values: np.ndarray) -> np.ndarray:
        """Return values (h, w), (h, w, 3) or (h, w, 4) as uint8: LOW and NaN become 0, HIGH 255; alpha is scaled.

        Raises UserError with the range of the values if the rule has no window.
        """
        colours = values[..., :3] if values.ndim == 3 else values
        known = colours[np.isfinite(colours)] if colours.dtype.kind == 'f' else colours
        if self.window is None:
            low, high = (f'{limit:.6g}' for limit in ((known.min(), known.max()) if known.size else (0, 0)))
            fault = f'has more than 8 bits per channel, with values from {low} to {high}'
            fixed = f'--window={low},{high}' if low != high else '--window=0,65535'
            remedy = f'pass {fixed}, or percentiles such as --window=0.5%,99.5%'
            raise UserError(f'{path}: {fault}: {remedy}, or give the data set the entry "window"')
        low, high, are_percentiles = _limits(self.window)
        if are_percentiles:
            low, high = map(float, np.percentile(known, (low, high)) if known.size else (0, 0))
        mapped = np.empty(colours.shape, np.uint8)
        for top in range(0, len(values), ROWS):
            part = colours[top : top + ROWS].astype(np.float64)
            part = (part - low) * (255 / (high - low if high > low else 1))
            mapped[top : top + ROWS] = np.rint(np.clip(np.nan_to_num(part, posinf=255, neginf=0), 0, 255))
        if values.shape[2:] == (4,):
            mapped = np.dstack([mapped, np.rint(values[..., 3] / 257).astype(np.uint8)])
        return mapped


def _window_entry(value: object) -> str:
    """Return the entry "window" of a data set as text. Raises TypeError or KeyError."""
    sign = ''
    if isinstance(value, dict):
        value, sign = value['percentiles'], '%'
    if not isinstance(value, list) or any(type(limit) not in (int, float) for limit in value):
        raise TypeError
    return ','.join(f'{limit}{sign}' for limit in value)


def _plane_entry(value: object) -> str:
    """Return the entry "plane" of a data set as text. Raises TypeError."""
    if type(value) not in (int, str):
        raise TypeError
    return str(value)


# Files --------------------------------------------------------------------------------------------------------------


def check_memory(path: Path, image: Image.Image) -> None:
    """Raise UserError if decoding an image would take more memory than the system has left."""
    pixels = image.width * image.height
    if pixels < MANY_PIXELS:
        return
    available = available_memory()
    if pixels * PIXEL_BYTES > available:
        need, left = (f'{count / 1e9:.1f} GB' for count in (pixels * PIXEL_BYTES, available))
        raise UserError(
            f'{path}: has {image.width}x{image.height} pixels: decoding takes {need} of memory, {left} are available'
        )


def find_planes(path: Path, image: Image.Image) -> Sequence[int]:
    """Return the numbers of the frames of an opened file that are planes of a stack or pictures of an animation.

    Previews in a photograph (MPO), and smaller copies and masks in a TIFF file, do not count. Raises UserError naming
    the file if it has planes that cannot be read.
    """
    if image.format == 'TIFF':
        _check_pages(path, image)
    if image.format == 'MPO' or not getattr(image, 'is_animated', False):
        return [0]
    frames = range(image.n_frames)  # a number of the header, which may be wrong
    if image.format != 'TIFF':
        return frames
    found = [0]
    for frame in frames[1:]:
        image.seek(frame)
        if not image.tag_v2.get(SUBFILE, 0) & SMALLER_OR_MASK:
            found.append(frame)
    image.seek(0)
    return found


def _check_pages(path: Path, image: Image.Image) -> None:
    """Raise UserError if a TIFF file says that it has planes which are not pages."""
    text = str(image.tag_v2.get(DESCRIPTION, ''))
    found = HYPERSTACK.match(text) or SHAPED.match(text)
    if found and int(found[1]) > image.n_frames:
        raise UserError(
            f'{path}: has {found[1]} planes by its description, of which {image.n_frames} can be read: '
            'save each plane as a file (in ImageJ: Save As, Image Sequence)'
        )


def is_wide(image: Image.Image) -> bool:
    """Return whether an opened file has other values than 0 to 255."""
    if image.mode.startswith(('I', 'F')):
        return True
    if image.format == 'TIFF':
        return max(image.tag_v2.get(BITS, (1,))) > 8
    return image.format == 'PNG' and bool(image.tile) and ';16' in str(image.tile[0][3])  # Pillow's name of the layout


def _values(path: Path, image: Image.Image, frame: int) -> np.ndarray:
    """Return the values of the current frame, (h, w), (h, w, 3) or, with alpha, (h, w, 4)."""
    if image.mode.startswith(('I', 'F')):
        tags = image.tag_v2 if image.format == 'TIFF' else {}
        is_unsigned = tags.get(BITS) == (32,) and tags.get(SAMPLES, (1,)) == (1,)  # which Pillow reads as signed
        values = np.array(upright(image))
        return values.view(np.uint32) if is_unsigned else values
    # Pillow reduces colours to 8 bits by itself, and OpenCV mixes up colours that are stored one after the other.
    known = image.mode in ('RGB', 'RGBA') if image.format == 'TIFF' else image.mode in ('RGB', 'RGBA', 'LA')
    if not known or (image.format == 'TIFF' and image.tag_v2.get(PLANAR, 1) != 1):
        fault = 'has more than 8 bits per channel, in a layout that cannot be read'
        raise UserError(f'{path}: {fault}: save it as 16-bit RGB with interleaved channels')
    content = np.frombuffer(read_bytes(path), np.uint8)
    _, found = cv2.imdecodemulti(content, cv2.IMREAD_UNCHANGED, range=(frame, frame + 1))
    if not found:
        raise UserError(f'{path}: not a readable image (its colours cannot be decoded)')
    return found[0][..., (2, 1, 0, 3) if image.mode.endswith('A') else (2, 1, 0)]


def upright(image: Image.Image) -> Image.Image:
    """Decode an image and turn it by its EXIF orientation."""
    image.load()
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image in RGB. Transparent pixels become white, because their colours are arbitrary."""
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image if image.mode == 'RGB' else image.convert('RGB')


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none or it cannot be read. Other metadata does not count."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # damaged metadata can raise anything
        return 1
    return value if value in TURNS else 1
