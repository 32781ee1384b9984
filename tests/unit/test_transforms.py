"""Transforms: pixels against Pillow and numpy, the ranges of random numbers, dependence only on the seed."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from core.data.transforms import (
    AUGMENTATIONS,
    Augment,
    PaddedCrop,
    Pipeline,
    RandomCrop,
    RandomFlip,
    RandomResizeLong,
    ResizeMask,
    TopLeftCrop,
    normalize,
    rescale,
    resize,
    training_pipeline,
)
from support import draw_image

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def image(tmp_path):
    return draw_image(tmp_path / 'image.jpg', (50, 37))


@pytest.fixture
def mask():
    return Image.fromarray(np.random.default_rng(1).integers(0, 20, (37, 50), dtype=np.uint8))


def normalised(image) -> np.ndarray:
    """Normalise with numpy: (3, h, w) float64."""
    return ((np.asarray(image, np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


def as_input(found) -> np.ndarray:
    """Return the input of the network, (3, h, w)."""
    if isinstance(found, PaddedCrop):
        assert found.pixels.dtype == torch.uint8
        return normalize(default_collate([found]))[0].numpy()
    assert found.dtype == torch.uint8
    return normalize(found[None])[0].numpy()


def test_normalize(image):
    pixels = torch.from_numpy(np.array(image))
    found = normalize(pixels[None])
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), normalised(image), atol=1e-6)


def test_normalize_padded_crops(image):
    """Each has its own box; the pixels around it do not matter."""
    pixels = torch.from_numpy(np.array(image))
    boxes = torch.tensor([[0, 5, 50, 9], [3, 0, 4, 37], [0, 0, 50, 37]])
    found = normalize(PaddedCrop(pixels.expand(3, -1, -1, -1), boxes)).numpy()
    for one, (left, top, right, bottom) in zip(found, boxes.tolist(), strict=True):
        expected = np.zeros((3, 37, 50))
        expected[:, top:bottom, left:right] = normalised(image)[:, top:bottom, left:right]
        np.testing.assert_allclose(one, expected, atol=1e-6)


@pytest.mark.parametrize('scale, size', [(0.5, (25, 18)), (1.0, (50, 37)), (1.5, (75, 56)), (2.0, (100, 74))])
def test_rescale_is_pillows_bicubic(image, scale, size):
    expected = normalised(image.resize(size, Image.Resampling.BICUBIC))
    np.testing.assert_allclose(as_input(rescale(image, scale)), expected, atol=1e-6)


@pytest.mark.parametrize('size', [(25, 18), (49, 36), (50, 19), (75, 56), (61, 37), (200, 148), (1, 1)])
def test_resize_backends_differ_only_by_rounding(tmp_path, size):
    differences = []
    for seed in range(20):
        image = draw_image(tmp_path / 'image.jpg', (50, 37), seed)
        found = resize(image, size, backend='torch')
        assert (found.mode, found.size) == ('RGB', size)
        expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC), int)
        differences.append(np.abs(np.asarray(found, int) - expected).reshape(-1))
    differences = np.concatenate(differences)
    assert differences.max() <= 2
    assert np.mean(differences > 0) < 0.02


def test_resize_to_the_same_size_changes_nothing(image):
    for backend in ('pillow', 'torch'):
        assert resize(image, image.size, backend) is image
        assert np.array_equal(rescale(image, 1.0, backend), np.array(image))


@pytest.mark.parametrize('size', [(50, 37), (37, 50), (7, 50)])
def test_random_resize_long(tmp_path, size):
    image = draw_image(tmp_path / 'image.jpg', size)
    mask = Image.fromarray(np.random.default_rng(1).integers(0, 255, size[::-1], dtype=np.uint8))
    drawn = set()
    for seed in range(150):
        torch.manual_seed(seed)
        found, found_mask = RandomResizeLong(20, 32)(image, mask)
        longer = max(found.size)
        drawn.add(longer)
        expected = tuple(round(side * longer / max(size)) for side in size)
        assert found.size == found_mask.size == expected
        assert found.tobytes() == image.resize(expected, Image.Resampling.BICUBIC).tobytes()
        assert found_mask.tobytes() == mask.resize(expected, Image.Resampling.NEAREST).tobytes()
    assert drawn == set(range(20, 33))  # both ends included


def test_sides_have_at_least_one_pixel(tmp_path):
    image = draw_image(tmp_path / 'image.jpg', (200, 1))
    assert RandomResizeLong(16, 16)(image, None)[0].size == (16, 1)
    assert rescale(image, 0.1).shape == (1, 20, 3)


def test_random_flip(image, mask):
    flips = 0
    for seed in range(400):
        torch.manual_seed(seed)
        found, found_mask = RandomFlip()(image, mask)
        flipped = found.tobytes() != image.tobytes()
        flips += flipped
        step = -1 if flipped else 1
        assert np.array_equal(np.array(found), np.array(image)[:, ::step])
        assert np.array_equal(np.array(found_mask), np.array(mask)[:, ::step])
    assert 150 < flips < 250


def test_random_crop_of_a_larger_image(image, mask):
    pixels, classes, positions = normalised(image), np.array(mask), set()
    for seed in range(300):
        torch.manual_seed(seed)
        found, found_mask = RandomCrop(30)(image, mask)
        assert found.pixels.shape == (30, 30, 3)
        assert (found_mask.shape, found_mask.dtype) == ((30, 30), torch.uint8)
        matches = [
            (y, x)
            for y in range(8)
            for x in range(21)
            if np.array_equal(classes[y : y + 30, x : x + 30], found_mask.numpy())
        ]
        assert len(matches) == 1
        y, x = matches[0]
        np.testing.assert_allclose(as_input(found), pixels[:, y : y + 30, x : x + 30], atol=1e-6)
        positions.add((y, x))
    assert {y for y, _ in positions} == set(range(8))
    assert {x for _, x in positions} == set(range(21))


@pytest.mark.parametrize('size', [(4, 3), (4, 9), (9, 4)])
def test_random_crop_of_a_smaller_image(tmp_path, size):
    """Around it, the canvas is 0 after normalising and 255 in the mask; every position occurs."""
    image = draw_image(tmp_path / 'image.jpg', size)
    mask = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1]))
    pixels, positions = normalised(image), set()
    for seed in range(300):
        torch.manual_seed(seed)
        found, found_mask = RandomCrop(6)(image, mask)
        found, found_mask = as_input(found), found_mask.numpy()
        inside = found_mask != 255
        assert inside.sum() == min(size[0], 6) * min(size[1], 6)
        assert not found[:, ~inside].any()
        index = found_mask[inside]
        np.testing.assert_allclose(found[:, inside], pixels.reshape(3, -1)[:, index], atol=1e-6)
        y, x = (int(axis[0]) for axis in np.nonzero(inside))
        positions.add((y, x, int(index[0])))
        assert np.array_equal(index, np.sort(index))
    assert len(positions) == (abs(size[0] - 6) + 1) * (abs(size[1] - 6) + 1)


@pytest.mark.parametrize('size', [(50, 37), (20, 16), (50, 16), (30, 30)])
def test_top_left_crop(tmp_path, size):
    image = draw_image(tmp_path / 'image.jpg', size)
    mask = Image.fromarray(np.random.default_rng(1).integers(0, 20, size[::-1], dtype=np.uint8))
    expected, expected_mask = np.zeros((3, 30, 30)), np.full((30, 30), 255)
    h, w = min(30, size[1]), min(30, size[0])
    expected[:, :h, :w] = normalised(image)[:, :h, :w]
    expected_mask[:h, :w] = np.array(mask)[:h, :w]
    found, found_mask = TopLeftCrop(30)(image, mask)
    np.testing.assert_allclose(as_input(found), expected, atol=1e-6)
    assert np.array_equal(found_mask.numpy(), expected_mask)


def test_resize_mask_is_pillows_nearest():
    mask = np.random.default_rng(2).integers(0, 256, (64, 64), dtype=np.uint8)
    image = torch.zeros(3, 64, 64)
    found_image, found = ResizeMask(16)(image, torch.from_numpy(mask))
    assert found_image is image
    expected = np.array(Image.fromarray(mask).resize((16, 16), Image.Resampling.NEAREST))
    assert (found.dtype, found.shape) == (torch.uint8, (16, 16))
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    'names', [['colorjitter'], ['randaugment'], ['randaugment_torchvision'], ['colorjitter', 'randaugment']]
)
def test_augmentations_change_only_the_image(image, mask, names):
    changed, before = 0, np.array(image)
    for seed in range(6):
        torch.manual_seed(seed)
        found, found_mask = Augment(names)(image, mask)
        assert found_mask is mask
        assert (found.size, found.mode) == (image.size, 'RGB')
        changed += found.tobytes() != image.tobytes()
    assert changed >= 4
    assert np.array_equal(np.asarray(image), before)
    assert len(Augment(names).operations) == len(names)


def test_no_augmentation(image, mask):
    assert Augment([''])(image, mask) == (image, mask)


def pipeline():
    names = ['colorjitter', 'randaugment']
    return Pipeline(RandomResizeLong(20, 60), RandomFlip(), Augment(names), RandomCrop(32))


def test_sample_depends_only_on_its_seed(image, mask):
    first = pipeline()(image, mask, (3, 1, 7))
    torch.manual_seed(99)
    np.random.seed(99)
    pipeline()(image, mask, (3, 1, 8))
    again = pipeline()(image, mask, (3, 1, 7))
    assert torch.equal(first[1], again[1])
    assert np.array_equal(as_input(first[0]), as_input(again[0]))
    for other in ((4, 1, 7), (3, 2, 7), (3, 1, 6), (1, 3, 7), (7, 1, 3)):
        assert not np.array_equal(as_input(pipeline()(image, mask, other)[0]), as_input(first[0]))


def test_pipeline_does_not_change_the_global_generator(image, mask):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pipeline()(image, mask, (0, 0, 0))
    assert torch.equal(torch.rand(3), expected)


def test_images_without_masks(image):
    found, mask = pipeline()(image, None, (0, 0, 0))
    assert found.pixels.shape == (32, 32, 3)
    assert mask is None


@pytest.mark.parametrize('mask_size', [None, 8])
def test_training_pipeline(image, mask, mask_size):
    operations = [RandomResizeLong(20, 60, 'torch'), RandomFlip(), Augment(['randaugment']), RandomCrop(32)]
    operations += [ResizeMask(mask_size)] if mask_size else []
    for seed in range(10):
        found, found_mask = training_pipeline((20, 60), 32, 'torch', ['randaugment'], mask_size)(image, mask, (seed,))
        expected, expected_mask = Pipeline(*operations)(image, mask, (seed,))
        assert found_mask.shape == ((mask_size, mask_size) if mask_size else (32, 32))
        assert torch.equal(found_mask, expected_mask)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_training_pipeline_uses_no_colours_and_pillow_by_default(image):
    assert set(AUGMENTATIONS) == {'colorjitter', 'randaugment', 'randaugment_torchvision'}
    for seed in range(10):
        found, _ = training_pipeline((20, 60), 32)(image, None, (seed,))
        expected, _ = Pipeline(RandomResizeLong(20, 60), RandomFlip(), RandomCrop(32))(image, None, (seed,))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
