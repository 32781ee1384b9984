"""Time each stage against its reference implementation, and write benchmarks/RESULTS.md and RESULTS.json.

    python3 -m benchmarks.run                     everything (about 30 minutes on 2 CPU cores)
    python3 -m benchmarks.run --stage evaluate    one table; the others are kept
    python3 -m benchmarks.run --device cuda       what a GPU changes: random_walk, pairs, cam, segmentation, train,
                                                  micro_batches

Every time is the median of --repeats runs, or of more if they are short. Each case runs in a separate process, and its
memory is the growth of that process while it works. The references are in benchmarks/reference.py;
tests/stages/test_benchmarks.py shows that they compute the same.
"""

import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from benchmarks import reference
from benchmarks.cases import (
    FILE_STAGES,
    draw_data,
    evaluate_case,
    inference_case,
    labels_case,
    loader_case,
    micro_batches_case,
    open_data,
    open_maps,
    pairs_case,
    random_walk_case,
    share_steps,
    stage_case,
    train_case,
)
from core import UserError
from core.data.files import fits, load_json
from core.metrics import class_counts, mean_scores
from util import flags, script
from util.flags import REPOSITORY
from util.parallel.devices import pick_device
from util.store import results
from util.store.files import check_output, write_bytes, write_json

MIN_SECONDS = 3  # seconds of runs behind a median, because the speed of a shared machine varies from moment to moment
ON_GPU = ('random_walk', 'pairs', 'cam', 'segmentation', 'train', 'micro_batches')
HEADERS = ('', 'reference', 'ours', 'ratio', 'reference, memory', 'ours, memory')
FAILED = 'failed'


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    group = parser.groups['run and output']
    group.add_argument('--stage', choices=TABLES, action='append', help='only this table; may be repeated')
    group.add_argument('--repeats', type=flags.integer(1), default=5, help='minimum number of runs behind a median')
    out = REPOSITORY / 'benchmarks' / 'RESULTS.md'
    group.add_argument('--out', type=Path, default=out, help='Markdown file to write, with a JSON file next to it')
    group.add_argument('--device', default='auto', help='auto (GPU if available, else CPU), cpu, cuda, cuda:1, ...')
    args = parser.parse_args(argv)
    if args.out.suffix != '.md':
        parser.error(f'--out {args.out}: must end in .md')
    return args


# Measuring ----------------------------------------------------------------------------------------------------------


def run_case(queue: multiprocessing.Queue, case: Callable, repeats: int) -> None:
    """Put the median seconds of a case, its peak memory in MB and the network's share of the time into the queue.

    The peak is the growth of resident memory or, on a GPU, all tensors. The share is None for cases without a network.
    """
    work = case()
    device = torch.device(case.keywords['device'])
    if device.type == 'cuda':
        torch.cuda.set_device(device.index or 0)  # the statistics below are for the current device
    if repeats > 1:
        work()  # warm up: first use of libraries, files in the page cache
    Path('/proc/self/clear_refs').write_text('5')  # reset the peak, which imports may have raised
    before = read_memory('VmRSS')
    seconds, shares = [], []
    while len(seconds) < repeats or (repeats > 1 and sum(seconds) < MIN_SECONDS):
        start = time.perf_counter()
        busy = work()
        seconds.append(time.perf_counter() - start)
        shares.append(busy / seconds[-1] if isinstance(busy, float) else None)
    peak = max(0.0, read_memory('VmHWM') - before)
    if device.type == 'cuda':
        peak = torch.cuda.max_memory_allocated() / 2**20
    queue.put((statistics.median(seconds), peak, None if None in shares else statistics.median(shares)))


