"""Stage 1: train a classifier on image-level labels with the puzzle module.

Reads   images and labels of the list train_aug; masks of the list train, if there are any, to score its CAMs; images
        and labels of the list val (or train), to score the predicted classes
Writes  experiments/models/{tag}.pth (the epoch chosen by --select) and {tag}.last.pth or {tag}.best.pth (the other),
        experiments/logs/{tag}.txt, data/{tag}.json, tensorboards/{tag}/

    python3 train_classification_with_puzzle.py --architecture resnest101 --re_loss_option masking --re_loss L1_Loss \\
        --alpha_schedule 0.50 --alpha 4.00 --tag ResNeSt101@Puzzle@optimal --data_dir $D

The paper reports 61.85 mIoU on train for these CAMs (Table 2). It has not been reproduced with this code.
"""

import util.startup

import argparse
import warnings

import numpy as np
import torch
from tabulate import tabulate

from core import DataWarning
from core.cam import make_cam
from core.data.dataset import open_dataset
from core.data.torch_datasets import scored_crops, tagged_images, training_samples
from core.data.transforms import AUGMENTATIONS
from core.losses import TERMS, alpha_at, puzzle_losses
from core.metrics import TRAINING_THRESHOLDS, ConfusionMatrix, ThresholdSweep, average_precision, f1_score
from core.models import Classifier, build_sgd, load_weights
from util import draw, flags, script
from util.parallel import processes
from util.training import Run, SharedModel, gather_rows, options, ordered_loader, training_loader


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(options.TRAINING, options.SUPERVISED, options.BACKBONE)

    model = parser.groups['model']
    norms = 'normal: train BatchNorm; fix: freeze its statistics, the stem and the first two layers'
    model.add_argument('--mode', default='normal', choices=('normal', 'fix'), help=norms)
    replicas = 'normalise a batch in this many equal parts, as on that many GPUs; 1: the whole batch'
    model.add_argument('--bn_replicas', type=flags.integer(1), default=4, help=replicas)

    loss = parser.groups['loss']
    terms = 'terms joined by _: cl classification (alone: the plain classifier), pcl the same on merged tiles, '
    terms += 're reconstruction, conf confidence'
    loss.add_argument('--loss_option', type=loss_terms, default='cl_pcl_re', help=terms)
    tiles = 'tiles per image: 4 is 2 x 2; --image_size must be a multiple of 16 times the root of this'
    loss.add_argument('--num_pieces', type=flags.square, default=4, help=tiles)
    level = 'what L_re compares: class maps (feature, published), maps scaled to a maximum of 1 (cam), or class maps '
    level += "of the classifier's positive weights alone (positive)"
    loss.add_argument('--level', default='feature', choices=('feature', 'cam', 'positive'), help=level)
    loss.add_argument('--re_loss', default='L1_Loss', choices=('L1_Loss', 'L2_Loss'), help='distance in L_re')
    masks = ('none', 'masking', 'selection')
    counted = 'masking: absent classes count as 0 in L_re (published); selection: only present ones; none: all classes'
    loss.add_argument('--re_loss_option', default='masking', choices=masks, help=counted)
    loss.add_argument('--alpha', type=flags.real(0), default=4.0, help='weight of L_re after its ramp')
    ramp = 'alpha rises linearly from 0 during this fraction of training (0: constant)'
    loss.add_argument('--alpha_schedule', type=flags.real(0, 1), default=0.5, help=ramp)

    augment = f'extra augmentation, comma-separated: {", ".join(AUGMENTATIONS)} (default: none)'
    parser.groups['augmentation'].add_argument('--augment', type=augmentations, default='', help=augment)
    return options.parse_training(parser, argv)


def loss_terms(text):
    """'cl', or 'cl' and other terms in any order."""
    terms = text.split('_')
    if terms[0] != 'cl' or not {*terms} <= {*TERMS} or len({*terms}) < len(terms):
        raise argparse.ArgumentTypeError(f'{text!r} is not cl followed by some of {", ".join(TERMS[1:])}, joined by _')
    return '_'.join(term for term in TERMS if term in terms)


def augmentations(text):
    """Names of AUGMENTATIONS, comma-separated, or nothing."""
    if not set(filter(None, text.split(','))) <= {*AUGMENTATIONS}:
        raise argparse.ArgumentTypeError(f'{text!r}: choose from {", ".join(AUGMENTATIONS)}')
    return text


def build_loaders(args, dataset, device):
    """Return the batches to train on, the batches whose CAMs are scored, and the batches whose tags are scored."""
    sizes, drawn = (args.min_image_size, args.max_image_size), args.augment.split(',')
    where = sizes, args.image_size, args.resize, args.seed
    train_set = training_samples(dataset, *where, augmentations=drawn, with_labels=True)
    if line := dataset.without_contrast(train_set.labels):
        warnings.warn(line, DataWarning, stacklevel=1)
    train_loader = training_loader(train_set, args.batch_size, args.num_workers, args.seed, device)

    # CAMs are scored on the top-left crop of the images that have a ground-truth mask, tags on whole images.
    mask_set = scored_crops(dataset, 'train', args.image_size, with_labels=True, mask_stride=Classifier.stride)
    tag_set = tagged_images(dataset, args.image_size, args.resize)
    scored = [ordered_loader(s, args.batch_size, args.num_workers, device) for s in (mask_set, tag_set)]
    return train_loader, *scored


