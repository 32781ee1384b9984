"""The tables of tools.report: rows of text, for its template."""

import sys

import numpy as np

from core import UserError
from core.data.entries import read_json
from core.image_scores import SIZES
from core.intervals import difference_interval, score_interval
from core.metrics import ERROR_SHARES, error_shares
from tools.reporting import find, provenance
from tools.reporting.entries import stage_number
from util import flags
from util.store import results

MOST_COMPARED = 12  # most outputs whose differences are tabulated: 66 pairs
PUBLISHED = flags.REPOSITORY / 'data' / 'published.json'


def tabulate_chain(entries, counts, two_fold, published):
    """Return the rows of the scored entries, as text by column.

    counts and two_fold: of each entry what find.read_counts returns, for FP and FN, and for the mIoU.
    """
    rows = []
    for entry, count, other in zip(entries, counts, two_fold, strict=True):
        result = entry.result
        if result is None:
            continue
        head, swept = find.headline(result), len(result['sweep']) > 1
        interval = {name: percent_range(ends) for name, ends in intervals_of(count).items()}
        of_head = intervals_of(other).get('miou') if head else None
        threshold = results.format_threshold(result['threshold'])
        rows.append(
            {
                'title': entry.title,
                'miou': f'{head["miou"]:.2f}' if head else '',
                'interval': percent_range(of_head) if of_head else '',
                'dice': f'{head["dice"]:.1f}' if head else '',
                'best': f'{result["miou"]:.2f}' if swept else '',
                'fp': f'{result["fp"]:.1f}',
                'fn': f'{result["fn"]:.1f}',
                'fp_interval': interval.get('fp', ''),
                'fn_interval': interval.get('fn', ''),
                'threshold': threshold if result['threshold'] is not None else '',
                'choice': result.get('threshold_choice') or '',
                'images': result['images'],
                'domain': entry.domain,
                'background': f'{find.baseline(result):.1f}',
                'published': '' if entry.crf else published.get((entry.kind, entry.domain), ''),
            }
        )
    return rows


def tabulate_means(entries):
    """Return the mean scores over the seeds of each pattern, as text by column; [] without two seeds of a stage."""
    groups = {}
    for entry in entries:
        if entry.pattern and entry.result:
            groups.setdefault((entry.pattern, entry.kind + entry.crf, entry.domain), []).append(entry)
    rows = []
    for (pattern, kind, domain), members in groups.items():
        runs = [entry.result for entry in members]
        try:
            seeds = sorted({find.seed_of(result) for result in runs})
        except UserError:
            continue
        if len(runs) < 2 or len(seeds) < len(runs):
            continue
        try:
            find.check_comparable(runs)
            provenance.check_mean(runs)
        except UserError as error:
            print(f'warning: no mean: {error}', file=sys.stderr)
            continue
        heads = [find.headline(result) for result in runs]
        miou, best = list_mious(runs)
        rows.append(
            {
                'title': members[0].given or f'{kind}: {pattern}',
                'seeds': ', '.join(map(str, seeds)),
                'miou': miou,
                'dice': format_mean([head['dice'] for head in heads]) if all(heads) else '-',
                'best': best,
                'fp': format_mean([result['fp'] for result in runs]),
                'fn': format_mean([result['fn'] for result in runs]),
                'domain': domain,
            }
        )
    return rows


def list_mious(runs) -> tuple[str, str]:
    """Return the mean mIoU, '-' for maps without two-fold scores, and of maps also that at the best thresholds."""
    heads = [find.headline(result) for result in runs]
    miou = format_mean([head['miou'] for head in heads]) if all(heads) else '-'
    swept = all(len(result['sweep']) > 1 for result in runs)
    return miou, format_mean([result['miou'] for result in runs]) if swept else ''


def format_mean(values) -> str:
    """Return the mean, of several values with the standard deviation."""
    return f'{np.mean(values):.2f}' + (f' +- {np.std(values, ddof=1):.2f}' if len(values) > 1 else '')


def intervals_of(count) -> dict:
    """Return the intervals of counts per image as fractions, {} of fewer than two images."""
    return score_interval(count[1]) if count and len(count[0]) > 1 else {}


def tabulate_objects(entries):
    """Return rows of the scored entries: the title, false masks, and the IoU and number of objects by size, as text."""
    rows = []
    for entry in entries:
        if entry.result:
            wrong, sizes = entry.result['false_masks'], entry.result['by_size']
            cells = [(percent(sizes[size]['iou']), sizes[size]['objects']) for size in SIZES]
            rows.append((entry.label, (percent(wrong['share']), wrong['images']), cells))
    return rows


