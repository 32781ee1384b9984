"""timm's networks as backbones: their maps, the contract of a backbone, weights, refusals, two stages."""

import sys

import pytest
import torch
from torch import nn

import inference_classification
import train_classification_with_puzzle as train_classification
import train_segmentation
from core import UserError
from core.data.transforms import MEAN, STD
from core.maps import strided_size
from core.models import AffinityNet, Classifier, build_network
from core.models.affinitynet import predict_edges
from core.models.backbones import build_backbone, find_backbone
from core.models.batchnorm import fold_batchnorm
from core.models.model_file import ModelFile
from core.models.optim import parameter_groups
from core.models.segmenters import SEGMENTERS, build_segmenter
from core.models.timm_backbone import TimmBackbone
from core.models.weights import load_weights
from support import batchnorms, fault_of, randomised, run_stage
from util import launcher
from util.parallel import batch
from util.training.models import save_model

timm = pytest.importorskip('timm')
TINY = 'timm/resnet10t'
STRIDES = (4, 4, 8, 16, 16)
# Channels of the five maps. The first two are one map where the stem ends at stride 2.
CHANNELS = {
    'timm/resnet18': (64, 64, 128, 256, 512),
    TINY: (64, 64, 128, 256, 512),
    'timm/convnext_atto': (40, 40, 80, 160, 320),
    'timm/mobilenetv3_small_050': (8, 8, 16, 24, 288),
    'timm/efficientnet_lite0': (24, 24, 40, 112, 320),
    'timm/regnetx_002': (24, 24, 56, 152, 368),
}

CHEAP = (TINY, 'timm/convnext_atto')  # one with BatchNorm and one without


def pixels(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def imagenet(x: torch.Tensor, mean=MEAN, std=STD) -> torch.Tensor:
    return (x - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)


def narrow(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(TINY)


def same(a: nn.Module, b: nn.Module) -> bool:
    state = b.state_dict()
    return all(torch.equal(value, state[name]) for name, value in a.state_dict().items())


# The contract of a backbone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', CHANNELS)
@pytest.mark.parametrize('size', [(97, 131), (64, 96), (63, 40)])
def test_channels_and_strides(name, size):
    with torch.device('meta'):
        model = build_backbone(name)
        features = model(torch.zeros(2, 3, *size))
    assert model.channels == CHANNELS[name]
    expected = [(2, c, *strided_size(size, s)) for c, s in zip(model.channels, STRIDES, strict=True)]
    assert [tuple(x.shape) for x in features] == expected


@pytest.mark.parametrize('name', CHANNELS)
def test_stages_contain_every_parameter_once_and_change_their_own_map(name):
    model = randomised(build_backbone(name))
    stages, images = model.stages(), imagenet(pixels(64, 64))
    contained = [id(p) for modules in stages for module in modules for p in module.parameters()]
    assert sorted(contained) == sorted(id(p) for p in model.parameters())
    with torch.no_grad():
        before = model(images)
        for module in stages[2]:
            for parameter in module.parameters():
                parameter.mul_(1.5)
        after = model(images)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False, False]


@pytest.mark.parametrize('name', CHEAP)
def test_first_map_is_the_end_of_the_stem(name):
    model = randomised(build_backbone(name))
    net, x = model.network, imagenet(pixels(32, 48))
    with torch.no_grad():
        if name == TINY:
            expected = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        else:
            expected = net.stem_1(net.stem_0(x))
        torch.testing.assert_close(model(x)[0], expected)


@pytest.mark.parametrize('name', CHANNELS)
def test_maps_are_timms_with_its_own_normalisation(name):
    model = randomised(build_backbone(name))
    other = timm.create_model(name.removeprefix('timm/'), features_only=True, output_stride=16).double().eval()
    other.load_state_dict(model.network.state_dict())
    config, x = timm.get_pretrained_cfg(name.removeprefix('timm/')), pixels(64, 96)
    with torch.no_grad():
        found, expected = model(imagenet(x)), other(imagenet(x, config.mean, config.std))
    for ours, theirs in zip(found[-4:], expected[-4:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert float(found[-1].std()) > 0


def test_mean_and_deviation_of_its_own_configuration():
    model = build_backbone('timm/resnetv2_50')
    config = timm.get_pretrained_cfg('resnetv2_50')
    assert config.mean == config.std == (0.5, 0.5, 0.5)
    x = pixels(4, 4).float()
    torch.testing.assert_close(model.renormalise(imagenet(x)), (x - 0.5) / 0.5)
    assert {'renormalise.scale', 'renormalise.shift'} <= model.state_dict().keys()


@pytest.mark.parametrize('name', [*CHANNELS, 'timm/rexnet_100', 'timm/mobilevit_xxs'])
def test_no_random_numbers_of_its_own(name):
    model = build_backbone(name).train()
    images, before = imagenet(pixels(64, 64)).float(), torch.get_rng_state()
    first, second = model(images), model(images)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_and_stochastic_depth_of_a_configuration_are_switched_off(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda *args, **more: create(*args, drop_path_rate=0.5, **more))
    model = build_backbone('timm/convnext_atto').train()
    assert any(type(module).__name__ == 'DropPath' for module in model.modules())
    images = imagenet(pixels(32, 32)).float()
    assert torch.equal(model(images)[-1], model(images)[-1])


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.slow) for name in CHANNELS]
)
def test_folding_changes_rounding_only(name):
    classifier = randomised(Classifier(name, 3))
    images = [imagenet(pixels(*size)) for size in ((49, 64), (35, 81))]  # traced code must not remember a size
    with torch.no_grad():
        expected = [classifier(x, with_cam=True) for x in images]
        count = len(batchnorms(classifier))
        folded = fold_batchnorm(classifier)
        for x, outputs in zip(images, expected, strict=True):
            for ours, theirs in zip(folded(x, with_cam=True), outputs, strict=True):
                torch.testing.assert_close(ours, theirs)
    if name == 'timm/resnet18':
        assert count == 20 and not batchnorms(folded)
    if name == TINY:  # its average pooling stops the tracing of the whole, but not of most blocks
        assert len(batchnorms(folded)) <= count / 2


