"""The plumbing: folder names, parameter groups and their schedule, model files, devices, flags' types, logs."""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fault_of, subprocess_environment
from core.networks import AffinityNet, Classifier
from tools.checkpoint import ModelKeeper, load_model, read_note, save_model, unwrap
from tools.log import Averages, RunLog
from tools.optim import parameter_groups, sgd_poly
from torch import nn

from tools import UserError, device, experiment, flags, stage

NARROW = 'resnest14_narrow'


# Folders ------------------------------------------------------------------------------------------------------------


def test_folder_names():
    scales = '0.5,1.0,1.5,2.0'
    for domain, split in (('train_aug', 'train'), ('train', 'train'), ('val', 'val'), ('test', 'test')):
        assert experiment.cam_name('T@x', domain, scales) == f'T@x@{split}@scale=0.5,1.0,1.5,2.0'
        assert experiment.random_walk_name('M', domain, 10, 8) == f'M@{split}@beta=10@exp_times=8@rw'
    assert experiment.random_walk_name('M', 'val', 10.0, 8) == 'M@val@beta=10@exp_times=8@rw'
    assert experiment.affinity_label_name('C', 0.4, 0.1) == 'C@aff_fg=0.40_bg=0.10'
    assert experiment.pseudo_label_name('R', 1) == 'R@crf=1'
    assert experiment.segmentation_name('D', 'val', scales, 10) == f'D@val@scale={scales}@iteration=10'


def test_folders_say_how_they_were_made(in_tmp):
    given = argparse.Namespace(tag='x', alpha=4.0, overwrite=False, repair=False, num_workers=3)
    folder, todo = experiment.output_folder('name', given, ['a', 'b'], '.png', Path.read_bytes, model='1234')
    assert folder.is_dir()
    assert todo == ['a', 'b']
    options = experiment.experiment_options(folder)
    assert options['options'] == vars(given)
    assert options['identity'] == {'tag': 'x', 'alpha': 4.0, 'model': '1234'}
    assert options['versions']['torch'] == torch.__version__.split('+')[0] or options['versions']['torch']
    assert experiment.experiment_options(in_tmp) == {}
    assert experiment.input_folder('name', '--flag', 'script.py') == folder


@pytest.mark.parametrize(
    'name, script',
    [
        ('T@train@scale=0.5,1.0', 'inference_classification.py'),
        ('T@train@scale=0.5,1.0@aff_fg=0.40_bg=0.10', 'make_affinity_labels.py'),
        ('M@train@beta=10@exp_times=8@rw', 'inference_rw.py'),
        ('M@train@beta=10@exp_times=8@rw@crf=1', 'make_pseudo_labels.py'),
        ('D@val@scale=1.0@iteration=10', 'inference_segmentation.py'),
    ],
)
def test_a_folder_name_tells_its_script(name, script):
    assert experiment.maker_of(name) == script


def test_missing_inputs_name_flag_file_and_script(in_tmp):
    with pytest.raises(UserError, match=r'--flag name: .*name is not there; script.py makes it'):
        experiment.input_folder('name', '--flag', 'script.py')
    (in_tmp / 'a.npz').touch()
    experiment.check_inputs(in_tmp, ['a'], '.npz', 'script.py')
    with pytest.raises(UserError, match=r'b.npz is not there \(1 of 2 are missing\); script.py'):
        experiment.check_inputs(in_tmp, ['a', 'b'], '.npz', 'script.py')


# Optimiser ----------------------------------------------------------------------------------------------------------


def test_parameter_groups():
    model = Classifier(NARROW, 5)
    model.extra = nn.Linear(2, 3)
    groups = {group['name']: group for group in parameter_groups(model, 0.1, 1e-4)}
    assert {name: (group['lr'], group['weight_decay']) for name, group in groups.items()} == {
        'backbone.weight': (pytest.approx(0.1), 1e-4),
        'backbone.bias': (pytest.approx(0.2), 0),
        'new.weight': (pytest.approx(1.0), 1e-4),
        'new.bias': (pytest.approx(2.0), 0),
    }
    members = {name: {id(p) for p in group['params']} for name, group in groups.items()}
    assert members['new.weight'] == {id(model.classifier.weight), id(model.extra.weight)}
    assert members['new.bias'] == {id(model.extra.bias)}
    for module in model.backbone.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            assert id(module.weight) in members['backbone.weight']
            assert module.bias is None or id(module.bias) in members['backbone.bias']
    assert sum(map(len, members.values())) == len(list(model.parameters()))


