"""Turn annotations in COCO's format into a CSV data set with masks: MS COCO itself, or the file of a labelling tool.

Reads   {data_dir}/annotations/instances_{train,val}{year}.json, and the names of the images in {data_dir}/train{year}
        and {data_dir}/val{year}; or the file --annotations, and the names of the images in --images
Writes  {data_dir}/masks{year}/{train,val}/{image id}.png (palette; crowds are 255), next to them source.json, which
        identifies the annotation file, and last {data_dir}/coco{year}.json (class names) and {data_dir}/coco{year}.csv.
        With --annotations the names have no year, and coco.csv keeps its rows of other splits

    python3 -m tools.prepare_coco --data_dir ../COCO --year 2017
    python3 -m tools.prepare_coco --annotations export/train/_annotations.coco.json --images export/train
    python3 -m tools.prepare_coco --annotations export/valid/_annotations.coco.json --images export/valid

Classes are the categories in order of their ids. Objects are drawn in order of their area, smaller ones on top;
annotations that cover no pixel are skipped. An object without an outline keeps its tag, and its box is set to 255;
without a box, the whole image is. A killed run resumes: masks of the same annotation file are kept.

118,000 images with 860,000 annotations (random shapes, 510 MB of JSON) take 1.4 GB in all with 2 or 4 workers, and 16
minutes on 2 cores shared with other work. The masks take 0.7 GB on disk. A run that finds all masks takes 80 seconds.
"""

import csv
import io
import json
import math
import os
import re
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from core import IGNORE, UserError
from core.data import exports, voc
from core.data.files import check_readable
from core.data.images import FIRST, encode_label_map, find_file, find_named, image_size, make_image_id
from core.data.source import SPLITS
from core.data.tree import SPLIT_NAMES
from tools.exchange.shapes import SIDE_LIMIT, encode_shape, is_side, read_box, read_polygons, read_rle
from util import flags, script
from util.parallel.workers import parallel_map
from util.store.files import remove_all_leftovers, write_bytes, write_json
from util.store.fingerprints import read_json
from util.store.hashes import file_hash
from util.store.locks import lock_path, locked

COLUMNS = ('image', 'classes', 'mask', 'split')
PALETTE = voc.palette()


class Instance(NamedTuple):
    """An annotation. The shape is compressed RLE, or the coordinates of each polygon: bytes of float64 save memory.

    An area of 0 is unknown. Without an outline the shape is the box.
    """

    category: int
    area: float
    is_crowd: bool
    has_outline: bool
    shape: dict | tuple[bytes, ...]


class Part(NamedTuple):
    """The images of a split: their annotations, the folder that they are in, and the folder of their masks."""

    split: str
    annotations: Path
    images: Path
    masks: Path


class Picture(NamedTuple):
    """An image, its size (h, w) and its annotations."""

    file_name: str
    size: tuple[int, int]
    instances: list[Instance]


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    data = parser.groups['data']
    layout = 'folder of annotations and of the images of train and val (default: ../COCO)'
    root = 'with --annotations: folder to write to, which contains --images (default: the one that contains both)'
    data.add_argument('--data_dir', type=Path, help=f'{layout}; {root}')
    data.add_argument('--year', type=int, default=2017, choices=(2014, 2017), help='release of COCO')
    data.add_argument('--annotations', type=Path, help="a file in COCO's format instead of a release of COCO")
    data.add_argument('--images', type=Path, help='folder of the images of --annotations')
    split = 'split of --annotations (default: the name of the folder --images, if it is one, or else train)'
    data.add_argument('--split', choices=tuple(SPLITS), help=split)
    negatives = 'images without objects: keep them as negatives, or skip them'
    data.add_argument('--negatives', default='keep', choices=('keep', 'skip'), help=negatives)
    parser.add_table(flags.WORKERS)
    args = parser.parse_args(argv)
    if bool(args.annotations) != bool(args.images) or (args.split and not args.annotations):
        parser.error('--annotations, --images and --split go together: pass the first two')
    return args


def list_parts(args):
    """Return the folder to write to, the name of the data set, and what to read."""
    if not args.annotations:
        root, year = args.data_dir or Path('../COCO'), args.year
        places = [(split, root / 'annotations' / f'instances_{split}{year}.json') for split in ('train', 'val')]
        parts = [Part(split, path, root / f'{split}{year}', root / f'masks{year}' / split) for split, path in places]
        return root, f'COCO {year}', parts
    folder, named = args.images, SPLIT_NAMES.get(args.images.resolve().name.lower())
    beside = folder.resolve() == args.annotations.resolve().parent
    common = Path(os.path.relpath(os.path.commonpath([folder.resolve(), args.annotations.resolve().parent])))
    root = args.data_dir or (folder.parent if beside and named and folder.name else folder if beside else common)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise UserError(f'{folder}: must be inside of {root} (--data_dir)', option='images')
    split = args.split or named or 'train'
    return root, root.resolve().name, [Part(split, args.annotations, folder, root / 'masks' / split)]


