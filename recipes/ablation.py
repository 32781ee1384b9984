"""The paper's Table 1 and the choices around it at small scale, each over several seeds.

Reads   --on drawn: nothing (the quickstart's scenes are drawn into experiments/demo);
        --on photographs: a VOC root (--data_dir) and a file of ImageNet weights (--weights)
Writes  experiments/results/{name}@{run}@seed={seed}@train@scale={scales}@train.json, what the stages write on the way,
        their messages in experiments/logs/{name}@{run}@seed={seed}.out, and experiments/show/{name}/

    python3 -m recipes.ablation
    python3 -m recipes.ablation --on photographs --data_dir VOC_ROOT --weights MOBILENET_V2_IMAGENET_FILE

A run is stage 1 with the flags of a row, stage 2, and stage 9 on train. A run that has a result is only checked: other
flags or data than it had are an error, so take another --name for them. One that was stopped resumes. The tables come
at the end, from tools.summarize, over all seeds that have run under --name. Tables that compare with the default
settings run those too. A run took 1.5 to 6 minutes on drawn scenes and 5 to 14 on photographs, on one core while other
runs shared the machine. So all 57 runs on drawn scenes take about 2 hours on 2 cores (estimated). Each run has one
thread unless OMP_NUM_THREADS is set: the number of threads changes the results.

To try something else in the same way, use --name, --architecture, --scales and --more, for instance

    python3 -m recipes.ablation --name fix --tables pair --seeds 0 --more='--mode fix --alpha 1'

A loss with more terms has a larger gradient, so one learning rate for all rows favours some of them. With --rates, each
row runs at every rate with the first seed, and with the other seeds at the rate that scored best:

    python3 -m recipes.ablation --name rates --tables losses --rates 0.01 0.02 0.04
"""

import json
import os
import shlex
from pathlib import Path
from typing import NamedTuple

import train_classification_with_puzzle as stage1
from core import UserError
from recipes.runner import (
    DRAWN,
    draw_command,
    draw_scenes,
    execute_every_run,
    execute_runs,
    execute_summaries,
    more_flags,
)
from tools.reporting import find
from util import flags, script
from util.store import formats
from util.store.files import make_folder, write_bytes, write_json

TITLES = {
    'losses': 'Loss (paper: Table 1, ResNet-50 on VOC)',
    'alpha': 'alpha',
    'level': 'level',
    'option': 're_loss_option',
    'images': '{count} images, as many steps',
    'steps': 'A third of the steps',
    'pieces': 'num_pieces (300 scenes, 192 pixels)',
    'pair': 'Loss',
}
PUBLISHED = {'cl': '47.82', 'cl_pcl': '47.70', 'cl_re': '49.21', 'cl_pcl_re': '51.53'}  # mIoU of the table `losses`
PHOTOGRAPHS = Path('data/voc2012_2007.json')


