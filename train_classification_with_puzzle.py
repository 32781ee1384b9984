"""Stage 1: learn a classifier from image-level labels, with the puzzle module.

Reads   {data_dir}: images and XML of the list train_aug; images, XML and masks of the list train (to score its CAMs)
Writes  experiments/models/{tag}.pth (the epoch that --select chose) and {tag}.last.pth or {tag}.best.pth (the other),
        experiments/logs/{tag}.txt, data/{tag}.json, tensorboards/{tag}/

    python3 train_classification_with_puzzle.py --architecture resnest101 --re_loss_option masking --re_loss L1_Loss \\
        --alpha_schedule 0.50 --alpha 4.00 --tag ResNeSt101@Puzzle@optimal --data_dir $D

The CAMs of stage 2 should then score 61.85 mIoU on train (paper, Table 2).
"""

from core.backbone import BACKBONES
from tools import flags


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_training(parser, lr=0.1, wd=1e-4, momentum=1e-4, epochs=15, sizes=(320, 640))
    parser.add_argument('--architecture', default='resnest101', choices=BACKBONES, help='backbone')
    parser.add_argument('--mode', default='normal', choices=('normal', 'fix'), help='fix: frozen BatchNorm')
    parser.add_argument('--augment', default='', help='colorjitter, randaugment or both, joined by a comma')
    parser.add_argument('--num_pieces', type=flags.integer(1), default=4, help='tiles of an image, a square number')
    options = ('cl', 'cl_pcl', 'cl_re', 'cl_pcl_re', 'cl_conf', 'cl_pcl_re_conf')
    parser.add_argument('--loss_option', default='cl_pcl_re', choices=options, help='terms of the loss; cl: plain CAM')
    parser.add_argument('--level', default='feature', choices=('feature', 'cam'), help='what L_re compares')
    parser.add_argument('--re_loss', default='L1_Loss', choices=('L1_Loss', 'L2_Loss'), help='distance in L_re')
    masks = ('none', 'masking', 'selection')
    parser.add_argument('--re_loss_option', default='masking', choices=masks, help='which classes count in L_re')
    parser.add_argument('--alpha', type=flags.real(0), default=4.0, help='weight of L_re after its ramp')
    parser.add_argument('--alpha_schedule', type=flags.real(0, 1), default=0.5, help='part of training it ramps up')
    parser.add_argument('--bn_replicas', type=flags.integer(1), default=4, help='BatchNorm as on so many GPUs')
    parser.add_argument('--select', default='best', choices=('best', 'last'), help='best: by masks of train')
    args = flags.parse_training(parser, argv)
    if not set(filter(None, args.augment.split(','))) <= {'colorjitter', 'randaugment'}:
        parser.error(f'--augment {args.augment}: knows colorjitter and randaugment')
    if args.mode == 'normal' and args.batch_size % args.bn_replicas:
        parser.error(f'--batch_size {args.batch_size} is no multiple of --bn_replicas {args.bn_replicas}')
    if args.mode == 'normal' and args.batch_size < 2 * args.bn_replicas:
        parser.error(f'--batch_size {args.batch_size} is below 2 images for each of --bn_replicas {args.bn_replicas}')
    return args


if __name__ == '__main__':
    ARGS = parse_args()  # --help and a wrong flag answer before the heavy imports

from functools import partial

import numpy as np
import torch

from core import STRIDE, InputError
from core.backbone import load_weights
from core.cam import make_cam
from core.datasets import ImageSet, load_info, mask_path
from core.losses import alpha_at, classification_loss, confidence_loss, reconstruction_loss
from core.metrics import ThresholdSweep
from core.networks import Classifier, forward_in_replicas
from core.puzzle import check_puzzle, merge, tile
from core.transforms import Augment, Pipeline, RandomCrop, RandomFlip, RandomLongerSide, TopLeftCrop, network_input
from tools import pictures, stage
from tools.checkpoint import ModelKeeper, TrainingState, unwrap
from tools.device import devices_for, ordered_loader, parallel, pick_device, seed_all, training_loader
from tools.log import RunLog
from tools.optim import parameter_groups, sgd_poly, take_step

THRESHOLDS = [round(0.05 * i, 2) for i in range(2, 10)]


def loaders_of(args, info, device):
    """Batches to learn from, and those whose CAMs are scored after each epoch."""
    # Images are scaled, mirrored and cropped for training; scored in their top left corner, beside their masks.
    augment = Augment(args.augment.split(','))
    longer_side = RandomLongerSide(args.min_image_size, args.max_image_size, args.resize)
    train_transform = Pipeline(longer_side, RandomFlip(), augment, RandomCrop(args.image_size))
    train_set = ImageSet(info, args.data_dir, 'train_aug', train_transform, with_labels=True, seed=args.seed)
    train_loader = training_loader(train_set, args.batch_size, args.num_workers, args.seed, device)
    corner = Pipeline(TopLeftCrop(args.image_size))
    score_set = ImageSet(info, args.data_dir, 'train', corner, True, partial(mask_path, args.data_dir))
    return train_loader, ordered_loader(score_set, args.batch_size, args.num_workers, device)


