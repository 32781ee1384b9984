"""What trainers record: curves, pictures, options, and the scores of edges."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import train_affinitynet
from core.affinity import PathIndex, count_pairs, pair_scores
from core.data.torch_datasets import scored_crops
from core.data.transforms import normalize
from core.models import AffinityNet
from support import assert_identical
from support.chain import NET, TAGS, dataset_of, ids_of, image_of, pixels, run, size_of, state_of

PAIR_SCORES = {'boundary precision', 'boundary recall', 'boundary AP', 'affinity precision', 'affinity recall'}


def test_curves_and_pictures(experiments):
    for tag, curves, picture in (
        ('cls', {'loss', 'cl', 'pcl', 're', 'alpha', 'lr', 'mIoU', 'mAP', 'F1'}, 'CAMs'),
        ('aff', {'loss', 'lr', *PAIR_SCORES}, 'edges'),
        ('seg', {'loss', 'lr', 'mIoU'}, 'predictions'),
    ):
        events = EventAccumulator(str(experiments / 'tensorboards' / tag))
        events.Reload()
        sweep = {f'mIoU by threshold/{t / 100:.2f}' for t in range(10, 50, 5)} if tag == 'cls' else set()
        assert set(events.Tags()['scalars']) == curves | sweep | ({'best mIoU'} if 'mIoU' in curves else set())
        assert events.Tags()['images'] == [picture, *(['scored edges'] if tag == 'aff' else [])]
        for name in events.Tags()['images']:
            shown = Image.open(io.BytesIO(events.Images(name)[0].encoded_image_string))
            assert min(shown.size) >= 192
            assert np.array(shown).std() > 10
        content = json.loads((experiments / 'data' / f'{tag}.json').read_text())
        assert content['options']['tag'] == tag
        assert set(content['curves']) == curves
        assert all(math.isfinite(value) for points in content['curves'].values() for _, value in points)
        assert f'{tag}.pth' in (experiments / 'logs' / f'{tag}.txt').read_text()


def test_thresholds_of_stage_1_are_recorded(experiments):
    """Each epoch; the score of the epoch is the score at the best one."""
    content = json.loads((experiments / 'data/cls.json').read_text())
    sweep = content['sweeps']['mIoU']
    assert sweep['thresholds'] == [0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45]
    assert [[step, max(values)] for step, values in sweep['points']] == content['curves']['mIoU']
    assert all(len(values) == 8 for _, values in sweep['points'])


@pytest.mark.parametrize('tag', TAGS)
def test_options_are_in_the_hparams_tab(experiments, tag):
    events = EventAccumulator(str(experiments / 'tensorboards' / tag))
    events.Reload()
    content = events.PluginTagToContent('hparams')
    assert set(content) == {SESSION_START_INFO_TAG, SESSION_END_INFO_TAG}
    start = HParamsPluginData.FromString(content[SESSION_START_INFO_TAG]).session_start_info
    assert start.hparams['max_epoch'].number_value == 1
    assert start.hparams['tag'].string_value == tag
    assert {path.name for path in (experiments / 'tensorboards').iterdir()} == set(TAGS)  # no separate runs
    assert all(path.is_file() for path in (experiments / 'tensorboards' / tag).iterdir())


def test_edges_are_scored_on_masks(experiments, demo):
    """Recomputed from the model of the last epoch: 6 masks of train, each on the top-left crop."""
    curves = json.loads((experiments / 'data/aff.json').read_text())['curves']
    model, index, counts = AffinityNet(NET), PathIndex(4, 16), 0
    model.load_state_dict(state_of('aff'))
    for image_id in ids_of(demo, 'train'):
        h, w = size_of(demo, image_id)
        image, mask = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 255, np.uint8)
        image[:h, :w], mask[:h, :w] = image_of(demo, image_id), pixels(demo / 'SegmentationClass' / f'{image_id}.png')
        x = normalize(torch.from_numpy(image)[None])
        x[..., h:, :], x[..., w:] = 0, 0
        with torch.no_grad():
            edges = torch.sigmoid(model.eval()(x)[:, 0])
        counts = counts + count_pairs(edges, torch.from_numpy(mask[2::4, 2::4])[None], index, 6)
    expected = {name: 100 * value for name, value in pair_scores(counts).items() if not math.isnan(value)}
    assert len(expected) >= 3
    for name, value in expected.items():
        assert curves[name] == [[3, pytest.approx(value, abs=0.01)]]
    line = next(line for line in (experiments / 'logs/aff.txt').read_text().splitlines() if 'masks' in line)
    assert line.startswith('epoch 1: pairs in 6 masks of train: ')


def test_masks_do_not_change_affinitynet(copy):
    """Without masks nothing is scored, and the weights are the same bit for bit."""
    state, log = state_of('aff'), Path('experiments/logs/aff.txt')
    shutil.rmtree(copy / 'SegmentationClass')
    run(copy, 'aff', '--overwrite')
    assert_identical(state_of('aff'), state)
    assert not PAIR_SCORES & set(json.loads(Path('experiments/data/aff.json').read_text())['curves'])
    assert 'pairs in' not in log.read_text()


def test_scored_masks_are_few_and_evenly_spaced(copy, monkeypatch):
    ids = ids_of(copy, 'train')
    for most, expected in ((1000, [0, 1, 2, 3, 4, 5]), (4, [0, 1, 3, 4]), (1, [0])):
        samples = scored_crops(dataset_of(copy), 'train', 64, count=most, mask_size=16)
        assert samples.ids == [ids[i] for i in expected]
        assert samples[0]['masks'].shape == (16, 16)
    monkeypatch.setattr(train_affinitynet, 'SCORED_IMAGES', 4)
    run(copy, 'aff', '--overwrite')
    assert 'epoch 1: pairs in 4 masks of train: ' in Path('experiments/logs/aff.txt').read_text()
