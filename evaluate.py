"""Stage 9: mIoU of CAMs (stage 2), random-walk CAMs (stage 5), pseudo-labels (stage 6) or predictions (stage 8).

Reads   experiments/predictions/{experiment_name}/; masks of the list --domain, with --crf_iteration also its images
Writes  experiments/results/{experiment_name}@{domain}.json: all metrics, per class and threshold; .npz: pixel counts
        per image; with --crf_iteration both are {experiment_name}@dcrf={crf_iteration}@{domain}; the file of --csv;
        for --domain test, whose masks are not public, {experiment_name}@test.tgz for the VOC test server

Under torchrun processes share the images, and the first one adds up their pixel counts. There is no --shard.

    python3 evaluate.py --experiment_name DeepLabv3+@ResNeSt-101@Fix@GN@val@scale=0.5,1.0,1.5,2.0@iteration=10 \\
        --domain val --data_dir $D/SegmentationClass
"""

import time
from functools import partial
from pathlib import Path

import numpy as np

from core import IGNORE, UserError, metrics
from core.crf import crf_from_labels
from core.data.dataset import open_dataset
from core.maps import strided_size, threshold_cams, upsample_rw
from util import artifacts, files, flags, parts, results, stage
from util.parallel import parallel_map


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.shares_work = True
    flags.add_data(parser, data_dir=False)
    flags.add_workers(parser)
    data = parser.groups['data']
    where = 'folder that contains SegmentationClass (and the images, for --crf_iteration), or the folder of masks'
    data.add_argument('--data_dir', '--gt_dir', default='../VOC2012/', help=where)
    data.add_argument('--experiment_name', type=flags.folder_name, required=True, help='folder to score')
    data.add_argument('--domain', default='train', help='list of images')
    kinds = 'kind of output: CAMs (npy), label maps (png) or random-walk CAMs (rw); detected if not given'
    data.add_argument('--mode', choices=('npy', 'png', 'rw'), help=kinds)
    inference = parser.groups['inference']
    inference.add_argument('--threshold', type=flags.real(0, 1), help='score only this background threshold')
    inference.add_argument('--min_th', type=flags.real(0, 1), default=0.05, help='first threshold')
    end = 'end of the thresholds, exclusive (default: 0.80 for CAMs, 0.50 for random-walk CAMs)'
    inference.add_argument('--max_th', type=flags.real(0, 1), help=end)
    inference.add_argument('--step_th', type=flags.real(0.001, 1), default=0.05, help='step of the thresholds')
    crf = 'dense CRF iterations on the maps of each threshold, as in stage 6 (0: no CRF)'
    inference.add_argument('--crf_iteration', type=flags.integer(0), default=0, help=crf)
    parser.groups['run and output'].add_argument('--csv', type=Path, help='table to write, one row per threshold')
    return parser.parse_args(argv)


def open_outputs(args, dataset, ids):
    """Return the mode and the folder to score."""
    kind = artifacts.format_of(args.experiment_name)
    path = artifacts.PREDICTIONS / args.experiment_name
    if not path.is_dir():
        raise UserError(f'--experiment_name {args.experiment_name}: {path} not found; run {kind.script} first')
    mode = artifacts.detect_mode(path, ids[0], kind)
    if args.mode not in (None, mode):
        raise UserError(f'--mode {args.mode}: {path} contains files of mode {mode}; it is detected without --mode')
    for flag, value in (('threshold', args.threshold), ('crf_iteration', args.crf_iteration or None)):
        if mode == 'png' and value is not None:
            raise UserError(f'--{flag} {value}: {path} contains label maps, which have no scores')
    label_map = artifacts.PREDICTION._replace(script=kind.script)
    kinds = {'png': label_map, 'npy': artifacts.CAM, 'rw': artifacts.RANDOM_WALK}
    return mode, artifacts.open_folder(kinds[mode], args.experiment_name, '--experiment_name', dataset, ids)


def read_prediction(folder, image_id, size=None):
    """Return a label map without 255."""
    prediction = folder.read_label(image_id, size)
    if (prediction == IGNORE).any():
        raise UserError(f'{folder.file(image_id)}: contains {IGNORE} (ignore); affinity labels cannot be scored')
    return prediction


def list_thresholds(args, mode):
    """Return the thresholds of maps; label maps have the one threshold None."""
    if mode == 'png' or args.threshold is not None:
        return [args.threshold]
    end = args.max_th if args.max_th is not None else {'npy': 0.80, 'rw': 0.50}[mode]
    thresholds = metrics.list_thresholds(args.min_th, end, args.step_th)
    if not 0 < len(thresholds) <= metrics.MAX_THRESHOLDS:
        wanted = f'--min_th {args.min_th:g} --max_th {end:g} --step_th {args.step_th:g}'
        raise UserError(f'{wanted}: {len(thresholds)} thresholds, expected 1 to {metrics.MAX_THRESHOLDS}')
    return thresholds