# Reading ------------------------------------------------------------------------------------------------------------


def read_annotations(path, image_folder):
    """Return the names of the categories by id, in order, and the pictures in order of file name.

    The decoder passes on each object as soon as it is parsed, and only the needed entries are kept: a third of the
    memory of pycocotools' COCO class.
    """
    instances = defaultdict(list)

    def compact(entry):
        if 'image_id' in entry:
            try:
                instance = read_instance(entry)
                instances[entry['image_id']].append(instance)
            except (TypeError, ValueError, OverflowError) as error:
                raise UserError(f'{path}: annotation {str(entry.get("id"))[:40]}: {first_line(error)}') from None
            return None
        if 'file_name' in entry:
            return {name: entry.get(name) for name in ('id', 'file_name', 'height', 'width')}
        return entry

    try:
        check_readable(path)
        with path.open(encoding='utf-8') as file:
            content = json.load(file, object_hook=compact)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: not valid JSON ({first_line(error)})') from None

    lists = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise UserError(f'{path}: not COCO instance annotations: needs the lists {", ".join(lists)}')
    if any(entry is not None for entry in content['annotations']):
        raise UserError(f'{path}: not COCO instance annotations: an annotation lacks "image_id"')
    names = read_categories(path, content['categories'])
    used = {instance.category for group in instances.values() for instance in group}
    if used - names.keys():
        raise UserError(f'{path}: category_id {min(used - names.keys(), key=str)} is not in "categories"')
    names = check_names(path, names, used, exports.optional_names(content['categories']))
    return names, read_pictures(path, content['images'], instances, image_folder)


def read_instance(entry):
    """Return an annotation in compact form. Raises ValueError, TypeError or OverflowError."""
    if 'category_id' not in entry:
        raise ValueError('lacks "category_id"; COCO instance annotations are needed')
    if not is_id(entry['image_id']) or not is_id(entry['category_id']):
        raise ValueError('"image_id" and "category_id" must be integers or texts')
    area, is_crowd, shape = entry.get('area') or 0, entry.get('iscrowd') or 0, entry.get('segmentation')
    if is_crowd not in (0, 1) or not isinstance(area, int | float) or not abs(area) < math.inf:
        raise ValueError('"iscrowd" must be 0 or 1 and "area" a number')
    shape = read_polygons(shape or []) if isinstance(shape, list | None) else read_rle(shape)
    if shape:
        return Instance(entry['category_id'], float(area), bool(is_crowd), True, shape)
    return Instance(entry['category_id'], 0, bool(is_crowd), False, read_box(entry.get('bbox')))


def read_categories(path, categories):
    """Return the names of the categories by id, in order of the ids."""
    names = {}
    for entry in categories:
        number, name = (entry.get('id'), entry.get('name')) if isinstance(entry, dict) else (None, None)
        if not is_id(number) or not isinstance(name, str):
            raise UserError(f'{path}: a category must have an "id", an integer or a text, and a "name"')
        if number in names or name in names.values():
            raise UserError(f'{path}: category {number} ({name}) occurs twice')
        names[number] = name
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def check_names(path, names, used, optional):
    """Return the categories without the optional ones that no object has. Raises UserError if one cannot be a class."""
    names = {number: name for number, name in names.items() if number in used or name not in optional}
    for name in names.values():
        if name in ('', 'background') or name != name.strip() or ';' in name or not name.isprintable():
            raise UserError(f'{path}: category {name!r} cannot be the name of a class')
    if not 0 < len(names) < IGNORE:
        raise UserError(f'{path}: has {len(names)} categories: 1 to {IGNORE - 1} are possible')
    return names


