"""recipes/ablation.py: its dry run prints the commands of the former shell script, and every stage accepts them.

recipes/gradients.py, precision.py and rounding.py are tested in test_chain_recipes.py.
"""

import importlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

import train_classification_with_puzzle as stage1
from core import UserError
from core.data.dataset import open_dataset
from recipes import ablation, readouts, runner
from support import REPOSITORY, subprocess_environment
from support.programs import start_program
from support.results import write_result

PHOTOGRAPHS = ['--on', 'photographs', '--data_dir', '/data/VOC 2012', '--weights', 'mobilenet_v2.pth']

# What `bash recipes/ablation.sh` ran for the data, for all rows, and for some rows.
DATA = '--dataset experiments/demo/dataset.json --data_dir experiments/demo'
COMMON = f'{DATA} --num_workers 1 --architecture resnest14_narrow'
TRAIN = (
    f'train_classification_with_puzzle.py {COMMON} --momentum 0.9 --weights none --lr 0.02 --batch_size 16 '
    '--bn_replicas 1 --image_size 128 --min_image_size 96 --max_image_size 192 --max_epoch 6 --alpha 4 --select last'
)
ROWS = {
    'cl': '--loss_option cl',
    'cl_pcl': '--loss_option cl_pcl',
    'cl_re': '--loss_option cl_re',
    'cl_pcl_re': '--loss_option cl_pcl_re',
    'alpha=0.5': '--alpha 0.5',
    'alpha=8': '--alpha 8',
    'level=cam': '--level cam',
    're_loss_option=selection': '--re_loss_option selection',
    'images=300_cl': '--loss_option cl --dataset experiments/demo/few.json --max_epoch 30',
    'steps=third_cl_pcl_re': '--loss_option cl_pcl_re --max_epoch 2',
    'num_pieces=9': '--num_pieces 9 --image_size 192 --min_image_size 144 --max_image_size 288 '
    '--dataset experiments/demo/few.json --max_epoch 12',
}


def dry_run(capsys, *flags: str) -> list[list[str]]:
    """Return the printed commands as words."""
    ablation.main(ablation.parse_args([*flags, '--dry_run']))
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def commands(in_tmp, capsys) -> list[str]:
    """The lines of the default dry run, without `python3 `."""
    return [shlex.join(words[1:]) for words in dry_run(capsys)]


@pytest.mark.parametrize('seed', [0, 2])
@pytest.mark.parametrize('run', ROWS)
def test_a_run_is_that_of_the_shell_script(commands, run, seed):
    tag = f'ablation@{run}@seed={seed}'
    start = commands.index(f'{TRAIN} --seed {seed} --tag {tag} {ROWS[run]}')
    assert commands[start + 1 : start + 3] == [
        f'inference_classification.py {COMMON} --tag {tag} --domain train --scales 0.5,1.0,1.5,2.0',
        f'evaluate.py {DATA} --experiment_name {tag}@train@scale=0.5,1.0,1.5,2.0',
    ]


def test_the_runs_are_those_of_the_shell_script(commands):
    """57 runs, seed by seed, after the drawing and before the seven tables and the pictures."""
    assert commands[0] == '-m tools.make_demo_data --out experiments/demo --seed 0'
    tags = [line.split('--tag ')[1].split()[0] for line in commands if line.startswith('train_')]
    names = [
        *('cl', 'cl_pcl', 'cl_re', 'cl_pcl_re', 'alpha=0.5', 'alpha=1', 'alpha=2', 'alpha=8', 'level=cam'),
        *('re_loss_option=none', 're_loss_option=selection', 'images=300_cl', 'images=300_cl_pcl_re'),
        *('steps=third_cl', 'steps=third_cl_pcl_re', 'num_pieces=1', 'num_pieces=4', 'num_pieces=9', 'num_pieces=16'),
    ]
    assert tags == [f'ablation@{name}@seed={seed}' for seed in (0, 1, 2) for name in names]
    assert len(commands) == 1 + 3 * len(tags) + 7 + 1