def score_cams(network, loader, dataset):
    """Return the mIoU of single-scale CAMs at 1/16 at each threshold."""
    sweep = ThresholdSweep(dataset.num_classes + 1, TRAINING_THRESHOLDS)
    for batch, (_, maps) in network.infer(loader, 'scoring CAMs', with_cam=True):
        cams = (make_cam(maps.float()) * batch['labels'][:, :, None, None]).cpu().numpy()
        for cam, mask in zip(cams, batch['masks'].cpu().numpy(), strict=True):
            sweep.update(cam, np.arange(dataset.num_classes + 1), mask)
    sweep.counts = network.add(sweep.counts)
    return [matrix.miou() for matrix in sweep.matrices()]


def score_best_classes(network, loader, dataset):
    """Return the mIoU of single-scale CAMs at 1/16 without a background: the best of the present classes counts."""
    matrix = ConfusionMatrix(dataset.num_classes + 1)
    for batch, (_, maps) in network.infer(loader, 'scoring CAMs', with_cam=True):
        cams = torch.where(batch['labels'][:, :, None, None] > 0, make_cam(maps.float()), -1)
        matrix.update(cams.argmax(1).cpu().numpy() + dataset.first_label, batch['masks'].cpu().numpy())
    matrix.counts = network.add(matrix.counts)
    return matrix.miou()


def score_tags(network, loader):
    """Return the average precision and F1 score (at probability 0.5) per class, and pictures of the first CAMs."""
    probabilities, grid = [], None
    for batch, (logits, maps) in network.infer(loader, 'scoring tags', with_cam=True):
        probabilities.append(torch.sigmoid(logits.float()).cpu().numpy())
        grid = draw.draw_cams(loader.dataset, batch, maps) if grid is None else grid
    probabilities, labels = gather_rows(loader, probabilities), loader.dataset.labels
    return average_precision(probabilities, labels), f1_score(probabilities > 0.5, labels), grid


def tabulate_classes(dataset, precision, f1):
    """Return a table of the scores of each class; NaN is '-'."""
    cells = [['-' if np.isnan(x) else f'{100 * x:.1f}' for x in scores] for scores in (precision, f1)]
    rows = zip(dataset.class_names, *cells, strict=True)
    align = ('left', 'right', 'right')
    return tabulate(rows, ('class', 'AP %', 'F1 %'), 'pipe', colalign=align, disable_numparse=True)


def main(args):
    device = processes.start(args.device, args.seed, args.record())
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    train_loader, mask_loader, tag_loader = build_loaders(args, dataset, device)

    # Build the classifier on an ImageNet backbone.
    model = Classifier(args.architecture, dataset.num_classes, args.mode)
    weights = load_weights(model.backbone, args.architecture, args.weights)
    optimizer, schedule = build_sgd(model, args.max_epoch * len(train_loader), **args.pick(options.SGD))
    network = SharedModel(model, device, whole_batch=True, **args.pick(options.SHARING))

    # Train, resuming from the last checkpoint if there is one.
    meta = {'network': 'Classifier', 'backbone': args.architecture, 'mode': args.mode}
    terms, compared = args.loss_option.split('_'), (args.level, args.re_loss, args.re_loss_option)
    trained = train_loader, network, optimizer, schedule, meta, mask_loader.dataset, tag_loader.dataset
    with Run(*trained, record=args.record(), weights=weights, **args.pick(options.RUNNING)) as run:
        for epoch in run.epochs():
            for batch in run.batches():
                images, labels = batch['images'], batch['labels']

                # L = L_cls + L_p-cls + alpha L_re + L_conf
                losses = puzzle_losses(network, images, labels, terms, args.num_pieces, *compared, args.label_smoothing)
                alpha = alpha_at(run.iteration, run.iterations, args.alpha, args.alpha_schedule)
                run.step(losses, weights={'re': alpha}, **({'alpha': alpha} if 're' in losses else {}))

            # Score the tags, and the CAMs if there are masks; keep the best and the last epoch.
            precision, f1, grid = score_tags(network, tag_loader)
            run.log.scores(
                run.iteration, f'epoch {epoch + 1}: tags of {tag_loader.dataset.domain}', mAP=precision, F1=f1
            )
            if mask_loader.dataset.ids and not dataset.has_background:
                run.end_epoch('train CAM mIoU', score_best_classes(network, mask_loader, dataset), CAMs=grid)
            elif mask_loader.dataset.ids:
                mious = score_cams(network, mask_loader, dataset)
                run.log.sweep(run.iteration, 'mIoU', TRAINING_THRESHOLDS, mious)
                best = int(np.argmax(mious))
                run.end_epoch(f'train CAM mIoU at threshold {TRAINING_THRESHOLDS[best]:.2f}', mious[best], CAMs=grid)
            else:
                run.end_epoch(CAMs=grid)
        run.log.line(tabulate_classes(dataset, precision, f1))


if __name__ == '__main__':
    script.run(main, parse_args)
