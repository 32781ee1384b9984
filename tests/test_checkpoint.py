"""Model files: state dict and metadata, read back or refused in one line."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from core import UserError
from core.models import Classifier
from core.models.weights import read_state_dict, read_torch
from util.artifacts import model_path
from util.checkpoint import check_finite, load_for_inference, load_model, save_model, save_torch
from util.fingerprint import file_hash

NARROW = 'resnest14_narrow'


def net(seed: int = 0, outputs: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, outputs)


def load(model, tag='a') -> str:
    return load_model(model, tag, '--tag', 'train.py', NARROW)


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
    assert load(other) == file_hash(path)
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
    assert load(other) == file_hash(model_path('a'))
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


def test_models_of_another_architecture_are_refused(in_tmp):
    save_model(net(), model_path('a'), architecture='resnet50')
    with pytest.raises(UserError, match=f'a.pth: was trained as resnet50, requested {NARROW}: correct the flags'):
        load(net())
    for outputs in (3, None):
        save_model(net(outputs=outputs) if outputs else nn.Bilinear(2, 2, 2), model_path('b'))
        with pytest.raises(UserError, match=rf'b.pth \(a state dict under "model"\): does not fit {NARROW}') as error:
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
    save_model(network, model_path('a'), architecture=NARROW)
    with torch.no_grad():
        expected = network.eval()(images)
    for precision in ('fp32', 'bf16'):
        args, source = Namespace(device='cpu', precision=precision), ('a', '--tag', 'train.py', NARROW)
        model, device, fingerprint = load_for_inference(Classifier(NARROW, 3), args, *source)
        assert (device, fingerprint) == (torch.device('cpu'), file_hash(model_path('a')))
        assert model.bf16 == (precision == 'bf16')
        assert not model.training
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        if precision == 'fp32':
            with torch.no_grad():
                torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    for name, device, line in (('a', 'nonsense', '--device nonsense'), ('b', 'cpu', '--tag: .*b.pth not found; run')):
        with pytest.raises(UserError, match=line):
            args = Namespace(device=device, precision='fp32')
            load_for_inference(Classifier(NARROW, 3), args, name, '--tag', 'train.py', NARROW)


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
