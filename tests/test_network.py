"""What all networks share: bfloat16 and folding for inference."""

import threading

import pytest
import torch
from conftest import batchnorms

from core.models import AffinityNet, Classifier, DeepLabV3Plus

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('architecture', ['resnet50', 'resnest14_narrow'])
@pytest.mark.parametrize('build', [lambda name: Classifier(name, 7), AffinityNet, lambda name: DeepLabV3Plus(name, 8)])
def test_bf16_rounds_products_only(architecture, build):
    """In any thread: nn.DataParallel has one per device."""
    torch.manual_seed(0)
    model = build(architecture).eval()
    found = {}
    for model.bf16 in (False, True):
        thread = threading.Thread(target=lambda: found.update({model.bf16: model(IMAGES)}))
        thread.start()
        thread.join()
    exact, rounded = found[False], found[True]
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().mean() < 0.03 * exact.abs().mean()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(x.square().sum(), trained)]) for x in found.values()
    ]
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_bf16_of_several_outputs():
    model = Classifier('resnest14_narrow', 7).eval()
    model.bf16 = True
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
