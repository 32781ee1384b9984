"""Stage 8: predictions of the segmentation network, over scales and mirror image, refined by a dense CRF.

Reads   experiments/models/{tag}.pth of stage 7; images of the list --domain
Writes  experiments/predictions/{tag}@{domain}@scale={scales}@iteration={iteration}/{id}.png: 0..C

    python3 inference_segmentation.py --backbone resnest101 --mode fix --use_gn True \\
        --tag DeepLabv3+@ResNeSt-101@Fix@GN --scale 0.5,1.0,1.5,2.0 --iteration 10
"""

from core.backbone import BACKBONES
from tools import flags


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_inference(parser, domain='val')
    parser.add_argument('--tag', type=flags.folder_name, required=True, help='the model of stage 7')
    flags.add_segmenter(parser, BACKBONES)
    flags.add_scales(parser)
    parser.add_argument('--iteration', type=flags.integer(0), default=10, help='of the dense CRF; 0: none')
    return parser.parse_args(argv)


if __name__ == '__main__':
    ARGS = parse_args()  # --help and a wrong flag answer before the heavy imports

from functools import partial

import torch

from core import InputError
from core.crf import crf_from_probability
from core.datasets import ScaledBatches, encode_mask, load_info, read_mask
from core.deeplab import multi_scale_logits
from core.networks import build_segmenter, for_inference
from core.transforms import network_input, scaled
from tools import UserError, stage
from tools.checkpoint import load_model
from tools.device import ordered_loader, pick_device, place
from tools.experiment import file_hash, model_path, output_folder, segmentation_name
from tools.files import write_bytes


def write_prediction(path, image, probability, iterations, palette):
    """Refine one image's probabilities (C+1, h, w) and write the classes; runs behind the network."""
    prediction = crf_from_probability(image, probability, iterations).argmax(0)
    write_bytes(path, encode_mask(prediction, palette))


def main(args):
    writers = stage.Behind(args.num_workers, processes=True)
    info = load_info(args.dataset)
    ids = info.ids(args.domain)
    scale = partial(scaled, by=args.resize)
    images = ScaledBatches(args.data_dir, ids, flags.floats(args.scales), args.batch_size, scale, torch.stack)

    device = pick_device(args.device)
    model = build_segmenter(args.architecture, args.backbone, info.num_classes + 1, args.mode, args.use_gn)
    load_model(model, model_path(args.tag), '--tag', 'train_segmentation.py', flags.segmenter_name(args))
    model = place(for_inference(model), device, args.precision)

    name = segmentation_name(args.tag, args.domain, args.scales, args.iteration)
    check = partial(read_mask, num_classes=info.num_classes)
    made_of = {'model': file_hash(model_path(args.tag)), 'classes': info.class_names}
    folder, todo = output_folder(name, args, ids, '.png', check, **made_of)
    images.keep(todo)
    loader = ordered_loader(images, None, args.num_workers, device)
    with writers:
        for batch_ids, originals, versions in stage.progress(loader, 'batches of predictions'):
            versions = [network_input(version.to(device, non_blocking=True)) for version in versions]
            logits = multi_scale_logits(model, versions, originals[0].shape[:2])
            if not torch.isfinite(logits).all():
                raise UserError(f'{batch_ids[0]}: logits that are not finite: the model of --tag {args.tag} diverged')
            probabilities = torch.softmax(logits, 1).cpu().numpy()
            for image_id, image, probability in zip(batch_ids, originals, probabilities, strict=True):
                if image_id in todo:
                    path = folder / f'{image_id}.png'
                    writers.submit(write_prediction, path, image, probability, args.iteration, info.palette)
    print(f'{len(ids)} predictions in {folder}, {len(todo)} of them new')


if __name__ == '__main__':
    stage.run(main, ARGS, InputError)