def read_memory(name: str) -> float:
    """Return the resident memory of this process (VmRSS) or its peak (VmHWM) in MB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f'{name}:')).split()[1]) / 1024


def measure(case: Callable, repeats: int) -> tuple[float, float, float | None] | None:
    """Return the result of `run_case` in a new process, or None if it failed (the process prints its error)."""
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=run_case, args=(queue, case, repeats))
    process.start()
    while process.is_alive() and queue.empty():
        time.sleep(0.05)
    result = None if queue.empty() and process.exitcode else queue.get()
    process.join()
    return result


def format_row(title: str, baseline: tuple | None, ours: tuple | None) -> tuple[str, ...]:
    """Return a row of the table and print it as progress; `baseline` is () for a case without a reference."""
    if ours and ours[2] is not None:
        title += f'; network busy {100 * ours[2]:.0f} % of the time'
    seconds = [f'{case[0]:.3g} s' if case else FAILED if case is None else '' for case in (baseline, ours)]
    peaks = [f'{case[1]:.0f} MB' if case else '' for case in (baseline, ours)]
    row = (title, *seconds, f'{baseline[0] / ours[0]:.2f}x' if baseline and ours else '', *peaks)
    print(' | '.join(row), file=sys.stderr, flush=True)
    return row


def compare(title: str, case: Callable, repeats: int, reference_repeats: int | None = None, **options) -> tuple:
    """Return the row of a case: its reference, then ours."""
    baseline = measure(partial(case, 'reference', **options), reference_repeats or repeats)
    return format_row(title, baseline, measure(partial(case, 'ours', **options), repeats))


def compare_precisions(title: str, case: Callable, repeats: int, **options) -> list[tuple]:
    """Return a row per precision of ours. The reference has torch's defaults: TF32 for convolutions only."""
    baseline = measure(partial(case, 'reference', **options), repeats)
    return [
        format_row(f'{title}, {name}', baseline, measure(partial(case, 'ours', precision=name, **options), repeats))
        for name in ('fp32', 'tf32', 'bf16')
    ]


def measure_ours(title: str, case: Callable, repeats: int, **options) -> tuple:
    """Return a row without a reference."""
    return format_row(title, (), measure(partial(case, 'ours', **options), repeats))


# Tables -------------------------------------------------------------------------------------------------------------


def random_walk_rows(args, folder):
    walk = partial(random_walk_case, device=args.device)
    title = '94x125 map (a 500x375 image), 2 classes; reference: dense squaring'
    return [
        compare('32x32 map, 2 classes', walk, args.repeats, shape=(32, 32)),
        compare(title, walk, args.repeats, 1, shape=(94, 125)),
        measure_ours('160x160 map (a 640x640 image), 2 classes', walk, args.repeats, shape=(160, 160)),
    ]


def pairs_rows(args, folder):
    pairs = partial(pairs_case, device=args.device)
    title = 'affinities of 8 edge maps, forward and backward; reference: gather'
    return [
        compare(title, pairs, args.repeats, what='edges'),
        compare('labels of the pairs of 8 maps; reference: float32', pairs, args.repeats, what='labels'),
    ]


def labels_rows(args, folder):
    labels = partial(labels_case, device='cpu', folder=folder)
    return [
        compare('36 affinity labels, 1 process', labels, args.repeats, what='affinity', workers=0),
        compare('36 affinity labels, 2 processes', labels, args.repeats, what='affinity', workers=2),
        compare('36 pseudo-labels, 2 processes', labels, args.repeats, what='pseudo', workers=2),
    ]


def evaluate_rows(args, folder):
    score = partial(evaluate_case, device='cpu', folder=folder)
    return [
        compare('15 thresholds, 48 images, 21 classes, 1 process', score, args.repeats, workers=0),
        compare('the same, 2 processes', score, args.repeats, workers=2),
    ]


def cam_rows(args, folder):
    cams = partial(inference_case, what='cam', device=args.device, folder=folder)
    if args.device.startswith('cuda'):
        title, nets = '12 images, 4 scales', ('resnet50', 'resnest101')
        rows = [compare_precisions(f'{title}, {net}', cams, args.repeats, network=net, count=12) for net in nets]
        return sum(rows, [])
    return [
        compare('12 images, 4 scales, resnest14_narrow', cams, args.repeats, network='resnest14_narrow', count=12),
        compare('4 images, 4 scales, mobilenet_v2', cams, args.repeats, network='mobilenet_v2', count=4),
        compare('4 images, 4 scales, resnet50', cams, args.repeats, network='resnet50', count=4),
    ]


def segmentation_rows(args, folder):
    predict = partial(inference_case, what='segmentation', device=args.device, folder=folder)
    if args.device.startswith('cuda'):
        return compare_precisions('12 images, resnest101', predict, args.repeats, network='resnest101', count=12)
    title = '8 images, 4 scales, CRF, DeepLabv3+ on resnest14_narrow'
    return [compare(title, predict, args.repeats, network='resnest14_narrow', count=8)]


def loader_rows(args, folder):
    load = partial(loader_case, device='cpu', folder=folder)
    return [
        compare('12 images to 512x512, one process; bytes out', load, args.repeats, normalised=False),
        compare('the same, normalised in the process', load, args.repeats, normalised=True),
        compare('bytes out, `--resize torch`', load, args.repeats, normalised=False, resize='torch'),
        compare('normalised, `--resize torch`', load, args.repeats, normalised=True, resize='torch'),
    ]


