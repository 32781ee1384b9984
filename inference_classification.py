"""Stage 2: CAMs of whole images, over scales and mirror image.

Reads   experiments/models/{tag}.pth of stage 1; images and XML of the list --domain (the labels are the true ones,
        for val too: figures of these CAMs describe label quality, not prediction)
Writes  experiments/predictions/{tag}@{train|val}@scale={scales}/{id}.npz: keys, cam at stride 4, hr_cam

    python3 inference_classification.py --architecture resnest101 --tag ResNeSt101@Puzzle@optimal --domain train_aug \\
        --data_dir $D
"""

from core.backbone import BACKBONES
from tools import flags


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_inference(parser)
    parser.add_argument('--tag', type=flags.folder_name, required=True, help='the model of stage 1')
    parser.add_argument('--architecture', default='resnest101', choices=BACKBONES, help='backbone it was trained with')
    flags.add_scales(parser)
    return parser.parse_args(argv)


if __name__ == '__main__':
    ARGS = parse_args()  # --help and a wrong flag answer before the heavy imports

from functools import partial

import numpy as np
import torch

from core import InputError
from core.cam import multi_scale_cam
from core.datasets import ScaledBatches, keys_of, load_info, read_labels, xml_path
from core.networks import Classifier, for_inference
from core.transforms import network_input, scaled
from tools import stage
from tools.checkpoint import load_model
from tools.device import ordered_loader, pick_device, place
from tools.experiment import cam_name, file_hash, model_path, output_folder
from tools.files import read_maps, write_cam


def main(args):
    info = load_info(args.dataset)
    ids = info.ids(args.domain)
    labels = {image_id: read_labels(xml_path(args.data_dir, image_id), info) for image_id in ids}
    scale = partial(scaled, by=args.resize)
    images = ScaledBatches(args.data_dir, ids, flags.floats(args.scales), args.batch_size, scale, torch.stack)

    device = pick_device(args.device)
    model = Classifier(args.architecture, info.num_classes)
    load_model(model, model_path(args.tag), '--tag', 'train_classification_with_puzzle.py', args.architecture)
    model = place(for_inference(model), device, args.precision)

    name = cam_name(args.tag, args.domain, args.scales)
    check = partial(read_maps, name='hr_cam', num_classes=info.num_classes)
    made_of = {'model': file_hash(model_path(args.tag)), 'classes': info.class_names}
    folder, todo = output_folder(name, args, ids, '.npz', check, **made_of)
    images.keep(todo)
    loader = ordered_loader(images, None, args.num_workers, device)
    with stage.Behind(args.num_workers) as writers:
        for batch_ids, originals, versions in stage.progress(loader, 'batches of CAMs'):
            versions = [network_input(version.to(device, non_blocking=True)) for version in versions]
            present = torch.from_numpy(np.stack([labels[image_id] for image_id in batch_ids])).to(device)
            cams = multi_scale_cam(model, versions, present, originals[0].shape[:2])
            for image_id, (cam, hr_cam) in zip(batch_ids, cams, strict=True):
                if image_id not in todo:
                    continue
                maps = keys_of(labels[image_id]), cam.cpu().numpy(), hr_cam.cpu().numpy()
                writers.submit(write_cam, folder / f'{image_id}.npz', *maps)
    print(f'{len(ids)} CAMs in {folder}, {len(todo)} of them new')


if __name__ == '__main__':
    stage.run(main, ARGS, InputError)
