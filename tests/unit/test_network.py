"""What all networks share: half precision, folding for inference, several passes for large images."""

import threading

import pytest
import torch

from core.models import AffinityNet, Classifier, DeepLabV3Plus, network
from support import batchnorms

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
