"""Print results of evaluate.py as a table, and draw what was scored side by side.

Reads   experiments/results/{name}.json; for --picture also the data set and experiments/predictions/
Writes  the file of --picture

    python3 -m tools.summarize 'one run | NAME@train' 'three | cl@seed=*@train' 'with the paper | NAME@train | 51.53'

Each argument is a row: its title, the name of a result (without .json; * matches several runs, whose mean and standard
deviation are printed), and optionally the published value. --thresholds adds the mIoU at each background threshold, the
best one in brackets. --picture draws the first run of each row on the same images of --domain, one line per class of an
image, in columns: image, mask, then the rows.
"""

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from tabulate import tabulate

from core import UserError
from core.data.dataset import open_dataset
from core.maps import present_keys
from util import artifacts, flags, stage, visualize
from util.files import write_bytes

HEADERS = ('', 'runs', 'images', 'mIoU %', 'FP %', 'FN %', 'threshold', 'all-background %', 'published %')


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('rows', nargs='+', metavar='ROW', help='TITLE | NAME or TITLE | NAME | PUBLISHED')
    flags.add_data(parser)
    run = parser.groups['run and output']
    run.add_argument('--thresholds', action='store_true', help='also print the mIoU at each threshold')
    run.add_argument('--picture', type=Path, help='PNG file to write')
    run.add_argument('--domain', default='train', help='list whose first images are drawn')
    run.add_argument('--images', type=flags.integer(1), default=6, help='number of images in the picture')
    run.add_argument('--ids', default='', help='ids to draw instead, comma-separated')
    args = parser.parse_args(argv)
    args.rows = [[part.strip() for part in row.split('|')] for row in args.rows]
    for row in args.rows:
        if len(row) not in (2, 3):
            parser.error(f'{" | ".join(row)!r} is not TITLE | NAME or TITLE | NAME | PUBLISHED')
    return args


def read_results(name):
    """Return the results that match a name, in order; * matches within it, all other characters are literal."""
    pattern = name.replace('[', '[[]').replace('?', '[?]')
    if '**' in name or '/' in name:
        raise UserError(f'{name!r} is not the name of a result')
    folder = artifacts.EXPERIMENTS / 'results'
    paths = sorted(folder.glob(f'{pattern}.json'))
    if not paths:
        raise UserError(f'{folder / name}.json not found; run evaluate.py first')
    return [read_result(path) for path in paths]


def read_result(path):
    """Return the content of a file of evaluate.py. Raises UserError naming the file."""
    try:
        result = json.loads(path.read_text())
        if not np.isfinite([result[name] for name in ('miou', 'fp', 'fn', 'images', 'all_background_miou')]).all():
            raise ValueError
        sweep = {row['threshold']: float(row['miou']) for row in result['thresholds']}
        threshold = None if result['threshold'] is None else float(result['threshold'])
        return {**result, 'threshold': threshold, 'sweep': sweep}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'{path}: is not a valid result file; rerun evaluate.py') from None


def print_results(rows):
    """Print a table of (title, results, published value or '')."""
    lines = []
    for title, results, published in rows:
        miou, fp, fn = (np.array([result[name] for result in results]) for name in ('miou', 'fp', 'fn'))
        mean = f'{miou.mean():.2f}' + (f' +- {miou.std(ddof=1):.2f}' if len(miou) > 1 else '')
        thresholds = sorted({'-' if r['threshold'] is None else f'{r["threshold"]:.2f}' for r in results})
        background = f'{results[0]["all_background_miou"]:.2f}'
        errors = f'{fp.mean():.1f}', f'{fn.mean():.1f}'
        images = results[0]['images']
        lines.append((title, len(results), images, mean, *errors, ' '.join(thresholds), background, published))
    headers = HEADERS if any(published for *_, published in rows) else HEADERS[:-1]
    print_table([line[: len(headers)] for line in lines], headers)


def print_thresholds(rows):
    """Print a row of mean mIoU per threshold for each row of maps."""
    rows = [(title, [result['sweep'] for result in results]) for title, results, _ in rows]
    rows = [(title, sweeps) for title, sweeps in rows if None not in sweeps[0]]
    thresholds = sorted({threshold for _, sweeps in rows for sweep in sweeps for threshold in sweep})
    lines = []
    for title, sweeps in rows:
        means = {t: np.mean([sweep[t] for sweep in sweeps]) for t in thresholds if all(t in sweep for sweep in sweeps)}
        best = max(means, key=means.get, default=None)
        cells = {t: f'[{mean:.2f}]' if t == best else f'{mean:.2f}' for t, mean in means.items()}
        lines.append((title, *(cells.get(t, '-') for t in thresholds)))
    if rows:
        print()
        print_table(lines, ('threshold', *(f'{threshold:.2f}' for threshold in thresholds)))


def print_table(lines, headers):
    """Print Markdown, the first column to the left and the others to the right."""
    align = ('left', *('right' for _ in headers[1:]))
    print(tabulate(lines, headers, tablefmt='pipe', colalign=align, disable_numparse=True))


def draw_output(dataset, folder, image_id, image, index):
    """Return the map of the index-th present class over the image, or the label map if the folder has those."""
    path = folder / f'{image_id}.npz'
    if not path.is_file():
        label = dataset.read_label_map(path.with_suffix('.png'), image.shape[:2])
        return visualize.overlay_mask(image, label, dataset.palette)
    name = 'rw' if 'rw' in artifacts.maps_inside(path) else 'hr_cam'
    scores = artifacts.read_maps(path, name, dataset.num_classes)[1]
    return visualize.overlay_heatmap(image, scores[index] / max(scores.max(), 1e-5))


def draw(args, rows):
    """Write the picture: one line per image and class."""
    scored = [(title, results[0]) for title, results, _ in rows if results[0]['domain'] == args.domain]
    if not scored:
        raise UserError(f'--picture: none of the rows was scored on --domain {args.domain}')
    dataset = open_dataset(args.dataset, args.data_dir)
    lines = []
    ids = args.ids.split(',') if args.ids else dataset.ids(args.domain)[: args.images]
    for image_id in ids:
        image = np.array(dataset.read_image(image_id))
        mask = dataset.read_mask(image_id, image.shape[:2])
        for index in range(len(present_keys(dataset.read_labels(image_id))) - 1):
            line = [image, visualize.overlay_mask(image, mask, dataset.palette)]
            for _, result in scored:
                folder = artifacts.PREDICTIONS / result['experiment_name']
                line.append(draw_output(dataset, folder, image_id, image, index))
            lines.append([visualize.letterbox(picture, 192) for picture in line])
    grid = visualize.image_grid(lines, ['image', 'mask', *(title for title, _ in scored)])
    write_bytes(args.picture, iio.imwrite('<bytes>', grid, extension='.png'))
    print(f'written to {args.picture}')


def main(args):
    rows = [(row[0], read_results(row[1]), row[2] if len(row) == 3 else '') for row in args.rows]
    print_results(rows)
    if args.thresholds:
        print_thresholds(rows)
    if args.picture:
        draw(args, rows)


if __name__ == '__main__':
    stage.run(main, parse_args)