def losses_of(model, images, labels, args, rounds):
    """The terms of the loss that --loss_option names, unweighted: full pass, and tile pass where a term needs it."""
    terms = args.loss_option.split('_')
    logits, maps = forward_in_replicas(model, images, rounds)
    losses = {'cl': classification_loss(logits, labels)}
    if terms == ['cl']:
        return losses
    tile_logits, tile_maps = forward_in_replicas(model, tile(images, args.num_pieces), rounds)
    merged = merge(tile_maps, args.num_pieces)
    if 'pcl' in terms:
        losses['pcl'] = classification_loss(merged.mean((2, 3)), labels)
    if 're' in terms:
        compared = (maps, merged) if args.level == 'feature' else (make_cam(maps), make_cam(merged))
        losses['re'] = reconstruction_loss(*compared, labels, args.re_loss, args.re_loss_option)
    if 'conf' in terms:
        losses['conf'] = confidence_loss(tile_logits)
    return losses


@torch.no_grad()
def score_cams(model, loader, info, device):
    """(threshold, mIoU) of the best threshold for single-scale CAMs at 1/16, and CAM pictures of the first batch."""
    model.eval()
    sweep = ThresholdSweep(info.num_classes + 1, THRESHOLDS)
    rows = []
    for batch in stage.progress(loader, 'scoring CAMs'):
        _, maps = model(network_input(batch['images'].to(device, non_blocking=True)), with_cam=True)
        cams = make_cam(maps.float()).cpu().numpy() * batch['labels'].numpy()[:, :, None, None]
        masks = batch['masks'][:, ::STRIDE, ::STRIDE].numpy()
        for cam, mask in zip(cams, masks, strict=True):
            sweep.update(cam, np.arange(info.num_classes + 1), mask)
        if not rows:
            for image, cam in zip(batch['images'].pixels[:8].numpy(), cams, strict=False):
                rows.append([image, *(pictures.heat(image, score) for score in cam if score.any())])
    model.train()
    mious = [matrix.miou() for matrix in sweep.matrices()]
    best = int(np.argmax(mious))
    return THRESHOLDS[best], mious[best], pictures.sheet(rows)


def main(args):
    info = load_info(args.dataset)
    check_puzzle(args.image_size, args.num_pieces)
    device = pick_device(args.device)
    replicas = args.bn_replicas if args.mode == 'normal' else args.batch_size
    devices = devices_for(replicas, device)
    rounds = replicas // devices if args.mode == 'normal' else 1
    seed_all(args.seed)

    train_loader, score_loader = loaders_of(args, info, device)
    model = Classifier(args.architecture, info.num_classes, args.mode)
    load_weights(model.backbone, args.architecture, args.weights)
    iterations = args.max_epoch * len(train_loader)
    groups = parameter_groups(model, args.lr, args.wd)
    optimizer, schedule = sgd_poly(groups, args.lr, args.wd, args.momentum, args.nesterov, iterations)
    model = parallel(model, device, devices, args.precision).train()
    keeper = ModelKeeper(args.tag, args.select, args.architecture)

    # A run that was killed goes on where it was last saved.
    log = RunLog(args, len(train_loader))
    parts = dict(model=unwrap(model), optimizer=optimizer, schedule=schedule, keeper=keeper)
    parts |= dict(log=log, averages=log.averages)
    state = TrainingState(args, train_loader, parts, classes=info.class_names)

    with state, log:
        iteration = state.iteration
        for epoch in state.epochs():
            for batch in stage.progress(train_loader, f'epoch {epoch + 1}', lines=False):
                images = network_input(batch['images'].to(device, non_blocking=True))
                labels = batch['labels'].to(device, non_blocking=True)

                # L = L_cls + L_p-cls + alpha L_re + L_conf
                losses = losses_of(model, images, labels, args, rounds)
                alpha = alpha_at(iteration, iterations, args.alpha, args.alpha_schedule)
                loss = sum(alpha * value if name == 're' else value for name, value in losses.items())
                lr = take_step(loss, optimizer, schedule)

                iteration += 1
                ramp = {'alpha': alpha} if 're' in losses else {}
                log.training(iteration, lr, {'loss': loss, **losses}, **ramp)
                state.after(iteration)

            threshold, miou, sheet = score_cams(model, score_loader, info, device)
            log.picture(iteration, 'CAMs', sheet)
            best = keeper.keep(model, epoch + 1, miou)
            log.scored(iteration, epoch + 1, f'train CAM mIoU at threshold {threshold:.2f}', miou, best)
            state.save(iteration)
        log.log(keeper.summary())


if __name__ == '__main__':
    stage.run(main, ARGS, InputError)
