"""Verify a data set: check every image, label and mask, and count its classes and sizes.

Reads   all images, labels and masks of the lists of --dataset
Writes  nothing

    python3 -m tools.check_dataset --dataset labels.csv --data_dir photos

Prints up to 20 errors of each list: missing and unreadable files, unknown classes, masks of another size or with
unknown values. They give exit status 1. Warnings do not: images that train and val share, masks whose classes disagree
with the labels, classes without images to train on, class names that differ only in case.
"""

import hashlib
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from core import IGNORE, UserError
from core.data.dataset import open_dataset
from util import flags, script
from util.parallel.workers import parallel_map

SHOWN = 20  # errors printed per list


class Finding(NamedTuple):
    """The result of inspecting one image; `labels` and `size` are None where they cannot be read."""

    errors: list[str]
    size: tuple[int, int] | None = None  # (h, w)
    labels: np.ndarray | None = None  # (C,) multi-hot
    mask_classes: frozenset[int] | None = None
    content: str = ''  # hash of the pixels


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(flags.DATA)
    parser.add_table(flags.WORKERS)
    return parser.parse_args(argv)


def inspect(image_id, dataset, with_labels, needs_mask, quick):
    """Return the Finding of an image. `quick`: only check that the files exist."""
    has_mask = dataset.has_mask(image_id) or needs_mask
    if quick:
        paths = [dataset.image_path(image_id)]
        paths += [dataset.labels_path(image_id)] if with_labels else []
        paths += [dataset.mask_path(image_id)] if has_mask else []
        return Finding([f'{path}: no such file' for path in paths if isinstance(path, Path) and not path.is_file()])
    found, errors = {}, []
    readers = {
        'image': lambda: dataset.read_image(image_id),
        'labels': lambda: dataset.read_labels(image_id) if with_labels else None,
        'mask': lambda: dataset.read_mask(image_id, found['image'].size[::-1]) if has_mask else None,
    }
    for name, read in readers.items():
        try:
            found[name] = read()
        except UserError as error:
            errors.append(str(error))
            if name == 'image':
                return Finding(errors)
    image, label_map = np.array(found['image']), found.get('mask')
    classes = None if label_map is None else frozenset(np.unique(label_map).tolist()) - {0, IGNORE}
    content = hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
    return Finding(errors, image.shape[:2], found.get('labels'), classes, content)


def in_words(count, noun='error'):
    return f'{count} {noun}' if count == 1 else f'{count} {noun}s'


def print_errors(domain, findings, total):
    """Print a line for a list of `total` images, and the first errors of its findings; return the number of errors."""
    errors = [error for finding in findings.values() for error in finding.errors]
    print(f'{domain:10} {total:6} images: {in_words(len(errors)) if errors else "complete"}')
    for error in errors[:SHOWN]:
        print(f'  {error}')
    if len(errors) > SHOWN:
        print(f'  ... and {len(errors) - SHOWN} more')
    return len(errors)


