"""Stage 9: mIoU of CAMs (stage 2), random-walk CAMs (stage 5), pseudo-labels (stage 6) or predictions (stage 8).

Reads   experiments/predictions/{experiment_name}/; masks of the list --domain
Writes  experiments/results/{experiment_name}@{domain}.json: all metrics, per class and threshold; for --domain test,
        whose masks are not public, experiments/results/{experiment_name}@test.tgz for the VOC test server

    python3 evaluate.py --experiment_name DeepLabv3+@ResNeSt-101@Fix@GN@val@scale=0.5,1.0,1.5,2.0@iteration=10 \\
        --domain val --data_dir $D/SegmentationClass
"""

import io
import tarfile
from functools import partial

import numpy as np
from tabulate import tabulate

from core import IGNORE, UserError
from core.data.dataset import open_dataset
from core.maps import strided_size, upsample_rw
from core.metrics import ConfusionMatrix, ThresholdSweep
from util import artifacts, files, flags, stage
from util.parallel import parallel_map


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_data(parser, data_dir=False)
    flags.add_workers(parser)
    data = parser.groups['data']
    where = 'folder of masks, or the folder that contains SegmentationClass'
    data.add_argument('--data_dir', '--gt_dir', default='../VOC2012/', help=where)
    data.add_argument('--experiment_name', type=flags.folder_name, required=True, help='folder to score')
    data.add_argument('--domain', default='train', help='list of images')
    kinds = 'kind of output: CAMs (npy), label maps (png) or random-walk CAMs (rw); detected if not given'
    data.add_argument('--mode', choices=('npy', 'png', 'rw'), help=kinds)
    inference = parser.groups['inference']
    inference.add_argument('--threshold', type=flags.real(0, 1), help='score only this background threshold')
    inference.add_argument('--max_th', type=flags.real(0.06, 1), default=0.50, help='end of the thresholds of mode rw')
    return parser.parse_args(argv)


def detect_mode(folder, image_id, kind):
    """Return the mode of a folder from its files. Raises UserError if there is nothing to score."""
    path = folder / f'{image_id}.npz'
    if path.is_file():
        names = artifacts.maps_inside(path)
        if not {'rw', 'hr_cam'} & {*names}:
            raise UserError(f'{path}: contains neither "rw" nor "hr_cam"{artifacts.REPAIR}')
        return 'rw' if 'rw' in names else 'npy'
    if path.with_name(f'{image_id}.png').is_file():
        return 'png'
    raise UserError(f'{folder} contains neither {image_id}.npz nor {image_id}.png{artifacts.remedy(kind, path)}')


def open_outputs(args, dataset, ids):
    """Return the mode and the folder to score."""
    kind = artifacts.format_of(args.experiment_name)
    path = artifacts.PREDICTIONS / args.experiment_name
    if not path.is_dir():
        raise UserError(f'--experiment_name {args.experiment_name}: {path} not found; run {kind.script} first')
    mode = detect_mode(path, ids[0], kind)
    if args.mode not in (None, mode):
        raise UserError(f'--mode {args.mode}: {path} contains files of mode {mode}; it is detected without --mode')
    if mode == 'png' and args.threshold is not None:
        raise UserError(f'--threshold {args.threshold}: {path} contains label maps, which have no scores')
    kinds = {
        'png': artifacts.PREDICTION._replace(script=kind.script),
        'npy': artifacts.CAM,
        'rw': artifacts.RANDOM_WALK,
    }
    return mode, artifacts.open_folder(kinds[mode], args.experiment_name, '--experiment_name', dataset, ids)


def read_prediction(folder, image_id, size=None):
    """Return a label map without 255."""
    prediction = folder.read_label(image_id, size)
    if (prediction == IGNORE).any():
        raise UserError(f'{folder.file(image_id)}: contains {IGNORE} (ignore); affinity labels cannot be scored')
    return prediction


def count_image(image_id, mode, dataset, folder, thresholds):
    """Return the pixel counts of one image."""
    mask = dataset.read_mask(image_id)
    if mode == 'png':
        counts = ConfusionMatrix(dataset.num_classes + 1)
        counts.update(read_prediction(folder, image_id, mask.shape), mask)
        return counts
    counts = ThresholdSweep(dataset.num_classes + 1, thresholds)
    name, size = ('rw', strided_size(mask.shape)) if mode == 'rw' else ('hr_cam', mask.shape)
    keys, maps = folder.read_maps(image_id, name, size)
    counts.update(upsample_rw(maps, mask.shape) if mode == 'rw' else maps, keys, mask)
    return counts


