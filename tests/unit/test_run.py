"""Training runs: resuming, what is refused, signals, curves."""

import io
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from core import UserError
from core.data.pixels import Reading
from core.models.optim import build_sgd
from core.models.weights import read_state_dict, read_torch
from support import without_seconds, working_in
from support.programs import held, refusal
from util import signals
from util.flags import Options, Parser
from util.parallel.batch import SharedModel
from util.store.files import temporary_stem
from util.store.formats import model_path
from util.store.hashes import list_hash
from util.training import options as tables
from util.training.loaders import training_loader
from util.training.models import BestAndLast
from util.training.run import Run

CPU = torch.device('cpu')
CLASSES = ('bus', 'cow')
META = {'network': 'Classifier', 'backbone': 'resnest14_narrow', 'mode': 'fix'}
ALL_META = {**META, 'image_size': 64, 'classes': CLASSES, 'palette': [[0, 0, 0]] * 3}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


CHECKPOINT = 'experiments/checkpoints/tag.pth'


class Points:
    """Twelve samples of a linear problem."""

    ids = tuple(f'{i:05d}' for i in range(12))
    labels = None
    dataset = SimpleNamespace(
        class_names=CLASSES,
        class_entries={'classes': CLASSES},
        has_background=True,
        num_classes=2,
        palette=np.zeros((256, 3), np.uint8),
        image_path=lambda image_id: Path(f'{image_id}.jpg'),
        reading=Reading(),
    )

    def __len__(self):
        return 12

    def __getitem__(self, key):
        epoch, position = key
        x = torch.tensor([float(position), 1.0, float(epoch)]) / 12
        return {'x': x, 'y': x[:2] + torch.rand(())}


DEFAULTS = dict(
    batch_size=4, max_epoch=2, lr=0.1, wd=0.0, momentum=0.5, weights='none', print_ratio=0.5, image_size=64,
    num_workers=0,
)  # fmt: skip


def options(**changes) -> Options:
    """Return the options of a trainer."""
    parser = Parser('')
    parser.add_table(tables.TRAINING, tables.SUPERVISED, **DEFAULTS)
    args = parser.parse_args(['--tag', 'tag'])
    vars(args).update(changes)
    return args


class Plain(SharedModel):
    """A network whose batches are not images."""

    def receive(self, batch):
        return batch


def start(args, mode='fix', **inputs) -> Run:
    model = net(args.seed)
    loader = training_loader(Points(), args.batch_size, args.num_workers, args.seed, CPU)
    optimizer, schedule = build_sgd(model.parameters(), args.max_epoch * len(loader), **args.pick(tables.SGD))
    sharing = {name: value for name, value in args.pick(tables.SHARING).items() if name != 'compile'}
    inputs = {'weights': 'none', **args.pick(tables.RUNNING), **(inputs or {'labels': '1234'})}
    meta = {**META, 'mode': mode}
    return Run(loader, Plain(model, CPU, **sharing), optimizer, schedule, meta, record=args.record(), **inputs)


def train(args, hook=lambda run: None, scored=True, **inputs) -> None:
    """Train to the end; hook(run) is called before each step and before the end of each epoch."""
    with start(args, **inputs) as run:
        for epoch in run.epochs():
            for batch in run.batches():
                loss = ((nn.Dropout()(run.network(batch['x'])) - batch['y']) ** 2).mean()
                hook(run)
                run.step({'part': loss / 2}, {'part': 2}, alpha=3.0)
            hook(run)
            grid = np.zeros((4, 5, 3), np.uint8)
            if scored:
                run.end_epoch('score', 0.5 - 0.1 * epoch, grid=grid)
            else:
                run.end_epoch(grid=grid)


def at(iteration, action):
    """Return a hook that acts after some iterations."""

    def hook(run):
        if run.iteration == iteration:
            action()

    return hook


def fail():
    raise ZeroDivisionError


