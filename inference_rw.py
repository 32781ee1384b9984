"""Stage 5: let CAMs walk at random up to the edges that AffinityNet sees.

Reads   experiments/models/{model_name}.pth of stage 4; experiments/predictions/{cam_dir}/{id}.npz of stage 2;
        images of the list --domain
Writes  experiments/predictions/{model_name}@{train|val}@beta={beta}@exp_times={exp_times}@rw/{id}.npz:
        keys, rw at stride 4

    python3 inference_rw.py --architecture resnest101 --model_name AffinityNet@ResNeSt-101@Puzzle \\
        --cam_dir ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0 --domain train_aug --data_dir $D
"""

from core.backbone import BACKBONES
from tools import flags


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_inference(parser)
    parser.add_argument('--model_name', type=flags.folder_name, required=True, help='the model of stage 4')
    parser.add_argument('--architecture', default='resnest101', choices=BACKBONES, help='backbone it was trained with')
    parser.add_argument('--cam_dir', type=flags.folder_name, required=True, help='folder of CAMs')
    parser.add_argument('--beta', type=flags.real(0), default=10, help='exponent of affinities')
    parser.add_argument('--exp_times', type=flags.integer(0, 16), default=8, help='the walk takes 2^exp_times steps')
    parser.add_argument(
        '--image_size', type=flags.integer(32, 16384), default=512, help='smaller images are padded to it'
    )
    return parser.parse_args(argv)


if __name__ == '__main__':
    ARGS = parse_args()  # --help and a wrong flag answer before the heavy imports

from functools import partial

import torch
import torch.nn.functional as F

from core import InputError
from core.datasets import ScaledBatches, load_info
from core.maps import strided_size
from core.networks import AffinityNet, for_inference
from core.random_walk import random_walk
from core.transforms import network_input, scaled
from tools import stage
from tools.checkpoint import load_model
from tools.device import ordered_loader, pick_device, place
from tools.experiment import (
    check_inputs,
    file_hash,
    folder_identity,
    input_folder,
    model_path,
    output_folder,
    random_walk_name,
)
from tools.files import read_maps, write_rw


@torch.no_grad()
def edges_of(model, images, least_size):
    """Edges in [0, 1] at stride 4 of normalised images (N, 3, h, w), from them and their mirror images."""
    h, w = images.shape[2:]
    images = F.pad(images, (0, max(0, least_size - w), 0, max(0, least_size - h)))
    logits, mirrored = model(torch.cat([images, images.flip(-1)]))[:, 0].float().chunk(2)
    rows, columns = strided_size((h, w))
    return torch.sigmoid((logits + mirrored.flip(-1)) / 2)[:, :rows, :columns]


def main(args):
    info = load_info(args.dataset)
    ids = info.ids(args.domain)
    cams = input_folder(args.cam_dir, '--cam_dir', 'inference_classification.py')
    check_inputs(cams, ids, '.npz', 'inference_classification.py')
    read_maps(cams / f'{ids[0]}.npz', 'cam', info.num_classes)  # a wrong folder shows before anything is touched
    images = ScaledBatches(args.data_dir, ids, [1.0], args.batch_size, scaled, torch.stack)

    device = pick_device(args.device)
    model = AffinityNet(args.architecture)
    load_model(model, model_path(args.model_name), '--model_name', 'train_affinitynet.py', args.architecture)
    model = place(for_inference(model), device, args.precision)

    name = random_walk_name(args.model_name, args.domain, args.beta, args.exp_times)
    check = partial(read_maps, name='rw', num_classes=info.num_classes)
    made_of = {'model': file_hash(model_path(args.model_name)), 'cams': folder_identity(cams)}
    folder, todo = output_folder(name, args, ids, '.npz', check, **made_of)
    images.keep(todo)
    walk = partial(random_walk, beta=args.beta, exp_times=args.exp_times)
    loader = ordered_loader(images, None, args.num_workers, device)
    with stage.Behind(args.num_workers) as writers:
        for batch_ids, originals, (version,) in stage.progress(loader, 'batches of the random walk'):
            size = strided_size(originals[0].shape[:2])
            edges = edges_of(model, network_input(version.to(device, non_blocking=True)), args.image_size)
            for image_id, edge in zip(batch_ids, edges, strict=True):
                if image_id not in todo:
                    continue
                keys, cam = read_maps(cams / f'{image_id}.npz', 'cam', info.num_classes, size)
                walked = walk(torch.from_numpy(cam).to(device), edge)
                writers.submit(write_rw, folder / f'{image_id}.npz', keys, walked.cpu().numpy())
    print(f'{len(ids)} CAMs after the random walk in {folder}, {len(todo)} of them new')


if __name__ == '__main__':
    stage.run(main, ARGS, InputError)
