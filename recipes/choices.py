"""The effect of each published choice and each deviation: the quickstart with one thing changed, over seeds.

Reads   nothing (the quickstart's scenes are drawn into experiments/demo)
Writes  experiments/results/choices@*.json and .npz, what the stages write on the way, their messages in
        experiments/logs/choices@*.out

    python3 -m recipes.choices                      about 2.4 hours on 2 CPU cores
    python3 -m recipes.choices --seeds 0 1 --jobs 1

Per seed the chain of tools/quickstart.sh runs once, with the last epoch of stage 1, and then again from the stage
whose option is changed. Prints for each choice the mean mIoU over seeds and the difference to the chain with the 95 %
interval of Student's t over the seeds, then how far the results spread over the seeds of each stage alone. CAMs and
random-walk CAMs are scored at their best threshold, pseudo-labels at 0.35. Finished steps are not repeated.
"""

import json
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from core.intervals import t_interval
from recipes.runner import DRAWN, draw_scenes, execute_every_run
from tools.reporting import find
from util import flags, script
from util.store import formats
from util.store.files import write_json

NAME = 'choices'
NETWORK = 'resnest14_narrow'
SCALES = '0.5,1.0,1.5,2.0'
DATA = ['--dataset', f'{DRAWN}/dataset.json', '--data_dir', DRAWN]
EIGHTH = ['--dataset', f'{DRAWN}/eighth.json', '--data_dir', DRAWN]
SIZES = '--image_size 128 --min_image_size 96 --max_image_size 192 --batch_size 16'.split()
TRAIN = [*DATA, '--num_workers', '1', '--momentum', '0.9', *SIZES]


class Choice(NamedTuple):
    """A result to compare, {seed} in both names, or two choices of another option."""

    title: str
    result: str
    base: str


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    run = parser.groups['run and output']
    run.add_argument('--seeds', nargs='+', type=flags.integer(0), default=[0, 1, 2], help='random seeds')
    run.add_argument('--jobs', type=flags.integer(1), default=2, help='runs at once, a core each')
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < 2:
        parser.error('--seeds: needs two or more, for intervals')
    return args


# Names of outputs ---------------------------------------------------------------------------------------------------


def tag_of(variant, seed, network='cls'):
    return f'{NAME}@{variant}@{network}@seed={seed}'


def cam_of(tag):
    return f'{tag}@train@scale={SCALES}'


def walk_of(tag, more=''):
    return f'{tag}@train@beta=10@exp_times=8{more}@rw'


def prediction_of(tag):
    return f'{tag}@val@scale={SCALES}@iteration=10'


# Steps: each returns commands, the last of which scores what they wrote ---------------------------------------------


def score(folder, domain='train', data=DATA):
    """Score a folder, unless it has been."""
    if formats.result_path(f'{folder}@{domain}').is_file():
        return []
    return [['evaluate.py', *data, '--experiment_name', folder, '--domain', domain]]


def infer_cams(tag, domain='train'):
    infer = ['inference_classification.py', *DATA, '--num_workers', '1', '--tag', tag, '--domain', domain]
    return [infer, *score(cam_of(tag))]


def train_classifier(variant, seed, *more, domain='train'):
    tag = tag_of(variant, seed)
    options = ['--architecture', NETWORK, '--weights', 'none', '--lr', '0.02', '--max_epoch', '6', '--bn_replicas', '1']
    train = ['train_classification_with_puzzle.py', *TRAIN, *options, '--select', 'last', '--seed', str(seed)]
    return [[*train, '--tag', tag, *more], *infer_cams(tag, domain)]


def walk(cam, tag, more=(), domain='train'):
    infer = ['inference_rw.py', *DATA, '--num_workers', '1', '--model_name', tag, '--cam_dir', cam]
    name = f'@rw_normalization={more[-1]}' if more else ''
    return [[*infer, '--image_size', '128', '--domain', domain, *more], *score(walk_of(tag, name))]


def train_affinitynet(cam, variant, seed, weights, thresholds=(0.40, 0.10), domain='train'):
    """Train AffinityNet on labels made of CAMs, from the classifier's backbone, and propagate the CAMs."""
    tag, (fg, bg) = tag_of(variant, seed, 'aff'), (f'{threshold:.2f}' for threshold in thresholds)
    labels = ['make_affinity_labels.py', *DATA, '--num_workers', '1', '--experiment_name', cam]
    start = ['--architecture', NETWORK, '--weights', f'experiments/models/{weights}.pth', '--radius', '5']
    train = ['train_affinitynet.py', *TRAIN, *start, '--seed', str(seed), '--tag', tag]
    return [
        [*labels, '--fg_threshold', fg, '--bg_threshold', bg],
        [*train, '--label_name', f'{cam}@aff_fg={fg}_bg={bg}'],
        *walk(cam, tag, domain=domain),
    ]