def train_rows(args, folder):
    train = partial(train_case, device=args.device)
    if args.device.startswith('cuda'):
        rows = []
        for what in ('classifier', 'affinitynet', 'deeplab'):
            for net in ('resnet50', 'resnest101'):
                options = dict(what=what, network=net, size=512, batch=32)
                rows += compare_precisions(f'{what} step, {net}, 32 images of 512', train, args.repeats, **options)
        return rows
    anomalies = 'reference: anomaly detection'
    return [
        compare(f'AffinityNet step, 4 images of 256; {anomalies}', train, args.repeats, what='affinitynet'),
        compare(f'DeepLabv3+ step, 4 images of 256; {anomalies}', train, args.repeats, what='deeplab'),
        compare('classifier step with tiles, 4 images of 256', train, args.repeats, what='classifier'),
        compare('the same, 512 pixels', train, args.repeats, what='classifier', size=512),
        compare('the same, 256 pixels, resnest14', train, args.repeats, what='classifier', network='resnest14'),
    ]


def micro_batches_rows(args, folder):
    """Return rows of one run each. A warm-up would leave memory in malloc, which would hide the peak."""
    step = partial(micro_batches_case, device=args.device)
    how = '16 images of 256, resnet50; reference: at once, ours: in 4 parts'
    return [
        compare(f'classifier step with tiles and 4 replicas, {how}', step, 1, what='classifier'),
        compare(f'AffinityNet step, {how}', step, 1, what='affinitynet'),
        compare(f'DeepLabv3+ step, {how}', step, 1, what='deeplab'),
    ]


def processes_rows(args, folder):
    """Return rows of CPU seconds of a step, added over processes: they share cores, so wall time means little."""
    rows = []
    for what in ('classifier', 'affinitynet', 'deeplab'):
        seconds = {}
        for count in (1, 2, 4):
            measured = [share_steps(what, count, args.device) for _ in range(args.repeats)]
            seconds[count] = statistics.median(measured)
        for count in (2, 4):
            one, all_together = (f'{seconds[number]:.3g} s' for number in (1, count))
            title = f'{what} step, 32 images of 256, mobilenet_v2; reference: 1 process, ours: {count}'
            rows.append((title, one, all_together, f'{seconds[1] / seconds[count]:.2f}x', '', ''))
    return rows


def files_rows(args, folder):
    """Return rows of bytes on disk, and of the effect of float16 on the mIoU at the default thresholds."""
    dataset, ids = open_data(folder)
    cams, random_walks = open_maps(folder, dataset, ids)
    baseline = sum(reference.npz_bytes(**dict(np.load(folder / 'reference' / f'{i}.npz'))) for i in ids)
    ours = sum(maps.file(i).stat().st_size for maps in (cams, random_walks) for i in ids)
    sizes = f'{baseline / 2**20:.1f} MB', f'{ours / 2**20:.1f} MB', f'{baseline / ours:.2f}x'
    rows = [('CAMs and random-walk CAMs of 12 images', *sizes, '', '')]
    masks = folder / 'data' / 'SegmentationClass'
    for title, array, maps, thresholds in (
        ('CAMs', 'hr_cam', cams, [0.10, 0.40]),
        ('random-walk CAMs', 'rw', random_walks, [0.35]),
    ):
        total, _ = results.count_pixels(maps, dataset, ids, thresholds, num_workers=0)
        found = mean_scores(class_counts(total))['miou']
        counts = reference.sweep(folder / 'reference', masks, ids, dataset.num_classes + 1, thresholds, array)
        for threshold, miou in zip(thresholds, found, strict=True):
            target, predicted, both = counts[threshold]
            iou = both / (target + predicted - both)
            mious = f'{100 * np.nanmean(iou):.3f} %', f'{100 * miou:.3f} %'
            rows.append((f'mIoU of the {title} at threshold {threshold:.2f}', *mious, '', '', ''))
    return rows


def memory_rows(args, folder):
    """Return rows of peak memory for one photograph, for stages that write files, with few and with all classes."""
    rows = []
    for width, height in ((640, 640), (2000, 1500)):
        case = partial(stage_case, device=args.device, folder=folder, size=(width, height))
        for name in FILE_STAGES:
            for tagged in (20,) if name.endswith('stage 8') else (3, 20):
                title = f'{width}x{height}, {tagged} classes: {name}'
                rows.append(measure_ours(title, case, 1, stage=name, tagged=tagged))
    return rows


