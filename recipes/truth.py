"""CAMs that are the truth: with them a chain shows what is lost in each of its later steps.

Reads   the ground-truth masks and image-level labels of the images of the list --domain
Writes  experiments/predictions/{tag}@{train|val}@truth/{id}.npz: what stage 2 writes, 1 on the pixels of a class and 0
        elsewhere, for stages 3, 5 and 9

    python3 -m recipes.truth --tag photographs@cl@seed=0 --dataset data/voc2012_2007.json --data_dir VOC_ROOT

Void pixels are VOID in every map, between the thresholds of stage 3, which ignores them then. recipes/readouts.py has
these maps as a read-out (--cam truth), and AffinityNet that was trained on them (--edges truth). Changed masks are
noticed, but the line names stage 2: run this program again with --overwrite instead.
"""

import util.startup

from functools import partial

import numpy as np

from core import IGNORE, UserError
from core.data.dataset import open_dataset
from core.maps import present_keys
from util import flags, script
from util.parallel.workers import parallel_map
from util.store import CAM, create_folder
from util.store.hashes import label_hashes, mask_hashes

TRUTH = CAM._replace(folder='{tag}@{split}@truth', optional=())
VOID = 0.25


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(flags.OUTPUT_FOLDER)
    tag = 'first part of the name of the folder'
    parser.groups['run and output'].add_argument('--tag', type=flags.folder_name, required=True, help=tag)
    return parser.parse_args(argv)


def true_maps(mask: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return maps (K, h, w) float32 of the classes of keys (K+1,) from a mask (h, w): 1, 0, and VOID at 255."""
    return np.where(mask == IGNORE, VOID, mask == keys[1:, None, None]).astype(np.float32)


def write_maps(image_id, dataset, labels, target):
    """Write the maps of an image; cam has every fourth pixel of hr_cam."""
    keys = present_keys(labels[image_id])
    maps = true_maps(dataset.read_mask(image_id, dataset.image_size(image_id)), keys)
    target.write_maps(image_id, keys, maps[:, ::4, ::4], maps)


def main(args):
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    ids = dataset.ids(args.domain, with_images=True)
    lacking = set(ids) - set(dataset.ids_with_masks(args.domain))
    if lacking:
        raise UserError(
            f'{args.domain}: {len(lacking)} of {len(ids)} images have no mask ({min(lacking)})', option='domain'
        )
    labels = dict(zip(ids, dataset.read_all_labels(ids), strict=True))
    masks = mask_hashes({image_id: dataset.mask_path(image_id) for image_id in ids}, dataset.mask_values)
    inputs = {'labels': label_hashes(labels), 'masks': masks, **args.pick(flags.OUTPUT)}
    with create_folder(TRUTH, args.record(), dataset, ids, **inputs) as target:
        todo = [image_id for image_id in target.ids if image_id in target.missing]
        write = partial(write_maps, dataset=dataset, labels=labels, target=target)
        for _ in parallel_map(write, todo, args.num_workers, 'true CAMs'):
            pass


if __name__ == '__main__':
    script.run(main, parse_args)
