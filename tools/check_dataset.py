"""Verify a data set: check every image, label and mask, and count its classes and sizes.

Reads   all images, labels and masks of the lists of --dataset
Writes  nothing

    python3 -m tools.check_dataset --dataset labels.csv --data_dir photos

Prints up to 20 errors of each list: missing and unreadable files, unknown classes, masks of another size or with
unknown values. They give exit status 1. Warnings do not: images that train and val share, or that look the same (if
imagehash is installed), copies, masks whose classes disagree with the labels, classes that no image of train_aug has or
that all have, masks without background, objects that are small and images that are large for --image_size, class names
that look alike, and a --window that is not for all images, or cuts off the values of some.
"""

import hashlib
import html
import re
import unicodedata
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tabulate import tabulate

from core import IGNORE, STRIDE, UserError
from core.data.dataset import open_dataset
from core.data.entries import look_alikes
from core.data.images import is_mapped
from util import flags, script
from util.parallel.workers import parallel_map

try:
    import imagehash
except ImportError:  # it is in requirements-dev.txt alone
    imagehash = None

SHOWN = 20  # errors printed per list
SAME_LOOK = (
    6  # of 64 bits of a perceptual hash: 632 photographs of VOC have no such pair, copies at half the size have 0
)
FEW_MASKS = 5  # of fewer masks, all may lack background by chance
LARGE = 4  # images are called large from this multiple of --image_size on
# Largest objects of images: of 316 of VOC, 39 % are smaller than half of the image, none is smaller than a cell.
MANY_BELOW_TILE, MANY_BELOW_CELL = 0.8, 0.05


class Finding(NamedTuple):
    """The result of inspecting one image; `labels` and `size` are None where they cannot be read."""

    errors: list[str]
    size: tuple[int, int] | None = None  # (h, w)
    labels: np.ndarray | None = None  # (C,) multi-hot
    mask_classes: frozenset[int] | None = None
    is_covered: bool = False  # whether each pixel of the mask has a class or is ignored
    content: str = ''  # hash of the pixels
    look: int = 0  # perceptual hash of 64 bits, 0 if it is unknown or the image is plain
    object_side: float | None = None  # longer side of the largest object as a share of the longer side of the image
    is_mapped: bool | None = None  # by the window; None: there is none
    is_plain: bool = False  # a single value


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(flags.DATA)
    parser.add_table(flags.WORKERS)
    size = 'side of the crop in pixels that the trainers will use: objects and images are compared with it'
    parser.groups['data'].add_argument('--image_size', type=flags.integer(32, 16384), default=512, help=size)
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
    values = None if label_map is None else frozenset(np.unique(label_map).tolist())
    classes = None if values is None else values - {0, IGNORE}
    content = hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
    side = largest_object(dataset, image_id, label_map, with_labels and found.get('labels') is not None)
    side = None if side is None else min(1, side / max(image.shape[:2]))
    is_covered = values is not None and 0 not in values
    mapped = is_mapped(dataset.image_path(image_id), dataset.reading) if dataset.reading.window else None
    about = classes, is_covered, content, look_of(found['image']), side, mapped, image.min() == image.max()
    return Finding(errors, image.shape[:2], found.get('labels'), *about)


def look_of(image):
    """Return the perceptual hash of an image; 0 without imagehash, and for a plain image, which is like any other."""
    bits = int(str(imagehash.phash(image)), 16) if imagehash else 0
    return bits if bits.bit_count() > 1 else 0


def largest_object(dataset, image_id, label_map, has_labels):
    """Return the longer side in pixels of the largest object in a mask, or by the boxes; None if there is none."""
    if label_map is None:
        return max((max(box) for box in (dataset.read_boxes(image_id) if has_labels else ())), default=None)
    sides = []
    for k in {*np.unique(label_map).tolist()} - {0, IGNORE}:
        _, _, parts, _ = cv2.connectedComponentsWithStats((label_map == k).astype(np.uint8))
        sides += [max(part[cv2.CC_STAT_WIDTH], part[cv2.CC_STAT_HEIGHT]) for part in parts[1:].tolist()]
    return max(sides, default=None)


def in_words(count, noun='error'):
    return f'{count} {noun}' if count == 1 else f'{count} {noun}s'


