"""Print results of evaluate.py as tables, and compare them. Pictures are drawn by tools.show and tools.report.

Reads   experiments/results/{name}.json and .npz; for --options also the records upstream of the scored folders
Writes  nothing

    python3 -m tools.summarize                                             all results, newest first
    python3 -m tools.summarize NAME NAME --classes --options               two runs side by side
    python3 -m tools.summarize 'one run | NAME@train' 'three | cl@seed=*@train' 'with the paper | NAME@train | 51.53'
    python3 -m tools.summarize --paired 'cl@seed=*@train' 'cl_pcl_re@seed=*@train'

A row is NAME, TITLE | NAME or TITLE | NAME | PUBLISHED. NAME is the name of a result (without .json), its tag, its path
or a part that no other name contains; * matches several runs, whose mean and standard deviation are printed: they may
differ in the seed alone. A NAME alone that is the tag of several results is a row for each. One run has the 95 %
bootstrap interval over its images. For maps, mIoU, its interval and Dice are two-fold: each half of the images is
scored at the threshold that is best on the other half. The best mIoU, FP, FN and all that flags add are at the
threshold that is best on the scored masks. --thresholds adds the mIoU at each background threshold, the best one in
brackets. --objects adds the share of images without an object that have a false mask, and the IoU by the share of the
image that an object covers. --paired prints B - A: with the 95 % interval of Student's t over the seeds that both have
or, for one run each, the bootstrap interval over their images.
"""

import csv
import io
import re
import sys
import time

import numpy as np
from tabulate import tabulate

from core import UserError
from core.image_scores import SIZES
from core.intervals import difference_interval, score_interval, t_interval
from tools.reporting import find, provenance
from tools.reporting.tables import format_mean, list_mious
from util import flags, script
from util.store import formats, results

HEADERS = ('', 'runs', 'images', 'mIoU %', '95 %', 'Dice %', 'best mIoU %', 'FP %', 'FN %', 'threshold')
HEADERS += ('all-background %', 'one-class %', 'published %')
FORMATS = {'markdown': 'pipe', 'csv': None, 'latex': 'latex_booktabs'}  # names in tabulate, which has no csv

DETAILS = ('thresholds', 'classes', 'objects', 'options')  # flags that add a table of the rows


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    names = 'NAME, TITLE | NAME or TITLE | NAME | PUBLISHED (default: all results)'
    parser.add_argument('rows', nargs='*', metavar='ROW', help=names)
    run = parser.groups['run and output']
    run.add_argument('--thresholds', action='store_true', help='also print the mIoU at each threshold')
    run.add_argument(
        '--classes', action='store_true', help='also print the IoU per class, and the difference of two rows'
    )
    sizes = 'also print false masks on images without an object, and the IoU by size of object'
    run.add_argument('--objects', action='store_true', help=sizes)
    run.add_argument('--options', action='store_true', help='also print the options in which the runs differ')
    run.add_argument('--paired', nargs=2, metavar=('A', 'B'), help='also print the paired difference B - A')
    run.add_argument('--format', choices=FORMATS, default='markdown', help='format of the tables')
    args = parser.parse_args(argv)
    args.rows = [[part.strip() for part in row.split('|')] for row in args.rows]
    for row in args.rows:
        if len(row) > 3:
            parser.error(f'{" | ".join(row)!r} is not NAME, TITLE | NAME or TITLE | NAME | PUBLISHED')
    for flag in DETAILS:
        if vars(args)[flag] and not (args.rows or args.paired):
            parser.error(f'--{flag}: needs rows, such as NAME, or --paired')
    return args


def find_rows(row):
    """Return the rows (title, results, published value or '') of an argument."""
    if len(row) == 1:
        found = find.find(row[0])
        if '*' in row[0]:
            return [(row[0], found, '')]
        return [(result['name'], [result], '') for result in found]
    title, name, published = [*row, ''][:3]
    found = find.find(name)
    if len(found) > 1 and '*' not in name:
        raise UserError(f'{name!r} is the tag of {len(found)} results: name one, or several by a pattern with *')
    return [(title, found, published)]