class Setting(NamedTuple):
    """Settings that all runs on a data set share. Strings of flags are quoted for a shell."""

    name: str
    architecture: str
    scales: str  # scales of stage 2
    epochs: int
    alpha: int
    alphas: tuple[float, ...]  # values in the table `alpha`
    data: str  # flags of every stage
    train: str  # flags of stage 1
    other_images: int  # number of images in the table `images`
    other_dataset: str  # flag of stage 1 for it
    other_epochs: int


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    data = parser.groups['data']
    on = 'drawn scenes, or the VOC photographs of 2007'
    data.add_argument('--on', default='drawn', choices=('drawn', 'photographs'), help=on)
    where = f'VOC root of the photographs (required for them), or folder of the drawn set (default: {DRAWN})'
    data.add_argument('--data_dir', help=where)
    model = parser.groups['model']
    networks = 'backbone (default: resnest14_narrow for drawn, mobilenet_v2 for photographs)'
    model.add_argument('--architecture', help=networks)
    weights = 'backbone weights (default: none for drawn; required for photographs)'
    model.add_argument('--weights', help=weights)
    scales = 'scales of stage 2 (default: 0.5,1.0,1.5,2.0 for drawn, 0.5,1.0 for photographs)'
    parser.groups['inference'].add_argument('--scales', type=flags.scales, help=scales)
    run = parser.groups['run and output']
    tables = 'default: all but pair for drawn, losses for photographs; pair is cl and cl_pcl_re alone'
    run.add_argument('--tables', nargs='+', choices=TITLES, metavar='TABLE', help=f'{", ".join(TITLES)} ({tables})')
    run.add_argument('--seeds', nargs='+', type=flags.integer(0), default=[0, 1, 2], help='random seeds')
    rates = 'learning rates of stage 1 to choose from for each row, by the masks of train (default: one for all)'
    run.add_argument('--rates', nargs='+', type=flags.real(0), metavar='RATE', help=rates)
    run.add_argument('--jobs', type=flags.integer(1), default=2, help='runs at once, a core each')
    name = 'first part of every tag (default: ablation, or ablation_photographs)'
    run.add_argument('--name', type=flags.folder_name, help=name)
    run.add_argument('--more', type=more_flags, default='', help="further flags of stage 1: --more='--mode fix'")
    run.add_argument('--dry_run', action='store_true', help='print the commands instead of running them')
    args = parser.parse_args(argv)
    if args.on == 'photographs' and not (args.data_dir and args.weights):
        parser.error('--on photographs: also needs --data_dir (a VOC root) and --weights (an ImageNet file)')
    if args.tables is None:
        args.tables = ['losses'] if args.on == 'photographs' else [name for name in TITLES if name != 'pair']
    if args.on == 'photographs' and 'pieces' in args.tables:
        parser.error('--tables pieces: only with --on drawn')
    if args.rates and any(word.partition('=')[0] == '--lr' for word in args.more):
        parser.error('--more: --lr is set by --rates')
    return args


# Settings and data --------------------------------------------------------------------------------------------------


def drawn_setting(args):
    """Return the setting of the drawn scenes."""
    folder = shlex.quote(args.data_dir or DRAWN)
    sizes = '--image_size 128 --min_image_size 96 --max_image_size 192'
    epochs = 6
    return Setting(
        name=args.name or 'ablation',
        architecture=args.architecture or 'resnest14_narrow',
        scales=args.scales or '0.5,1.0,1.5,2.0',
        epochs=epochs,
        alpha=4,
        alphas=(0.5, 1, 2, 4, 8),
        data=f'--dataset {folder}/dataset.json --data_dir {folder}',
        train=f'--weights {shlex.quote(args.weights or "none")} --lr 0.02 --batch_size 16 --bn_replicas 1 {sizes}',
        other_images=300,
        other_dataset=f'--dataset {folder}/few.json',
        other_epochs=5 * epochs,
    )


def photographs_setting(args):
    """Return the setting of the VOC photographs of 2007."""
    sizes = '--image_size 256 --min_image_size 224 --max_image_size 384'
    epochs = 8
    return Setting(
        name=args.name or 'ablation_photographs',
        architecture=args.architecture or 'mobilenet_v2',
        scales=args.scales or '0.5,1.0',
        epochs=epochs,
        alpha=1,
        alphas=(0.5, 1, 2, 4),
        data=f'--dataset {PHOTOGRAPHS} --data_dir {shlex.quote(args.data_dir)}',
        train=f'--weights {shlex.quote(args.weights)} --mode fix --lr 0.01 --batch_size 8 {sizes}',
        other_images=632,
        other_dataset='--dataset experiments/photographs/both.json',
        other_epochs=epochs // 2,
    )


def combine_photographs(folder):
    """Write both.json: training also uses val's photographs and image-level labels. Scoring stays the same."""
    make_folder(folder)
    content = json.loads(PHOTOGRAPHS.read_text())
    paths = {domain: PHOTOGRAPHS.parent / file for domain, file in content['lists'].items()}
    write_bytes(folder / 'both.txt', paths['train'].read_bytes() + paths['val'].read_bytes())
    lists = {domain: os.path.relpath(path, folder) for domain, path in paths.items()}
    write_json(folder / 'both.json', {**content, 'lists': {**lists, 'train_aug': 'both.txt'}})


# Tables and runs ----------------------------------------------------------------------------------------------------