def test_a_dry_run_writes_nothing(in_tmp, capsys):
    dry_run(capsys)
    assert list(in_tmp.iterdir()) == []


def test_the_tables_are_those_of_the_shell_script(commands):
    end = '@seed=*@train@scale=0.5,1.0,1.5,2.0@train'
    rows = [
        f'L_cls | ablation@cl{end} | 47.82',
        f'+ L_p-cls | ablation@cl_pcl{end} | 47.70',
        f'+ L_re | ablation@cl_re{end} | 49.21',
        f'all three | ablation@cl_pcl_re{end} | 51.53',
    ]
    assert shlex.split(commands[-8]) == ['-m', 'tools.summarize', *rows]
    rows = [f'{alpha} | ablation@alpha={alpha}{end}' for alpha in ('0.5', '1', '2', '8')]
    rows.insert(3, f'4 | ablation@cl_pcl_re{end}')
    assert shlex.split(commands[-7]) == ['-m', 'tools.summarize', *rows]
    rows = [f'masking | ablation@cl_pcl_re{end}']
    rows += [f'{option} | ablation@re_loss_option={option}{end}' for option in ('none', 'selection')]
    assert shlex.split(commands[-5]) == ['-m', 'tools.summarize', *rows]
    end = '@seed=0@train@scale=0.5,1.0,1.5,2.0'
    losses = {'L_cls': 'cl', '+ L_p-cls': 'cl_pcl', '+ L_re': 'cl_re', 'all three': 'cl_pcl_re'}
    rows = [f'{title} | ablation@{loss}{end}' for title, loss in losses.items()]
    where = ['--images', '8', '--out', 'experiments/show/ablation']
    assert shlex.split(commands[-1]) == ['-m', 'tools.show', *rows, *where]


def test_photographs(in_tmp, capsys):
    """`D='/data/VOC 2012' W=mobilenet_v2.pth ON=photographs WHAT='losses images' SEEDS=3`"""
    words = dry_run(capsys, *PHOTOGRAPHS, '--tables', 'losses', 'images', '--seeds', '3')
    data = ['--dataset', 'data/voc2012_2007.json', '--data_dir', '/data/VOC 2012']
    recipe = (
        '--num_workers 1 --architecture mobilenet_v2 --momentum 0.9 --weights mobilenet_v2.pth --mode fix --lr 0.01 '
        '--batch_size 8 --image_size 256 --min_image_size 224 --max_image_size 384 --max_epoch 8 --alpha 1 '
        '--select last --seed 3 --tag'
    )
    train = ['python3', 'train_classification_with_puzzle.py', *data, *recipe.split()]
    assert words[0] == [*train, 'ablation_photographs@cl@seed=3', '--loss_option', 'cl']
    other = '--loss_option cl --dataset experiments/photographs/both.json --max_epoch 4'
    assert words[12] == [*train, 'ablation_photographs@images=632_cl@seed=3', *other.split()]
    assert words[14][-1] == 'ablation_photographs@images=632_cl@seed=3@train@scale=0.5,1.0'
    assert len(words) == 6 * 3 + 2 + 1


@pytest.mark.parametrize(
    'flags', [[], [*PHOTOGRAPHS, '--tables', 'losses', 'alpha', 'level', 'option', 'images', 'steps']]
)
def test_every_command_is_accepted(in_tmp, capsys, flags):
    for _, first, *words in dry_run(capsys, *flags, '--seeds', '0', "--more=--nesterov False --wd '1e-3'"):
        name, words = (words[0], words[1:]) if first == '-m' else (first.removesuffix('.py'), words)
        args = importlib.import_module(name).parse_args(words)
        if name.startswith('train'):
            assert (args.nesterov, args.wd, args.select) == (False, 1e-3, 'last')


