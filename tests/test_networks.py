"""The networks: shapes, parameters, what is frozen, and BatchNorm as on several devices."""

import copy
import threading

import pytest
import torch
from conftest import bilinear
from core.deeplab import multi_scale_logits
from core.networks import (
    AffinityNet,
    Classifier,
    DeepLabV3Plus,
    EdgeHead,
    build_segmenter,
    for_inference,
    forward_in_replicas,
)
from torch import nn

NARROW = 'resnest14_narrow'
IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    ends = ('running_mean', 'running_var', 'num_batches_tracked')
    return {name: value.clone() for name, value in model.state_dict().items() if name.endswith(ends)}


def assert_same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=name)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier(NARROW, 7).train()


def test_classifier(classifier):
    classifier.eval()
    with torch.no_grad():
        logits, maps = classifier(IMAGES[:, :, :48], with_cam=True)
        assert torch.equal(classifier(IMAGES[:, :, :48]), logits)
        features = classifier.backbone(IMAGES[:, :, :48])[-1]
    assert maps.shape == (8, 7, 3, 4)
    assert maps.min() < 0  # before ReLU
    torch.testing.assert_close(logits, maps.flatten(2).mean(2))
    weights = classifier.classifier.weight[:, :, 0, 0]
    torch.testing.assert_close(maps, torch.einsum('kc,nchw->nkhw', weights, features), rtol=1e-3, atol=1e-4)
    assert [name for name, _ in classifier.named_parameters() if not name.startswith('backbone.')] == [
        'classifier.weight'
    ]


def test_classifier_has_twenty_classes_and_trains_batch_norm_by_default():
    model = Classifier(NARROW).train()
    assert model.classifier.out_channels == 20
    assert all(norm.training for norm in norms_of(model).values())
    assert all(p.requires_grad for p in model.parameters())


def test_classifier_heads_are_kaiming_normal():
    torch.manual_seed(0)
    weight = Classifier('resnest14', 50).classifier.weight
    assert weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.02)


def test_mode_fix_freezes_statistics_and_the_lower_half():
    model = Classifier(NARROW, 7, 'fix').train()
    before = statistics(model)
    model(IMAGES).sum().backward()
    assert_same(statistics(model), before)
    for name, parameter in model.named_parameters():
        lower = name.startswith(tuple(f'backbone.{part}.' for part in ('conv1', 'bn1', 'layer1', 'layer2')))
        assert parameter.requires_grad != lower, name
        assert (parameter.grad is None) == lower, name
    for mode in (False, True):
        model.train(mode)
        assert not any(norm.training for norm in norms_of(model).values())
    assert model.training


@pytest.mark.parametrize('with_data_parallel', [False, True])
def test_mode_fix_outlives_train_of_a_wrapper(with_data_parallel):
    inner = Classifier(NARROW, 7, 'fix')
    model = nn.DataParallel(inner) if with_data_parallel else inner
    model.eval()
    model.train()
    assert not any(norm.training for norm in norms_of(inner).values())


def test_edge_head_has_the_published_number_of_parameters():
    head = EdgeHead((128, 256, 512, 1024, 2048))
    assert sum(p.numel() for p in head.parameters()) == 127_457
    biases = {name for name, p in head.named_parameters() if isinstance(p, nn.Parameter) and name.endswith('bias')}
    assert 'classify.bias' in biases
    assert not any(name.endswith('.0.bias') for name in biases)
    assert [m.num_groups for m in head.modules() if isinstance(m, nn.GroupNorm)] == [4] * 5