def build_tables(setting):
    """Return {table: {title of the row: (name of the run, flags of stage 1)}}."""
    both = {'L_cls': 'cl', 'all three': 'cl_pcl_re'}
    default = ('cl_pcl_re', '--loss_option cl_pcl_re')
    images = f'images={setting.other_images}'
    other = f'{setting.other_dataset} --max_epoch {setting.other_epochs}'
    third = f'--max_epoch {setting.epochs // 3}'

    # 192 is a multiple of 16 g for 1, 2, 3 and 4 tiles per side. On the few scenes, because it takes long.
    large = '--image_size 192 --min_image_size 144 --max_image_size 288'
    large += f' {setting.other_dataset} --max_epoch {2 * setting.epochs}'
    return {
        'losses': {
            'L_cls': ('cl', '--loss_option cl'),
            '+ L_p-cls': ('cl_pcl', '--loss_option cl_pcl'),
            '+ L_re': ('cl_re', '--loss_option cl_re'),
            'all three': default,
        },
        'alpha': {
            str(alpha): default if alpha == setting.alpha else (f'alpha={alpha}', f'--alpha {alpha}')
            for alpha in setting.alphas
        },
        'level': {'feature': default, 'cam': ('level=cam', '--level cam')},
        'option': {
            'masking': default,
            'none': ('re_loss_option=none', '--re_loss_option none'),
            'selection': ('re_loss_option=selection', '--re_loss_option selection'),
        },
        'images': {title: (f'{images}_{terms}', f'--loss_option {terms} {other}') for title, terms in both.items()},
        'steps': {title: (f'steps=third_{terms}', f'--loss_option {terms} {third}') for title, terms in both.items()},
        'pieces': {
            title: (f'num_pieces={pieces}', f'--num_pieces {pieces} {large}')
            for title, pieces in {'1 (none)': 1, '4': 4, '9': 9, '16': 16}.items()
        },
        'pair': {title: (terms, f'--loss_option {terms}') for title, terms in both.items()},
    }


def add_rate(row, rate):
    """Return a row (name of the run, flags of stage 1) at a learning rate."""
    run, stage1_flags = row
    return f'{run}@lr={rate:g}', f'{stage1_flags} --lr {rate:g}'


def add_rates(rows, rates):
    """Return {title: row} of rows at every learning rate."""
    return {f'{title}, lr {rate:g}': add_rate(row, rate) for title, row in rows.items() for rate in rates}


def tag_of(setting, row, seed):
    """Return the tag of a row (name of the run, flags of stage 1) with a seed."""
    return f'{setting.name}@{row[0]}@seed={seed}'


def best_rate(args, setting, row, failed):
    """Return the learning rate at which the first seed of a row scores best. Raises UserError if all have failed."""
    scores = {}
    for rate in args.rates:
        tag = tag_of(setting, add_rate(row, rate), args.seeds[0])
        if tag not in failed:
            scores[rate] = find.read(find_result(setting, tag))['miou']
    if not scores:
        raise UserError(f'{row[0]}: no run at any of --rates succeeded: see the lines above')
    return max(scores, key=scores.get)


def choose_rates(args, setting, tables, failed):
    """Return tables with each row at its best learning rate, which its title then names; `failed` are tags of runs."""
    chosen = {}
    for name, rows in tables.items():
        rates = {title: best_rate(args, setting, row, failed) for title, row in rows.items()}
        chosen[name] = {f'{title}, lr {rates[title]:g}': add_rate(row, rates[title]) for title, row in rows.items()}
    return chosen


def find_result(setting, tag):
    """Return the path of the result of a run."""
    return formats.result_path(f'{tag}@train@scale={setting.scales}@train')


def plan_runs(args, setting, tables, seeds):
    """Return {tag: commands}, seed by seed, so that every row has its first result early.

    Stages 1 and 2 of a finished run only check that it has the same flags and inputs; it is not scored again.
    """
    runs = {}
    for seed in seeds:
        for rows in tables.values():
            for row in rows.values():
                tag = tag_of(setting, row, seed)
                commands = build_commands(setting, tag, ['--seed', str(seed)], [*shlex.split(row[1]), *args.more])
                runs[tag] = commands[:-1] if find_result(setting, tag).is_file() else commands
    return runs


