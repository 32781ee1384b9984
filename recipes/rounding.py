"""Effect of float16 files on the mIoU: the files of stages 2 and 5 next to the same maps in float32.

Reads   experiments/predictions/{rw_dir}/ (random-walk CAMs), the CAMs and models behind them, and the data
Writes  nothing

    python3 -m recipes.rounding --rw_dir chain@aff@train@beta=10@exp_times=8@rw

Recomputes every CAM and its random walk in float32 from end to end. Prints the mIoU of both at the thresholds of stage
9, the largest difference, and the bytes of the files relative to float32 maps at full size.
"""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

import evaluate
from core import UserError
from core.cam import multi_scale_cam
from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from core.data.transforms import normalize
from core.maps import normalize_rw, present_keys, upsample_rw
from core.metrics import ThresholdSweep, class_counts, list_thresholds, mean_scores
from core.models import build_network
from core.models.affinitynet import predict_edges
from core.random_walk import random_walk
from util import artifacts, flags, loaders, stage
from util.checkpoint import open_model
from util.fingerprint import check_fingerprint, file_hash

THRESHOLDS = list_thresholds(0.05, 0.80, 0.05)


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    data = parser.groups['data']
    data.add_argument('--rw_dir', type=flags.folder_name, required=True, help='folder of random-walk CAMs (stage 5)')
    data.add_argument('--domain', default='train', help='list of images to score; the folder may hold more')
    flags.add_workers(parser)
    device = 'auto (GPU if available, else CPU), cpu, cuda, cuda:1, ...'
    parser.groups['run and output'].add_argument('--device', default='auto', help=device)
    return parser.parse_args(argv)


def read_options(path: Path, script: str) -> Namespace:
    """Return the options that a folder was written with. Raises UserError if they cannot serve here."""
    options = artifacts.read_args(path).get('options')
    if not isinstance(options, dict):
        raise UserError(f'{path}/args.json is missing or damaged; run {script} first, with --overwrite if needed')
    if options.get('precision') != 'fp32':
        raise UserError(f'{path}: not written with --precision fp32, so its files differ by more than their rounding')
    return Namespace(**{**dict(artifacts.RANDOM_WALK.added), **options})


def check_unchanged(path: Path, **inputs: str) -> None:
    """Raise UserError if a folder was written with other models or CAMs than those that exist now."""
    recorded = artifacts.read_args(path).get('fingerprint', {})
    check_fingerprint(path, {name: recorded.get(name) for name in inputs}, inputs)


def compute_maps(batch, device, models, walk, dataset):
    """Yield keys, mask, cam (K, h/4, w/4), hr_cam (K, h, w) and rw (K, h/4, w/4) of each image of a batch, float32."""
    classifier, affinity_net = models
    ids, images, pixels = batch
    *scaled, original = (normalize(x) for x in pixels)
    size = images[0].shape[:2]
    labels = np.stack([dataset.read_labels(image_id) for image_id in ids])
    maps = multi_scale_cam(classifier, scaled, torch.from_numpy(labels).to(device), size)
    edges = predict_edges(affinity_net, original, walk.image_size)
    for image_id, label, (cam, hr_cam), edge in zip(ids, labels, maps, edges, strict=True):
        rw = random_walk(cam, edge, beta=walk.beta, exp_times=walk.exp_times)
        rw = normalize_rw(rw.cpu().numpy(), walk.rw_normalization)
        yield present_keys(label), dataset.read_mask(image_id, size), cam.cpu().numpy(), hr_cam.cpu().numpy(), rw


def print_differences(name, files, exact):
    """Print the mIoU of the files and of float32 at each threshold, from their counts (thresholds, C, C)."""
    files, exact = (100 * mean_scores(class_counts(counts))['miou'] for counts in (files, exact))
    for threshold, one, other in zip(THRESHOLDS, files, exact, strict=True):
        print(f'{name}, threshold {threshold:.2f}: files {one:.4f} %, float32 {other:.4f} %')
    print(f'{name}: at most {max(abs(files - exact)):.4f} points apart')


def main(args):
    # Open the folders, with the options that they were written with.
    rw_path = artifacts.PREDICTIONS / args.rw_dir
    walk = read_options(rw_path, artifacts.RANDOM_WALK.script)
    cam_path = artifacts.PREDICTIONS / walk.cam_dir
    cam = read_options(cam_path, artifacts.CAM.script)
    dataset = open_dataset(walk.dataset, walk.data_dir)
    ids = dataset.ids_with_masks(args.domain)
    cams = artifacts.open_folder(artifacts.CAM, walk.cam_dir, '--cam_dir', dataset, ids)
    random_walks = artifacts.open_folder(artifacts.RANDOM_WALK, args.rw_dir, '--rw_dir', dataset, ids)
    check_unchanged(cam_path, model=file_hash(artifacts.model_path(cam.tag)))
    check_unchanged(rw_path, model=file_hash(artifacts.model_path(walk.model_name)), cams=cams.fingerprint)

    # Score the files. This forks, so it comes before torch starts threads or a GPU.
    counts = {}
    for name, mode, folder in (('CAM', 'npy', cams), ('RW', 'rw', random_walks)):
        counts[name], _ = evaluate.count_pixels(mode, dataset, folder, ids, THRESHOLDS, args.num_workers)

    # Load the models that wrote them.
    run = Namespace(device=args.device, precision='fp32')
    file = open_model(cam.tag, '--tag', 'train_classification_with_puzzle.py')
    meta = file.resolve(cam, dataset, ['Classifier'], architecture='backbone')
    classifier, device, _ = file.load_for_inference(build_network(meta), run)
    file = open_model(walk.model_name, '--model_name', 'train_affinitynet.py')
    meta = file.resolve(walk, dataset, ['AffinityNet'], architecture='backbone')
    affinity_net, _, _ = file.load_for_inference(build_network(meta), run)

    # Recompute the maps in float32 and score them.
    sweeps = {name: ThresholdSweep(dataset.num_classes + 1, THRESHOLDS) for name in counts}
    exact_bytes = 0
    scales = [*flags.floats(cam.scales), 1.0]  # the last one is AffinityNet's
    batches = MultiScaleDataset(dataset, ids, set(ids), scales, cam.batch_size, cam.resize)
    for batch in loaders.batches_on_device(batches, args.num_workers, device, 'batches in float32'):
        for keys, mask, low, high, rw in compute_maps(batch, device, (classifier, affinity_net), walk, dataset):
            sweeps['CAM'].update(high, keys, mask)
            sweeps['RW'].update(upsample_rw(rw, mask.shape), keys, mask)
            exact_bytes += low.nbytes + 2 * high.nbytes  # cam, hr_cam, and the random-walk CAMs at full size

    for name, total in counts.items():
        print_differences(name, total, sweeps[name].confusion())
    file_bytes = sum(folder.file(image_id).stat().st_size for image_id in ids for folder in (cams, random_walks))
    print(f'{len(ids)} images: {file_bytes / 1e6:.1f} MB, {file_bytes / exact_bytes:.3f} of float32 at full size')


if __name__ == '__main__':
    stage.run(main, parse_args)
