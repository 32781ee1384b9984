"""Stage 3: affinity labels, where confident CAMs and a dense CRF agree.

Reads   experiments/predictions/{experiment_name}/{id}.npz of stage 2; images of the list --domain
Writes  experiments/predictions/{experiment_name}@aff_fg={fg}_bg={bg}/{id}.png: 0..C, 255 unsure

    python3 make_affinity_labels.py --experiment_name ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0 \\
        --domain train_aug --fg_threshold 0.40 --bg_threshold 0.10 --data_dir $D
"""

from tools import flags


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_making(parser)
    parser.add_argument('--experiment_name', type=flags.folder_name, required=True, help='folder of CAMs')
    parser.add_argument('--fg_threshold', type=flags.real(0, 1), default=0.40, help='sure foreground is above it')
    parser.add_argument('--bg_threshold', type=flags.real(0, 1), default=0.10, help='sure background is below it')
    args = parser.parse_args(argv)
    if args.fg_threshold < args.bg_threshold:
        parser.error(f'--fg_threshold {args.fg_threshold} is below --bg_threshold {args.bg_threshold}')
    return args


if __name__ == '__main__':
    ARGS = parse_args()  # --help and a wrong flag answer before the heavy imports

from functools import partial

import numpy as np

from core import IGNORE, InputError
from core.crf import crf_from_labels
from core.datasets import check_files, encode_mask, image_path, load_info, read_image, read_mask
from core.maps import predict
from tools import stage
from tools.experiment import affinity_label_name, check_inputs, folder_identity, input_folder, output_folder
from tools.files import read_maps, write_bytes


def make_label(image_id, args, info, cams, folder):
    """Write one image's affinity label."""
    image = np.array(read_image(image_path(args.data_dir, image_id)))
    keys, hr_cam = read_maps(cams / f'{image_id}.npz', 'hr_cam', info.num_classes, image.shape[:2])
    sure = [predict(hr_cam, threshold) for threshold in (args.fg_threshold, args.bg_threshold)]
    fg, bg = crf_from_labels(image, sure, len(keys))

    # Foreground where even the high threshold says so, background where even the low one does, unsure between.
    label = keys[fg]
    label[(fg == 0) & (bg != 0)] = IGNORE
    write_bytes(folder / f'{image_id}.png', encode_mask(label, info.palette))


def main(args):
    info = load_info(args.dataset)
    ids = info.ids(args.domain)
    cams = input_folder(args.experiment_name, '--experiment_name', 'inference_classification.py')
    check_inputs(cams, ids, '.npz', 'inference_classification.py')
    read_maps(cams / f'{ids[0]}.npz', 'hr_cam', info.num_classes)  # a wrong folder shows before anything is touched
    check_files([image_path(args.data_dir, image_id) for image_id in ids], 'check --data_dir')
    name = affinity_label_name(args.experiment_name, args.fg_threshold, args.bg_threshold)
    check = partial(read_mask, num_classes=info.num_classes)
    folder, todo = output_folder(name, args, ids, '.png', check, maps=folder_identity(cams))
    make = partial(make_label, args=args, info=info, cams=cams, folder=folder)
    for _ in stage.each(make, todo, args.num_workers, 'affinity labels'):
        pass
    print(f'{len(ids)} affinity labels in {folder}, {len(todo)} of them new')


if __name__ == '__main__':
    stage.run(main, ARGS, InputError)
