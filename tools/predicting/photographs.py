"""The photographs of tools.predict: finding them, the ids that name their masks, and a data set made of them. No torch.

An id is the path below the folder that all IMAGE arguments have in common (core.data.images.make_image_id).
"""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

import numpy as np

from core import UserError
from core.data import images
from core.data.dataset import Dataset
from core.data.images import ENDINGS, UNREADABLE
from core.data.pixels import Reading
from tools.predicting.folder import read_photographs
from util.store.formats import PREDICTED

DOMAIN = 'photographs'  # the only list of a data set of photographs

HIDDEN = 'hidden'  # such as the files that macOS adds to archives
OUTPUTS = 'in the folder of --out'
EARLIER = 'outputs of an earlier command'
HEIC = 'HEIC, which cannot be read (convert them to JPEG)'
OTHERS = 'not named as photographs'
SPECIAL = 'not files, but pipes or devices'
BROKEN = 'links to nothing'
CLOSED = 'folders that may not be read'
LeftOut = dict[str, list[Path]]  # files and folders by the reason why they are left out


@dataclass(frozen=True)
class Photographs:
    """The source (core.data.dataset.Source) of a data set of photographs, which have neither tags nor masks."""

    paths: Mapping[str, Path]
    domains: tuple[str, ...] = (DOMAIN,)

    def ids(self, domain: str) -> list[str]:
        return list(self.paths)

    def list_path(self, domain: str) -> Path:
        return Path(DOMAIN)

    def image_path(self, image_id: str) -> Path:
        return self.paths[image_id]

    def mask_path(self, image_id: str) -> None:
        return None

    def has_mask(self, image_id: str) -> bool:
        return False

    def labels_path(self, image_id: str) -> Path:
        return self.paths[image_id]

    def read_tags(self, image_id: str) -> list[str]:
        raise UserError(f'{self.paths[image_id]}: has no tags')


def make_dataset(
    paths: Mapping[str, Path],
    class_names: Sequence[str],
    palette: np.ndarray,
    has_background: bool,
    reading: Reading,
) -> Dataset:
    """Return the data set of photographs by id, with the classes and colours (256, 3) of the model."""
    about = DOMAIN, tuple(class_names), palette, None, Path(), Photographs(paths)
    return Dataset(*about, has_background, reading)


def expand(argument: str, out: Path) -> tuple[Path, list[Path], LeftOut]:
    """Return the folder that an IMAGE argument names, its images, and what was left out."""
    path, left_out = Path(argument), defaultdict(list)
    if path.is_file():
        if path.suffix.lower() in UNREADABLE:
            raise UserError(f'{path}: HEIC cannot be read: convert it to JPEG')
        return path.parent, [path], left_out
    if path.is_dir():
        folder, found = path, list(walk(path, left_out))
    else:
        folder = Path(*takewhile(lambda part: not set(part) & set('*?['), path.parent.parts))
        found = list(match(folder, path.parts[len(folder.parts) :], left_out))
    below, outputs = Path(os.path.abspath(folder)), Path(os.path.abspath(out))
    photographs, earlier = [], {parent: names_of_outputs(parent) for parent in {path.parent for path in found}}
    for path in found:
        if outputs != below and outputs in Path(os.path.abspath(path)).parents:
            left_out[OUTPUTS].append(path)
        elif path.name in earlier[path.parent]:
            left_out[EARLIER].append(path)
        elif any(part.startswith('.') for part in path.relative_to(folder).parts):
            left_out[HIDDEN].append(path)
        elif not path.exists():
            left_out[BROKEN].append(path)
        elif path.suffix.lower() in UNREADABLE:
            left_out[HEIC].append(path)
        elif path.suffix.lower() not in ENDINGS:
            left_out[OTHERS].append(path)
        elif not path.is_file():
            left_out[SPECIAL].append(path)
        else:
            photographs.append(path)
    if not photographs:
        reasons = f'; {count_left_out(left_out)}' if left_out else ''
        raise UserError(f'{argument}: no image found ({", ".join(ENDINGS)}){reasons}')
    return folder, sorted(photographs), left_out


def names_of_outputs(folder: Path) -> set[str]:
    """Return the names of the files that this tool has written into a folder, beside photographs or not."""
    ids = read_photographs(folder).get('images', {})
    return {f'{image_id}{ending}' for image_id in ids for ending in PREDICTED.endings}


def walk(folder: Path, left_out: LeftOut, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder. Links are followed, unless they lead back to a folder `above`."""
    above = above | {os.path.realpath(folder)}
    for path in list_folder(folder, left_out):
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield from walk(path, left_out, above)


def match(folder: Path, parts: Sequence[str], left_out: LeftOut, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder that match the parts of a pattern; links as in `walk`.

    Python's glob follows links in circles, and needs for ever if a folder has two.
    """
    above, (first, *rest) = above | {os.path.realpath(folder)}, parts
    if first == '**' and rest:
        yield from match(folder, rest, left_out, above)
    for path in list_folder(folder, left_out):
        is_hidden = path.name.startswith('.') and not first.startswith('.')
        if is_hidden or not (first == '**' or fnmatchcase(path.name, first)):
            continue
        onward = parts if first == '**' else rest
        if not path.is_dir():
            if not rest:
                yield path
        elif onward and os.path.realpath(path) not in above:
            yield from match(path, onward, left_out, above)


def list_folder(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return the content of a folder, [] if there is none or it may not be read."""
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        left_out[CLOSED].append(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return []


def count_left_out(left_out: LeftOut) -> str:
    """Return a line with the number of files by reason, and the first one of each."""
    parts = (f'{len(paths)} {why} ({paths[0]}{", ..." * (len(paths) > 1)})' for why, paths in left_out.items())
    return f'left out: {"; ".join(parts)}'


def find_images(arguments: Sequence[str], out: Path) -> dict[str, Path]:
    """Return the path of each image by its id, and print what was left out.

    Raises UserError if an argument names none, or two have the same id.
    """
    expanded = [expand(argument, out) for argument in arguments]
    common = os.path.commonpath([os.path.abspath(folder) for folder, *_ in expanded])
    paths = {os.path.abspath(path): path for _, found, _ in expanded for path in found}  # each file once
    left_out = defaultdict(list)
    for *_, reasons in expanded:
        for why, others in reasons.items():
            left_out[why] += [path for path in others if path not in left_out[why]]
    if left_out:
        print(count_left_out(left_out), file=sys.stderr)
    found = {}
    for absolute, path in paths.items():
        image_id = images.make_image_id(os.path.relpath(absolute, common))
        if image_id in found:
            raise UserError(
                f'{found[image_id]} and {path}: both would be written as {image_id}.png: rename one of them'
            )
        found[image_id] = path
    return found
