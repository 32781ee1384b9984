"""The folder kind of data set, and files of labelling tools, in the layout that the tool writes.

A folder is read by the first of LAYOUTS that fits:

    JPEGImages/, ImageSets/, labelmap.txt       VOC's layout, as CVAT exports it, with masks or annotations
    train/_classes.csv, valid/_classes.csv      one file for the images beside it (TABLES), as Roboflow writes it
    rex.jpg, rex.xml (VOC) or .json (labelme)   a file beside each image; images without one are left out
    dog/rex.jpg, good/empty.jpg                 a folder per class (ImageFolder, MVTec); those in NOTHING are negatives

In the last three, train/, val/ and test/ may be splits. Entries (core/data/dataset.py) are in a JSON file of the same
name beside the folder. No torch here: stages 3, 6 and 9 import this module and fork.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from core import DataWarning, UserError
from core.data import exports, voc
from core.data.entries import read_sidecar
from core.data.files import read_text, walk
from core.data.images import ENDINGS, UNREADABLE, find_named
from core.data.source import SPLITS, Row, Rows
from core.data.table import read_table

SPLIT_NAMES = {'train': 'train', 'training': 'train', 'default': 'train', 'val': 'val', 'valid': 'val'}
SPLIT_NAMES |= {'validation': 'val', 'test': 'test', 'testing': 'test'}
NOTHING = ('good', 'normal', 'ok', 'background', 'negative', 'negatives', 'none', 'nothing')
TRUTH = 'ground_truth'  # folder of masks
PREPARED = 'masks'  # what tools.prepare_coco writes beside splits
VOID = '#e0e0c0'  # colour of ignored pixels in VOC's masks


class Tree(NamedTuple):
    """A folder: its files, relative and without hidden ones, its splits with their folders, and its entries."""

    path: Path
    files: list[PurePosixPath]
    splits: dict[str, PurePosixPath]
    entries: dict

    def images(self, below: PurePosixPath) -> Iterator[PurePosixPath]:
        """Yield the images at any depth below one of its folders."""
        above = below.parts
        for file in self.files:
            if file.parts[: len(above)] == above and file.suffix.lower() in ENDINGS:
                yield file


class Found(NamedTuple):
    """What a layout contains: its images, its classes in order, and what the values of its masks mean, if it says."""

    rows: list[Row]
    classes: list[str]
    mask_values: dict[str, str] | None = None


def open_tree(path: Path, root: Path) -> tuple[Path, dict, Rows]:
    """Return the folder, its entries and its rows. It is its own root. Raises UserError naming the folder or file."""

    def inside(found: list[Path]) -> list[PurePosixPath]:
        files = [PurePosixPath(file.relative_to(path).as_posix()) for file in found]
        return [file for file in files if not any(part.startswith(('.', '__MACOSX')) for part in file.parts)]

    files, others = map(inside, walk(path))
    if others:
        _warn(f'{path}: neither files nor folders that can be read, left out: {len(others)} ({others[0]}, ...)')
    unreadable = [file for file in files if file.suffix.lower() in UNREADABLE]
    if unreadable:
        _warn(f'{path}: HEIC cannot be read, convert it to JPEG: left out {len(unreadable)} ({unreadable[0]}, ...)')
    entries = read_sidecar(path)
    tree = Tree(path, files, _find_splits(path, files), entries)
    layout = next(found for read in LAYOUTS if (found := read(tree)) is not None)
    if not layout.rows:
        raise UserError(f'{path}: contains no images', option='dataset')
    if not layout.classes:
        raise UserError(f'{path}: no image has a class', option='dataset')
    values = {} if layout.mask_values is None else {'mask_values': layout.mask_values}
    source = Rows.of(path, path, layout.rows, _find_places(tree, layout.rows))
    return path, {'name': path.resolve().name, 'classes': layout.classes, **values, **entries}, source


def _find_places(tree: Tree, rows: list[Row]) -> dict[str, Path]:
    """Return the folder of each list whose images are all in the folder of one split."""
    tops: dict[str, set[PurePosixPath]] = {}
    for row in rows:
        for domain in SPLITS[row.split]:
            tops.setdefault(domain, set()).add(PurePosixPath(row.image.split('/')[0]))
    splits = {*tree.splits.values()}
    return {domain: tree.path / min(found) for domain, found in tops.items() if len(found) == 1 and found <= splits}


def open_export(path: Path, root: Path, content: dict | None = None) -> tuple[Path, dict, Rows]:
    """Return a file of a labelling tool for many images, its entries and its rows. Raises UserError naming the file.

    `content`: a JSON file, already parsed.
    """
    export = exports.read_many(path) if content is None else exports.read_coco(path, content)
    rows = list(_rows_of(path, root, export))
    if not rows:
        raise UserError(f'{path}: contains no images', option='dataset')
    return path, {'classes': exports.classes_of([export])}, Rows.of(path, root, rows)


def _rows_of(path: Path, folder: Path, export: exports.Export) -> Iterator[Row]:
    """Yield a row for each image in a file of a labelling tool; `folder` has the images."""
    for picture in export.pictures:
        split = SPLIT_NAMES.get(picture.subset.lower(), 'train')
        tags, boxes = tuple(exports.tags_of(picture.things)), exports.boxes_of(picture.things)
        yield Row(find_named(folder, picture.name), tags, split=split, where=path, boxes=boxes)


def _find_splits(path: Path, files: Iterable[PurePosixPath]) -> dict[str, PurePosixPath]:
    """Return the folder of each split; the whole folder is `train` if it has none. `test` alone serves as `val`."""
    tops = {file.parts[0] for file in files if len(file.parts) > 1} - {TRUTH}
    named: dict[str, PurePosixPath] = {}
    for top in sorted(tops):
        split = SPLIT_NAMES.get(top.lower())
        if split in named:
            raise UserError(f'{path}: {named[split]} and {top} are the same split: join them', option='dataset')
        if split:
            named[split] = PurePosixPath(top)
    splits = {split: named[split] for split in SPLITS if split in named}
    tops -= {PREPARED} if 'train' in splits else set()
    others = sorted(top for top in tops if top.lower() not in SPLIT_NAMES)
    if others and len(splits) > 1:
        names = ', '.join(map(str, splits.values()))
        remedy = 'move it out of the folder'
        raise UserError(f'{path}: {names} are splits, but {others[0]} is not: {remedy}', option='dataset')
    if others or 'train' not in splits:  # a class may be called train
        return {'train': PurePosixPath()}
    if 'val' not in splits and 'test' in splits:
        splits['val'] = splits.pop('test')
    return splits


def _warn(text: str) -> None:
    warnings.warn(text, DataWarning, stacklevel=3)


# VOC's layout -------------------------------------------------------------------------------------------------------


def read_voc_layout(tree: Tree) -> Found | None:
    """Read JPEGImages/ with ImageSets/, and Annotations/ or SegmentationClass/, the masks."""
    tops = {file.parts[0] for file in tree.files}
    if not tops & {'JPEGImages', 'ImageSets'}:
        return None
    by_stem = {str(file.with_suffix('')): str(file) for file in tree.files}
    images = {str(file.with_suffix('')): str(file) for file in tree.images(PurePosixPath('JPEGImages'))}
    if not images:
        raise UserError(f'{tree.path}: JPEGImages has no images: export them too ("Save images")', option='dataset')
    values = _read_labelmap(tree.path / 'labelmap.txt') if 'labelmap.txt' in tops else None
    knows_masks = values is not None or 'classes' in tree.entries
    if not knows_masks and 'SegmentationClass' in tops:
        _warn(f'{tree.path}: SegmentationClass is not used: without labelmap.txt its classes are unknown')
    rows, without = [], []
    for image_id, split in _read_image_sets(tree, images).items():
        image = images.get(f'JPEGImages/{image_id}', f'JPEGImages/{image_id}.jpg')
        mask = by_stem.get(f'SegmentationClass/{image_id}', '') if knows_masks else ''
        note = by_stem.get(f'Annotations/{image_id}', '')
        tags = None if mask or note else ()
        without += [image] if tags == () else []
        rows.append(Row(image, tags, mask, split, tree.path / (note or mask or image), annotation=note))
    if without:
        count = f'{len(without)} of {len(rows)} ({without[0]}, ...)'
        _warn(f'{tree.path}: images with neither an annotation nor a mask are negatives: {count}')
    names = None if values is None else [name for name in values.values() if name not in ('background', 'ignore')]
    classes = list(dict.fromkeys(names or _names_of(tree.path, rows)))
    return Found(rows, classes, values)


def _read_image_sets(tree: Tree, images: dict[str, str]) -> dict[str, str]:
    """Return the split of each id that the files in ImageSets list; without such files all images are `train`."""
    found: dict[str, str] = {}
    lists = [file for file in tree.files if file.parts[0] == 'ImageSets' and file.stem.lower() in SPLIT_NAMES]
    for file in sorted(lists, key=lambda file: file.parts[1] != 'Main'):  # it lists all images
        for line in _read_lines(tree.path / file):
            split = SPLIT_NAMES[file.stem.lower()]
            if found.setdefault(line.strip('"'), split) != split:
                raise UserError(f'{tree.path / file}: {line!r} is in another list too', option='dataset')
    return found or {image_id.removeprefix('JPEGImages/'): 'train' for image_id in images}


def _read_labelmap(path: Path) -> dict[str, str]:
    """Return the class by colour of CVAT's labelmap.txt, whose lines are name:red,green,blue:parts:actions.

    A class without a colour has the colour of VOC's palette.
    """
    values = {'#000000': 'background', VOID: 'ignore'}
    matches = [re.fullmatch(r'([^#].*?):(?:(\d{1,3}),(\d{1,3}),(\d{1,3}))?:.*', line) for line in _read_lines(path)]
    for match, colour in zip(filter(None, matches), voc.palette().tolist(), strict=False):
        found = colour if match[2] is None else [int(part) for part in match.groups()[1:]]
        values['#{:02x}{:02x}{:02x}'.format(*found)] = match[1].strip()
    return values


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty. Raises UserError naming it."""
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({type(error).__name__})', option='dataset') from None


