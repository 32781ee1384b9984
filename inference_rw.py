"""Stage 5: propagate CAMs by a random walk that stops at AffinityNet's edges.

Reads   experiments/models/{model_name}.pth of stage 4; experiments/predictions/{cam_dir}/{id}.npz of stage 2;
        images of the list --domain
Writes  experiments/predictions/{model_name}@{train|val}@beta={beta}@exp_times={exp_times}@rw/{id}.npz: keys (K+1,),
        rw (K, h/4, w/4); with --save_edges also {model_name}@{train|val}@edge/{id}.npz: edge (h/4, w/4)

    python3 inference_rw.py --architecture resnest101 --model_name AffinityNet@ResNeSt-101@Puzzle \\
        --cam_dir ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0 --domain train_aug --data_dir $D

The paper reports 71.92 mIoU on train for these maps (Table 2). It has not been reproduced with this code.
"""

import util.startup

from contextlib import ExitStack
from functools import partial

from core.chain import image_edges, walk_cams
from core.data.dataset import open_dataset
from core.data.torch_datasets import MultiScaleDataset
from util import flags, script
from util.parallel.workers import BackgroundWriter
from util.store import CAM, EDGE, RANDOM_WALK, create_folder, open_folder
from util.training import batches_on_device, load_network, options

MIN_CONTRAST = 0.1  # smallest difference between the strongest and the weakest edge of an image


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(options.INFERENCE, options.WALK, options.TRAINED_BACKBONE)
    kind, cams = RANDOM_WALK.title, 'folder of CAMs of stage 2, such as TAG@train@scale=0.5,1.0,1.5,2.0'
    parser.groups['data'].add_argument('--cam_dir', type=flags.folder_name, required=True, affects=kind, help=cams)
    model = 'model of stage 4'
    parser.groups['model'].add_argument('--model_name', type=flags.folder_name, required=True, help=model)
    run = parser.groups['run and output']
    edges = 'also write the edge maps; for a finished folder, only these are computed'
    run.add_argument('--save_edges', action='store_true', affects='speed', help=edges)
    variant = "a part of the folder's name (@variant=...), such as mean for another --cam_dir along the same edges"
    run.add_argument('--variant', type=flags.folder_name, affects='speed', help=variant)
    return parser.parse_args(argv)


def main(args):
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    ids = dataset.ids(args.domain, with_images=True)
    cams = open_folder(CAM, args.cam_dir, '--cam_dir', dataset, ids)

    # Load AffinityNet.
    affinity_net, device, model = load_network(
        dataset, ['AffinityNet'], '--model_name', args.model_name, **args.pick(options.NETWORK)
    )

    flat = []  # images without edges
    with ExitStack() as stack:
        inputs = {'model': model, **args.pick(flags.OUTPUT)}
        create = partial(create_folder, record=args.record(), dataset=dataset, ids=ids, **inputs)
        random_walks = stack.enter_context(create(RANDOM_WALK, cams=cams))
        edge_maps = stack.enter_context(create(EDGE)) if args.save_edges else None
        no_edge = edge_maps.missing if edge_maps else set()
        missing = random_walks.missing | no_edge
        batches = MultiScaleDataset(dataset, random_walks.ids, missing, [1.0], args.batch_size, tile=args.tile)
        batches = batches_on_device(batches, args.num_workers, device, 'batches of the random walk')
        with BackgroundWriter(args.num_workers) as writer:
            for batch_ids, _, (pixels,) in batches:
                # Predict the edges of images of one size.
                edges = image_edges(affinity_net, pixels, args.image_size)
                contrast = (edges.amax((1, 2)) - edges.amin((1, 2))).tolist()
                flat += [i for i, x in zip(batch_ids, contrast, strict=True) if x < MIN_CONTRAST and i in missing]

                # Propagate each image's CAMs; scale them to a maximum of 1 for float16.
                for image_id, edge in zip(batch_ids, edges, strict=True):
                    if image_id in no_edge:
                        writer.submit(edge_maps.write_edge, image_id, edge.cpu().numpy())
                    if image_id in random_walks.missing:
                        keys, cam = cams.read_maps(image_id, 'cam', edge.shape)
                        rw = walk_cams(cam, edge, **args.pick(options.WALKING))
                        writer.submit(random_walks.write_maps, image_id, keys, rw)
    script.warn(flat, missing, 'have an almost constant edge map, so nothing stops the random walk: check AffinityNet')


if __name__ == '__main__':
    script.run(main, parse_args)
