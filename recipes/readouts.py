"""How class maps are read and which losses train them, over several seeds.

Reads   --on photographs: a VOC root (--data_dir) and a file of ImageNet weights (--weights); --on drawn: nothing (the
        quickstart's scenes are drawn into experiments/demo)
Writes  experiments/results/{name}@*.json and .npz, what the stages write on the way, their messages in
        experiments/logs/{name}@{loss}@seed={seed}.out

    python3 -m recipes.readouts --data_dir VOC_ROOT --weights LITE0_FILE
    python3 -m recipes.readouts --data_dir VOC_ROOT --weights LITE0_FILE --until walks --losses cl cl_pcl_re
    python3 -m recipes.readouts --data_dir VOC_ROOT --weights LITE0_FILE --until walks --losses cl --edges published
    python3 -m recipes.readouts --data_dir VOC_ROOT --weights LITE0_FILE --until walks --losses cl --edges truth \\
        --cam published mean truth
    python3 -m recipes.readouts --on drawn

Stage 1 runs once for each loss and seed, each loss at its own learning rate; everything after it runs for each read-out
of stage 2 (--cam): CAMs of train and val, and with --until the walk with an AffinityNet trained on their own labels,
the pseudo-labels, and DeepLabv3+. With --edges published or truth, which --cam has to contain, all read-outs walk along
its edges. The read-out truth is the masks (recipes/truth.py): it shows what is lost in the steps after it. Prints a
table for each stage and list: every read-out and loss, then the paired differences to L_cls of the same read-out, and
to the first read-out of the same loss, over all seeds that have run under --name. A run that has a result is not
repeated, and one that was stopped resumes. On an idle CPU core a training on photographs takes 14 minutes for cl and 23
with tiles, the CAMs of a read-out and list 3 minutes, a walk of a list 4 minutes.
"""

import shlex
from functools import partial
from pathlib import Path
from typing import NamedTuple

import train_classification_with_puzzle as stage1
from core.cam import READ_OUTS
from recipes.runner import CHOSEN, DRAWN, draw_command, draw_scenes, execute_every_run, execute_summaries, more_flags
from util import flags, script
from util.store import formats

STAGES = ('cams', 'walks', 'labels', 'predictions')


class Setting(NamedTuple):
    """What the runs on some data share: names, and flags of the trainers."""

    dataset: str | None  # None: the one in the folder of the images
    architecture: str
    scales: str  # of stage 2
    domains: tuple[str, ...]  # lists that are scored
    losses: dict[str, str]  # flags of each loss in stage 1, with the learning rate that is best for it
    classifier: str
    affinity: str
    walk_size: str  # --image_size of stage 5
    segmenter: str
    segmenter_scales: str


# The learning rates are the best ones of docs/results/losses_photographs.md and losses_drawn.md.
SETTINGS = {
    'photographs': Setting(
        dataset='data/voc2012_2007.json',
        architecture='efficientnet_lite0',
        scales='0.5,1.0,1.5',
        domains=('train', 'val'),
        losses={
            'cl': '--loss_option cl --lr 0.08',
            'cl_pcl_re': '--loss_option cl_pcl_re --alpha 0.5 --lr 0.04',
            'positive': '--loss_option cl_pcl_re --alpha 0.5 --lr 0.04 --level positive',
        },
        classifier='--max_epoch 12 --image_size 256 --min_image_size 224 --max_image_size 384',
        affinity='--lr 0.05 --image_size 320 --min_image_size 256 --max_image_size 400 --max_epoch 10',
        walk_size='512',
        segmenter='--lr 0.002 --image_size 256 --min_image_size 192 --max_image_size 512 --max_epoch 24',
        segmenter_scales='0.75',
    ),
    'drawn': Setting(
        dataset=None,
        architecture='resnest14_narrow',
        scales='0.5,1.0,1.5,2.0',
        domains=('train',),
        losses={
            'cl': '--loss_option cl --lr 0.01',
            'cl_pcl_re': '--loss_option cl_pcl_re --alpha 4 --lr 0.02',
            'positive': '--loss_option cl_pcl_re --alpha 4 --lr 0.02 --level positive',
        },
        classifier='--max_epoch 6 --image_size 128 --min_image_size 96 --max_image_size 192',
        affinity='--radius 5 --image_size 128 --min_image_size 96 --max_image_size 192',
        walk_size='128',
        segmenter='--lr 0.003 --image_size 128 --min_image_size 96 --max_image_size 192 --max_epoch 3',
        segmenter_scales='0.5,1.0,1.5,2.0',
    ),
}
# Thresholds of stage 3 (foreground, background) and of stage 6: the published ones as in
# docs/results/chain_photographs.md, and higher ones for positive read-outs, whose maps cover more.
THRESHOLDS = {
    'published': ('0.30', '0.10', '0.35'),
    'positive': ('0.40', '0.15', '0.40'),
    'mean': ('0.35', '0.12', '0.40'),
    'truth': ('0.40', '0.10', '0.40'),
}