def warn_if_outdated(runs):
    """Print a warning if inputs of the scored folders have changed, or the folders since they were scored."""
    provenance.warn_if_outdated({formats.PREDICTIONS / result['experiment_name'] for result in runs}, runs)


# Tables: lists of lines, whose first is the headers -----------------------------------------------------------------


def tabulate_all():
    """Return the table of all results, newest first. Damaged ones are reported on stderr."""
    lines, found = [('', 'data set', 'split', 'images', 'mIoU %', 'best mIoU %', 'threshold', 'written')], []
    for path in find.list_paths():
        try:
            result = find.read(path)
        except UserError as error:
            print(f'warning: {error}', file=sys.stderr)
            continue
        where = result['dataset'], result['domain']
        scores = *list_mious([result]), results.format_threshold(result['threshold'])
        written = time.strftime('%Y-%m-%d %H:%M', time.localtime(path.stat().st_mtime))
        lines.append((result['name'], *where, result['images'], *scores, written))
        found.append(result)
    warn_if_outdated(found)
    return lines


def tabulate_rows(rows):
    """Return the table of mean scores; columns without a value are left out."""
    lines = []
    for title, runs, published in rows:
        miou, best = list_mious(runs)
        heads = [find.headline(result) for result in runs]
        dice = format_mean([head['dice'] for head in heads]) if all(heads) else '-'
        counts = find.read_counts(runs[0], two_fold=True) if len(runs) == 1 and all(heads) else None
        interval = format_interval(score_interval(counts[1])['miou']) if counts and len(counts[0]) > 1 else ''
        thresholds = ' '.join(sorted({results.format_threshold(result['threshold']) for result in runs}))
        errors = [f'{np.mean([result[name] for result in runs]):.1f}' for name in ('fp', 'fn')]
        constant = f'{find.baseline(runs[0]):.2f}'
        baselines = ('', constant) if 'one_class' in runs[0] else (constant, '')
        scores = miou, interval, dice, best, *errors
        lines.append((title, len(runs), runs[0]['images'], *scores, thresholds, *baselines, published))
    shown = [i for i, header in enumerate(HEADERS) if not header or any(line[i] != '' for line in lines)]
    return [[line[i] for i in shown] for line in (HEADERS, *lines)]


def format_interval(interval, sign=''):
    """Return an interval of fractions in percent."""
    return ' to '.join(f'{100 * end:{sign}.2f}' for end in interval)


def tabulate_thresholds(rows):
    """Return a table of mean mIoU per threshold for each row of maps."""
    rows = [(title, [result['sweep'] for result in runs]) for title, runs, _ in rows]
    rows = [(title, sweeps) for title, sweeps in rows if not any(None in sweep for sweep in sweeps)]
    thresholds = sorted({threshold for _, sweeps in rows for sweep in sweeps for threshold in sweep})
    lines = [('threshold', *map(results.format_threshold, thresholds))]
    for title, sweeps in rows:
        means = {t: np.mean([sweep[t] for sweep in sweeps]) for t in thresholds if all(t in sweep for sweep in sweeps)}
        best = max(means, key=means.get, default=None)
        cells = {t: f'[{mean:.2f}]' if t == best else f'{mean:.2f}' for t, mean in means.items()}
        lines.append((title, *(cells.get(t, '-') for t in thresholds)))
    return lines


