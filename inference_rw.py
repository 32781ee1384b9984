"""Stage 5: propagate CAMs by a random walk that stops at AffinityNet's edges.

Reads   experiments/models/{model_name}.pth of stage 4; experiments/predictions/{cam_dir}/{id}.npz of stage 2;
        images of the list --domain
Writes  experiments/predictions/{model_name}@{train|val}@beta={beta}@exp_times={exp_times}@rw/{id}.npz: keys (K+1,),
        rw (K, h/4, w/4); with --save_edges also {model_name}@{train|val}@edge/{id}.npz: edge (h/4, w/4)

    python3 inference_rw.py --architecture resnest101 --model_name AffinityNet@ResNeSt-101@Puzzle \\
        --cam_dir ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0 --domain train_aug --data_dir $D

The random-walk CAMs should then score 71.92 mIoU on train (paper, Table 2).
"""

from contextlib import ExitStack
from functools import partial

import torch

from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from core.data.transforms import normalize
from core.maps import normalize_rw, strided_size
from core.models import BACKBONES, build_network
from core.models.affinitynet import predict_edges
from core.random_walk import random_walk
from util import artifacts, checkpoint, flags, loaders, parallel, stage

MIN_CONTRAST = 0.1  # difference between the strongest and the weakest edge of an image


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_inference(parser)
    data = parser.groups['data']
    data.add_argument('--cam_dir', type=flags.folder_name, required=True, help='folder of CAMs (stage 2)')
    model = 'model of stage 4'
    parser.groups['model'].add_argument('--model_name', type=flags.folder_name, required=True, help=model)
    flags.add_backbone(parser, 'AffinityNet', BACKBONES)
    inference = parser.groups['inference']
    inference.add_argument('--beta', type=flags.real(0), default=10, help='exponent of the affinities')
    steps = 'the number of random-walk steps is 2^exp_times'
    inference.add_argument('--exp_times', type=flags.integer(0, 12), default=8, help=steps)
    flags.add_rw_normalization(parser)
    size = flags.integer(32, 16384)
    inference.add_argument('--image_size', type=size, default=512, help='smaller images are padded to this size')
    edges = 'keep the edge maps too, also of a finished random walk'
    parser.groups['run and output'].add_argument('--save_edges', action='store_true', help=edges)
    return parser.parse_args(argv)


def main(args):
    dataset = open_dataset(args.dataset, args.data_dir)
    ids = dataset.ids(args.domain, with_images=True)
    cams = artifacts.open_folder(artifacts.CAM, args.cam_dir, '--cam_dir', dataset, ids)

    # Load AffinityNet.
    file = checkpoint.open_model(args.model_name, '--model_name', 'train_affinitynet.py')
    meta = file.resolve(args, dataset, ['AffinityNet'], architecture='backbone')
    model, device, model_hash = file.load_for_inference(build_network(meta), args)

    flat = []  # images without edges
    with ExitStack() as folders:
        create = partial(artifacts.create_folder, args=args, dataset=dataset, ids=ids, model=model_hash)
        random_walks = folders.enter_context(create(artifacts.RANDOM_WALK, cams=cams))
        edge_maps = folders.enter_context(create(artifacts.EDGE)) if args.save_edges else None
        no_edge = edge_maps.missing if edge_maps else set()
        missing = random_walks.missing | no_edge
        batches = MultiScaleDataset(dataset, random_walks.ids, missing, [1.0], args.batch_size)
        batches = loaders.batches_on_device(batches, args.num_workers, device, 'batches of the random walk')
        with parallel.BackgroundWriter(args.num_workers) as writer:
            for batch_ids, images, (pixels,) in batches:
                # Predict the edges of images of one size.
                size = strided_size(images[0].shape[:2])
                edges = predict_edges(model, normalize(pixels), args.image_size)
                contrast = (edges.amax((1, 2)) - edges.amin((1, 2))).tolist()
                flat += [i for i, x in zip(batch_ids, contrast, strict=True) if x < MIN_CONTRAST and i in missing]

                # Propagate each image's CAMs; scale them to a maximum of 1 for float16.
                for image_id, edge in zip(batch_ids, edges, strict=True):
                    if image_id in no_edge:
                        writer.submit(edge_maps.write_edge, image_id, edge.cpu().numpy())
                    if image_id in random_walks.missing:
                        keys, cam = cams.read_maps(image_id, 'cam', size)
                        cam = torch.from_numpy(cam).to(device)
                        rw = random_walk(cam, edge, beta=args.beta, exp_times=args.exp_times).cpu().numpy()
                        rw = normalize_rw(rw, args.rw_normalization)
                        writer.submit(random_walks.write_maps, image_id, keys, rw)
    stage.warn(flat, missing, 'have an almost constant edge map, so nothing stops the random walk: check AffinityNet')


if __name__ == '__main__':
    stage.run(main, parse_args)