class Names(NamedTuple):
    """Folders and tags of one loss, seed and read-out."""

    classifier: str
    read_out: str
    edges: str  # own, published or truth: the read-out whose labels AffinityNet was trained on
    scales: str
    segmenter_scales: str

    @property
    def chain(self):
        """The first part of the tags after stage 2."""
        return f'{self.classifier}@{self.read_out}{self.shared}'

    @property
    def shared(self):
        """A part of the names of what is made along the edges of another read-out."""
        if self.edges in ('own', self.read_out):
            return ''
        return '@edges' if self.edges == 'published' else f'@edges={self.edges}'

    @property
    def affinity(self):
        return f'{self.classifier}@{self.edges}@aff' if self.shared else f'{self.chain}@aff'

    def cams(self, domain):
        if self.read_out in ('mean', 'truth'):
            return f'{self.classifier}@{domain}@{self.read_out}'
        named = '' if self.read_out == 'published' else f'@cam={self.read_out}'
        return f'{self.classifier}@{domain}{named}@scale={self.scales}'

    def walks(self, domain):
        variant = f'@variant={self.read_out}' if self.shared else ''
        return f'{self.affinity}@{domain}@beta=10@exp_times=8{variant}@rw'

    def result(self, stage, domain):
        """Return the name of the result of a stage, without its last part."""
        if stage == 'predictions':
            return f'{self.chain}@seg@{domain}@scale={self.segmenter_scales}@iteration=10'
        return {'cams': self.cams(domain), 'walks': self.walks(domain), 'labels': f'{self.walks(domain)}@crf=1'}[stage]


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    data = parser.groups['data']
    data.add_argument('--on', default='photographs', choices=SETTINGS, help='VOC photographs of 2007, or drawn scenes')
    where = f'VOC root of the photographs (required for them), or folder of the drawn set (default: {DRAWN})'
    data.add_argument('--data_dir', help=where)
    model = parser.groups['model']
    networks = 'backbone (default: efficientnet_lite0 for photographs, resnest14_narrow for drawn)'
    model.add_argument('--architecture', help=networks)
    model.add_argument('--weights', help='file of its ImageNet weights (required for photographs; default: none)')
    losses = SETTINGS['drawn'].losses
    parser.groups['loss'].add_argument('--losses', nargs='+', choices=losses, default=list(losses), help='rows')
    inference = parser.groups['inference']
    cams = 'read-outs of stage 2, or the masks as CAMs (truth; default: all read-outs)'
    inference.add_argument('--cam', nargs='+', choices=(*READ_OUTS, 'truth'), default=list(READ_OUTS), help=cams)
    edges = 'AffinityNet of the walks: trained on labels of the same read-out, of the published one, or of the masks'
    inference.add_argument('--edges', choices=('own', 'published', 'truth'), default='own', help=edges)
    inference.add_argument('--until', choices=STAGES, default='cams', help='the last stage to run')
    run = parser.groups['run and output']
    run.add_argument('--seeds', nargs='+', type=flags.integer(0), default=[0, 1, 2], help='random seeds')
    run.add_argument('--jobs', type=flags.integer(1), default=2, help='runs at once, a core each')
    run.add_argument('--name', type=flags.folder_name, help='first part of every tag (default: photographs or drawn)')
    more = partial(more_flags, chosen=(*CHOSEN, '--dataset', '--data_dir'))  # the data of all stages are the same
    run.add_argument('--more', type=more, default='', help="further flags of stage 1: --more='--max_epoch 24'")
    run.add_argument('--dry_run', action='store_true', help='print the commands instead of running them')
    args = parser.parse_args(argv)
    if args.edges not in ('own', *args.cam):
        parser.error(f'--edges {args.edges}: also needs {args.edges} in --cam')
    if args.on == 'photographs' and not (args.data_dir and args.weights):
        parser.error('--on photographs: also needs --data_dir (a VOC root) and --weights (an ImageNet file)')
    args.losses, args.cam = list(dict.fromkeys(args.losses)), list(dict.fromkeys(args.cam))
    setting = SETTINGS[args.on]
    args.name, args.data_dir = args.name or args.on, args.data_dir or DRAWN
    args.architecture, args.weights = args.architecture or setting.architecture, args.weights or 'none'
    return args