def tabulate_classes(rows):
    """Return a table of mean IoU per class with a column per row, and the difference if there are two."""
    columns = []
    for _, runs, _ in rows:
        column = {}
        for name in runs[0]['iou']:
            values = [result['iou'][name] for result in runs if result['iou'][name] is not None]
            column[name] = np.mean(values) if values else None
        columns.append({**column, 'mIoU': np.mean([result['miou'] for result in runs])})
    differs = len(rows) == 2
    lines = [('IoU %', *(title for title, *_ in rows), *(['difference'] if differs else []))]
    for name in columns[0]:
        values = [column[name] for column in columns]
        cells = ['-' if value is None else f'{value:.2f}' for value in values]
        if differs:
            cells.append('-' if None in values else f'{values[1] - values[0]:+.2f}')
        lines.append((name, *cells))
    return lines


def tabulate_objects(rows):
    """Return a table of the mean share of false masks, and of the mean IoU by size with the number of objects."""
    lines = [('', 'images without an object', 'with a false mask %', *(f'IoU %, {size}' for size in SIZES))]
    for title, runs, _ in rows:
        share = average([result['false_masks']['share'] for result in runs])
        sizes = [[result['by_size'][size] for result in runs] for size in SIZES]
        cells = [f'{average([row["iou"] for row in of_size])} ({of_size[0]["objects"]})' for of_size in sizes]
        lines.append((title, runs[0]['false_masks']['images'], share, *cells))
    return lines


def average(values):
    """Return the mean as text, '-' if a value is unknown."""
    return '-' if None in values else f'{np.mean(values):.2f}'


def tabulate_options(rows):
    """Return a table of the options and inputs that are not the same in all runs, with a column per row."""
    columns = [[chain_options(result) for result in runs] for _, runs, _ in rows]
    lines = [('option', *(title for title, *_ in rows))]
    for name in dict.fromkeys(name for column in columns for options in column for name in options):
        cells = [list(dict.fromkeys(format_option(options.get(name)) for options in column)) for column in columns]
        if len({value for cell in cells for value in cell}) > 1:
            lines.append((name, *map(', '.join, cells)))
    return lines


def chain_options(result):
    """Return the options behind a result by stage and name; runs and folders upstream come first."""
    made_with = result.get('made_with') or {}
    own = {**made_with.get('fingerprint', {}), **made_with.get('options', {})}
    upstream = provenance.trace({result['experiment_name']: result['format']})[:-1]
    steps = [*((step.kind, step.options) for step in upstream), (result['format'], own)]
    return {f'{kind}: {name}': value for kind, options in steps for name, value in sorted(options.items())}


def format_option(value):
    text = '-' if value is None else str(value)
    return text if len(text) <= 60 else f'{text[:12]}...'


def tabulate_paired(names):
    """Return a table of the mean scores of A and B and of B - A with its 95 % interval.

    If either is of maps, mIoU is two-fold, and the best mIoU, FP and FN are at the best thresholds.
    """
    pair = [find.find(name) for name in names]
    find.check_comparable([*pair[0], *pair[1]])
    single = len(pair[0]) == len(pair[1]) == 1
    first, second = pair if single else pair_seeds(*pair)
    swept = any(len(result['sweep']) > 1 for result in [*first, *second])
    heads = [[find.headline(result) for result in runs] for runs in (first, second)]
    unit = f'{len(first)} seeds'
    if single:
        unit, intervals = pair_images(first[0], second[0], two_fold=False)
        _, two_fold = pair_images(first[0], second[0], two_fold=True)
    else:
        intervals = two_fold = {}
    lines = [(unit, 'A', 'B', 'B - A', '95 %')]
    if swept and all(head for column in heads for head in column):
        lines.append(compare('mIoU %', *heads, 'miou', two_fold))
    for name, title in (('miou', 'best mIoU %' if swept else 'mIoU %'), ('fp', 'FP %'), ('fn', 'FN %')):
        lines.append(compare(title, first, second, name, intervals))
    return lines


def compare(title, first, second, name, intervals):
    """Return a line of the table of differences; the interval over seeds unless there is one over images."""
    a, b = (np.array([scores[name] for scores in column]) for column in (first, second))
    interval = intervals.get(name) or [end / 100 for end in t_interval(b - a)]
    scores = f'{a.mean():.2f}', f'{b.mean():.2f}', f'{(b - a).mean():+.2f}'
    return (title, *scores, format_interval(interval, '+'))


