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
from core.models import BACKBONES, Classifier
from core.models.batchnorm import fold_batchnorm
from util import artifacts, flags, loaders, stage
from util.checkpoint import load_model
from util.devices import pick_device, to_device
from util.parallel import BackgroundWriter


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_inference(parser)
    model = parser.groups['model']
    model.add_argument('--tag', type=flags.folder_name, required=True, help='model of stage 1')
    model.add_argument('--architecture', default='resnest101', choices=BACKBONES, help='backbone of the model')
    flags.add_scales(parser)
    return parser.parse_args(argv)


def main(args):
    # Read the image-level labels: they say which classes get a CAM.
    dataset = open_dataset(args.dataset, args.data_dir)
    ids = dataset.ids(args.domain)
    dataset.check_images(ids)
    labels = {image_id: dataset.read_labels(image_id) for image_id in ids}

    # Load the classifier.
    device = pick_device(args.device)
    model = Classifier(args.architecture, dataset.num_classes)
    script = 'train_classification_with_puzzle.py'
    model_hash = load_model(model, args.tag, '--tag', script, args.architecture)
    model = to_device(fold_batchnorm(model), device, args.precision)

    inputs = {'model': model_hash, 'classes': dataset.class_names}
    with artifacts.create_folder(artifacts.CAM, args, dataset, ids, **inputs) as cams:
        scales = flags.floats(args.scales)
        batches = MultiScaleDataset(dataset, ids, cams.missing, scales, args.batch_size, args.resize)
        loader = loaders.ordered_loader(batches, None, args.num_workers, device)
        with BackgroundWriter(args.num_workers) as writer:
            for batch_ids, images, scaled in stage.progress(loader, 'batches of CAMs'):
                # Sum class maps over scales and mirror images.
                scaled = [normalize(version.to(device, non_blocking=True)) for version in scaled]
                present = torch.from_numpy(np.stack([labels[image_id] for image_id in batch_ids])).to(device)
                maps = multi_scale_cam(model, scaled, present, images[0].shape[:2])

                # Write the CAMs of the present classes.
                for image_id, (cam, hr_cam) in zip(batch_ids, maps, strict=True):
                    if image_id in cams.missing:
                        keys = present_keys(labels[image_id])
                        writer.submit(cams.write_maps, image_id, keys, cam.cpu().numpy(), hr_cam.cpu().numpy())
    print(cams.summary())


if __name__ == '__main__':
    stage.run(main, parse_args)
