"""Time each stage against the plain way, side by side in one run; write benchmarks/RESULTS.md.

    python3 benchmarks/run.py                     everything (about 15 minutes on 2 CPU cores)
    python3 benchmarks/run.py --stage evaluate    one part; RESULTS.md keeps the others
    python3 benchmarks/run.py --device cuda       what a GPU changes: random_walk, pairs, cam, segmentation, train

Every figure is the median of --repeats runs, each case in a process of its own; its growth in resident memory while it
works is the peak. The plain ways are in benchmarks/reference.py; tests/test_benchmarks.py shows that they agree.
"""

import io
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
from contextlib import redirect_stderr, redirect_stdout
from datetime import date
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from tools import flags
from tools.files import write_bytes, write_cam, write_rw

RESULTS = ROOT / 'benchmarks' / 'RESULTS.md'
SIZE = (375, 500)  # of a VOC image


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    parser.add_argument('--stage', choices=STAGES, action='append', help='only this part; may be repeated')
    parser.add_argument('--repeats', type=flags.integer(1), default=5, help='runs behind each median')
    flags.add_device(parser)
    return parser.parse_args(argv)


# Data: drawn scenes at VOC's size, with CAMs made from their masks --------------------------------------------------


def draw_data(folder: Path, count: int = 12) -> tuple[object, list[str]]:
    """A data set of 500-pixel scenes with CAMs, walked CAMs and a model's worth of files under experiments/."""
    import cv2

    from core.datasets import load_info, mask_path, read_labels, read_mask, xml_path
    from core.maps import strided_size
    from tools import make_demo_data

    os.chdir(folder)
    options = ['--out', 'data', '--num_train_aug', str(count), '--num_train', str(count), '--num_val', '1']
    if not Path('data/dataset.json').is_file():
        make_demo_data.main(make_demo_data.parse_args([*options, '--size', '500']))
    info = load_info('data/dataset.json')
    ids = info.ids('train')
    for image_id in ids:
        mask = read_mask(mask_path('data', image_id), info.num_classes)
        labels = read_labels(xml_path('data', image_id), info)
        keys = np.concatenate([[0], np.flatnonzero(labels) + 1])
        hr_cam = np.stack([cv2.GaussianBlur((mask == key).astype(np.float32), (0, 0), 25) for key in keys[1:]])
        hr_cam /= hr_cam.max((1, 2), keepdims=True) + 1e-5
        rows, columns = strided_size(mask.shape)
        cam = np.stack([cv2.resize(x, (columns, rows)) for x in hr_cam])
        write_cam(Path(f'cams/{image_id}.npz'), keys, cam, hr_cam)
        write_rw(Path(f'walked/{image_id}.npz'), keys, cam)
        buffer = Path(f'plain/{image_id}.npz')
        buffer.parent.mkdir(exist_ok=True)
        np.savez(buffer, keys=keys, cam=cam, hr_cam=hr_cam, rw=hr_cam)
    return info, ids


# Cases: each sets up and returns what is to be timed ----------------------------------------------------------------


def random_walk_case(way, device, shape):
    import torch

    from benchmarks import reference
    from core.random_walk import random_walk

    torch.set_flush_denormal(True)  # without it the dense form takes over half an hour
    generator = torch.Generator().manual_seed(0)
    edge = (torch.rand(shape, generator=generator) * 0.5).to(device)
    cam = torch.rand(2, *shape, generator=generator).to(device)
    walk = random_walk if way == 'ours' else reference.random_walk
    return lambda: finished(walk(cam, edge), device)


def pairs_case(way, device, what):
    import torch

    from benchmarks import reference
    from core.affinity import PathIndex, affinity_labels

    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(8, 128, 128, generator=generator).to(device).requires_grad_()
    label = torch.randint(0, 21, (8, 128, 128), generator=generator, dtype=torch.uint8).to(device)
    index = PathIndex(10, 128)
    sources, groups = reference.path_indices(10, (128, 128))
    groups_there = [group.to(device) for group in groups]

    def edges():
        edge.grad = None
        if way == 'ours':
            affinity = index.edge_to_affinity(edge)
        else:
            affinity = reference.edge_to_affinity(edge, groups_there)
        affinity.sum().backward()
        finished(edge.grad, device)

    def labels():
        if way == 'ours':
            return finished(affinity_labels(label, index, 20)[0], device)
        pairs = [reference.affinity_pairs(one, sources, groups) for one in label.cpu()]
        return [torch.stack(kind) for kind in zip(*pairs, strict=True)]

    return {'edges': edges, 'labels': labels}[what]


