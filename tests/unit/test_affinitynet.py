"""AffinityNet: its edge head by definition, what trains, and the edges it predicts."""

import numpy as np
import pytest
import torch
from torch import nn

from core.models import AffinityNet
from core.models.affinitynet import EdgeHead, predict_edges
from support import assert_identical, statistics

NARROW = 'resnest14_narrow'
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


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
    # With odd sizes, upsampled maps are larger than layer1's and get cropped.
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


@pytest.mark.parametrize('backbone', [NARROW, 'mobilenet_v2', 'efficientnet_lite0'])
def test_only_the_head_trains(backbone):
    model = AffinityNet(backbone).train()
    before = statistics(model)
    logits = model(IMAGES)
    assert logits.shape == (2, 1, 16, 16)
    logits.sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    assert_identical(statistics(model), before)
    # A model file contains backbone and head only, and no path index.
    assert {name.split('.')[0] for name in model.state_dict()} == {'backbone', 'head'}


@pytest.mark.parametrize('size', [(65, 50), (64, 97)])
def test_edges_have_stride_4_at_any_size(size):
    model = AffinityNet(NARROW).eval()
    logits = model(torch.zeros(1, 3, *size))
    assert logits.shape[2:] == ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)


class Edges(nn.Module):
    """Stand-in for AffinityNet: logits at stride 4 by one convolution that sees left and right differently."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 1, 7, 4, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.mark.parametrize('size', [(37, 50), (64, 64), (65, 30), (80, 97)])
def test_predict_edges(size):
    """Pad to 64, run image and mirror image, average the logits, crop to the strided size of the image."""
    h, w = size
    model = Edges().double()
    images = torch.randn(3, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = predict_edges(model, images, 64)
    assert found.shape == (3, (h - 1) // 4 + 1, (w - 1) // 4 + 1)
    assert not found.requires_grad
    for image, edges in zip(images.numpy(), found.numpy(), strict=True):
        padded = np.zeros((3, max(h, 64), max(w, 64)))
        padded[:, :h, :w] = image
        with torch.no_grad():
            logits = model(torch.from_numpy(padded)[None])[0, 0].numpy()
            mirrored = model(torch.from_numpy(padded[:, :, ::-1].copy())[None])[0, 0].numpy()[:, ::-1]
        expected = 1 / (1 + np.exp(-(logits + mirrored) / 2))
        # The logits become float32 inside, hence the tolerance.
        np.testing.assert_allclose(edges, expected[: edges.shape[0], : edges.shape[1]], atol=1e-6)
        assert np.abs(logits - mirrored).max() > 0.1  # otherwise the mirror image would not matter
