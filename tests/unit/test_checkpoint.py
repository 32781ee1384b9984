"""Model files: state dict and metadata, read back, completed by flags, or refused in one line."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

from core import UserError
from core.models import SEGMENTERS, AffinityNet, Classifier, build_network, build_segmenter
from core.models.weights import read_state_dict, read_torch
from util import checkpoint
from util.artifacts import model_path
from util.checkpoint import ModelFile, check_finite, describe, open_model, save_model, save_torch
from util.fingerprint import file_hash

NARROW = 'resnest14_narrow'
CLASSES = ('bus', 'cow')
DATASET = Namespace(class_names=CLASSES, num_classes=2, palette=np.arange(768, dtype=np.uint8).reshape(256, 3))
SEGMENTER = {'architecture': 'network', 'backbone': 'backbone', 'mode': 'mode', 'use_gn': 'use_gn'}  # as stage 8


def net(seed: int = 0, outputs: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, outputs)


def load(model, tag='a') -> None:
    open_model(tag, '--tag', 'train.py').load(model)


@pytest.mark.parametrize('wrap', [False, True])
def test_model_files_are_state_dicts_with_metadata(in_tmp, wrap):
    path = model_path('a')
    meta = {'architecture': NARROW, 'classes': ('bus', 'cow'), 'epoch': 3, 'score': 0.5}
    save_model(nn.DataParallel(net()) if wrap else net(), path, **meta)
    content = torch.load(path, map_location='cpu', weights_only=True)
    assert list(content) == ['model', 'meta']
    assert content['meta'] == meta
    assert list(content['model']) == ['weight', 'bias']
    assert all(isinstance(value, torch.Tensor) for value in content['model'].values())
    assert read_state_dict(path)[1] == meta
    other = net(1)
    load(other)
    assert torch.equal(other.weight, net().weight)


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
    load(other)
    assert torch.equal(other.weight, net().weight)
    assert read_state_dict(model_path('a'))[1] == {}


def test_missing_model_names_flag_and_script(in_tmp):
    with pytest.raises(UserError, match='--tag: .*a.pth not found; run train.py first'):
        load(net())


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
        load(net())
    assert '\n' not in str(error.value)
    assert not (in_tmp / 'sprung').exists()


def test_flipped_bytes_of_tensors_are_refused(in_tmp):
    save_model(net(), model_path('a'), architecture=NARROW)
    content = bytearray(model_path('a').read_bytes())
    at = content.index(net().weight.detach().numpy().tobytes())
    content[at] ^= 0xFF
    model_path('a').write_bytes(content)
    with pytest.raises(UserError, match='a.pth: damaged'):
        load(net())


def test_weights_that_do_not_fit_are_refused(in_tmp):
    for outputs in (3, None):
        save_model(net(outputs=outputs) if outputs else nn.Bilinear(2, 2, 2), model_path('b'))
        with pytest.raises(UserError, match=r'b.pth \(a state dict under "model"\): does not fit Linear: ') as error:
            load(net(), 'b')
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
@pytest.mark.parametrize('wrap', [False, True])
def test_models_that_are_not_finite_are_not_saved(in_tmp, value, wrap):
    model = nn.Sequential(net(), nn.BatchNorm1d(2))
    model[1].running_var[1] = value
    with pytest.raises(UserError, match='^1.running_var became non-finite; nothing was saved. Try a smaller --lr'):
        save_model(nn.DataParallel(model) if wrap else model, model_path('a'))
    assert not list(in_tmp.iterdir())
    check_finite(net())


def test_load_for_inference(in_tmp):
    """In evaluation mode, with BatchNorm folded, on the device of --device, in --precision."""
    network, images = Classifier(NARROW, 3), torch.randn(2, 3, 32, 32)
    save_model(network, model_path('a'))
    with torch.no_grad():
        expected = network.eval()(images)
    file = open_model('a', '--tag', 'train.py')
    for precision in ('fp32', 'bf16'):
        args = Namespace(device='cpu', precision=precision)
        model, device, fingerprint = file.load_for_inference(Classifier(NARROW, 3), args)
        assert (device, fingerprint) == (torch.device('cpu'), file_hash(model_path('a')))
        assert model.half == (torch.bfloat16 if precision == 'bf16' else None)
        assert not model.training
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        if precision == 'fp32':
            with torch.no_grad():
                torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match='--device nonsense'):
        file.load_for_inference(Classifier(NARROW, 3), Namespace(device='nonsense', precision='fp32'))


@pytest.mark.parametrize('kind', ['cpu', 'cuda'])
def test_inference_on_a_gpu_does_without_cudnn(in_tmp, monkeypatch, kind):
    """cuDNN would plan every convolution again for each size of image."""
    monkeypatch.setattr(checkpoint, 'pick_device', lambda name: torch.device(kind))
    monkeypatch.setattr(checkpoint, 'to_device', lambda network, *_: network)
    monkeypatch.setattr(torch.backends.cudnn, 'enabled', True)
    save_model(Classifier(NARROW, 3), model_path('a'))
    open_model('a', '--tag', 'train.py').load_for_inference(
        Classifier(NARROW, 3), Namespace(device='auto', precision='fp32')
    )
    assert torch.backends.cudnn.enabled == (kind == 'cpu')


# Metadata -----------------------------------------------------------------------------------------------------------


def stored(tag: str = 'a', **meta) -> ModelFile:
    """Write a model file with metadata and open it."""
    save_torch({'model': dict(net().state_dict()), 'meta': meta}, model_path(tag))
    return open_model(tag, '--tag', 'train.py')


def options(**given) -> Namespace:
    return Namespace(**{**dict.fromkeys(SEGMENTER), 'dataset': 'set.json', **given})


def test_description_of_a_model(in_tmp):
    meta = describe(Namespace(image_size=64), DATASET)
    assert meta == {'image_size': 64, 'classes': CLASSES, 'palette': [[0, 1, 2], [3, 4, 5], [6, 7, 8]]}
    assert stored(**meta).meta == meta  # reading without unpickling keeps the types


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


@pytest.mark.parametrize(
    'name, state, expected',
    [
        (NARROW, {'classifier.weight': 1}, {'network': 'Classifier'}),
        (NARROW, {'head.classify.weight': 1}, {'network': 'AffinityNet'}),
        (f'DeepLabv3+ {NARROW} GN', {}, {'network': 'DeepLabv3+', 'use_gn': True}),
        (f'DeepLabv3+ {NARROW}', {}, {'network': 'DeepLabv3+', 'use_gn': False}),
        (f'CSeg_Model {NARROW}', {'head.classify.weight': 1}, {'network': 'CSeg_Model'}),
    ],
)
def test_files_of_earlier_versions(in_tmp, name, state, expected):
    """They name the network in one string, `architecture`."""
    state = {key: torch.ones(value) for key, value in ({'backbone.a': 1} | state).items()}
    save_torch({'model': state, 'meta': {'architecture': name, 'classes': CLASSES}}, model_path('a'))
    meta = open_model('a', '--tag', 'train.py').meta
    assert meta == {'architecture': name, 'classes': CLASSES, 'backbone': NARROW, **expected}


def test_flags_are_completed_from_the_file(in_tmp):
    file = stored(network='Classifier', backbone=NARROW, classes=CLASSES, mode='fix')
    for given in (None, NARROW):
        args = options(architecture=given)
        meta = file.resolve(args, DATASET, ['Classifier'], architecture='backbone')
        assert meta == file.meta
        assert args == options(architecture=NARROW)
    for recorded, expected in (
        ({'network': 'DeepLabv3+', 'use_gn': False, 'mode': 'normal'}, {'use_gn': False, 'mode': 'normal'}),
        ({'network': 'DeepLabv3+', 'use_gn': True}, {'use_gn': True, 'mode': 'fix'}),
        ({'network': 'Seg_Model', 'mode': 'fix'}, {'use_gn': True, 'mode': 'fix'}),
    ):
        args = options()
        stored(**recorded, backbone=NARROW, classes=CLASSES).resolve(args, DATASET, SEGMENTERS, **SEGMENTER)
        assert args == options(architecture=recorded['network'], backbone=NARROW, **expected)


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
        file.resolve(options(**given), DATASET, SEGMENTERS, **SEGMENTER)
    assert str(error.value) == line.format(path=model_path('a'))


def test_bare_state_dicts_need_the_flags(in_tmp):
    file, bare = stored(), f'{model_path("a")}: is a state dict under "model" without metadata: pass '
    for args, networks, flags, line in (
        (options(), ['Classifier'], {'architecture': 'backbone'}, '--architecture'),
        (options(), SEGMENTERS, SEGMENTER, '--architecture and --backbone'),
        (options(architecture='Seg_Model'), SEGMENTERS, SEGMENTER, '--backbone'),
    ):
        with pytest.raises(UserError) as error:
            file.resolve(args, DATASET, networks, **flags)
        assert str(error.value) == bare + line
    meta = file.resolve(options(architecture=NARROW), DATASET, ['AffinityNet'], architecture='backbone')
    assert meta == {'network': 'AffinityNet', 'backbone': NARROW, 'classes': CLASSES}
    args = options(architecture='DeepLabv3+', backbone=NARROW, use_gn=False)
    meta = file.resolve(args, DATASET, SEGMENTERS, **SEGMENTER)
    assert meta == {'network': 'DeepLabv3+', 'backbone': NARROW, 'use_gn': False, 'mode': 'fix', 'classes': CLASSES}


def test_other_networks_are_refused(in_tmp):
    file = stored(network='AffinityNet', backbone=NARROW, classes=CLASSES)
    with pytest.raises(UserError, match='a.pth: contains AffinityNet: pass a model of train.py$'):
        file.resolve(options(), DATASET, ['Classifier'], architecture='backbone')


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
        file.resolve(options(), DATASET, ['Classifier'], architecture='backbone')
    assert str(error.value) == f'--dataset set.json: {line.format(path=model_path("a"))}'


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
        ('palette', [[0, 0, 0], [1]]),
        ('palette', [[0, 0, 256]]),
        ('palette', []),
    ],
)
def test_damaged_metadata_is_refused(in_tmp, entry, value):
    with pytest.raises(UserError, match=rf'a.pth: its metadata is damaged \({entry}: '):
        stored(**{'network': 'Classifier', 'backbone': NARROW, entry: value})


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