def labels_case(way, device, folder, what, workers):
    from PIL import Image

    import make_affinity_labels
    import make_pseudo_labels
    from benchmarks import reference
    from core.datasets import image_path
    from tools import stage

    info, ids = draw_data(folder)
    ids = ids * 3  # a list so short that one worker waits for the other's last image says little
    args = Namespace(data_dir='data', fg_threshold=0.40, bg_threshold=0.10, threshold=0.35, crf_iteration=1)

    def plain():
        for image_id in ids:
            image = np.array(Image.open(image_path('data', image_id)))
            with np.load(f'plain/{image_id}.npz') as file:
                keys, hr_cam, rw = file['keys'], file['hr_cam'], file['rw']
            if what == 'affinity':
                label = reference.affinity_label(image, keys, hr_cam)
            else:
                index = reference.predict(np.arange(len(keys)), rw, 0.35)
                label = keys[reference.crf_from_label(image, index, len(keys), 1)]
            Image.fromarray(label.astype(np.uint8)).save(f'{image_id}.png')

    def ours():
        if what == 'affinity':
            make = partial(make_affinity_labels.make_label, args=args, info=info, cams=Path('cams'), folder=Path('out'))
        else:
            make = partial(
                make_pseudo_labels.make_label, args=args, info=info, walked=Path('walked'), folder=Path('out')
            )
        list(stage.each(make, ids, workers, what))

    return plain if way == 'plain' else ours


def evaluate_case(way, device, folder, workers):
    import evaluate
    from benchmarks import reference

    info, ids = draw_data(folder)
    info, ids = Namespace(**{**vars(info), 'num_classes': 20}), ids * 4  # as many classes as VOC has
    thresholds = [round(0.05 * i, 2) for i in range(1, 16)]
    if way == 'plain':
        return lambda: reference.sweep(Path('plain'), Path('data/SegmentationClass'), ids, 21, thresholds)
    args = Namespace(data_dir='data', max_th=0.5, threshold=None, num_workers=workers)
    return lambda: evaluate.count(args, 'npy', Path('cams'), ids, info)


def inference_case(way, device, folder, what, network, count, precision='fp32'):
    """Stage 2 ('cam') or stage 8 ('segmentation') as a whole, the model lying ready."""
    import torch
    from PIL import Image

    import inference_classification
    import inference_segmentation
    from benchmarks import reference
    from core.datasets import image_path, read_labels, xml_path
    from core.networks import Classifier, DeepLabV3Plus
    from tools.checkpoint import save_model
    from tools.experiment import model_path

    info, ids = draw_data(folder)
    ids, scales = ids[:count], [0.5, 1.0, 1.5, 2.0]
    Path('data/some.txt').write_text('\n'.join(ids))
    lists = json.loads(Path('data/dataset.json').read_text())
    Path('data/some.json').write_text(json.dumps({**lists, 'lists': {'train': 'some.txt', 'val': 'some.txt'}}))
    torch.manual_seed(0)
    cams = what == 'cam'
    model = Classifier(network, info.num_classes) if cams else DeepLabV3Plus(network, info.num_classes + 1)
    words = '--data_dir data --dataset data/some.json --num_workers 2 --tag timed --overwrite'.split()
    words += ['--device', device, '--precision', precision, '--architecture' if cams else '--backbone', network]
    stage, work = (
        (inference_classification, 'multi_scale_cam') if cams else (inference_segmentation, 'multi_scale_logits')
    )

    def plain():
        for image_id in ids:
            image = Image.open(image_path('data', image_id)).convert('RGB')
            if cams:
                labels = read_labels(xml_path('data', image_id), info)
                keys, cam, hr_cam = reference.multi_scale_cam(model, image, labels, scales)
                np.savez(f'{image_id}.npz', keys=keys, cam=cam, hr_cam=hr_cam)
            else:
                label = reference.segmentation(model, image, scales, 10)
                Image.fromarray(label.astype(np.uint8)).save(f'{image_id}.png')

    if way == 'plain':
        model = model.eval().to(device)
        return plain
    save_model(model, model_path('timed'), architecture=network if cams else f'DeepLabv3+ {network} GN')
    args = stage.parse_args([*words, *(['--domain', 'train'] if cams else [])])
    busy = Busy(device)
    setattr(stage, work, busy.watch(getattr(stage, work)))

    def ours():
        busy.reset()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            stage.main(args)
        return busy.seconds()

    return ours


