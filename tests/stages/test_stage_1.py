"""Stage 1 by hand: its losses, and the scores of its CAMs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import train_classification_with_puzzle as train_classification
from core.data.transforms import PaddedCrop, normalize
from core.maps import threshold_cams
from core.metrics import ConfusionMatrix
from core.models import Classifier
from core.puzzle import merge, tile
from support.chain import NET


def test_losses_by_hand():
    """--level cam compares CAMs, but L_p-cls reads the class maps at either level."""
    torch.manual_seed(0)
    model = Classifier(NET, 5).eval()
    images = torch.randn(2, 3, 64, 64)
    labels = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1, 0, 0, 0]])
    for level in ('feature', 'cam'):
        args = train_classification.parse_args(f'--tag t --loss_option cl_pcl_re_conf --level {level}'.split())
        found = train_classification.compute_losses(model, images, labels, args, 2)
        logits, maps = model(images, with_cam=True)
        tile_logits, tile_maps = model(tile(images, 4), with_cam=True)
        merged = merge(tile_maps, 4)
        torch.testing.assert_close(found['cl'], F.multilabel_soft_margin_loss(maps.mean((2, 3)), labels))
        torch.testing.assert_close(found['pcl'], F.multilabel_soft_margin_loss(merged.mean((2, 3)), labels))
        if level == 'cam':
            maps, merged = (
                F.relu(F.relu(x) - 1e-5) / (F.relu(x).flatten(2).max(2)[0][..., None, None] + 1e-5)
                for x in (maps, merged)
            )
        torch.testing.assert_close(found['re'], ((maps - merged).abs() * labels[:, :, None, None]).mean())
        p = torch.sigmoid(tile_logits)
        torch.testing.assert_close(found['conf'], -(p * (p + 1e-5).log()).sum(1).mean())


def test_cams_are_scored_at_their_own_resolution(rng):
    """Thresholds 0.10 ... 0.45, present classes only, nearest pixels of the masks, every image counted."""
    dataset = SimpleNamespace(num_classes=3)
    batches = []
    for n in (4, 3):
        labels = torch.tensor(rng.integers(0, 2, (n, 3)), dtype=torch.float32)
        labels[:, 0] = 1
        masks = torch.tensor(rng.choice([0, 1, 2, 3, 255], (n, 64, 64)))
        images = torch.tensor(rng.integers(0, 256, (n, 64, 64, 3)), dtype=torch.uint8)
        crops = PaddedCrop(images, torch.tensor([[0, 0, 64, 64]] * n))
        batches.append({'images': crops, 'labels': labels, 'masks': masks})

    class Maps(nn.Module):
        def forward(self, x, with_cam):
            maps = F.avg_pool2d(x, 16) * 20
            return maps.mean((2, 3)), maps

    model = Maps()
    mious = train_classification.score_cams(model, batches, dataset, torch.device('cpu'))
    assert model.training
    scores = {}
    for t in [0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45]:
        matrix = ConfusionMatrix(4)
        for batch in batches:
            for image, label, mask in zip(normalize(batch['images']), batch['labels'], batch['masks'], strict=True):
                maps = F.relu(F.avg_pool2d(image[None], 16)[0] * 20)
                cam = F.relu(maps - 1e-5) / (maps.amax((1, 2), keepdim=True) + 1e-5) * label[:, None, None]
                small = F.interpolate(mask[None, None].float(), (4, 4), mode='nearest')[0, 0].long()
                matrix.update(threshold_cams(cam.numpy(), t), small.numpy())
        scores[t] = matrix.miou()
    assert mious == pytest.approx(list(scores.values()), rel=1e-9)
