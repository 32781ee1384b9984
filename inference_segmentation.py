"""Stage 8: multi-scale, flip-averaged predictions of the segmentation network, refined by a dense CRF.

Reads   experiments/models/{tag}.pth of stage 7; images of the list --domain
Writes  experiments/predictions/{tag}@{domain}@scale={scales}@iteration={iteration}/{id}.png: 0..C

    python3 inference_segmentation.py --backbone resnest101 --mode fix --use_gn True \\
        --tag DeepLabv3+@ResNeSt-101@Fix@GN --scale 0.5,1.0,1.5,2.0 --iteration 10
"""

import torch

from core import UserError
from core.crf import crf_from_probability
from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from core.data.transforms import normalize
from core.models import BACKBONES, SEGMENTERS, build_segmenter
from core.models.batchnorm import fold_batchnorm
from core.models.deeplab import multi_scale_logits
from util import artifacts, flags, loaders, stage
from util.checkpoint import load_model
from util.devices import pick_device, to_device
from util.parallel import BackgroundWriter


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_inference(parser, domain='val')
    parser.groups['model'].add_argument('--tag', type=flags.folder_name, required=True, help='model of stage 7')
    flags.add_segmenter(parser, SEGMENTERS, BACKBONES)
    flags.add_scales(parser)
    iterations = 'dense CRF iterations (0: no CRF)'
    parser.groups['inference'].add_argument('--iteration', type=flags.integer(0), default=10, help=iterations)
    return parser.parse_args(argv)


def write_prediction(predictions, image_id, image, probability, iterations):
    """Refine class probabilities (C+1, h, w) and write the prediction; runs in a background process."""
    predictions.write_label(image_id, crf_from_probability(image, probability, iterations).argmax(0))


def main(args):
    # Fork the CRF's processes first: a fork is not safe once torch has threads or a GPU.
    writer = BackgroundWriter(args.num_workers, processes=True)

    # Load the network.
    dataset = open_dataset(args.dataset, args.data_dir)
    ids = dataset.ids(args.domain)
    dataset.check_images(ids)
    device = pick_device(args.device)
    model = build_segmenter(args.architecture, args.backbone, dataset.num_classes + 1, args.mode, args.use_gn)
    model_hash = load_model(model, args.tag, '--tag', 'train_segmentation.py', flags.segmenter_name(args))
    model = to_device(fold_batchnorm(model), device, args.precision)

    inputs = {'model': model_hash, 'classes': dataset.class_names}
    with artifacts.create_folder(artifacts.PREDICTION, args, dataset, ids, **inputs) as predictions, writer:
        scales = flags.floats(args.scales)
        batches = MultiScaleDataset(dataset, ids, predictions.missing, scales, args.batch_size, args.resize)
        loader = loaders.ordered_loader(batches, None, args.num_workers, device)
        for batch_ids, images, scaled in stage.progress(loader, 'batches of predictions'):
            # Sum logits over scales and mirror images, then one softmax.
            scaled = [normalize(version.to(device, non_blocking=True)) for version in scaled]
            logits = multi_scale_logits(model, scaled, images[0].shape[:2])
            if not torch.isfinite(logits).all():
                raise UserError(
                    f'{batch_ids[0]}: the logits are not finite: the model of --tag {args.tag} has diverged'
                )
            probabilities = torch.softmax(logits, 1).cpu().numpy()

            # Refine and write in the background.
            for image_id, image, probability in zip(batch_ids, images, probabilities, strict=True):
                if image_id in predictions.missing:
                    writer.submit(write_prediction, predictions, image_id, image, probability, args.iteration)
    print(predictions.summary())


if __name__ == '__main__':
    stage.run(main, parse_args)