def build_commands(setting, tag, seed, row):
    """Return the commands of a run, without the interpreter: train, infer, evaluate. Flags of the row come last."""
    data = shlex.split(setting.data)
    common = [*data, '--num_workers', '1', '--architecture', setting.architecture]
    recipe = f'--momentum 0.9 {setting.train} --max_epoch {setting.epochs} --alpha {setting.alpha} --select last'
    cams = f'{tag}@train@scale={setting.scales}'
    return [
        ['train_classification_with_puzzle.py', *common, *shlex.split(recipe), *seed, '--tag', tag, *row],
        ['inference_classification.py', *common, '--tag', tag, '--domain', 'train', '--scales', setting.scales],
        ['evaluate.py', *data, '--experiment_name', cams],
    ]


def build_summary(setting, rows, published=None, seed='*'):
    """Return the command that prints a table of rows beside the published mIoU, by name of the run, if there is any."""
    lines = []
    for title, (run, _) in rows.items():
        line = [title, f'{setting.name}@{run}@seed={seed}@train@scale={setting.scales}@train']
        lines.append(' | '.join([*line, published[run.partition('@')[0]]] if published else line))
    return ['-m', 'tools.summarize', *lines]


def summarize(args, setting, tables, titles, seed='*'):
    """Return {title: command} that prints the tables, and draws pictures if all seeds have run."""
    published = {'losses': PUBLISHED}
    summaries = {titles[name]: build_summary(setting, rows, published.get(name), seed) for name, rows in tables.items()}
    if 'losses' in tables and seed == '*':
        summaries['Pictures'] = build_pictures(args, setting, tables['losses'])
    return summaries


def build_pictures(args, setting, rows):
    """Return the command that draws the CAMs of the losses for the first seed."""
    end = f'seed={args.seeds[0]}@train@scale={setting.scales}'
    lines = [f'{title} | {setting.name}@{run}@{end}' for title, (run, _) in rows.items()]
    return ['-m', 'tools.show', *lines, '--images', '8', '--out', f'experiments/show/{setting.name}']


def print_commands(args, runs, summaries):
    """Print the commands instead of running them."""
    commands = [*(command for commands in runs.values() for command in commands), *summaries.values()]
    if args.on == 'drawn' and not Path(args.data_dir or DRAWN, 'dataset.json').is_file():
        commands.insert(0, draw_command(args.data_dir or DRAWN))
    for command in commands:
        print(f'python3 {shlex.join(command)}')


def main(args):
    setting = drawn_setting(args) if args.on == 'drawn' else photographs_setting(args)
    every = build_tables(setting)
    tables = {name: every[name] for name in args.tables}
    titles = {name: TITLES[name].format(count=setting.other_images) for name in tables}

    # Check the flags of every run before the first one starts.
    search = {name: add_rates(rows, args.rates) for name, rows in tables.items()} if args.rates else tables
    runs = plan_runs(args, setting, search, args.seeds[:1] if args.rates else args.seeds)
    for train, *_ in runs.values():
        stage1.parse_args(train[1:])
    if args.dry_run:
        seed = args.seeds[0] if args.rates else '*'
        print_commands(args, runs, summarize(args, setting, search, titles, seed))
        return

    # Write the data sets and execute the runs. With --rates, these are runs of the first seed: add the other seeds.
    if args.on == 'drawn':
        draw_scenes(Path(args.data_dir or DRAWN))
    else:
        combine_photographs(Path('experiments/photographs'))
    if args.rates:  # where some may diverge
        failed = execute_runs(runs, args.jobs)
        tables = choose_rates(args, setting, tables, failed)
        search = {
            name: {title: row for title, row in rows.items() if tag_of(setting, row, args.seeds[0]) not in failed}
            for name, rows in search.items()
        }
        execute_summaries(summarize(args, setting, search, titles, args.seeds[0]))
        runs = plan_runs(args, setting, tables, args.seeds)
    execute_every_run(runs, args.jobs)

    # Print the tables and draw the pictures.
    execute_summaries(summarize(args, setting, tables, titles))


if __name__ == '__main__':
    script.run(main, parse_args)
