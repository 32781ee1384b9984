"""Print results of evaluate.py as a table.

    python3 tools/summarize.py 'CAM=NAME@train' 'CAM + random walk=OTHER@train'

Each argument is a row's title and the name of a file under experiments/results/ (without .json).
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import UserError, flags, stage
from tools.experiment import results_path


def row(text):
    title, equals, name = text.partition('=')
    if not equals or not name:
        raise argparse.ArgumentTypeError(f'{text!r} is not TITLE=NAME')
    return title, name


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    parser.add_argument('rows', nargs='+', type=row, metavar='TITLE=NAME', help='what to print, in order')
    return parser.parse_args(argv)


def main(args):
    lines = [('', 'images', 'mIoU %', 'threshold', 'all-background %')]
    for title, name in args.rows:
        path = results_path(name, 'json')
        try:
            result = json.loads(path.read_text())
        except OSError:
            raise UserError(f'{path} is not there: evaluate.py makes it') from None
        threshold = '-' if result['threshold'] is None else f'{result["threshold"]:.2f}'
        figures = f'{result["miou"]:.2f}', threshold, f'{result["all_background_miou"]:.2f}'
        lines.append((title, str(result['images']), *figures))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for title, *cells in lines:
        print('  '.join([title.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]))


if __name__ == '__main__':
    stage.run(main, parse_args())