def test_half_precision():
    model = Classifier(TINY, 3).eval()
    images = imagenet(pixels(32, 48)).float()
    with torch.no_grad():
        expected = model(images)
        model.half = torch.bfloat16
        torch.testing.assert_close(model(images), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


def test_what_is_decayed():
    groups = {group['name']: group for group in parameter_groups(Classifier('timm/convnext_atto', 3), 0.1, 1e-4)}
    model = Classifier('timm/convnext_atto', 3)
    scales = [name for name, x in model.named_parameters() if name.endswith('gamma')]
    assert scales, 'layer scale'
    biases = sum(name.endswith('bias') for name, _ in model.named_parameters())
    assert len(groups['backbone.bias']['params']) == biases
    assert groups['backbone.weight']['weight_decay'] == 1e-4
    assert sum(len(group['params']) for group in groups.values()) == len(list(model.parameters()))


def test_synchronised_norms_keep_their_activations(monkeypatch):
    """timm's BatchNorm contains the activation, which torch's conversion loses. Evaluation needs no process group."""
    model = randomised(build_backbone('timm/regnetx_002'))
    x = imagenet(pixels(32, 32))
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr(launcher, 'world_size', lambda: 2)
        batch._synchronise(model, torch.device('cuda'))
        assert any('Sync' in type(module).__name__ for module in model.modules())
        for ours, theirs in zip(model(x), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_difference_to_our_resnet50():
    """timm's resnet50 dilates layer4 (by 1 and 2 in its first block's convolutions); ours, as published, does not."""
    ours, theirs = randomised(build_backbone('resnet50')), build_backbone('timm/resnet50').double().eval()
    theirs.load_state_dict(theirs.own_names(ours.state_dict()))
    x = imagenet(pixels(64, 64))
    with torch.no_grad():
        for a, b in zip(ours(x)[:4], theirs(x)[:4], strict=True):
            torch.testing.assert_close(a, b)
        assert not torch.allclose(ours(x)[4], theirs(x)[4])
        for block in theirs.network.layer4:
            block.conv2.dilation = block.conv2.padding = (1, 1)
        torch.testing.assert_close(ours(x)[4], theirs(x)[4])


# Networks on it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.slow) for name in CHANNELS]
)
def test_networks_train_on_images_of_odd_size(name):
    images = imagenet(pixels(97, 131)).float()
    for network in ('Classifier', 'AffinityNet', *SEGMENTERS):
        model = build_network({'network': network, 'backbone': name, 'mode': 'normal', 'classes': ['a', 'b']}).train()
        output = model(images)
        output.square().mean().backward()
        without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == [], network
        assert output.isfinite().all()
    edges = predict_edges(AffinityNet(name).eval(), images[:1], 64)
    assert edges.shape[1:] == strided_size((97, 131))


@pytest.mark.parametrize('name', CHEAP)
def test_mode_fix(name):
    model = Classifier(name, 3, 'fix').train()
    assert not any(norm.training for norm in batchnorms(model).values())
    for i, modules in enumerate(model.backbone.stages()):
        assert {p.requires_grad for module in modules for p in module.parameters()} <= {i > 2}
    model(imagenet(pixels(32, 32)).float()).sum().backward()
    segmenter = build_segmenter('DeepLabv3+', name, 4, 'fix', True).train()
    assert not any(norm.training for norm in batchnorms(segmenter).values())


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, message',
    [
        ('nope', 'timm has no network of this name'),
        ('', 'timm has no network of this name'),
        ('hf-hub:timm/resnet18', 'timm has no network of this name'),
        ('vit_tiny_patch16_224', 'are at strides 16, 16, 16 and it cannot be dilated'),
        ('densenet121', 'are at strides 2, 4, 8, 16, 32 and it cannot be dilated'),
        ('xception41', 'its maps are not at the ends of its modules'),
        ('botnet26t_256', 'fails on an image of 80x112 pixels: '),
        ('resnet18.nope', r'timm cannot build it: Invalid pretrained tag'),
    ],
)
def test_refused(name, message):
    with pytest.raises(UserError, match=message) as error:
        build_backbone(f'timm/{name}')
    assert str(error.value).startswith(f'backbone timm/{name}: ')
    assert '\n' not in str(error.value)


