"""What all networks share: half precision, folding for inference, parts of a batch, repeated passes."""

import threading

import pytest
import torch

from core.models import AffinityNet, Classifier, DeepLabV3Plus, network
from core.models.network import Dropout
from support import assert_identical, batchnorms, statistics

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# Depth only takes time: the smallest network rounds in the same places.
@pytest.mark.parametrize('architecture', [pytest.param('resnet50', marks=pytest.mark.slow), 'resnest14_narrow'])
@pytest.mark.parametrize('build', [lambda name: Classifier(name, 7), AffinityNet, lambda name: DeepLabV3Plus(name, 8)])
@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_half_precision_rounds_products_only(architecture, build, half):
    """In any thread: nn.DataParallel has one per device."""
    torch.manual_seed(0)
    model = build(architecture).eval()
    found = {}
    for model.half in (None, half):
        thread = threading.Thread(target=lambda: found.update({model.half: model(IMAGES)}))
        thread.start()
        thread.join()
    exact, rounded = found[None], found[half]
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().mean() < 0.03 * exact.abs().mean()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(x.square().mean(), trained)]) for x in found.values()
    ]
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_half_precision_of_several_outputs():
    model = Classifier('resnest14_narrow', 7).eval()
    model.half = torch.bfloat16
    logits, maps = model(IMAGES, with_cam=True)
    assert (logits.dtype, maps.dtype) == (torch.float32, torch.float32)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_for_inference():
    torch.manual_seed(0)
    model = Classifier('resnest14_narrow', 7).eval()
    with torch.no_grad():
        expected = model(IMAGES)
        model = model.train().for_inference()
        assert isinstance(model, Classifier)
        assert not model.training
        assert not batchnorms(model.backbone)
        torch.testing.assert_close(model(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('limit, passes', [(8 * 64 * 64, [8]), (3 * 64 * 64, [3, 1, 3, 1]), (1, [1] * 8)])
def test_large_images_take_several_passes(monkeypatch, limit, passes):
    seen = []

    def function(x):
        seen.append(len(x))
        return x[:, 0], x.flatten(1).sum(1)

    monkeypatch.setattr(network, 'PASS_PIXELS', limit)
    first, sums = network.run_with_mirror_images(function, IMAGES)
    both = torch.cat([IMAGES, IMAGES.flip(-1)])
    assert torch.equal(first, both[:, 0])
    torch.testing.assert_close(sums, both.flatten(1).sum(1))
    assert seen == passes


@pytest.mark.parametrize('build', [lambda name: Classifier(name, 7), AffinityNet, lambda name: DeepLabV3Plus(name, 8)])
def test_several_passes_compute_the_same(monkeypatch, build):
    model = build('resnest14_narrow').for_inference()
    with torch.no_grad():
        expected = network.run_with_mirror_images(lambda x: (model(x),), IMAGES)[0]
        monkeypatch.setattr(network, 'PASS_PIXELS', 1)
        found = network.run_with_mirror_images(lambda x: (model(x),), IMAGES)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('parts', [2, 4])
def test_dropout_of_a_part_is_that_of_the_whole_batch(layout, parts):
    x = torch.randn(8, 3, 5, 7).contiguous(memory_format=layout)
    torch.manual_seed(0)
    whole, after = torch.nn.Dropout(0.4)(x), torch.rand(3)
    dropout = Dropout(0.4)
    found = []
    for dropout.part, share in enumerate(x.chunk(parts)):
        dropout.parts = parts
        torch.manual_seed(0)
        found.append(dropout(share))
        assert torch.equal(torch.rand(3), after)  # and the generator is where one process has it
    torch.testing.assert_close(torch.cat(found), whole)
    assert torch.equal(dropout.eval()(share), share)


def test_only_the_first_part_moves_the_running_statistics():
    model = Classifier('resnest14_narrow', 7).train()
    before = statistics(model)
    model.at_part(1, 2)
    model(IMAGES)
    assert_identical(statistics(model), before)
    model.at_part(0, 2)
    model(IMAGES)
    assert {int(norm.num_batches_tracked) for norm in batchnorms(model).values()} == {1}


@pytest.mark.parametrize('part', [0, 1])
def test_repeated_pass_gives_the_same_gradients_and_statistics(part):
    gradients, moved, kept = [], [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Classifier('resnest14_narrow', 7).train()
        model.recompute = recompute
        model.at_part(part, 2)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            logits, _ = model(IMAGES, with_cam=True)
        kept.append(sum(saved))
        logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        moved.append(statistics(model))
    assert_identical(*gradients)
    assert_identical(*moved)
    assert kept[1] < 0.1 * kept[0]
