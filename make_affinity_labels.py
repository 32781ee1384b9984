"""Stage 3: affinity labels, from confident CAMs refined by a dense CRF.

Reads   experiments/predictions/{experiment_name}/{id}.npz of stage 2; images of the list --domain
Writes  experiments/predictions/{experiment_name}@aff_fg={fg}_bg={bg}/{id}.png: 0..C, 255 ignore; of a data set without
        a background {experiment_name}@aff_fg={fg}/{id}.png: 1..C, 255

    python3 make_affinity_labels.py --experiment_name ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0 \\
        --domain train_aug --fg_threshold 0.40 --bg_threshold 0.10 --data_dir $D
"""

import util.startup

import numpy as np

from core.crf import check_installed
from core.data.dataset import open_dataset
from core.labels import BG_THRESHOLD, FG_THRESHOLD, affinity_label
from core.tiles import label_by_tiles
from util import crf_flags, flags, script
from util.store import AFFINITY_LABEL, CAM, create_folder, open_folder


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(flags.OUTPUT_FOLDER, crf_flags.LABELS)
    data = parser.groups['data']
    folder = 'folder of CAMs of stage 2, such as TAG@train@scale=0.5,1.0,1.5,2.0'
    data.add_argument('--experiment_name', type=flags.folder_name, required=True, help=folder)
    fg = 'CAM score (0 to 1) above which a pixel is foreground; between the two thresholds it is ignored (without a '
    fg += 'background: ignored unless exactly one CAM is above)'
    bg = 'CAM score below which a pixel is background'
    parser.groups['inference'].add_argument('--fg_threshold', type=flags.real(0, 1), default=FG_THRESHOLD, help=fg)
    parser.groups['inference'].add_argument('--bg_threshold', type=flags.real(0, 1), default=BG_THRESHOLD, help=bg)
    args = parser.parse_args(argv)
    if args.fg_threshold < args.bg_threshold:
        parser.error(f'--fg_threshold {args.fg_threshold} is below --bg_threshold {args.bg_threshold}')
    return args


def make_label(image_id, args, dataset, cams):
    """Return the affinity label (h, w) of an image."""
    image = np.array(dataset.read_image(image_id))
    keys, maps = cams.read_scores(image_id, image.shape[:2], args.tile)
    crf = crf_flags.label_options(args.gt_prob, args.crf_gaussian, args.crf_bilateral)
    options = {'keys': keys, 'iterations': args.crf_iteration, **crf}
    options |= {'fg_threshold': args.fg_threshold}
    options |= {'bg_threshold': args.bg_threshold if dataset.has_background else None}
    return label_by_tiles(affinity_label, image, maps, args.tile, **options)


def main(args):
    check_installed(args.crf_iteration)
    dataset, record = open_dataset(args.dataset, args.data_dir, args.window, args.plane), args.record()
    if not dataset.has_background:
        record.check_unused(['bg_threshold'], f'the data set "{dataset.name}" has no background')
        record = record.changed(bg_threshold=None)
    ids = dataset.ids(args.domain, with_images=True)
    cams = open_folder(CAM, args.experiment_name, '--experiment_name', dataset, ids)
    inputs = {'maps': cams, **args.pick(flags.OUTPUT)}
    with create_folder(AFFINITY_LABEL, record, dataset, ids, **inputs) as labels:
        labels.write_missing_labels(make_label, args.num_workers, args=args, dataset=dataset, cams=cams)


if __name__ == '__main__':
    script.run(main, parse_args)