def score(args, folder, domain, *more):
    """Return the command that scores a folder, unless it has been scored."""
    if formats.result_path(f'{folder}@{domain}').is_file():
        return []
    return [['evaluate.py', *data_of(args), '--experiment_name', folder, '--domain', domain, *more]]


def data_of(args):
    """Return the flags of the data."""
    dataset = SETTINGS[args.on].dataset or f'{args.data_dir}/dataset.json'
    return ['--dataset', dataset, '--data_dir', args.data_dir]


def names_of(args, loss, seed, read_out):
    """Return the names of a chain; seed * is any."""
    setting = SETTINGS[args.on]
    return Names(f'{args.name}@{loss}@seed={seed}', read_out, args.edges, setting.scales, setting.segmenter_scales)


def train(args, loss, seed):
    """Return the command of stage 1."""
    setting = SETTINGS[args.on]
    recipe = '--momentum 0.9 --mode normal --bn_replicas 1 --batch_size 16 --select last'
    network = ['--num_workers', '1', '--architecture', args.architecture, '--weights', args.weights]
    run = ['--seed', str(seed), '--tag', f'{args.name}@{loss}@seed={seed}']
    of_loss = shlex.split(f'{recipe} {setting.classifier} {setting.losses[loss]}')
    return ['train_classification_with_puzzle.py', *data_of(args), *network, *of_loss, *run, *args.more]


def follow(args, names, seed):
    """Return the commands that follow stage 1 for one read-out, up to --until."""
    setting, last = SETTINGS[args.on], STAGES.index(args.until)
    common = [*data_of(args), '--num_workers', '1']
    commands = []
    # The mean of both read-outs needs no third pass through the network.
    both = [names._replace(read_out=read_out) for read_out in READ_OUTS[:2]]
    # AffinityNet and DeepLabv3+ learn from train_aug; its folders are the folders of train.
    lists = {domain: 'train_aug' if domain == 'train' and last else domain for domain in setting.domains}
    for domain, made_for in lists.items():
        if names.read_out == 'truth':
            commands += [['-m', 'recipes.truth', *common, '--tag', names.classifier, '--domain', made_for]]
            commands += score(args, names.cams(domain), domain, '--max_th', '0.8')
            continue
        infer = ['inference_classification.py', *common, '--tag', names.classifier, '--domain', made_for]
        infer += ['--scales', setting.scales]
        for made in both if names.read_out == 'mean' else [names]:
            commands += [[*infer, '--cam', made.read_out]]
        if names.read_out == 'mean':
            average = ['-m', 'tools.average_cams', *common, '--tag', names.classifier, '--domain', made_for]
            commands += [[*average, '--cam_dirs', *(made.cams(domain) for made in both)]]
        commands += score(args, names.cams(domain), domain, '--max_th', '0.8')
    if last == 0:
        return commands

    # An AffinityNet on the labels of these CAMs, from the weights of the classifier on drawn scenes.
    threshold, labelled = THRESHOLDS[names.read_out][2], names.edges if names.shared else names.read_out
    foreground, background, _ = THRESHOLDS[labelled]
    cams, own = names._replace(read_out=labelled).cams('train'), f'experiments/models/{names.classifier}.pth'
    recipe = ['--seed', str(seed), '--momentum', '0.9', '--batch_size', '16']
    labels = ['make_affinity_labels.py', *common, '--experiment_name', cams]
    affinity = ['train_affinitynet.py', *common, *recipe, '--architecture', args.architecture]
    affinity += ['--weights', own if args.weights == 'none' else args.weights, *shlex.split(setting.affinity)]
    commands += [
        [*labels, '--fg_threshold', foreground, '--bg_threshold', background],
        [*affinity, '--label_name', f'{cams}@aff_fg={foreground}_bg={background}', '--tag', names.affinity],
    ]
    for domain, made_for in lists.items():
        walk = ['inference_rw.py', *common, '--model_name', names.affinity, '--cam_dir', names.cams(domain)]
        walk += ['--variant', names.read_out] if names.shared else []
        commands += [[*walk, '--image_size', setting.walk_size, '--domain', made_for]]
        commands += score(args, names.walks(domain), domain, '--max_th', '0.8')
        if last > 1:
            make = ['make_pseudo_labels.py', *common, '--experiment_name', names.walks(domain), '--domain', made_for]
            commands += [[*make, '--threshold', threshold], *score(args, f'{names.walks(domain)}@crf=1', domain)]
    if last > 2:
        tag = ['--tag', f'{names.chain}@seg']
        segment = ['train_segmentation.py', *common, *recipe, '--backbone', args.architecture, '--weights', own]
        segment += [*shlex.split(setting.segmenter), '--mode', 'normal', '--select', 'last']
        commands += [
            [*segment, '--label_name', f'{names.walks("train")}@crf=1', *tag],
            ['inference_segmentation.py', *common, *tag, '--scales', setting.segmenter_scales],
            *score(args, names.result('predictions', 'val'), 'val'),
        ]
    return commands