# Files beside the images --------------------------------------------------------------------------------------------


def read_files_of_splits(tree: Tree) -> Found | None:
    """Read one file of TABLES in the folder of each split, for the images beside it."""
    name = next((name for name in TABLES if tree.splits['train'] / name in tree.files), None)
    if name is None:
        return None
    rows, classes = TABLES[name](tree, name)
    placed = []
    for split, of_split in rows.items():
        folder = tree.splits[split]
        placed += [replace(row, image=str(folder / row.image), split=split) for row in of_split]
    return Found(placed, classes)


def _read_tables(tree: Tree, name: str) -> tuple[dict[str, list[Row]], list[str]]:
    found = {split: read_table(tree.path / folder / name, tree.path / folder) for split, folder in tree.splits.items()}
    fixed = {name: None for _, names in found.values() for name in names or ()}
    named = sorted({name for rows, _ in found.values() for row in rows for name in row.classes or ()})
    return {split: rows for split, (rows, _) in found.items()}, [*fixed] or named


def _read_coco(tree: Tree, name: str) -> tuple[dict[str, list[Row]], list[str]]:
    places = {split: tree.path / folder for split, folder in tree.splits.items()}
    found = {split: exports.read_coco(place / name) for split, place in places.items()}
    rows = {split: list(_rows_of(places[split] / name, places[split], export)) for split, export in found.items()}
    return rows, exports.classes_of(found.values())