def print_errors(domain, findings, new):
    """Print a line for a list, and the first errors of the images that are new in it; return the number of errors."""
    errors = [error for image_id in new for error in findings[image_id].errors]
    others = 'no further errors' if any(finding.errors for finding in findings.values()) else 'complete'
    print(f'{domain:10} {len(findings):6} images: {in_words(len(errors)) if errors else others}')
    for error in errors[:SHOWN]:
        print(f'  {error}')
    if len(errors) > SHOWN:
        print(f'  ... and {len(errors) - SHOWN} more')
    return len(errors)


def print_counts(dataset, lists):
    """Print how many images of each list have each class, and the sizes of the images."""
    rows = []
    without_classes = [('(background alone)', lambda finding: finding.labels is not None and not finding.labels.any())]
    for name, count in [
        *((name, partial(_has_class, c)) for c, name in enumerate(dataset.class_names)),
        *(without_classes if dataset.has_background else []),
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


def list_warnings(dataset, lists, image_size):
    """Return a line per warning."""
    return [
        *shared_images(dataset, lists),
        *disagreeing_masks(dataset, lists),
        *class_warnings(dataset, lists),
        *covered_warnings(dataset, lists),
        *size_warnings(lists, image_size),
        *alike_names(dataset.class_names),
        *window_warnings(dataset, lists),
    ]


def shared_images(dataset, lists):
    """Yield what is wrong with images that are in a data set twice."""
    trained = {f.content: image_id for image_id, f in lists.get('train_aug', {}).items() if f.content}
    looks = {f.look: image_id for image_id, f in lists.get('train_aug', {}).items() if f.look}
    scored = {domain: lists[domain] for domain in ('val', 'test') if domain in lists}
    for domain, findings in scored.items():
        shared = [(trained[f.content], image_id) for image_id, f in findings.items() if f.content in trained]
        if shared:
            count, pair = in_words(len(shared), 'image'), _pair(dataset, shared[0])
            yield f'{domain} and train_aug share {count} ({pair}, ...): remove from one of them'
        same = {image_id for _, image_id in shared}
        alike = find_alike(looks, {i: f.look for i, f in findings.items() if f.look and i not in same})
        if alike:
            count, pair = in_words(len(alike), 'image'), _pair(dataset, alike[0])
            yield f'{count} of {domain} look like images of train_aug ({pair}, ...): scores of copies say little'
    seen = defaultdict(list)
    for image_id, finding in lists.get('train_aug', {}).items():
        seen[finding.content].append(image_id)
    repeated = [ids for content, ids in seen.items() if content and len(ids) > 1]
    if repeated:
        pair = _pair(dataset, repeated[0])
        yield f'train_aug contains copies of {in_words(len(repeated), "image")} ({pair}, ...)'
    labels = {i: f.labels.tobytes() for i, f in lists.get('train_aug', {}).items() if f.labels is not None}
    differing = [ids for ids in repeated if len({labels.get(image_id) for image_id in ids}) > 1]
    if differing:
        count, pair = in_words(len(differing), 'image'), _pair(dataset, differing[0])
        yield f'copies of {count} have different classes ({pair}, ...): keep one, with all its classes'


def _pair(dataset, ids):
    return ' and '.join(str(dataset.image_path(image_id)) for image_id in ids[:2])


def find_alike(known, looks):
    """Return pairs of a known id and another one whose perceptual hashes differ in few bits.

    known: ids by hash; looks: hashes by id.
    """
    ids, hashes, found = [*known.values()], np.array([*known], np.uint64), []
    for image_id, look in looks.items():
        different = np.bitwise_count(hashes ^ np.uint64(look))
        if len(ids) and different.min() <= SAME_LOOK:
            found.append((ids[different.argmin()], image_id))
    return found


def disagreeing_masks(dataset, lists):
    """Yield how many masks have other classes than the labels."""
    masked = {i: f for findings in lists.values() for i, f in findings.items() if f.mask_classes is not None}
    tags = {i: frozenset((np.flatnonzero(f.labels) + 1).tolist()) for i, f in masked.items() if f.labels is not None}
    for what, disagree in (
        ('the mask contains a class that the labels do not', lambda i: masked[i].mask_classes - tags[i]),
        ('the labels contain a class that the mask does not', lambda i: tags[i] - masked[i].mask_classes),
    ):
        wrong = [image_id for image_id in tags if disagree(image_id)]
        if wrong:
            yield f'in {len(wrong)} of {len(tags)} images {what} ({dataset.image_path(wrong[0])}, ...)'


def class_warnings(dataset, lists):
    """Yield which classes a classifier cannot learn, because no image has them or all have."""
    labels = [f.labels for f in lists.get('train_aug', {}).values() if f.labels is not None]
    if not labels:
        return
    names = np.array(dataset.class_names, object)
    without = names[~np.any(labels, 0)]
    if len(without):
        yield f'no image of train_aug has the class {", ".join(without)}'
    yield from filter(None, [dataset.without_contrast(np.array(labels))])


def covered_warnings(dataset, lists):
    """Yield whether the masks say that a data set with a background has none."""
    covered = {i: f.is_covered for found in lists.values() for i, f in found.items() if f.mask_classes is not None}
    if dataset.has_background and len(covered) >= FEW_MASKS and all(covered.values()):
        yield (
            f'none of {len(covered)} masks has background (0): if every pixel of the images has a class, the data set '
            'needs the entry "background": false'
        )


def size_warnings(lists, image_size):
    """Yield whether objects are small, or images large, for the crop of the trainers."""
    findings = {i: f for found in lists.values() for i, f in found.items() if f.size}
    sides = np.array([f.object_side for f in findings.values() if f.object_side is not None])
    below_tile, below_cell = (int((sides < share).sum()) for share in (0.5, STRIDE / image_size))
    remedy = 'cut the images into pieces, or raise the three --image_size flags'
    if len(sides) and (below_tile > MANY_BELOW_TILE * len(sides) or below_cell > MANY_BELOW_CELL * len(sides)):
        yield (
            f'the largest object is smaller than a tile of the crop ({image_size // 2} of {image_size} pixels) in '
            f'{below_tile} of {len(sides)} images with masks or boxes, and smaller than {STRIDE} pixels, one value of '
            f'a class map, in {below_cell}: {remedy}'
        )
    large = [f.size for f in findings.values() if max(f.size) > LARGE * image_size]
    if large:
        h, w = max(large, key=max)
        left = STRIDE * max(h, w) // image_size
        yield (
            f'{len(large)} of {len(findings)} images are much larger than --image_size {image_size} (up to {w}x{h}): '
            f'they are scaled down, and {left} pixels become one value of a class map; for small objects {remedy}'
        )


def alike_names(names):
    """Yield the class names that differ only in case, blanks, Unicode form or markup."""
    groups = defaultdict(list)
    for name in names:
        text = unicodedata.normalize('NFKC', html.unescape(re.sub('<[^<>]*>', '', name))).casefold()
        groups[
            ''.join(c for c in text if unicodedata.category(c) != 'Cf' and not c.isspace() and c not in '_-')
        ].append(name)
    warned = look_alikes(names)  # when the data set was opened
    for group in groups.values():
        if len(group) > 1 and group not in warned:
            shown = ', '.join(group)
            yield f'classes differ only in case, blanks, Unicode form or markup: {shown}'


def window_warnings(dataset, lists):
    """Yield whether the window is for no image, or leaves a single value of some."""
    images = {i: f for findings in lists.values() for i, f in findings.items() if f.is_mapped is not None}
    mapped, window = [i for i, f in images.items() if f.is_mapped], dataset.reading.window
    plain = [i for i in mapped if images[i].is_plain]
    if len(mapped) < len(images):
        yield f'the window {window} is for {len(mapped)} of {len(images)} images; the others have 8 bits'
    if plain:
        count, first = f'{len(plain)} of {len(mapped)}', dataset.image_path(plain[0])
        yield f'the window {window} leaves one value in {count} images ({first}, ...): compare it with theirs'


def check(dataset, num_workers, needs_masks=(), quick=False, image_size=512):
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
        count += print_errors(domain, lists[domain], new)
    if not quick:
        print_counts(dataset, lists)
        for line in list_warnings(dataset, lists, image_size):
            print(f'warning: {line}')
        if imagehash is None and 'train_aug' in lists and {'val', 'test'} & lists.keys():
            print('images that look like others were not searched for: pip install imagehash')
    broken = [domain for domain, findings in lists.items() if any(f.errors and not f.size for f in findings.values())]
    if broken and not quick:
        paths = ' and '.join(dict.fromkeys(str(dataset.list_path(domain)) for domain in broken))
        print(f'to go on without images that are missing or cannot be read, remove them from {paths}')
    if count:
        raise UserError(f'{dataset.root}: {in_words(count)}, listed above')
    if not quick:
        for domain in ('train', 'val'):
            dataset.ids_with_masks(domain)
    print(f'{dataset.root}: no errors')


def main(args):
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    check(dataset, args.num_workers, image_size=args.image_size)


if __name__ == '__main__':
    script.run(main, parse_args)
