"""recipes/slurm/ with stand-ins for the commands of Slurm, which run the jobs here, one after the other."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import REPOSITORY, folder_of, subprocess_environment
from support.programs import free_port, start_program
from util.store import formats

NET = 'resnest14_narrow'
SMALL = '--image_size 64 --min_image_size 48 --max_image_size 80 --batch_size 4 --max_epoch 1 --lr 0.01 --device cpu'
SETTINGS = {
    'NAME': 'my', 'NET': NET, 'W': 'none', 'SCALES': '0.5,1.0', 'GPUS': '0', 'CPUS': '1', 'SHARDS': '2',
    'STAGE1': f'{SMALL} --bn_replicas 2', 'STAGE2': '--device cpu', 'STAGE4': f'{SMALL} --radius 4',
    'STAGE5': '--device cpu --image_size 96', 'STAGE7': SMALL, 'STAGE8': '--device cpu',
}  # fmt: skip
CAM, RW = 'my@cls@train@scale=0.5,1.0', 'my@aff@train@beta=10@exp_times=8@rw'
ORDER = (
    'cls', 'cam', 'cam_score', 'aff_label', 'aff', 'rw', 'rw_score', 'pseudo', 'pseudo_score', 'seg', 'prediction',
    'prediction_score',
)  # fmt: skip

# Runs a job at once, each job of an array after the other, and again if it has been requeued. Jobs are numbered from 1,
# except in SLURM_JOB_ID of a trainer, which says the port at which its nodes meet: other tests may run beside this one.
# SIGNAL is the text in a job's output after which its batch script, and nothing else, gets a SIGTERM, once.
SBATCH = r"""
import os, pathlib, random, signal, socket, subprocess, sys, time

def is_free(port):
    with socket.socket() as found:
        return found.connect_ex(('localhost', port)) != 0

rest, flags = sys.argv[1:], {}
while rest[0].startswith('--'):
    name, _, value = rest.pop(0).partition('=')
    flags[name] = value
state = pathlib.Path(os.environ['STATE'])
number = 1 + len(list(state.glob('*.done')))
print(number)
after = flags.get('--dependency', '').removeprefix('afterok:')
failed = bool(after) and (state / f'{after}.done').read_text() != '0'
first, _, last = flags.get('--array', '1-1').partition('-')
statuses = []
for task in range(int(first), int(last) + 1) if not failed else ():
    job = f'{number}_{task}' if '--array' in flags else f'{number}'
    identity = job
    if '--nodes' in flags:
        identity = str(next(i for i in random.sample(range(1000), 1000) if is_free(29500 + i)))
    environment = {**os.environ, 'SLURM_JOB_ID': identity, 'SLURM_JOB_NUM_NODES': flags.get('--nodes', '1'),
                   'SLURM_JOB_NODELIST': 'made'}
    if '--array' in flags:
        environment |= {'SLURM_ARRAY_JOB_ID': f'{number}', 'SLURM_ARRAY_TASK_ID': f'{task}',
                        'SLURM_ARRAY_TASK_COUNT': last}
    output = pathlib.Path(flags['--output'].replace('%x', flags['--job-name']).replace('%j', job))
    requeued = state / f'{identity}.requeued'
    while True:
        with output.open('a') as file:
            script = subprocess.Popen(['bash', *rest], env=environment, stdout=file, stderr=file)
        text, sent = os.environ.get('SIGNAL'), state / 'sent'
        while text and not sent.exists() and script.poll() is None:
            if text in output.read_text():
                script.send_signal(signal.SIGTERM)
                sent.touch()
            time.sleep(0.02)
        status = script.wait()
        if not requeued.exists():
            break
        requeued.rename(state / f'{job}.was_requeued')
    statuses.append(status)
(state / f'{number}.done').write_text('dependency' if failed else str(max(statuses)))
"""
# Starts the command once for each node: a step. On SIGTERM it kills the step, as srun of Slurm 22.05 does.
SRUN = r"""
import os, pathlib, signal, subprocess, sys
nodes = [subprocess.Popen(sys.argv[1:]) for _ in range(int(os.environ['SLURM_JOB_NUM_NODES']))]
signal.signal(signal.SIGTERM, lambda *_: [node.kill() for node in nodes])
step = pathlib.Path(os.environ['STATE']) / f'{os.environ["SLURM_JOB_ID"]}.step'
step.write_text(' '.join(str(node.pid) for node in nodes))
sys.exit(max(abs(node.wait()) for node in nodes))
"""
# Signals the processes of a job's step.
SCANCEL = r"""
import os, pathlib, signal, sys
assert sys.argv[1] == '--signal=TERM'
for pid in (pathlib.Path(os.environ['STATE']) / f'{sys.argv[2]}.step').read_text().split():
    os.kill(int(pid), signal.SIGTERM)
