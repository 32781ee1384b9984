"""tools/environment.sh with stand-ins for Python, and the steps that the quickstart and recipes/own.sh print."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support import REPOSITORY, subprocess_environment

# Notes its words. It has pydensecrf if the file has_crf exists, and makes a virtual environment that is itself.
PYTHON = """#!/bin/sh
echo "$*" >> "$STATE/words"
case "$*" in
    '-m venv .venv') mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *pydensecrf.densecrf*) [ -e "$STATE/has_crf" ] ;;
    *requirements-crf.txt) touch "$STATE/has_crf" ;;
esac
"""
INSTALL = '-m pip install --quiet --disable-pip-version-check'


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The top of a copy of the repository, with stand-ins for Python and a compiler on the PATH."""
    root, programs = tmp_path / 'repository', tmp_path / 'bin'
    (root / 'tools').mkdir(parents=True)
    programs.mkdir()
    for name in ('environment.sh', 'quickstart.sh'):
        shutil.copy(REPOSITORY / 'tools' / name, root / 'tools' / name)
    for name in ('recipes', 'data'):
        shutil.copytree(REPOSITORY / name, root / name)
    for name in ('python3', 'python'):
        (programs / name).write_text(PYTHON)
        (programs / name).chmod(0o755)
    for name in ('dirname', 'mkdir', 'cp', 'touch', 'realpath', 'wc', 'sh', 'bash', 'rm'):
        (programs / name).symlink_to(shutil.which(name))
    monkeypatch.chdir(root)
    return root


