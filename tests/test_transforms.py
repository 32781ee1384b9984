"""Image pipelines: pixels against Pillow and numpy, ranges of what is drawn, and that all follows from the seed."""

import numpy as np
import pytest
import torch
from conftest import draw_image
from core.transforms import (
    Augment,
    Pipeline,
    RandomCrop,
    RandomFlip,
    RandomLongerSide,
    ResizeMask,
    TopLeftCrop,
    Window,
    network_input,
    resized,
    scaled,
)
from PIL import Image
from torch.utils.data import default_collate

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def image(tmp_path):
    return draw_image(tmp_path / 'image.jpg', (50, 37))


@pytest.fixture
def mask():
    return Image.fromarray(np.random.default_rng(1).integers(0, 20, (37, 50), dtype=np.uint8))


def normalised(image) -> np.ndarray:
    """(3, h, w) float64 by numpy."""
    return ((np.asarray(image, np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


def as_input(found) -> np.ndarray:
    """(3, h, w) as the network gets it."""
    if isinstance(found, Window):
        assert found.pixels.dtype == torch.uint8
        return network_input(default_collate([found]))[0].numpy()
    assert found.dtype == torch.uint8
    return network_input(found[None])[0].numpy()


def test_network_input(image):
    pixels = torch.from_numpy(np.array(image))
    found = network_input(pixels[None])
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), normalised(image), atol=1e-6)


def test_network_input_of_windows(image):
    """Each with a box of its own; what lies around it does not matter."""
    pixels = torch.from_numpy(np.array(image))
    boxes = torch.tensor([[0, 5, 50, 9], [3, 0, 4, 37], [0, 0, 50, 37]])
    found = network_input(Window(pixels.expand(3, -1, -1, -1), boxes)).numpy()
    for one, (left, top, right, bottom) in zip(found, boxes.tolist(), strict=True):
        expected = np.zeros((3, 37, 50))
        expected[:, top:bottom, left:right] = normalised(image)[:, top:bottom, left:right]
        np.testing.assert_allclose(one, expected, atol=1e-6)


@pytest.mark.parametrize('scale, size', [(0.5, (25, 18)), (1.0, (50, 37)), (1.5, (75, 56)), (2.0, (100, 74))])
def test_scaled_is_pillows_bicubic(image, scale, size):
    expected = normalised(image.resize(size, Image.Resampling.BICUBIC))
    np.testing.assert_allclose(as_input(scaled(image, scale)), expected, atol=1e-6)


@pytest.mark.parametrize('size', [(25, 18), (49, 36), (50, 19), (75, 56), (61, 37), (200, 148), (1, 1)])
def test_torchs_bicubic_is_pillows_but_for_rounding(tmp_path, size):
    differences = []
    for seed in range(20):
        image = draw_image(tmp_path / 'image.jpg', (50, 37), seed)
        found = resized(image, size, by='torch')
        assert (found.mode, found.size) == ('RGB', size)
        expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC), int)
        differences.append(np.abs(np.asarray(found, int) - expected).reshape(-1))
    differences = np.concatenate(differences)
    assert differences.max() <= 2
    assert np.mean(differences > 0) < 0.02


def test_what_has_its_size_stays_as_it_is(image):
    for by in ('pillow', 'torch'):
        assert resized(image, image.size, by) is image
        assert np.array_equal(scaled(image, 1.0, by), np.array(image))


@pytest.mark.parametrize('size', [(50, 37), (37, 50), (7, 50)])
def test_longer_side(tmp_path, size):
    image = draw_image(tmp_path / 'image.jpg', size)
    mask = Image.fromarray(np.random.default_rng(1).integers(0, 255, size[::-1], dtype=np.uint8))
    drawn = set()
    for seed in range(150):
        torch.manual_seed(seed)
        found, found_mask = RandomLongerSide(20, 32)(image, mask)
        longer = max(found.size)
        drawn.add(longer)
        expected = tuple(round(side * longer / max(size)) for side in size)
        assert found.size == found_mask.size == expected
        assert found.tobytes() == image.resize(expected, Image.Resampling.BICUBIC).tobytes()
        assert found_mask.tobytes() == mask.resize(expected, Image.Resampling.NEAREST).tobytes()
    assert drawn == set(range(20, 33))  # both ends included