"""
SCONTROL = r"""
import os, pathlib, sys
if sys.argv[1] == 'show':
    print('localhost\nother')
else:
    (pathlib.Path(os.environ['STATE']) / f'{sys.argv[2]}.requeued').touch()
"""


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path, demo, monkeypatch) -> dict[str, str]:
    """A copy of the repository as the working directory, and an environment in which jobs run at once."""
    root, programs = tmp_path / 'repository', tmp_path / 'bin'
    for folder in (root / 'tools', root / 'experiments', programs, tmp_path / 'state'):
        folder.mkdir(parents=True)
    for path in REPOSITORY.glob('*.py'):
        (root / path.name).symlink_to(path)
    shutil.copytree(REPOSITORY / 'recipes/slurm', root / 'recipes/slurm')
    (root / 'tools/environment.sh').write_text('set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")/.."\n')
    for name, text in (('sbatch', SBATCH), ('srun', SRUN), ('scancel', SCANCEL), ('scontrol', SCONTROL)):
        write_program(programs / name, f'#!{sys.executable}\n{text}')
    write_program(programs / 'python', f'#!/bin/sh\nexec {sys.executable} "$@"')
    monkeypatch.chdir(root)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ['PATH']])
    data = {'D': str(demo), 'DATASET': str(demo / 'dataset.json'), 'STATE': str(tmp_path / 'state'), 'PATH': path}
    return {**subprocess_environment(), **data, **SETTINGS}


def submit(environment: dict[str, str], **more: str) -> list[list[str]]:
    """Run chain.sh; return the words of the printed commands."""
    process = subprocess.run(
        ['bash', 'recipes/slurm/chain.sh'], env={**environment, **more}, capture_output=True, text=True, check=True
    )
    assert process.stderr == ''
    return [line.split() for line in process.stdout.splitlines()]


def test_a_dry_run_submits_nothing(cluster):
    """Every stage accepts its command and reads what an earlier job writes, and jobs wait for what they read."""
    jobs = submit(cluster, DRY_RUN='1', GPUS='2', NODES='3', SHARDS='5', TRAIN_JOB='--time=60 --partition=gpu')
    assert list(Path('experiments').iterdir()) == []
    flags, options = {}, {}
    for words in jobs:
        assert words[:2] == ['sbatch', '--parsable']
        script = words.index('recipes/slurm/stage.sbatch')
        name = words[2].removeprefix('--job-name=my@')
        flags[name], command = words[3:script], words[script + 1 :]
        if '--array=1-5' in flags[name]:
            command += ['--shard', '5/5']
        options[name] = importlib.import_module(command[0].removesuffix('.py')).parse_args(command[1:])
    assert tuple(flags) == ORDER
    kinds = {
        name: [word for word in words if not word.startswith(('--output', '--dep', '--kill'))]
        for name, words in flags.items()
    }
    assert kinds['cls'] == kinds['aff'] == kinds['seg']
    assert kinds['cls'] == [
        '--nodes=3', '--ntasks-per-node=1', '--cpus-per-task=2', '--gpus-per-node=2', '--time=60', '--partition=gpu'
    ]  # fmt: skip
    array = ['--array=1-5', '--cpus-per-task=1']
    assert kinds['cam'] == kinds['rw'] == kinds['prediction'] == [*array, '--gpus-per-node=1']
    assert kinds['aff_label'] == kinds['pseudo'] == array
    assert kinds['cam_score'] == ['--cpus-per-task=1']

    # A job waits for the last one that is not a scoring, and that one makes what it reads.
    after = {name: word for name, words in flags.items() for word in words if word.startswith('--dependency')}
    makers = [name for name in ORDER if not name.endswith('_score')]
    expected = dict(zip(makers[1:], makers, strict=False)) | {
        name: name.removesuffix('_score') for name in ORDER if name.endswith('_score')
    }
    assert after == {name: f'--dependency=afterok:{earlier}' for name, earlier in expected.items()}
    kinds = (
        ('cam', formats.CAM), ('aff_label', formats.AFFINITY_LABEL), ('rw', formats.RANDOM_WALK),
        ('pseudo', formats.PSEUDO_LABEL), ('prediction', formats.PREDICTION),
    )  # fmt: skip
    made = {name: folder_of(kind, options[name]) for name, kind in kinds}
    read = [options['aff_label'].experiment_name, options['rw'].cam_dir, options['cam_score'].experiment_name]
    assert read == [made['cam']] * 3
    assert options['aff'].label_name == made['aff_label']
    assert options['pseudo'].experiment_name == options['rw_score'].experiment_name == made['rw']
    assert options['seg'].label_name == options['pseudo_score'].experiment_name == made['pseudo']
    assert options['prediction_score'].experiment_name == made['prediction']
    models = [options['cam'].tag, options['rw'].model_name, options['prediction'].tag]
    assert models == [options[name].tag for name in ('cls', 'aff', 'seg')]


@pytest.mark.slow
def test_the_chain(cluster, demo):
    """All jobs succeed; each job of an array does a part of the work."""
    jobs = submit(cluster)
    state = Path(cluster['STATE'])
    printed = {path.name: path.read_text() for path in Path('experiments/slurm').iterdir()}
    assert {path.stem: path.read_text() for path in state.glob('*.done')} == {f'{i}': '0' for i in range(1, 13)}, (
        printed
    )
    assert len(jobs) == len(ORDER)
    results = {path.name for path in Path('experiments/results').glob('*.json')}
    scored = {f'{name}@train' for name in (CAM, RW, f'{RW}@crf=1')} | {'my@seg@val@scale=0.5,1.0@iteration=10@val'}
    assert results == {f'{name}.json' for name in scored}
    for name, ids in ((CAM, 12), (f'{RW}@crf=1', 12)):
        folder = Path('experiments/predictions') / name
        assert len([*folder.glob('train_*.npz'), *folder.glob('train_*.png')]) == ids
    for number, name in ((2, 'cam'), (4, 'aff_label'), (6, 'rw'), (8, 'pseudo'), (11, 'prediction')):
        assert 'shard 1/2' in printed[f'my@{name}-{number}_1.txt']
        assert 'shard 2/2' in printed[f'my@{name}-{number}_2.txt']


def test_jobs_after_a_failed_one_do_not_run(cluster, tmp_path):
    write_program(tmp_path / 'bin/srun', '#!/bin/sh\nexit 3')
    submit(cluster)
    states = [Path(cluster['STATE'], f'{i}.done').read_text() for i in range(1, 13)]
    assert states == ['3', *11 * ['dependency']]
    assert list(Path(cluster['STATE']).glob('*requeued')) == []


@pytest.mark.parametrize('nodes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_job_whose_time_is_up_is_requeued_and_resumes(cluster, nodes):
    """The model has the bytes of as many processes that nothing has stopped."""
    data = f'--dataset {cluster["DATASET"]} --data_dir {cluster["D"]} --num_workers 0'
    trainer = f'train_classification_with_puzzle.py {data} --architecture {NET} --weights none --tag my {SMALL}'
    trainer = [*trainer.split(), '--bn_replicas', '2', '--max_epoch', '3', '--print_ratio', '0']
    sbatch = ['sbatch', f'--nodes={nodes}', '--job-name=my', '--output=experiments/%x.txt']
    stage = 'recipes/slurm/stage.sbatch'
    subprocess.run([*sbatch, stage, *trainer], env={**cluster, 'SIGNAL': 'iteration 2/'}, check=True)
    printed = Path('experiments/my.txt').read_text()
    assert 'epoch 3: train CAM' in printed
    assert 'run the same command to resume' in printed
    assert Path(cluster['STATE'], '1.done').read_text() == '0'
    assert len(list(Path(cluster['STATE']).glob('*.was_requeued'))) == 1
    found = torch.load('experiments/models/my.pth', weights_only=True)['model']

    shutil.rmtree('experiments')
    Path('experiments').mkdir()
    group = {**cluster, 'LOCAL_RANK': '0', 'WORLD_SIZE': str(nodes), 'MASTER_ADDR': 'localhost'}
    group['MASTER_PORT'] = str(free_port())
    with open('experiments/my.txt', 'w') as file:
        members = [
            start_program(trainer, file.fileno(), file.fileno(), env={**group, 'RANK': str(rank)})
            for rank in range(nodes)
        ]
        for member in members:
            member.join()
    assert [member.exitcode for member in members] == [0] * nodes
    assert 'run the same command to resume' not in Path('experiments/my.txt').read_text()
    expected = torch.load('experiments/models/my.pth', weights_only=True)['model']
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('number', ['7', '7_2'])
def test_only_the_interrupted_job_of_an_array_is_requeued(cluster, tmp_path, number):
    write_program(tmp_path / 'bin/python', '#!/bin/bash\ntrap "exit 143" TERM; echo "$*"; sleep 30 & wait $!')
    job, _, task = number.partition('_')
    array = {'SLURM_ARRAY_JOB_ID': job, 'SLURM_ARRAY_TASK_ID': task, 'SLURM_ARRAY_TASK_COUNT': '3'} if task else {}
    script = subprocess.Popen(
        ['bash', 'recipes/slurm/stage.sbatch', 'make_affinity_labels.py', '--crf_iteration', '1'],
        env={**cluster, 'SLURM_JOB_ID': job, **array}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    shard = ' --shard 2/3' if task else ''
    assert script.stdout.readline() == f'make_affinity_labels.py --crf_iteration 1{shard}\n'
    script.terminate()
    assert script.wait() == 143
    assert [path.name for path in Path(cluster['STATE']).iterdir()] == [f'{number}.requeued']
