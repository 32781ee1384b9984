"""Draw output folders: PNG pages of images, their masks if there are any, and each folder's maps.

Reads   a folder under experiments/predictions/, or any folder of {id}.npz or {id}.png; the data set that its args.json
        records; for the errors of maps, their result under experiments/results/
Writes  experiments/show/{name of the first folder}/page-1.png, ...

    python3 -m tools.show my@puzzle@train@scale=0.5,1.0,1.5,2.0
    python3 -m tools.show my@affinity@train@beta=10@exp_times=8@rw@crf=1 --ids 2007_000032,2007_000039
    python3 -m tools.show 'plain | FOLDER' 'Puzzle-CAM | FOLDER' --images 8
    python3 -m tools.show experiments/predict/own --dataset labels.csv --data_dir photos
"""

import os
import re
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from core import UserError
from core.data import drawing
from tools.reporting import find, panels, pictures, provenance
from tools.reporting.entries import add_recorded_data, check_classes, open_recorded
from util import flags, script
from util.store import formats
from util.store.files import write_bytes
from util.store.fingerprints import read_args
from util.store.locks import locked

SIDE = 232  # side of a picture, in pixels
COLUMNS = 6
ROWS = 6  # on a page


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help='FOLDER or TITLE | FOLDER: a name or a path')
    add_recorded_data(parser)
    run = parser.groups['run and output']
    run.add_argument('--images', type=flags.integer(1), default=24, help='number of images: the first in the folder')
    run.add_argument(
        '--ids', type=flags.names, default=[], help='ids of the images, comma-separated, instead of --images'
    )
    run.add_argument('--out', type=Path, help='output folder (default: experiments/show/{name of the first folder})')
    run.add_argument('--font', type=Path, help="font file for class names in scripts that Pillow's own font lacks")
    return parser.parse_args(argv)


def find_source(argument: str) -> panels.Source:
    """Return the folder of an argument, and the thresholds at which evaluate.py scored its maps."""
    title, _, name = (part.strip() for part in argument.rpartition('|'))
    path = formats.PREDICTIONS / name
    if not path.is_dir():
        path = Path(name)
    if not name or not path.is_dir():
        raise UserError(f'FOLDER {name!r}: neither {formats.PREDICTIONS / name} nor a folder of this name exists')
    scored = [result for result in find.of_folder(path.name) if not result['crf_iteration']]
    return panels.Source(
        title, find.format_of(path), path, {result['domain']: result['threshold'] for result in scored}
    )


def choose_images(args, dataset, sources) -> dict[str, str]:
    """Return the ids of the images to draw with their lists, scored lists first, in the order of the data set.

    Raises UserError if the first folder lacks one of --ids, or has no image of the data set.
    """
    folder, lists = sources[0].path, {}
    for domain in sorted(dataset.lists, key=lambda domain: all(domain not in source.thresholds for source in sources)):
        for image_id in dataset.ids(domain):
            lists.setdefault(image_id, domain)
    for image_id in args.ids:
        if image_id not in lists or not panels.has_output(folder, image_id):
            raise UserError(f'--ids {image_id}: is not an image of the data set that {folder} has a file of')
    ids = args.ids or [image_id for image_id in lists if panels.has_output(folder, image_id)][: args.images]
    if not ids:
        raise UserError(f'{folder}: has no file of an image of the data set "{dataset.name}": check --dataset')
    return {image_id: lists[image_id] for image_id in ids}


def draw_panels(image_id, domain, dataset, sources, names, font):
    """Return the pictures of an image with their captions."""
    image = np.array(dataset.read_image(image_id))
    drawn = []
    for _, panel in panels.draw_image(image_id, image.shape[:2], domain, dataset, sources):
        picture = image if panel.layer is None else drawing.blend(image, panel.layer, panel.is_heatmap)
        title = image_id if panel.title == 'image' else panel.title
        chips = [(names[index], dataset.palette[index].tolist()) for index in panel.classes]
        chips += [
            (f'{name} {x} %', colour) for (name, colour), x in zip(panels.ERRORS.items(), panel.errors, strict=False)
        ]
        drawn.append(drawing.caption(pictures.fit(picture, SIDE), title, chips, panel.note, font))
    return drawn


def remove_pages(out: Path) -> None:
    """Remove the pages of an earlier call. Raises UserError if the folder also contains other files."""
    found = [path for path in out.iterdir() if not path.name.startswith('.lock')]
    others = [path.name for path in found if not re.fullmatch(r'page-\d+\.png', path.name)]
    if others:
        raise UserError(f'--out {out}: contains other files ({others[0]}, ...): name an empty or a new folder')
    for path in found:
        path.unlink()


def main(args):
    sources = [find_source(argument) for argument in args.folders]
    dataset = open_recorded(args, str(sources[0].path), read_args(sources[0].path))
    for source in sources:
        check_classes(dataset, source.path, read_args(source.path))
    font = drawing.open_font(args.font).font_variant(size=13)
    names = pictures.names_on_pictures(dataset.label_names, font)
    images = choose_images(args, dataset, sources)
    out = args.out or formats.EXPERIMENTS / 'show' / Path(os.path.abspath(sources[0].path)).name
    folders = [source.path for source in sources]
    provenance.warn_if_outdated(folders, dataset=dataset)

    def write(page, number):
        picture = iio.imwrite('<bytes>', drawing.stack(page, 1), extension='.png')
        write_bytes(out / f'page-{number}.png', picture)

    with locked(out / '.lock', str(out)), provenance.unchanged(folders):
        remove_pages(out)
        page, rows, number = [], 0, 1
        for image_id, domain in script.progress(images.items(), 'images'):
            drawn = draw_panels(image_id, domain, dataset, sources, names, font)
            needed = -(-len(drawn) // COLUMNS)
            if page and rows + needed > ROWS:
                write(page, number)
                page, rows, number = [], 0, number + 1
            page.append(drawing.stack(drawn, COLUMNS))
            rows += needed
        write(page, number)
    print(f'{out}: {len(images)} images on {number} pages')


if __name__ == '__main__':
    script.run(main, parse_args)
