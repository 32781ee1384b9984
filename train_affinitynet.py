"""Stage 4: train AffinityNet on affinity labels: the edges between neighbouring pixels of different classes.

Reads   images of the list train_aug; experiments/predictions/{label_name}/{id}.png of stage 3; images and masks of the
        list train, if there are any masks, to score the edges
Writes  experiments/models/{tag}.pth (the last epoch), logs/{tag}.txt, data/{tag}.json, tensorboards/{tag}/

    python3 train_affinitynet.py --architecture resnest101 --tag AffinityNet@ResNeSt-101@Puzzle --data_dir $D \\
        --label_name ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0@aff_fg=0.40_bg=0.10
"""

import util.startup

import torch

from core import IGNORE, UserError
from core.affinity import PAIR_COUNTS, PathIndex, affinity_labels, count_pairs, pair_scores
from core.data.dataset import open_dataset
from core.data.torch_datasets import scored_crops, training_samples
from core.losses import affinity_loss
from core.maps import strided_size
from core.models import AffinityNet, build_sgd, load_weights
from util import draw, flags, script
from util.parallel import processes
from util.store import AFFINITY_LABEL, open_folder
from util.training import Run, SharedModel, options, ordered_loader, training_loader

SCORED_IMAGES = 128  # on the drawn set their scores are within a point of the scores of all 300 masks


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(options.TRAINING, options.LABELS, options.BACKBONE, max_epoch=3)
    radius = 'largest distance of compared pixels, in pixels of the edge map (a quarter of the image)'
    parser.groups['loss'].add_argument('--radius', type=flags.integer(2), default=10, help=radius)
    args = options.parse_training(parser, argv)
    with parser.checking_values():
        PathIndex(args.radius, strided_size((args.image_size, args.image_size)))
    return args


def check_labels(args, label_maps):
    """Raise UserError if all labels are ignored. Labels are read until one is not."""
    if all((label_maps.read_label(image_id) == IGNORE).all() for image_id in label_maps.ids):
        raise UserError(f'--label_name {args.label_name}: all its labels are {IGNORE}: check stage 3')


def draw_edges(dataset, title, batch, edges):
    """Return pictures of the first images of a batch: image, label map (titled), edge map."""
    heatmaps = [[('edge', edge, 0)] for edge in edges.cpu().numpy()]
    return draw.draw_rows(dataset, batch, {title: batch['masks']}, heatmaps)


def score_edges(network, loader, dataset, path_index):
    """Return precision and recall of the affinities on pairs of the masks, and pictures of the first batch."""
    counts, grid = torch.zeros(PAIR_COUNTS, dtype=torch.int64, device=network.device), None
    for batch, logits in network.infer(loader, 'scoring edges'):
        edges = torch.sigmoid(logits[:, 0].float())
        counts += count_pairs(edges, batch['masks'], path_index, dataset.num_classes)
        grid = draw_edges(dataset, 'ground truth', batch, edges) if grid is None else grid
    return pair_scores(network.add(counts)), grid


def main(args):
    device = processes.start(args.device, args.seed, args.record())
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    ids = dataset.ids('train_aug', with_images=True)
    label_maps = open_folder(AFFINITY_LABEL, args.label_name, '--label_name', dataset, ids, args.pred_dir)
    check_labels(args, label_maps)

    # Scale, flip and crop labels with their images, then resize them to the edge map.
    edge_size = strided_size((args.image_size, args.image_size), AffinityNet.stride)
    path_index = PathIndex(args.radius, edge_size)
    sizes, masks = (args.min_image_size, args.max_image_size), {'mask_size': edge_size[0]}
    where = sizes, args.image_size, args.resize, args.seed
    train_set = training_samples(dataset, *where, read_mask=label_maps.read_label, **masks)
    loader = training_loader(train_set, args.batch_size, args.num_workers, args.seed, device)
    score_set = scored_crops(dataset, 'train', args.image_size, count=SCORED_IMAGES, **masks)
    score_loader = ordered_loader(score_set, args.batch_size, args.num_workers, device)

    # Build AffinityNet on an ImageNet backbone (not on the classifier); only the head trains.
    model = AffinityNet(args.architecture)
    weights = load_weights(model.backbone, args.architecture, args.weights)
    iterations = args.max_epoch * len(loader)
    optimizer, schedule = build_sgd(model.head.parameters(), iterations, **args.pick(options.SGD))
    network = SharedModel(model, device, **args.pick(options.SHARING))

    # Train, resuming from the last checkpoint if there is one.
    meta = {'network': 'AffinityNet', 'backbone': args.architecture, 'mode': 'fix', 'radius': args.radius}
    inputs = {'record': args.record(), 'weights': weights, 'labels': label_maps, **args.pick(options.RUNNING)}
    with Run(loader, network, optimizer, schedule, meta, score_set, **inputs) as run:
        for epoch in run.epochs():
            some = None  # no batch is left in a run that was stopped while an epoch was scored
            for batch in run.batches():
                # Label each pair by its two ends, and count the pairs of each kind in the whole batch.
                pairs = affinity_labels(batch['masks'], path_index, dataset.num_classes)
                counts = network.total(torch.stack([kind.sum() for kind in pairs]))

                # The affinity of a pair is 1 - the largest edge between its ends.
                for some in network.micro_batches({**batch, 'bg_pos': pairs[0], 'fg_pos': pairs[1], 'neg': pairs[2]}):
                    logits = network(some['images'])
                    affinity = path_index.edge_to_affinity(torch.sigmoid(logits))
                    kinds = some['bg_pos'], some['fg_pos'], some['neg']
                    run.backward(affinity_loss(affinity, *kinds, counts, dataset.has_background))
                run.step()

            # Score the edges if there are masks. The score selects nothing: the last epoch is kept.
            grids = {}
            if some is not None:
                edges = torch.sigmoid(logits[:, 0].detach().float())
                grids['edges'] = draw_edges(dataset, 'affinity label', some, edges)
            if score_set.ids:
                scores, grids['scored edges'] = score_edges(network, score_loader, dataset, path_index)
                title = f'epoch {epoch + 1}: pairs in {len(score_set)} masks of train'
                run.log.scores(run.iteration, title, **scores)
            run.end_epoch(**grids)


if __name__ == '__main__':
    script.run(main, parse_args)
