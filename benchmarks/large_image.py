"""Peak memory and time of one large image in tiles, through stages 2, 3, 5, 6 and 8 and tools.predict.

Reads   nothing: the image is a mosaic of drawn scenes, and the networks have random weights
Writes  nothing that it keeps; a table of Markdown is printed

    python3 -m benchmarks.large_image
    python3 -m benchmarks.large_image --side 4000 --tile 512 --segmenter_scales 0.5,1.0 --commands 'stage 8'

Each command runs as a process without workers, on the CPU. Its peak is the largest resident memory that Linux recorded.
More scales and more iterations of the CRF take time, and hardly any memory.
"""

import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from core import UserError
from core.data.voc import palette
from core.models import build_network
from tools import make_demo_data
from util import flags, script, tile_flags
from util.flags import REPOSITORY
from util.training.models import save_model

SCENE = 250  # side of a drawn scene, in pixels
BACKBONE = 'resnest14_narrow'
NETWORKS = {
    'cls': {'network': 'Classifier', 'mode': 'normal'},
    'aff': {'network': 'AffinityNet', 'mode': 'fix', 'radius': 10},
    'seg': {'network': 'DeepLabv3+', 'mode': 'fix', 'use_gn': True},
}


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    data = parser.groups['data']
    data.add_argument('--side', type=flags.integer(256), default=10000, help='side of the image in pixels')
    data.add_argument('--classes', type=flags.integer(1), default=20, help='classes of the networks')
    data.add_argument('--present', type=flags.integer(1), default=5, help='classes that the image is tagged with')
    inference = parser.groups['inference']
    inference.add_argument('--tile', type=tile_flags.tile, default=1024, help='side of the tiles')
    inference.add_argument('--scales', type=flags.scales, default='0.5', help='scales of the classifier')
    inference.add_argument('--segmenter_scales', type=flags.scales, default='0.25', help='of the segmentation network')
    inference.add_argument('--exp_times', type=flags.integer(0, 12), default=8, help='random-walk steps: 2^exp_times')
    inference.add_argument('--crf_iteration', type=flags.integer(0), default=1, help='iterations of the dense CRF')
    commands = 'commands to run, by the words that their names begin with (default: all)'
    parser.groups['run and output'].add_argument('--commands', nargs='+', default=[''], help=commands)
    return parser.parse_args(argv)


def draw_image(side: int, path: Path) -> None:
    """Write a mosaic of 16 drawn scenes in random order."""
    scenes, rng = path.parent / 'scenes', np.random.default_rng(0)
    counts = f'--num_train_aug 16 --num_train 1 --num_val 1 --size {SCENE} --num_workers 0'
    make_demo_data.main(make_demo_data.parse_args(['--out', str(scenes), *counts.split()]))
    scenes = [Image.open(file).resize((SCENE, SCENE)) for file in sorted(scenes.glob('JPEGImages/train*'))]
    image = np.zeros((side, side, 3), np.uint8)
    for y in range(0, side, SCENE):
        for x in range(0, side, SCENE):
            part = image[y : y + SCENE, x : x + SCENE]
            part[:] = np.array(scenes[rng.integers(16)])[: part.shape[0], : part.shape[1]]
    Image.fromarray(image).save(path, quality=90)


def make_inputs(args, folder: Path) -> None:
    """Write the image, a CSV file with its tags, and models with random weights."""
    names = [f'class{k:02d}' for k in range(1, args.classes + 1)]
    draw_image(args.side, folder / 'large.jpg')
    table = f'# classes: {";".join(names)}\nimage,classes\nlarge.jpg,{";".join(names[: args.present])}\n'
    (folder / 'labels.csv').write_text(table)
    colours = palette()[: args.classes + 1].tolist()
    common = {'image_size': 512, 'classes': names, 'palette': colours, 'backbone': BACKBONE}
    for tag, own in NETWORKS.items():
        torch.manual_seed(0)
        network = build_network({**common, **own})
        if tag == 'cls':  # centred on zero, or maps would be zero or the same everywhere
            network.classifier.weight.data -= network.classifier.weight.data.mean(1, keepdim=True)
        save_model(network, folder / f'experiments/models/{tag}.pth', **common, **own)


def commands(args) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of each command."""
    device = ['--num_workers', '0', '--tile', str(args.tile)]
    data, crf = ['--dataset', 'labels.csv', '--data_dir', '.', *device], ['--crf_iteration', str(args.crf_iteration)]
    scales, tile, steps = ['--scales', args.scales], f'tile={args.tile}', str(args.exp_times)
    cams, walks = f'cls@train@{tile}@scale={args.scales}', f'aff@train@beta=10@exp_times={steps}@{tile}@rw'
    yield 'stage 2', ['inference_classification.py', '--tag', 'cls', *data, *scales, '--device', 'cpu']
    yield 'stage 3', ['make_affinity_labels.py', '--experiment_name', cams, *data, *crf]
    walked = ['--model_name', 'aff', '--cam_dir', cams, '--exp_times', steps, '--device', 'cpu']
    yield 'stage 5', ['inference_rw.py', *data, *walked]
    yield 'stage 6', ['make_pseudo_labels.py', '--experiment_name', walks, *data, *crf]
    segmented = ['--tag', 'seg', *data, *crf, '--scales', args.segmenter_scales, '--domain', 'train', '--device', 'cpu']
    yield 'stage 8', ['inference_segmentation.py', *segmented]
    predict = [*device, *crf, '--device', 'cpu']
    segmented = ['-m', 'tools.predict', 'experiments/models/seg.pth', 'large.jpg', '--scales', args.segmenter_scales]
    yield 'tools.predict, segmentation network', [*segmented, *predict]
    chosen = ['--classes', ','.join(f'class{k:02d}' for k in range(1, args.present + 1))]
    yield (
        'tools.predict, classifier',
        [
            *['-m', 'tools.predict', 'experiments/models/cls.pth', 'large.jpg', *chosen],
            *[*scales, *predict],
        ],
    )


def measure(words: list[str], folder: Path) -> tuple[float, float, float]:
    """Run a command in a folder; return its seconds, its CPU seconds and its peak resident memory in GB."""
    words = [str(REPOSITORY / words[0]), *words[1:]] if words[0].endswith('.py') else words
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'}
    begun, busy = time.monotonic(), children_seconds()
    process = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, read_peak(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise UserError(f'{shlex.join(words)}: failed')
    return time.monotonic() - begun, children_seconds() - busy, peak


def children_seconds() -> float:
    """Return the CPU seconds of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_peak(pid: int) -> float:
    """Return the peak resident memory of a process in GB, 0 once it has ended."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith('VmHWM')), 0.0)


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(args, Path(folder))
        rows = []
        for name, words in commands(args):
            if name.startswith(tuple(args.commands)):
                seconds, busy, peak = measure(words, Path(folder))
                rows.append((name, f'{peak:.2f} GB', f'{busy:.0f} s', f'{seconds:.0f} s'))
                print(' | '.join(rows[-1]), file=sys.stderr, flush=True)
    print(tabulate(rows, ('command', 'peak memory', 'CPU time', 'wall time'), tablefmt='pipe'))


if __name__ == '__main__':
    script.run(main, parse_args)