def test_maps_at_other_strides(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda *args, **more: create(*args, **{**more, 'output_stride': 8}))
    with pytest.raises(UserError, match="timm's maps are at strides 2, 4, 4, 8, 8, 8: they have to be at 4, 8, 16"):
        build_backbone(TINY)


def test_without_timm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'timm', None)
    line = f'{TINY} needs the package timm: pip install timm'
    with pytest.raises(UserError, match=f'^backbone {line}$'):
        build_backbone(TINY)
    with pytest.raises(UserError, match=f'^backbone {line}$'):
        build_network({'network': 'AffinityNet', 'backbone': TINY})
    build_backbone('resnest14_narrow')
    for module, words in (
        (train_classification, ['--tag', 't', '--architecture', TINY]),
        (train_segmentation, ['--tag', 't', '--label_name', 'l', '--backbone', TINY]),
    ):
        flag = '--backbone' if '--backbone' in words else '--architecture'
        assert fault_of(module, words, capsys).endswith(f'error: argument {flag}: {line}')


def test_flags_take_timms_names(capsys):
    assert train_classification.parse_args(['--tag', 't', '--architecture', TINY]).architecture == TINY
    text = fault_of(inference_classification, ['--tag', 't', '--architecture', 'timm/nope'], capsys)
    assert text.endswith('error: argument --architecture: timm/nope: timm has no network of this name')
    text = fault_of(inference_classification, ['--tag', 't', '--architecture', 'nope'], capsys)
    assert text.endswith('efficientnet_lite2, timm/NAME')
    assert find_backbone(TINY).build is TimmBackbone


# Weights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(  # the head of rexnet is in a row with its blocks
    'name',
    [
        *CHEAP,
        'timm/rexnet_100',
        *(pytest.param(name, marks=pytest.mark.slow) for name in CHANNELS if name not in CHEAP),
    ],
)
def test_file_of_timms_whole_network(tmp_path, name):
    whole = timm.create_model(name.removeprefix('timm/'), pretrained=False)
    torch.save(whole.state_dict(), tmp_path / 'file.pth')
    model = build_backbone(name)
    load_weights(model, name, str(tmp_path / 'file.pth'))
    theirs = {key.replace('.', '_'): value for key, value in whole.state_dict().items()}
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, theirs[key.replace('.', '_')])


