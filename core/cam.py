"""Class activation maps, in training and over scales (Puzzle-CAM, section 2.1; docs/method.md, "CAMs")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import STRIDE
from core.data.tiled import TiledImage
from core.maps import EPSILON, strided_size
from core.models.network import run_with_mirror_images

# How class maps are read: by all weights of the classifier, by its positive ones alone, or the mean of the two CAMs.
READ_OUTS = ('published', 'positive', 'mean')


def make_cam(maps: Tensor) -> Tensor:
    """Turn class maps (N, C, h, w) before ReLU into CAMs in [0, 1], each map divided by its own maximum."""
    maps = F.relu(maps)
    largest = maps.amax((2, 3), keepdim=True)
    return F.relu(maps - EPSILON) / (largest + EPSILON)


@torch.no_grad()
def multi_scale_maps(
    classifier: nn.Module, images: list[Tensor | TiledImage], read_out: str = 'published'
) -> tuple[Tensor, list[list[Tensor]]]:
    """Run a classifier over N images at each scale, and over their mirror images.

    images: the normalised images (N, 3, h_s, w_s) at each scale, or in tiles; read_out: one of READ_OUTS. Returns the
    class probabilities (N, C), the mean of the sigmoids of all logits, and for each CAM that the read-out asks for the
    class maps (N, C, h_s/16, w_s/16) at each scale: ReLU, summed over image and mirror image.
    """
    wanted = {'published': slice(0, 1), 'positive': slice(1, 2), 'mean': slice(0, 2)}[read_out]
    options = {} if read_out == 'published' else {'positive': True}
    probability, summed = 0, []
    for batch in images:
        if isinstance(batch, TiledImage):  # the logits of tiles are not the logits of the image
            maps = run_with_mirror_images(lambda x: classifier(x, with_cam=True, **options)[1:], batch)
            logits = maps[0].mean((2, 3))
        else:
            logits, *maps = run_with_mirror_images(lambda x: classifier(x, with_cam=True, **options), batch)
        probability = probability + torch.stack(torch.sigmoid(logits.float()).chunk(2)).mean(0)
        pairs = [F.relu(one.float()).chunk(2) for one in maps[wanted]]
        summed.append([direct + mirrored.flip(-1) for direct, mirrored in pairs])
    return probability / len(images), [list(scales) for scales in zip(*summed, strict=True)]


def cams_from_maps(maps: list[Tensor], labels: Tensor, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """Sum the class maps of one read-out over scales; returns what `multi_scale_cam` does."""
    h, w = size
    rounded = (-(-h // STRIDE) * STRIDE, -(-w // STRIDE) * STRIDE)
    image_of, class_of = labels.nonzero(as_tuple=True)  # the present classes, image by image
    if not len(image_of):  # no image shows a class
        return [(labels.new_zeros(0, *strided_size(size)), labels.new_zeros(0, h, w))] * len(labels)
    cam, hr_cam = (maps[0].new_zeros(len(image_of), *shape) for shape in (strided_size(size), size))
    for scaled in maps:
        scaled = scaled[image_of, class_of][None]
        cam += F.interpolate(scaled, strided_size(size), mode='bilinear', align_corners=False)[0]
        hr_cam += F.interpolate(scaled, rounded, mode='bilinear', align_corners=False)[0, :, :h, :w]
    counts = labels.count_nonzero(1).tolist()
    for x in (cam, hr_cam):
        x /= x.amax((1, 2), keepdim=True) + EPSILON
    return list(zip(cam.split(counts), hr_cam.split(counts), strict=True))


def multi_scale_cam(
    classifier: nn.Module, images: list[Tensor], labels: Tensor, size: tuple[int, int]
) -> list[tuple[Tensor, Tensor]]:
    """Return the CAMs of the present classes of N images of one size, summed over scales and mirror image.

    images: the normalised images (N, 3, h_s, w_s) at each scale; labels (N, C) multi-hot; size (h, w).
    For each image with K present classes: cam (K, (h-1)//4+1, (w-1)//4+1) and hr_cam (K, h, w), each map divided by its
    maximum + 1e-5.
    """
    _, (maps,) = multi_scale_maps(classifier, images)
    return cams_from_maps(maps, labels, size)
