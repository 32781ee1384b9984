"""recipes/voc.sh: its dry runs print commands that the stages accept, each reading what an earlier one writes."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import REPOSITORY, subprocess_environment
from util.store import formats

ENVIRONMENT_SCRIPT = REPOSITORY / 'tools' / 'environment.sh'
RUNS = {'1': 12, '2': 5, '3': 2}  # trainings of the classifier in each table
COMMANDS = {'1': 3, '2': 9, '3': 14}  # of a run
PAPER = {
    '1': ['47.82', '47.70', '49.21', '51.53'],
    '2': '47.82 58.10 59.70 51.53 64.16 64.70 57.59 69.48 69.91 61.85 71.92 72.46 62.45 74.14 74.67'.split(),
    '3': ['66.9', '71.9'],
}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Return a function that runs the recipe in a copy of the repository, and yields what it prints."""
    root, programs = tmp_path / 'repository', tmp_path / 'bin'
    for folder in (root / 'tools', programs):
        folder.mkdir(parents=True)
    for name in ('core', 'data', 'util'):
        (root / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / 'recipes', root / 'recipes')
    steps = ENVIRONMENT_SCRIPT.read_text().partition('STEP=0\n')
    assert steps[1]
    start = 'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")/.."\n'
    (root / 'tools/environment.sh').write_text(start + steps[1] + steps[2])
    for name in ('python', 'python3'):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"')
        (programs / name).chmod(0o755)
    monkeypatch.chdir(root)
    path = os.pathsep.join([str(programs), os.environ['PATH']])

    def run(*words, code=0, **variables):
        environment = {**subprocess_environment(), 'PATH': path, 'DRY_RUN': '1', **variables}
        command = ['bash', 'recipes/voc.sh', *words]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == code, process.stderr
        return process.stdout if code == 0 else process.stderr

    return run


def commands_in(output: str) -> list[list[str]]:
    return [shlex.split(line) for line in output.splitlines() if not line.startswith('#')]


def parse(words: list[str]):
    """Return the stage and the options of a command."""
    if words[0] == 'torchrun':
        words = ['python3', *words[3:]]
    assert words[0] == 'python3'
    name, words = (words[2], words[3:]) if words[1] == '-m' else (words[1].removesuffix('.py'), words[2:])
    return name, importlib.import_module(name).parse_args(words)


@pytest.mark.parametrize('gpus', ['1', '4'])
@pytest.mark.parametrize('table', RUNS)
def test_every_command_of_a_dry_run_is_accepted(recipe, table, gpus):
    output = recipe(table, GPUS=gpus)
    assert re.search(rf'# Table {table}: \d+ commands, \d+\.\d hours, \d+\.\d GB', output)
    assert 'All times and sizes are estimates' in output
    *stages, (summary, summarized) = map(parse, commands_in(output))
    assert len(stages) == RUNS[table] * COMMANDS[table]
    assert summary == 'tools.summarize'
    assert [row[-1] for row in summarized.rows] == PAPER[table]

    # What a command reads has been written by an earlier one, and what is scored is in the table.
    models, folders, results = set(), set(), set()
    kinds = {kind.script.removesuffix('.py'): kind for kind in formats.FORMATS.values() if kind != formats.EDGE}
    for name, options in stages:
        assert options.dataset == 'data/voc2012.json'
        assert options.data_dir == '../VOCdevkit/VOC2012'
        if name in kinds:
            tag = getattr(options, 'tag', None) or getattr(options, 'model_name', None)
            assert tag is None or tag in models
            read = getattr(options, 'experiment_name', None) or getattr(options, 'cam_dir', None)
            assert read is None or read in folders
            record = options.record()
            folders.add(formats.folder_name(kinds[name], record.options, record.defaults))
        elif name == 'evaluate':
            assert options.experiment_name in folders
            results.add(f'{options.experiment_name}@{options.domain}')
        else:
            assert getattr(options, 'label_name', None) in {None, *folders}
            models.add(options.tag)
    for *_, name, _ in summarized.rows:
        assert name in results or name.replace('seed=*', 'seed=1') in results