def pair_images(first, second, two_fold):
    """Return the number of compared images as text, and the intervals of the difference as fractions."""
    counts = [find.read_counts(result, two_fold) for result in (first, second)]
    for result, count in zip((first, second), counts, strict=True):
        if count is None:
            raise UserError(f'--paired {result["name"]}: has no counts per image (.npz); rerun evaluate.py')
    if counts[0][0] != counts[1][0]:
        raise UserError(f'--paired {first["name"]} {second["name"]}: were scored on different images')
    if len(counts[0][0]) < 2:
        raise UserError('--paired: 1 image was scored, an interval needs at least 2')
    return f'{len(counts[0][0])} images', difference_interval(counts[0][1], counts[1][1])


def pair_seeds(*pair):
    """Return the runs whose seeds both sides have, in the same order."""
    by_seed = []
    for runs in pair:
        provenance.check_mean(runs)
        seeds = {find.seed_of(result): result for result in runs}
        if len(seeds) < len(runs):
            raise UserError(f'--paired {runs[0]["name"]}: two runs have the same seed: use a narrower pattern')
        by_seed.append(seeds)
    common, alone = sorted(by_seed[0].keys() & by_seed[1].keys()), sorted(by_seed[0].keys() ^ by_seed[1].keys())
    if len(common) < 2:
        raise UserError(f'--paired: A and B share {len(common)} of their seeds, an interval needs at least 2')
    if alone:
        print(f'warning: seeds only in A or only in B are left out: {", ".join(map(str, alone))}', file=sys.stderr)
    return [[seeds[seed] for seed in common] for seeds in by_seed]


def print_table(lines, form):
    """Print a table, the first column to the left and the others to the right."""
    if form == 'csv':
        text = io.StringIO()
        csv.writer(text, lineterminator='\n').writerows(lines)
        print(text.getvalue(), end='')
        return
    if form == 'markdown':
        lines = [[str(cell).replace('|', '\\|') for cell in line] for line in lines]
    align = ('left', *('right' for _ in lines[0][1:]))
    text = tabulate(lines[1:], lines[0], tablefmt=FORMATS[form], colalign=align, disable_numparse=True)
    if form == 'latex':  # the \\ of the line before would take a leading * or [ as its argument
        text = re.sub(r'^ *(?=[*[])', '{}', text, flags=re.MULTILINE)
        text = re.sub(r'(?<=\d) \+- (?=\d)', r' $\\pm$ ', text)
    print(text)


def main(args):
    rows = [row for argument in args.rows for row in find_rows(argument)]
    if not rows and any(vars(args)[flag] for flag in DETAILS):
        rows = [(name, find.find(name), '') for name in args.paired]
    runs = [result for _, found, _ in rows for result in found]
    find.check_comparable(runs)
    for _, found, _ in rows:
        provenance.check_mean(found)

    tables = [tabulate_rows(rows)] if rows else []
    if args.thresholds:
        tables.append(tabulate_thresholds(rows))
    if args.classes:
        tables.append(tabulate_classes(rows))
    if args.objects:
        tables.append(tabulate_objects(rows))
    if args.options:
        tables.append(tabulate_options(rows))
        if len(tables[-1]) == 1:
            print('these runs have the same options', file=sys.stderr)
    if args.paired:
        tables.append(tabulate_paired(args.paired))
        runs += [result for name in args.paired for result in find.find(name)]
    warn_if_outdated(runs)
    tables = [lines for lines in tables or [tabulate_all()] if len(lines) > 1]
    for i, lines in enumerate(tables):
        if i:
            print()
        print_table(lines, args.format)


if __name__ == '__main__':
    script.run(main, parse_args)
