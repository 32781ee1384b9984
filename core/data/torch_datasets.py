"""torch data sets: samples for training and scoring, their order, and images at several scales for inference."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Sampler

from core import UserError
from core.data.dataset import Dataset
from core.data.tiled import TiledImage, at_scales
from core.data.transforms import Pipeline, ResizeMask, TopLeftCrop, rescale, training_pipeline, whole_image_pipeline


class ImageDataset:
    """Samples for training and scoring: dicts of `images` and, on request, `labels` (C,) and `masks` (h, w).

    `transform(image, mask, seed)` turns an RGB image and a mask (or None) into the items that the loader stacks. A key
    is a position or a pair (epoch, position). Augmentation is seeded by (seed, epoch, position), independent of the
    worker. `read_mask(image_id, size)` returns the mask, and every `mask_stride`-th of its pixels is used. `labels`
    (N, C) are the labels of the ids, and `domain` is the list that contains the ids.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: list[str],
        transform: Pipeline,
        labels: np.ndarray | None = None,
        read_mask: Callable[[str, tuple[int, int]], np.ndarray] | None = None,
        seed: int = 0,
        mask_stride: int = 1,
        domain: str = 'train_aug',
    ):
        self.dataset, self.transform, self.read_mask, self.seed = dataset, transform, read_mask, seed
        self.ids, self.labels, self.mask_stride, self.domain = ids, labels, mask_stride, domain

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, position = key if isinstance(key, tuple) else (0, key)
        image_id = self.ids[position]
        image = self.dataset.read_image(image_id)
        mask = Image.fromarray(self.read_mask(image_id, image.size[::-1])) if self.read_mask else None
        image, mask = self.transform(image, mask, (self.seed, epoch, position))
        sample = {'images': image}
        if mask is not None:
            sample['masks'] = mask[:: self.mask_stride, :: self.mask_stride]
        if self.labels is not None:
            sample['labels'] = self.labels[position]
        return sample


def training_samples(
    dataset: Dataset,
    longer_side: tuple[int, int],
    image_size: int,
    resize: str,
    seed: int,
    *,
    with_labels: bool = False,
    augmentations: Sequence[str] = (),
    read_mask: Callable[[str, tuple[int, int]], np.ndarray] | None = None,
    mask_size: int | None = None,
    ids: list[str] | None = None,
) -> ImageDataset:
    """Return the augmented crops of train_aug (docs/method.md, "Augmentation"), with image-level labels or masks.

    `ids` selects some of its images, by default all.
    """
    transform = training_pipeline(longer_side, image_size, resize, augmentations, mask_size)
    ids = dataset.ids('train_aug', with_images=True) if ids is None else ids
    labels = dataset.read_all_labels(ids) if with_labels else None
    return ImageDataset(dataset, ids, transform, labels, read_mask, seed)


def scored_crops(
    dataset: Dataset,
    domain: str,
    image_size: int,
    *,
    with_labels: bool = False,
    mask_stride: int = 1,
    mask_size: int | None = None,
    count: int | None = None,
) -> ImageDataset:
    """Return the top-left crops of the images of a list that have a ground-truth mask, up to `count` evenly spaced."""
    ids = dataset.ids_with_masks(domain, with_images=True)
    count = min(len(ids), count or len(ids))
    ids = [ids[i * len(ids) // count] for i in range(count)]
    labels = dataset.read_all_labels(ids) if with_labels else None
    crop = Pipeline(TopLeftCrop(image_size), *([ResizeMask(mask_size)] if mask_size else []))
    return ImageDataset(dataset, ids, crop, labels, dataset.read_mask, mask_stride=mask_stride, domain=domain)


def tagged_images(dataset: Dataset, image_size: int, resize: str) -> ImageDataset:
    """Return the whole images on which predicted classes are scored, resized into image_size x image_size."""
    domain, ids, labels = dataset.scored_labels()
    return ImageDataset(dataset, ids, whole_image_pipeline(image_size, resize), labels, domain=domain)


def ground_truth(samples: ImageDataset, count: int) -> list[np.ndarray | None]:
    """Return the ground-truth masks of the first samples, to be drawn; None if a mask is missing or unreadable."""
    masks, dataset = [], samples.dataset
    for image_id in samples.ids[:count]:
        try:
            sample = ImageDataset(dataset, [image_id], samples.transform, read_mask=dataset.read_mask)[0]
            masks.append(sample['masks'].numpy())
        except UserError:
            masks.append(None)
    return masks


class MultiScaleDataset:
    """Batches for inference: (ids, [image (h, w, 3) uint8, ...], [images (N, h_s, w_s, 3) uint8 per scale]).

    With a `tile`, each batch is one image, and at scales at which it is larger than the tile it comes in tiles.

    The batches are the same as for the whole list (Dataset.batches), so results do not depend on earlier runs. Batches
    without any id of `wanted` are left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: list[str],
        wanted: set[str],
        scales: list[float],
        batch_size: int,
        backend: str = 'pillow',
        tile: int | None = None,
    ):
        self.dataset, self.scales, self.backend, self.tile = dataset, scales, backend, tile
        batch_size = 1 if tile else batch_size
        self.batches = [batch for batch in dataset.batches(ids, batch_size) if not wanted.isdisjoint(batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> tuple[list[str], list[np.ndarray], list[Tensor | TiledImage]]:
        ids = self.batches[position]
        if self.tile:
            pixels, scaled = at_scales(self.dataset.read_image(ids[0]), self.scales, self.tile, self.backend)
            return ids, [pixels], scaled
        images = [self.dataset.read_image(image_id) for image_id in ids]
        scaled = [torch.stack([rescale(image, scale, self.backend) for image in images]) for scale in self.scales]
        return ids, [np.array(image) for image in images], scaled


class EpochSampler(Sampler):
    """Keys (epoch, position) in an order drawn from (seed, epoch) alone; `start` sets the first key of the next pass.

    Process `rank` of `count` gets its share of every batch of batch_size images. The incomplete last batch is dropped.
    """

    def __init__(self, length: int, seed: int, batch_size: int = 1, rank: int = 0, count: int = 1):
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.rank, self.share = rank, batch_size // count
        self.start(0)

    def start(self, epoch: int, skip: int = 0) -> None:
        """Begin the next pass at sample `skip` of an epoch."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        return self.length if self.share == self.batch_size else self.length // self.batch_size * self.share

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)[self.skip :]
        if self.share < self.batch_size:
            batches = order[: len(order) // self.batch_size * self.batch_size].reshape(-1, self.batch_size)
            order = batches[:, self.rank * self.share :][:, : self.share].ravel()
        return iter([(self.epoch, int(position)) for position in order])