TABLES = {'_classes.csv': _read_tables, '_annotations.csv': _read_tables, '_annotations.coco.json': _read_coco}


def read_files_beside(tree: Tree) -> Found | None:
    """Read a file beside each image, in the format of VOC or labelme."""
    notes: dict[str, str] = {}
    for file in sorted(tree.files, key=lambda file: file.suffix):  # .xml counts rather than .json
        if file.suffix.lower() in exports.BESIDE:
            notes[str(file.with_suffix(''))] = str(file)
    rows, without = [], []
    for split, folder in tree.splits.items():
        for image in tree.images(folder):
            note = notes.get(str(image.with_suffix('')))
            if note is None:
                without.append(image)
            else:
                rows.append(Row(str(image), None, split=split, where=tree.path / note, annotation=note))
    classes = _names_of(tree.path, rows)
    if not classes:
        return None
    if without:
        ending, count = Path(rows[0].annotation).suffix, f'{len(without)} of {len(without) + len(rows)}'
        _warn(f'{tree.path}: images without a {ending} file beside them are left out: {count} ({without[0]}, ...)')
    return Found(rows, classes)


def _names_of(path: Path, rows: list[Row]) -> list[str]:
    """Return the classes in the annotations of some rows, sorted. Reading the tags reports the damaged ones."""
    names: set[str] = set()
    for row in rows:
        if row.annotation:
            with suppress(UserError):
                names |= {*exports.names_beside(path / row.annotation)}
    return sorted(names - {''})


