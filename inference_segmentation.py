"""Stage 8: multi-scale, flip-averaged predictions of the segmentation network, refined by a dense CRF.

Reads   experiments/models/{tag}.pth of stage 7; images of the list --domain
Writes  experiments/predictions/{tag}@{domain}@scale={scales}@iteration={iteration}/{id}.png: 0..C (of a data
        set without a background 1..C)

    python3 inference_segmentation.py --backbone resnest101 --mode fix --use_gn True \\
        --tag DeepLabv3+@ResNeSt-101@Fix@GN --scale 0.5,1.0,1.5,2.0 --iteration 10
"""

import util.startup

from core.chain import image_probabilities
from core.crf import check_installed, crf_from_probability
from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from core.models import SEGMENTERS
from core.tiles import label_by_tiles
from util import crf_flags, flags, script
from util.parallel.workers import BackgroundWriter
from util.store import PREDICTION, create_folder
from util.training import batches_on_device, load_network, options


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(options.INFERENCE, options.SCALES, options.TRAINED_SEGMENTER, crf_flags.PREDICTIONS, domain='val')
    parser.groups['model'].add_argument('--tag', type=flags.folder_name, required=True, help='model of stage 7')
    return parser.parse_args(argv)


def write_prediction(predictions, image_id, image, probability, iterations, kernels, tile):
    """Refine class probabilities (outputs, h, w) and write the prediction; runs in the background."""

    def refine(image, maps):
        return crf_from_probability(image, maps, iterations, **kernels).argmax(0)

    label = label_by_tiles(refine, image, probability, tile)
    predictions.write_label(image_id, label + predictions.dataset.first_label)


def main(args):
    check_installed(args.iteration)

    # Fork the CRF's processes first: forking is not safe once torch has threads or a GPU. Tiles stay in this process.
    writer = BackgroundWriter(0 if args.tile else args.num_workers, processes=True)

    # Load the segmentation network.
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    ids = dataset.ids(args.domain, with_images=True)
    segmenter, device, model = load_network(dataset, SEGMENTERS, '--tag', args.tag, **args.pick(options.NETWORK))

    kernels = crf_flags.kernels(args.crf_gaussian, args.crf_bilateral)
    inputs, crf = {'model': model, **args.pick(flags.OUTPUT)}, (args.iteration, kernels, args.tile)
    with create_folder(PREDICTION, args.record(), dataset, ids, **inputs) as predictions, writer:
        scales, missing = flags.floats(args.scales), predictions.missing
        batches = MultiScaleDataset(dataset, predictions.ids, missing, scales, args.batch_size, args.resize, args.tile)
        batches = batches_on_device(batches, args.num_workers, device, 'batches of predictions')
        for batch_ids, images, pixels in batches:
            # Sum logits over scales and mirror images, then one softmax.
            probabilities = image_probabilities(segmenter, pixels, images[0].shape[:2])

            # Refine and write in the background.
            for image_id, image, probability in zip(batch_ids, images, probabilities, strict=True):
                if image_id in missing:
                    writer.submit(write_prediction, predictions, image_id, image, probability, *crf)


if __name__ == '__main__':
    script.run(main, parse_args)
