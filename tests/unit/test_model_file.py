"""Model files: weights and metadata read back, completed by flags, or refused in one line."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from core import UserError
from core.models import SEGMENTERS, AffinityNet, Classifier, build_network, build_segmenter
from core.models.model_file import ModelFile
from util.store.formats import model_path
from util.training.models import save_model, save_torch

NARROW = 'resnest14_narrow'
CLASSES = ('bus', 'cow')
ABOUT = {'name': 'drawn', 'class_names': CLASSES, 'num_classes': 2}
DATASET = Namespace(**ABOUT, has_background=True, class_entries={'classes': CLASSES})
COVERED = Namespace(**ABOUT, has_background=False, class_entries={'classes': CLASSES, 'background': False})
FLAGS = dict.fromkeys(('architecture', 'backbone', 'mode', 'use_gn'))  # of stage 8, none of them passed


def net(seed: int = 0, outputs: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, outputs)


def opened() -> ModelFile:
    return ModelFile(model_path('a'))


# Weights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('form', ['plain', 'module.', 'state_dict', 'model'])
def test_other_forms_of_state_dicts_load_too(in_tmp, form):
    state = dict(net().state_dict())
    if form == 'module.':
        state = {f'module.{name}': value for name, value in state.items()}
    elif form != 'plain':
        state = {form: state, 'epoch': 3}
    model_path('a').parent.mkdir(parents=True)
    torch.save(state, model_path('a'))
    other = net(1)
    file = opened()
    file.load(other)
    assert torch.equal(other.weight, net().weight)
    assert file.meta == {}


def test_missing_file_is_named(in_tmp):
    with pytest.raises(UserError, match=r'a.pth: cannot be read \(No such file or directory\)'):
        opened()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize(
    'content', [b'', b'text', b'PK\x03\x04', bytes(50), 'list', 'trap', 'names', 'empty', 'meta', 'no names']
)
def test_damaged_models_are_refused(in_tmp, content):
    path = model_path('a')
    path.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        contents = {
            'list': [1],
            'trap': {'weight': Trap(in_tmp / 'sprung')},
            'names': {'weight': 'x'},
            'empty': {},
            'meta': {'model': dict(net().state_dict()), 'meta': 3},
            'no names': {1: torch.ones(1)},
        }
        torch.save(contents[content], path)
    with pytest.raises(UserError, match='a.pth') as error:
        opened()
    assert '\n' not in str(error.value)
    assert not (in_tmp / 'sprung').exists()


def test_flipped_bytes_of_tensors_are_refused(in_tmp):
    save_model(net(), model_path('a'), backbone=NARROW)
    content = bytearray(model_path('a').read_bytes())
    at = content.index(net().weight.detach().numpy().tobytes())
    content[at] ^= 0xFF
    model_path('a').write_bytes(content)
    with pytest.raises(UserError, match='a.pth: damaged'):
        opened()


def test_weights_that_do_not_fit_are_refused(in_tmp):
    for model in (net(outputs=3), nn.Bilinear(2, 2, 2)):
        save_model(model, model_path('a'))
        with pytest.raises(UserError, match=r'a.pth \(a state dict under "model"\): does not fit Linear: ') as error:
            opened().load(net())
        assert '\n' not in str(error.value)


# Metadata -----------------------------------------------------------------------------------------------------------


def stored(**meta) -> ModelFile:
    """Write a model file with metadata and open it."""
    save_torch({'model': dict(net().state_dict()), 'meta': meta}, model_path('a'))
    return opened()


def test_metadata_keep_their_types(in_tmp):
    """Reading does not unpickle."""
    meta = {'image_size': 64, 'score': 0.5, 'classes': CLASSES, 'palette': [[0, 1, 2], [3, 4, 5], [6, 7, 8]]}
    assert stored(**meta).meta == meta


@pytest.mark.parametrize(
    'meta, network',
    [
        ({'network': 'Classifier', 'mode': 'normal'}, Classifier(NARROW, 2, 'normal')),
        ({'network': 'AffinityNet', 'mode': 'fix'}, AffinityNet(NARROW)),
        ({'network': 'Seg_Model', 'mode': 'normal'}, build_segmenter('Seg_Model', NARROW, 3, 'normal', True)),
        ({'network': 'DeepLabv3+', 'use_gn': True}, build_segmenter('DeepLabv3+', NARROW, 3, 'fix', True)),
        ({'network': 'DeepLabv3+', 'use_gn': False}, build_segmenter('DeepLabv3+', NARROW, 3, 'fix', False)),
    ],
    ids=lambda value: ' '.join(map(str, value.values())) if isinstance(value, dict) else '',
)
def test_networks_are_built_from_their_metadata(meta, network):
    built = build_network({'backbone': NARROW, 'classes': CLASSES, **meta})
    assert (type(built), built.mode) == (type(network), network.mode)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (built, network)]
    assert shapes[0] == shapes[1]


def test_unknown_networks_are_refused():
    for meta, line in (
        ({'network': 'UNet', 'backbone': NARROW}, "network 'UNet' is not one of Classifier, AffinityNet, DeepLabv3+"),
        ({'network': 'Classifier', 'backbone': 'vgg16'}, "backbone 'vgg16' is not one of resnet50"),
    ):
        with pytest.raises(UserError, match=line):
            build_network({'classes': CLASSES, **meta})


def test_flags_are_completed_from_the_file(in_tmp):
    file = stored(network='Classifier', backbone=NARROW, classes=CLASSES, mode='fix')
    for given in (None, NARROW):
        assert file.resolve(DATASET, ['Classifier'], architecture=given) == file.meta
    for recorded, expected in (
        ({'network': 'DeepLabv3+', 'use_gn': False, 'mode': 'normal'}, {'use_gn': False, 'mode': 'normal'}),
        ({'network': 'DeepLabv3+', 'use_gn': True}, {'use_gn': True, 'mode': 'fix'}),
        ({'network': 'Seg_Model', 'mode': 'fix'}, {'use_gn': True, 'mode': 'fix'}),
    ):
        recorded = {**recorded, 'backbone': NARROW, 'classes': CLASSES}
        assert stored(**recorded).resolve(DATASET, SEGMENTERS, **FLAGS) == {**recorded, **expected}


@pytest.mark.parametrize(
    'given, line',
    [
        ({'architecture': 'Seg_Model'}, '--architecture Seg_Model: {path} was trained with DeepLabv3+'),
        ({'backbone': 'resnet50'}, f'--backbone resnet50: {{path}} was trained with {NARROW}'),
        ({'mode': 'normal'}, '--mode normal: {path} was trained with fix'),
        ({'use_gn': False}, '--use_gn False: {path} was trained with --use_gn True'),
    ],
)
def test_flags_that_contradict_the_file(in_tmp, given, line):
    file = stored(network='DeepLabv3+', backbone=NARROW, classes=CLASSES, mode='fix', use_gn=True)
    with pytest.raises(UserError) as error:
        file.resolve(DATASET, SEGMENTERS, **{**FLAGS, **given})
    assert str(error.value) == line.format(path=model_path('a'))


def test_bare_state_dicts_need_the_flags(in_tmp):
    file, bare = stored(), f'{model_path("a")}: is a state dict under "model" without metadata: pass '
    for networks, given, line in (
        (['Classifier'], {'architecture': None}, '--architecture'),
        (SEGMENTERS, FLAGS, '--architecture and --backbone'),
        (SEGMENTERS, {**FLAGS, 'architecture': 'Seg_Model'}, '--backbone'),
    ):
        with pytest.raises(UserError) as error:
            file.resolve(DATASET, networks, **given)
        assert str(error.value) == bare + line
    meta = file.resolve(DATASET, ['AffinityNet'], architecture=NARROW)
    assert meta == {'network': 'AffinityNet', 'backbone': NARROW, 'classes': CLASSES}
    given = {'architecture': 'DeepLabv3+', 'backbone': NARROW, 'use_gn': False, 'mode': None}
    meta = file.resolve(DATASET, SEGMENTERS, **given)
    assert meta == {'network': 'DeepLabv3+', 'backbone': NARROW, 'use_gn': False, 'mode': 'fix', 'classes': CLASSES}


def test_networks_without_a_background_have_an_output_less(in_tmp):
    about = {'network': 'Seg_Model', 'backbone': NARROW, 'mode': 'fix', 'use_gn': True}
    meta = stored(**about, classes=CLASSES, background=False).resolve(COVERED, SEGMENTERS, **FLAGS)
    assert build_network(meta).classifier.out_channels == 2
    given = {'architecture': 'Seg_Model', 'backbone': NARROW, 'mode': 'fix', 'use_gn': True}
    assert build_network(stored().resolve(COVERED, SEGMENTERS, **given)).classifier.out_channels == 2
    assert build_network(stored().resolve(DATASET, SEGMENTERS, **given)).classifier.out_channels == 3
    for entries, dataset, line in (
        ({'background': False}, DATASET, 'has a background; .*a.pth expects none$'),
        ({}, COVERED, 'has no background; .*a.pth expects one$'),
    ):
        with pytest.raises(UserError, match=f'^dataset of "drawn": {line}'):
            stored(**about, classes=CLASSES, **entries).resolve(dataset, SEGMENTERS, **FLAGS)


def test_other_networks_are_refused(in_tmp):
    file = stored(network='AffinityNet', backbone=NARROW, classes=CLASSES)
    with pytest.raises(UserError, match='a.pth: contains AffinityNet: pass a model of train_segmentation.py$'):
        file.resolve(DATASET, SEGMENTERS, **FLAGS)


@pytest.mark.parametrize(
    'classes, line',
    [
        (('cow', 'bus'), "class 1 is 'bus'; {path} expects 'cow'"),
        (('bus', 'cat'), "class 2 is 'cow'; {path} expects 'cat'"),
        (('bus', 'cow', 'dog'), "has no class 3; {path} expects 'dog'"),
        (('bus',), "class 2 is 'cow'; {path} does not know it"),
    ],
)
def test_other_classes_are_refused(in_tmp, classes, line):
    file = stored(network='Classifier', backbone=NARROW, classes=classes)
    with pytest.raises(UserError) as error:
        file.resolve(DATASET, ['Classifier'], architecture=None)
    assert str(error.value) == f'dataset of "drawn": {line.format(path=model_path("a"))}'
    assert error.value.option == 'dataset'


@pytest.mark.parametrize(
    'entry, value',
    [
        ('network', 3),
        ('backbone', None),
        ('mode', 'frozen'),
        ('use_gn', 'yes'),
        ('image_size', 0),
        ('classes', ()),
        ('classes', 'bus'),
        ('classes', (1, 2)),
        ('classes', ('bus', 'bus')),
        ('classes', ('background', 'bus')),
        ('classes', tuple(map(str, range(255)))),
        ('palette', [[0, 0, 0], [1]]),
        ('palette', [[0, 0, 256]]),
        ('palette', []),
        ('background', 'no'),
    ],
)
def test_damaged_metadata_is_refused(in_tmp, entry, value):
    with pytest.raises(UserError, match=rf'a.pth: its metadata is damaged \({entry}: '):
        stored(**{'network': 'Classifier', 'backbone': NARROW, entry: value})