def test_frozen_parameters_are_in_no_group():
    model = Classifier(NARROW, 5, 'fix')
    held = {id(p) for group in parameter_groups(model, 0.1, 1e-4) for p in group['params']}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert [group['name'] for group in parameter_groups(AffinityNet(NARROW), 0.1, 1e-4)] == ['new.weight', 'new.bias']


def test_poly_schedule_of_all_groups():
    model = Classifier(NARROW, 5)
    model.extra = nn.Linear(2, 3)
    optimizer, schedule = sgd_poly(parameter_groups(model, 0.1, 1e-4), 0.1, 1e-4, 1e-4, True, 20)
    for t in range(20):
        expected = [factor * 0.1 * (1 - t / 20) ** 0.9 for factor in (1, 2, 10, 20)]
        assert [group['lr'] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        schedule.step()
    assert all(group['lr'] == 0 for group in optimizer.param_groups)
    assert all(group['momentum'] == 1e-4 and group['nesterov'] for group in optimizer.param_groups)


def test_a_step_is_nesterovs():
    parameter = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer, schedule = sgd_poly([parameter], 0.1, 0.01, 0.5, True, 4)
    value, velocity = 2.0, 0.0
    for t in range(4):
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()
        schedule.step()
        gradient = 2 * value + 0.01 * value
        velocity = gradient if t == 0 else 0.5 * velocity + gradient
        value -= 0.1 * (1 - t / 4) ** 0.9 * (gradient + 0.5 * velocity)
        assert parameter.item() == pytest.approx(value, rel=1e-12)


# Model files --------------------------------------------------------------------------------------------------------


def net(seed: int = 0, outputs: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, outputs)


def load(model, path):
    return load_model(model, path, '--tag', 'train.py', NARROW)


@pytest.mark.parametrize('wrap', [False, True])
def test_model_files_are_plain_state_dicts_with_a_note(tmp_path, wrap):
    model = nn.DataParallel(net()) if wrap else net()
    assert unwrap(model) is (model.module if wrap else model)
    save_model(model, tmp_path / 'a.pth', architecture=NARROW, epoch=3, score=0.5)
    state = torch.load(tmp_path / 'a.pth', map_location='cpu', weights_only=True)
    assert list(state) == ['weight', 'bias']
    assert read_note(state) == {'architecture': NARROW, 'epoch': 3, 'score': 0.5}
    other = net(1)
    assert load(other, tmp_path / 'a.pth') == read_note(state)
    assert torch.equal(other.weight, net().weight)


def test_plain_state_dicts_load_too(tmp_path):
    torch.save(dict(net().state_dict()), tmp_path / 'a.pth')
    other = net(1)
    assert load(other, tmp_path / 'a.pth') == {}
    assert torch.equal(other.weight, net().weight)


def test_a_missing_model_names_flag_and_script(tmp_path):
    with pytest.raises(UserError, match='--tag: .*a.pth is not there; train.py makes it'):
        load(net(), tmp_path / 'a.pth')


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04', bytes(50), 'list', 'trap', 'names'])
def test_damaged_models_are_refused(tmp_path, content):
    path = tmp_path / 'a.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(
            {'list': [1], 'trap': {'weight': Trap(tmp_path / 'sprung')}, 'names': {'weight': 'x'}}[content], path
        )
    with pytest.raises(UserError, match='a.pth') as fault:
        load(net(), path)
    assert '\n' not in str(fault.value)
    assert not (tmp_path / 'sprung').exists()


