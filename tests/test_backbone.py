"""The registry of backbones, MobileNetV2, and where weights come from."""

import hashlib
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from conftest import randomised
from core.backbone import BACKBONES, Entry, build_backbone, load_weights
from core.networks import Classifier
from tools.checkpoint import save_model

from core import InputError, backbone

NARROW = 'resnest14_narrow'


@pytest.mark.parametrize('name', BACKBONES)
def test_five_stages_are_as_told(name):
    with torch.device('meta'):  # without memory, so that the largest cost nothing
        model = build_backbone(name)
        features = model(torch.zeros(2, 3, 128, 192))
    assert len(model.channels) == 5
    expected = [(2, c, 128 // s, 192 // s) for c, s in zip(model.channels, (4, 4, 8, 16, 16), strict=True)]
    assert [tuple(x.shape) for x in features] == expected


@pytest.mark.parametrize('name', BACKBONES)
def test_stages_hold_every_parameter_once(name):
    with torch.device('meta'):
        model = build_backbone(name)
    stages = model.stages()
    assert len(stages) == 5
    held = [id(p) for modules in stages for module in modules for p in module.parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize('name', [NARROW, 'mobilenet_v2'])
def test_a_stage_alone_moves_its_own_output_and_the_next(name):
    model = randomised(build_backbone(name))
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(images)
        for module in model.stages()[2]:
            for parameter in module.parameters():
                parameter.mul_(1.5)
        after = model(images)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False, False]


def test_mobilenet_at_stride_32_is_torchvisions():
    model = randomised(build_backbone('mobilenet_v2', 32))
    other = torchvision.models.mobilenet_v2().double().eval()
    missing = other.load_state_dict(model.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) == {'classifier.1.weight', 'classifier.1.bias'}
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images)[-1], other.features(images), rtol=1e-12, atol=1e-12)


def test_an_unknown_backbone_is_named():
    with pytest.raises(InputError, match='resnet49.*resnet50'):
        build_backbone('resnet49')


def test_urls():
    for name, start in {
        'resnest50': '528c19ca',
        'resnest101': '22405ba7',
        'resnest200': '75117900',
        'resnest269': '0cc87c48',
    }.items():
        url = BACKBONES[name].url()
        assert url.startswith('https://github.com/zhanghang1989/ResNeSt/releases/download/')
        assert url.endswith(f'/{name}-{start}.pth')
    assert BACKBONES['resnet50'].url() == torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url
    for entry in BACKBONES.values():
        assert entry.url is None or re.search(r'-[0-9a-f]{8,}\.pth$', entry.url())


def narrow(seed: int, name: str = NARROW):
    torch.manual_seed(seed)
    return build_backbone(name)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_none_keeps_the_random_weights():
    model = narrow(1)
    load_weights(model, NARROW, 'none')
    assert same(model, narrow(1))


@pytest.mark.parametrize('more', [{}, {'fc.weight': torch.zeros(10, 512), 'fc.bias': torch.zeros(10)}])
def test_a_released_file(tmp_path, more):
    torch.save({**narrow(1).state_dict(), **more}, tmp_path / 'file.pth')
    model = narrow(2)
    load_weights(model, NARROW, str(tmp_path / 'file.pth'))
    assert same(model, narrow(1))


def test_a_file_of_this_repository_gives_its_backbone(tmp_path):
    torch.manual_seed(1)
    classifier = Classifier(NARROW, 3)
    save_model(classifier, tmp_path / 'tag.pth', architecture=NARROW)
    model = narrow(2)
    load_weights(model, NARROW, str(tmp_path / 'tag.pth'))
    assert same(model, classifier.backbone)


def test_a_file_from_before_batches_were_counted(tmp_path):
    state = {name: x for name, x in narrow(1).state_dict().items() if not name.endswith('num_batches_tracked')}
    torch.save(state, tmp_path / 'file.pth')
    model = narrow(2)
    load_weights(model, NARROW, str(tmp_path / 'file.pth'))
    assert same(model, narrow(1))