def read_pictures(path, images, instances, folder):
    """Return the pictures in order of file name, with their annotations."""
    pictures, image_ids = {}, set()
    for image in images:
        number, name = (image.get('id'), image.get('file_name')) if isinstance(image, dict) else (None, None)
        if not is_id(number) or not isinstance(name, str):
            raise UserError(f'{path}: an image must have an "id", an integer or a text, and a "file_name"')
        # Folders are often moved, and Label Studio and Roboflow change names.
        found = find_named(folder, name) if name.isprintable() and name else name
        name = found if (folder / found).is_file() else name.replace('\\', '/')
        if not name.isprintable() or any(part.startswith('.') or not part for part in name.split('/')):
            raise UserError(f'{path}: image {number}: {name!r} is not a file name')
        size = image.get('height'), image.get('width')
        if size in ((None, None), (-1, -1)) and (folder / name).is_file():
            size = image_size(folder / name, FIRST)
        if not all(is_side(side) for side in size):
            raise UserError(f'{path}: image {number} must have a "height" and a "width" of 1 to {SIDE_LIMIT}')
        image_id = make_image_id(name)
        if number in pictures or image_id in image_ids:
            raise UserError(f'{path}: image {number} ({name}) occurs twice')
        image_ids.add(image_id)
        pictures[number] = Picture(name, tuple(map(int, size)), instances.get(number, []))
    unknown = instances.keys() - pictures.keys()
    if unknown:
        raise UserError(f'{path}: image_id {min(unknown, key=str)} of an annotation is not in "images"')
    if not pictures:
        raise UserError(f'{path}: contains no images')
    for picture in pictures.values():
        for instance in picture.instances:
            if isinstance(instance.shape, dict) and tuple(instance.shape['size']) != picture.size:
                raise UserError(f'{path}: RLE of {picture.file_name} is not of the size of the image')
    pictures = sorted(pictures.values(), key=lambda picture: picture.file_name)
    check_files(folder, [picture.file_name for picture in pictures])
    return pictures


def check_files(folder, names):
    """Raise UserError naming the first image that does not exist."""
    is_release = re.fullmatch('(train|val)[0-9]{4}', folder.name)
    remedy = f'unpack {folder.name}.zip there' if is_release else 'check --images'
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise UserError(f'{folder}: cannot be read ({error.strerror}): {remedy}') from None
    missing = [name for name in names if name not in present and not find_file(folder / name).is_file()]
    if missing:
        count = f'{len(missing)} of {len(names)} are missing'
        raise UserError(f'{folder / missing[0]}: no such image ({count}): {remedy}')


def is_id(value):
    """Return whether a value identifies an image or a category: some programs write texts."""
    return type(value) in (int, str)


def first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


# Writing ------------------------------------------------------------------------------------------------------------


def claim_masks(sources, outputs, kept):
    """Record the annotation file of each folder of masks; remove masks and outputs of other annotations.

    `sources` maps a folder to its record; `kept` are rows of other splits, which stay. Raises UserError if there are
    files that this program did not write.
    """
    records = {folder: read_json(folder / 'source.json') for folder in sources}
    ours = any(records.values()) or bool(kept)
    foreign = [] if ours else [path for path in outputs if path.exists()]
    for folder, record in records.items():
        foreign += [] if record else folder.glob('*.png')
    if foreign:
        raise UserError(f'{foreign[0]}: already exists, and was not written by this program: move it away')
    for folder, source in sources.items():
        remove_all_leftovers(folder)
        if records[folder] != source:
            if kept:
                write_csv(outputs[0], kept)  # it would list masks that are removed now
            for path in [*([] if kept else outputs), *folder.glob('*.png')]:
                path.unlink(missing_ok=True)
            write_json(folder / 'source.json', source)


def read_other_splits(output, names, split):
    """Return the rows of other splits in an earlier CSV. Raises UserError if its classes are others."""
    if not output.is_file() or not any(output.parent.glob('masks/*/source.json')):
        return []
    with output.open(newline='', encoding='utf-8') as file:
        rows = [row for row in list(csv.reader(file))[1:] if len(row) == len(COLUMNS) and row[-1] != split]
    before = read_json(output.with_suffix('.json')).get('classes')
    if rows and before != names:
        remedy = 'make the categories equal, or pass another --data_dir'
        raise UserError(f'{output}: has rows of {rows[0][-1]} with other classes than {split}: {remedy}')
    return rows


def check_new(output, rows, parts, pictures, root):
    """Raise UserError if an image is in the rows of another split, where it would have another mask."""
    known = {row[0]: row[-1] for row in rows}
    for part in parts:
        for picture in pictures[part.split]:
            path = table_path(part, picture, root)
            if path in known:
                remedy = f'remove its rows of {known[path]}, or {output} to start over'
                raise UserError(f'{output}: has {path} in {known[path]}, so it cannot be in {part.split} too: {remedy}')


def table_path(part, picture, root):
    """Return the path of an image in the table."""
    return str(PurePosixPath(part.images.resolve().relative_to(root.resolve()).as_posix()) / picture.file_name)