def test_a_side_never_vanishes(tmp_path):
    image = draw_image(tmp_path / 'image.jpg', (200, 1))
    assert RandomLongerSide(16, 16)(image, None)[0].size == (16, 1)
    assert scaled(image, 0.1).shape == (1, 20, 3)


def test_flip_is_joint_and_happens_half_the_time(image, mask):
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
    pixels, classes, places = normalised(image), np.array(mask), set()
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
        places.add((y, x))
    assert {y for y, _ in places} == set(range(8))
    assert {x for _, x in places} == set(range(21))


@pytest.mark.parametrize('size', [(4, 3), (4, 9), (9, 4)])
def test_random_crop_of_a_smaller_image_is_a_canvas(tmp_path, size):
    """0 after normalising around the image, 255 around the mask, at every place that there is."""
    image = draw_image(tmp_path / 'image.jpg', size)
    mask = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1]))
    pixels, places = normalised(image), set()
    for seed in range(300):
        torch.manual_seed(seed)
        found, found_mask = RandomCrop(6)(image, mask)
        found, found_mask = as_input(found), found_mask.numpy()
        inside = found_mask != 255
        assert inside.sum() == min(size[0], 6) * min(size[1], 6)
        assert not found[:, ~inside].any()
        index = found_mask[inside]
        np.testing.assert_allclose(found[:, inside], pixels.reshape(3, -1)[:, index], atol=1e-6)
        y, x = (int(place[0]) for place in np.nonzero(inside))
        places.add((y, x, int(index[0])))
        assert np.array_equal(index, np.sort(index))
    assert len(places) == (abs(size[0] - 6) + 1) * (abs(size[1] - 6) + 1)


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


@pytest.mark.parametrize('names', [['colorjitter'], ['randaugment'], ['colorjitter', 'randaugment']])
def test_augmentations_change_the_image_alone(image, mask, names):
    changed = 0
    for seed in range(6):
        torch.manual_seed(seed)
        found, found_mask = Augment(names)(image, mask)
        assert found_mask is mask
        assert (found.size, found.mode) == (image.size, 'RGB')
        changed += found.tobytes() != image.tobytes()
    assert changed >= 4
    assert len(Augment(names).operations) == len(names)


def test_no_augmentation(image, mask):
    assert Augment([''])(image, mask) == (image, mask)


def pipeline():
    names = ['colorjitter', 'randaugment']
    return Pipeline(RandomLongerSide(20, 60), RandomFlip(), Augment(names), RandomCrop(32))


def test_a_sample_follows_from_its_seed_alone(image, mask):
    first = pipeline()(image, mask, (3, 1, 7))
    torch.manual_seed(99)
    np.random.seed(99)
    pipeline()(image, mask, (3, 1, 8))
    again = pipeline()(image, mask, (3, 1, 7))
    assert torch.equal(first[1], again[1])
    assert np.array_equal(as_input(first[0]), as_input(again[0]))
    for other in ((4, 1, 7), (3, 2, 7), (3, 1, 6), (1, 3, 7), (7, 1, 3)):
        assert not np.array_equal(as_input(pipeline()(image, mask, other)[0]), as_input(first[0]))


def test_a_pipeline_leaves_the_generators_of_others_alone(image, mask):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pipeline()(image, mask, (0, 0, 0))
    assert torch.equal(torch.rand(3), expected)


def test_images_without_masks(image):
    found, mask = pipeline()(image, None, (0, 0, 0))
    assert found.pixels.shape == (32, 32, 3)
    assert mask is None
