"""How far --precision and --compile move the CAMs, losses and gradients of a classifier, and how fast they are.

Reads   experiments/data/{tag}.json (the options of a run of stage 1), models/{tag}.pth, and the run's data
Writes  nothing

    python3 -m recipes.precision --tag demo
    python3 -m recipes.precision --tag demo --settings tf32 bf16 fp16 fp32+compile fp16+compile --device cuda

Every setting has the same weights, images and batches as fp32, the first row. Nothing is trained: the losses are
computed in training mode with the final weights. CAMs are in [0, 1], and their differences are absolute; differences of
losses and of the gradient are relative. Milliseconds are medians over batches, so they exclude compilation.
"""

import time
from itertools import islice

import numpy as np
import torch
from tabulate import tabulate

from core.chain import image_cams
from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from core.data.transforms import normalize
from core.losses import alpha_at
from core.maps import present_keys
from core.metrics import CAM_THRESHOLDS, ThresholdSweep
from core.models import Classifier
from recipes.gradients import all_losses, open_batches, run_options, share
from util import flags, script
from util.parallel.devices import pick_device, to_device
from util.training import loaders
from util.training.models import open_model

SCALE = 2**10  # scale of the loss in fp16; training starts with 2**16 and lowers it when gradients overflow
SETTINGS = [f'{name}{more}' for more in ('', '+compile') for name in ('fp32', 'tf32', 'bf16', 'fp16')]


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.groups['model'].add_argument('--tag', type=flags.folder_name, required=True, help='run of stage 1')
    data = parser.groups['data']
    compared = 'list of images with masks whose CAMs are compared'
    data.add_argument('--domain', type=flags.folder_name, default='train', help=compared)
    data.add_argument('--images', type=flags.integer(1), default=64, help='number of images of --domain, evenly spaced')
    data.add_argument('--batches', type=flags.integer(1), default=8, help='training batches whose losses are compared')
    parser.add_table(flags.WORKERS)
    inference = parser.groups['inference']
    inference.add_argument('--scales', type=flags.scales, default='0.5,1.0,1.5,2.0', help='image scales')
    run = parser.groups['run and output']
    run.add_argument('--device', default='auto', help='auto (GPU if available, else CPU), cpu, cuda, cuda:1, ...')
    what = 'values of --precision, with or without --compile, to compare with fp32'
    run.add_argument('--settings', nargs='+', choices=SETTINGS, default=['bf16', 'fp16', 'fp32+compile'], help=what)
    return parser.parse_args(argv)


def load(file, run, dataset):
    """Return the classifier of a run."""
    model = Classifier(run.architecture, dataset.num_classes, run.mode)
    file.load(model)
    return model


def timed(device, function, times: list):
    """Return what a function returns, and add its duration in milliseconds to a list."""
    start = time.perf_counter()
    result = function()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    times.append(1000 * (time.perf_counter() - start))
    return result


def compute_cams(model, batches, dataset, device):
    """Return the full-size CAMs of all images, the mIoU at each threshold, and milliseconds per batch."""
    cams, times, sweep = [], [], ThresholdSweep(dataset.num_classes + 1, CAM_THRESHOLDS)
    for ids, images, pixels in batches:
        labels = np.stack([dataset.read_labels(image_id) for image_id in ids])
        size = images[0].shape[:2]
        maps = timed(device, lambda: image_cams(model, pixels, labels, size), times)  # noqa: B023
        for image_id, label, (_, cam) in zip(ids, labels, maps, strict=True):
            cams.append(cam)
            sweep.update(cams[-1], present_keys(label), dataset.read_mask(image_id, size))
    return cams, np.array([100 * matrix.miou() for matrix in sweep.matrices()]), np.median(times)


def compute_losses(network, batches, run, precision: str):
    """Return the terms of the loss (batches, terms), the mean gradient, and milliseconds per batch."""
    device, scale = batches[0][0].device, SCALE if precision == 'fp16' else 1
    alpha = alpha_at(1, 1, run.alpha, run.alpha_schedule)  # alpha after its ramp
    values, times = [], []

    def step(images, labels):
        losses = all_losses(network, images, labels, run)
        loss = sum(alpha * value if name == 're' else value for name, value in losses.items())
        (scale / len(batches) * loss).backward()
        return [value.item() for value in losses.values()]

    for batch in batches:
        values.append(timed(device, lambda: step(*batch), times))  # noqa: B023
    gradient = torch.cat([p.grad.flatten() for p in network.model.parameters() if p.grad is not None]).double()
    return np.array(values), gradient / scale, np.median(times)


def main(args):
    run = run_options(args.tag)
    dataset, device = open_dataset(run.dataset, run.data_dir, run.window, run.plane), pick_device(args.device, run.seed)
    file = open_model(args.tag, '--tag', ['Classifier'])

    # Read the images once: for the CAMs, and the batches for the losses.
    ids = dataset.ids_with_masks(args.domain, with_images=True)
    count = min(args.images, len(ids))
    ids = [ids[i * len(ids) // count] for i in range(count)]
    scaled = MultiScaleDataset(dataset, ids, set(ids), flags.floats(args.scales), 4, run.resize)
    scaled = list(loaders.batches_on_device(scaled, args.num_workers, device, 'images'))
    batches = islice(open_batches(run, dataset, device), args.batches)
    batches = [(normalize(batch['images'].to(device)), batch['labels'].to(device)) for batch in batches]

    rows, first = [], None
    for setting in dict.fromkeys(['fp32', *args.settings]):
        torch.compiler.reset()
        precision, *compiled = setting.split('+')
        inference = to_device(load(file, run, dataset).for_inference(), device, precision, bool(compiled))
        torch.backends.cudnn.enabled = device.type == 'cpu'  # as in stages 2, 5 and 8
        cams, mious, cam_time = compute_cams(inference, scaled, dataset, device)
        torch.backends.cudnn.enabled = True
        training = share(load(file, run, dataset), run, device, precision, bool(compiled))
        losses, gradient, step_time = compute_losses(training, batches, run, precision)
        first = first or (cams, mious, losses, gradient)
        best = first[1].argmax()
        apart = np.concatenate([abs(a - b).ravel() for a, b in zip(cams, first[0], strict=True)])
        moved = abs(losses / first[2] - 1).mean(0)
        distance = float((gradient - first[3]).norm() / first[3].norm())
        rows.append((setting, apart.mean(), apart.max(), mious[best], *moved, distance, cam_time, step_time))

    names = f'{torch.cuda.get_device_name(device)}, ' if device.type == 'cuda' else ''
    print(f'{names}torch {torch.__version__}; {args.tag}: {run.architecture}, CAMs of {count} images of {args.domain}')
    print(f'(mIoU at {CAM_THRESHOLDS[best]:.2f}), losses of {len(batches)} batches of {run.batch_size} crops')
    titles = ('', 'CAM: mean', 'largest', 'mIoU %', 'L_cls', 'L_p-cls', 'L_re', 'gradient', 'ms CAM', 'ms step')
    formats = ('', '.1e', '.1e', '.3f', *4 * ['.1e'], '.1f', '.1f')
    print(tabulate(rows, titles, tablefmt='pipe', floatfmt=formats))


if __name__ == '__main__':
    script.run(main, parse_args)