def outputs(folder) -> dict[str, bytes]:
    paths = [path for kind in ('models', 'checkpoints', 'data') for path in (folder / 'experiments' / kind).rglob('*')]
    return {path.relative_to(folder).as_posix(): without_seconds(path) for path in paths}


def equal(a, b) -> bool:
    """Return whether two checkpoints, or parts of them, are bit-equal."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_run_writes_models_curves_log_and_checkpoint(in_tmp, capsys):
    train(options())
    experiments = in_tmp / 'experiments'
    assert set(os.listdir(experiments / 'models')) == {'tag.pth', 'tag.last.pth'}
    assert read_state_dict(model_path('tag'))[1] == {**ALL_META, 'select': 'best', 'epoch': 1, 'score': 0.5}
    assert read_state_dict(model_path('tag', '.last'))[1] == {**ALL_META, 'select': 'last', 'epoch': 2, 'score': 0.4}
    assert set(os.listdir(experiments / 'checkpoints')) == {'tag.pth', '.tag.lock'}
    content = json.loads((experiments / 'data/tag.json').read_text())
    assert content['options'] == vars(options())
    assert set(content['curves']) == {'lr', 'loss', 'part', 'alpha', 'mIoU'}
    assert [step for step, _ in content['curves']['loss']] == [1, 2, 3, 4, 5, 6]
    for (_, loss), (_, part) in zip(content['curves']['loss'], content['curves']['part'], strict=True):
        assert part == pytest.approx(loss / 2)
    rates = [0.1 * (1 - t / 6) ** 0.9 for t in range(6)]
    assert [value for _, value in content['curves']['lr']] == pytest.approx(rates)
    assert content['curves']['alpha'] == [[i, 3.0] for i in range(1, 7)]
    assert content['curves']['mIoU'] == [[3, 50.0], [6, 40.0]]
    lines = (experiments / 'logs/tag.txt').read_text().splitlines()
    assert [line.split(',')[0].split(':')[0] for line in lines[1:-1]] == [
        'iteration 1/6', 'iteration 2/6', 'iteration 3/6', 'epoch 1', 'iteration 4/6', 'iteration 5/6',
        'iteration 6/6', 'epoch 2',
    ]  # fmt: skip
    assert lines[-1].startswith('experiments/models/tag.pth: best epoch 1 (--select best); ')
    state = read_torch(in_tmp / CHECKPOINT)
    assert state['iteration'] == 6
    assert state['fingerprint'] == {
        'tag': 'tag', 'seed': 0, 'batch_size': 4, 'max_epoch': 2, 'lr': 0.1, 'wd': 0.0, 'momentum': 0.5,
        'nesterov': True, 'precision': 'fp32', 'compile': False, 'select': 'best', 'label_smoothing': 0.0,
        'image_size': 64, 'min_image_size': 320, 'max_image_size': 640, 'resize': 'pillow', 'labels': '1234',
        'weights_file': 'none', 'classes': ['bus', 'cow'], 'images': list_hash(Points.ids),
    }  # fmt: skip


def test_without_scores_the_last_model_and_no_score_is_kept(in_tmp):
    args = options()
    del args.select  # as in stage 4
    train(args, scored=False)
    assert os.listdir(in_tmp / 'experiments/models') == ['tag.pth']
    assert read_state_dict(model_path('tag'))[1] == {**ALL_META, 'epoch': 2}
    curves = json.loads((in_tmp / 'experiments/data/tag.json').read_text())['curves']
    assert set(curves) == {'lr', 'loss', 'part', 'alpha'}
    assert 'experiments/models/tag.pth: last epoch 2, time' in (in_tmp / 'experiments/logs/tag.txt').read_text()


@pytest.mark.parametrize('iteration', range(7))
@pytest.mark.parametrize('save_interval', [1, 2, 200])
def test_interrupted_run_ends_with_the_same_bytes(in_tmp, monkeypatch, iteration, save_interval):
    for name, interrupted in (('straight', False), ('resumed', True)):
        (in_tmp / name).mkdir()
        monkeypatch.chdir(in_tmp / name)
        if interrupted:
            with pytest.raises(ZeroDivisionError):
                train(options(save_interval=save_interval, print_ratio=0.7), at(iteration, fail))
        train(options(save_interval=save_interval, print_ratio=0.7))
    straight, resumed = outputs(in_tmp / 'straight'), outputs(in_tmp / 'resumed')
    # Of equal checkpoints the bytes can differ: pickle stores a string once for each object that it is.
    assert equal(*(torch.load(io.BytesIO(found.pop(CHECKPOINT)), weights_only=True) for found in (straight, resumed)))
    assert straight == resumed


def overflowing_at(iterations, hook=lambda run: None):
    """Return a hook whose gradients are infinite in these iterations."""

    def start_step(run):
        weight = run.network.model.weight
        weight._backward_hooks = None
        if run.iteration in iterations:
            weight.register_hook(lambda gradient: gradient * math.inf)
        hook(run)

    return start_step


def test_scaled_gradients_train_as_usual(in_tmp):
    """The scale is a power of two. Other precisions have no scaler."""
    found = []
    for precision in ('fp32', 'fp16'):
        train(options(precision=precision, overwrite=True))
        found.append(read_torch(in_tmp / CHECKPOINT)['state'])
    for part in ('model', 'optimizer', 'schedule'):
        assert equal(found[0][part], found[1][part])
    assert found[1].pop('scaler')['scale'] == 2**16
    assert found[0].keys() == found[1].keys()


def test_overflowing_step_changes_neither_weights_nor_learning_rate(in_tmp):
    states = []

    def remember(run):
        torch.save({name: run.resumable[name].state_dict() for name in ('model', 'optimizer')}, buffer := io.BytesIO())
        states.append(torch.load(io.BytesIO(buffer.getvalue())))

    train(options(precision='fp16'), overflowing_at({0, 2}, remember))
    assert equal(states[0]['model'], states[1]['model'])
    assert equal(states[2], states[4])  # states[3] is the state at the end of the epoch
    assert not equal(states[1], states[2])
    curves = json.loads((in_tmp / 'experiments/data/tag.json').read_text())['curves']
    rates = [0.1 * (1 - t / 6) ** 0.9 for t in (0, 0, 1, 1, 2, 3)]
    assert [value for _, value in curves['lr']] == pytest.approx(rates)
    assert [value for _, value in curves['scale']] == [2.0**power for power in (15, 15, 14, 14, 14, 14)]


@pytest.mark.parametrize('iteration', [1, 3, 4])
def test_interrupted_run_with_overflows_ends_with_the_same_state(in_tmp, monkeypatch, iteration):
    states = []
    for name in ('straight', 'resumed'):
        (in_tmp / name).mkdir()
        monkeypatch.chdir(in_tmp / name)
        args = options(precision='fp16', save_interval=1)
        if name == 'resumed':
            with pytest.raises(ZeroDivisionError):
                train(args, overflowing_at({0, 3}, at(iteration, fail)))
        train(args, overflowing_at({0, 3}))
        parts = read_torch(Path(CHECKPOINT))['state']
        del parts['log']['seconds']
        states.append(parts)
    assert states[0]['scaler']['scale'] == 2**14
    assert equal(*states)


def test_gradients_that_always_overflow_end_the_run(in_tmp):
    with pytest.raises(UserError) as error:
        train(options(precision='fp16', max_epoch=9), overflowing_at(range(99)))
    assert str(error.value) == ('gradients are not finite in float16 at iteration 17: pass --precision bf16 or fp32')


@pytest.mark.parametrize('before', [False, True])
def test_compiling_does_not_change_within_a_run(in_tmp, before):
    with pytest.raises(ZeroDivisionError):
        train(options(save_interval=1, compile=before), at(2, fail))
    with pytest.raises(UserError, match=rf'\(compile: {before}, requested {not before}\)'):
        train(options(compile=not before))


def test_finished_run_says_so(in_tmp, capsys):
    train(options())
    before = outputs(in_tmp)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train(options(), fail)
    assert ended.value.code is None
    assert capsys.readouterr().out == f'{CHECKPOINT}: run already finished; pass --overwrite to start over\n'
    assert outputs(in_tmp) == before


@pytest.mark.parametrize('changes, inputs', [({'lr': 0.2}, {}), ({}, {'labels': '5678'}), ({'save_interval': 1}, {})])
def test_run_that_failed_in_its_first_step_does_not_refuse_other_options(in_tmp, changes, inputs):
    """It has neither progress nor a model."""
    with pytest.raises(ZeroDivisionError):
        train(options(), at(0, fail))
    assert read_torch(in_tmp / CHECKPOINT)['iteration'] == 0
    with pytest.raises(ZeroDivisionError):
        train(options(**changes), at(2, fail), **inputs)
    train(options(**changes), **inputs)
    expected = {**vars(options(**changes)), 'labels': '1234', **inputs}
    state = read_torch(in_tmp / CHECKPOINT)
    assert {name: expected[name] for name in ('lr', 'labels')} == {
        name: state['fingerprint'][name] for name in ('lr', 'labels')
    }
    assert state['iteration'] == 6


@pytest.mark.parametrize('stop', [2, 3, 6])
@pytest.mark.parametrize(
    'changes, inputs, line',
    [
        ({'lr': 0.2}, {}, 'lr: 0.1, requested 0.2'),
        ({'select': 'last'}, {}, 'select: best, requested last'),
        ({}, {'labels': '5678'}, 'labels: 1234, requested 5678'),
        ({'max_epoch': 3}, {}, 'max_epoch: 2, requested 3'),
        ({'label_smoothing': 0.1}, {}, 'label_smoothing: 0.0, requested 0.1'),
    ],
)
def test_run_with_progress_refuses_other_options(in_tmp, stop, changes, inputs, line):
    with pytest.raises(ZeroDivisionError):
        train(options(save_interval=1), at(stop, fail))
    before = outputs(in_tmp)
    with pytest.raises(UserError) as error:
        train(options(save_interval=1, **changes), **inputs)
    assert str(error.value).startswith(
        f'the run of {CHECKPOINT} exists with different settings ({line}): pass --overwrite to regenerate it, '
        'or another name'
    )
    assert outputs(in_tmp) == before
    train(options(save_interval=1, overwrite=True, **changes), **inputs)


def test_run_from_before_an_option_resumes_with_its_default(in_tmp):
    old = options(save_interval=1)
    del old.label_smoothing
    with pytest.raises(ZeroDivisionError):
        train(old, at(3, fail))
    with pytest.raises(UserError, match='label_smoothing: 0.0, requested 0.1'):
        train(options(label_smoothing=0.1))
    train(options())
    assert read_torch(in_tmp / CHECKPOINT)['iteration'] == 6


@pytest.mark.parametrize('mode', ['fix', 'normal'])
def test_run_remembers_what_batchnorm_saw_if_it_trains(in_tmp, mode):
    with start(options(micro_batches=2), mode) as run:
        assert run.files.fingerprint.get('norm_groups') == (2 if mode == 'normal' else None)
        run.save_interval = run.iteration = 1
        run.save()
    if mode == 'normal':
        with pytest.raises(UserError, match=r'parts of a batch that BatchNorm normalises .*: 2, requested 4\)'):
            start(options(micro_batches=4), mode).__enter__()
    with start(options(micro_batches=2 if mode == 'normal' else 4), mode) as run:
        assert run.iteration == 1


def test_models_of_a_first_epoch_refuse_other_options(in_tmp, monkeypatch):
    """Killed between its first model and the checkpoint after it."""
    save = BestAndLast.save

    def save_and_fail(self, *arguments, **meta):
        save(self, *arguments, **meta)
        fail()

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(BestAndLast, 'save', save_and_fail)
        train(options())
    state = read_torch(in_tmp / CHECKPOINT)
    assert (state['iteration'], state['unscored']) == (3, True)
    assert model_path('tag').is_file()
    with pytest.raises(UserError, match='lr: 0.1, requested 0.2'):
        train(options(lr=0.2))
    train(options())


@pytest.mark.parametrize('iteration, suffix', [(1, '.last'), (4, '')])
def test_a_model_of_another_run_is_refused_and_kept(in_tmp, iteration, suffix):
    """Whether or not the run has a model of its name yet: the next epoch would replace it."""
    train(options(tag='other', lr=0.2))
    with pytest.raises(ZeroDivisionError):
        train(options(save_interval=1), at(iteration, fail))
    other, path = model_path('other', suffix), model_path('tag')
    shutil.copy(other, path)
    with pytest.raises(UserError, match=f'^{path}: is not the model of this run: move it away'):
        train(options(save_interval=1))
    assert path.read_bytes() == other.read_bytes()


def test_models_without_a_checkpoint_are_refused(in_tmp):
    train(options())
    (in_tmp / CHECKPOINT).unlink()
    with pytest.raises(UserError) as error:
        train(options())
    line = f'--tag tag: experiments/models/tag.pth exists without {CHECKPOINT}: pass --overwrite to train again'
    assert str(error.value) == line
    train(options(overwrite=True))


def test_other_model_without_a_checkpoint_is_named(in_tmp):
    train(options())
    (in_tmp / CHECKPOINT).unlink()
    model_path('tag').unlink()
    with pytest.raises(UserError, match=r'^--tag tag: experiments/models/tag.last.pth exists without'):
        train(options())


@pytest.mark.parametrize('tag', ['tag.last', 'tag.best'])
def test_tag_that_looks_like_the_other_epoch_is_refused(in_tmp, tag):
    with pytest.raises(UserError, match=f'^--tag {tag}: .last and .best mark the other epoch'):
        train(options(tag=tag))
    assert list(in_tmp.rglob('*.pth')) == []


def test_run_of_more_gpus_resumes_on_fewer(in_tmp, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        train(options(save_interval=1), at(2, fail))
    state = read_torch(in_tmp / CHECKPOINT)
    torch.save({**state, 'random_cuda': [state['random']] * 4}, in_tmp / CHECKPOINT)
    restored = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', restored.extend)
    train(options(save_interval=1))
    assert len(restored) == 2


@pytest.mark.parametrize('damage', [b'', b'PK', 'cut', 'state', 'contents', 'fingerprint'])
def test_damaged_checkpoint_is_named(in_tmp, damage):
    train(options())
    path = in_tmp / CHECKPOINT
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    elif damage == 'cut':
        path.write_bytes(path.read_bytes()[:-200])
    else:
        state = read_torch(path)
        del state[damage]
        torch.save(state, path)
    before = outputs(in_tmp)
    with pytest.raises(UserError) as error:
        train(options())
    assert re.fullmatch(rf'{CHECKPOINT}: damaged \(\w+\): pass --overwrite to train again', str(error.value))
    assert outputs(in_tmp) == before


def test_overwrite_starts_over(in_tmp, monkeypatch):
    train(options(lr=0.2))
    first = set((in_tmp / 'experiments/tensorboards/tag').iterdir())
    train(options(overwrite=True))
    assert not first & set((in_tmp / 'experiments/tensorboards/tag').iterdir())
    found = outputs(in_tmp)
    (in_tmp / 'straight').mkdir()
    monkeypatch.chdir(in_tmp / 'straight')
    train(options())
    expected = outputs(in_tmp / 'straight')
    del found['experiments/data/tag.json'], expected['experiments/data/tag.json']  # they contain --overwrite
    assert found == expected
    lines = (in_tmp / 'experiments/logs/tag.txt').read_text().splitlines()
    assert len([line for line in lines if line.startswith('{')]) == 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('iteration, saved', [(0, 1), (1, 2), (2, 3), (3, 3), (4, 5), (5, 6), (6, 6)])
def test_signals_save_and_exit(in_tmp, number, iteration, saved):
    """At the end of the iteration, or at once while an epoch is scored, which is repeated with the same outputs."""
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        train(options(), at(iteration, lambda: os.kill(os.getpid(), number)))
    assert ended.value.code == f'stopped at iteration {saved} of 6; run the same command to resume'
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    state = read_torch(in_tmp / CHECKPOINT)
    assert (state['iteration'], state['unscored']) == (saved, saved % 3 == 0)
    signals.listen()  # as the next process
    train(options())
    found = outputs(in_tmp)
    (in_tmp / 'straight').mkdir()
    with working_in(in_tmp / 'straight'):
        train(options())
    assert found == outputs(in_tmp / 'straight')


def test_second_trainer_of_a_tag_is_refused(in_tmp):
    with pytest.raises(ZeroDivisionError):
        train(options(save_interval=1), at(2, fail))
    before = outputs(in_tmp)
    with held(in_tmp / 'experiments/checkpoints/.tag.lock', 'workers') as process:
        for overwrite in (False, True):
            with pytest.raises(UserError) as error:
                train(options(save_interval=1, overwrite=overwrite))
            assert re.fullmatch(refusal('the run tag', process), str(error.value))
        assert before.items() <= outputs(in_tmp).items()
        train(options(tag='other'))
        process.kill()
        process.wait()
        train(options(save_interval=1))
    assert read_torch(in_tmp / CHECKPOINT)['iteration'] == 6
    assert not list((in_tmp / 'experiments/checkpoints').glob('.*.json'))


def test_leftovers_of_a_killed_run_are_removed_and_those_of_others_stay(in_tmp):
    gone, stay = [], []
    for folder, name in (('models', '.pth'), ('models', '.last.pth'), ('checkpoints', '.pth'), ('data', '.json')):
        (in_tmp / 'experiments' / folder).mkdir(parents=True, exist_ok=True)
        for tag, paths in (('tag', gone), ('other', stay)):
            path = in_tmp / 'experiments' / folder / f'{tag}{name}'
            paths.append(path.with_name(f'.{temporary_stem(path)}.12.tmp'))
    for path in gone + stay:
        path.write_bytes(b'half')
    train(options())
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in stay)


@pytest.mark.parametrize('length', [236, 246])
def test_long_tags_work(in_tmp, length):
    tag = 't' * length
    train(options(tag=tag))
    assert set(os.listdir('experiments/models')) == {f'{tag}.pth', f'{tag}.last.pth'}


@pytest.mark.parametrize('tag', ['t' * 247, 't' * 300, 'ä' * 124])
def test_tag_that_is_too_long_is_refused_before_the_first_step(in_tmp, tag):
    line = rf'--tag: {tag[:40]}\.\.\. would have \d+ bytes, the limit is 255: shorten it'
    with pytest.raises(UserError, match=f'^{line}$'):
        train(options(tag=tag), at(0, fail))
    assert not (in_tmp / 'experiments').exists()


@pytest.mark.parametrize('iteration, saved', [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)])
def test_model_that_is_not_finite_is_never_saved(in_tmp, iteration, saved):
    """Though no line of the log has seen the loss yet."""

    def diverge(run):
        if run.iteration == iteration:
            with torch.no_grad():
                run.network.model.weight[0, 0] = math.nan

    with pytest.raises(UserError, match='non-finite'):
        train(options(save_interval=1, print_ratio=1.0), diverge)
    state = read_torch(in_tmp / CHECKPOINT)
    assert state['iteration'] == saved
    states = [state['state']['model']]
    states += [read_state_dict(path)[0] for path in in_tmp.glob('experiments/models/*.pth')]
    assert all(torch.isfinite(value).all() for content in states for value in content.values())
