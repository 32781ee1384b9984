"""Time each stage against the plain way, side by side in one run; write benchmarks/RESULTS.md.

    python3 benchmarks/run.py                     everything (about 30 minutes on 2 CPU cores)
    python3 benchmarks/run.py --stage evaluate    one part; RESULTS.md keeps the others
    python3 benchmarks/run.py --device cuda       what a GPU changes: random_walk, pairs, cam, segmentation, train

Every figure is the median of --repeats runs, of more where they are short; each case has a process of its own, whose
growth in resident memory while it works is the peak. The plain ways are in benchmarks/reference.py;
tests/test_benchmarks.py shows that they agree.
"""

import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from datetime import date
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from tools.files import write_bytes

from benchmarks.cases import (
    draw_data,
    evaluate_case,
    inference_case,
    labels_case,
    loader_case,
    pairs_case,
    random_walk_case,
    train_case,
)
from tools import flags

RESULTS = ROOT / 'benchmarks' / 'RESULTS.md'
LEAST_SECONDS = 3  # of runs behind a median: the speed of a shared machine wavers within tenths of one


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    parser.add_argument('--stage', choices=STAGES, action='append', help='only this part; may be repeated')
    parser.add_argument('--repeats', type=flags.integer(1), default=5, help='least number of runs behind each median')
    flags.add_device(parser)
    return parser.parse_args(argv)


# Measuring ----------------------------------------------------------------------------------------------------------


def in_child(queue, case, repeats):
    """Time a case in a process of its own: median seconds, peak memory in MB, and the network's share of the time.

    The peak is the growth of resident memory or, of a GPU's, what tensors took; the share is None for other cases.
    """
    on_gpu = case.keywords['device'].startswith('cuda')
    if on_gpu:
        import torch

        torch.cuda.set_device(torch.device(case.keywords['device']).index or 0)  # what is asked below is asked of it
    work = case()
    if repeats > 1:
        work()  # warm: first use of libraries, files in the page cache
    before = resident()
    seconds, shares = [], []
    while len(seconds) < repeats or (repeats > 1 and sum(seconds) < LEAST_SECONDS):
        start = time.perf_counter()
        busy = work()
        seconds.append(time.perf_counter() - start)
        shares.append(busy / seconds[-1] if isinstance(busy, float) else None)
    peak = max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**20
    queue.put((statistics.median(seconds), peak, None if None in shares else statistics.median(shares)))


def resident():
    pages = int(Path('/proc/self/statm').read_text().split()[1]) if Path('/proc/self/statm').exists() else 0
    return pages * resource.getpagesize() / 2**20


def measure(case, repeats):
    """What `in_child` found; None where the case failed, too large for a GPU's memory, say (its error is printed)."""
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=in_child, args=(queue, case, repeats))
    process.start()
    while process.is_alive() and queue.empty():
        time.sleep(0.05)
    result = None if queue.empty() and process.exitcode else queue.get()
    process.join()
    return result


def row_of(title, plain, ours):
    """A row of the table, printed too; `plain` is () where there is no plain way."""
    if ours and ours[2] is not None:
        title += f'; the network works {100 * ours[2]:.0f} % of the time'
    seconds = [f'{case[0]:.3g} s' if case else FAILED if case is None else '' for case in (plain, ours)]
    peaks = [f'{case[1]:.0f} MB' if case else '' for case in (plain, ours)]
    row = (title, *seconds, f'{plain[0] / ours[0]:.2f}x' if plain and ours else '', *peaks)
    print(' | '.join(row), flush=True)
    return row


def compare(title, case, repeats, plain_repeats=None, **options):
    """The row of a case: the plain way beside ours, one after the other."""
    plain = measure(partial(case, 'plain', **options), plain_repeats or repeats)
    return row_of(title, plain, measure(partial(case, 'ours', **options), repeats))


def precisions(title, case, repeats, **options):
    """Rows of ours at each precision; the plain way has torch's defaults: convolutions in TF32, no matrices."""
    plain = measure(partial(case, 'plain', **options), repeats)
    return [
        row_of(f'{title}, {name}', plain, measure(partial(case, 'ours', precision=name, **options), repeats))
        for name in ('fp32', 'tf32', 'bf16')
    ]