def refine(walks, iterations=1, domain='train'):
    make = ['make_pseudo_labels.py', *DATA, '--num_workers', '1', '--experiment_name', walks, '--domain', domain]
    return [[*make, '--crf_iteration', str(iterations)], *score(f'{walks}@crf={iterations}')]


def predict(tag):
    infer = ['inference_segmentation.py', *DATA, '--num_workers', '1', '--tag', tag]
    return [infer, *score(prediction_of(tag), 'val')]


def train_segmentation(labels, variant, seed, weights, *more):
    tag = tag_of(variant, seed, 'deeplab')
    start = [
        '--backbone',
        NETWORK,
        '--weights',
        f'experiments/models/{weights}.pth',
        '--mode',
        'normal',
        '--lr',
        '0.003',
    ]
    train = ['train_segmentation.py', *TRAIN, *start, '--max_epoch', '3', '--seed', str(seed), '--tag', tag]
    return [[*train, '--label_name', labels, *more], *predict(tag)]


# The chain and its variants -----------------------------------------------------------------------------------------


def plan_chain(seed):
    """Return the commands of the chain of a seed."""
    cls, aff = tag_of('base', seed), tag_of('base', seed, 'aff')
    return [
        *train_classifier('base', seed, domain='train_aug'),
        *train_affinitynet(cam_of(cls), 'base', seed, cls, domain='train_aug'),
        *refine(walk_of(aff), domain='train_aug'),
        *train_segmentation(f'{walk_of(aff)}@crf=1', 'base', seed, cls),
    ]


def plan_variants(seed, first):
    """Return {name: commands} of the variants that branch off the chain of a seed and of the first seed."""
    cls, aff, deeplab = (tag_of('base', seed, network) for network in ('cls', 'aff', 'deeplab'))
    walks = walk_of(aff)
    by_class = walk_of(aff, '@rw_normalization=class')
    smoothing = ['--label_smoothing', '0.1']
    variants = {
        'lr=0.01': train_classifier('lr=0.01', seed, '--lr', '0.01'),
        'momentum=0.0001': train_classifier('momentum=0.0001', seed, '--momentum', '1e-4', '--lr', '0.1'),
        'bn_replicas=2': train_classifier('bn_replicas=2', seed, '--bn_replicas', '2'),
        'bn_replicas=4': train_classifier('bn_replicas=4', seed, '--bn_replicas', '4'),
        'label_smoothing=0.1': train_classifier('label_smoothing=0.1', seed, *smoothing),
        'best': infer_cams(f'{cls}.best'),
        'fg=0.30_bg=0.05': train_affinitynet(cam_of(cls), 'fg=0.30_bg=0.05', seed, cls, (0.30, 0.05)),
        'fg=0.50_bg=0.15': train_affinitynet(cam_of(cls), 'fg=0.50_bg=0.15', seed, cls, (0.50, 0.15)),
        'class': [*walk(cam_of(cls), aff, ['--rw_normalization', 'class']), *refine(by_class)],
        'crf': [*refine(walks, 0), *refine(walks, 10)],
        'smooth_deeplab': train_segmentation(f'{walks}@crf=1', 'label_smoothing=0.1', seed, cls, *smoothing),
        'last': predict(f'{deeplab}.last'),
        'eighth': [*score(cam_of(cls), 'eighth', EIGHTH), *score(walks, 'eighth', EIGHTH)],
    }
    if seed != first:
        one, labels = tag_of('base', first), f'{walk_of(tag_of("base", first, "aff"))}@crf=1'
        variants['aff_alone'] = train_affinitynet(cam_of(one), 'alone', seed, one)
        variants['deeplab_alone'] = train_segmentation(labels, 'alone', seed, one)
    return {f'{NAME}@{name}@seed={seed}': commands for name, commands in variants.items()}


