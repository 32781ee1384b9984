"""Gradient norm of each term of stage 1's loss: evidence for choosing alpha.

Reads   experiments/data/{tag}.json (the options of a run of stage 1), models/{tag}.pth, and the run's data
Writes  nothing

    python3 -m recipes.gradients --tag ablation@cl_pcl_re@seed=0
    python3 -m recipes.gradients --tag ablation@cl_pcl_re@seed=0 --at start

Prints means over the first batches of epoch 1: the value of each term, its gradient norm over all trained weights, and
the cosine between its gradient and that of L_cls. The tile pass runs whatever --loss_option the run had. L_re is
unweighted; training multiplies it by alpha.
"""

import json
from argparse import Namespace
from itertools import islice

import torch
from tabulate import tabulate
from torch import Tensor

import train_classification_with_puzzle as stage1
from core import UserError
from core.data.dataset import open_dataset
from core.data.transforms import normalize
from core.models import Classifier, load_weights
from util import artifacts, flags, stage
from util.checkpoint import open_model
from util.devices import pick_device, to_device
from util.run import ADDED

SCRIPT = 'train_classification_with_puzzle.py'


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.groups['model'].add_argument('--tag', type=flags.folder_name, required=True, help='run of stage 1')
    at = 'weights: before the first step of the run, or its model'
    parser.groups['model'].add_argument('--at', default='end', choices=('start', 'end'), help=at)
    parser.groups['data'].add_argument('--batches', type=flags.integer(1), default=8, help='batches to average over')
    flags.add_device(parser)
    return parser.parse_args(argv)


def run_options(tag: str, device: str) -> Namespace:
    """Return the options of a run, with all three terms of the loss. Raises UserError if they cannot be read."""
    path = artifacts.EXPERIMENTS / 'data' / f'{tag}.json'
    try:
        options = json.loads(path.read_text())['options']
        return Namespace(**{**ADDED, **options, 'loss_option': 'cl_pcl_re', 'num_workers': 0, 'device': device})
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'--tag {tag}: {path} is missing or damaged; run {SCRIPT} first') from None


def compute_gradient(loss: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the flattened gradient over all weights."""
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, weights, retain_graph=True)])


def main(args):
    # Repeat the set-up of the run.
    run = run_options(args.tag, args.device)
    dataset, device = open_dataset(run.dataset, run.data_dir), pick_device(args.device, run.seed)
    train_loader, *_ = stage1.build_loaders(run, dataset, device)
    model = Classifier(run.architecture, dataset.num_classes, run.mode)
    if args.at == 'start':
        load_weights(model.backbone, run.architecture, run.weights)
    else:
        open_model(args.tag, '--tag', SCRIPT).load(model)
    model = to_device(model, device, args.precision).train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    replicas = run.bn_replicas if run.mode == 'normal' else 1

    # Sum value, gradient norm and cosine of each term over the batches.
    sums, count = {}, 0
    for batch in islice(train_loader, args.batches):
        images, labels = normalize(batch['images'].to(device)), batch['labels'].to(device)
        losses = stage1.compute_losses(model, images, labels, run, replicas)
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
    stage.run(main, parse_args)
