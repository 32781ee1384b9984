"""Write label maps as files of labelling tools, to look at them and to correct them there.

Reads   FOLDER: pseudo-labels, predictions or affinity labels under experiments/predictions/, masks of tools.predict, or
        any other folder of {id}.png; scores in {id}.npz beside them, if there are any; the images of the data set
Writes  {out}, in one of these formats, and the masks that would come back unchanged in {out}/.exported/:
        coco         annotations.json: RLE, or polygons
        cvat         "Segmentation mask 1.1": labelmap.txt, ImageSets/, SegmentationClass/, SegmentationObject/
        labelme      {path of the image}.json: polygons, or masks; labels.txt
        labelstudio  tasks.json with predictions: brush masks, or polygons; config.xml
        yolo         Ultralytics: data.yaml, links in images/, and masks/ (semantic) or labels/ (polygons)
        png          {path of the image}.png: grey, of class indices; classes.txt
        geotiff      {path of the image}.tif: class indices with the georeference of the image; classes.txt
        geojson      {path of the image}.geojson: polygons with holes, in pixels unless the image is georeferenced

    python3 -m tools.export own@affinity@train@beta=40@exp_times=8@rw@crf=1 --format cvat --out cvat
    python3 -m tools.export experiments/predict/own --dataset labels.csv --data_dir photos --format coco --out coco
    python3 -m tools.export experiments/predict/own --classes cat,dog --data_dir photos --format labelme --out labelme

Each connected component of a class is an object. Its score is the mean over its pixels of what tools.predict wrote: the
probability, or the CAM. Stage 8 writes no probabilities. tools.import_masks takes all formats back.
"""

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from core import IGNORE, UserError, printable
from core.data.dataset import Dataset
from core.data.entries import parse_classes
from core.data.pixels import Reading
from tools.exchange import formats, objects
from tools.exchange.matching import name_of
from tools.exchange.photographs import open_photographs
from tools.exchange.reading import EXPORTED, IMAGES, Content, Polygons, Shape, compose
from tools.exchange.shapes import read_polygons
from tools.exchange.writing import IGNORED, Export, staged_folder
from tools.reporting import find, provenance
from tools.reporting.entries import add_recorded_data, check_classes, open_recorded
from util import flags, script
from util.parallel.workers import parallel_map
from util.store.files import write_bytes, write_json
from util.store.fingerprints import read_args
from util.store.formats import PREDICTIONS
from util.store.hashes import file_hashes


class Written(NamedTuple):
    """What was written of an image: the entry for the last files, and numbers of what was kept and left out."""

    entry: object
    objects: int
    small: int
    filled: int
    ignored: int
    scored: int


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('folder', metavar='FOLDER', help='label maps: a name under experiments/predictions/, or a path')
    add_recorded_data(parser)
    data = parser.groups['data']
    classes = 'names of the values 1, 2, ..., separated by commas, instead of --dataset, for the images of --data_dir'
    data.add_argument('--classes', type=flags.names, help=classes)
    data.add_argument(
        '--ids', type=flags.names, default=[], help='ids of the images, comma-separated (default: all in the folder)'
    )
    parser.add_table(flags.WORKERS)
    run = parser.groups['run and output']
    run.add_argument('--format', required=True, choices=list(formats.FORMATS), help='format of the files')
    run.add_argument('--out', required=True, type=Path, help='folder to write, new or empty')
    shapes = 'masks (exact), or polygons (easier to edit; default: polygons for labelme and geojson)'
    run.add_argument('--shapes', choices=('masks', 'polygons'), help=shapes)
    corners = 'pixels by which the corners of polygons may leave the border of an object; 0 follows every pixel'
    run.add_argument('--simplify', type=flags.real(0), default=1.0, help=corners)
    small = 'leave out objects of fewer pixels: they become background (without one, ignored)'
    run.add_argument('--min_area', type=flags.integer(1), default=1, help=small)
    ignored = f'write ignored pixels (255) as objects of the class {IGNORED}; otherwise they become background'
    run.add_argument('--keep_ignored', action='store_true', help=ignored)
    prefix = 'labelstudio: address of the folder of images (default: /data/local-files/?d={name of --data_dir}/)'
    run.add_argument('--image_prefix', help=prefix)
    return parser.parse_args(argv)


def find_folder(name: str) -> Path:
    """Return the folder of label maps that a name means. Raises UserError if it has none."""
    path = next((path for path in (PREDICTIONS / name, Path(name)) if path.is_dir()), None)
    if path is None:
        raise UserError(f'FOLDER {name}: neither {PREDICTIONS / name} nor a folder of this name exists')
    kind = find.format_of(path)
    if kind is not None and kind.maps:
        raise UserError(f'FOLDER {name}: contains {kind.title}s: name a folder of label maps, such as pseudo-labels')
    return path


def open_data(args, path: Path) -> Dataset:
    """Open the data set of --dataset or --classes, by default the one that the folder records."""
    record = read_args(path)
    if args.classes is None and not record and not args.dataset:
        remedy = 'pass --dataset and --data_dir, or --classes and --data_dir'
        raise UserError(f'FOLDER {path}: does not record its data set: {remedy}')
    if args.classes is None:
        dataset = open_recorded(args, str(path), record)
    elif args.dataset or not args.data_dir:
        raise UserError('goes with --data_dir and without --dataset', option='classes')
    else:
        reading = Reading(args.window, args.plane).completed(record.get('options', {'plane': '1'}))
        names = parse_classes(','.join(args.classes), args.classes, 'classes')
        dataset = open_photographs(Path(args.data_dir), names, reading)
    check_classes(dataset, path, record)
    return dataset


