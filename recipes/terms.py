"""The effect of the terms of stage 1's loss: CAM scores at equal classification loss, and at each scale alone.

Reads   experiments/data/{tag}.json; with --scales also models/{tag}.pth and the data sets of the runs
Writes  nothing; with --scales the CAMs of each scale, their results and experiments/logs/{tag}@scales.out

    python3 -m recipes.terms 'L_cls | rates@cl@lr=0.01@seed=*' 'all three | rates@cl_pcl_re@lr=0.02@seed=*'
    python3 -m recipes.terms 'L_cls | rates@cl@lr=0.01@seed=*' 'all three | rates@cl_pcl_re@lr=0.02@seed=*' \\
        --scales 0.5,1.0,1.5,2.0

A row is TITLE | TAG; * in a tag matches several runs, whose mean and standard deviation are printed. The first table
has the score that stage 1 logs after each epoch (one scale, at the best of its thresholds), interpolated to the point
where the mean L_cls of an epoch first reaches a level. --scales scores the CAMs of stage 2 at each scale by itself,
with the masks that stage 1 scores. Finished steps are not repeated. recipes.gradients has the gradients of the terms.
"""

import json
from fnmatch import fnmatchcase
from itertools import pairwise

import numpy as np
from tabulate import tabulate

from core import UserError
from recipes.runner import execute_every_run, execute_summaries
from tools.reporting import provenance
from util import flags, script
from util.store import formats

DATA = formats.EXPERIMENTS / 'data'


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('rows', nargs='+', metavar='ROW', help='TITLE | TAG of runs of stage 1')
    levels = 'values of L_cls to compare at'
    parser.groups['run and output'].add_argument(
        '--levels', nargs='+', type=flags.real(0), default=[0.3, 0.2, 0.15, 0.1, 0.07, 0.05], help=levels
    )
    scales = 'scales of stage 2 to score, each by itself (default: none)'
    parser.groups['inference'].add_argument('--scales', type=flags.scales, help=scales)
    jobs = 'runs of stage 2 at once, a core each'
    parser.groups['run and output'].add_argument('--jobs', type=flags.integer(1), default=2, help=jobs)
    args = parser.parse_args(argv)
    args.rows = [[part.strip() for part in row.split('|')] for row in args.rows]
    for row in args.rows:
        if len(row) != 2 or not all(row):
            parser.error(f'{" | ".join(row)!r} is not TITLE | TAG')
    titles = [title for title, _ in args.rows]
    if len({*titles}) < len(titles):
        parser.error(f'two rows are called {max(titles, key=titles.count)!r}')
    return args


def read_runs(tag):
    """Return {tag: content of its data file} of the runs of a tag or pattern. Raises UserError if there are none."""
    runs = {path.stem: path for path in sorted(DATA.glob('*.json')) if fnmatchcase(path.stem, tag)}
    contents = {}
    for name, path in runs.items():
        try:
            contents[name] = json.loads(path.read_text())
            curves = contents[name]['curves']
            if not curves['cl'] or not curves['mIoU']:
                raise KeyError
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f'{path} is damaged, or not of stage 1 with masks') from None
    if not contents:
        raise UserError(f'{tag}: no such run in {DATA}; run train_classification_with_puzzle.py first')
    settings = {name: provenance.common_settings(content.get('fingerprint', {})) for name, content in contents.items()}
    provenance.check_equal(settings)
    return contents


def check_masks(rows):
    """Raise UserError naming two runs of any rows whose CAMs were scored on different masks."""
    masks = [(tag, run.get('inputs', {}).get('scored masks')) for runs in rows.values() for tag, run in runs.items()]
    (first, expected), *others = masks
    other = next((tag for tag, found in others if found != expected), None)
    if other:
        raise UserError(f'{first} and {other} cannot be in one table: their CAMs were scored on different masks')


# At equal classification loss ---------------------------------------------------------------------------------------


def read_epochs(curves):
    """Return the mean L_cls of each epoch and the score after it, in %."""
    ends, scores = np.array(curves['mIoU']).T
    iterations, losses = np.array(curves['cl']).T
    starts = [0, *ends[:-1]]
    means = [losses[(start < iterations) & (iterations <= end)].mean() for start, end in zip(starts, ends, strict=True)]
    return np.array(means), scores


def score_at(losses, scores, level):
    """Return the score where the loss first reaches a level, interpolated between two epochs, or None."""
    for (before, score_before), (after, score) in pairwise(zip(losses, scores, strict=True)):
        if before >= level >= after:
            share = (before - level) / (before - after) if before > after else 0
            return (1 - share) * score_before + share * score
    return None


def format_scores(scores):
    """Return the mean and standard deviation of the scores of runs, with the number of runs that reached the level."""
    reached = [score for score in scores if score is not None]
    if not reached:
        return ''
    mean = f'{np.mean(reached):.2f}'
    if len(reached) > 1:
        mean += f' +- {np.std(reached, ddof=1):.2f}'
    return mean if len(reached) == len(scores) else f'{mean} ({len(reached)} of {len(scores)})'


def tabulate_levels(rows, levels):
    """Return the table of scores at equal L_cls, a column per row, with the final scores."""
    epochs = {title: [read_epochs(run['curves']) for run in runs.values()] for title, runs in rows.items()}
    lines = [['L_cls', *epochs]]
    for level in sorted(set(levels), reverse=True):
        scores = [format_scores([score_at(*run, level) for run in runs]) for runs in epochs.values()]
        lines.append([f'{level:g}', *scores])
    lines.append(['end: mIoU %', *(format_scores([scores[-1] for _, scores in runs]) for runs in epochs.values())])
    lines.append(['end: L_cls', *(f'{np.mean([losses[-1] for losses, _ in runs]):.3f}' for runs in epochs.values())])
    return lines


# Each scale alone ---------------------------------------------------------------------------------------------------


def cams_of(tag, scale):
    return f'{tag}@train@scale={scale}'


def plan_scales(rows, scales):
    """Return {name: commands} that score the CAMs of every run at every scale that has no result yet."""
    planned = {}
    for runs in rows.values():
        for tag, run in runs.items():
            options = run['options']
            data = ['--dataset', options['dataset'], '--data_dir', options['data_dir'], '--domain', 'train']
            commands = []
            for scale in scales:
                if not formats.result_path(f'{cams_of(tag, scale)}@train').is_file():
                    infer = ['inference_classification.py', *data, '--num_workers', '1', '--tag', tag]
                    commands.append([*infer, '--scales', scale])
                    commands.append(['evaluate.py', *data, '--experiment_name', cams_of(tag, scale)])
            if commands:
                planned[f'{tag}@scales'] = commands
    return planned


def plan_tables(rows, scales):
    """Return {title: command} that prints the results of each scale."""
    tables = {}
    for scale in scales:
        lines = [f'{title} | {cams_of(tag, scale)}@train' for title, tag in rows]
        tables[f'Scale {scale}'] = ['-m', 'tools.summarize', *lines]
    return tables


def main(args):
    rows = {title: read_runs(tag) for title, tag in args.rows}
    check_masks(rows)
    print(tabulate(tabulate_levels(rows, args.levels), 'firstrow', tablefmt='pipe', disable_numparse=True))
    if args.scales:
        scales = args.scales.split(',')
        execute_every_run(plan_scales(rows, scales), args.jobs)
        execute_summaries(plan_tables(args.rows, scales))


if __name__ == '__main__':
    script.run(main, parse_args)
