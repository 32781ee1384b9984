"""Take masks from a labelling tool back into a data set, or only their classes as tags.

Reads   FILE or FOLDER as the tool wrote it, with its own colours, order of classes and sizes: COCO instances, CVAT's
        "Segmentation mask 1.1" (unpacked), files of labelme, a JSON export of Label Studio, an Ultralytics data set,
        PNGs of class indices, GeoJSON
Writes  --out, a new CSV file, with a JSON file of the same name beside it (names, classes, colours), and the masks in
        {data_dir}/{name of --out}_masks/{id}.png. Nothing that exists is changed

    python3 -m tools.import_masks cvat/ --dataset labels.csv --data_dir photos
    python3 -m tools.import_masks project.json --dataset labels.csv --data_dir photos --before experiments/predict/own
    python3 -m tools.import_masks project.json --dataset labels.csv --data_dir photos --labels_only

Images are found by their id or the end of their path, classes by name. If an image or a class is not found, or a mask
is not of the ratio of its image, all such lines are printed and nothing is written; --rename and --skip help. An image
without any object is left alone, unless the export had one there or --empty background says that it is background.
"""

import shlex
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

from tabulate import tabulate

from core import IGNORE, UserError, has_control_characters, printable
from core.data.dataset import Dataset, open_dataset
from core.data.images import encode_label_map
from tools.exchange import formats
from tools.exchange.matching import Classes, Images
from tools.exchange.photographs import open_photographs
from tools.exchange.reading import EXPORTED, IMAGES
from tools.exchange.tables import check_absent, list_rows, write_table
from tools.exchange.taking import Result, match, take_labels, take_mask
from tools.exchange.writing import BACKGROUND, IGNORED, staged_folder
from util import flags, script
from util.parallel.workers import parallel_map
from util.store.files import write_bytes
from util.store.fingerprints import read_json
from util.store.hashes import file_hashes

SHOWN = 20  # lines printed of one kind of problem


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('source', metavar='FILE|FOLDER', type=Path, help='what the labelling tool wrote')
    data = parser.groups['data']
    data.add_argument('--dataset', help='CSV file of the data set (with --labels_only not needed)')
    data.add_argument('--data_dir', required=True, type=Path, help='folder that the paths of images are relative to')
    data.add_argument('--format', choices=list(formats.FORMATS), help='format of the file (default: recognised)')
    renamed = 'other names of classes in the file: OLD=NEW; NEW may also be background or ignore'
    data.add_argument('--rename', nargs='+', default=[], metavar='OLD=NEW', help=renamed)
    data.add_argument(
        '--ids',
        type=flags.names,
        default=[],
        help='ids of the images to take, comma-separated (default: all in the file)',
    )
    before = 'what tools.export wrote: changes are counted against it (default: FOLDER, if it is such, or --dataset)'
    data.add_argument('--before', type=Path, metavar='FOLDER', help=before)
    parser.add_table(flags.WORKERS)
    run = parser.groups['run and output']
    run.add_argument('--out', type=Path, help='CSV file to write (default: {name of --dataset}_imported.csv beside it)')
    run.add_argument(
        '--labels_only', action='store_true', help='take classes, boxes and tags as image-level labels only'
    )
    empty = 'images without an object: skip them, or take them as background alone'
    run.add_argument('--empty', choices=('skip', 'background'), default='skip', help=empty)
    run.add_argument('--changed_only', action='store_true', help='take only masks that differ from the ones before')
    slack = 'pixels from the border of an object within which a difference is not a change, but a conversion'
    run.add_argument('--slack', type=flags.integer(0), default=0, help=slack)
    run.add_argument('--skip', action='store_true', help='leave out images with a problem, and take the others')
    return parser.parse_args(argv)


# What is read ---------------------------------------------------------------------------------------------------------


def open_data(args) -> Dataset | None:
    """Open the data set; None without --dataset. Raises UserError if it is not a CSV file."""
    if args.dataset is None:
        if not args.labels_only:
            raise UserError('is needed: the CSV file whose images the masks belong to', option='dataset')
        if args.out is None:
            raise UserError('is needed without --dataset: the CSV file to write', option='out')
        return None
    if Path(args.dataset).suffix.lower() != '.csv':
        raise UserError(f'{args.dataset}: only a CSV file has a column of masks', option='dataset')
    dataset = open_dataset(args.dataset, args.data_dir)
    return replace(dataset, reading=dataset.reading.completed({'plane': '1'}))  # only sizes are read


def ids_of(dataset: Dataset) -> list[str]:
    return list(dict.fromkeys(image_id for domain in dataset.lists for image_id in dataset.ids(domain)))


def parse_renamed(words: list[str]) -> dict[str, str]:
    renamed = dict(word.rsplit('=', 1) for word in words if '=' in word)
    wrong = next((word for word in words if '=' not in word), None)
    if wrong is not None:
        raise UserError(f'{wrong}: must be OLD=NEW', option='rename')
    return renamed


# What is said ---------------------------------------------------------------------------------------------------------


