"""Stage 9: mIoU of CAMs (stage 2), random-walk CAMs (stage 5), pseudo-labels (stage 6) or predictions (stage 8).

Reads   experiments/predictions/{experiment_name}/; masks of the list --domain, with --crf_iteration also its images
Writes  experiments/results/{experiment_name}@{domain}.json: all metrics, per class, threshold and size of object, and
        of maps the two-fold mIoU, whose threshold was chosen on other images; .npz: pixel counts per image; with
        --crf_iteration both are {experiment_name}@dcrf={crf_iteration}@{domain}; the file of --csv;
        for --domain test, whose masks are not public, {experiment_name}@test.tgz for the VOC test server

It runs as one process, on the cores of one node (--num_workers).

    python3 evaluate.py --experiment_name DeepLabv3+@ResNeSt-101@Fix@GN@val@scale=0.5,1.0,1.5,2.0@iteration=10 \\
        --domain val --data_dir $D/SegmentationClass
"""

import util.startup

import io
import tarfile
import time
from pathlib import Path

from tabulate import tabulate

from core import UserError, image_scores, metrics
from core.crf import check_installed
from core.data.dataset import open_dataset
from util import flags, script
from util.store import CAM, PREDICTION, RANDOM_WALK, open_folder, results
from util.store.files import check_output, write_bytes
from util.store.formats import result_name
from util.store.shares import noticing_writers

THRESHOLDS = ('threshold', 'min_th', 'max_th', 'step_th')  # flags of maps, where there is a background
# The values of --mode, and the kind of output of each.
MODES = {'npy': CAM, 'png': PREDICTION, 'rw': RANDOM_WALK}


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(flags.DATASET, flags.READING, flags.WORKERS)
    data = parser.groups['data']
    where = 'folder that contains SegmentationClass (and the images, for --crf_iteration), or the folder of masks'
    data.add_argument('--data_dir', '--gt_dir', default=flags.VOC_ROOT, help=where)
    folder = 'folder to score, of stage 2, 5, 6 or 8'
    data.add_argument('--experiment_name', type=flags.folder_name, required=True, help=folder)
    scored = 'list of the data set to score: train, val or test'
    data.add_argument('--domain', type=flags.folder_name, default='train', help=scored)
    kinds = 'CAMs (npy), random-walk CAMs (rw) or label maps (png); only for folders without args.json'
    data.add_argument('--mode', choices=MODES, help=kinds)
    inference = parser.groups['inference']
    inference.add_argument('--threshold', type=flags.real(0, 1), help='score only at this threshold')
    start = 'first threshold: MIN, MIN + STEP, ... below MAX are scored'
    inference.add_argument('--min_th', type=flags.real(0, 1), default=metrics.SWEEP['start'], help=start)
    end = 'end of the thresholds, exclusive (default: {cam_end:.2f} for CAMs, {rw_end:.2f} for random-walk CAMs)'
    end = end.format(**metrics.SWEEP)
    inference.add_argument('--max_th', type=flags.real(0, 1), help=end)
    step = flags.real(0.001, 1)
    inference.add_argument('--step_th', type=step, default=metrics.SWEEP['step'], help='step of the thresholds')
    crf = 'iterations of the dense CRF on the maps of each threshold, as in stage 6 (0: no CRF)'
    inference.add_argument('--crf_iteration', '--iteration', type=flags.integer(0, 1000), default=0, help=crf)
    parser.groups['run and output'].add_argument('--csv', type=Path, help='table to write, one row per threshold')
    return parser.parse_args(argv)


def open_outputs(args, dataset, ids):
    """Return the folder to score. Its args.json says what it contains; without args.json, --mode says it."""
    mode, name = MODES.get(args.mode), args.experiment_name
    folder = open_folder(None, name, '--experiment_name', dataset, ids, unrecorded=mode)
    if not folder.kind.by_class:
        fault = 'an edge map has no classes to score; train_affinitynet.py logs scores of edges'
        raise UserError(f'{folder.path}: {fault}')
    if mode and mode.maps != folder.kind.maps:
        raise UserError(f'--mode {args.mode}: {folder.path} contains {folder.kind.title}s: leave it out')
    for flag, value in (('threshold', args.threshold), ('crf_iteration', args.crf_iteration or None)):
        if not folder.kind.maps and value is not None:
            raise UserError(f'--{flag} {value}: {folder.path} contains label maps, which have no scores')
    return folder


def list_thresholds(args, kind, dataset):
    """Return the thresholds of maps; label maps have the one threshold None, and so have maps without a background."""
    if not dataset.has_background:
        args.record().check_unused(THRESHOLDS, f'the data set "{dataset.name}" has no background')
        return [None]
    if not kind.maps or args.threshold is not None:
        return [args.threshold]
    end = metrics.SWEEP['rw_end' if kind == RANDOM_WALK else 'cam_end']
    return metrics.list_thresholds(args.min_th, end if args.max_th is None else args.max_th, args.step_th)