class Busy:
    """How long a device works on the calls of a function: they return before a GPU is done."""

    def __init__(self, device: str):
        self.on_gpu, self.spans = device.startswith('cuda'), []

    def now(self):
        import torch

        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def watch(self, function):
        def watched(*arguments):
            start = self.now()
            result = function(*arguments)
            self.spans.append((start, self.now()))
            return result

        return watched

    def reset(self):
        self.spans.clear()

    def seconds(self):
        if not self.on_gpu:
            return sum(end - start for start, end in self.spans)
        return sum(start.elapsed_time(end) for start, end in self.spans) / 1000


def loader_case(way, device, folder, normalise):
    import torch

    from benchmarks import reference
    from core.datasets import image_path, read_image
    from core.transforms import Pipeline, RandomCrop, RandomFlip, RandomLongerSide, Window, network_input
    from tools.device import init_worker

    _, ids = draw_data(folder)
    paths = [image_path('data', image_id) for image_id in ids]
    sides = np.random.default_rng(0).integers(320, 641, len(ids))
    if way == 'plain':
        torch.set_num_threads(1)
        place = ((0, 0), (0, 0))
        rows = list(zip(paths, sides, strict=True))
        return lambda: [reference.train_sample(path, int(side), side % 2, place) for path, side in rows]
    init_worker(0)
    # The same longer sides as above; where image and crop lie takes no time.
    pipelines = [Pipeline(RandomLongerSide(side, side), RandomFlip(), RandomCrop(512)) for side in map(int, sides)]

    def ours():
        for i, (path, pipeline) in enumerate(zip(paths, pipelines, strict=True)):
            image, _ = pipeline(read_image(path), None, (0, 0, i))
            if normalise:
                network_input(Window(image.pixels[None], image.box[None]))

    return ours


