"""The classifier: its class maps and logits, its initial weights, what --mode fix freezes."""

import pytest
import torch
from torch import nn

from core.models import Classifier
from support import assert_identical, batchnorms, statistics

NARROW = 'resnest14_narrow'
IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_logits_are_means_of_class_maps():
    torch.manual_seed(0)
    classifier = Classifier(NARROW, 7).eval()
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


def test_class_maps_of_the_positive_weights():
    torch.manual_seed(0)
    classifier = Classifier(NARROW, 7).eval()
    with torch.no_grad():
        logits, maps = classifier(IMAGES, with_cam=True)
        again, same, positive = classifier(IMAGES, with_cam=True, positive=True)
        assert torch.equal(logits, again) and torch.equal(maps, same)
        classifier.classifier.weight.clamp_(min=0)
        expected = classifier(IMAGES, with_cam=True)[1]
    torch.testing.assert_close(positive, expected)
    assert (positive >= maps).all() and (positive > maps + 0.01).any()


def test_number_of_classes_is_required():
    with pytest.raises(TypeError, match='num_classes'):
        Classifier(NARROW)


def test_batchnorm_trains_by_default():
    model = Classifier(NARROW, 20).train()
    assert model.classifier.out_channels == 20
    assert all(norm.training for norm in batchnorms(model).values())
    assert all(p.requires_grad for p in model.parameters())


def test_head_is_kaiming_normal():
    torch.manual_seed(0)
    weight = Classifier('resnest14', 50).classifier.weight
    assert weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=4 * (2 / 2048 / weight.numel()) ** 0.5)


def test_mode_fix_freezes_statistics_and_the_lower_half():
    model = Classifier(NARROW, 7, 'fix').train()
    before = statistics(model)
    model(IMAGES).sum().backward()
    assert_identical(statistics(model), before)
    for name, parameter in model.named_parameters():
        lower = name.startswith(tuple(f'backbone.{part}.' for part in ('conv1', 'bn1', 'layer1', 'layer2')))
        assert parameter.requires_grad != lower, name
        assert (parameter.grad is None) == lower, name
    for mode in (False, True):
        model.train(mode)
        assert not any(norm.training for norm in batchnorms(model).values())
    assert model.training


@pytest.mark.parametrize('with_data_parallel', [False, True])
def test_mode_fix_survives_train_of_a_wrapper(with_data_parallel):
    inner = Classifier(NARROW, 7, 'fix')
    model = nn.DataParallel(inner) if with_data_parallel else inner
    model.eval()
    model.train()
    assert not any(norm.training for norm in batchnorms(inner).values())