def test_edge_head_against_its_definition():
    torch.manual_seed(0)
    head = EdgeHead((8, 8, 16, 16, 16), 3).double()
    # Odd sizes: what is upsampled is larger than layer1's map, and cropped.
    sizes = [(13, 10), (13, 10), (7, 5), (4, 3), (4, 3)]
    features = [torch.randn(2, c, *s, dtype=torch.float64) for c, s in zip((8, 8, 16, 16, 16), sizes, strict=True)]
    parts = []
    for i, (x, factor) in enumerate(zip(features, (1, 1, 2, 4, 4), strict=True)):
        conv, norm = head.reduce[i]
        x = torch.einsum('kc,nchw->nkhw', conv.weight[:, :, 0, 0], x)
        groups = x.reshape(2, 4, -1)
        groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = groups.view(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = nn.Upsample(scale_factor=factor, mode='bilinear', align_corners=False)(x)
        parts.append(x.clamp(min=0)[:, :, :13, :10])
    joined = torch.cat(parts, 1)
    expected = torch.einsum('kc,nchw->nkhw', head.classify.weight[:, :, 0, 0], joined)
    expected = expected + head.classify.bias[:, None, None]
    torch.testing.assert_close(head(features), expected)


@pytest.mark.parametrize('backbone', [NARROW, 'mobilenet_v2'])
def test_affinitynet_trains_its_head_alone(backbone):
    model = AffinityNet(backbone).train()
    before = statistics(model)
    logits = model(IMAGES[:2])
    assert logits.shape == (2, 1, 16, 16)
    logits.sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    assert_same(statistics(model), before)
    # No path index, no other ballast: backbone and head are all there is in a model file.
    assert {name.split('.')[0] for name in model.state_dict()} == {'backbone', 'head'}


@pytest.mark.parametrize('size', [(65, 50), (64, 97)])
def test_edges_of_any_size_are_at_a_quarter(size):
    model = AffinityNet(NARROW).eval()
    logits = model(torch.zeros(1, 3, *size))
    assert logits.shape[2:] == ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)


@pytest.mark.parametrize('use_gn, groups', [(True, 9), (False, 0)])
def test_deeplab(use_gn, groups):
    model = DeepLabV3Plus(NARROW, 5, 'fix', use_gn)
    head = [*model.aspp.modules(), *model.decoder.modules()]
    norms = [m for m in head if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))]
    assert len(norms) == 9
    assert sum(isinstance(m, nn.GroupNorm) and m.num_groups == 4 for m in norms) == groups
    convs = [m for m in head if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs if m.bias is not None] == [5]
    assert sorted(m.dilation[0] for m in convs) == [1] * 7 + [6, 12, 18]
    assert sorted((m.in_channels, m.out_channels) for m in convs if m.kernel_size == (3, 3)) == [
        (256, 256), (304, 256), (512, 256), (512, 256), (512, 256),
    ]  # fmt: skip
    assert (1280, 256) in [(m.in_channels, m.out_channels) for m in convs if m.kernel_size == (1, 1)]
    assert sorted(m.p for m in head if isinstance(m, nn.Dropout)) == [0.1, 0.5, 0.5]
    for size in ((64, 48), (65, 50)):
        assert model.eval()(IMAGES[:2, :, : size[0], : size[1]].new_zeros(2, 3, *size)).shape == (2, 5, *size)


def test_deeplab_with_mode_fix_trains_all_but_the_statistics():
    model = DeepLabV3Plus(NARROW, 5).train()
    before = statistics(model.backbone)
    model(IMAGES[:2]).square().sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    assert_same(statistics(model.backbone), before)
    model = DeepLabV3Plus(NARROW, 5, mode='normal').train()
    before = statistics(model.backbone)
    model(IMAGES[:2])
    assert all(not torch.equal(x, before[name]) for name, x in statistics(model.backbone).items())


@pytest.mark.parametrize('architecture, stride', [('DeepLabv3+', 1), ('Seg_Model', 16), ('CSeg_Model', 4)])
@pytest.mark.parametrize('mode', ['normal', 'fix'])
def test_segmenters(architecture, stride, mode):
    model = build_segmenter(architecture, NARROW, 6, mode, True).train()
    assert model(IMAGES[:2]).shape == (2, 6, 64 // stride, 64 // stride)
    assert all(norm.training == (mode == 'normal') for norm in norms_of(model.backbone).values())
    if architecture == 'Seg_Model':
        assert [n for n, _ in model.named_parameters() if not n.startswith('backbone.')] == ['classifier.weight']


@pytest.mark.parametrize('replicas', [1, 2, 4])
def test_replicas_against_an_emulation_of_each_device(classifier, replicas):
    devices = [copy.deepcopy(classifier) for _ in range(replicas)]
    size = 8 // replicas
    outputs = [device(IMAGES[i * size : (i + 1) * size], with_cam=True) for i, device in enumerate(devices)]
    logits, maps = forward_in_replicas(classifier, IMAGES, replicas)
    assert torch.equal(logits, torch.cat([output[0] for output in outputs]))
    assert torch.equal(maps, torch.cat([output[1] for output in outputs]))
    assert_same(statistics(classifier), statistics(devices[0]))

    # The gradient is the sum of what the devices find.
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    for i, output in enumerate(outputs):
        (output[0] * weights[i * size : (i + 1) * size]).sum().backward()
    for (name, found), *others in zip(
        classifier.named_parameters(), *(device.parameters() for device in devices), strict=True
    ):
        expected = sum(other.grad for other in others)
        torch.testing.assert_close(found.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()), msg=name)