def list_unknown(results: dict[str, Result], classes: Classes) -> list[str]:
    """Return a line for each label that is not a class."""
    found = defaultdict(list)
    for image_id, result in results.items():
        for label in result.unknown:
            found[label].append(image_id)
    lines = []
    for label, ids in sorted(found.items()):
        near = classes.near(label)
        remedy = f'--rename {shlex.quote(f"{label}={near or IGNORED}")}' + ('' if near else ', or another class')
        lines.append(
            f'{label!r} is not a class (objects: {len(ids)}, images: {len(set(ids))}, the first is {ids[0]}): {remedy}'
        )
    return lines


def print_problems(groups: list[list[str]]) -> int:
    """Print the lines of each kind of problem, and return their number."""
    for lines in groups:
        for line in lines[:SHOWN]:
            print(printable(line), file=sys.stderr)
        if len(lines) > SHOWN:
            print(f'... and {len(lines) - SHOWN} more like this', file=sys.stderr)
    return sum(map(len, groups))


def print_changes(results: list[Result], names: tuple[str, ...]) -> None:
    """Print for each class how many images have it before and now, and pixels that came and went."""
    rows = []
    for index, name in [*enumerate(names), (IGNORE, IGNORED)]:
        added, removed = (sum(getattr(result, what)[index] for result in results) for what in ('added', 'removed'))
        now = sum(index in result.classes for result in results)
        before = sum(index in (result.before or ()) for result in results)
        counts = (before, now) if index not in (0, IGNORE) else ('', '')
        if now or before or added or removed:
            rows.append((name, *counts, added, removed))
    headers = ('class', 'images before', 'images now', 'pixels that came', 'pixels that went')
    print(tabulate(rows, headers, 'pipe', colalign=('left', *['right'] * 4)))


def check_exported(given: Path | None, before: Path | None, dataset, matched) -> None:
    """Warn of images that have changed since the export. Raises UserError if --before has no mask of an image."""
    if given and not any((before / f'{image_id}.png').is_file() for image_id in matched):
        raise UserError(f'{given}: tools.export has not written it, and it has no mask {{id}}.png', option='before')
    hashes = read_json(before / IMAGES) if before else {}
    now = file_hashes({image_id: dataset.image_path(image_id) for image_id in matched if image_id in hashes})
    changed = [image_id for image_id, value in now.items() if value != hashes[image_id]]
    script.warn(changed, matched, 'have changed since they were exported: these masks may be of other pictures')


# What is written ------------------------------------------------------------------------------------------------------


def import_masks(args, dataset, matched, classes, problems, out, before):
    """Write the masks and the CSV file."""
    folder = args.data_dir / f'{out.stem}_masks'
    check_absent(out, folder)
    ids = ids_of(dataset)
    with staged_folder(folder, '--out') as staged:
        take = partial(
            take_mask, matched=matched, dataset=dataset, classes=classes, out=staged, before=before,
            keep_empty=args.empty == 'background', changed_only=args.changed_only, slack=args.slack,
        )  # fmt: skip
        results = dict(zip(matched, parallel_map(take, list(matched), args.num_workers, 'masks'), strict=True))
        check_problems(args, problems, results, classes)
        masks = {
            image_id: f'{folder.name}/{image_id}.png' for image_id in matched if (staged / f'{image_id}.png').exists()
        }
        if not masks:
            raise UserError(f'{args.source}: has no mask to take: nothing was written')
        if dataset.mask_values:  # the other masks have other values
            for image_id in ids:
                if image_id not in masks and dataset.has_mask(image_id):
                    write_bytes(
                        staged / f'{image_id}.png', encode_label_map(dataset.read_mask(image_id), dataset.palette)
                    )
                    masks[image_id] = f'{folder.name}/{image_id}.png'
        # Inside, so that neither is left if the other cannot be written.
        write_table(out, list_rows(dataset, ids, masks, {}), dataset, keeps_values=False)

    taken = [result for result in results.values() if result.is_taken]
    print_changes(taken, (BACKGROUND, *dataset.class_names))
    new = sum(result.before is None for result in taken)
    changed = sum(result.before is not None and result.differs for result in taken)
    same = len(taken) - new - changed
    print(f'{out}: masks taken: {len(taken)} ({new} new, {changed} changed, {same} as before)')
    report_rest(results, args)
    more = [
        i
        for i, result in results.items()
        if {classes.names[k - 1] for k in result.classes} - {*dataset.source.read_tags(i)}
    ]
    script.warn(
        more, matched, f'have a class in the mask that the tags lack: --labels_only with --dataset {out} adds it'
    )
    boxes = [image_id for image_id, result in results.items() if result.boxes]
    script.warn(boxes, matched, 'have objects of which only the box is known: its pixels are ignored')
    print(f'pass --dataset {out} --data_dir {args.data_dir}')