def alone(title, case, repeats, **options):
    """A row without a plain way."""
    return row_of(title, (), measure(partial(case, 'ours', **options), repeats))


def random_walk_rows(args, folder):
    walk = partial(random_walk_case, device=args.device)
    repeats = args.repeats
    return [
        compare('94x125 map (a 500x375 image), 2 classes; plain: dense squaring', walk, repeats, 1, shape=(94, 125)),
        alone('160x160 map (a 640x640 image), 2 classes', walk, repeats, shape=(160, 160)),
    ]


def pairs_rows(args, folder):
    pairs = partial(pairs_case, device=args.device)
    return [
        compare('affinities of 8 edge maps, forward and backward; plain: gather', pairs, args.repeats, what='edges'),
        compare('labels of the pairs of 8 maps; plain: float32', pairs, args.repeats, what='labels'),
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
        rows = [precisions(f'{title}, {net}', cams, args.repeats, network=net, count=12) for net in nets]
        return sum(rows, [])
    return [
        compare('12 images, 4 scales, resnest14_narrow', cams, args.repeats, network='resnest14_narrow', count=12),
        compare('4 images, 4 scales, mobilenet_v2', cams, args.repeats, network='mobilenet_v2', count=4),
        compare('4 images, 4 scales, resnet50', cams, args.repeats, network='resnet50', count=4),
    ]


def segmentation_rows(args, folder):
    predict = partial(inference_case, what='segmentation', device=args.device, folder=folder)
    if args.device.startswith('cuda'):
        return precisions('12 images, resnest101', predict, args.repeats, network='resnest101', count=12)
    title = '8 images, 4 scales, CRF, DeepLabv3+ on resnest14_narrow'
    return [compare(title, predict, args.repeats, network='resnest14_narrow', count=8)]


def loader_rows(args, folder):
    load = partial(loader_case, device='cpu', folder=folder)
    return [
        compare('12 images to 512x512, one process; bytes out', load, args.repeats, normalise=False),
        compare('the same, normalised in that process', load, args.repeats, normalise=True),
        compare('bytes out, `--resize torch`', load, args.repeats, normalise=False, resize='torch'),
        compare('normalised, `--resize torch`', load, args.repeats, normalise=True, resize='torch'),
    ]


def train_rows(args, folder):
    train = partial(train_case, device=args.device)
    if args.device.startswith('cuda'):
        rows = [
            precisions(
                f'{what} step, {net}, 32 images of 512', train, args.repeats, what=what, network=net, size=512, batch=32
            )
            for what in ('classifier', 'affinitynet', 'deeplab')
            for net in ('resnet50', 'resnest101')
        ]
        return sum(rows, [])
    return [
        compare('AffinityNet step, 4 images of 256; plain: anomaly detection', train, args.repeats, what='affinitynet'),
        compare('DeepLabv3+ step, 4 images of 256; plain: anomaly detection', train, args.repeats, what='deeplab'),
        compare('classifier step with tiles, 4 images of 256', train, args.repeats, what='classifier'),
        compare('the same, 512 pixels', train, args.repeats, what='classifier', size=512),
        compare('the same, 256 pixels, resnest14', train, args.repeats, what='classifier', network='resnest14'),
    ]


def files_rows(args, folder):
    """Bytes on disk, and how far they move the mIoU at the thresholds used."""
    import evaluate
    from benchmarks import reference

    info, ids = draw_data(folder)
    plain = sum(reference.npz_bytes(**dict(np.load(f'plain/{i}.npz'))) for i in ids)
    ours = sum(Path(f'{kind}/{i}.npz').stat().st_size for kind in ('cams', 'walked') for i in ids)
    row = ('CAMs and walked CAMs of 12 images', f'{plain / 2**20:.1f} MB', f'{ours / 2**20:.1f} MB')
    rows = [(*row, f'{plain / ours:.2f}x', '', '')]
    score = Namespace(data_dir='data', max_th=0.5, threshold=None, num_workers=0)
    masks = Path('data/SegmentationClass')
    for what, mode, array, where, thresholds in (
        ('CAMs', 'npy', 'hr_cam', 'cams', [0.10, 0.40]),
        ('walked CAMs', 'rw', 'rw', 'walked', [0.35]),
    ):
        kept = dict(evaluate.count(score, mode, Path(where), ids, info))
        counts = reference.sweep(Path('plain'), masks, ids, info.num_classes + 1, thresholds, array)
        for threshold in thresholds:
            target, predicted, both = counts[threshold]
            iou = both / (target + predicted - both)
            miou = f'{100 * np.nanmean(iou):.3f} %', f'{100 * kept[threshold].miou():.3f} %'
            rows.append((f'mIoU of the {what} at threshold {threshold:.2f}', *miou, '', '', ''))
    for row in rows:
        print(' | '.join(row), flush=True)
    return rows


def startup_rows(args, folder):
    rows = []
    for script in sorted(ROOT.glob('*.py')):
        seconds = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            subprocess.run([sys.executable, script, '--help'], stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - start)
        rows.append((f'{script.name} --help', '', f'{statistics.median(seconds):.3g} s', '', '', ''))
        print(' | '.join(rows[-1]), flush=True)
    return rows


STAGES = ('random_walk', 'pairs', 'labels', 'evaluate', 'cam', 'segmentation', 'loader', 'train', 'files', 'startup')
ON_GPU = ('random_walk', 'pairs', 'cam', 'segmentation', 'train')
FAILED = 'failed'
HEADER = ('', 'plain', 'here', 'ratio', 'plain peak', 'peak')


def machine(device):
    """What the figures were taken on."""
    import torch

    name = platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
        name = lines[0].split(':')[1].strip() if lines else name
    cpu = f'{os.cpu_count()} cores of {name}, {torch.get_num_threads()} threads'
    what = f'{cpu}, Python {platform.python_version()}, torch {torch.__version__}'
    if device.startswith('cuda'):
        what += f', {torch.cuda.get_device_name(device)}'
    return f'{date.today()}, commit {commit()}, {what}'


def commit():
    """The commit that is measured, -dirty where more than the results differs from it."""

    def git(*words):
        return subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    changed = git('status', '--porcelain', '--', '.', ':!benchmarks/RESULTS.*')
    return git('rev-parse', '--short', 'HEAD') + ('-dirty' if changed else '')


def write_results(tables):
    """RESULTS.md from {part and device: [line about the machine, rows]}, which lies beside it as JSON."""
    lines = [
        '# Measured against the plain way',
        '',
        'Made by `python3 benchmarks/run.py` (see there); do not edit.',
        '',
    ]
    lines += [
        'Medians; each case in a process of its own; peak is its growth in resident memory while it works,',
        'on a GPU what its tensors take, the model with them.',
        '',
    ]
    for part, (where, rows) in sorted(tables.items()):
        lines += [f'## {part}', '', where, '', '| ' + ' | '.join(HEADER) + ' |', '|' + '---|' * len(HEADER)]
        lines += ['| ' + ' | '.join(row) + ' |' for row in rows] + ['']
    if not any('cuda' in part for part in tables):
        rest = f'`python3 benchmarks/run.py --device cuda` adds {", ".join(ON_GPU)}'
        lines += [f'GPU: not measured ({rest}).', '']
    write_bytes(RESULTS, '\n'.join(lines).encode())
    write_bytes(RESULTS.with_suffix('.json'), json.dumps(tables, indent=1).encode())


def main(args):
    from tools.device import pick_device

    args.device = str(pick_device(args.device))
    saved = RESULTS.with_suffix('.json')
    tables = json.loads(saved.read_text()) if saved.is_file() else {}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for part in args.stage or (ON_GPU if args.device.startswith('cuda') else STAGES):
            print(f'{part}: {" | ".join(HEADER[1:])}', flush=True)
            rows = globals()[f'{part}_rows'](args, Path(folder))
            os.chdir(ROOT)
            name = f'{part} (cuda)' if args.device.startswith('cuda') else part
            tables[name] = (machine(args.device), rows)
            write_results(tables)
            failed = failed or any(FAILED in row for row in rows)
    if failed:
        sys.exit('some cases failed: their errors stand above')


if __name__ == '__main__':
    main(parse_args())
