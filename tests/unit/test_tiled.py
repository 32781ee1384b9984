"""Networks over tiles: the same pixels, the same cells, and what core.chain makes of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from core import UserError, chain
from core.data.tiled import TiledImage, at_scales, resize_part
from core.data.transforms import normalize, rescale
from core.models.network import run_with_mirror_images
from core.tiles import cut

SIZE = (100, 150)  # neither side is a multiple of 16


class Patches(nn.Module):
    """Stand-in for a network whose outputs see only their own cell: tiles change nothing but rounding."""

    def __init__(self, outputs: int, stride: int, enlarged: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.stride, self.enlarged = stride, 1 if enlarged else stride, enlarged
        self.conv = nn.Conv2d(3, outputs, stride, stride)

    def forward(self, x, with_cam=False):
        h, w = x.shape[2:]
        maps = self.conv(F.pad(x, (0, -w % self.cell, 0, -h % self.cell)))
        if self.enlarged:
            maps = maps.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)[..., :h, :w]
        return (maps.mean((2, 3)), maps) if with_cam else maps


@pytest.fixture
def picture(rng) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))


def tiled(picture, scale: float = 1.0) -> TiledImage:
    return TiledImage(torch.from_numpy(np.array(picture)), scale, 64)


@pytest.mark.parametrize('scale', [0.5, 0.77, 1.0, 1.5, 2.0])
def test_parts_of_a_resized_image(picture, scale):
    """The bytes of the whole image at this scale, but for one or two levels of a few."""
    whole = rescale(picture, scale).numpy().astype(int)
    assert tiled(picture, scale).size == whole.shape[:2]
    for rows, columns in cut(whole.shape[:2], 64):
        box = (columns.start, rows.start, columns.stop, rows.stop)
        part = resize_part(np.array(picture), whole.shape[:2], box)
        difference = np.abs(part - whole[rows.whole, columns.whole])
        assert difference.max() <= (0 if scale == 1 else 2)
        assert np.mean(difference) < 0.05


@pytest.mark.parametrize('stride', [4, 16])
@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_maps_of_tiles_are_maps_of_the_image(picture, stride, scale):
    """The image and its mirror image, whose cells start at the other side."""
    network = Patches(5, stride)
    with torch.no_grad():
        whole = normalize(rescale(picture, scale)[None])
        (expected,) = run_with_mirror_images(lambda x: (network(x),), whole, stride)
        (found,) = run_with_mirror_images(lambda x: (network(x),), tiled(picture, scale), stride)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_seam_is_a_gradual_change(picture):
    """Two tiles that disagree by 1 give maps that go from one to the other over their overlap."""
    values = iter(range(100))

    def function(x):
        return (torch.full((1, 1, x.shape[2] // 4, x.shape[3] // 4), float(next(values) % 2)),)

    image = tiled(Image.fromarray(np.zeros((64, 112, 3), np.uint8)))
    (maps,) = image.blend(function, 4)
    row = maps[0, 0, 0]
    assert (row[0], row[-1]) == (0, 1)
    assert (row.diff() >= 0).all() and row.diff().max() < 0.5
    assert torch.equal(maps[0, 0], row.expand(16, -1))


def test_what_comes_in_tiles(picture):
    """An image that is larger than a tile, at all scales; a smaller one where it is enlarged beyond a tile."""
    pixels, scaled = at_scales(picture, [0.4, 1.0], 64)
    assert np.array_equal(pixels, np.array(picture))
    assert all(isinstance(one, TiledImage) for one in scaled)
    assert scaled[0].to('cpu').device == torch.device('cpu')
    _, (whole, enlarged) = at_scales(picture, [1.0, 2.0], 160)
    assert torch.equal(whole, rescale(picture, 1.0)[None]) and isinstance(enlarged, TiledImage)
    for tile in (None, 160):
        assert torch.equal(at_scales(picture, [1.0], tile)[1][0], rescale(picture, 1.0)[None])


# The steps of the chain ---------------------------------------------------------------------------------------------


def both(picture, scales):
    """Return the image as a whole and in tiles."""
    return at_scales(picture, scales, None)[1], at_scales(picture, scales, 64)[1]


@pytest.mark.parametrize('labels', [[0, 1, 0, 1], [0, 0, 0, 0]])
def test_cams_by_tiles(picture, labels):
    classifier, labels = Patches(4, 16), np.array([labels], np.float32)
    whole, tiles = both(picture, [0.4, 1.0, 1.5])
    for one, other in zip(chain.classify(classifier, whole)[:1], chain.classify(classifier, tiles)[:1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    ((cam, hr_cam),) = chain.image_cams(classifier, whole, labels, SIZE)
    ((cam_too, hr_too),) = chain.image_cams(classifier, tiles, torch.from_numpy(labels), SIZE)
    assert (cam_too.dtype, cam_too.shape, hr_too.shape) == (np.float16, cam.shape, hr_cam.shape)
    np.testing.assert_allclose(cam_too, cam, atol=2e-3)
    np.testing.assert_allclose(hr_too, hr_cam, atol=2e-3)


def test_edges_by_tiles(picture):
    (whole,), (tiles,) = both(picture, [1.0])
    edges = chain.image_edges(Patches(1, 4), whole, 32)
    torch.testing.assert_close(chain.image_edges(Patches(1, 4), tiles, 32), edges, atol=1e-5, rtol=0)


@pytest.mark.parametrize('segmenter', [Patches(6, 16), Patches(6, 8, enlarged=True)])
def test_probabilities_by_tiles(picture, segmenter):
    """Kept at a lower resolution, so nearly equal for a smooth image."""
    size = 96, 160  # multiples of 16: otherwise whole logits are stretched, logits of tiles are not
    colours = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [250, 250, 20]]], np.uint8)
    smooth = Image.fromarray(colours).resize(size[::-1], Image.Resampling.BICUBIC)
    segmenter.conv.weight.data *= 4
    segmenter.conv.bias.data.zero_()
    whole, tiles = both(smooth, [0.5, 1.0, 2.0])
    expected = chain.image_probabilities(segmenter, whole, size)[0]
    (found,) = chain.image_probabilities(segmenter, tiles, size)
    assert found.nbytes < 3 * expected.nbytes
    everything = found[:, : size[0], : size[1]]
    assert (everything.dtype, everything.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(everything.sum(0), 1, atol=1e-5)
    assert len(np.unique(expected.argmax(0))) > 1  # or this compares nothing
    assert np.abs(everything - expected).mean() < 0.02
    assert np.mean(everything.argmax(0) != expected.argmax(0)) < 0.03
    part = found[:, 30:70, 100:150]
    np.testing.assert_allclose(part, everything[:, 30:70, 100:150], atol=1e-6)


def test_logits_of_tiles_that_are_not_finite(picture):
    segmenter = Patches(3, 16)
    segmenter.conv.bias.data[1] = float('nan')
    with pytest.raises(UserError, match='the logits are not finite'):
        chain.image_probabilities(segmenter, both(picture, [1.0])[1], SIZE)
