"""Gradient norm of each term of stage 1's loss: evidence for choosing alpha.

Reads   experiments/data/{tag}.json (the options of a run of stage 1), models/{tag}.pth, and the run's data
Writes  nothing

    python3 -m recipes.gradients --tag ablation@cl_pcl_re@seed=0
    python3 -m recipes.gradients --tag ablation@cl_pcl_re@seed=0 --at start

Prints means over the first batches of epoch 1: the value of each term, its gradient norm over all trained weights, and
the cosine between its gradient and the gradient of L_cls. The tile pass runs with any --loss_option of the run. L_re is
unweighted; training multiplies it by alpha.
"""

import json
from argparse import Namespace
from itertools import islice

import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils.data import DataLoader

from core import UserError
from core.data import transforms
from core.data.dataset import open_dataset
from core.data.torch_datasets import ImageDataset
from core.losses import puzzle_losses
from core.models import Classifier, load_weights
from train_classification_with_puzzle import parse_args as stage1_options
from util import flags, script
from util.parallel.batch import SharedModel
from util.parallel.devices import pick_device
from util.store.formats import run_path
from util.training import loaders, options
from util.training.models import open_model

SCRIPT = 'train_classification_with_puzzle.py'


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.groups['model'].add_argument('--tag', type=flags.folder_name, required=True, help='run of stage 1')
    at = 'weights to use: start (before the first step of the run) or end (its model)'
    parser.groups['model'].add_argument('--at', default='end', choices=('start', 'end'), help=at)
    parser.groups['data'].add_argument('--batches', type=flags.integer(1), default=8, help='batches to average over')
    parser.add_table(options.COMPUTING)
    return parser.parse_args(argv)


def run_options(tag: str) -> Namespace:
    """Return the options of a run; newer options have their defaults. Raises UserError if they cannot be read."""
    path = run_path(tag)
    try:
        record = json.loads(path.read_text())
        options = Namespace(**{**vars(stage1_options(['--tag', tag])), **record['options']})
        network = record['network']
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'--tag {tag}: {path} is missing or damaged; run {SCRIPT} first') from None
    if network != 'Classifier':
        raise UserError(f'--tag {tag}: is not a run of {SCRIPT}')
    return options


def open_batches(run: Namespace, dataset, device: torch.device) -> DataLoader:
    """Return the training batches of a run."""
    sizes = (run.min_image_size, run.max_image_size)
    transform = transforms.training_pipeline(sizes, run.image_size, run.resize, run.augment.split(','))
    ids = dataset.ids('train_aug', with_images=True)
    samples = ImageDataset(dataset, ids, transform, dataset.read_all_labels(ids), seed=run.seed)
    return loaders.training_loader(samples, run.batch_size, 0, run.seed, device)


def share(model: Classifier, run: Namespace, device: torch.device, precision: str, compiled: bool) -> SharedModel:
    """Return the classifier in training mode with the run's BatchNorm replicas, without micro-batches."""
    computing = {'precision': precision, 'compile': compiled, 'batch_size': run.batch_size}
    return SharedModel(model, device, whole_batch=True, bn_replicas=run.bn_replicas, **computing)


def all_losses(network: SharedModel, images: Tensor, labels: Tensor, run: Namespace) -> dict[str, Tensor]:
    """Return L_cls, L_p-cls and L_re, for any --loss_option of the run."""
    compared = run.level, run.re_loss, run.re_loss_option
    return puzzle_losses(network, images, labels, ('cl', 'pcl', 're'), run.num_pieces, *compared, run.label_smoothing)


def compute_gradient(loss: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the flattened gradient over all weights."""
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, weights, retain_graph=True)])


def main(args):
    # Repeat the set-up of the run.
    run = run_options(args.tag)
    dataset, device = open_dataset(run.dataset, run.data_dir, run.window, run.plane), pick_device(args.device, run.seed)
    model = Classifier(run.architecture, dataset.num_classes, run.mode)
    if args.at == 'start':
        load_weights(model.backbone, run.architecture, run.weights)
    else:
        open_model(args.tag, '--tag', ['Classifier']).load(model)
    network = share(model, run, device, args.precision, compiled=False)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    # Sum value, gradient norm and cosine of each term over the batches.
    sums, count = {}, 0
    for batch in islice(open_batches(run, dataset, device), args.batches):
        images, labels = transforms.normalize(batch['images'].to(device)), batch['labels'].to(device)
        losses = all_losses(network, images, labels, run)
        gradients = {name: compute_gradient(loss, weights) for name, loss in losses.items()}
        for name, gradient in gradients.items():
            cosine = torch.cosine_similarity(gradient, gradients['cl'], 0)
            sums[name] = sums.get(name, 0) + torch.stack([losses[name].detach(), gradient.norm(), cosine])
        count += 1

    print(f'{args.tag} at its {args.at}, {count} batches of {run.batch_size} ({run.mode})')
    titles = {'cl': 'L_cls', 'pcl': 'L_p-cls', 're': 'L_re'}
    rows = [(title, *(sums[name] / count).tolist()) for name, title in titles.items()]
    print(tabulate(rows, ('', 'value', 'gradient', 'cosine'), tablefmt='pipe', floatfmt=('', '.4f', '.4f', '.3f')))


if __name__ == '__main__':
    script.run(main, parse_args)
