"""How hard each term of stage 1's loss pulls at the weights: evidence for choosing alpha.

    python3 recipes/gradients.py --tag ablation@cl_pcl_re@seed=0            # at the end of the run
    python3 recipes/gradients.py --tag ablation@cl_pcl_re@seed=0 --at start

Reads experiments/data/{tag}.json (the options of a run of stage 1), its model, its data. Prints means over the first
batches of epoch 1, with the tile pass whatever --loss_option the run had: the value of each term, the norm of its
gradient over all weights that learn, and the cosine between that gradient and L_cls's; L_re unweighted (times alpha is
what training sees).
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from core.backbone import load_weights
from core.datasets import load_info
from core.networks import Classifier
from core.transforms import network_input
from tools.checkpoint import load_model
from tools.device import pick_device, place, seed_all
from tools.experiment import BEFORE, EXPERIMENTS, model_path

import train_classification_with_puzzle as stage1
from core import InputError
from tools import UserError, flags, stage


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    parser.add_argument('--tag', type=flags.folder_name, required=True, help='a run of stage 1')
    parser.add_argument('--at', default='end', choices=('start', 'end'), help='before its first step, or its model')
    parser.add_argument('--batches', type=flags.integer(1), default=8, help='to average over')
    flags.add_device(parser)
    return parser.parse_args(argv)


def run_options(tag: str, device: str) -> Namespace:
    """The options of a run, to look at all three terms of the loss."""
    path = EXPERIMENTS / 'data' / f'{tag}.json'
    try:
        options = json.loads(path.read_text())['options']
        return Namespace(**{**BEFORE, **options, 'loss_option': 'cl_pcl_re', 'num_workers': 0, 'device': device})
    except (OSError, ValueError, KeyError, TypeError):
        maker = 'train_classification_with_puzzle.py'
        raise UserError(f'--tag {tag}: {path} is not there or damaged; {maker} makes it') from None


def gradient(loss: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """All of it, in one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, retain_graph=True)])


def main(args):
    run = run_options(args.tag, args.device)
    info, device = load_info(run.dataset), pick_device(args.device)
    seed_all(run.seed)
    train_loader, _ = stage1.loaders_of(run, info, device)
    model = Classifier(run.architecture, info.num_classes, run.mode)
    if args.at == 'start':
        load_weights(model.backbone, run.architecture, run.weights)
    else:
        path = model_path(args.tag)
        load_model(model, path, '--tag', 'train_classification_with_puzzle.py', run.architecture)
    model = place(model, device).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    rounds = run.bn_replicas if run.mode == 'normal' else 1

    sums, count = {}, 0
    for count, batch in enumerate(train_loader, 1):  # noqa: B007 -- counts what there was
        images, labels = network_input(batch['images'].to(device)), batch['labels'].to(device)
        losses = stage1.losses_of(model, images, labels, run, rounds)
        gradients = {name: gradient(loss, weights) for name, loss in losses.items()}
        for name, g in gradients.items():
            cosine = torch.cosine_similarity(g, gradients['cl'], 0)
            figures = torch.stack([losses[name].detach(), g.norm(), cosine])
            sums[name] = sums.get(name, 0) + figures
        if count == args.batches:
            break
    print(f'{args.tag} at its {args.at}, {count} batches of {run.batch_size} ({run.mode})')
    print(f'{"":12}{"value":>10}{"gradient":>10}{"cosine":>10}')
    for name, title in (('cl', 'L_cls'), ('pcl', 'L_p-cls'), ('re', 'L_re')):
        value, norm, cosine = (sums[name] / count).tolist()
        print(f'{title:12}{value:10.4f}{norm:10.4f}{cosine:10.3f}')


if __name__ == '__main__':
    stage.run(main, parse_args(), InputError)
