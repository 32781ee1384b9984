"""How far float16 files at stride 4 move the mIoU: the files of stages 2 and 5 beside the same maps never rounded.

    python3 recipes/rounding.py --rw_dir chain@aff@train@beta=10@exp_times=8@rw

Reads a folder of walked CAMs, the folder of CAMs it was made of, the models behind both (their args.json tells), the
data. Makes every CAM and its walk anew in float32 from end to end, and prints the mIoU of both ways at the thresholds
of stage 9, the largest difference, and the bytes of the files beside those of float32 at full size.
"""

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from core.datasets import ScaledBatches, keys_of, load_info, mask_path, read_labels, read_mask, xml_path
from core.networks import AffinityNet, Classifier, for_inference
from core.transforms import network_input, scaled
from tools.checkpoint import load_model
from tools.device import ordered_loader, pick_device, place
from tools.experiment import (
    BEFORE,
    check_identity,
    check_inputs,
    experiment_options,
    file_hash,
    folder_identity,
    input_folder,
    model_path,
)

import evaluate
from core import InputError
from core.cam import multi_scale_cam
from core.maps import finish_walk
from core.metrics import ThresholdSweep
from core.random_walk import random_walk
from inference_rw import edges_of
from tools import UserError, flags, stage


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    parser.add_argument('--rw_dir', type=flags.folder_name, required=True, help='walked CAMs of stage 5')
    parser.add_argument('--domain', default='train', help='list of images to score, part of what the folder holds')
    flags.add_workers(parser)
    flags.add_device(parser)
    return parser.parse_args(argv)


def options_of(folder: Path) -> Namespace:
    """The options of the run that made a folder."""
    options = experiment_options(folder).get('options')
    if not isinstance(options, dict):
        raise UserError(f'{folder}/args.json is not there or damaged: its stage makes both again with --overwrite')
    if options.get('precision') != 'fp32':
        raise UserError(
            f'{folder} was not made with --precision fp32: its files differ by more than their own rounding'
        )
    return Namespace(**{**BEFORE, **options})


def check_unchanged(folder: Path, **inputs: str) -> None:
    """The files must have come from the models and CAMs that there are now."""
    identity = experiment_options(folder).get('identity', {})
    check_identity(folder, {name: identity.get(name) for name in inputs}, inputs)


def main(args):
    walked = input_folder(args.rw_dir, '--rw_dir', 'inference_rw.py')
    walk = options_of(walked)
    cams = input_folder(walk.cam_dir, '--cam_dir', 'inference_classification.py')
    cam = options_of(cams)
    check_unchanged(cams, model=file_hash(model_path(cam.tag)))
    check_unchanged(walked, model=file_hash(model_path(walk.model_name)), cams=folder_identity(cams))
    info = load_info(walk.dataset)
    ids = info.ids(args.domain)
    check_inputs(cams, ids, '.npz', 'inference_classification.py')
    check_inputs(walked, ids, '.npz', 'inference_rw.py')
    count = partial(evaluate.count, ids=ids, info=info)
    score = Namespace(data_dir=walk.data_dir, max_th=0.8, threshold=None, num_workers=args.num_workers)
    kept = {'CAM': count(score, 'npy', cams), 'RW': count(score, 'rw', walked)}

    device = pick_device(args.device)
    classifier, affinity_net = Classifier(cam.architecture, info.num_classes), AffinityNet(walk.architecture)
    load_model(classifier, model_path(cam.tag), '--tag', 'train_classification_with_puzzle.py', cam.architecture)
    load_model(affinity_net, model_path(walk.model_name), '--model_name', 'train_affinitynet.py', walk.architecture)
    classifier = place(for_inference(classifier), device, cam.precision)
    affinity_net = place(for_inference(affinity_net), device, walk.precision)

    plain = {name: ThresholdSweep(info.num_classes + 1, [t for t, _ in rows]) for name, rows in kept.items()}
    plain_bytes = 0
    scales = [*flags.floats(cam.scales), 1.0]  # the last one is AffinityNet's
    scale = partial(scaled, by=cam.resize)
    images = ScaledBatches(walk.data_dir, ids, scales, cam.batch_size, scale, torch.stack)
    loader = ordered_loader(images, None, args.num_workers, device)
    for batch_ids, originals, versions in stage.progress(loader, 'batches in float32'):
        size = originals[0].shape[:2]
        *versions, version = (network_input(version.to(device)) for version in versions)
        labels = np.stack([read_labels(xml_path(walk.data_dir, image_id), info) for image_id in batch_ids])
        made = multi_scale_cam(classifier, versions, torch.from_numpy(labels).to(device), size)
        edges = edges_of(affinity_net, version, walk.image_size)
        for image_id, label, (low, high), edge in zip(batch_ids, labels, made, edges, strict=True):
            mask = read_mask(mask_path(walk.data_dir, image_id), info.num_classes, size)
            plain['CAM'].update(high.cpu().numpy(), keys_of(label), mask)
            walked_there = random_walk(low, edge, beta=walk.beta, exp_times=walk.exp_times).cpu().numpy()
            plain['RW'].update(finish_walk(walked_there, size), keys_of(label), mask)
            plain_bytes += low.nbytes + 2 * high.nbytes  # cam, hr_cam and the walk at full size

    files = [folder / f'{image_id}.npz' for image_id in ids for folder in (cams, walked)]
    kept_bytes = sum(path.stat().st_size for path in files)
    for name, rows in kept.items():
        pairs = [(t, 100 * a.miou(), 100 * b.miou()) for (t, a), b in zip(rows, plain[name].matrices(), strict=True)]
        for threshold, ours, other in pairs:
            print(f'{name}, threshold {threshold:.2f}: files {ours:.4f} %, float32 {other:.4f} %')
        print(f'{name}: at most {max(abs(ours - other) for _, ours, other in pairs):.4f} points apart')
    print(f'{len(ids)} images: {kept_bytes / 1e6:.1f} MB, {kept_bytes / plain_bytes:.3f} of float32 at full size')


if __name__ == '__main__':
    stage.run(main, parse_args(), InputError)
