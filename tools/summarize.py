"""Print results of evaluate.py as a table, and draw what was scored side by side.

    python3 tools/summarize.py 'one run | NAME@train' 'three | cl@seed=*@train' 'and the paper | NAME@train | 51.53'

Each argument is a row: its title, the name of a file under experiments/results/ (without .json; a * stands for several
runs, of which mean and standard deviation are printed), and where there is one the published figure. `--thresholds`
adds the mIoU of maps at each background threshold, the best in brackets. `--picture FILE` draws the first run of each
row on the same images of --domain, in columns: image, mask, then the rows in their order.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from tools import UserError, flags, stage
from tools.experiment import EXPERIMENTS, PREDICTIONS


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    parser.add_argument('rows', nargs='+', metavar='ROW', help='TITLE | NAME or TITLE | NAME | PUBLISHED')
    parser.add_argument('--thresholds', action='store_true', help='the mIoU at each threshold too')
    parser.add_argument('--picture', type=Path, help='PNG to write')
    parser.add_argument('--images', type=flags.integer(1), default=6, help='images of the picture')
    parser.add_argument('--domain', default='train', help='list they are the first of')
    flags.add_data(parser)
    args = parser.parse_args(argv)
    args.rows = [[part.strip() for part in row.split('|')] for row in args.rows]
    for row in args.rows:
        if len(row) not in (2, 3):
            parser.error(f'{" | ".join(row)!r} is not TITLE | NAME or TITLE | NAME | PUBLISHED')
    return args


def read_results(name):
    """The results of a name, in order; * matches within it, every other character stands for itself."""
    pattern = name.replace('[', '[[]').replace('?', '[?]')
    if '**' in name or '/' in name:
        raise UserError(f'{name!r} is not the name of a result')
    paths = sorted((EXPERIMENTS / 'results').glob(f'{pattern}.json'))
    if not paths:
        raise UserError(f'{EXPERIMENTS / "results" / name}.json is not there: evaluate.py makes it')
    return [read_result(path) for path in paths]


def read_result(path):
    """One file of evaluate.py."""
    try:
        result = json.loads(path.read_text())
        if not np.isfinite([result[name] for name in ('miou', 'fp', 'fn', 'images', 'all_background_miou')]).all():
            raise ValueError
        sweep = {row['threshold']: float(row['miou']) for row in result['thresholds']}
        return {
            **result,
            'threshold': None if result['threshold'] is None else float(result['threshold']),
            'sweep': sweep,
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'{path}: is no result of evaluate.py: run it again') from None


def print_table(rows):
    """rows: (title, results, published figure or '')."""
    lines = [('', 'runs', 'images', 'mIoU %', 'FP %', 'FN %', 'threshold', 'all-background %', 'published %')]
    for title, results, published in rows:
        miou, fp, fn = (np.array([result[name] for result in results]) for name in ('miou', 'fp', 'fn'))
        figure = f'{miou.mean():.2f}' + (f' +- {miou.std(ddof=1):.2f}' if len(miou) > 1 else '')
        thresholds = sorted({'-' if r['threshold'] is None else f'{r["threshold"]:.2f}' for r in results})
        nothing = f'{results[0]["all_background_miou"]:.2f}'
        images = str(results[0]['images'])
        wrong = f'{fp.mean():.1f}', f'{fn.mean():.1f}'
        lines.append((title, str(len(results)), images, figure, *wrong, ' '.join(thresholds), nothing, published))
    if not any(published for *_, published in rows):
        lines = [line[:-1] for line in lines]
    print_aligned(lines)


def print_thresholds(rows):
    """A line for each row of maps: the mean mIoU at each threshold."""
    rows = [(title, [result['sweep'] for result in results]) for title, results, _ in rows]
    rows = [(title, sweeps) for title, sweeps in rows if None not in sweeps[0]]
    thresholds = sorted({threshold for _, sweeps in rows for sweep in sweeps for threshold in sweep})
    lines = [('threshold', *(f'{threshold:.2f}' for threshold in thresholds))]
    for title, sweeps in rows:
        means = {t: np.mean([sweep[t] for sweep in sweeps]) for t in thresholds if all(t in sweep for sweep in sweeps)}
        best = max(means, key=means.get, default=None)
        cells = {t: f'[{mean:.2f}]' if t == best else f'{mean:.2f}' for t, mean in means.items()}
        lines.append((title, *(cells.get(t, '-') for t in thresholds)))
    if rows:
        print()
        print_aligned(lines)


def print_aligned(lines):
    """Columns of one width, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for title, *cells in lines:
        print('  '.join([title.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]))


def draw(args, rows):
    """One line an image and class: image, mask, and each row's map of that class or label map."""
    import cv2

    from core import datasets
    from tools import pictures
    from tools.files import maps_inside, read_maps, write_bytes

    rows = [row for row in rows if row[1][0]['domain'] == args.domain]
    if not rows:
        raise UserError(f'--picture: none of the rows was scored on --domain {args.domain}')
    info = datasets.load_info(args.dataset)
    lines = []
    for image_id in info.ids(args.domain)[: args.images]:
        image = np.array(datasets.read_image(datasets.image_path(args.data_dir, image_id)))
        mask = datasets.read_mask(datasets.mask_path(args.data_dir, image_id), info.num_classes, image.shape[:2])
        for i, _ in enumerate(
            datasets.keys_of(datasets.read_labels(datasets.xml_path(args.data_dir, image_id), info))[1:]
        ):
            line = [image, pictures.coloured(image, mask, info.palette)]
            for _, results, _ in rows:
                folder = PREDICTIONS / results[0]['experiment_name']
                path = folder / f'{image_id}.npz'
                if path.is_file():
                    name = 'rw' if 'rw' in maps_inside(path) else 'hr_cam'
                    score = read_maps(path, name, info.num_classes)[1]
                    line.append(pictures.heat(image, score[i] / max(score.max(), 1e-5)))
                else:
                    label = datasets.read_mask(datasets.label_path(folder, image_id), info.num_classes, image.shape[:2])
                    line.append(pictures.coloured(image, label, info.palette))
            lines.append([pictures.fit(picture, 192) for picture in line])
    picture = cv2.imencode('.png', pictures.sheet(lines)[..., ::-1])[1].tobytes()
    write_bytes(args.picture, picture)
    print(f'{args.picture}: image, mask, {", ".join(title for title, *_ in rows)}')


def main(args):
    rows = [(row[0], read_results(row[1]), row[2] if len(row) == 3 else '') for row in args.rows]
    print_table(rows)
    if args.thresholds:
        print_thresholds(rows)
    if args.picture:
        draw(args, rows)


if __name__ == '__main__':
    from core import InputError

    stage.run(main, parse_args(), InputError)