def choose_images(args, dataset: Dataset, path: Path) -> dict[str, str]:
    """Return the ids of the images that have a label map, with the first list of the data set that has them.

    Prints how many PNG files of the folder are of no image, unless --ids names the images.
    """
    lists: dict[str, str] = {}
    for domain in sorted(dataset.lists, key=lambda domain: domain == 'train_aug'):
        for image_id in dataset.ids(domain):
            lists.setdefault(image_id, domain)
    for image_id in args.ids:
        if image_id not in lists or not (path / f'{image_id}.png').is_file():
            raise UserError(f'{image_id}: is not an image of the data set with a label map in {path}', option='ids')
    found = {image_id: lists[image_id] for image_id in args.ids or lists if (path / f'{image_id}.png').is_file()}
    if not found:
        raise UserError(f'{path}: has no label map of an image of the data set "{dataset.name}": check --dataset')
    named = {f'{image_id}{ending}' for image_id in lists for ending in ('.png', '_overlay.png')}
    others = sorted(file.name for file in path.iterdir() if file.suffix.lower() == '.png' and file.name not in named)
    if others and not args.ids:
        first = ', '.join(map(printable, others[:3])) + (', ...' if len(others) > 3 else '')
        print(f'left out: {len(others)} PNG files of no image of the data set ({first})', file=sys.stderr)
    return found


def write(image_id, lists, dataset, path, module, export, min_area, has_ignored):
    """Write the files of an image, and return what is said about it."""
    size = dataset.image_size(image_id)
    label = dataset.read_label_map(path / f'{image_id}.png', size)
    scores = objects.read_scores(path / f'{image_id}.npz', size)
    nothing = 0 if dataset.has_background else IGNORE
    kept, found, small = objects.find_objects(label, min_area, scores, export.keep_ignored, nothing)
    if has_ignored:
        kept[label == IGNORE] = IGNORE
    picture = objects.Picture(
        image_id, name_of(dataset, image_id), dataset.image_path(image_id), lists[image_id], kept, found
    )
    back, filled = come_back(picture, export, module)
    back[back == 0] = nothing
    write_bytes(export.out / EXPORTED / f'{image_id}.png', dataset.encode_label_map(back))
    scored = sum(each.score is not None for each in found)
    return Written(module.encode(picture, export), len(found), small, filled, int((label == IGNORE).sum()), scored)


def come_back(picture: objects.Picture, export: Export, module: formats.Format) -> tuple[np.ndarray, int]:
    """Return the label map (h, w) that the import makes of an untouched picture, and the number of filled holes."""
    if export.shapes == 'masks':
        return picture.label.copy(), 0
    shapes, filled = [], 0
    for found in picture.objects:
        outer, holes = export.outline(found)
        kept = holes if module.HAS_HOLES else ()
        filled += len(holes) > len(kept)
        shapes.append(
            Shape(None, Polygons(*(read_polygons([ring.reshape(-1) for ring in rings]) for rings in ([outer], kept))))
        )
    content = Content(None, shapes, module.BY_AREA)
    return compose(content, [found.index for found in picture.objects], picture.size), filled


def main(args):
    path = find_folder(args.folder)
    dataset = open_data(args, path)
    module = formats.FORMATS[args.format]
    shapes = args.shapes or module.SHAPES[0]
    if shapes not in module.SHAPES:
        raise UserError(f'{shapes}: {args.format} has {" and ".join(module.SHAPES)} only', option='shapes')
    images = choose_images(args, dataset, path)
    provenance.warn_if_outdated([path], dataset=dataset)

    has_ignored = module.HAS_IGNORED and shapes == 'masks'
    keep_ignored = args.keep_ignored and not has_ignored
    if keep_ignored and IGNORED in dataset.class_names:
        raise UserError(f'would mix up the class {IGNORED} of the data set with ignored pixels', option='keep_ignored')
    names = ('background', *dataset.class_names)
    prefix = args.image_prefix
    if prefix is None:  # Label Studio serves a folder of its local storage under the name of that folder
        prefix = f'/data/local-files/?d={quote(dataset.root.resolve().name)}/'
    with staged_folder(args.out, '--out') as out, provenance.unchanged([path]):
        export = Export(out, args.out, path.name, names, dataset.palette, shapes, args.simplify, keep_ignored, prefix)
        one = partial(
            write, lists=images, dataset=dataset, path=path, module=module, export=export, min_area=args.min_area,
            has_ignored=has_ignored,
        )  # fmt: skip
        written = list(parallel_map(one, list(images), args.num_workers, 'images'))
        module.finish([each.entry for each in written], export)
        write_json(out / EXPORTED / IMAGES, file_hashes({each: dataset.image_path(each) for each in images}))
    report(args, written, has_ignored, keep_ignored, dataset.has_background)


def report(args, written: list[Written], has_ignored: bool, keep_ignored: bool, has_background: bool) -> None:
    """Print what was written, and what the format could not hold."""
    count = {name: sum(getattr(each, name) for each in written) for name in Written._fields[1:]}
    print(f'{args.out}: {count["objects"]} objects in {len(written)} images, {count["scored"]} of them with a score')
    if count['small']:
        print(f'{count["small"]} objects of fewer than {args.min_area} pixels were left out')
    if count['filled']:
        what = f'{count["filled"]} of {count["objects"]} objects have holes, which these polygons fill'
        print(f'warning: {what}: --shapes masks keeps them', file=sys.stderr)
    if count['ignored'] and not has_ignored:
        became = 'became background (--keep_ignored keeps them)' if has_background else 'are in no object'
        became = f'became objects of the class {IGNORED}' if keep_ignored else became
        print(f'{count["ignored"]} ignored pixels (255) {became}')


if __name__ == '__main__':
    script.run(main, parse_args)
