"""Stage 2: multi-scale, flip-averaged CAMs of whole images.

Reads   experiments/models/{tag}.pth of stage 1; images and annotations of the list --domain. The image-level labels are
        ground truth, for val too: scores of these CAMs measure label quality, not prediction
Writes  experiments/predictions/{tag}@{train|val}@scale={scales}/{id}.npz: keys (K+1,), cam (K, h/4, w/4),
        hr_cam (K, h, w)

    python3 inference_classification.py --architecture resnest101 --tag ResNeSt101@Puzzle@optimal --domain train_aug \\
        --data_dir $D
"""

import numpy as np
import torch

from core.cam import multi_scale_cam
from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from core.data.transforms import normalize
from core.maps import present_keys
from core.models import BACKBONES, build_network
from util import artifacts, checkpoint, flags, loaders, parallel, stage
from util.fingerprint import label_hashes


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_inference(parser)
    parser.groups['model'].add_argument('--tag', type=flags.folder_name, required=True, help='model of stage 1')
    flags.add_backbone(parser, 'the classifier', BACKBONES)
    flags.add_scales(parser)
    return parser.parse_args(argv)


def main(args):
    # Read the image-level labels: they say which classes get a CAM.
    dataset = open_dataset(args.dataset, args.data_dir)
    ids = dataset.ids(args.domain, with_images=True)
    labels = dict(zip(ids, dataset.read_all_labels(ids), strict=True))

    # Load the classifier.
    file = checkpoint.open_model(args.tag, '--tag', 'train_classification_with_puzzle.py')
    meta = file.resolve(args, dataset, ['Classifier'], architecture='backbone')
    model, device, model_hash = file.load_for_inference(build_network(meta), args)

    blank = []  # images with a CAM that is zero everywhere
    inputs = {'model': model_hash, 'labels': label_hashes(labels)}
    with artifacts.create_folder(artifacts.CAM, args, dataset, ids, **inputs) as cams:
        scales = flags.floats(args.scales)
        batches = MultiScaleDataset(dataset, cams.ids, cams.missing, scales, args.batch_size, args.resize)
        batches = loaders.batches_on_device(batches, args.num_workers, device, 'batches of CAMs')
        with parallel.BackgroundWriter(args.num_workers) as writer:
            for batch_ids, images, pixels in batches:
                # Sum class maps over scales and mirror images.
                present = torch.from_numpy(np.stack([labels[image_id] for image_id in batch_ids])).to(device)
                scaled = [normalize(x) for x in pixels]
                maps = multi_scale_cam(model, scaled, present, images[0].shape[:2])

                # Write the CAMs of the present classes.
                for image_id, (cam, hr_cam) in zip(batch_ids, maps, strict=True):
                    if image_id in cams.missing:
                        blank += [] if cam.amax((1, 2)).all() else [image_id]
                        keys = present_keys(labels[image_id])
                        writer.submit(cams.write_maps, image_id, keys, cam.cpu().numpy(), hr_cam.cpu().numpy())
    stage.warn(blank, cams.missing, 'have a CAM that is zero everywhere: the classifier does not see the class')


if __name__ == '__main__':
    stage.run(main, parse_args)