def import_labels(args, dataset, matched, classes, problems, out):
    """Write the CSV file with the tags; without --dataset, of the images of the file alone."""
    check_absent(out, out)
    take = partial(
        take_labels, matched=matched, dataset=dataset, classes=classes, keep_empty=args.empty == 'background'
    )
    results = dict(zip(matched, parallel_map(take, list(matched), args.num_workers, 'labels'), strict=True))
    if not dataset.class_names:
        dataset, classes, results = name_classes(dataset, classes, results)
    check_problems(args, problems, results, classes)
    labels = {
        image_id: [classes.names[index - 1] for index in sorted(result.classes)]
        for image_id, result in results.items()
        if not (result.problem or result.unknown or result.is_empty)
    }
    if not any(labels.values()):
        raise UserError(f'{args.source}: names no class of an image: nothing was written')
    ids = ids_of(dataset)
    ids = ids if args.dataset else [image_id for image_id in ids if image_id in labels]
    old = {image_id: {*dataset.source.read_tags(image_id)} for image_id in labels}
    write_table(out, list_rows(dataset, ids, {}, labels), dataset, keeps_values=True)

    rows = [
        (name, *(sum(name in tags[image_id] for image_id in labels) for tags in (old, labels)))
        for name in classes.names
    ]
    print(tabulate(rows, ('class', 'images before', 'images now'), 'pipe', colalign=('left', 'right', 'right')))
    changed = sum({*tags} != old[image_id] for image_id, tags in labels.items())
    print(f'{out}: images whose tags were taken: {len(labels)} ({changed} changed)')
    report_rest(results, args)
    print(f'pass --dataset {out} --data_dir {args.data_dir}')


def name_classes(dataset, classes, results):
    """Return a data set without classes with those that the file names, sorted, and its results with their indices."""
    names = sorted({classes.rename(label) for result in results.values() for label in result.unknown})
    wrong = next((name for name in names if ';' in name or has_control_characters(name) or not name), None)
    if wrong is not None:
        raise UserError(f'{wrong!r} cannot be the name of a class in a CSV file: --rename gives it another one')
    if not 0 < len(names) < IGNORE:
        raise UserError(f'the file has {len(names)} classes: 1 to {IGNORE - 1} are possible')
    named = Classes(names, classes.renamed)
    results = {
        image_id: result._replace(unknown=(), classes=frozenset(map(named.find, result.unknown)) - {0, IGNORE})
        for image_id, result in results.items()
    }
    return replace(dataset, class_names=tuple(names)), named, results


def check_problems(args, unmatched: list[str], results: dict[str, Result], classes: Classes) -> None:
    """Print all problems. Raises UserError if there are some, unless --skip leaves these images out."""
    damaged = [result.problem for result in results.values() if result.problem]
    count = print_problems([unmatched, damaged, list_unknown(results, classes)])
    if count and not args.skip:
        remedy = 'nothing was written (--skip leaves these images out)'
        raise UserError(f'{args.source}: {count} problem{"s" if count > 1 else ""}, listed above: {remedy}')


def report_rest(results: dict[str, Result], args) -> None:
    """Print how many images were left out."""
    skipped = sum(bool(result.problem or result.unknown) for result in results.values())
    empty = sum(result.is_empty for result in results.values())
    if skipped:
        print(f'images with a problem, left out: {skipped}')
    if empty:
        print(f'images without an object, left alone: {empty} (--empty background takes them)')


def main(args):
    dataset = open_data(args)
    out = args.out or Path(args.dataset).with_name(f'{Path(args.dataset).stem}_imported.csv')
    if out.suffix.lower() != '.csv':
        raise UserError(f'{out}: must end in .csv', option='out')
    if args.before is not None and not args.before.is_dir():
        raise UserError(f'{args.before}: no such folder', option='before')
    exported = (args.before or args.source) / EXPORTED
    before = exported if exported.is_dir() else args.before
    dataset = dataset or open_photographs(args.data_dir, ())
    if args.empty == 'background' and not dataset.has_background:
        raise UserError(f'background: the data set "{dataset.name}" has none', option='empty')
    classes = Classes(dataset.class_names, parse_renamed(args.rename))
    if len(classes.renamed) < len(args.rename):
        raise UserError(f'{" ".join(args.rename)}: names a class twice before "="', option='rename')
    wrong = next((new for new in classes.renamed.values() if args.dataset and classes.find(new) is None), None)
    if wrong is not None:
        raise UserError(f'{wrong!r} is not a class: {", ".join(dataset.class_names)}', option='rename')
    _, found = formats.read(args.source, (BACKGROUND, *dataset.class_names), args.format)
    ids = ids_of(dataset)
    unknown = next((image_id for image_id in args.ids if image_id not in ids), None)
    if unknown is not None:
        raise UserError(f'{unknown}: is not an image of the data set', option='ids')
    matched, problems = match(found, Images(dataset, ids), args.ids)
    check_exported(args.before, before, dataset, matched)
    if args.labels_only:
        import_labels(args, dataset, matched, classes, problems, out)
    else:
        import_masks(args, dataset, matched, classes, problems, out, before)


if __name__ == '__main__':
    script.run(main, parse_args)
