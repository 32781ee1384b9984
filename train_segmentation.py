"""Stage 7: train DeepLabv3+ on the pseudo-labels.

Reads   images of the list train_aug; experiments/predictions/{label_name}/{id}.png of stage 6; images and masks of the
        list val, if there are any masks, to score each epoch. With --label_name ground_truth, the supervised upper
        bound, the masks of the data set instead of pseudo-labels, and only the images that have one
Writes  experiments/models/{tag}.pth (the epoch chosen by --select) and {tag}.last.pth or {tag}.best.pth (the other),
        experiments/logs/{tag}.txt, data/{tag}.json, tensorboards/{tag}/

    python3 train_segmentation.py --backbone resnest101 --mode fix --use_gn True --tag DeepLabv3+@ResNeSt-101@Fix@GN \\
        --label_name AffinityNet@ResNeSt-101@Puzzle@train@beta=10@exp_times=8@rw@crf=1 --data_dir $D

The paper reports 66.9 mIoU on val for the predictions (Table 3). It has not been reproduced with this code.
"""

import util.startup

import torch.nn.functional as F

from core import IGNORE, UserError
from core.data.dataset import open_dataset
from core.data.torch_datasets import scored_crops, training_samples
from core.metrics import ConfusionMatrix
from core.models import build_segmenter, build_sgd, load_weights
from util import draw, flags, script
from util.parallel import processes
from util.store import PSEUDO_LABEL, open_folder
from util.store.hashes import mask_hashes
from util.training import Run, SharedModel, options, ordered_loader, training_loader

GROUND_TRUTH = 'ground_truth'  # --label_name: the masks of the data set


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    recipe = {'lr': 0.007, 'wd': 4e-5, 'momentum': 4e-5, 'max_epoch': 50, 'min_image_size': 256, 'max_image_size': 1024}
    parser.add_table(options.TRAINING, options.SUPERVISED, options.SEGMENTER, options.LABELS, **recipe)
    return options.parse_training(parser, argv)


def open_labels(args, dataset):
    """Return the ids to train on, what reads their labels, and what identifies these for Run."""
    if args.label_name == GROUND_TRUTH:
        ids = dataset.ids_with_masks('train_aug', with_images=True)
        if not ids:
            fault = 'no image of the list "train_aug" has a mask: name a folder of stage 6'
            raise UserError(f'--label_name {GROUND_TRUTH}: {fault}')
        script.print_mask_count(dataset, 'train_aug', ids, 'trained on')
        masks = mask_hashes({name: dataset.mask_path(name) for name in ids}, dataset.mask_values)
        return ids, dataset.read_mask, {'masks': masks}
    ids = dataset.ids('train_aug', with_images=True)
    pseudo_labels = open_folder(PSEUDO_LABEL, args.label_name, '--label_name', dataset, ids, args.pred_dir)
    return ids, pseudo_labels.read_label, {'labels': pseudo_labels}


def build_loaders(args, dataset, ids, read_label, device):
    """Return the batches to train on, and the top-left crops of val with masks that are scored after each epoch."""
    where = (args.min_image_size, args.max_image_size), args.image_size, args.resize, args.seed
    train_set = training_samples(dataset, *where, ids=ids, read_mask=read_label)
    train_loader = training_loader(train_set, args.batch_size, args.num_workers, args.seed, device)
    score_set = scored_crops(dataset, 'val', args.image_size)
    return train_loader, ordered_loader(score_set, args.batch_size, args.num_workers, device)


def score_predictions(network, loader, dataset):
    """Return the mIoU on the crops of val, and pictures of the first batch."""
    matrix, grid = ConfusionMatrix(dataset.num_classes + 1), None
    for batch, logits in network.infer(loader, 'scoring val'):
        masks = batch['masks']
        logits = F.interpolate(logits.float(), masks.shape[1:], mode='bilinear', align_corners=False)
        predictions = logits.argmax(1) + dataset.first_label
        matrix.update(predictions.cpu().numpy(), masks.cpu().numpy())
        if grid is None:
            grid = draw.draw_rows(dataset, batch, {'ground truth': masks, 'prediction': predictions})
    matrix.counts = network.add(matrix.counts)
    return matrix.miou(), grid


def main(args):
    device = processes.start(args.device, args.seed, args.record())
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    ids, read_label, labels = open_labels(args, dataset)
    train_loader, score_loader = build_loaders(args, dataset, ids, read_label, device)

    # Build the network on an ImageNet backbone.
    outputs = len(dataset.label_names) - dataset.first_label
    model = build_segmenter(args.architecture, args.backbone, outputs, args.mode, args.use_gn)
    weights = load_weights(model.backbone, args.backbone, args.weights)
    optimizer, schedule = build_sgd(model, args.max_epoch * len(train_loader), **args.pick(options.SGD))
    network = SharedModel(model, device, **args.pick(options.SHARING))

    # Train, resuming from the last checkpoint if there is one.
    meta = {'network': args.architecture, 'backbone': args.backbone, 'mode': args.mode}
    meta |= {'use_gn': args.use_gn} if args.architecture == 'DeepLabv3+' else {}
    trained = train_loader, network, optimizer, schedule, meta, score_loader.dataset
    inputs = {'record': args.record(), 'weights': weights, **labels, **args.pick(options.RUNNING)}
    with Run(*trained, **inputs) as run:
        for _ in run.epochs():
            some = None  # no batch is left in a run that was stopped while an epoch was scored
            for batch in run.batches():
                # DeepLabv3+ predicts at full resolution, the other two networks at lower resolution.
                labels = batch['masks'].long()
                size = model.output_size(labels.shape[1:])
                if size != labels.shape[1:]:
                    labels = F.interpolate(labels[:, None].float(), size, mode='nearest')[:, 0].long()

                # The mean of the cross-entropy over the labelled pixels of the whole batch, 0 if there are none.
                count = network.total((labels != IGNORE).sum()).clamp(min=1)
                ignored = IGNORE - dataset.first_label  # output k is the label k + first_label
                for some in network.micro_batches({**batch, 'labels': labels}):
                    logits, targets = network(some['images']), some['labels'] - dataset.first_label
                    summed = {'ignore_index': ignored, 'label_smoothing': args.label_smoothing, 'reduction': 'sum'}
                    run.backward(F.cross_entropy(logits, targets, **summed) / count)
                run.step()

            # Score the crops of val if there are masks; keep the best and the last epoch.
            if score_loader.dataset.ids:
                miou, grid = score_predictions(network, score_loader, dataset)
                run.end_epoch('val mIoU', miou, predictions=grid)
            elif some is None:
                run.end_epoch()
            else:
                label_maps = {'pseudo-label': some['labels'], 'prediction': logits.argmax(1) + dataset.first_label}
                run.end_epoch(predictions=draw.draw_rows(dataset, some, label_maps))


if __name__ == '__main__':
    script.run(main, parse_args)