def test_model_file_of_this_repository(tmp_path):
    torch.manual_seed(1)
    classifier = Classifier(TINY, 3)
    save_model(classifier, tmp_path / 'tag.pth', network='Classifier', backbone=TINY, classes=['a', 'b', 'c'])
    model = narrow(2)
    load_weights(model, TINY, str(tmp_path / 'tag.pth'))
    assert same(model, classifier.backbone)
    file = ModelFile(tmp_path / 'tag.pth')
    assert file.meta['backbone'] == TINY
    network = build_network(file.meta)
    file.load(network)
    assert same(network, classifier)


@pytest.mark.parametrize(
    'other',
    ['convnext_atto', 'resnet14t', *(pytest.param(x, marks=pytest.mark.slow) for x in ('resnet18', 'resnet50'))],
)
def test_weights_of_another_network(tmp_path, other):
    torch.save(timm.create_model(other, pretrained=False).state_dict(), tmp_path / 'file.pth')
    model = narrow(2)
    with pytest.raises(UserError, match=rf'file.pth \(a bare state dict\): do not fit {TINY}: .* tensors'):
        load_weights(model, TINY, str(tmp_path / 'file.pth'))
    assert same(model, narrow(2))


@pytest.mark.parametrize(
    'name, deeper',
    [
        ('timm/resnet18', 'resnet34'),
        pytest.param('timm/convnext_tiny', 'convnext_small', marks=pytest.mark.slow),
    ],
)
def test_weights_of_a_deeper_network(tmp_path, name, deeper):
    """It contains every tensor that is needed, and further blocks."""
    torch.save(timm.create_model(deeper, pretrained=False).state_dict(), tmp_path / 'file.pth')
    with pytest.raises(UserError, match=f'do not fit {name}: '):
        load_weights(build_backbone(name), name, str(tmp_path / 'file.pth'))


def test_imagenet_weights_of_timms_cache(monkeypatch):
    """timm loads them; the random numbers that its network begins with are not missed by anything later."""
    create = timm.create_model

    def pretrained(*args, pretrained, **more):
        return create(*args, pretrained=False, **more) if pretrained else pytest.fail('not asked for')

    model, unloaded = narrow(2), narrow(2)
    assert same(model, unloaded)
    monkeypatch.setattr(timm, 'create_model', pretrained)
    before = torch.get_rng_state()
    load_weights(model, TINY, 'imagenet')
    assert torch.equal(before, torch.get_rng_state())
    assert not same(model, unloaded)


def test_imagenet_without_network(monkeypatch):
    def offline(*args, **more):
        raise OSError('no network\nand a second line')

    model = narrow(2)
    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(UserError) as error:
        load_weights(model, TINY, 'imagenet')
    save = "torch.save(timm.create_model('resnet10t', pretrained=True).state_dict(), 'FILE')"
    assert str(error.value) == (
        'weights imagenet: timm cannot load the weights of resnet10t (no network): '
        f'run "import timm, torch; {save}" elsewhere and pass the local file'
    )


def test_imagenet_of_a_network_without_weights():
    name = 'timm/resnetv2_50d_frn'
    with pytest.raises(UserError, match='timm has no weights for resnetv2_50d_frn: pass none or a local file'):
        load_weights(None, name, 'imagenet')


# The stages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [TINY, pytest.param(CHEAP[1], marks=pytest.mark.slow)])
def test_stages_one_and_two(demo, in_tmp, name):
    files = f'--dataset {demo}/dataset.json --data_dir {demo} --num_workers 0 --device cpu'
    train = '--image_size 64 --min_image_size 48 --max_image_size 80 --batch_size 4 --max_epoch 1 --lr 0.01'
    options = f'--architecture {name} --weights none --bn_replicas 2 --tag cls'
    run_stage(train_classification, f'{files} {train} {options}'.split())
    assert ModelFile(in_tmp / 'experiments' / 'models' / 'cls.pth').meta['backbone'] == name
    run_stage(inference_classification, f'{files} --tag cls --domain train --scales 0.5,1.0'.split())
    folder = in_tmp / 'experiments' / 'predictions' / 'cls@train@scale=0.5,1.0'
    assert len(list(folder.glob('*.npz'))) == 6
