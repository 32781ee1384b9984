"""Stage 1 by hand: its losses, and the scores of its CAMs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import train_classification_with_puzzle as train_classification
from core import DataWarning
from core.data.dataset import open_dataset
from core.data.transforms import normalize
from core.losses import puzzle_losses
from core.maps import threshold_cams
from core.metrics import ConfusionMatrix
from core.models import Classifier
from core.puzzle import merge, tile
from support import kinds
from support.chain import NET, commands, dataset_of, ids_of, image_of, pixels
from util.training import SharedModel


def test_losses_by_hand():
    """--level says what L_re compares, but L_p-cls reads the class maps at any level."""
    torch.manual_seed(0)
    model = Classifier(NET, 5).eval()
    images = torch.randn(2, 3, 64, 64)
    labels = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1, 0, 0, 0]])
    for level in ('feature', 'cam', 'positive'):
        found = puzzle_losses(model, images, labels, ('cl', 'pcl', 're', 'conf'), level=level)
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
        if level == 'positive':
            weights = model.classifier.weight.clamp(min=0)
            maps, features = (F.conv2d(model.backbone(x)[-1], weights) for x in (images, tile(images, 4)))
            merged = merge(features, 4)
        torch.testing.assert_close(found['re'], ((maps - merged).abs() * labels[:, :, None, None]).mean())
        p = torch.sigmoid(tile_logits)
        torch.testing.assert_close(found['conf'], -(p * (p + 1e-5).log()).sum(1).mean())


class Maps(nn.Module):
    """Six class maps, which are colours."""

    mode = 'fix'

    def forward(self, x, with_cam):
        maps = F.avg_pool2d(torch.cat([x, -x], 1), 16) * 20
        return maps.mean((2, 3)), maps


def test_cams_are_scored_at_their_own_resolution(demo):
    """Thresholds 0.10 ... 0.45, present classes only, nearest pixels of the masks, every image counted."""
    args = train_classification.parse_args(commands(demo)['cls'][1])
    dataset, model, device = dataset_of(demo), Maps(), torch.device('cpu')
    _, loader, _ = train_classification.build_loaders(args, dataset, device)
    network = SharedModel(model, device, batch_size=4, whole_batch=True)
    mious = train_classification.score_cams(network, loader, dataset)
    assert model.training
    samples = []
    for image_id in ids_of(demo, 'train'):
        image, mask = image_of(demo, image_id), pixels(demo / 'SegmentationClass' / f'{image_id}.png')
        h, w = mask.shape
        padded, whole = torch.zeros(3, 64, 64), torch.full((64, 64), 255)
        padded[:, :h, :w], whole[:h, :w] = normalize(torch.from_numpy(image)[None])[0], torch.from_numpy(mask)
        maps = F.relu(model(padded[None], with_cam=True)[1][0])
        labels = torch.tensor(dataset.read_labels(image_id))
        cam = F.relu(maps - 1e-5) / (maps.amax((1, 2), keepdim=True) + 1e-5) * labels[:, None, None]
        small = F.interpolate(whole[None, None].float(), (4, 4), mode='nearest')[0, 0].long()
        samples.append((cam.numpy(), small.numpy()))
    scores = []
    for t in np.arange(10, 50, 5) / 100:
        matrix = ConfusionMatrix(7)
        for cam, mask in samples:
            matrix.update(threshold_cams(cam, t), mask)
        scores.append(matrix.miou())
    assert len({*scores}) > 1
    assert mious == pytest.approx(scores, rel=1e-9)


def test_a_class_in_every_image_is_warned_of(in_tmp, recwarn):
    kinds.draw_all(in_tmp / 'photos')
    line = '--dataset labels.csv --data_dir photos --num_workers 0 --batch_size 4 --bn_replicas 1 --tag a'
    args, device = train_classification.parse_args(line.split()), torch.device('cpu')
    for other, expected in (
        ('cat;dog', ['every image of train_aug has the class cat: add images without it, or its mask can be anything']),
        ('cat', ['every image of train_aug has the only class, cat: add images without it, or it cannot be learned']),
        ('', []),
    ):
        (in_tmp / 'labels.csv').write_text(f'image,classes\na.jpg,cat\nb.jpg,{other}\nc.jpg,cat\nd.jpg,cat\n')
        train_classification.build_loaders(args, open_dataset('labels.csv', 'photos'), device)
        assert [str(warned.message) for warned in recwarn if warned.category is DataWarning] == expected
        recwarn.clear()
