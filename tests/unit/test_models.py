"""Model files of runs: written, the best and the last, opened and loaded for inference."""

import json
import math
import os
from argparse import Namespace

import pytest
import torch
from torch import nn

from core import UserError
from core.data.pixels import Reading
from core.models import SEGMENTERS, AffinityNet, Classifier, build_segmenter
from core.models.weights import read_state_dict, read_torch
from util.store.formats import model_path
from util.store.hashes import file_hash
from util.training import models as run_models
from util.training.models import (
    BestAndLast,
    check_finite,
    load_for_inference,
    load_network,
    open_model,
    save_model,
    save_torch,
)

NARROW = 'resnest14_narrow'
META = {'network': 'Classifier', 'backbone': NARROW, 'classes': ('bus', 'cow')}
ENTRIES = {'classes': ('bus', 'cow')}
ABOUT = {'has_background': True, 'class_entries': ENTRIES, 'reading': Reading()}
DATASET = Namespace(class_names=ENTRIES['classes'], num_classes=2, **ABOUT)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


# Writing ------------------------------------------------------------------------------------------------------------


def test_model_files_are_state_dicts_with_metadata(in_tmp):
    path = model_path('a')
    meta = {**META, 'epoch': 3, 'score': 0.5}
    save_model(net(), path, **meta)
    content = torch.load(path, map_location='cpu', weights_only=True)
    assert list(content) == ['model', 'meta']
    assert content['meta'] == meta
    assert list(content['model']) == ['weight', 'bias']
    assert all(isinstance(value, torch.Tensor) for value in content['model'].values())
    assert read_state_dict(path)[1] == meta
    other = net(1)
    open_model('a', '--tag', ['Classifier']).load(other)
    assert torch.equal(other.weight, net().weight)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_models_that_are_not_finite_are_not_saved(in_tmp, value):
    model = nn.Sequential(net(), nn.BatchNorm1d(2))
    model[1].running_var[1] = value
    with pytest.raises(UserError, match='^1.running_var became non-finite; nothing was saved. Try a smaller --lr'):
        save_model(model, model_path('a'))
    assert not list(in_tmp.iterdir())
    check_finite(net())


def test_saving_is_atomic(in_tmp, monkeypatch):
    path = in_tmp / 'a.pth'
    save_torch({'step': 1}, path)

    def fail(*args):
        raise OSError('disk full')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='disk full'):
        patch.setattr('os.replace', fail)
        save_torch({'step': 2}, path)
    assert read_torch(path) == {'step': 1}
    assert [file.name for file in in_tmp.iterdir()] == ['a.pth']


@pytest.mark.parametrize('rank', [0, 1])
def test_only_the_first_process_writes(in_tmp, monkeypatch, rank):
    for name, value in {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': 2}.items():
        monkeypatch.setenv(name, str(value))
    save_model(net(), model_path('a'), **META)
    assert model_path('a').is_file() == (rank == 0)


# Best and last ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('select', ['best', 'last'])
def test_best_and_last_model_are_kept(in_tmp, select):
    models = BestAndLast('tag', select)
    scores = ((1, 0.2), (2, 0.5), (3, 0.5), (4, 0.1))
    assert [models.save(net(epoch), epoch, score, **META) for epoch, score in scores] == [True, True, False, False]
    folder = in_tmp / 'experiments' / 'models'
    other = 'last' if select == 'best' else 'best'
    assert {path.name for path in folder.iterdir()} == {'tag.pth', f'tag.{other}.pth'}
    tags = {select: 'tag', other: f'tag.{other}'}
    for which, epoch, score in (('best', 2, 0.5), ('last', 4, 0.1)):
        model = net(9)
        open_model(tags[which], '--tag', ['Classifier']).load(model)
        assert torch.equal(model.weight, net(epoch).weight)
        meta = read_state_dict(models.path(which))[1]
        assert meta == {**META, 'select': which, 'epoch': epoch, 'score': score}
    epochs = {'best': 2, 'last': 4}
    assert models.summary() == (
        f'experiments/models/tag.pth: {select} epoch {epochs[select]} (--select {select}); '
        f'experiments/models/tag.{other}.pth: {other} epoch {epochs[other]}'
    )


def test_first_model_without_a_score_is_kept(in_tmp):
    models = BestAndLast('tag', 'best')
    assert models.save(net(1), 1, math.nan)
    assert models.path('best').is_file()
    models.save(net(2), 2, 0.3)
    assert read_state_dict(models.path('best'))[1]['epoch'] == 2, 'any score is better than none'


def test_without_scores_only_the_last_model_is_kept(in_tmp):
    models = BestAndLast('tag', 'last')
    assert [models.save(net(epoch), epoch, None, **META) for epoch in (1, 2)] == [False, False]
    assert os.listdir('experiments/models') == ['tag.pth']
    assert read_state_dict(models.path('last'))[1] == {**META, 'epoch': 2}
    assert models.summary() == 'experiments/models/tag.pth: last epoch 2'


def test_best_score_resumes(in_tmp):
    models, resumed = BestAndLast('tag', 'best'), BestAndLast('tag', 'best')
    models.save(net(1), 1, 0.5)
    resumed.load_state_dict(json.loads(json.dumps(models.state_dict())))
    assert not resumed.save(net(2), 2, 0.4)
    assert resumed.save(net(3), 3, 0.6)


# Inference -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'networks, trainer',
    [
        (['Classifier'], 'train_classification_with_puzzle.py'),
        (['AffinityNet'], 'train_affinitynet.py'),
        (SEGMENTERS, 'train_segmentation.py'),
    ],
)
def test_missing_model_names_flag_and_script(in_tmp, networks, trainer):
    with pytest.raises(UserError, match=f'^--tag: .*a.pth not found; run {trainer} first$'):
        open_model('a', '--tag', networks)