def test_both_passes_move_the_statistics_and_training_goes_on_normally(classifier):
    forward_in_replicas(classifier, IMAGES, 4)
    forward_in_replicas(classifier, IMAGES, 4)
    assert {int(norm.num_batches_tracked) for norm in norms_of(classifier).values()} == {2}
    assert all(norm.track_running_stats and norm.training for norm in norms_of(classifier).values())


def test_statistics_are_tracked_again_after_a_fault(classifier):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = classifier, 0

        def forward(self, x, with_cam):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError('out of memory')
            return self.inner(x, with_cam)

    with pytest.raises(RuntimeError, match='memory'):
        forward_in_replicas(Broken(), IMAGES, 2)
    assert all(norm.track_running_stats for norm in norms_of(classifier).values())


@pytest.mark.parametrize('architecture', ['resnet50', 'resnest14', 'resnest26', NARROW, 'mobilenet_v2'])
@pytest.mark.parametrize('build', [lambda name: Classifier(name, 7), AffinityNet, lambda name: DeepLabV3Plus(name, 8)])
def test_for_inference_is_the_same_function_without_batch_norm(architecture, build):
    torch.manual_seed(0)
    model = build(architecture).double().eval()
    for norm in norms_of(model).values():
        for value, (low, high) in zip(
            norm.state_dict().values(), ((0.5, 1.5), (-1, 1), (-1, 1), (0.5, 1.5)), strict=False
        ):
            value.uniform_(low, high)
    images = IMAGES[:2, :, :48].double()
    with torch.no_grad():
        before = model(images)
        faster = for_inference(copy.deepcopy(model).train())
        assert not norms_of(faster.backbone) and not any(module.training for module in faster.modules())
        torch.testing.assert_close(faster(images), before, rtol=1e-9, atol=1e-9 * before.abs().max().item())
        assert_same(dict(enumerate([model(images)])), {0: before})  # the model itself is left alone


@pytest.mark.parametrize('architecture', ['resnet50', NARROW])
@pytest.mark.parametrize('build', [lambda name: Classifier(name, 7), AffinityNet, lambda name: DeepLabV3Plus(name, 8)])
def test_bf16_rounds_what_is_multiplied_alone(architecture, build):
    """In any thread: nn.DataParallel has one for each device."""
    torch.manual_seed(0)
    model = build(architecture).eval()
    found = {}
    for model.bf16 in (False, True):
        thread = threading.Thread(target=lambda: found.update({model.bf16: model(IMAGES[:4])}))
        thread.start()
        thread.join()
    exact, rounded = found[False], found[True]
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().mean() < 0.03 * exact.abs().mean()
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(x.square().sum(), learning)]) for x in found.values()
    ]
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_multi_scale_logits():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 8, 8)
    scales = [torch.randn(2, 3, 16, 24), torch.randn(2, 3, 32, 48)]
    found = multi_scale_logits(model, scales, (20, 30))
    assert found.shape == (2, 4, 20, 30)
    for i in range(2):
        expected = 0
        for images in scales:
            with torch.no_grad():
                direct, mirrored = model(images[i : i + 1])[0], model(images[i : i + 1].flip(-1))[0]
            expected = expected + bilinear(direct.double().numpy(), (20, 30))
            expected = expected + bilinear(mirrored.double().numpy(), (20, 30))[:, :, ::-1]
        torch.testing.assert_close(found[i].double(), torch.from_numpy(expected.copy()), rtol=1e-4, atol=1e-5)
