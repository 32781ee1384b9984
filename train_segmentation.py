"""Stage 7: train DeepLabv3+ on the pseudo-labels.

Reads   images of the list train_aug; experiments/predictions/{label_name}/{id}.png of stage 6; images and masks of the
        list val (to score each epoch)
Writes  experiments/models/{tag}.pth (the epoch that --select chose) and {tag}.last.pth or {tag}.best.pth (the other),
        experiments/logs/{tag}.txt, data/{tag}.json, tensorboards/{tag}/

    python3 train_segmentation.py --backbone resnest101 --mode fix --use_gn True --tag DeepLabv3+@ResNeSt-101@Fix@GN \\
        --label_name AffinityNet@ResNeSt-101@Puzzle@train@beta=10@exp_times=8@rw@crf=1 --data_dir $D

The predictions of stage 8 should then score 66.9 mIoU on val (paper, Table 3).
"""

from core.backbone import BACKBONES
from tools import flags


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_training(parser, lr=0.007, wd=4e-5, momentum=4e-5, epochs=50, sizes=(256, 1024))
    flags.add_segmenter(parser, BACKBONES)
    flags.add_label_name(parser, 'pseudo-labels')
    parser.add_argument('--select', default='best', choices=('best', 'last'), help='best: by masks of val')
    args = flags.parse_training(parser, argv)
    if args.mode == 'normal' and args.batch_size < 2:
        parser.error(f'--mode normal needs --batch_size 2 or more, not {args.batch_size}: BatchNorm trains')
    return args


if __name__ == '__main__':
    ARGS = parse_args()  # --help and a wrong flag answer before the heavy imports

from functools import partial

import torch
import torch.nn.functional as F

from core import IGNORE, InputError
from core.backbone import load_weights
from core.datasets import ImageSet, label_path, load_info, mask_path
from core.metrics import ConfusionMatrix
from core.networks import build_segmenter
from core.transforms import Pipeline, RandomCrop, RandomFlip, RandomLongerSide, TopLeftCrop, network_input
from tools import pictures, stage
from tools.checkpoint import ModelKeeper, TrainingState, unwrap
from tools.device import devices_for, ordered_loader, parallel, pick_device, seed_all, training_loader
from tools.experiment import check_inputs, folder_identity, input_folder
from tools.log import RunLog
from tools.optim import parameter_groups, sgd_poly, take_step


@torch.no_grad()
def score_masks(model, loader, info, device):
    """mIoU of the top left corners of val, and pictures (image, mask, prediction) of the first batch."""
    model.eval()
    matrix = ConfusionMatrix(info.num_classes + 1)
    rows = []
    for batch in stage.progress(loader, 'scoring val'):
        masks = batch['masks'].numpy()
        logits = model(network_input(batch['images'].to(device, non_blocking=True))).float()
        logits = F.interpolate(logits, masks.shape[1:], mode='bilinear', align_corners=False)
        predictions = logits.argmax(1).cpu().numpy()
        matrix.update(predictions, masks)
        if not rows:
            images = batch['images'].pixels[:8].numpy()
            for image, *maps in zip(images, masks, predictions, strict=False):
                rows.append([image, *(pictures.coloured(image, label, info.palette) for label in maps)])
    model.train()
    return matrix.miou(), pictures.sheet(rows)


def main(args):
    info = load_info(args.dataset)
    device = pick_device(args.device)
    seed_all(args.seed)
    folder = input_folder(args.label_name, '--label_name', 'make_pseudo_labels.py', args.pred_dir)
    check_inputs(folder, info.ids('train_aug'), '.png', 'make_pseudo_labels.py')

    # Images and pseudo-labels are scaled, mirrored and cropped together; val is scored in its top left corner.
    longer_side = RandomLongerSide(args.min_image_size, args.max_image_size, args.resize)
    transform = Pipeline(longer_side, RandomFlip(), RandomCrop(args.image_size))
    pseudo_label_of, mask_of = partial(label_path, folder), partial(mask_path, args.data_dir)
    train_set = ImageSet(info, args.data_dir, 'train_aug', transform, mask_of=pseudo_label_of, seed=args.seed)
    train_loader = training_loader(train_set, args.batch_size, args.num_workers, args.seed, device)
    score_set = ImageSet(info, args.data_dir, 'val', Pipeline(TopLeftCrop(args.image_size)), mask_of=mask_of)
    score_loader = ordered_loader(score_set, args.batch_size, args.num_workers, device)

    model = build_segmenter(args.architecture, args.backbone, info.num_classes + 1, args.mode, args.use_gn)
    load_weights(model.backbone, args.backbone, args.weights)
    iterations = args.max_epoch * len(train_loader)
    groups = parameter_groups(model, args.lr, args.wd)
    optimizer, schedule = sgd_poly(groups, args.lr, args.wd, args.momentum, args.nesterov, iterations)
    model = parallel(model, device, devices_for(args.batch_size, device), args.precision).train()
    keeper = ModelKeeper(args.tag, args.select, flags.segmenter_name(args))

    # A run that was killed goes on where it was last saved.
    log = RunLog(args, len(train_loader))
    parts = dict(model=unwrap(model), optimizer=optimizer, schedule=schedule, keeper=keeper)
    parts |= dict(log=log, averages=log.averages)
    state = TrainingState(args, train_loader, parts, classes=info.class_names, labels=folder_identity(folder))

    with state, log:
        iteration = state.iteration
        for epoch in state.epochs():
            for batch in stage.progress(train_loader, f'epoch {epoch + 1}', lines=False):
                images = network_input(batch['images'].to(device, non_blocking=True))
                labels = batch['masks'].to(device, non_blocking=True).long()

                # DeepLabv3+ answers at the size of the image, Seg_Model and CSeg_Model below it.
                logits = model(images)
                if logits.shape[2:] != labels.shape[1:]:
                    labels = F.interpolate(labels[:, None].float(), logits.shape[2:], mode='nearest-exact')[:, 0].long()
                loss = F.cross_entropy(logits, labels, ignore_index=IGNORE)
                lr = take_step(loss, optimizer, schedule)

                iteration += 1
                log.training(iteration, lr, {'loss': loss})
                state.after(iteration)

            miou, sheet = score_masks(model, score_loader, info, device)
            log.picture(iteration, 'predictions', sheet)
            best = keeper.keep(model, epoch + 1, miou)
            log.scored(iteration, epoch + 1, 'val mIoU', miou, best)
            state.save(iteration)
        log.log(keeper.summary())


if __name__ == '__main__':
    stage.run(main, ARGS, InputError)
