"""Stage 9: mIoU of CAMs (stage 2), walked CAMs (stage 5), pseudo-labels (stage 6) or predictions (stage 8).

Reads   experiments/predictions/{experiment_name}/; masks of the list --domain
Writes  experiments/results/{experiment_name}@{domain}.json: every figure, by class and by threshold; for --domain test,
        whose masks are secret, experiments/results/{experiment_name}@test.tgz for the VOC test server

    python3 evaluate.py --experiment_name DeepLabv3+@ResNeSt-101@Fix@GN@val@scale=0.5,1.0,1.5,2.0@iteration=10 \\
        --domain val --data_dir $D/SegmentationClass
"""

from tools import flags


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_data(parser, data_dir=False)
    flags.add_workers(parser)
    where = 'the folder of masks, or the root that holds SegmentationClass'
    parser.add_argument('--data_dir', '--gt_dir', default='../VOC2012/', help=where)
    parser.add_argument('--experiment_name', type=flags.folder_name, required=True, help='folder to score')
    parser.add_argument('--domain', default='train', help='list of images')
    parser.add_argument('--mode', choices=('npy', 'png', 'rw'), help='CAMs, label maps, walked CAMs; default: as found')
    parser.add_argument('--threshold', type=flags.real(0, 1), help='score this background threshold alone')
    parser.add_argument('--max_th', type=flags.real(0.06, 1), default=0.50, help='end of the thresholds of mode rw')
    return parser.parse_args(argv)


if __name__ == '__main__':
    ARGS = parse_args()  # --help and a wrong flag answer before the heavy imports

import io
import tarfile
from functools import partial

import numpy as np

from core import IGNORE, InputError
from core.datasets import check_files, encode_mask, label_path, load_info, mask_path, read_mask
from core.maps import finish_walk, strided_size
from core.metrics import ConfusionMatrix, ThresholdSweep
from tools import UserError, stage
from tools.experiment import check_inputs, experiment_options, input_folder, maker_of, results_path, write_json
from tools.files import maps_inside, read_maps, remove_leftovers, write_bytes


def figures(matrix, info):
    """What is kept of a confusion matrix: percentages, None for a class that does not occur."""
    names = ('background', *info.class_names)
    iou = {name: None if np.isnan(x) else round(100 * x, 4) for name, x in zip(names, matrix.iou(), strict=True)}
    means = {'miou': matrix.miou(), 'fp': matrix.fp(), 'fn': matrix.fn()}
    if np.isnan(means['fp']):
        raise UserError('neither masks nor predictions contain a class: nothing to score (--domain, --data_dir?)')
    return {**{name: 100 * value for name, value in means.items()}, 'iou': iou}


def read_prediction(path, info, size=None):
    """A label map without 255."""
    prediction = read_mask(path, info.num_classes, size)
    if (prediction == IGNORE).any():
        raise UserError(f'{path}: holds {IGNORE} (unsure), which cannot be scored: affinity labels are no predictions')
    return prediction


def count_image(image_id, args, mode, folder, info, thresholds):
    """The pixel counts of one image."""
    mask = read_mask(mask_path(args.data_dir, image_id), info.num_classes)
    if mode == 'png':
        counts = ConfusionMatrix(info.num_classes + 1)
        counts.update(read_prediction(label_path(folder, image_id), info, mask.shape), mask)
        return counts
    counts = ThresholdSweep(info.num_classes + 1, thresholds)
    name, size = ('rw', strided_size(mask.shape)) if mode == 'rw' else ('hr_cam', mask.shape)
    keys, maps = read_maps(folder / f'{image_id}.npz', name, info.num_classes, size)
    counts.update(finish_walk(maps, mask.shape) if mode == 'rw' else maps, keys, mask)
    return counts


def count(args, mode, folder, ids, info):
    """[(threshold, ConfusionMatrix)] over all listed images; the one threshold of label maps is None."""
    end = args.max_th if mode == 'rw' else 0.80
    thresholds = [round(0.05 * i, 2) for i in range(1, 20) if 0.05 * i < end - 1e-9]
    if args.threshold is not None:
        thresholds = [args.threshold]
    one = partial(count_image, args=args, mode=mode, folder=folder, info=info, thresholds=thresholds)
    total = ConfusionMatrix(info.num_classes + 1) if mode == 'png' else ThresholdSweep(info.num_classes + 1, thresholds)
    for counts in stage.each(one, ids, args.num_workers, 'scoring'):
        total.counts += counts.counts
    return [(None, total)] if mode == 'png' else list(zip(thresholds, total.matrices(), strict=True))