def test_models_of_another_kind_are_refused(tmp_path):
    save_model(net(), tmp_path / 'a.pth', architecture='resnet50')
    with pytest.raises(UserError, match=f'a.pth: .*resnet50.*{NARROW}'):
        load(net(), tmp_path / 'a.pth')
    for outputs in (3, None):
        save_model(net(outputs=outputs) if outputs else nn.Bilinear(2, 2, 2), tmp_path / 'b.pth')
        with pytest.raises(UserError, match=f'b.pth: does not fit {NARROW}') as fault:
            load(net(), tmp_path / 'b.pth')
        assert '\n' not in str(fault.value)


@pytest.mark.parametrize('select', ['best', 'last'])
def test_keeper_keeps_best_and_last(in_tmp, select):
    keeper = ModelKeeper('tag', select, NARROW)
    told = [keeper.keep(net(epoch), epoch, score) for epoch, score in ((1, 0.2), (2, 0.5), (3, 0.5), (4, 0.1))]
    assert told == [True, True, False, False]
    models = in_tmp / 'experiments' / 'models'
    other = 'last' if select == 'best' else 'best'
    assert {path.name for path in models.iterdir()} == {'tag.pth', f'tag.{other}.pth'}
    files = {select: models / 'tag.pth', other: models / f'tag.{other}.pth'}
    for which, epoch, score in (('best', 2, 0.5), ('last', 4, 0.1)):
        model = net(9)
        note = load(model, files[which])
        assert note == {'architecture': NARROW, 'select': which, 'epoch': epoch, 'score': score}
        assert torch.equal(model.weight, net(epoch).weight)
    assert f'--select {select}' in keeper.summary()
    assert f'{select} epoch {2 if select == "best" else 4}' in keeper.summary()


def test_keeper_keeps_a_first_model_without_a_score(in_tmp):
    keeper = ModelKeeper('tag', 'best', NARROW)
    assert keeper.keep(net(1), 1, math.nan)
    assert keeper.path('best').is_file()
    keeper.keep(net(2), 2, 0.3)
    assert load(net(), keeper.path('best'))['epoch'] == 2, 'any score is better than none'


# Devices and order --------------------------------------------------------------------------------------------------


def test_devices():
    assert device.pick_device('cpu') == torch.device('cpu')
    assert device.pick_device('auto').type in ('cpu', 'cuda')
    for name in ('nonsense', 'cuda:99', 'cpu:x', '', 'meta', 'meta:-3'):
        with pytest.raises(UserError, match='--device') as fault:
            device.pick_device(name)
        assert '\n' not in str(fault.value)


@pytest.mark.parametrize(
    'visible, replicas, devices', [(1, 4, 1), (2, 4, 2), (3, 4, 2), (4, 4, 4), (8, 4, 4), (2, 3, 1)]
)
def test_replicas_are_shared_among_gpus(monkeypatch, visible, replicas, devices):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: visible)
    assert device.devices_for(replicas, torch.device('cuda')) == devices
    assert device.devices_for(replicas, torch.device('cuda:0')) == 1
    assert device.devices_for(replicas, torch.device('cpu')) == 1


def test_models_keep_their_answers_on_their_device():
    model = Classifier(NARROW, 5).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        placed = device.parallel(model, torch.device('cpu'), 1)
        torch.testing.assert_close(placed(images), expected, rtol=1e-4, atol=1e-4)
    assert placed is model


def test_precision_is_that_of_the_flag():
    cpu, allowed = torch.device('cpu'), {}
    for precision in ('tf32', 'bf16', 'fp32'):
        model = device.place(Classifier(NARROW, 5), cpu, precision)
        allowed[precision] = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, model.bf16
    assert allowed == {'tf32': (True, True, False), 'bf16': (False, False, True), 'fp32': (False, False, False)}


def test_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        sampler = device.EpochSampler(50, seed)
        sampler.epoch = epoch
        keys = list(sampler)
        assert {e for e, _ in keys} == {epoch}
        assert sorted(p for _, p in keys) == list(range(50))
        return keys

    assert order(1, 2) == order(1, 2)
    assert [p for _, p in order(1, 2)] != [p for _, p in order(1, 3)]
    assert [p for _, p in order(1, 2)] != [p for _, p in order(2, 2)]