@pytest.mark.parametrize('name', ['resnest14', 'mobilenet_v2', 'resnest26_narrow'])
def test_weights_of_another_architecture_are_refused(tmp_path, name):
    """The last one holds every tensor that is wanted, and more blocks of the backbone."""
    if name == 'resnest26_narrow':
        from core.resnest import ResNeSt

        other = ResNeSt((2, 2, 2, 2), 16, 16)
    else:
        other = build_backbone(name)
    torch.save(other.state_dict(), tmp_path / 'file.pth')
    model = narrow(2)
    with pytest.raises(InputError, match=f'file.pth.*{NARROW}') as fault:
        load_weights(model, NARROW, str(tmp_path / 'file.pth'))
    assert '\n' not in str(fault.value)
    assert same(model, narrow(2))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match='--weights .*nowhere.pth'):
        load_weights(narrow(1), NARROW, str(tmp_path / 'nowhere.pth'))
    with pytest.raises(InputError, match='--weights'):
        load_weights(narrow(1), NARROW, str(tmp_path))


@pytest.mark.parametrize('content', [[1, 2], {'a': 1}, {'state_dict': {}}, torch.zeros(3)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises(InputError, match='--weights .*file.pth.*no state dict'):
        load_weights(narrow(1), NARROW, str(tmp_path / 'file.pth'))


@pytest.mark.parametrize('content', [b'', b'not weights', b'PK\x03\x04 cut off', bytes(1000)])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises(InputError, match='--weights .*file.pth'):
        load_weights(narrow(1), NARROW, str(tmp_path / 'file.pth'))


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize('save', [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickles_are_not_run(tmp_path, save):
    save({'conv1.0.weight': Trap(tmp_path / 'sprung')}, tmp_path / 'file.pth')
    with pytest.raises(InputError, match='--weights .*file.pth'):
        load_weights(narrow(1), NARROW, str(tmp_path / 'file.pth'))
    assert not (tmp_path / 'sprung').exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's cache in a folder of its own, without a network."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / 'hub'))

    def offline(url, *args, **kwargs):
        raise URLError('no network')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    yield tmp_path / 'hub' / 'checkpoints'
    torch.hub.set_dir(before)


@pytest.mark.parametrize('name', ['resnest50', 'resnet50', 'mobilenet_v2'])
def test_imagenet_without_a_network_says_what_from_where_and_how(hub, name):
    with pytest.raises(InputError) as fault:
        load_weights(None, name, 'imagenet')
    text = str(fault.value)
    assert '\n' not in text
    for part in (BACKBONES[name].url(), '--weights', BACKBONES[name].url().rsplit('/', 1)[1], 'PATH'):
        assert part in text


def test_imagenet_of_a_backbone_without_a_file(hub):
    with pytest.raises(InputError, match=f'--weights imagenet.*{NARROW}'):
        load_weights(narrow(1), NARROW, 'imagenet')


def published(monkeypatch, content: bytes, digest: str) -> str:
    """Make the narrow one a backbone with a published file; returns the file's name."""
    name = f'narrow-{digest[:8]}.pth'
    entry = Entry(BACKBONES[NARROW].build, lambda: f'https://example.invalid/{name}')
    monkeypatch.setitem(backbone.BACKBONES, NARROW, entry)
    return name


def weights_file(tmp_path) -> bytes:
    torch.save(narrow(1).state_dict(), tmp_path / 'weights.pth')
    return (tmp_path / 'weights.pth').read_bytes()


@pytest.mark.parametrize('cached', [True, False])
def test_imagenet_from_cache_or_network(hub, tmp_path, monkeypatch, cached):
    content = weights_file(tmp_path)
    name = published(monkeypatch, content, hashlib.sha256(content).hexdigest())
    if cached:
        hub.mkdir(parents=True)
        (hub / name).write_bytes(content)
    else:
        monkeypatch.setattr(
            torch.hub, 'download_url_to_file', lambda url, path, *a, **k: Path(path).write_bytes(content)
        )
    model = narrow(2)
    load_weights(model, NARROW, 'imagenet')
    assert same(model, narrow(1))


@pytest.mark.parametrize('damage', ['other weights', 'cut off', 'empty'])
def test_a_damaged_file_in_the_cache_is_refused(hub, tmp_path, monkeypatch, damage):
    content = weights_file(tmp_path)
    name = published(monkeypatch, content, hashlib.sha256(b'the true file').hexdigest())
    hub.mkdir(parents=True)
    (hub / name).write_bytes({'other weights': content, 'cut off': content[:1000], 'empty': b''}[damage])
    model = narrow(2)
    with pytest.raises(InputError, match=f'{name}.*damaged.*delete'):
        load_weights(model, NARROW, 'imagenet')
    assert same(model, narrow(2))
