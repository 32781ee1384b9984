"""Stage 1: train a classifier on image-level labels with the puzzle module.

Reads   images and labels of the list train_aug; masks of the list train, if there are any, to score its CAMs; images
        and labels of the list val (or train), to score the predicted classes
Writes  experiments/models/{tag}.pth (the epoch chosen by --select) and {tag}.last.pth or {tag}.best.pth (the other),
        experiments/logs/{tag}.txt, data/{tag}.json, tensorboards/{tag}/

    python3 train_classification_with_puzzle.py --architecture resnest101 --re_loss_option masking --re_loss L1_Loss \\
        --alpha_schedule 0.50 --alpha 4.00 --tag ResNeSt101@Puzzle@optimal --data_dir $D

The CAMs of stage 2 should then score 61.85 mIoU on train (paper, Table 2).
"""

import numpy as np
import torch

from core import STRIDE, metrics, puzzle
from core.cam import make_cam
from core.data import transforms
from core.data.dataset import open_dataset
from core.data.torch_datasets import ImageDataset, ground_truth
from core.losses import alpha_at, classification_loss, confidence_loss, reconstruction_loss
from core.models import BACKBONES, Classifier, load_weights
from core.models.batchnorm import forward_in_replicas
from util import devices, flags, loaders, optim, pictures, processes, stage
from util.run import Run

THRESHOLDS = [round(0.05 * i, 2) for i in range(2, 10)]


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_training(parser, lr=0.1, wd=1e-4, momentum=1e-4, epochs=15, sizes=(320, 640))

    model = parser.groups['model']
    model.add_argument('--architecture', default='resnest101', choices=BACKBONES, help='backbone')
    model.add_argument('--mode', default='normal', choices=('normal', 'fix'), help='BatchNorm: trained or frozen (fix)')
    replicas = 'emulate the BatchNorm statistics of this many GPUs'
    model.add_argument('--bn_replicas', type=flags.integer(1), default=4, help=replicas)
    flags.add_sync_bn(parser)

    loss = parser.groups['loss']
    terms = ('cl', 'cl_pcl', 'cl_re', 'cl_pcl_re', 'cl_conf', 'cl_pcl_re_conf')
    loss.add_argument('--loss_option', default='cl_pcl_re', choices=terms, help='terms of the loss (cl: plain CAM)')
    loss.add_argument('--num_pieces', type=flags.square, default=4, help='tiles per image, a perfect square')
    loss.add_argument('--level', default='feature', choices=('feature', 'cam'), help='what L_re compares')
    loss.add_argument('--re_loss', default='L1_Loss', choices=('L1_Loss', 'L2_Loss'), help='distance in L_re')
    masks = ('none', 'masking', 'selection')
    loss.add_argument('--re_loss_option', default='masking', choices=masks, help='classes that count in L_re')
    loss.add_argument('--alpha', type=flags.real(0), default=4.0, help='weight of L_re after its ramp')
    ramp = 'fraction of training over which alpha ramps up'
    loss.add_argument('--alpha_schedule', type=flags.real(0, 1), default=0.5, help=ramp)
    flags.add_label_smoothing(parser, 'of L_cls and L_p-cls')

    augment = f'comma-separated: {", ".join(transforms.AUGMENTATIONS)}'
    parser.groups['augmentation'].add_argument('--augment', default='', help=augment)
    select = 'epoch to keep; best: by the mIoU of CAMs on the masks of train (without masks: last)'
    parser.groups['run and output'].add_argument('--select', default='best', choices=('best', 'last'), help=select)

    args = flags.parse_training(parser, argv)
    if not set(filter(None, args.augment.split(','))) <= {*transforms.AUGMENTATIONS}:
        parser.error(f'--augment {args.augment}: choose from {", ".join(transforms.AUGMENTATIONS)}')
    args.bn_replicas = 1 if args.sync_bn else args.bn_replicas
    flags.check_replicas(parser, args)
    with parser.checking_values():
        puzzle.check_puzzle(args.image_size, args.num_pieces)
    return args


def build_loaders(args, dataset, device):
    """Return the batches to train on, those whose CAMs and whose tags are scored, and the name of the latter's list."""
    sizes, augmentations = (args.min_image_size, args.max_image_size), args.augment.split(',')
    transform = transforms.training_pipeline(sizes, args.image_size, args.resize, augmentations)
    ids = dataset.ids('train_aug', with_images=True)
    train_set = ImageDataset(dataset, ids, transform, dataset.read_all_labels(ids), seed=args.seed)
    train_loader = loaders.training_loader(train_set, args.batch_size, args.num_workers, args.seed, device)

    # CAMs are scored on the top-left crop of the images that have a ground-truth mask.
    ids = dataset.ids_with_masks('train', with_images=True)
    crop = transforms.Pipeline(transforms.TopLeftCrop(args.image_size))
    mask_set = ImageDataset(dataset, ids, crop, dataset.read_all_labels(ids), read_mask=dataset.read_mask)

    # Tags are scored on whole images.
    tag_list, ids, labels = dataset.scored_labels()
    whole = transforms.whole_image_pipeline(args.image_size, args.resize)
    tag_set = ImageDataset(dataset, ids, whole, labels)
    scored = [loaders.ordered_loader(s, args.batch_size, args.num_workers, device) for s in (mask_set, tag_set)]
    return train_loader, *scored, tag_list


