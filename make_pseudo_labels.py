"""Stage 6: pseudo-labels, from thresholded random-walk CAMs refined by a dense CRF.

Reads   experiments/predictions/{experiment_name}/{id}.npz of stage 5; images of the list --domain
Writes  experiments/predictions/{experiment_name}@crf={crf_iteration}/{id}.png: 0..C

    python3 make_pseudo_labels.py --experiment_name AffinityNet@ResNeSt-101@Puzzle@train@beta=10@exp_times=8@rw \\
        --domain train_aug --threshold 0.35 --crf_iteration 1 --data_dir $D

On train they should then score 72.46 mIoU (paper, Table 2).
"""

import numpy as np

from core.crf import crf_from_label
from core.data.dataset import open_dataset
from core.maps import strided_size, threshold_cams, upsample_rw
from util import artifacts, flags, stage


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_output_folder(parser)
    folder = 'folder of random-walk CAMs (stage 5)'
    parser.groups['data'].add_argument('--experiment_name', type=flags.folder_name, required=True, help=folder)
    threshold = 'scores above are foreground'
    parser.groups['inference'].add_argument('--threshold', type=flags.real(0, 1), default=0.35, help=threshold)
    flags.add_label_crf(parser, iterations=1)
    return parser.parse_args(argv)


def make_label(image_id, args, dataset, random_walks):
    """Return the pseudo-label (h, w) uint8 of an image."""
    image = np.array(dataset.read_image(image_id))
    size = image.shape[:2]
    keys, rw = random_walks.read_maps(image_id, 'rw', strided_size(size))
    label = threshold_cams(upsample_rw(rw, size), args.threshold)
    return keys[crf_from_label(image, label, len(keys), args.crf_iteration, **flags.label_crf(args))]


def main(args):
    dataset = open_dataset(args.dataset, args.data_dir)
    ids = dataset.ids(args.domain, with_images=True)
    kind = artifacts.RANDOM_WALK
    random_walks = artifacts.open_folder(kind, args.experiment_name, '--experiment_name', dataset, ids)
    with artifacts.create_folder(artifacts.PSEUDO_LABEL, args, dataset, ids, maps=random_walks) as labels:
        inputs = {'args': args, 'dataset': dataset, 'random_walks': random_walks}
        labels.write_missing_labels(make_label, args.num_workers, **inputs)


if __name__ == '__main__':
    stage.run(main, parse_args)