def test_a_run_with_a_result_is_checked_and_not_scored_again(in_tmp, capsys):
    results = in_tmp / 'experiments' / 'results'
    results.mkdir(parents=True)
    (results / 'ablation@cl@seed=0@train@scale=0.5,1.0,1.5,2.0@train.json').touch()
    words = dry_run(capsys, '--tables', 'pair', '--seeds', '0')
    named = {
        script: [line[line.index(flag) + 1] for line in words if line[1].startswith(script)]
        for script, flag in (('train_', '--tag'), ('inference_', '--tag'), ('evaluate', '--experiment_name'))
    }
    both = ['ablation@cl@seed=0', 'ablation@cl_pcl_re@seed=0']
    assert named == {'train_': both, 'inference_': both, 'evaluate': [f'{both[1]}@train@scale=0.5,1.0,1.5,2.0']}


def test_flags_for_other_experiments(in_tmp, capsys):
    flags = '--name mobilenet --architecture mobilenet_v2 --scales 1.0 --data_dir set --weights w.pth --tables pair'
    words = dry_run(capsys, *flags.split(), '--seeds', '7', '--more=--alpha 1')
    assert words[0] == 'python3 -m tools.make_demo_data --out set --seed 0'.split()
    train = ' '.join(words[1])
    assert '--dataset set/dataset.json --data_dir set --num_workers 1 --architecture mobilenet_v2' in train
    assert '--weights w.pth' in train
    assert train.endswith('--seed 7 --tag mobilenet@cl@seed=7 --loss_option cl --alpha 1')
    assert words[3][-1] == 'mobilenet@cl@seed=7@train@scale=1.0'


@pytest.mark.parametrize(
    'line, named',
    [
        ('--on photographs', '--data_dir'),
        ('--on photographs --data_dir VOC', '--weights'),
        ('--on photographs --data_dir VOC --weights w.pth --tables pieces', '--tables'),
        ('--tables loss', '--tables'),
        ('--seeds', '--seeds'),
        ('--rates 0.1 x', '--rates'),
        ('--rates 0.1 --more=--lr=0.2', '--more'),
        ('--more=--max_epoh=3 --dry_run', '--max_epoh'),
        ('--more=--image_size=100 --dry_run', '--image_size'),
    ],
)
def test_wrong_flags_are_named(in_tmp, capsys, line, named):
    with pytest.raises(SystemExit) as ended:
        ablation.main(ablation.parse_args(line.split()))
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def fake_result(tag: str, miou: float) -> None:
    """Write what recipes.ablation reads of a result."""
    write_result(f'{tag}@train@scale=0.5,1.0,1.5,2.0@train', miou)


def test_each_row_gets_its_best_rate(in_tmp, monkeypatch, capsys):
    """All rates run with the first seed, then each row at its own best rate with the other seeds."""
    best, rounds = {'cl': 0.04, 'cl_pcl_re': 0.01}, []

    def execute(runs, jobs):
        rounds.append(list(runs))
        for tag, (train, *_) in runs.items():
            args = stage1.parse_args(train[1:])
            fake_result(tag, 60 - 100 * abs(args.lr - best[args.loss_option]))
        return []

    monkeypatch.setattr(ablation, 'execute_runs', execute)
    monkeypatch.setattr(ablation, 'execute_every_run', execute)
    monkeypatch.setattr(ablation, 'draw_scenes', lambda folder: None)
    commands = []
    monkeypatch.setattr(runner, 'execute', lambda command: commands.append(command))
    line = '--tables pair --seeds 5 6 7 --rates 0.01 0.02 0.04'.split()
    ablation.main(ablation.parse_args(line))
    losses = ('cl', 'cl_pcl_re')
    assert rounds[0] == [f'ablation@{loss}@lr={lr}@seed=5' for loss in losses for lr in ('0.01', '0.02', '0.04')]
    assert rounds[1] == [f'ablation@{loss}@lr={best[loss]}@seed={seed}' for seed in (5, 6, 7) for loss in losses]
    end = '@train@scale=0.5,1.0,1.5,2.0@train'
    assert commands[0][2] == f'L_cls, lr 0.01 | ablation@cl@lr=0.01@seed=5{end}'
    assert len(commands[0]) == 2 + 6
    rows = [f'L_cls, lr 0.04 | ablation@cl@lr=0.04@seed=*{end}']
    assert commands[1:] == [
        ['-m', 'tools.summarize', *rows, f'all three, lr 0.01 | ablation@cl_pcl_re@lr=0.01@seed=*{end}']
    ]

    ablation.main(ablation.parse_args(line))
    assert rounds[2:] == rounds[:2]  # to check them


