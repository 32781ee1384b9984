"""Effect of float16 files on the mIoU: the files of stages 2 and 5 next to the same maps in float32.

Reads   experiments/predictions/{rw_dir}/ (random-walk CAMs), the CAMs and models behind them, and the data
Writes  nothing

    python3 -m recipes.rounding --rw_dir chain@aff@train@beta=10@exp_times=8@rw

Recomputes every CAM and its random walk in float32 from end to end. Prints the mIoU of both at the thresholds of stage
9, the largest difference, and the bytes of the files relative to float32 maps at full size.
"""

from pathlib import Path

import numpy as np

from core import UserError, chain
from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from core.maps import present_keys, upsample_rw
from core.metrics import CAM_THRESHOLDS, ThresholdSweep, class_counts, mean_scores
from util import flags, script
from util.store import folders, formats
from util.store.fingerprints import check_fingerprint, read_args
from util.store.hashes import file_hash
from util.store.results import count_pixels
from util.training import loaders, options
from util.training.models import load_network


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    data = parser.groups['data']
    data.add_argument('--rw_dir', type=flags.folder_name, required=True, help='folder of random-walk CAMs (stage 5)')
    scored = 'list of images to score; the folder may contain more'
    data.add_argument('--domain', type=flags.folder_name, default='train', help=scored)
    parser.add_table(flags.WORKERS)
    device = 'auto (GPU if available, else CPU), cpu, cuda, cuda:1, ...'
    parser.groups['run and output'].add_argument('--device', default='auto', help=device)
    return parser.parse_args(argv)


def read_options(path: Path, stage: str) -> flags.Options:
    """Return the options that a folder was written with. Raises UserError if they are unsuitable here."""
    recorded = read_args(path).get('options')
    if not isinstance(recorded, dict):
        raise UserError(f'{path}/args.json is missing or damaged; run {stage} first, with --overwrite if needed')
    if recorded.get('precision') != 'fp32':
        raise UserError(f'{path}: not written with --precision fp32, so its files differ by more than their rounding')
    return flags.Options(**{'window': None, 'plane': None, **recorded})


def check_unchanged(path: Path, **inputs: str) -> None:
    """Raise UserError if a folder was written with other models or CAMs than those that exist now."""
    recorded = read_args(path).get('fingerprint', {})
    check_fingerprint(path, {name: recorded.get(name) for name in inputs}, inputs, {})


def compute_maps(batch, models, walk, dataset):
    """Yield keys, mask, cam (K, h/4, w/4), hr_cam (K, h, w) and rw (K, h/4, w/4) of each image of a batch, float32."""
    classifier, affinity_net = models
    ids, images, (*scaled, original) = batch
    size = images[0].shape[:2]
    labels = np.stack([dataset.read_labels(image_id) for image_id in ids])
    maps = chain.image_cams(classifier, scaled, labels, size)
    edges = chain.image_edges(affinity_net, original, walk.image_size)
    for image_id, label, (cam, hr_cam), edge in zip(ids, labels, maps, edges, strict=True):
        rw = chain.walk_cams(cam, edge, **walk.pick(options.WALKING))
        yield present_keys(label), dataset.read_mask(image_id, size), cam, hr_cam, rw


def print_differences(name, files, exact):
    """Print the mIoU of the files and of float32 at each threshold, from their counts (thresholds, C, C)."""
    files, exact = (100 * mean_scores(class_counts(counts))['miou'] for counts in (files, exact))
    for threshold, one, other in zip(CAM_THRESHOLDS, files, exact, strict=True):
        print(f'{name}, threshold {threshold:.2f}: files {one:.4f} %, float32 {other:.4f} %')
    print(f'{name}: at most {max(abs(files - exact)):.4f} points apart')


def main(args):
    # Open the folders, with the options that they were written with.
    rw_path = formats.PREDICTIONS / args.rw_dir
    walk = read_options(rw_path, formats.RANDOM_WALK.script)
    cam_path = formats.PREDICTIONS / walk.cam_dir
    cam = read_options(cam_path, formats.CAM.script)
    dataset = open_dataset(walk.dataset, walk.data_dir, walk.window, walk.plane)
    ids = dataset.ids_with_masks(args.domain)
    cams = folders.open_folder(formats.CAM, walk.cam_dir, '--cam_dir', dataset, ids)
    random_walks = folders.open_folder(formats.RANDOM_WALK, args.rw_dir, '--rw_dir', dataset, ids)
    check_unchanged(cam_path, model=file_hash(formats.model_path(cam.tag)))
    check_unchanged(rw_path, model=file_hash(formats.model_path(walk.model_name)), cams=cams.fingerprint)

    # Score the files. This forks, so it comes before torch starts threads or a GPU.
    counts = {}
    for name, folder in (('CAM', cams), ('RW', random_walks)):
        counts[name], _ = count_pixels(folder, dataset, ids, CAM_THRESHOLDS, args.num_workers)

    # Load the models that wrote them.
    classifier, device, _ = load_network(dataset, ['Classifier'], '--tag', cam.tag, device=args.device)
    affinity_net, _, _ = load_network(dataset, ['AffinityNet'], '--model_name', walk.model_name, device=args.device)

    # Recompute the maps in float32 and score them.
    sweeps = {name: ThresholdSweep(dataset.num_classes + 1, CAM_THRESHOLDS) for name in counts}
    exact_bytes = 0
    scales = [*flags.floats(cam.scales), 1.0]  # the last one is AffinityNet's
    batches = MultiScaleDataset(dataset, ids, set(ids), scales, cam.batch_size, cam.resize)
    for batch in loaders.batches_on_device(batches, args.num_workers, device, 'batches in float32'):
        for keys, mask, low, high, rw in compute_maps(batch, (classifier, affinity_net), walk, dataset):
            sweeps['CAM'].update(high, keys, mask)
            sweeps['RW'].update(upsample_rw(rw, mask.shape), keys, mask)
            exact_bytes += low.nbytes + 2 * high.nbytes  # cam, hr_cam, and the random-walk CAMs at full size

    for name, total in counts.items():
        print_differences(name, total, sweeps[name].confusion())
    file_bytes = sum(folder.file(image_id).stat().st_size for image_id in ids for folder in (cams, random_walks))
    print(f'{len(ids)} images: {file_bytes / 1e6:.1f} MB, {file_bytes / exact_bytes:.3f} of float32 at full size')


if __name__ == '__main__':
    script.run(main, parse_args)
