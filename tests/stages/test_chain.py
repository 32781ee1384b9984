"""The nine stages in a row on a small drawn set: every file they write, against a direct recomputation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.crf import crf_from_label
from core.maps import threshold_cams, upsample_rw
from core.models import AffinityNet
from core.random_walk import random_walk
from support.chain import (
    AFFINITY_LABELS,
    CAMS,
    NET,
    PREDICTIONS,
    PSEUDO,
    RANDOM_WALKS,
    TAGS,
    dataset_of,
    files_in,
    ids_of,
    image_of,
    keys_in,
    pixels,
    run,
    size_of,
    state_of,
)
from support.folders import record_as_written
from util.store import locks


def test_the_stages_write_their_documented_files_and_no_others(experiments, demo):
    folders = {path.name for path in (experiments / 'predictions').iterdir()}
    assert folders == {CAMS, AFFINITY_LABELS, RANDOM_WALKS, PSEUDO, PREDICTIONS}
    for name, title, domain, ending in (
        (CAMS, 'CAM', 'train_aug', 'npz'), (AFFINITY_LABELS, 'affinity label', 'train_aug', 'png'),
        (RANDOM_WALKS, 'random-walk CAM', 'train_aug', 'npz'), (PSEUDO, 'pseudo-label', 'train_aug', 'png'),
        (PREDICTIONS, 'prediction', 'val', 'png'),
    ):  # fmt: skip
        folder = experiments / 'predictions' / name
        assert {path.name for path in folder.iterdir()} == {
            'args.json', 'inputs.json', 'files.json', '.lock',
            *(f'{image_id}.{ending}' for image_id in ids_of(demo, domain))
        }  # fmt: skip
        assert (folder / '.lock').read_bytes() == b''
        record = json.loads((folder / 'args.json').read_text())
        assert set(record) == {'format', 'fingerprint', 'options', 'versions', 'history', 'seconds'}
        assert record['seconds'] > 0
        assert record['format'] == title
        assert record['options']
        assert record['history'] == []
    models = {path.name for path in (experiments / 'models').iterdir()}
    assert models == {'cls.pth', 'cls.last.pth', 'aff.pth', 'seg.pth', 'seg.last.pth'}
    checkpoints = {path.name for path in (experiments / 'checkpoints').iterdir()}
    assert checkpoints == {f'{tag}.pth' for tag in TAGS} | {f'.{tag}.lock' for tag in TAGS}
    for folder, ending in (('logs', 'txt'), ('data', 'json')):
        assert {path.name for path in (experiments / folder).iterdir()} == {f'{tag}.{ending}' for tag in TAGS}
    results = {path.name for path in (experiments / 'results').iterdir()}
    scored = {f'{name}@train.json' for name in (CAMS, RANDOM_WALKS, PSEUDO)} | {f'{PREDICTIONS}@val.json'}
    counts = {name.replace('.json', '.npz') for name in scored}
    assert results == scored | counts | {locks.lock_path(Path(name)).name for name in scored}
    assert {path.name for path in experiments.iterdir()} == {
        'predictions', 'models', 'checkpoints', 'logs', 'data', 'tensorboards', 'results', 'cache',
    }  # fmt: skip
    assert [path for path in experiments.rglob('*.tmp')] == []


def test_cams(experiments, demo):
    for image_id in ids_of(demo, 'train_aug'):
        h, w = size_of(demo, image_id)
        with np.load(experiments / 'predictions' / CAMS / f'{image_id}.npz', allow_pickle=False) as file:
            assert set(file.files) == {'keys', 'cam', 'hr_cam'}
            k = len(file['keys']) - 1
            assert file['keys'].tolist() == keys_in(demo, image_id)
            assert file['cam'].shape == (k, (h - 1) // 4 + 1, (w - 1) // 4 + 1)
            assert file['hr_cam'].shape == (k, h, w)
            for name in ('cam', 'hr_cam'):
                assert file[name].dtype == np.float16
                assert 0 <= file[name].min() <= file[name].max() <= 1


@pytest.mark.parametrize('name, domain', [(AFFINITY_LABELS, 'train_aug'), (PSEUDO, 'train_aug'), (PREDICTIONS, 'val')])
def test_label_maps_are_palette_pngs(experiments, demo, name, domain):
    palette = dataset_of(demo).palette
    classes = len(dataset_of(demo).class_names)
    for image_id in ids_of(demo, domain):
        with Image.open(experiments / 'predictions' / name / f'{image_id}.png') as picture:
            assert (picture.mode, picture.format) == ('P', 'PNG')
            assert picture.size[::-1] == size_of(demo, image_id)
            assert np.array_equal(np.array(picture.getpalette()).reshape(-1, 3), palette)
            values = set(np.unique(np.array(picture)).tolist())
        allowed = set(range(classes + 1)) if name == PREDICTIONS else set(keys_in(demo, image_id))
        assert values <= allowed | ({255} if name == AFFINITY_LABELS else set())


def test_affinity_labels_are_set_where_both_thresholds_agree(experiments, demo):
    seen = set()
    for image_id in ids_of(demo, 'train_aug'):
        image = image_of(demo, image_id)
        with np.load(experiments / 'predictions' / CAMS / f'{image_id}.npz') as file:
            keys, cam = file['keys'], file['hr_cam']
        fg, bg = (crf_from_label(image, threshold_cams(cam, t), len(keys), 10) for t in (0.40, 0.10))
        expected = np.where(fg != 0, keys[fg], np.where(bg != 0, 255, 0))
        found = pixels(experiments / 'predictions' / AFFINITY_LABELS / f'{image_id}.png')
        assert np.array_equal(found, expected)
        seen |= set(np.unique(found).tolist())
    assert len(seen) > 2  # or this compares nothing


def test_random_walk_cams(experiments, demo):
    model = AffinityNet(NET)
    model.load_state_dict(state_of('aff'))
    compared = 0
    for image_id in ids_of(demo, 'train_aug'):
        h, w = size_of(demo, image_id)
        with np.load(experiments / 'predictions' / RANDOM_WALKS / f'{image_id}.npz', allow_pickle=False) as file:
            assert set(file.files) == {'keys', 'rw'}
            keys, rw = file['keys'], file['rw']
        with np.load(experiments / 'predictions' / CAMS / f'{image_id}.npz') as file:
            assert file['keys'].tolist() == keys.tolist()
            cam = file['cam']
        assert rw.shape == (len(keys) - 1, (h - 1) // 4 + 1, (w - 1) // 4 + 1)
        assert rw.dtype == np.float16
        if not cam.any():  # so little training leaves some images without any activation
            assert not rw.any()
            continue
        assert rw.max() == 1

        # By hand: padded right and below, the image and its mirror image.
        image = image_of(demo, image_id) / 255
        padded = torch.zeros(3, 96, 96)
        padded[:, :h, :w] = torch.tensor(((image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1))
        with torch.no_grad():
            direct, mirrored = (model.eval()(x[None])[0, 0] for x in (padded, padded.flip(2)))
        edge = torch.sigmoid((direct + mirrored.flip(1)) / 2)[: (h + 3) // 4, : (w + 3) // 4]
        expected = random_walk(torch.from_numpy(cam).float(), edge, 5, 10, 8)
        np.testing.assert_allclose(rw, (expected / expected.max()).numpy(), atol=2e-3)
        compared += 1
    assert compared


def test_pseudo_labels(experiments, demo):
    foreground = 0
    for image_id in ids_of(demo, 'train_aug'):
        image = image_of(demo, image_id)
        with np.load(experiments / 'predictions' / RANDOM_WALKS / f'{image_id}.npz') as file:
            keys, rw = file['keys'], file['rw']
        expected = keys[crf_from_label(image, threshold_cams(upsample_rw(rw, image.shape[:2]), 0.35), len(keys), 1)]
        assert np.array_equal(pixels(experiments / 'predictions' / PSEUDO / f'{image_id}.png'), expected)
        foreground += (expected != 0).sum()
    assert foreground  # or this compares nothing


def test_training_changed_the_weights_it_should(experiments):
    cls, aff, seg = (state_of(tag) for tag in TAGS)
    backbone = [name for name in cls if name.startswith('backbone.')]
    assert all(torch.equal(aff[name], cls[name]) for name in backbone)  # frozen, and loaded from --weights
    statistics = [name for name in backbone if 'running' in name]
    assert all(torch.equal(seg[name], cls[name]) for name in statistics)  # --mode fix
    weights = [name for name in backbone if name.endswith('weight')]
    assert not any(torch.equal(seg[name], cls[name]) for name in weights)
    # Three steps of two passes, in each of which only replica 0 counts.
    assert {int(cls[name]) for name in backbone if name.endswith('num_batches_tracked')} == {6}


def test_affinitynet_trains_through_batches_without_a_labelled_pair(copy):
    folder = copy.parent / 'experiments/predictions' / AFFINITY_LABELS
    for path in sorted(folder.glob('*.png'))[1:]:
        Image.fromarray(np.full_like(pixels(path), 255)).save(path)
    record_as_written(folder)
    run(copy, 'aff', '--tag', 'sparse', '--batch_size', '1', '--print_ratio', '0')
    curves = json.loads((copy.parent / 'experiments/data/sparse.json').read_text())['curves']
    losses = [value for _, value in curves['loss']]
    assert 0 in losses
    assert max(losses) > 0


def test_results_do_not_depend_on_workers(copy):
    folder = copy.parent / 'experiments'
    state = state_of('cls')
    before = {path: path.read_bytes() for name in (CAMS, AFFINITY_LABELS) for path in files_in(folder, name)}
    assert len(before) == 24
    for path in before:
        path.unlink()
    run(copy, 'cls', '--num_workers', '2', '--overwrite')
    for name in ('cams', 'affinity_labels'):
        run(copy, name, '--num_workers', '2')
    again = state_of('cls')
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    assert all(path.read_bytes() == content for path, content in before.items())