def pack_for_server(folder, dataset, ids, path):
    """Write the predictions of the test list, whose masks are not public, for the VOC test server: palette PNGs."""
    if folder.kind.maps:
        raise UserError(f'test: has no masks, and {folder.path} contains no label maps to upload', option='domain')
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for image_id in script.progress(ids, 'packing', len(ids)):
            content = dataset.encode_label_map(results.read_prediction(folder, image_id))
            member = tarfile.TarInfo(f'results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    folder.check_unchanged()
    write_bytes(path, buffer.getvalue())
    print(f'{path}: {len(ids)} predictions for the test server')


def report(result):
    """Print a line per threshold; by class, by size and as a whole the scores at the best one; the two-fold scores."""
    for row in result['thresholds']:
        at = '' if row['threshold'] is None else f'threshold {results.format_threshold(row["threshold"])}: '
        print(f'{at}mIoU {row["miou"]:.2f} %, FP {row["fp"]:.2f} %, FN {row["fn"]:.2f} %')
    wrong, sizes = result['false_masks'], result['by_size']
    classes = [(name, iou, wrong['classes'].get(name)) for name, iou in result['iou'].items()]
    print_table(('class', 'IoU %', 'false masks %'), classes)
    print_table(('objects', 'number', 'IoU %'), [(size, *row.values()) for size, row in sizes.items()])
    share = '' if wrong['share'] is None else f', {wrong["share"]:.2f} % of them with a false mask'
    if 'one_class' not in result:
        print(f'\n{wrong["images"]} images without an object{share}')
    if result['format'] == RANDOM_WALK.title and len(result['thresholds']) > 1:
        report_factors(result['thresholds'], result['fp'])
    print_baseline(result)
    best = f'mIoU {result["miou"]:.2f} %, Dice {result["dice"]:.2f} %'
    if result['threshold'] is not None:
        best += f' at threshold {results.format_threshold(result["threshold"])}'
    if result['threshold_choice'] != results.BEST:
        print(best)
        return
    print(f'best {best}, {result["threshold_choice"]}')
    other = result['two_fold']
    if other is None:
        print('no two-fold mIoU: half of the images have no object to choose a threshold by')
        return
    where = ' and '.join(map(results.format_threshold, other['thresholds']))
    honest = f'mIoU {other["miou"]:.2f} %, Dice {other["dice"]:.2f} %'
    print(f'two-fold {honest}: each half of the images at the threshold that is best on the other half ({where})')


def print_baseline(result):
    """Print the score of predicting one label everywhere: the background or, without one, the most frequent class."""
    label, miou = 'background', result['all_background_miou']
    if 'one_class' in result:
        label, miou = result['one_class'].values()
    print(f'(predicting {label} everywhere: {miou:.2f} %)')


def print_table(headers, rows):
    """Print a table of Markdown, with an empty line before it."""
    print('\n' + tabulate(rows, headers, tablefmt='pipe', floatfmt='.2f', missingval='-'))


def report_factors(rows, best_fp):
    """Print the thresholds of over- and under-segmentation by the published factors."""
    for name, factor in (('over', 1.6), ('under', 0.6)):
        near = min(rows, key=lambda row: abs(row['fp'] - factor * best_fp))
        at = f'{near["fp"]:.2f} % at threshold {results.format_threshold(near["threshold"])}'
        print(f"{name}: FP {at} is closest to {factor} times the best one's")


def main(args):
    check_installed(args.crf_iteration)
    begun, dataset = time.monotonic(), open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    ids, masked = dataset.ids(args.domain, args.crf_iteration > 0), dataset.ids_with_masks(args.domain)
    name, expected = result_name(args.experiment_name, args.domain, args.crf_iteration), dataset.mask_path(ids[0])
    check_output(args.csv, '--csv', results.CSV_BEGINS)
    folder = open_outputs(args, dataset, masked or ids)
    with results.claimed(name) as path, noticing_writers(folder.path):
        if args.domain == 'test' and not masked and expected:
            return pack_for_server(folder, dataset, ids, path.with_suffix('.tgz'))
        if not masked:
            where = f' ({expected}, ...)' if expected else ''
            fault = f'{args.domain!r}: nothing to compare with: none of its images has a mask{where}'
            raise UserError(fault, option='domain')
        script.print_mask_count(dataset, args.domain, masked)

        # Count pixels by true and predicted class at each threshold, and score the counts.
        thresholds = list_thresholds(args, folder.kind, dataset)
        total, by_image = results.count_pixels(
            folder, dataset, masked, thresholds, args.num_workers, args.crf_iteration
        )
        names, packed = dataset.label_names, results.pack(by_image)
        scores = metrics.summarize_sweep(total, thresholds, names)
        scores |= image_scores.summarize(masked, **packed, thresholds=thresholds, best=scores['threshold'], names=names)
        content = {
            'experiment_name': args.experiment_name,
            'format': folder.kind.title,
            'mode': next(mode for mode, kind in MODES.items() if kind.maps == folder.kind.maps),
            'domain': args.domain,
            'crf_iteration': args.crf_iteration,
            **scores,
            'made_with': folder.record,
            'identity': folder.identity,
            'seconds': round(time.monotonic() - begun, 2),
        }
        folder.check_unchanged()
        content = results.write(name, content, dataset, masked, packed)
        if args.csv:
            results.write_csv(args.csv, content)
    report(content)  # last, because a reader such as head may close stdout
    print(f'written to {path}')


if __name__ == '__main__':
    script.run(main, parse_args)