def find_mode(folder, image_id):
    """What the folder's own files are. Raises UserError where there is nothing to score."""
    path = folder / f'{image_id}.npz'
    if path.is_file():
        names = maps_inside(path)
        if not {'rw', 'hr_cam'} & {*names}:
            raise UserError(f'{path}: holds neither "rw" nor "hr_cam", or is damaged; {maker_of(folder.name)} makes it')
        return 'rw' if 'rw' in names else 'npy'
    if label_path(folder, image_id).is_file():
        return 'png'
    raise UserError(f'{folder} holds neither {image_id}.npz nor {image_id}.png; {maker_of(folder.name)} makes them')


def pack(folder, ids, info, path):
    """The upload for the VOC test server: 8-bit palette PNGs of class indices in a .tgz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for image_id in stage.progress(ids, 'packing'):
            content = encode_mask(read_prediction(label_path(folder, image_id), info), info.palette)
            member = tarfile.TarInfo(f'results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    write_bytes(path, buffer.getvalue())
    print(f'{path}: {len(ids)} predictions for the test server')


def report(rows, mode):
    """Print a line for each threshold and the best one's IoU by class."""
    for threshold, row in rows:
        at = '' if threshold is None else f'threshold {threshold:.2f}: '
        print(f'{at}mIoU {row["miou"]:.2f} %, FP {row["fp"]:.2f} %, FN {row["fn"]:.2f} %')
    best_threshold, best = max(rows, key=lambda item: item[1]['miou'])
    for name, iou in best['iou'].items():
        print(f'  {name:14} {"  -" if iou is None else f"{iou:6.2f}"}')
    at = '' if best_threshold is None else f' at threshold {best_threshold:.2f}'
    print(f'best mIoU {best["miou"]:.2f} %{at}')
    if mode == 'rw' and len(rows) > 1:
        # Thresholds that err to either side of the best one.
        for name, factor in (('over', 1.6), ('under', 0.6)):
            near = min(rows, key=lambda item: abs(item[1]['fp'] - factor * best['fp']))
            print(
                f"{name}: FP {near[1]['fp']:.2f} % at threshold {near[0]:.2f} is closest to {factor} of the best one's"
            )
    return best_threshold, best


def main(args):
    info = load_info(args.dataset)
    ids = info.ids(args.domain)
    maker = maker_of(args.experiment_name)
    folder = input_folder(args.experiment_name, '--experiment_name', maker)
    mode = args.mode or find_mode(folder, ids[0])
    if mode == 'png' and args.threshold is not None:
        raise UserError(f'--threshold {args.threshold}: {folder} holds label maps, which have no scores')
    check_inputs(folder, ids, '.png' if mode == 'png' else '.npz', maker)
    name = f'{args.experiment_name}@{args.domain}'
    remove_leftovers(results_path(name, 'json').parent)
    if args.domain == 'test' and not any(mask_path(args.data_dir, image_id).is_file() for image_id in ids):
        pack(folder, ids, info, results_path(name, 'tgz'))
        return
    check_files([mask_path(args.data_dir, image_id) for image_id in ids], 'check --data_dir')

    matrices = count(args, mode, folder, ids, info)
    rows = [(threshold, figures(matrix, info)) for threshold, matrix in matrices]
    threshold, best = report(rows, mode)
    nothing = ConfusionMatrix(info.num_classes + 1)
    nothing.counts[:, 0] = matrices[0][1].counts.sum(1)
    print(f'(an all-background labelling: {100 * nothing.miou():.2f} %)')
    result = {
        'experiment_name': args.experiment_name,
        'domain': args.domain,
        'mode': mode,
        'images': len(ids),
        'threshold': threshold,
        **best,
        'all_background_miou': 100 * nothing.miou(),
        'thresholds': [{'threshold': threshold, **row} for threshold, row in rows],
        'made_with': experiment_options(folder),
    }
    write_json(results_path(name, 'json'), result)
    print(f'written to {results_path(name, "json")}')


if __name__ == '__main__':
    stage.run(main, ARGS, InputError)