def percent(value) -> str:
    return '-' if value is None else f'{value:.1f}'


def percent_range(ends) -> str:
    return ' to '.join(f'{100 * end:.2f}' for end in ends)


def find_published(steps, class_names) -> tuple[str, dict[tuple[str, str], float]]:
    """Return the backbone and the paper's figures by kind and list; {} unless the classes are VOC's.

    The figures are for the backbone that was used or, if the paper has none for it, for ResNeSt-101.
    """
    published = read_json(PUBLISHED)
    if list(class_names) != read_json(PUBLISHED.with_name(published['dataset']))['classes']:
        return '', {}
    used = [step.options.get('architecture') for step in steps if step.kind == 'classifier']
    backbone = next((name for name in used if name in published['rows']), 'resnest101')
    figures = published['rows'][backbone]
    return backbone, {(kind, published['lists'][kind]): figure for kind, figure in figures.items()}


def tabulate_differences(entries, counts):
    """Return the differences of all pairs of outputs scored on the same images, with intervals; [] if too many.

    counts: as find.read_counts returns them for two_fold.
    """
    rows = []
    scored = [
        (entry, count)
        for entry, count in zip(entries, counts, strict=True)
        if count and len(count[0]) > 1 and find.headline(entry.result)
    ]
    if len(scored) > MOST_COMPARED:
        return []
    for i, (first, before) in enumerate(scored):
        for second, after in scored[i + 1 :]:
            if before[0] != after[0] or first.scores.get('masks') != second.scores.get('masks'):
                continue
            interval = difference_interval(before[1], after[1])['miou']
            change = find.headline(second.result)['miou'] - find.headline(first.result)['miou']
            contains_zero = interval[0] <= 0 <= interval[1]
            ends = ' to '.join(f'{100 * end:+.2f}' for end in interval)
            best = f'{second.result["miou"] - first.result["miou"]:+.2f}'
            rows.append((first.label, second.label, f'{change:+.2f}', ends, contains_zero, best))
    return rows


def tabulate_classes(entries):
    """Return the labels of the scored entries, and rows of the IoU per class with the difference to the first entry."""
    scored = [entry for entry in entries if 'iou' in entry.scores]
    rows = []
    for name in scored[0].result['iou'] if scored else ():
        values = [entry.result['iou'][name] for entry in scored]
        differences = ['' if None in (values[0], value) else f'{value - values[0]:+.2f}' for value in values]
        cells = ['-' if value is None else f'{value:.2f}' for value in values]
        rows.append((name, list(zip(cells, ['', *differences[1:]], strict=True))))
    return [entry.label for entry in scored], rows


def describe_failures(result, names):
    """Return the classes of a result, lowest IoU first, with their errors: dicts of text."""
    confusion, wrong = np.array(result['confusion']), result['false_masks']['classes']
    shares = error_shares(confusion)
    rows = []
    for index in np.argsort(np.nan_to_num(shares[:, 0], nan=2)):
        if np.isnan(shares[index, 0]):
            continue
        errors = shares[index, 1:]
        others = confusion[index] + confusion[:, index]
        others[[0, index]] = 0
        worst = int(others.argmax())
        rows.append(
            {
                'index': int(index),
                'name': names[index],
                'shares': [f'{100 * share:.1f}' for share in shares[index]],
                'false_masks': percent(wrong.get(names[index])),
                'cause': ERROR_SHARES[1 + int(errors.argmax())] if errors.any() else '',
                'confused': names[worst] if others[worst] else '',
            }
        )
    return rows


def tabulate_steps(steps):
    """Return the steps of each kind of stage, and the options in which they differ."""
    groups = []
    for kind in sorted({step.kind for step in steps}, key=stage_number):
        members = [step for step in steps if step.kind == kind]
        names = sorted({name for step in members for name in step.options})
        table = [(name, [format_option(step.options.get(name)) for step in members]) for name in names]
        differing = [(name, values) for name, values in table if len(set(values)) > 1]
        groups.append({'kind': kind, 'steps': members, 'differing': differing, 'options': table})
    return groups


def list_environments(steps):
    """Return the distinct sets of versions as text, with the names of the steps that used them."""
    environments = {}
    for step in steps:
        text = ', '.join(f'{name} {version}' for name, version in step.versions.items() if name != 'code')
        environments.setdefault(text or 'not recorded', []).append(step.name)
    return environments


def format_option(value) -> str:
    return '-' if value is None else str(value)


def format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return 'not recorded'
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{minutes} min {rest} s'