def test_a_dry_run_writes_nothing(recipe):
    recipe('1')
    assert not Path('experiments').exists()


def test_finished_steps_are_skipped(recipe):
    results = Path('experiments/results')
    results.mkdir(parents=True)
    first = 'voc@resnet50@cl@seed=0'
    end = '@train@scale=0.5,1.0,1.5,2.0'
    (results / f'{first}@cls{end}@train.json').touch()
    output = recipe('1', SEEDS='0')
    assert f'{first}@cls --domain' not in output
    assert len(commands_in(output)) == 3 * 3 + 1
    (results / f'{first}@aff@train@beta=10@exp_times=8@rw@crf=1@train.json').touch()
    tags = {parse(words)[1].tag for words in commands_in(recipe('2', NETS='resnet50')) if '--tag' in words}
    assert tags == {f'voc@resnet50@cl_pcl_re@seed=0@{network}' for network in ('cls', 'aff')}


def test_other_settings(recipe):
    more = {'NETS': 'mobilenet_v2', 'LOSSES': 'cl', 'SEEDS': '3', 'NAME': 'my', 'D': '../VOC 2012'}
    output = recipe('2', MORE='--max_epoch 1', STAGE4='--radius 4', W='w.pth', **more)
    stages = dict(map(parse, commands_in(output)[:-1]))
    for name in ('train_classification_with_puzzle', 'train_affinitynet'):
        options = stages[name]
        assert (options.max_epoch, options.weights, options.seed, options.data_dir) == (1, 'w.pth', 3, '../VOC 2012')
    assert stages['train_affinitynet'].radius == 4
    rows = commands_in(output)[-1][3:]
    assert rows[0] == 'mobilenet_v2, L_cls: CAM | my@mobilenet_v2@cl@seed=3@cls@train@scale=0.5,1.0,1.5,2.0@train'


@pytest.mark.parametrize('table, last, jobs', [('1', 'cam_score', 3), ('2', 'pseudo_score', 9), ('3', 'upload', 14)])
def test_slurm_submits_the_same_runs(recipe, table, last, jobs):
    """The jobs of recipes/slurm/chain.sh have the names of the commands that run here."""
    output = recipe(table, SLURM='1', SEEDS='0')
    lines = [line.split() for line in output.splitlines() if line.startswith('sbatch')]
    assert len(lines) == jobs * len({line[2].partition('seed=0')[0] for line in lines})
    assert lines[-1][2].endswith(f'@seed=0@{last}')
    submitted = [parse(['python3', *line[line.index('recipes/slurm/stage.sbatch') + 1 :]]) for line in lines]
    here = [parse(words) for words in commands_in(recipe(table, SEEDS='0'))[:-1]]
    tags = [[options.tag for _, options in found if 'tag' in options] for found in (submitted, here)]
    assert tags[0] == tags[1]
    scored = [[options.experiment_name for name, options in found if name == 'evaluate'] for found in (submitted, here)]
    assert scored[0] == scored[1]
    for (_, one), (_, other) in zip(submitted, here, strict=True):
        for option in ('seed', 'loss_option', 'domain', 'scales'):
            assert getattr(one, option, None) == getattr(other, option, None)


def test_without_voc_it_says_how_to_get_it(recipe):
    assert 'python3 -m tools.prepare_voc --out ..' in recipe('1', code=1, DRY_RUN='')
    assert recipe(code=2).startswith('usage: bash recipes/voc.sh 1|2|3')


def test_figures_of_the_paper():
    published = json.loads((REPOSITORY / 'data/published.json').read_text())['rows']
    page = (REPOSITORY / 'docs/voc.md').read_text()
    script = (REPOSITORY / 'recipes/voc.sh').read_text()
    for net, row in published.items():
        figures = script.partition(f"['{net} cl_pcl_re']=")[2].partition('\n')[0].strip(" '")
        assert list(map(float, figures.split("'")[0].split())) == list(row.values())
    for figure in {*PAPER['1'], *PAPER['2'], *PAPER['3'], '67.7', '72.2'}:
        assert figure in page and figure in script