def test_load_for_inference(in_tmp):
    """In evaluation mode, with BatchNorm folded, on the device of --device, in --precision."""
    network, images = Classifier(NARROW, 2), torch.randn(2, 3, 32, 32)
    save_model(network, model_path('a'), **META)
    with torch.no_grad():
        expected = network.eval()(images)
    file = open_model('a', '--tag', ['Classifier'])
    for precision in ('fp32', 'bf16'):
        model, device = load_for_inference(file, file.meta, 'cpu', precision)
        assert device == torch.device('cpu')
        assert model.half == (torch.bfloat16 if precision == 'bf16' else None)
        assert not model.training
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        if precision == 'fp32':
            with torch.no_grad():
                torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match='--device nonsense'):
        load_for_inference(file, file.meta, 'nonsense')


@pytest.mark.parametrize('kind', ['cpu', 'cuda'])
def test_inference_on_a_gpu_does_without_cudnn(in_tmp, monkeypatch, kind):
    """cuDNN would plan every convolution again for each size of image."""
    monkeypatch.setattr(run_models, 'pick_device', lambda name: torch.device(kind))
    monkeypatch.setattr(run_models, 'to_device', lambda network, *_: network)
    monkeypatch.setattr(torch.backends.cudnn, 'enabled', True)
    save_model(Classifier(NARROW, 2), model_path('a'), **META)
    file = open_model('a', '--tag', ['Classifier'])
    load_for_inference(file, file.meta, 'auto')
    assert torch.backends.cudnn.enabled == (kind == 'cpu')


@pytest.mark.parametrize(
    'network, networks, meta, given',
    [
        (Classifier(NARROW, 2), ['Classifier'], META, {'architecture': None}),
        (AffinityNet(NARROW), ['AffinityNet'], {}, {'architecture': NARROW}),
        (
            build_segmenter('DeepLabv3+', NARROW, 3, 'fix', False),
            SEGMENTERS,
            {},
            {'architecture': 'DeepLabv3+', 'backbone': NARROW, 'mode': None, 'use_gn': False},
        ),
    ],
    ids=['Classifier', 'AffinityNet', 'DeepLabv3+'],
)
def test_networks_are_loaded_by_their_tag(in_tmp, network, networks, meta, given):
    """From the metadata of their file, or from flags; with the hash of the file."""
    save_model(network, model_path('a'), **meta)
    loaded, device, fingerprint = load_network(DATASET, networks, '--tag', 'a', device='cpu', **given)
    assert type(loaded) is type(network)
    assert (device, fingerprint) == (torch.device('cpu'), file_hash(model_path('a')))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), network.eval()(images), rtol=1e-4, atol=1e-4)


def test_flags_that_contradict_the_file_of_a_tag_are_refused(in_tmp):
    save_model(Classifier(NARROW, 2), model_path('a'), **META)
    with pytest.raises(UserError, match=f'^--architecture resnet50: .*a.pth was trained with {NARROW}$'):
        load_network(DATASET, ['Classifier'], '--tag', 'a', device='cpu', architecture='resnet50')
