"""Stage 7: train DeepLabv3+ on the pseudo-labels.

Reads   images of the list train_aug; experiments/predictions/{label_name}/{id}.png of stage 6; images and masks of the
        list val, if there are any masks, to score each epoch
Writes  experiments/models/{tag}.pth (the epoch chosen by --select) and {tag}.last.pth or {tag}.best.pth (the other),
        experiments/logs/{tag}.txt, data/{tag}.json, tensorboards/{tag}/

    python3 train_segmentation.py --backbone resnest101 --mode fix --use_gn True --tag DeepLabv3+@ResNeSt-101@Fix@GN \\
        --label_name AffinityNet@ResNeSt-101@Puzzle@train@beta=10@exp_times=8@rw@crf=1 --data_dir $D

The predictions of stage 8 should then score 66.9 mIoU on val (paper, Table 3).
"""

import torch
import torch.nn.functional as F

from core import IGNORE
from core.data.dataset import open_dataset
from core.data.torch_datasets import ImageDataset
from core.data.transforms import Pipeline, TopLeftCrop, normalize, training_pipeline
from core.maps import strided_size
from core.metrics import ConfusionMatrix
from core.models import BACKBONES, SEGMENTERS, build_segmenter, load_weights
from util import artifacts, devices, flags, loaders, optim, pictures, processes, stage
from util.run import Run


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    flags.add_training(parser, lr=0.007, wd=4e-5, momentum=4e-5, epochs=50, sizes=(256, 1024))
    flags.add_segmenter(parser, SEGMENTERS, BACKBONES)
    flags.add_sync_bn(parser)
    flags.add_label_name(parser, 'pseudo-labels (stage 6)')
    flags.add_label_smoothing(parser, 'of the cross-entropy')
    select = 'epoch to keep; best: by the mIoU on the masks of val (without masks: last)'
    parser.groups['run and output'].add_argument('--select', default='best', choices=('best', 'last'), help=select)
    args = flags.parse_training(parser, argv)
    parts = max(args.micro_batches, processes.count())
    if args.mode == 'normal' and args.batch_size < 2 * parts:
        of_each = f' for each of {parts} parts' if parts > 1 else ''
        parser.error(f'--batch_size {args.batch_size}: --mode normal trains BatchNorm and needs 2 or more{of_each}')
    if args.sync_bn and args.micro_batches > 1:
        parser.error('--sync_bn: the statistics of the whole batch need it at once: leave out --micro_batches')
    return args


def build_loaders(args, dataset, pseudo_labels, device):
    """Return the batches to train on, and those of val with masks that are scored after each epoch."""
    transform = training_pipeline((args.min_image_size, args.max_image_size), args.image_size, args.resize)
    ids = dataset.ids('train_aug', with_images=True)
    train_set = ImageDataset(dataset, ids, transform, read_mask=pseudo_labels.read_label, seed=args.seed)
    train_loader = loaders.training_loader(train_set, args.batch_size, args.num_workers, args.seed, device)

    # val is scored on its top-left crop against ground-truth masks.
    ids = dataset.ids_with_masks('val', with_images=True)
    crop = Pipeline(TopLeftCrop(args.image_size))
    score_set = ImageDataset(dataset, ids, crop, read_mask=dataset.read_mask)
    return train_loader, loaders.ordered_loader(score_set, args.batch_size, args.num_workers, device)


@torch.no_grad()
def score_predictions(model, loader, dataset, device):
    """Return the mIoU on the top-left crops of val, and pictures of the first batch."""
    model.eval()
    matrix = ConfusionMatrix(dataset.num_classes + 1)
    grid = None
    for batch in stage.progress(loader, 'scoring val'):
        masks = batch['masks'].numpy()
        logits = model(normalize(batch['images'].to(device, non_blocking=True))).float()
        logits = F.interpolate(logits, masks.shape[1:], mode='bilinear', align_corners=False)
        predictions = logits.argmax(1).cpu().numpy()
        matrix.update(predictions, masks)
        if grid is None:
            label_maps = {'ground truth': masks, 'prediction': predictions}
            grid = pictures.draw_rows(dataset, batch['images'].pixels.numpy(), label_maps)
    model.train()
    matrix.counts = processes.add(matrix.counts)
    return matrix.miou(), grid


def main(args):
    device = processes.start(args)
    dataset = open_dataset(args.dataset, args.data_dir)
    ids, kind = dataset.ids('train_aug'), artifacts.PSEUDO_LABEL
    pseudo_labels = artifacts.open_folder(kind, args.label_name, '--label_name', dataset, ids, args.pred_dir)
    train_loader, score_loader = build_loaders(args, dataset, pseudo_labels, device)
    masked = score_loader.dataset.ids
    stage.print_mask_count(dataset, 'val', masked)

    # Build the network on an ImageNet backbone.
    model = build_segmenter(args.architecture, args.backbone, dataset.num_classes + 1, args.mode, args.use_gn)
    load_weights(model.backbone, args.backbone, args.weights)
    iterations = args.max_epoch * len(train_loader)
    optimizer, schedule = optim.build_sgd(optim.parameter_groups(model, args.lr, args.wd), args, iterations)
    if args.sync_bn:
        processes.synchronise(model, device)
    size = strided_size((args.image_size, args.image_size), model.stride)
    num_devices = 1 if args.sync_bn else devices.devices_for(args.batch_size // args.micro_batches, device)
    model = devices.parallel(model, device, num_devices, args.precision, args.compile).train()

    # Train, resuming from the last checkpoint if there is one.
    meta = {'network': args.architecture, 'backbone': args.backbone, 'mode': args.mode}
    meta |= {'use_gn': args.use_gn} if args.architecture == 'DeepLabv3+' else {}
    inputs = {'labels': pseudo_labels}
    if args.mode == 'normal' and (args.sync_bn or args.micro_batches > 1):  # what BatchNorm saw
        inputs['batchnorm'] = 'whole batch' if args.sync_bn else f'{args.micro_batches} replicas'
    with Run(args, train_loader, model, optimizer, schedule, meta, masked, **inputs) as run:
        for _ in run.epochs():
            for batch in run.batches(device):
                # DeepLabv3+ predicts at full resolution, the other two networks at lower resolution.
                labels = batch['masks'].long()
                if size != labels.shape[1:]:
                    labels = F.interpolate(labels[:, None].float(), size, mode='nearest-exact')[:, 0].long()

                # The mean of the cross-entropy over the labelled pixels of the whole batch.
                count = processes.add((labels != IGNORE).sum())
                for part in run.micro_batches({**batch, 'labels': labels}):
                    logits = model(normalize(part['images']))
                    options = {'label_smoothing': args.label_smoothing, 'reduction': 'sum'}
                    run.step(F.cross_entropy(logits, part['labels'], ignore_index=IGNORE, **options) / count)

            # Score the crops of val if there are masks; keep the best and the last epoch.
            if masked:
                miou, grid = score_predictions(model, score_loader, dataset, device)
                run.end_epoch('val mIoU', miou, predictions=grid)
            else:
                images, *maps = (x.cpu().numpy() for x in (part['images'].pixels, part['labels'], logits.argmax(1)))
                label_maps = dict(zip(('pseudo-label', 'prediction'), maps, strict=True))
                run.end_epoch(predictions=pictures.draw_rows(dataset, images, label_maps))


if __name__ == '__main__':
    stage.run(main, parse_args)
