"""Stage 6: pseudo-labels, the walked CAMs above a threshold refined by a dense CRF.

Reads   experiments/predictions/{experiment_name}/{id}.npz of stage 5; images of the list --domain
Writes  experiments/predictions/{experiment_name}@crf={crf_iteration}/{id}.png: 0..C

    python3 make_pseudo_labels.py --experiment_name AffinityNet@ResNeSt-101@Puzzle@train@beta=10@exp_times=8@rw \\
        --domain train_aug --threshold 0.35 --crf_iteration 1 --data_dir $D

On train they should then score 72.46 mIoU (paper, Table 2).
"""

from tools import flags


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_making(parser)
    parser.add_argument('--experiment_name', type=flags.folder_name, required=True, help='folder of walked CAMs')
    parser.add_argument('--threshold', type=flags.real(0, 1), default=0.35, help='foreground is above it')
    parser.add_argument('--crf_iteration', type=flags.integer(0), default=1, help='of the dense CRF; 0: none')
    return parser.parse_args(argv)


if __name__ == '__main__':
    ARGS = parse_args()  # --help and a wrong flag answer before the heavy imports

from functools import partial

import numpy as np

from core import InputError
from core.crf import crf_from_label
from core.datasets import check_files, encode_mask, image_path, load_info, read_image, read_mask
from core.maps import finish_walk, predict, strided_size
from tools import stage
from tools.experiment import check_inputs, folder_identity, input_folder, output_folder, pseudo_label_name
from tools.files import read_maps, write_bytes


def make_label(image_id, args, info, walked, folder):
    """Write one image's pseudo-label."""
    image = np.array(read_image(image_path(args.data_dir, image_id)))
    size = image.shape[:2]
    keys, rw = read_maps(walked / f'{image_id}.npz', 'rw', info.num_classes, strided_size(size))
    label = crf_from_label(image, predict(finish_walk(rw, size), args.threshold), len(keys), args.crf_iteration)
    write_bytes(folder / f'{image_id}.png', encode_mask(keys[label], info.palette))


def main(args):
    info = load_info(args.dataset)
    ids = info.ids(args.domain)
    walked = input_folder(args.experiment_name, '--experiment_name', 'inference_rw.py')
    check_inputs(walked, ids, '.npz', 'inference_rw.py')
    read_maps(walked / f'{ids[0]}.npz', 'rw', info.num_classes)  # a wrong folder shows before anything is touched
    check_files([image_path(args.data_dir, image_id) for image_id in ids], 'check --data_dir')
    name = pseudo_label_name(args.experiment_name, args.crf_iteration)
    check = partial(read_mask, num_classes=info.num_classes)
    folder, todo = output_folder(name, args, ids, '.png', check, maps=folder_identity(walked))
    make = partial(make_label, args=args, info=info, walked=walked, folder=folder)
    for _ in stage.each(make, todo, args.num_workers, 'pseudo-labels'):
        pass
    print(f'{len(ids)} pseudo-labels in {folder}, {len(todo)} of them new')


if __name__ == '__main__':
    stage.run(main, ARGS, InputError)