def print_counts(dataset, lists):
    """Print how many images of each list have each class, and the sizes of the images."""
    rows = []
    for name, count in [
        *((name, partial(_has_class, c)) for c, name in enumerate(dataset.class_names)),
        ('(background alone)', lambda finding: finding.labels is not None and not finding.labels.any()),
        ('(with a mask)', lambda finding: finding.mask_classes is not None),
    ]:
        rows.append((name, *(sum(map(count, findings.values())) for findings in lists.values())))
    align = ('left', *('right' for _ in lists))
    print(tabulate(rows, ('images with', *lists), 'pipe', colalign=align))
    sizes = sorted({f.size for findings in lists.values() for f in findings.values() if f.size}, key=np.prod)
    if sizes:
        low, middle, high = (f'{w}x{h}' for h, w in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        print(f'sizes: {low} to {high} ({len(sizes)} distinct, median {middle})' if len(sizes) > 1 else f'sizes: {low}')


def _has_class(c, finding):
    return finding.labels is not None and bool(finding.labels[c])


def list_warnings(dataset, lists):
    """Return a line per warning."""
    lines = []
    trained = {f.content: image_id for image_id, f in lists.get('train_aug', {}).items() if f.content}
    scored = {domain: lists[domain] for domain in ('val', 'test') if domain in lists}
    for domain, findings in scored.items():
        shared = [(trained[f.content], image_id) for image_id, f in findings.items() if f.content in trained]
        if shared:
            pair = ' and '.join(str(dataset.image_path(image_id)) for image_id in shared[0])
            lines.append(
                f'{domain} and train_aug share {in_words(len(shared), "image")} ({pair}, ...): remove from one of them'
            )
    seen = defaultdict(list)
    for image_id, finding in lists.get('train_aug', {}).items():
        seen[finding.content].append(image_id)
    repeated = [ids for content, ids in seen.items() if content and len(ids) > 1]
    if repeated:
        pair = ' and '.join(str(dataset.image_path(image_id)) for image_id in repeated[0][:2])
        lines.append(f'train_aug contains copies of {in_words(len(repeated), "image")} ({pair}, ...)')

    masked = {i: f for findings in lists.values() for i, f in findings.items() if f.mask_classes is not None}
    tags = {i: frozenset((np.flatnonzero(f.labels) + 1).tolist()) for i, f in masked.items() if f.labels is not None}
    for what, disagree in (
        ('the mask contains a class that the labels do not', lambda i: masked[i].mask_classes - tags[i]),
        ('the labels contain a class that the mask does not', lambda i: tags[i] - masked[i].mask_classes),
    ):
        wrong = [image_id for image_id in tags if disagree(image_id)]
        if wrong:
            lines.append(f'in {len(wrong)} of {len(tags)} images {what} ({dataset.image_path(wrong[0])}, ...)')

    labels = [f.labels for f in lists.get('train_aug', {}).values() if f.labels is not None]
    if labels:
        without = [name for name, any_ in zip(dataset.class_names, np.any(labels, 0), strict=True) if not any_]
        if without:
            lines.append(f'no image of train_aug has the class {", ".join(without)}')
    folded = Counter(name.casefold() for name in dataset.class_names)
    alike = [name for name in dataset.class_names if folded[name.casefold()] > 1]
    if alike:
        lines.append(f'classes differ only in case: {", ".join(alike)}')
    return lines


def check(dataset, num_workers, needs_masks=(), quick=False):
    """Print all findings. Raises UserError if there are errors; the images of `test` may be absent altogether."""
    if not dataset.root.is_dir():
        raise UserError(f'{dataset.root}: no such folder')
    count, lists, inspected = 0, {}, {}
    for domain in sorted(dataset.lists, key=lambda domain: domain not in needs_masks):
        ids = dataset.ids(domain)
        if domain == 'test' and not dataset.image_path(ids[0]).is_file():
            print(f'{domain:10} {len(ids):6} images: absent')
            continue
        # Inspect each image once, even if it is in several lists; images whose masks are needed come first.
        options = {'with_labels': domain != 'test', 'needs_mask': domain in needs_masks, 'quick': quick}
        find = partial(inspect, dataset=dataset, **options)
        new = [image_id for image_id in ids if image_id not in inspected]
        inspected |= zip(new, parallel_map(find, new, num_workers, domain), strict=True)
        lists[domain] = {image_id: inspected[image_id] for image_id in ids}
        count += print_errors(domain, {image_id: inspected[image_id] for image_id in new}, len(ids))
    if not quick:
        print_counts(dataset, lists)
        for line in list_warnings(dataset, lists):
            print(f'warning: {line}')
    broken = [domain for domain, findings in lists.items() if any(f.errors and not f.size for f in findings.values())]
    if broken and not quick:
        paths = ' and '.join(dict.fromkeys(str(dataset.list_path(domain)) for domain in broken))
        print(f'to go on without images that are missing or cannot be read, remove their lines from {paths}')
    if count:
        raise UserError(f'{dataset.root}: {in_words(count)}, listed above')
    if not quick:
        for domain in ('train', 'val'):
            dataset.ids_with_masks(domain)
    print(f'{dataset.root}: no errors')


def main(args):
    check(open_dataset(args.dataset, args.data_dir), args.num_workers)


if __name__ == '__main__':
    script.run(main, parse_args)