def test_a_rate_that_fails_is_not_chosen_for_what_an_earlier_run_left(in_tmp, monkeypatch):
    runs, commands = [], []
    monkeypatch.setattr(ablation, 'execute_runs', lambda runs, jobs: ['ablation@cl@lr=0.02@seed=0'])
    monkeypatch.setattr(ablation, 'execute_every_run', lambda planned, jobs: runs.extend(planned))
    monkeypatch.setattr(ablation, 'draw_scenes', lambda folder: None)
    monkeypatch.setattr(runner, 'execute', lambda command: commands.append(command))
    for run in ('cl', 'cl_pcl_re'):
        fake_result(f'ablation@{run}@lr=0.01@seed=0', 40)
        fake_result(f'ablation@{run}@lr=0.02@seed=0', 60)
    ablation.main(ablation.parse_args('--tables pair --seeds 0 --rates 0.01 0.02'.split()))
    assert runs == ['ablation@cl@lr=0.01@seed=0', 'ablation@cl_pcl_re@lr=0.02@seed=0']
    assert not any('@cl@lr=0.02' in word for command in commands for word in command)


def test_a_row_without_any_result_is_named(in_tmp, monkeypatch):
    monkeypatch.setattr(ablation, 'execute_runs', lambda runs, jobs: list(runs))
    monkeypatch.setattr(ablation, 'draw_scenes', lambda folder: None)
    monkeypatch.setattr(runner, 'execute', lambda command: None)
    with pytest.raises(UserError, match='cl: no run at any of --rates succeeded'):
        ablation.main(ablation.parse_args('--tables pair --rates 0.01 0.02'.split()))


def test_few_scenes(demo, tmp_path):
    shutil.copytree(demo, tmp_path / 'set')
    ablation.draw_scenes(tmp_path / 'set')
    full, few = (open_dataset(tmp_path / 'set' / name, tmp_path / 'set') for name in ('dataset.json', 'few.json'))
    assert few.ids('train_aug') == few.ids('train') == full.ids('train')
    assert few.ids('val') == full.ids('val')
    assert few.class_names == full.class_names


def test_photographs_of_both_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    ablation.combine_photographs(tmp_path)
    some, both = (open_dataset(path, tmp_path) for path in (ablation.PHOTOGRAPHS, tmp_path / 'both.json'))
    assert both.ids('train_aug') == some.ids('train') + some.ids('val')
    assert len(both.ids('train_aug')) == 632
    assert both.ids('train') == some.ids('train')
    assert both.class_names == some.class_names


def stages_that(*codes: int) -> list[list[str]]:
    """Return commands that print a word and exit with the given codes."""
    return [['-c', f'import sys; print("code {code}"); sys.exit({code})'] for code in codes]


def test_a_failed_command_ends_its_run_only(in_tmp, capsys):
    runs = {'good': stages_that(0, 0, 0), 'bad': stages_that(0, 3, 0), 'other': stages_that(0)}
    assert runner.execute_runs(runs, jobs=2) == ['bad']
    logs = {tag: (in_tmp / 'experiments' / 'logs' / f'{tag}.out').read_text().splitlines() for tag in runs}
    assert logs == {'good': ['code 0'] * 3, 'bad': ['code 0', 'code 3'], 'other': ['code 0']}
    assert 'bad: -c failed: see experiments/logs/bad.out' in capsys.readouterr().err


