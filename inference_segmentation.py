"""Stage 8: multi-scale, flip-averaged predictions of the segmentation network, refined by a dense CRF.

Reads   experiments/models/{tag}.pth of stage 7; images of the list --domain
Writes  experiments/predictions/{tag}@{domain}@scale={scales}@iteration={iteration}/{id}.png: 0..C

    python3 inference_segmentation.py --backbone resnest101 --mode fix --use_gn True \\
        --tag DeepLabv3+@ResNeSt-101@Fix@GN --scale 0.5,1.0,1.5,2.0 --iteration 10
"""

import torch

from core.crf import crf_from_probability
from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from core.data.transforms import normalize
from core.models import BACKBONES, SEGMENTERS, build_network
from core.models.deeplab import multi_scale_logits
from util import artifacts, checkpoint, flags, loaders, parallel, stage


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_inference(parser, domain='val')
    parser.groups['model'].add_argument('--tag', type=flags.folder_name, required=True, help='model of stage 7')
    flags.add_segmenter(parser, SEGMENTERS, BACKBONES, trained=True)
    flags.add_scales(parser)
    iterations = 'dense CRF iterations (0: no CRF)'
    parser.groups['inference'].add_argument('--iteration', type=flags.integer(0), default=10, help=iterations)
    flags.add_crf_kernels(parser, '80,13,10')
    return parser.parse_args(argv)


def write_prediction(predictions, image_id, image, probability, args):
    """Refine class probabilities (C+1, h, w) and write the prediction; runs in a background process."""
    refined = crf_from_probability(image, probability, args.iteration, **flags.crf_kernels(args))
    predictions.write_label(image_id, refined.argmax(0))


def main(args):
    # Fork the CRF's processes first: a fork is not safe once torch has threads or a GPU.
    writer = parallel.BackgroundWriter(args.num_workers, processes=True)

    # Load the segmentation network.
    dataset = open_dataset(args.dataset, args.data_dir)
    ids = dataset.ids(args.domain, with_images=True)
    file = checkpoint.open_model(args.tag, '--tag', 'train_segmentation.py')
    options = {'architecture': 'network', 'backbone': 'backbone', 'mode': 'mode', 'use_gn': 'use_gn'}
    meta = file.resolve(args, dataset, SEGMENTERS, **options)
    model, device, model_hash = file.load_for_inference(build_network(meta), args)

    with artifacts.create_folder(artifacts.PREDICTION, args, dataset, ids, model=model_hash) as predictions, writer:
        scales, missing = flags.floats(args.scales), predictions.missing
        batches = MultiScaleDataset(dataset, predictions.ids, missing, scales, args.batch_size, args.resize)
        batches = loaders.batches_on_device(batches, args.num_workers, device, 'batches of predictions')
        for batch_ids, images, pixels in batches:
            # Sum logits over scales and mirror images, then one softmax.
            logits = multi_scale_logits(model, [normalize(scaled) for scaled in pixels], images[0].shape[:2])
            probabilities = torch.softmax(logits, 1).cpu().numpy()
            del logits  # a large array, not to be held during the CRF

            # Refine and write in the background.
            for image_id, image, probability in zip(batch_ids, images, probabilities, strict=True):
                if image_id in missing:
                    writer.submit(write_prediction, predictions, image_id, image, probability, args)


if __name__ == '__main__':
    stage.run(main, parse_args)