def startup_rows(args, folder):
    rows = []
    for path in sorted(REPOSITORY.glob('*.py')):
        seconds = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            subprocess.run([sys.executable, path, '--help'], stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - start)
        rows.append((f'{path.name} --help', '', f'{statistics.median(seconds):.3g} s', '', '', ''))
    return rows


TABLES = {
    'random_walk': random_walk_rows,
    'pairs': pairs_rows,
    'labels': labels_rows,
    'evaluate': evaluate_rows,
    'cam': cam_rows,
    'segmentation': segmentation_rows,
    'loader': loader_rows,
    'train': train_rows,
    'micro_batches': micro_batches_rows,
    'processes': processes_rows,
    'files': files_rows,
    'memory': memory_rows,
    'startup': startup_rows,
}


# Results ------------------------------------------------------------------------------------------------------------


def describe_machine(device: str) -> str:
    """Return the date, the commit, the processor and the versions."""
    name = platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
        name = lines[0].split(':')[1].strip() if lines else name
    cpu = f'{os.cpu_count()} cores of {name}, {torch.get_num_threads()} threads'
    what = f'{cpu}, Python {platform.python_version()}, torch {torch.__version__}'
    if device.startswith('cuda'):
        what += f', {torch.cuda.get_device_name(device)}'
    return f'{date.today()}, commit {describe_commit()}, {what}'


def describe_commit() -> str:
    """Return the commit, with -dirty if anything but the results differs from it."""

    def git(*words):
        return subprocess.run(['git', '-C', str(REPOSITORY), *words], capture_output=True, text=True).stdout.strip()

    changed = git('status', '--porcelain', '--', '.', ':!benchmarks/RESULTS.*')
    return git('rev-parse', '--short', 'HEAD') + ('-dirty' if changed else '')


def format_table(rows: list[tuple]) -> str:
    """Return Markdown, the first column to the left and the others to the right."""
    align = ('left', *('right' for _ in HEADERS[1:]))
    return tabulate(rows, HEADERS, tablefmt='pipe', colalign=align, disable_numparse=True)


def format_results(tables: dict) -> str:
    """Return the text of RESULTS.md from {table and device: {'measured': machine and commit, 'rows': rows}}."""
    lines = [
        '# Benchmarks',
        '',
        'Each stage next to a straightforward implementation with the same results (`benchmarks/reference.py`).',
        'Generated by `python3 -m benchmarks.run`; do not edit.',
        '',
        'Times are medians. Each case runs in a separate process. Memory is the growth of resident memory while it',
        'works, or on a GPU all tensors including the model. Every table names the commit that it was measured at.',
        '',
    ]
    for name, table in sorted(tables.items()):
        lines += [f'## {name}', '', table['measured'], '', format_table(table['rows']), '']
    if not any('cuda' in name for name in tables):
        rest = f'`python3 -m benchmarks.run --device cuda` adds {", ".join(ON_GPU)}'
        lines += [f'GPU: not measured ({rest}).', '']
    return '\n'.join(lines)


def read_tables(out: Path) -> dict:
    """Return the tables of earlier runs. Raises UserError if one of the two files is of another program."""
    check_output(out, '--out', format_results({}).encode()[:100])
    saved = out.with_suffix('.json')
    if not saved.is_file():
        return {}
    try:
        tables = load_json(saved)
    except ValueError:
        tables = None
    if not fits(tables, {str: {'measured': str, 'rows': list}}):
        raise UserError(f'--out {out}: {saved} is not of this program: remove it or name another file')
    return tables


def main(args):
    device = args.device = str(pick_device(args.device))
    tables, saved = read_tables(args.out), args.out.with_suffix('.json')
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        draw_data(Path(folder))
        for name in args.stage or (ON_GPU if device.startswith('cuda') else TABLES):
            # Measure a table and print it.
            rows = TABLES[name](args, Path(folder))
            print(f'{name}\n\n{format_table(rows)}\n', flush=True)
            failed += [row[0] for row in rows if FAILED in row]

            # Write all tables, so that an interrupted run keeps those that are finished.
            title = f'{name} (cuda)' if device.startswith('cuda') else name
            tables[title] = {'measured': describe_machine(device), 'rows': rows}
            write_bytes(args.out, format_results(tables).encode())
            write_json(saved, tables)
    if failed:
        raise UserError(f'failed: {"; ".join(failed)} (their errors are printed above)')


if __name__ == '__main__':
    script.run(main, parse_args)