@pytest.mark.parametrize('recipe', [ablation, readouts])
@pytest.mark.parametrize('more', ['--seed 5', '--lr 1 --loss_option=cl', '--tag x'])
def test_what_a_recipe_chooses_is_no_further_flag(recipe, more, capsys):
    with pytest.raises(SystemExit):
        recipe.parse_args(['--on', 'drawn', f'--more={more}'])
    flag = next(flag for flag in runner.CHOSEN if flag in more)
    assert f'argument --more: {flag}' in capsys.readouterr().err


def test_recipes_do_not_share_the_tags_of_their_runs(capsys):
    tags = []
    for recipe in (ablation, readouts):
        recipe.main(recipe.parse_args('--on photographs --data_dir voc --weights w.pth --dry_run'.split()))
        tags.append(set(re.findall(r'--tag (\S+)', capsys.readouterr().out)))
    assert tags[0] and tags[1] and tags[0].isdisjoint(tags[1])


STOPPED = """
import os, signal, sys
from recipes import runner
from util import script
sleeper = 'import os, signal, time; os.kill(os.getppid(), signal.{name}); time.sleep(60)'
script.run(lambda args: runner.execute_runs({{'tag': [['-c', sleeper]], 'next': []}}, 1), lambda: None)
"""


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP'])
def test_a_recipe_that_is_stopped_says_so_alone(in_tmp, name):
    command = [sys.executable, '-c', STOPPED.format(name=name)]
    ended = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True, timeout=30)
    assert ended.returncode == 128 + getattr(signal, name), ended.stderr
    assert ended.stderr == 'stopped; run the same command to go on\n'


class Program:
    """What runner.execute asks of subprocess.Popen, forked from the server of the tests."""

    def __init__(self, command, stdin, env, stdout=None, stderr=None):
        number = 1 if stdout is None else stdout.fileno()
        self.process = start_program(command[1:], number, 2 if stderr is None else number, env=env)

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode


def test_runs_and_tables(demo, in_tmp, monkeypatch, capfd):
    """A run of one short epoch from beginning to end; the second call only prints the table."""
    shutil.copytree(demo, in_tmp / 'set')
    for path in REPOSITORY.glob('*.py'):
        (in_tmp / path.name).symlink_to(path)
    monkeypatch.setenv('PYTHONPATH', str(REPOSITORY))
    sizes = '--batch_size 4 --max_epoch 1 --image_size 64 --min_image_size 48 --max_image_size 80 --device cpu'
    line = ['--data_dir', 'set', '--tables', 'losses', '--seeds', '0', '--scales', '1.0', f'--more={sizes}']
    forking = SimpleNamespace(Popen=Program, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(runner, 'subprocess', forking)
    build = ablation.build_tables
    monkeypatch.setattr(
        ablation, 'build_tables', lambda setting: {'losses': {'L_cls': build(setting)['losses']['L_cls']}}
    )
    ablation.main(ablation.parse_args(line))
    result = in_tmp / 'experiments/results/ablation@cl@seed=0@train@scale=1.0@train.json'
    miou = json.loads(result.read_text())['miou']
    out = capfd.readouterr().out
    assert 'Loss (paper: Table 1' in out
    assert f'{miou:.2f}' in out
    assert (in_tmp / 'experiments' / 'show' / 'ablation' / 'page-1.png').is_file()
    before = result.stat().st_mtime_ns
    ablation.main(ablation.parse_args(line))
    assert result.stat().st_mtime_ns == before
    result.unlink()
    (in_tmp / 'evaluate.py').unlink()
    capfd.readouterr()
    with pytest.raises(UserError, match='1 of 1 runs failed'):
        ablation.main(ablation.parse_args(line))
    out, err = capfd.readouterr()
    assert 'evaluate.py failed: see experiments/logs/ablation@cl@seed=0.out' in err
    assert 'Loss (paper' not in out
