"""torch data sets: samples for training and scoring, and images at several scales for inference."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core import UserError
from core.data.dataset import Dataset
from core.data.transforms import Pipeline, rescale


class ImageDataset:
    """Samples for training and scoring: dicts of `images` and, on request, `labels` (C,) and `masks` (h, w).

    `transform(image, mask, seed)` turns an RGB image and a mask (or None) into what the loader stacks. A key is a
    position or a pair (epoch, position); augmentation is seeded by (seed, epoch, position), independent of the worker.
    `read_mask(image_id, size)` returns the mask; `labels` (N, C) are those of the ids.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: list[str],
        transform: Pipeline,
        labels: np.ndarray | None = None,
        read_mask: Callable[[str, tuple[int, int]], np.ndarray] | None = None,
        seed: int = 0,
    ):
        self.dataset, self.transform, self.read_mask, self.seed = dataset, transform, read_mask, seed
        self.ids, self.labels = ids, labels

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
            sample['masks'] = mask
        if self.labels is not None:
            sample['labels'] = self.labels[position]
        return sample


def ground_truth(samples: ImageDataset, count: int) -> list[np.ndarray | None]:
    """Return the ground-truth masks of the first samples for pictures, None where there is none that can be read."""
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

    They are those of the list (Dataset.batches), so results do not depend on earlier runs. Batches without any id of
    `wanted` are left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: list[str],
        wanted: set[str],
        scales: list[float],
        batch_size: int,
        backend: str = 'pillow',
    ):
        self.dataset, self.scales, self.backend = dataset, scales, backend
        self.batches = [batch for batch in dataset.batches(ids, batch_size) if not wanted.isdisjoint(batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> tuple[list[str], list[np.ndarray], list[Tensor]]:
        ids = self.batches[position]
        images = [self.dataset.read_image(image_id) for image_id in ids]
        scaled = [torch.stack([rescale(image, scale, self.backend) for image in images]) for scale in self.scales]
        return ids, [np.array(image) for image in images], scaled