def compute_losses(model, images, labels, args, replicas_per_device):
    """Return the unweighted terms of the loss; the tile pass runs only if --loss_option needs it.

    Each process runs its part of the images and of the tiles; the loss is that of all their class maps.
    """

    def run_network(inputs):
        return processes.gather(forward_in_replicas(model, processes.own(inputs), replicas_per_device))

    terms = args.loss_option.split('_')
    logits, maps = run_network(images)
    losses = {'cl': classification_loss(logits, labels, args.label_smoothing)}
    if terms == ['cl']:
        return losses
    tile_logits, tile_maps = run_network(puzzle.tile(images, args.num_pieces))
    merged = puzzle.merge(tile_maps, args.num_pieces)
    if 'pcl' in terms:
        losses['pcl'] = classification_loss(merged.mean((2, 3)), labels, args.label_smoothing)
    if 're' in terms:
        compared = (maps, merged) if args.level == 'feature' else (make_cam(maps), make_cam(merged))
        losses['re'] = reconstruction_loss(*compared, labels, args.re_loss, args.re_loss_option)
    if 'conf' in terms:
        losses['conf'] = confidence_loss(tile_logits)
    return losses


@torch.no_grad()
def score_cams(model, loader, dataset, device):
    """Return the mIoU of single-scale CAMs at 1/16 at each threshold."""
    model.eval()
    sweep = metrics.ThresholdSweep(dataset.num_classes + 1, THRESHOLDS)
    for batch in stage.progress(loader, 'scoring CAMs'):
        _, maps = model(transforms.normalize(batch['images'].to(device, non_blocking=True)), with_cam=True)
        cams = make_cam(maps.float()).cpu().numpy() * batch['labels'].numpy()[:, :, None, None]
        masks = batch['masks'][:, ::STRIDE, ::STRIDE].numpy()
        for cam, mask in zip(cams, masks, strict=True):
            sweep.update(cam, np.arange(dataset.num_classes + 1), mask)
    model.train()
    sweep.counts = processes.add(sweep.counts)
    return [matrix.miou() for matrix in sweep.matrices()]


@torch.no_grad()
def score_tags(model, loader, device):
    """Return the average precision and F1 score (at probability 0.5) per class, and pictures of the first CAMs."""
    model.eval()
    probabilities, grid = [], None
    for batch in stage.progress(loader, 'scoring tags'):
        logits, maps = model(transforms.normalize(batch['images'].to(device, non_blocking=True)), with_cam=True)
        probabilities.append(torch.sigmoid(logits.float()).cpu().numpy())
        if grid is None:
            masks, cams = ground_truth(loader.dataset, pictures.ROWS), make_cam(maps.float()).cpu().numpy()
            grid = pictures.draw_cams(loader.dataset.dataset, batch, masks, cams)
    model.train()
    probabilities, labels = loaders.gather_rows(loader, probabilities), loader.dataset.labels
    scores = metrics.average_precision(probabilities, labels), metrics.f1_score(probabilities > 0.5, labels)
    return *scores, grid


def main(args):
    device = processes.start(args)
    dataset = open_dataset(args.dataset, args.data_dir)
    train_loader, mask_loader, tag_loader, tag_list = build_loaders(args, dataset, device)
    masked = mask_loader.dataset.ids
    stage.print_mask_count(dataset, 'train', masked)

    # Share the BatchNorm replicas of a batch among processes and GPUs; each runs its own one after the other.
    num_devices = devices.devices_for(args.bn_replicas if args.mode == 'normal' else args.batch_size, device)
    parts = args.bn_replicas if args.mode == 'normal' else args.micro_batches
    replicas_per_device = max(1, parts // (num_devices * processes.count()))

    # Build the classifier on an ImageNet backbone.
    model = Classifier(args.architecture, dataset.num_classes, args.mode)
    load_weights(model.backbone, args.architecture, args.weights)
    groups = optim.parameter_groups(model, args.lr, args.wd)
    optimizer, schedule = optim.build_sgd(groups, args, args.max_epoch * len(train_loader))
    if args.sync_bn:
        processes.synchronise(model, device)
    model.recompute = args.micro_batches > 1
    model = devices.parallel(model, device, num_devices, args.precision, args.compile).train()

    # Train, resuming from the last checkpoint if there is one.
    meta = {'network': 'Classifier', 'backbone': args.architecture, 'mode': args.mode}
    with Run(args, train_loader, model, optimizer, schedule, meta, masked) as run:
        for epoch in run.epochs():
            for batch in map(processes.gather, run.batches(device)):
                images, labels = transforms.normalize(batch['images']), batch['labels']

                # L = L_cls + L_p-cls + alpha L_re + L_conf
                losses = compute_losses(model, images, labels, args, replicas_per_device)
                alpha = alpha_at(run.iteration, run.iterations, args.alpha, args.alpha_schedule)
                loss = sum(alpha * value if name == 're' else value for name, value in losses.items())
                run.step(loss, losses, **({'alpha': alpha} if 're' in losses else {}))

            # Score the tags, and the CAMs if there are masks; keep the best and the last epoch.
            precision, f1, grid = score_tags(model, tag_loader, device)
            run.log.scores(run.iteration, f'epoch {epoch + 1}: tags of {tag_list}', mAP=precision, F1=f1)
            if masked:
                mious = score_cams(model, mask_loader, dataset, device)
                run.log.sweep(run.iteration, 'mIoU', THRESHOLDS, mious)
                best = int(np.argmax(mious))
                run.end_epoch(f'train CAM mIoU at threshold {THRESHOLDS[best]:.2f}', mious[best], CAMs=grid)
            else:
                run.end_epoch(CAMs=grid)
        run.log.table('class', dataset.class_names, {'AP %': 100 * precision, 'F1 %': 100 * f1})


if __name__ == '__main__':
    stage.run(main, parse_args)