def test_loaders():
    cpu = torch.device('cpu')
    loader = device.training_loader(list(range(10)), 3, 0, 0, cpu)
    assert (len(loader), loader.drop_last) == (3, True)
    assert [x.tolist() for x in device.ordered_loader(list(range(5)), 2, 0, cpu)] == [[0, 1], [2, 3], [4]]
    assert device.ordered_loader(list(range(5)), 2, 1, cpu).multiprocessing_context.get_start_method() == 'fork'
    assert list(device.ordered_loader(['a', ('b',)], None, 0, cpu)) == ['a', ('b',)]
    with pytest.raises(UserError, match='--batch_size 11.*10 images'):
        device.training_loader(list(range(10)), 11, 0, 0, cpu)


MEMORY = """
import resource
from pathlib import Path
import torch
from core.networks import Classifier
from tools.device import ordered_loader, pick_device

model, images = Classifier('resnest14_narrow', 3), torch.rand(4, 3, 256, 256)

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        model(images).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() // 2**20

faults(2)
left_alone = faults(3)
pick_device('cpu')
faults(2)
kept = faults(3)
before_fork = resident()
next(iter(ordered_loader(['sample'], None, 1, torch.device('cpu'))))
print(left_alone, kept, before_fork, resident())
"""


@pytest.mark.skipif(device._glibc() is None, reason='only glibc is told to keep memory')
def test_a_cpu_keeps_the_memory_of_layers_but_forks_without_it():
    command = [sys.executable, '-c', MEMORY]
    run = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True, check=True)
    left_alone, kept, before_fork, after_fork = map(int, run.stdout.split())
    assert kept < left_alone / 4, 'page faults of three training steps'
    assert after_fork < before_fork - 50, 'resident MB'


def test_seeds():
    def drawn(seed):
        device.seed_all(seed)
        return [float(torch.rand(())), float(np.random.rand())]

    assert drawn(1) == drawn(1)
    assert all(a != b for a, b in zip(drawn(1), drawn(2), strict=True))


# Flags --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kind, good, bad',
    [
        (flags.boolean, {'True': True, 'false': False, '1': True, '0': False}, ['', 'maybe', '2']),
        (flags.integer(1), {'1': 1, '32': 32}, ['0', '-1', '1.5', 'x', '', 'nan']),
        (flags.integer(0, 16), {'0': 0, '16': 16}, ['17', '-1']),
        (flags.real(0), {'0': 0, '1e-4': 1e-4, '5': 5}, ['-0.1', 'nan', 'inf', 'x', '']),
        (flags.real(0, 1), {'0.40': 0.4, '1': 1}, ['1.01', '-1', 'nan']),
        (flags.scales, {'0.5,1.0': '0.5,1.0', '1': '1'}, ['', '0', '-1', '0.5,', 'a', 'nan', 'inf', '0.5;1', '1e9']),
        (flags.folder_name, {'A@b=0.5,1.0+': 'A@b=0.5,1.0+'}, ['', 'a/b', '..', '.x', 'a\\b', '/']),
    ],
)
def test_types_of_flags(kind, good, bad):
    for text, value in good.items():
        assert kind(text) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


def test_scales_are_kept_as_typed_and_read_as_numbers():
    assert flags.floats(flags.scales('0.50,1,2.0')) == [0.5, 1, 2]
    assert flags.scales('0.50,1,2.0') == '0.50,1,2.0'


def test_parsers_take_no_abbreviations():
    parser = flags.parser_of('text')
    parser.add_argument('--threshold')
    with pytest.raises(SystemExit):
        parser.parse_args(['--thresh', '1'])


# Stages and logs ----------------------------------------------------------------------------------------------------


def raiser(error):
    def main(args):
        raise error

    return argparse.Namespace(main=main, parse_args=lambda line: argparse.Namespace())


def test_faults_of_the_user_are_one_line(capsys):
    from core import InputError

    assert fault_of(raiser(UserError('--flag x: wrong')), [], capsys).endswith('error: --flag x: wrong')
    assert fault_of(raiser(OSError(28, 'No space left', 'f')), [], capsys).endswith("No space left: 'f'")
    # As it arrives from a worker of a data loader.
    text = (
        'Caught InputError in DataLoader worker process 0.\nOriginal Traceback:\ncore.InputError: a.jpg: not readable'
    )
    assert fault_of(raiser(InputError(text)), [], capsys).endswith('error: a.jpg: not readable')


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        stage.run(raiser(ZeroDivisionError()).main, None)