# A folder per class -------------------------------------------------------------------------------------------------


def read_class_folders(tree: Tree) -> Found:
    """Read a folder per class, and masks of 0 and 255 in ground_truth/, named as the image or with _mask behind it."""
    nothing = tree.entries.get('negatives', list(NOTHING))
    if not isinstance(nothing, list) or not all(isinstance(name, str) for name in nothing):
        raise UserError(f'{tree.path}: "negatives" must be a list of names of folders', option='dataset')
    nothing, rows, loose, met = {name.casefold() for name in nothing}, [], [], set()
    masks = _masks_of_classes(tree)
    for split, folder in tree.splits.items():
        for image in tree.images(folder):
            inner = image.parts[len(folder.parts) :]
            if inner[0] == TRUTH:
                continue
            if len(inner) == 1:
                loose.append(image)
                continue
            where, name = tree.path / folder / inner[0], inner[0]
            met.add(name.casefold())
            if name.casefold() in nothing:
                rows.append(Row(str(image), (), split=split, where=where))
            else:
                mask = masks.get(str(PurePosixPath(TRUTH, *inner).with_suffix('')), '')
                rows.append(Row(str(image), (name,), mask, split, where, masked_class=name))
    if not rows:
        need = 'a folder per class, or files of a labelling tool'
        raise UserError(f'{tree.path}: needs {need} (docs/datasets.md, "Folders")', option='dataset')
    missing = [name for name in tree.entries.get('negatives', ()) if name.casefold() not in met]
    if missing:
        raise UserError(f'{tree.path}: "negatives" names {missing[0]!r}, but no folder is called so', option='dataset')
    if loose:
        _warn(f'{tree.path}: images in no folder of a class are left out: {len(loose)} ({loose[0]}, ...)')
    owners: dict[str, str] = {}
    for row in rows:
        if row.mask and row.mask in owners:
            both = f'{owners[row.mask]} and {row.image}'
            raise UserError(f'{tree.path}: {row.mask} may be the mask of {both}: rename one', option='dataset')
        owners[row.mask] = row.image
    unused = sorted({*masks.values()} - owners.keys())
    if unused:
        _warn(f'{tree.path}: masks of no image are left out: {len(unused)} ({unused[0]}, ...)')
    rows = _learn_from_test(tree, rows)
    return Found(rows, sorted({name for row in rows for name in row.classes or ()}))


def _masks_of_classes(tree: Tree) -> dict[str, str]:
    """Return the masks in ground_truth/ by name, without ending and _mask. Raises UserError if two have one name."""
    masks: dict[str, str] = {}
    for file in tree.images(PurePosixPath(TRUTH)):
        name = re.sub('_mask$', '', str(file.with_suffix('')))
        if name in masks:
            both = f'{masks[name]} and {file}'
            raise UserError(f'{tree.path}: {both} are masks of the same image: keep one', option='dataset')
        masks[name] = str(file)
    return masks


def _learn_from_test(tree: Tree, rows: list[Row]) -> list[Row]:
    """Return the rows, with the test images as `train` if train/ has only negatives, as in MVTec."""
    if any(row.classes for row in rows if row.split == 'train') or not any(row.classes for row in rows):
        return rows
    test = 'test' if 'test' in tree.splits else 'val'
    train = tree.splits['train']
    _warn(f'{tree.path}: no image of {train} shows a class: the images of {tree.splits[test]} are trained on too')
    splits = {'train': 'train_aug', test: 'train'}
    return [replace(row, split=splits.get(row.split, row.split)) for row in rows]


LAYOUTS = (read_voc_layout, read_files_of_splits, read_files_beside, read_class_folders)
