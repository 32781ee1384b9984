"""Stage 4: learn which neighbouring pixels belong together (edges) from affinity labels.

Reads   images of the list train_aug; experiments/predictions/{label_name}/{id}.png of stage 3
Writes  experiments/models/{tag}.pth (the last epoch), logs/{tag}.txt, data/{tag}.json, tensorboards/{tag}/

    python3 train_affinitynet.py --architecture resnest101 --tag AffinityNet@ResNeSt-101@Puzzle --data_dir $D \\
        --label_name ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0@aff_fg=0.40_bg=0.10
"""

from core.backbone import BACKBONES
from tools import flags


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_training(parser, lr=0.1, wd=1e-4, momentum=1e-4, epochs=3, sizes=(320, 640))
    parser.add_argument('--architecture', default='resnest101', choices=BACKBONES, help='backbone, frozen')
    flags.add_label_name(parser, 'affinity labels')
    parser.add_argument('--radius', type=flags.integer(2), default=10, help='of the pairs, in pixels of the edge map')
    return flags.parse_training(parser, argv)


if __name__ == '__main__':
    ARGS = parse_args()  # --help and a wrong flag answer before the heavy imports

from functools import partial

import torch

from core import IGNORE, InputError
from core.affinity import PathIndex, affinity_labels
from core.backbone import load_weights
from core.datasets import ImageSet, label_path, load_info
from core.losses import affinity_loss
from core.maps import strided_size
from core.networks import AffinityNet
from core.transforms import Pipeline, RandomCrop, RandomFlip, RandomLongerSide, ResizeMask, network_input
from tools import UserError, pictures, stage
from tools.checkpoint import TrainingState, save_model, unwrap
from tools.device import devices_for, parallel, pick_device, seed_all, training_loader
from tools.experiment import check_inputs, folder_identity, input_folder, model_path
from tools.log import RunLog
from tools.optim import sgd_poly, take_step


def edge_sheet(images, labels, logits, palette):
    """Rows of image, affinity label and edge map."""
    edges = torch.sigmoid(logits[:, 0].float()).cpu().numpy()
    rows = zip(images.numpy(), labels.numpy(), edges, strict=True)
    return pictures.sheet(
        [[image, pictures.coloured(image, y, palette), pictures.heat(image, e)] for image, y, e in rows]
    )


def main(args):
    info = load_info(args.dataset)
    device = pick_device(args.device)
    seed_all(args.seed)
    folder = input_folder(args.label_name, '--label_name', 'make_affinity_labels.py', args.pred_dir)
    check_inputs(folder, info.ids('train_aug'), '.png', 'make_affinity_labels.py')

    # Labels go through the same scaling, mirroring and cropping as images, then to the size of the edge map.
    edge_size = strided_size((args.image_size, args.image_size))
    path_index = PathIndex(args.radius, edge_size)
    longer_side = RandomLongerSide(args.min_image_size, args.max_image_size, args.resize)
    transform = Pipeline(longer_side, RandomFlip(), RandomCrop(args.image_size), ResizeMask(edge_size[0]))
    train_set = ImageSet(
        info, args.data_dir, 'train_aug', transform, mask_of=partial(label_path, folder), seed=args.seed
    )
    train_loader = training_loader(train_set, args.batch_size, args.num_workers, args.seed, device)

    # The backbone is an ImageNet network, not the classifier of stage 1; only the head learns.
    model = AffinityNet(args.architecture)
    load_weights(model.backbone, args.architecture, args.weights)
    iterations = args.max_epoch * len(train_loader)
    optimizer, schedule = sgd_poly(model.head.parameters(), args.lr, args.wd, args.momentum, args.nesterov, iterations)
    model = parallel(model, device, devices_for(args.batch_size, device), args.precision).train()

    # A run that was killed goes on where it was last saved.
    log = RunLog(args, len(train_loader))
    parts = dict(model=unwrap(model), optimizer=optimizer, schedule=schedule, log=log, averages=log.averages)
    state = TrainingState(args, train_loader, parts, classes=info.class_names, labels=folder_identity(folder))

    with state, log:
        iteration = state.iteration
        for epoch in state.epochs():
            for batch in stage.progress(train_loader, f'epoch {epoch + 1}', lines=False):
                images = network_input(batch['images'].to(device, non_blocking=True))
                labels = batch['masks'].to(device, non_blocking=True)

                # The label of a pair comes from its two ends, its affinity from the edges between them.
                logits = model(images)
                affinity = path_index.edge_to_affinity(torch.sigmoid(logits))
                loss = affinity_loss(affinity, *affinity_labels(labels, path_index, info.num_classes))
                lr = take_step(loss, optimizer, schedule)

                iteration += 1
                log.training(iteration, lr, {'loss': loss})
                state.after(iteration)

            if not any(value for _, value in log.curves['loss']):
                raise UserError(f'--label_name {args.label_name}: all its labels are {IGNORE}: nothing to learn')
            sheet = edge_sheet(batch['images'].pixels[:8], batch['masks'][:8], logits[:8].detach(), info.palette)
            log.picture(iteration, 'edges', sheet)
            log.save_curves()
            save_model(model, model_path(args.tag), architecture=args.architecture, epoch=epoch + 1)
            state.save(iteration)
        log.log(f'{model_path(args.tag)}: the last epoch, {args.max_epoch}, time {log.elapsed()}')


if __name__ == '__main__':
    stage.run(main, ARGS, InputError)