def write_mask(images, folder, indices, negatives, picture):
    """Write the mask of a picture unless it exists undamaged, and return its classes.

    Raises UserError if the image in the folder `images` is not of the size that the annotations say.
    """
    size = image_size(find_file(images / picture.file_name), FIRST)
    if size != picture.size:
        stated = f'{picture.size[1]}x{picture.size[0]}'
        raise UserError(f'{images / picture.file_name}: is {size[1]}x{size[0]}, the annotations say {stated}')
    drawn = []
    for instance in picture.instances:
        try:
            rle = encode_shape(instance.shape, picture.size)
        except ValueError as error:
            raise UserError(f'{picture.file_name}: {error}') from None
        pixels = 0 if rle is None else int(coco_mask.area(rle))
        if pixels > 0:
            drawn.append((instance.area or pixels, instance, rle))
    drawn = [(instance, rle) for _, instance, rle in sorted(drawn, key=lambda entry: -entry[0])]
    path = mask_path(folder, picture)
    if (drawn or negatives == 'keep') and not is_mask(path, picture.size):
        label = np.zeros(picture.size, np.uint8)
        for instance, rle in drawn:
            label[coco_mask.decode(rle) == 1] = indices[instance.category] if is_drawn(instance) else IGNORE
        write_bytes(path, encode_label_map(label, PALETTE))
    return sorted({indices[instance.category] for instance, _ in drawn})


def is_mask(path, size):
    """Return whether a file is an undamaged image of a size (h, w)."""
    if not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            image.verify()
            return image.size[::-1] == size
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for files that it cannot read
        return False


def is_drawn(instance):
    """Return whether the pixels of an instance get its class: it has an outline and is not a crowd."""
    return instance.has_outline and not instance.is_crowd


def mask_path(folder, picture):
    return folder / f'{make_image_id(picture.file_name)}.png'


def write_csv(path, rows):
    text = io.StringIO(newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def prepare(args, root, title, parts, output):
    """Write the masks, and then the class names and the CSV."""
    sources, categories, pictures = {}, {}, {}
    for part in parts:
        sources[part.masks] = {'annotations': part.annotations.name, 'sha256': file_hash(part.annotations)}
        print(f'reading {part.annotations}', flush=True)
        categories[part.split], pictures[part.split] = read_annotations(part.annotations, part.images)
    first, *others = categories.values()
    if any(found != first for found in others):
        raise UserError(f'{root / "annotations"}: train and val of {args.year} have different categories')
    names, indices = list(first.values()), {number: index for index, number in enumerate(first, 1)}
    rows = read_other_splits(output, names, parts[0].split) if args.annotations else []
    check_new(output, rows, parts, pictures, root)
    sidecar = output.with_suffix('.json')
    claim_masks(sources, (output, sidecar), rows)

    for part in parts:
        write = partial(write_mask, part.images, part.masks, indices, args.negatives)
        found = parallel_map(write, pictures[part.split], args.num_workers, f'masks of {part.split}')
        # Masks without any class cannot score anything, and the stages would reject them.
        has_classes = any(is_drawn(instance) for picture in pictures[part.split] for instance in picture.instances)
        if not has_classes:
            print(f'{part.split}: no object has an outline, so {output.name} names no masks of this split')
        for picture, classes in zip(pictures[part.split], found, strict=True):
            if classes or args.negatives == 'keep':
                mask = mask_path(part.masks, picture).relative_to(root).as_posix() if has_classes else ''
                tags = ';'.join(names[index - 1] for index in classes)
                rows.append([table_path(part, picture, root), tags, mask, part.split])

    write_json(sidecar, {'name': title, 'classes': names})
    write_csv(output, rows)
    counts = [f'{sum(row[-1] == part.split for row in rows)} of {part.split}' for part in parts]
    print(f'{output}: {", ".join(counts).replace(" ", " images ", 1)}, {len(names)} classes')
    drawn = [picture for part in parts for picture in pictures[part.split]]
    objects = [instance.has_outline for picture in drawn for instance in picture.instances]
    if not all(objects):
        without = f'{objects.count(False)} of {len(objects)} objects have no outline'
        print(f'warning: {without}: their tags are kept, their boxes are {IGNORE} in the masks', file=sys.stderr)
    print(f'pass --dataset {output} --data_dir {root}')


def main(args):
    root, title, parts = list_parts(args)
    if not root.is_dir():
        raise UserError(f'{root}: no such folder', option='data_dir')
    output = root / ('coco.csv' if args.annotations else f'coco{args.year}.csv')
    with locked(lock_path(output.absolute()), str(output)):
        prepare(args, root, title, parts, output)


if __name__ == '__main__':
    script.run(main, parse_args)