def count_image(image_id, mode, dataset, folder, thresholds, crf_iteration):
    """Return the classes of one image and their pixel counts (thresholds, target, prediction)."""
    image = np.array(dataset.read_image(image_id)) if crf_iteration else None
    mask = dataset.read_mask(image_id, image.shape[:2] if crf_iteration else None)
    classes = dataset.num_classes + 1
    if mode == 'png':
        prediction = read_prediction(folder, image_id, mask.shape)
        return metrics.drop_absent(metrics.count_labels([prediction], mask, classes))
    name, size = ('rw', strided_size(mask.shape)) if mode == 'rw' else ('hr_cam', mask.shape)
    keys, maps = folder.read_maps(image_id, name, size)
    maps = upsample_rw(maps, mask.shape) if mode == 'rw' else maps
    if crf_iteration:
        labels = [threshold_cams(maps, threshold) for threshold in thresholds]
        refined = crf_from_labels(image, labels, len(keys), crf_iteration)
        return metrics.drop_absent(metrics.count_labels([keys[label] for label in refined], mask, classes))
    sweep = metrics.ThresholdSweep(classes, thresholds)
    sweep.update(maps, keys, mask)
    return metrics.drop_absent(sweep.confusion())


def count_pixels(mode, dataset, folder, ids, thresholds, num_workers, crf_iteration=0):
    """Return the counts of all images (thresholds, target, prediction); and per image its classes, and T, P and TP."""
    inputs = {'dataset': dataset, 'folder': folder, 'thresholds': thresholds}
    count = partial(count_image, mode=mode, crf_iteration=crf_iteration, **inputs)
    total, by_image = np.zeros((len(thresholds), *2 * [dataset.num_classes + 1]), np.int64), []
    for classes, counts in parallel_map(count, ids, num_workers, 'scoring'):
        total[:, classes[:, None], classes] += counts
        by_image.append((classes, metrics.class_counts(counts).astype(np.uint32)))
    return total, by_image


def score(args, mode, dataset, folder, ids, thresholds, total):
    """Return the content of the result file, from the counts of all images (thresholds, target, prediction)."""
    names = ('background', *dataset.class_names)
    rows = [{'threshold': t, **metrics.summarize(counts, names)} for t, counts in zip(thresholds, total, strict=True)]
    best = max(range(len(rows)), key=lambda i: rows[i]['miou'])
    return {
        'experiment_name': args.experiment_name,
        'dataset': dataset.name,
        'num_classes': dataset.num_classes,
        'domain': args.domain,
        'masks': parts.hash_masks(dataset, ids),
        'mode': mode,
        'crf_iteration': args.crf_iteration,
        'images': len(ids),
        'threshold_choice': None if mode == 'png' else results.GIVEN if len(rows) == 1 else results.BEST,
        **rows[best],
        'confusion': total[best].tolist(),
        'all_background_miou': 100 * metrics.ConfusionMatrix(len(names), total[0]).background_miou(),
        'thresholds': rows,
        'made_with': artifacts.read_args(folder.path),
    }


def main(args):
    begun, dataset = time.monotonic(), open_dataset(args.dataset, args.data_dir)
    ids, masked = dataset.ids(args.domain, args.crf_iteration > 0), dataset.ids_with_masks(args.domain)
    crf = f'@dcrf={args.crf_iteration}' if args.crf_iteration else ''
    name = f'{args.experiment_name}{crf}@{args.domain}'
    path, upload = artifacts.results_path(name, 'json'), artifacts.results_path(name, 'tgz')
    files.check_name(path, '--experiment_name')
    files.check_output(args.csv, '--csv')
    mode, folder = open_outputs(args, dataset, masked or ids)
    with parts.claimed(path) as is_first:
        # The masks of test are not public: pack the predictions for the server.
        if args.domain == 'test' and not masked and dataset.mask_path(ids[0]):
            if mode != 'png':
                raise UserError(f'domain test: has no masks, and {folder.path} contains no label maps to upload')
            if not is_first:
                return
            labels = ((i, read_prediction(folder, i)) for i in stage.progress(ids, 'packing', len(ids)))
            results.write_upload(upload, ((i, dataset.encode_label_map(label)) for i, label in labels))
            print(f'{upload}: {len(ids)} predictions for the test server')
            return
        if not masked:
            expected = f' ({dataset.mask_path(ids[0])}, ...)' if dataset.mask_path(ids[0]) else ''
            raise UserError(f'domain {args.domain!r}: nothing to compare with: none of its images has a mask{expected}')
        stage.print_mask_count(dataset, args.domain, masked)

        # Count pixels. Of several processes the first one adds them up.
        options = {'thresholds': list_thresholds(args, mode), 'crf_iteration': args.crf_iteration}
        count = partial(count_pixels, mode, dataset, folder, num_workers=args.num_workers, **options)
        counts = parts.add_up(path, folder, dataset, masked, options, count)
        if counts is None:
            return
        total, by_image = counts
        content = score(args, mode, dataset, folder, masked, options['thresholds'], total)
        results.write(name, content, masked, by_image, seconds=time.monotonic() - begun)
        if args.csv:
            results.write_csv(args.csv, content)
    results.report(content)  # last: a reader such as head may close stdout
    print(f'written to {path}')


if __name__ == '__main__':
    stage.run(main, parse_args)
