"""The steps of the chain, images in and arrays out: by hand, and equal to what stages 2, 5 and 8 write."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core import chain
from core.cam import READ_OUTS
from core.crf import crf_from_probability
from core.data.torch_datasets import MultiScaleDataset
from core.data.transforms import normalize
from core.models import Classifier
from core.models.model_file import ModelFile
from core.random_walk import random_walk
from support import bilinear
from support.chain import CAMS, PREDICTIONS, RANDOM_WALKS, dataset_of, ids_of, pixels
from util.store.arrays import read_arrays
from util.training.models import load_for_inference

SIZE = (37, 50)


class Cells(nn.Module):
    """Stand-in for a network: one convolution at a stride, with its means as logits."""

    def __init__(self, outputs: int, stride: int):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, outputs, stride, stride, padding=stride // 2)

    def forward(self, x, with_cam=False):
        maps = self.conv(x)
        return (maps.mean((2, 3)), maps) if with_cam else maps


@pytest.fixture
def images(rng) -> list[torch.Tensor]:
    """Two images at two scales, as bytes."""
    sizes = [(2, 19, 25, 3), (2, *SIZE, 3)]
    return [torch.from_numpy(rng.integers(0, 256, size, dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize('kind', ['array', 'tensor'])
def test_cams_of_images(images, kind):
    """Arrays of the present classes alone, each in [0, 1]; a maximum is 1 up to the epsilon."""
    labels = np.array([[0, 1, 0, 1], [1, 0, 0, 0]], np.float32)
    classifier = Cells(4, 16)
    found = chain.image_cams(classifier, images, labels if kind == 'array' else torch.from_numpy(labels), SIZE)
    probability, maps = chain.classify(classifier, images)
    logits = [classifier(normalize(x), with_cam=True)[0] for x in images for x in (x, x.flip(2))]
    expected = torch.stack([torch.sigmoid(one) for one in logits]).mean(0)
    np.testing.assert_allclose(probability, expected.detach().numpy(), rtol=1e-5)
    for (cam, hr_cam), (again, hr_again), count in zip(found, chain.cams_of(maps, labels, SIZE), (2, 1), strict=True):
        assert (cam.shape, hr_cam.shape) == ((count, 10, 13), (count, *SIZE))
        assert isinstance(cam, np.ndarray) and cam.dtype == hr_cam.dtype == np.float32
        for array in (cam, hr_cam):
            assert array.min() >= 0
            np.testing.assert_allclose(array.max((1, 2)), 1, atol=1e-3)
        assert np.array_equal(cam, again) and np.array_equal(hr_cam, hr_again)


@pytest.mark.parametrize('read_out', READ_OUTS)
def test_read_outs_of_images(images, read_out):
    """The mean is between the two others, up to the division by its maximum."""
    labels = np.array([[0, 1, 1], [1, 0, 0]], np.float32)
    torch.manual_seed(0)
    classifier = Classifier('resnest14_narrow', 3).eval()
    found = chain.image_cams(classifier, images, labels, SIZE, read_out)
    with torch.no_grad():
        classifier.classifier.weight.clamp_(min=0)
    positive = chain.image_cams(classifier, images, labels, SIZE)
    same = [np.allclose(cam, other, atol=1e-5) for (cam, _), (other, _) in zip(found, positive, strict=True)]
    assert same == [read_out == 'positive'] * 2
    for (cam, hr_cam), count in zip(found, (2, 1), strict=True):
        assert (cam.shape, hr_cam.shape) == ((count, 10, 13), (count, *SIZE))
        np.testing.assert_allclose(cam.max((1, 2)), 1, atol=1e-3)


def test_probabilities_of_images(images):
    """One softmax of the logits that are summed over scales and mirror images at the size of the image."""
    segmenter = Cells(5, 4)
    found = chain.image_probabilities(segmenter, images, SIZE)
    total = 0
    for scaled in images:
        for x, back in ((scaled, lambda y: y), (scaled.flip(2), lambda y: y[..., ::-1])):
            total = total + back(bilinear(segmenter(normalize(x)).detach().double().numpy(), SIZE))
    expected = np.exp(total) / np.exp(total).sum(1, keepdims=True)
    assert (found.shape, found.dtype) == ((2, 5, *SIZE), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_edges_of_images(images):
    """Padded to the smallest size, and cropped again."""
    network = Cells(1, 4)
    edges = chain.image_edges(network, images[1], 64)
    x = torch.zeros(2, 3, 64, 64)
    x[..., : SIZE[0], : SIZE[1]] = normalize(images[1])
    logits = (network(x) + network(x.flip(3)).flip(3)) / 2
    assert edges.shape == (2, 10, 13)
    torch.testing.assert_close(edges, torch.sigmoid(logits[:, 0, :10, :13]))


@pytest.mark.parametrize('by', ['joint', 'class'])
def test_walked_cams_have_a_maximum_of_one(rng, by):
    cam, edge = rng.random((3, 6, 7)).astype(np.float32), torch.from_numpy(rng.random((6, 7)).astype(np.float32))
    cam[1] *= 0.1
    cam[2] = 0
    walked = chain.walk_cams(cam, edge, 5, 3, by)
    expected = random_walk(torch.from_numpy(cam), edge, beta=5, exp_times=3).numpy()
    expected /= expected.max() if by == 'joint' else np.maximum(expected.max((1, 2), keepdims=True), 1e-12)
    np.testing.assert_allclose(walked, expected, rtol=1e-6)
    assert walked.max((1, 2))[[0, 2]].tolist() == [1, 0]
    assert (walked[1].max() == 1) == (by == 'class')


# What the stages write ----------------------------------------------------------------------------------------------


def batches_of(demo, domain: str, scales: list[float]):
    ids = ids_of(demo, domain)
    return MultiScaleDataset(dataset_of(demo), ids, set(ids), scales, 4)


def network_of(tag: str) -> nn.Module:
    file = ModelFile(Path(f'experiments/models/{tag}.pth'))
    return load_for_inference(file, file.meta, 'cpu')[0]


def test_stage_2_writes_these_cams(experiments, demo):
    classifier, dataset = network_of('cls'), dataset_of(demo)
    for ids, images, scaled in batches_of(demo, 'train_aug', [0.5, 1.0]):
        labels = np.stack([dataset.read_labels(image_id) for image_id in ids])
        maps = chain.image_cams(classifier, scaled, labels, images[0].shape[:2])
        for image_id, found in zip(ids, maps, strict=True):
            written = read_arrays(experiments / 'predictions' / CAMS / f'{image_id}.npz', 'cam', 'hr_cam')
            for array, expected in zip(found, written, strict=True):
                assert np.array_equal(array.astype(np.float16), expected)


def test_stage_5_writes_these_random_walks(experiments, demo):
    affinity_net = network_of('aff')
    for ids, _, (original,) in batches_of(demo, 'train_aug', [1.0]):
        for image_id, edge in zip(ids, chain.image_edges(affinity_net, original, 96), strict=True):
            (cam,) = read_arrays(experiments / 'predictions' / CAMS / f'{image_id}.npz', 'cam')
            (expected,) = read_arrays(experiments / 'predictions' / RANDOM_WALKS / f'{image_id}.npz', 'rw')
            assert np.array_equal(chain.walk_cams(cam.astype(np.float32), edge).astype(np.float16), expected)


def test_stage_8_writes_what_the_crf_makes_of_these_probabilities(experiments, demo):
    segmenter = network_of('seg')
    for ids, images, scaled in batches_of(demo, 'val', [0.5, 1.0]):
        probabilities = chain.image_probabilities(segmenter, scaled, images[0].shape[:2])
        for image_id, image, probability in zip(ids, images, probabilities, strict=True):
            expected = pixels(experiments / 'predictions' / PREDICTIONS / f'{image_id}.png')
            assert np.array_equal(crf_from_probability(image, probability, 10).argmax(0), expected)