def run(root: Path, command: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a command of bash with the programs of the stand-ins alone."""
    state = root.parent
    environment = {**subprocess_environment(), 'PATH': str(state / 'bin'), 'STATE': str(state), **variables}
    return subprocess.run([shutil.which('bash'), '-c', command], env=environment, capture_output=True, text=True)


def words(root: Path) -> list[str]:
    """Return what Python was asked since the last time."""
    path = root.parent / 'words'
    lines = path.read_text().splitlines()
    path.write_text('')
    return lines[1:]  # the first one asks for the version


def test_everything_is_installed_once(root):
    (root.parent / 'bin' / 'c++').symlink_to('/bin/true')
    first = run(root, 'source tools/environment.sh requirements.txt && echo $PATH')
    assert first.returncode == 0, first.stderr
    assert 'about 6 GB on disk' in first.stderr and 'CPU build (see pytorch.org)' in first.stderr
    assert first.stdout.startswith(f'{root}/.venv/bin{os.pathsep}')
    asked = words(root)
    assert asked[:2] == ['-m venv .venv', f'{INSTALL} -r requirements.txt']
    assert asked[-1] == f'{INSTALL} --no-build-isolation -r requirements-crf.txt'

    second = run(root, 'source tools/environment.sh requirements-dev.txt')
    assert (second.returncode, second.stderr) == (0, '')
    assert words(root) == [f'{INSTALL} -r requirements-dev.txt', '-c import pydensecrf.densecrf']


def test_stages_are_told_the_process_that_started_them(root):
    program = root / '.venv/bin/python'
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho $PPID $PUZZLE_CAM_RECIPE')
    program.chmod(0o755)
    ended = run(root, 'source tools/environment.sh requirements.txt > /dev/null && python')
    assert ended.returncode == 0, ended.stderr
    parent, told = ended.stdout.split()
    assert parent == told


def test_a_dry_run_installs_nothing(root):
    ended = run(root, 'bash recipes/voc.sh 3', DRY_RUN='1', PATH=os.environ['PATH'])
    assert (ended.returncode, ended.stderr) == (0, '')
    assert not (root / '.venv').exists()
    assert not (root.parent / 'words').exists()


def test_without_a_compiler_all_but_the_crf_is_installed(root):
    ended = run(root, 'source tools/environment.sh requirements.txt')
    assert ended.returncode == 1
    assert 'a C++ compiler (such as g++) is needed' in ended.stderr and '--crf_iteration 0' in ended.stderr
    assert f'{INSTALL} -r requirements.txt' in words(root)
    assert not (root.parent / 'has_crf').exists()


def make_environment(root):
    """Let the environment be there, with the stand-in for Python."""
    (root / '.venv/bin').mkdir(parents=True)
    shutil.copy(root.parent / 'bin' / 'python', root / '.venv/bin/python')
    (root.parent / 'has_crf').touch()


@pytest.mark.parametrize(
    'command, steps, variables',
    [
        ('bash tools/quickstart.sh', 9, {}),
        ('bash recipes/own.sh', 6, {}),
        ('bash recipes/own.sh', 9, {'DEEPLAB': '1'}),
    ],
)
def test_steps_are_numbered(root, command, steps, variables):
    make_environment(root)
    (root / 'labels.csv').write_text('image,classes\na.jpg,dog\n')
    ended = run(root, command, CSV='labels.csv', D='.', **variables)
    assert ended.returncode == 0, ended.stderr
    headings = re.findall(r'^== step (\d+) of (\d+), \d+:\d\d so far: \S', ended.stdout, re.MULTILINE)
    assert headings == [(str(i), str(steps)) for i in range(1, steps + 1)]


@pytest.mark.parametrize('command', ['tools/quickstart.sh', 'recipes/own.sh'])
def test_a_script_without_a_dry_run_says_so(root, command):
    ended = run(root, f'bash {command}', CSV='.', D='.', DRY_RUN='1')
    line = f'DRY_RUN: {command} cannot print its commands: leave the variable out\n'
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, '', line)


def test_a_missing_data_set_is_left_to_the_first_stage(root):
    """The script itself also reads the CSV, to count its photographs: its shell says nothing."""
    make_environment(root)
    ended = run(root, 'bash recipes/own.sh', CSV='nowhere.csv', D='.')
    assert 'nowhere' not in ended.stderr


@pytest.mark.parametrize('given', [{}, {'CSV': '', 'D': '.'}, {'CSV': 'labels.csv'}])
def test_without_a_data_set_nothing_starts(root, given):
    (root / 'labels.csv').touch()
    ended = run(root, 'bash recipes/own.sh', **given)
    assert ended.returncode != 0 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stdout == '' and not (root / '.venv').exists()


# Notes its words like PYTHON. Of tools.tune there is a choice, which -c prints an entry of.
WALKED = 'own@train@cam=mean@scale=0.5,1.0,1.5,2.0'
CHOICE = {'walk_flags': '--beta 30 --rw_normalization class', 'walk_dir': 'CHOSEN', 'threshold': 0.55}


@pytest.mark.parametrize(
    'header, is_tuned',
    [('image,classes', False), ('image,classes,Mask', True), ('# classes: dog;mask\nimage;classes;mask', True)],
)
def test_masks_choose_the_flags_of_the_walk(root, header, is_tuned):
    (root / '.venv/bin').mkdir(parents=True)
    program = root / '.venv/bin/python'
    answers = ''.join(f"    '-c import json'*' {name}') echo '{value}' ;;\n" for name, value in CHOICE.items())
    program.write_text(PYTHON.replace('esac', f'{answers}esac'))
    program.chmod(0o755)
    (root.parent / 'has_crf').touch()
    for name in ('grep', 'tr'):
        (root.parent / 'bin' / name).symlink_to(shutil.which(name))
    (root / 'labels.csv').write_text(f'{header}\nmask.jpg,dog\n')
    ended = run(root, 'bash recipes/own.sh', CSV='labels.csv', D='.', DEEPLAB='1')
    assert ended.returncode == 0, ended.stderr
    assert f'of {9 + is_tuned}, ' in ended.stdout
    asked = words(root)
    (masks,) = [line for line in asked if line.startswith('-m tools.predict')]
    (classifier,) = [line for line in asked if line.startswith('train_classification_with_puzzle.py')]
    (walk,) = [line for line in asked if line.startswith('inference_rw.py')]
    (labels,) = [line for line in asked if line.startswith('make_pseudo_labels.py')]
    (trained,) = [line for line in asked if line.startswith('train_segmentation.py')]
    cams = [line for line in asked if line.startswith('inference_classification.py')]
    tuned = [line for line in asked if line.startswith(f'-m tools.tune {WALKED} ')]
    assert len(tuned) == is_tuned
    # So a CSV with masks resumes what one without them has begun.
    assert '--max_epoch 1500 ' in classifier and classifier.strip().endswith('--select last')
    assert [line.partition('--tag ')[2].strip() for line in cams] == ['own', 'own --cam mean']
    flags = CHOICE['walk_flags'] if is_tuned else '--beta 40'
    folder = 'CHOSEN' if is_tuned else 'own@affinity@train@beta=40@exp_times=8@rw'
    threshold = 0.55 if is_tuned else 0.45
    assert f' --cam mean {flags} --threshold {threshold} --overwrite ' in masks
    assert walk.strip().endswith(f' --cam_dir {WALKED} {flags}')
    assert f' --experiment_name {folder} --threshold {threshold}' in labels
    assert f' --label_name {folder}@crf=1 ' in trained
    if is_tuned:
        assert tuned[0].endswith('--model_name own@affinity --beta 40 --threshold 0.45')


def test_own_images_without_a_background_have_no_threshold(root):
    (root / '.venv/bin').mkdir(parents=True)
    program = root / '.venv/bin/python'
    program.write_text(PYTHON.replace('esac', "    '-c import sys; from core.data.dataset'*) echo 1 ;;\nesac"))
    program.chmod(0o755)
    (root.parent / 'has_crf').touch()
    (root / 'labels.csv').write_text('image,classes,mask\na.jpg,dog,a.png\n')
    ended = run(root, 'bash recipes/own.sh', CSV='labels.csv', D='.', DEEPLAB='1')
    assert ended.returncode == 0, ended.stderr
    assert 'of 9, ' in ended.stdout
    asked = words(root)
    assert not any('threshold' in line or 'tools.tune' in line or '--cam mean' in line for line in asked)
    (walk,) = [line for line in asked if line.startswith('inference_rw.py')]
    assert walk.strip().endswith(' --cam_dir own@train@scale=0.5,1.0,1.5,2.0 --beta 20')
    (trained,) = [line for line in asked if line.startswith('train_affinitynet.py')]
    assert ' --label_name own@train@scale=0.5,1.0,1.5,2.0@aff_fg=0.40 ' in trained


@pytest.mark.parametrize('path', sorted(REPOSITORY.glob('recipes/**/*.sh')), ids=lambda path: path.name)
def test_headers_say_how_long_it_takes(path):
    header = path.read_text().partition('\nsource ')[0]
    assert re.search(r'\b(minutes|hours)\b', header)
    assert re.search(r'\b([Mm]easured|[Ee]stimated|Not run)\b', header)


def hear_all() -> None:
    """Undo what nohup, or a shell that starts the tests in the background, has ignored: bash cannot hear it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


STARTED = """#!/bin/sh
case "$1" in -m) ;; *) exit 0 ;; esac
[ "$2" = pip ] && exit 0
echo $$ > "$STATE/started"
exec sleep 60
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_script_that_is_signalled_ends_its_stage(root, tmp_path, number):
    python = root / '.venv/bin/python'
    python.parent.mkdir(parents=True)
    python.write_text(STARTED)
    python.chmod(0o755)
    environment = {**os.environ, 'STATE': str(tmp_path)}
    script = subprocess.Popen(
        ['bash', 'tools/quickstart.sh'],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        preexec_fn=hear_all,
    )
    while not (tmp_path / 'started').exists() or not (tmp_path / 'started').read_text():
        assert script.poll() is None
        time.sleep(0.05)
    script.send_signal(number)
    assert script.wait(10) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'started').read_text()), 0)
