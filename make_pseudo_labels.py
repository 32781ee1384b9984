"""Stage 6: pseudo-labels, from thresholded random-walk CAMs refined by a dense CRF.

Reads   experiments/predictions/{experiment_name}/{id}.npz of stage 5; images of the list --domain
Writes  experiments/predictions/{experiment_name}@crf={crf_iteration}/{id}.png: 0..C (of a data
        set without a background 1..C, and --threshold has no effect)

    python3 make_pseudo_labels.py --experiment_name AffinityNet@ResNeSt-101@Puzzle@train@beta=10@exp_times=8@rw \\
        --domain train_aug --threshold 0.35 --crf_iteration 1 --data_dir $D

The paper reports 72.46 mIoU on train for these labels (Table 2). It has not been reproduced with this code.
"""

import util.startup

import numpy as np

from core.crf import check_installed
from core.data.dataset import open_dataset
from core.labels import PSEUDO_THRESHOLD, pseudo_label
from core.tiles import label_by_tiles
from util import crf_flags, flags, script
from util.store import PSEUDO_LABEL, RANDOM_WALK, create_folder, open_folder


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(flags.OUTPUT_FOLDER, crf_flags.LABELS, crf_iteration=1)
    folder = 'folder of random-walk CAMs of stage 5, such as TAG@train@beta=10@exp_times=8@rw'
    parser.groups['data'].add_argument('--experiment_name', type=flags.folder_name, required=True, help=folder)
    threshold = "score (0 to 1) above which a pixel is foreground; not part of the output's name: use --overwrite"
    parser.groups['inference'].add_argument(
        '--threshold', type=flags.real(0, 1), default=PSEUDO_THRESHOLD, help=threshold
    )
    return parser.parse_args(argv)


def make_label(image_id, args, dataset, random_walks):
    """Return the pseudo-label (h, w) of an image."""
    image = np.array(dataset.read_image(image_id))
    keys, maps = random_walks.read_scores(image_id, image.shape[:2], args.tile)
    crf = crf_flags.label_options(args.gt_prob, args.crf_gaussian, args.crf_bilateral)
    options = {'keys': keys, 'iterations': args.crf_iteration, **crf}
    options |= {'threshold': args.threshold if dataset.has_background else None}
    return label_by_tiles(pseudo_label, image, maps, args.tile, **options)


def main(args):
    check_installed(args.crf_iteration)
    dataset, record = open_dataset(args.dataset, args.data_dir, args.window, args.plane), args.record()
    if not dataset.has_background:
        record.check_unused(['threshold'], f'the data set "{dataset.name}" has no background')
        record = record.changed(threshold=None)
    ids = dataset.ids(args.domain, with_images=True)
    random_walks = open_folder(RANDOM_WALK, args.experiment_name, '--experiment_name', dataset, ids)
    inputs = {'maps': random_walks, **args.pick(flags.OUTPUT)}
    with create_folder(PSEUDO_LABEL, record, dataset, ids, **inputs) as labels:
        made_of = {'args': args, 'dataset': dataset, 'random_walks': random_walks}
        labels.write_missing_labels(make_label, args.num_workers, **made_of)


if __name__ == '__main__':
    script.run(main, parse_args)
