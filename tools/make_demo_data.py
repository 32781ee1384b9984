"""Draw a small data set in the layout of PASCAL VOC, from a seed alone.

Reads   nothing
Writes  {out}/JPEGImages/{id}.jpg, {out}/Annotations/{id}.xml, {out}/SegmentationClass/{id}.png (palette; 255 border),
        {out}/ImageSets/Segmentation/*.txt, and last {out}/dataset.json, which marks the set complete

    python3 -m tools.make_demo_data --out experiments/demo
    python3 -m tools.make_demo_data --out experiments/textures --no_background

With --no_background, 2 to 4 textures cover each picture, and masks have no 0.
"""

import json
import re
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from core import UserError
from core.data import voc
from core.data.images import encode_label_map
from demo_data import figures, scenes, textures
from util import flags, script
from util.parallel.workers import parallel_map
from util.store.files import make_folder, remove_all_leftovers, write_bytes
from util.store.locks import lock_path, locked

SPLITS = ['train', 'val']
# Files that an interrupted run of this program may have left in its folder.
OURS = re.compile(
    r'(JPEGImages|Annotations|SegmentationClass)(/((train|val)_\d{5,}\.(jpg|xml|png)|\.\w+\.\d+\.tmp))?'
    r'|ImageSets(/Segmentation(/((train|train_aug|val)\.txt|\.\w+\.\d+\.tmp))?)?|\.\w+\.\d+\.tmp'
)


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    data = parser.groups['data']
    positive = flags.integer(1)
    covered = 'draw pictures of textures, whose every pixel has a class, instead of scenes'
    data.add_argument('--no_background', action='store_true', help=covered)
    data.add_argument('--num_train_aug', type=positive, default=1500, help='scenes to train on')
    data.add_argument('--num_train', type=positive, default=300, help='how many of these are scored (list train)')
    data.add_argument('--num_val', type=positive, default=200, help='further scenes, to score predictions on')
    data.add_argument('--size', type=flags.integer(64, 4096), default=128, help='longer side in pixels')
    run = parser.groups['run and output']
    run.add_argument('--out', type=Path, default=Path('experiments/demo'), help='folder of the data set')
    run.add_argument('--seed', type=flags.integer(0), default=0, help='random seed')
    workers = 'extra processes that draw; 0: none'
    run.add_argument('--num_workers', type=flags.integer(0), default=flags.cpu_count(), help=workers)
    args = parser.parse_args(argv)
    if args.num_train_aug < args.num_train:
        parser.error(f'--num_train_aug {args.num_train_aug} is below --num_train {args.num_train}, which it contains')
    return args


def make_id(split: str, index: int) -> str:
    return f'{split}_{index:05d}'


def make_xml(image_id: str, shape: tuple[int, int], objects: list[tuple[str, tuple[int, ...], bool]]) -> bytes:
    """Return the VOC annotation of the objects of draw_scene in an image of the shape (h, w)."""
    lines = [f'<annotation><folder>drawn scenes</folder><filename>{image_id}.jpg</filename>']
    lines += [f'<size><width>{shape[1]}</width><height>{shape[0]}</height><depth>3</depth></size>']
    lines += ['<segmented>1</segmented>']
    for name, corners, truncated in objects:
        sides = zip(('xmin', 'ymin', 'xmax', 'ymax'), corners, strict=True)
        lines += [f'<object><name>{name}</name><pose>Unspecified</pose><truncated>{int(truncated)}</truncated>']
        lines += ['<difficult>0</difficult><bndbox>', *(f'<{side}>{at}</{side}>' for side, at in sides)]
        lines += ['</bndbox></object>']
    root = ET.fromstring(''.join([*lines, '</annotation>']))
    ET.indent(root)
    return ET.tostring(root) + b'\n'


def write_sample(out: Path, seed: int, size: int, has_background: bool, sample: tuple[str, int]) -> None:
    """Draw sample i of a split and write its three files. It depends only on (seed, split, i)."""
    cv2.setNumThreads(1)  # the workers share the cores
    split, index = sample
    draw = scenes.draw_scene if has_background else textures.draw_textures
    image, mask, objects = draw(np.random.default_rng([seed, SPLITS.index(split), index]), size)
    image_id = make_id(split, index)
    jpeg = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    write_bytes(voc.image_path(out, image_id), jpeg.tobytes())
    write_bytes(voc.xml_path(out, image_id), make_xml(image_id, mask.shape, objects))
    write_bytes(out / 'SegmentationClass' / f'{image_id}.png', encode_label_map(mask, voc.palette()))


def is_complete(out: Path, made_with: dict[str, object]) -> bool:
    """Return whether exactly this set exists. Raises UserError if the folder contains anything else."""
    try:
        if json.loads((out / 'dataset.json').read_text())['made_with'] == made_with:
            return True
        free = False
    except FileNotFoundError:
        found = list(out.rglob('*')) if out.is_dir() else []
        free = all(OURS.fullmatch(path.relative_to(out).as_posix()) and not path.is_symlink() for path in found)
    except (OSError, ValueError, KeyError, TypeError):
        free = False
    if not free:
        raise UserError(f'--out {out}: already contains other files: name another folder, or delete it first')
    return False


def write_dataset(args, made_with):
    """Draw all scenes and write the lists."""
    for folder in ('JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets/Segmentation'):
        make_folder(args.out / folder)
        for leftover in (args.out / folder).iterdir():
            leftover.unlink()
    remove_all_leftovers(args.out)

    # Draw the scenes. Spawn the workers: a forked process can hang if OpenCV has run threads before.
    samples = [('train', i) for i in range(args.num_train_aug)] + [('val', i) for i in range(args.num_val)]
    write = partial(write_sample, args.out, args.seed, args.size, not args.no_background)
    for _ in parallel_map(write, samples, args.num_workers, 'scenes', 'spawn'):
        pass

    # Write the lists, and last the JSON.
    ids = [make_id(*sample) for sample in samples]
    train_aug, val = ids[: args.num_train_aug], ids[args.num_train_aug :]
    lists = {}
    for domain, listed in {'train_aug': train_aug, 'train': train_aug[: args.num_train], 'val': val}.items():
        lists[domain] = f'ImageSets/Segmentation/{domain}.txt'
        write_bytes(args.out / lists[domain], '\n'.join([*listed, '']).encode())
    about = {'name': 'drawn scenes', 'classes': figures.CLASSES}
    if args.no_background:
        about = {'name': 'drawn textures', 'classes': textures.CLASSES, 'background': False}
    info = {**about, 'lists': lists, 'made_with': made_with}
    write_bytes(args.out / 'dataset.json', (json.dumps(info, indent=2) + '\n').encode())
    print(f'{args.out}: {args.num_train_aug} scenes to train on, {args.num_val} to score on')


def main(args):
    options = ('num_train_aug', 'num_train', 'num_val', 'size', 'seed')
    made_with = {key: getattr(args, key) for key in options} | {'drawing': scenes.DRAWING}
    if args.no_background:
        made_with |= {'background': False, 'drawing': textures.DRAWING}
    with locked(lock_path(args.out.absolute()), str(args.out)):
        if is_complete(args.out, made_with):
            print(f'{args.out}: the data set already exists with these options')
        else:
            write_dataset(args, made_with)


if __name__ == '__main__':
    script.run(main, parse_args)
