"""Stage 2: multi-scale, flip-averaged CAMs of whole images.

Reads   experiments/models/{tag}.pth of stage 1; images and annotations of the list --domain. The image-level labels are
        ground truth, for val too: scores of these CAMs measure label quality, not prediction
Writes  experiments/predictions/{tag}@{train|val}@scale={scales}/{id}.npz: keys (K+1,), cam (K, h/4, w/4),
        hr_cam (K, h, w)

    python3 inference_classification.py --architecture resnest101 --tag ResNeSt101@Puzzle@optimal --domain train_aug \\
        --data_dir $D
"""

import util.startup

import numpy as np

from core.chain import image_cams
from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from core.maps import present_keys
from util import flags, script
from util.parallel.workers import BackgroundWriter
from util.store import CAM, create_folder
from util.store.hashes import label_hashes
from util.training import batches_on_device, load_network, options


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(options.INFERENCE, options.SCALES, options.READ_OUT, options.TRAINED_BACKBONE)
    parser.groups['model'].add_argument('--tag', type=flags.folder_name, required=True, help='model of stage 1')
    return parser.parse_args(argv)


def main(args):
    # Read the image-level labels: they say which classes get a CAM.
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    ids = dataset.ids(args.domain, with_images=True)
    labels = dict(zip(ids, dataset.read_all_labels(ids), strict=True))

    # Load the classifier.
    classifier, device, model = load_network(dataset, ['Classifier'], '--tag', args.tag, **args.pick(options.NETWORK))

    blank = []  # images with a CAM that is zero everywhere
    inputs = {'model': model, 'labels': label_hashes(labels), **args.pick(flags.OUTPUT)}
    with create_folder(CAM, args.record(), dataset, ids, **inputs) as cams:
        scales = flags.floats(args.scales)
        batches = MultiScaleDataset(dataset, cams.ids, cams.missing, scales, args.batch_size, args.resize, args.tile)
        batches = batches_on_device(batches, args.num_workers, device, 'batches of CAMs')
        with BackgroundWriter(args.num_workers) as writer:
            for batch_ids, images, pixels in batches:
                # Sum class maps over scales and mirror images.
                present = np.stack([labels[image_id] for image_id in batch_ids])
                maps = image_cams(classifier, pixels, present, images[0].shape[:2], args.cam)

                # Write the CAMs of the present classes.
                for image_id, (cam, hr_cam) in zip(batch_ids, maps, strict=True):
                    if image_id in cams.missing:
                        blank += [] if cam.any((1, 2)).all() else [image_id]
                        writer.submit(cams.write_maps, image_id, present_keys(labels[image_id]), cam, hr_cam)
    script.warn(blank, cams.missing, 'have a CAM that is zero everywhere: the classifier does not see the class')


if __name__ == '__main__':
    script.run(main, parse_args)