def list_choices():
    """Return the comparisons, with {seed} in the names of results."""
    cam = f'{cam_of(tag_of("base", "{seed}"))}@train'
    aff = tag_of('base', '{seed}', 'aff')
    walks, labels = f'{walk_of(aff)}@train', f'{walk_of(aff)}@crf=1@train'
    segmenter = tag_of('base', '{seed}', 'deeplab')
    prediction = f'{prediction_of(segmenter)}@val'
    by_class = walk_of(aff, '@rw_normalization=class')

    def cams(variant):
        return f'{cam_of(tag_of(variant, "{seed}"))}@train'

    def walked(variant):
        return f'{walk_of(tag_of(variant, "{seed}", "aff"))}@train'

    smoothed = f'{prediction_of(tag_of("label_smoothing=0.1", "{seed}", "deeplab"))}@val'
    return [
        Choice('1: --momentum 1e-4 --lr 0.1 instead of 0.9 and 0.01', cams('momentum=0.0001'), cams('lr=0.01')),
        Choice('1: --bn_replicas 2 instead of 1: 8 images each, as published', cams('bn_replicas=2'), cam),
        Choice('1: --bn_replicas 4 instead of 1', cams('bn_replicas=4'), cam),
        Choice('1: --select best instead of last', f'{cam_of(tag_of("base", "{seed}") + ".best")}@train', cam),
        Choice('1: --label_smoothing 0.1', cams('label_smoothing=0.1'), cam),
        Choice('3: thresholds 0.30 and 0.05 instead of 0.40 and 0.10, walk', walked('fg=0.30_bg=0.05'), walks),
        Choice('3: thresholds 0.50 and 0.15 instead of 0.40 and 0.10, walk', walked('fg=0.50_bg=0.15'), walks),
        Choice('5: --rw_normalization class instead of joint, walk', f'{by_class}@train', walks),
        Choice('5: the same, pseudo-labels', f'{by_class}@crf=1@train', labels),
        Choice('6: no CRF instead of one iteration', f'{walk_of(aff)}@crf=0@train', labels),
        Choice('6: 10 CRF iterations instead of one', f'{walk_of(aff)}@crf=10@train', labels),
        Choice('7: --label_smoothing 0.1', smoothed, prediction),
        Choice('7: --select best instead of last', prediction, f'{prediction_of(segmenter + ".last")}@val'),
        Choice('9: CAMs, one image in eight instead of all', f'{cam_of(tag_of("base", "{seed}"))}@eighth', cam),
        Choice('9: walk, one image in eight instead of all', f'{walk_of(aff)}@eighth', walks),
    ]


def list_spreads(seeds):
    """Return {title: names of results} that differ only in the seed of some stages."""

    def alone(network, name):
        variants = ['base'] + ['alone'] * (len(seeds) - 1)
        return [name(tag_of(variant, seed, network)) for variant, seed in zip(variants, seeds, strict=True)]

    every = {network: [tag_of('base', seed, network) for seed in seeds] for network in ('cls', 'aff', 'deeplab')}
    return {
        'stage 1, CAMs': [f'{cam_of(tag)}@train' for tag in every['cls']],
        'stage 4 on the CAMs of the first seed, walk': alone('aff', lambda tag: f'{walk_of(tag)}@train'),
        'stages 1 to 5, walk': [f'{walk_of(tag)}@train' for tag in every['aff']],
        'stages 1 to 6, pseudo-labels': [f'{walk_of(tag)}@crf=1@train' for tag in every['aff']],
        'stage 7 on the pseudo-labels of the first seed, val': alone(
            'deeplab', lambda tag: f'{prediction_of(tag)}@val'
        ),
        'stages 1 to 8, val': [f'{prediction_of(tag)}@val' for tag in every['deeplab']],
    }


# Tables -------------------------------------------------------------------------------------------------------------


def read_miou(name):
    """Return the mIoU of a result in %. Raises UserError if it is missing."""
    return find.read(formats.result_path(name))['miou']


def print_choices(seeds):
    lines = []
    for choice in list_choices():
        miou = np.array([[read_miou(name.format(seed=seed)) for name in choice[1:]] for seed in seeds])
        difference = miou[:, 0] - miou[:, 1]
        low, high = t_interval(difference)
        every = ', '.join(f'{value:+.2f}' for value in difference)
        numbers = [f'{value:.2f}' for value in miou.mean(0)]
        lines.append((choice.title, *numbers, f'{difference.mean():+.2f}', f'{low:+.2f} to {high:+.2f}', every))
    headers = ('choice', 'mIoU %', 'without', 'difference', '95 %', 'by seed')
    print(tabulate(lines, headers, tablefmt='pipe', disable_numparse=True))


def print_spreads(seeds):
    lines = []
    for title, names in list_spreads(seeds).items():
        mious = [read_miou(name) for name in names]
        every = ', '.join(f'{value:.2f}' for value in mious)
        lines.append((title, f'{statistics.mean(mious):.2f}', f'{statistics.stdev(mious):.2f}', every))
    headers = ('seeds of', 'mean', 'standard deviation', 'by seed')
    print(tabulate(lines, headers, tablefmt='pipe', disable_numparse=True))


def write_eighth(folder):
    """Write eighth.json: a list of every eighth scene of train, as the published code scores."""
    content = json.loads((folder / 'dataset.json').read_text())
    ids = (folder / content['lists']['train']).read_text().split()
    (folder / 'eighth.txt').write_text(''.join(f'{image_id}\n' for image_id in ids[::8]))
    write_json(folder / 'eighth.json', {**content, 'lists': {**content['lists'], 'eighth': 'eighth.txt'}})


def main(args):
    seeds = list(dict.fromkeys(args.seeds))
    draw_scenes(Path(DRAWN))
    write_eighth(Path(DRAWN))
    execute_every_run({f'{NAME}@base@seed={seed}': plan_chain(seed) for seed in seeds}, args.jobs)
    variants = {name: commands for seed in seeds for name, commands in plan_variants(seed, seeds[0]).items()}
    execute_every_run(variants, args.jobs)
    print_choices(seeds)
    print()
    print_spreads(seeds)


if __name__ == '__main__':
    script.run(main, parse_args)
