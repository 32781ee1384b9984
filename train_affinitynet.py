"""Stage 4: train AffinityNet on affinity labels: the edges between neighbouring pixels of different classes.

Reads   images of the list train_aug; experiments/predictions/{label_name}/{id}.png of stage 3; images and masks of the
        list train, if there are any masks, to score the edges
Writes  experiments/models/{tag}.pth (the last epoch), logs/{tag}.txt, data/{tag}.json, tensorboards/{tag}/

    python3 train_affinitynet.py --architecture resnest101 --tag AffinityNet@ResNeSt-101@Puzzle --data_dir $D \\
        --label_name ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0@aff_fg=0.40_bg=0.10
"""

import torch

from core import IGNORE, UserError
from core.affinity import PAIR_COUNTS, PathIndex, affinity_labels, count_pairs, pair_scores
from core.data import transforms
from core.data.dataset import open_dataset
from core.data.torch_datasets import ImageDataset
from core.losses import affinity_loss
from core.maps import strided_size
from core.models import BACKBONES, AffinityNet, load_weights
from util import artifacts, devices, flags, loaders, optim, pictures, processes, stage
from util.run import Run

SCORED_IMAGES = 128  # on the drawn set their scores are within a point of those of all 300 masks


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_training(parser, lr=0.1, wd=1e-4, momentum=1e-4, epochs=3, sizes=(320, 640))
    flags.add_label_name(parser, 'affinity labels (stage 3)')
    model = parser.groups['model']
    model.add_argument('--architecture', default='resnest101', choices=BACKBONES, help='frozen backbone')
    radius = 'radius of the pixel pairs, in pixels of the edge map'
    parser.groups['loss'].add_argument('--radius', type=flags.integer(2), default=10, help=radius)
    args = flags.parse_training(parser, argv)
    with parser.checking_values():
        PathIndex(args.radius, strided_size((args.image_size, args.image_size)))
    return args


def build_score_loader(args, dataset, edge_size, device):
    """Return the batches whose edges are scored after each epoch: up to SCORED_IMAGES of train, evenly spaced."""
    ids = dataset.ids_with_masks('train', with_images=True)
    count = min(len(ids), SCORED_IMAGES)
    ids = [ids[i * len(ids) // count] for i in range(count)]
    crop = transforms.Pipeline(transforms.TopLeftCrop(args.image_size), transforms.ResizeMask(edge_size[0]))
    score_set = ImageDataset(dataset, ids, crop, read_mask=dataset.read_mask)
    return loaders.ordered_loader(score_set, args.batch_size, args.num_workers, device)


def draw_edges(dataset, title, batch, edges):
    """Return pictures of the first images of a batch: image, label map (titled), edge map."""
    images, label_maps = batch['images'].pixels.cpu().numpy(), {title: batch['masks'].cpu().numpy()}
    heatmaps = [[pictures.Heatmap('edge', edge)] for edge in edges.cpu().numpy()]
    return pictures.draw_rows(dataset, images, label_maps, heatmaps)


@torch.no_grad()
def score_edges(model, loader, dataset, path_index, device):
    """Return precision and recall of the affinities on pairs of the masks, and pictures of the first batch."""
    model.eval()
    counts, grid = torch.zeros(PAIR_COUNTS, dtype=torch.int64, device=device), None
    for batch in stage.progress(loader, 'scoring edges'):
        logits = model(transforms.normalize(batch['images'].to(device, non_blocking=True)))
        edges = torch.sigmoid(logits[:, 0].float())
        counts += count_pairs(edges, batch['masks'].to(device), path_index, dataset.num_classes)
        if grid is None:
            grid = draw_edges(dataset, 'ground truth', batch, edges)
    model.train()
    return pair_scores(processes.add(counts)), grid


def main(args):
    device = processes.start(args)
    dataset = open_dataset(args.dataset, args.data_dir)
    ids, kind = dataset.ids('train_aug', with_images=True), artifacts.AFFINITY_LABEL
    label_maps = artifacts.open_folder(kind, args.label_name, '--label_name', dataset, ids, args.pred_dir)

    # Scale, flip and crop labels with their images, then resize them to the edge map.
    edge_size = strided_size((args.image_size, args.image_size))
    sizes = (args.min_image_size, args.max_image_size)
    transform = transforms.training_pipeline(sizes, args.image_size, args.resize, mask_size=edge_size[0])
    train_set = ImageDataset(dataset, ids, transform, read_mask=label_maps.read_label, seed=args.seed)
    loader = loaders.training_loader(train_set, args.batch_size, args.num_workers, args.seed, device)
    path_index = PathIndex(args.radius, edge_size)
    score_loader = build_score_loader(args, dataset, edge_size, device)

    # Build AffinityNet on an ImageNet backbone (not on the classifier); only the head trains.
    model = AffinityNet(args.architecture)
    load_weights(model.backbone, args.architecture, args.weights)
    optimizer, schedule = optim.build_sgd(model.head.parameters(), args, args.max_epoch * len(loader))
    num_devices = devices.devices_for(args.batch_size // args.micro_batches, device)
    model = devices.parallel(model, device, num_devices, args.precision, args.compile).train()

    # Train, resuming from the last checkpoint if there is one.
    meta = {'network': 'AffinityNet', 'backbone': args.architecture, 'mode': 'fix', 'radius': args.radius}
    with Run(args, loader, model, optimizer, schedule, meta, labels=label_maps) as run:
        for epoch in run.epochs():
            for batch in run.batches(device):
                # Label each pair by its two ends, and count the pairs of each kind in the whole batch.
                pairs = affinity_labels(batch['masks'], path_index, dataset.num_classes)
                counts = processes.add(torch.stack([kind.sum() for kind in pairs]))

                # The affinity of a pair is 1 - the largest edge between its ends.
                for part in run.micro_batches({**batch, 'bg_pos': pairs[0], 'fg_pos': pairs[1], 'neg': pairs[2]}):
                    logits = model(transforms.normalize(part['images']))
                    affinity = path_index.edge_to_affinity(torch.sigmoid(logits))
                    run.step(affinity_loss(affinity, part['bg_pos'], part['fg_pos'], part['neg'], counts))

            if not any(value for _, value in run.log.curves['loss']):
                raise UserError(f'--label_name {args.label_name}: all its labels are {IGNORE}: check stage 3')

            # Score the edges if there are masks, which select nothing: the last epoch is kept.
            edges = torch.sigmoid(logits[:, 0].detach().float())
            grids = {'edges': draw_edges(dataset, 'affinity label', part, edges)}
            if score_loader.dataset.ids:
                scores, grids['scored edges'] = score_edges(model, score_loader, dataset, path_index, device)
                title = f'epoch {epoch + 1}: pairs in {len(score_loader.dataset)} masks of train'
                run.log.scores(run.iteration, title, **scores)
            run.end_epoch(**grids)


if __name__ == '__main__':
    stage.run(main, parse_args)
