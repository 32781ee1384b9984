"""Stage 3: affinity labels, from confident CAMs refined by a dense CRF.

Reads   experiments/predictions/{experiment_name}/{id}.npz of stage 2; images of the list --domain
Writes  experiments/predictions/{experiment_name}@aff_fg={fg}_bg={bg}/{id}.png: 0..C, 255 ignore

    python3 make_affinity_labels.py --experiment_name ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0 \\
        --domain train_aug --fg_threshold 0.40 --bg_threshold 0.10 --data_dir $D
"""

import numpy as np

from core import IGNORE
from core.crf import crf_from_labels
from core.data.dataset import open_dataset
from core.maps import threshold_cams
from util import artifacts, flags, stage


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_output_folder(parser)
    data = parser.groups['data']
    data.add_argument('--experiment_name', type=flags.folder_name, required=True, help='folder of CAMs (stage 2)')
    fg, bg = 'scores above are confident foreground', 'scores below are confident background'
    parser.groups['inference'].add_argument('--fg_threshold', type=flags.real(0, 1), default=0.40, help=fg)
    parser.groups['inference'].add_argument('--bg_threshold', type=flags.real(0, 1), default=0.10, help=bg)
    flags.add_label_crf(parser, iterations=10)
    args = parser.parse_args(argv)
    if args.fg_threshold < args.bg_threshold:
        parser.error(f'--fg_threshold {args.fg_threshold} is below --bg_threshold {args.bg_threshold}')
    return args


def make_label(image_id, args, dataset, cams):
    """Return the affinity label (h, w) uint8 of an image."""
    image = np.array(dataset.read_image(image_id))
    keys, hr_cam = cams.read_maps(image_id, 'hr_cam', image.shape[:2])
    thresholded = [threshold_cams(hr_cam, threshold) for threshold in (args.fg_threshold, args.bg_threshold)]
    fg, bg = crf_from_labels(image, thresholded, len(keys), args.crf_iteration, **flags.label_crf(args))

    # Foreground above the high threshold, background below the low one, ignore in between.
    label = keys[fg]
    label[(fg == 0) & (bg != 0)] = IGNORE
    return label


def main(args):
    dataset = open_dataset(args.dataset, args.data_dir)
    ids = dataset.ids(args.domain, with_images=True)
    cams = artifacts.open_folder(artifacts.CAM, args.experiment_name, '--experiment_name', dataset, ids)
    with artifacts.create_folder(artifacts.AFFINITY_LABEL, args, dataset, ids, maps=cams) as labels:
        labels.write_missing_labels(make_label, args.num_workers, args=args, dataset=dataset, cams=cams)


if __name__ == '__main__':
    stage.run(main, parse_args)