def count_pixels(args, mode, dataset, folder, ids):
    """Return [(threshold, ConfusionMatrix)] over all listed images; label maps have the one threshold None."""
    end = args.max_th if mode == 'rw' else 0.80
    thresholds = [round(0.05 * i, 2) for i in range(1, 20) if 0.05 * i < end - 1e-9]
    if args.threshold is not None:
        thresholds = [args.threshold]
    count = partial(count_image, mode=mode, dataset=dataset, folder=folder, thresholds=thresholds)
    classes = dataset.num_classes + 1
    total = ConfusionMatrix(classes) if mode == 'png' else ThresholdSweep(classes, thresholds)
    for counts in parallel_map(count, ids, args.num_workers, 'scoring'):
        total.counts += counts.counts
    return [(None, total)] if mode == 'png' else list(zip(thresholds, total.matrices(), strict=True))


def summarize(matrix, dataset):
    """Return the metrics in percent; None for classes that do not occur."""
    names = ('background', *dataset.class_names)
    iou = {name: None if np.isnan(x) else round(100 * x, 4) for name, x in zip(names, matrix.iou(), strict=True)}
    means = {'miou': matrix.miou(), 'fp': matrix.fp(), 'fn': matrix.fn()}
    if np.isnan(means['fp']):
        raise UserError('neither masks nor predictions contain a class: check --domain and --data_dir')
    return {**{name: 100 * value for name, value in means.items()}, 'iou': iou}


def report(rows, mode):
    """Print a line per threshold and the IoU per class at the best one; return the best (threshold, metrics)."""
    for threshold, row in rows:
        at = '' if threshold is None else f'threshold {threshold:.2f}: '
        print(f'{at}mIoU {row["miou"]:.2f} %, FP {row["fp"]:.2f} %, FN {row["fn"]:.2f} %')
    best_threshold, best = max(rows, key=lambda item: item[1]['miou'])
    print(tabulate(best['iou'].items(), ('class', 'IoU %'), tablefmt='pipe', floatfmt='.2f', missingval='-'))
    at = '' if best_threshold is None else f' at threshold {best_threshold:.2f}'
    print(f'best mIoU {best["miou"]:.2f} %{at}')
    if mode == 'rw' and len(rows) > 1:
        # The thresholds that over- and under-segment by the published factors.
        for name, factor in (('over', 1.6), ('under', 0.6)):
            near, row = min(rows, key=lambda item: abs(item[1]['fp'] - factor * best['fp']))
            print(f"{name}: FP {row['fp']:.2f} % at threshold {near:.2f} is closest to {factor} times the best one's")
    return best_threshold, best


def pack(folder, ids, dataset, path):
    """Write the upload for the VOC test server: 8-bit palette PNGs of class indices in a .tgz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for image_id in stage.progress(ids, 'packing'):
            content = dataset.encode_label_map(read_prediction(folder, image_id))
            member = tarfile.TarInfo(f'results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    files.write_bytes(path, buffer.getvalue())
    print(f'{path}: {len(ids)} predictions for the test server')


def score(args, mode, dataset, folder, ids):
    """Print the scores and return the content of the result file."""
    matrices = count_pixels(args, mode, dataset, folder, ids)
    rows = [(threshold, summarize(matrix, dataset)) for threshold, matrix in matrices]
    threshold, best = report(rows, mode)
    background = 100 * matrices[0][1].background_miou()
    print(f'(predicting background everywhere: {background:.2f} %)')
    return {
        'experiment_name': args.experiment_name,
        'domain': args.domain,
        'mode': mode,
        'images': len(ids),
        'threshold': threshold,
        **best,
        'all_background_miou': background,
        'thresholds': [{'threshold': threshold, **row} for threshold, row in rows],
        'made_with': artifacts.read_args(folder.path),
    }


def main(args):
    dataset = open_dataset(args.dataset, args.data_dir)
    ids, masked = dataset.ids(args.domain), dataset.ids_with_masks(args.domain)
    name = f'{args.experiment_name}@{args.domain}'
    path = artifacts.results_path(name, 'json')
    files.check_name(path, '--experiment_name')
    mode, folder = open_outputs(args, dataset, masked or ids)
    upload = artifacts.results_path(name, 'tgz')
    with files.locked(files.lock_path(path), str(path)):
        files.remove_leftovers(path, upload)

        # The masks of test are not public: pack the predictions for the server.
        if args.domain == 'test' and not masked and dataset.mask_path(ids[0]):
            pack(folder, ids, dataset, upload)
            return
        if not masked:
            expected = f' ({dataset.mask_path(ids[0])}, ...)' if dataset.mask_path(ids[0]) else ''
            raise UserError(f'domain {args.domain!r}: nothing to compare with: none of its images has a mask{expected}')
        stage.print_mask_count(dataset, args.domain, masked)
        files.write_json(path, score(args, mode, dataset, folder, masked))
    print(f'written to {path}')


if __name__ == '__main__':
    stage.run(main, parse_args)