def train_case(way, device, what, network='mobilenet_v2', size=256, batch=4, precision='fp32'):
    """A training step of stage 4 or of stage 1 with its tiles. Plain: channels first; stage 4 looks for anomalies."""
    import torch

    import train_classification_with_puzzle as stage1
    from core.affinity import PathIndex, affinity_labels
    from core.losses import affinity_loss
    from core.networks import AffinityNet, Classifier
    from tools.device import pick_device, place

    torch.manual_seed(0)
    images = torch.rand(batch, 3, size, size, device=device)
    model = (AffinityNet if what == 'affinitynet' else Classifier)(network).to(device).train()
    if way == 'ours':
        model = place(model, pick_device(device), precision)
    if what == 'affinitynet':
        index = PathIndex(10, size // 4)
        label = torch.randint(0, 21, (batch, size // 4, size // 4), dtype=torch.uint8, device=device)
        torch.autograd.set_detect_anomaly(way == 'plain')

        def loss_of():
            affinity = index.edge_to_affinity(torch.sigmoid(model(images)))
            return affinity_loss(affinity, *affinity_labels(label, index, 20))

    else:
        options = Namespace(
            loss_option='cl_pcl_re', num_pieces=4, level='feature', re_loss='L1_Loss', re_loss_option='masking'
        )
        labels = (torch.rand(batch, 20, device=device) < 0.1).float()

        def loss_of():
            return sum(stage1.losses_of(model, images, labels, options, 1).values())

    def step():
        model.zero_grad()
        loss = loss_of()
        loss.backward()
        finished(loss, device)

    return step


def finished(tensor, device):
    """Wait for a GPU."""
    if str(device).startswith('cuda'):
        import torch

        torch.cuda.synchronize()
    return tensor


# Measuring ----------------------------------------------------------------------------------------------------------


def in_child(queue, case, repeats):
    """Time a case in a process of its own: median seconds, peak memory in MB, and the network's share of the time.

    The peak is the growth of resident memory or, of a GPU's, what tensors took; the share is None for other cases.
    """
    work, on_gpu = case(), case.keywords['device'].startswith('cuda')
    if repeats > 1:
        work()  # warm: first use of libraries, files in the page cache
    before = resident()
    seconds, shares = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        busy = work()
        seconds.append(time.perf_counter() - start)
        shares.append(busy / seconds[-1] if isinstance(busy, float) else None)
    peak = max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
    if on_gpu:
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
    queue.put((statistics.median(seconds), peak, None if None in shares else statistics.median(shares)))


def resident():
    pages = int(Path('/proc/self/statm').read_text().split()[1]) if Path('/proc/self/statm').exists() else 0
    return pages * resource.getpagesize() / 2**20


def measure(case, repeats):
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=in_child, args=(queue, case, repeats))
    process.start()
    while process.is_alive() and queue.empty():
        time.sleep(0.05)
    if queue.empty() and process.exitcode:
        sys.exit(f'a benchmark failed: {case}')
    result = queue.get()
    process.join()
    return result


def compare(title, case, repeats, plain_repeats=None, **options):
    """A row of the table: the plain way beside ours, in turn. `precision` is ours, the plain way has torch's."""
    plain_options = {name: value for name, value in options.items() if name != 'precision'}
    plain = measure(partial(case, 'plain', **plain_options), plain_repeats or repeats)
    ours = measure(partial(case, 'ours', **options), repeats)
    row = (
        title if ours[2] is None else f'{title}; the network works {100 * ours[2]:.0f} % of the time',
        f'{plain[0]:.3g} s',
        f'{ours[0]:.3g} s',
        f'{plain[0] / ours[0]:.2f}x',
        f'{plain[1]:.0f} MB',
        f'{ours[1]:.0f} MB',
    )
    print(' | '.join(row), flush=True)
    return row


def alone(title, case, repeats, **options):
    """A row without a plain way."""
    ours = measure(partial(case, 'ours', **options), repeats)
    row = (title, '', f'{ours[0]:.3g} s', '', '', f'{ours[1]:.0f} MB')
    print(' | '.join(row), flush=True)
    return row


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
        return [
            compare(
                f'12 images, 4 scales, {net}, {precision}',
                cams,
                args.repeats,
                network=net,
                count=12,
                precision=precision,
            )
            for net in ('resnet50', 'resnest101')
            for precision in PRECISIONS
        ]
    return [
        compare('12 images, 4 scales, resnest14_narrow', cams, args.repeats, network='resnest14_narrow', count=12),
        compare('4 images, 4 scales, mobilenet_v2', cams, args.repeats, network='mobilenet_v2', count=4),
        compare('4 images, 4 scales, resnet50', cams, args.repeats, network='resnet50', count=4),
    ]


def segmentation_rows(args, folder):
    predict = partial(inference_case, what='segmentation', device=args.device, folder=folder)
    if args.device.startswith('cuda'):
        return [
            compare(
                f'12 images, resnest101, {precision}',
                predict,
                args.repeats,
                network='resnest101',
                count=12,
                precision=precision,
            )
            for precision in PRECISIONS
        ]
    title = '8 images, 4 scales, CRF, DeepLabv3+ on resnest14_narrow'
    return [compare(title, predict, args.repeats, network='resnest14_narrow', count=8)]


def loader_rows(args, folder):
    load = partial(loader_case, device='cpu', folder=folder)
    return [
        compare('12 images to 512x512, one process; bytes out', load, args.repeats, normalise=False),
        compare('the same, normalised in that process', load, args.repeats, normalise=True),
    ]


def train_rows(args, folder):
    train = partial(train_case, device=args.device)
    if args.device.startswith('cuda'):
        return [
            compare(
                f'{what} step, {net}, 32 images of 512, {precision}',
                train,
                args.repeats,
                what=what,
                network=net,
                size=512,
                batch=32,
                precision=precision,
            )
            for what in ('classifier', 'affinitynet')
            for net in ('resnet50', 'resnest101')
            for precision in PRECISIONS
        ]
    return [
        compare('AffinityNet step, 4 images of 256; plain: anomaly detection', train, args.repeats, what='affinitynet'),
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
    kept = dict(evaluate.count(score, 'npy', Path('cams'), ids, info))
    thresholds = [0.10, 0.40]
    counts = reference.sweep(Path('plain'), Path('data/SegmentationClass'), ids, info.num_classes + 1, thresholds)
    for threshold in thresholds:
        target, predicted, both = counts[threshold]
        iou = both / (target + predicted - both)
        miou = f'{100 * np.nanmean(iou):.3f} %', f'{100 * kept[threshold].miou():.3f} %'
        rows.append((f'mIoU of the CAMs at threshold {threshold:.2f}', *miou, '', '', ''))
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
PRECISIONS = ('fp32', 'tf32', 'bf16')
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
        what += f', {torch.cuda.get_device_name()}'
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
    lines += ['Medians; each case in a process of its own; peak is its growth in resident memory while it works.', '']
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
    with tempfile.TemporaryDirectory() as folder:
        for part in args.stage or (ON_GPU if args.device.startswith('cuda') else STAGES):
            print(f'{part}: {" | ".join(HEADER[1:])}', flush=True)
            rows = globals()[f'{part}_rows'](args, Path(folder))
            os.chdir(ROOT)
            name = f'{part} (cuda)' if args.device.startswith('cuda') else part
            tables[name] = (machine(args.device), rows)
            write_results(tables)


if __name__ == '__main__':
    main(parse_args())