def test_progress_without_a_terminal_is_ten_lines(capsys):
    assert list(stage.progress(range(100), 'walking')) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith('walking: 100/100')
    assert list(stage.progress(iter('abc'), 'x', 3)) == ['a', 'b', 'c']
    assert list(stage.progress([], 'x')) == []


def half_of_even(text):
    if int(text) % 2:
        raise UserError(f'{text} is odd')
    return int(text) // 2


@pytest.mark.parametrize('num_workers', [0, 2])
def test_each_keeps_the_order_and_hands_on_faults(num_workers):
    assert list(stage.each(half_of_even, ['0', '4', '2', '8'], num_workers, 'x')) == [0, 2, 1, 4]
    with pytest.raises(UserError, match='5 is odd'):
        list(stage.each(half_of_even, ['0', '2', '5', '4'], num_workers, 'x'))


def write_half(path, text):
    path.write_text(str(half_of_even(text)))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('processes', [False, True])
def test_work_behind_is_done_on_leaving_and_hands_on_faults(tmp_path, workers, processes):
    with stage.Behind(workers, processes) as behind:
        for i in range(20):
            behind.submit(write_half, tmp_path / str(i), str(2 * i))
    assert [(tmp_path / str(i)).read_text() for i in range(20)] == [str(i) for i in range(20)]
    with pytest.raises(UserError, match='7 is odd'), stage.Behind(workers, processes) as behind:
        behind.submit(write_half, tmp_path / 'odd', '7')


ORPHANS = r"""
import os, time
from tools import stage

def work(i):
    os.write(1, b'%d\n' % os.getpid())
    time.sleep(600)

list(stage.each(work, ['0', '1'], 2, 'x'))
"""


def test_workers_end_with_a_parent_that_was_killed():
    program = subprocess.Popen([sys.executable, '-c', ORPHANS], stdout=subprocess.PIPE, env=subprocess_environment())
    for _ in range(2):
        assert int(program.stdout.readline()) != program.pid
    program.kill()
    # The workers hold the pipe: it ends when the last of them has.
    assert program.stdout.read() == b''


def test_averages():
    averages = Averages()
    averages.add({'loss': torch.tensor(1.0), 're': torch.tensor(4.0)})
    averages.add({'loss': torch.tensor(2.0), 're': torch.tensor(0.0)})
    assert averages.take() == {'loss': 1.5, 're': 2.0}
    averages.add({'loss': torch.tensor(7.0)})
    assert averages.take() == {'loss': 7.0}


RUN = argparse.Namespace(tag='tag', print_ratio=0.5, max_epoch=2)


def test_a_loss_that_is_not_finite_ends_the_run(in_tmp):
    with RunLog(RUN, 10) as log, pytest.raises(UserError, match='iteration 5.*--lr'):
        log.training(5, 0.05, {'loss': torch.tensor(math.nan)})


def test_log(in_tmp):
    with RunLog(RUN, 10) as log:
        log.training(4, 0.06, {'loss': torch.tensor(1.0)}, alpha=1.0)
        log.training(5, 0.05, {'loss': torch.tensor(1.5)}, alpha=2.0)
        log.scored(10, 1, 'mIoU of val', 0.5, True)
        log.picture(10, 'CAMs', np.zeros((4, 5, 3), np.uint8))
    lines = (in_tmp / 'experiments/logs/tag.txt').read_text().splitlines()
    assert json.loads(lines[0])['options'] == vars(RUN)
    assert lines[1].startswith('iteration 5/20, lr 0.05000, loss 1.2500, alpha 2.0000, ')
    assert 'mIoU of val 50.00 %' in lines[2]
    curves = json.loads((in_tmp / 'experiments/data/tag.json').read_text())['curves']
    assert curves == {'lr': [[5, 0.05]], 'loss': [[5, 1.25]], 'alpha': [[5, 2.0]], 'mIoU': [[10, 50.0]]}