def plan_runs(args):
    """Return {name of a run: its commands}, seed by seed."""
    runs = {}
    for seed in args.seeds:
        for loss in args.losses:
            tag = f'{args.name}@{loss}@seed={seed}'
            cams = sorted(args.cam, key=lambda read_out: read_out != args.edges)  # all others need its AffinityNet
            after = [follow(args, names_of(args, loss, seed, read_out), seed) for read_out in cams]
            runs[tag] = [train(args, loss, seed), *(command for commands in after for command in commands)]
    return runs


def plan_summaries(args):
    """Return {title: command} of the tables."""
    summaries = {}

    def name(loss, read_out, stage, domain):
        return f'{names_of(args, loss, "*", read_out).result(stage, domain)}@{domain}'

    def compare(title, before, after):
        summaries[title] = ['-m', 'tools.summarize', '--paired', before, after]

    for stage in STAGES[: STAGES.index(args.until) + 1]:
        for domain in SETTINGS[args.on].domains if stage != 'predictions' else ('val',):
            where = stage, domain
            rows = [(loss, cam) for loss in args.losses for cam in args.cam]
            lines = [f'{loss}, {cam} | {name(loss, cam, *where)}' for loss, cam in rows]
            summaries[f'{stage} of {domain}'] = ['-m', 'tools.summarize', *lines]
            for loss, cam in rows:
                if loss != args.losses[0]:
                    before = name(args.losses[0], cam, *where)
                    compare(
                        f'{stage} of {domain}, {cam}: {loss} against {args.losses[0]}', before, name(loss, cam, *where)
                    )
                if cam != args.cam[0]:
                    before = name(loss, args.cam[0], *where)
                    compare(
                        f'{stage} of {domain}, {loss}: {cam} against {args.cam[0]}', before, name(loss, cam, *where)
                    )
    return summaries


def main(args):
    runs, summaries = plan_runs(args), plan_summaries(args)
    for command in runs.values():
        stage1.parse_args(command[0][1:])  # before the first run starts
    if args.dry_run:
        if args.on == 'drawn':
            print(f'python3 {shlex.join(draw_command(args.data_dir))}')
        for command in [*(command for commands in runs.values() for command in commands), *summaries.values()]:
            print(f'python3 {shlex.join(command)}')
        return
    if args.on == 'drawn':
        draw_scenes(Path(args.data_dir))
    execute_every_run(runs, args.jobs)
    execute_summaries(summaries)


if __name__ == '__main__':
    script.run(main, parse_args)
