"""CAMs of class maps in training, and CAMs summed over scales and mirror image."""

import numpy as np
import pytest
import torch
from torch import nn

from core.cam import cams_from_maps, make_cam, multi_scale_cam, multi_scale_maps
from core.maps import average_cams
from support import bilinear


def test_make_cam_against_a_loop():
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps[0, 1] = -maps[0, 1].abs()  # no activation
    maps[1, 2] *= 1e-5  # close to the epsilon
    cams = make_cam(maps)
    for n in range(2):
        for c in range(3):
            values = [max(x, 0) for x in maps[n, c].flatten().tolist()]
            expected = [max(x - 1e-5, 0) / (max(values) + 1e-5) for x in values]
            np.testing.assert_allclose(cams[n, c].flatten().numpy(), expected, rtol=1e-12, atol=1e-15)
    assert not cams[0, 1].any()
    assert cams.min() >= 0
    assert cams.max() <= 1


def test_gradients_flow_through_make_cam():
    maps = torch.rand(1, 1, 3, 3, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(make_cam, maps.requires_grad_())


class Cells(nn.Module):
    """Stand-in for a classifier: one convolution gives class maps at stride 16."""

    def __init__(self, num_classes: int):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, num_classes, 16, 16, padding=8)

    def forward(self, x, with_cam=False):
        maps = self.conv(x)
        return (maps.mean((2, 3)), maps) if with_cam else maps.mean((2, 3))


@pytest.mark.parametrize('size', [(37, 50), (64, 48)])
def test_multi_scale_cam(size):
    h, w = size
    labels = torch.tensor([[0, 1, 0, 1, 1.0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]])
    model = Cells(5).double()
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 3, round(h * s), round(w * s)) for s in (0.5, 1, 2)]
    scales = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    cams = multi_scale_cam(model, scales, labels, size)
    assert len(cams) == 3

    # The images are float64 but the maps become float32 inside, hence the tolerance.
    rounded = (16 * ((h + 15) // 16), 16 * ((w + 15) // 16))
    for i, (cam, hr_cam) in enumerate(cams):
        present = np.flatnonzero(labels[i])
        small, large = 0, 0
        for images in scales:
            with torch.no_grad():
                direct = model(images[i : i + 1], with_cam=True)[1][0].numpy()
                mirrored = model(torch.flip(images[i : i + 1], [3]), with_cam=True)[1][0].numpy()
            maps = (np.maximum(direct, 0) + np.maximum(mirrored, 0)[:, :, ::-1])[present]
            small = small + bilinear(maps, ((h - 1) // 4 + 1, (w - 1) // 4 + 1))
            large = large + bilinear(maps, rounded)[:, :h, :w]
        for found, expected in ((cam, small), (hr_cam, large)):
            expected = expected / (expected.max((1, 2), keepdims=True) + 1e-5)
            assert found.shape == expected.shape
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        assert not cam.requires_grad


def test_class_probabilities_over_scales():
    model, generator = Cells(5).double(), torch.Generator().manual_seed(1)
    scales = [torch.randn((2, 3, *size), dtype=torch.float64, generator=generator) for size in ((20, 30), (40, 60))]
    probability, maps = multi_scale_maps(model, scales)
    expected = 0
    for images in scales:
        for x in (images, images.flip(3)):
            with torch.no_grad():
                expected = expected + 1 / (1 + np.exp(-model(x).numpy())) / 4
    np.testing.assert_allclose(probability.numpy(), expected, atol=1e-6)
    assert [[tuple(x.shape) for x in one] for one in maps] == [[(2, 5, 2, 2), (2, 5, 3, 4)]]


class Linear(nn.Module):
    """Stand-in for a classifier: features that are not negative, and a 1x1 convolution."""

    def __init__(self, weights: torch.Tensor):
        super().__init__()
        self.weights = weights

    def forward(self, x, with_cam=False, positive=False):
        features = nn.functional.avg_pool2d(x, 16).abs()
        maps, positives = (
            nn.functional.conv2d(features, w[:, :, None, None]) for w in (self.weights, self.weights.relu())
        )
        return (maps.mean((2, 3)), maps, *([positives] if positive else []))


def test_read_outs():
    """positive: CAMs of a classifier without negative weights; mean: the mean of both, with a maximum of 1 again."""
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(4, 3, generator=generator)
    scales = [torch.randn((2, 3, *size), generator=generator) for size in ((64, 80), (128, 160))]
    labels, size = torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, 0]]), (64, 80)

    def cams(model, read_out):
        probability, maps = multi_scale_maps(model, scales, read_out)
        return probability, [cams_from_maps(one, labels, size) for one in maps]

    probability, (published,) = cams(Linear(weights), 'published')
    _, (expected,) = cams(Linear(weights.relu()), 'published')
    same, (positive,) = cams(Linear(weights), 'positive')
    also, both = cams(Linear(weights), 'mean')
    assert torch.equal(probability, same) and torch.equal(probability, also)  # all weights decide on the tags
    for image in range(2):
        means = [torch.from_numpy(mean) for mean in average_cams([[x.numpy() for x in one[image]] for one in both])]
        for index in range(2):
            torch.testing.assert_close(positive[image][index], expected[image][index])
            assert not torch.allclose(positive[image][index], published[image][index], atol=0.01)
            mean = (published[image][index] + positive[image][index]) / 2
            torch.testing.assert_close(means[index], mean / (mean.amax((1, 2), keepdim=True) + 1e-5))
        assert average_cams([published[image]]) == list(published[image])
