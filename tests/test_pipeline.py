"""The nine stages in a row on a small drawn set: every file they write, every number against a direct recomputation."""

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, assert_identical, fault_of, run_stage, subprocess_environment, without_seconds
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn
from torch.nn import functional as F

import evaluate
import inference_classification
import inference_rw
import inference_segmentation
import make_affinity_labels
import make_pseudo_labels
import train_affinitynet
import train_classification_with_puzzle as train_classification
import train_segmentation
from core import UserError
from core.affinity import PathIndex, count_pairs, pair_scores
from core.crf import crf_from_label
from core.data.dataset import Dataset, open_dataset
from core.data.transforms import PaddedCrop, normalize, resize
from core.losses import alpha_at
from core.maps import threshold_cams, upsample_rw
from core.metrics import ConfusionMatrix
from core.models import AffinityNet, Classifier
from core.models.affinitynet import predict_edges
from core.models.weights import read_state_dict
from core.puzzle import merge, tile
from core.random_walk import random_walk
from recipes import gradients, precision, rounding
from util import files
from util.artifacts import EDGE, Folder, read_args, read_maps, write_npz
from util.fingerprint import digest, file_hash, versions

NET = 'resnest14_narrow'
SCALES = '0.5,1.0'
CAMS = f'cls@train@scale={SCALES}'
AFFINITY_LABELS = f'{CAMS}@aff_fg=0.40_bg=0.10'
RANDOM_WALKS = 'aff@train@beta=10@exp_times=8@rw'
BY_CLASS = 'aff@train@beta=10@exp_times=8@rw_normalization=class@rw'
PSEUDO = f'{RANDOM_WALKS}@crf=1'
PREDICTIONS = f'seg@val@scale={SCALES}@iteration=10'
TAGS = ('cls', 'aff', 'seg')


def commands(data) -> dict:
    """Return (script, words of its command line) by a short name, for the folder of a data set."""
    dataset = f'--dataset {data}/dataset.json'
    where = f'{dataset} --data_dir {data}'
    files = f'{where} --num_workers 0'
    device = '--device cpu'
    sizes = '--image_size 64 --min_image_size 48 --max_image_size 80 --batch_size 4 --max_epoch 1'
    train = f'{files} {device} {sizes} --lr 0.01'
    own = '--weights experiments/models/cls.pth'
    lines = {
        'cls': (
            train_classification,
            f'{train} --architecture {NET} --weights none --bn_replicas 2 --print_ratio 0 --tag cls',
        ),
        'cams': (
            inference_classification,
            f'{files} {device} --architecture {NET} --tag cls --domain train_aug --scales {SCALES}',
        ),
        'affinity_labels': (make_affinity_labels, f'{files} --experiment_name {CAMS}'),
        'aff': (
            train_affinitynet,
            f'{train} --architecture {NET} {own} --radius 4 --tag aff --label_name {AFFINITY_LABELS}',
        ),
        'random_walk': (
            inference_rw,
            f'{files} {device} --architecture {NET} --model_name aff --cam_dir {CAMS} --image_size 96',
        ),
        'pseudo': (make_pseudo_labels, f'{files} --experiment_name {RANDOM_WALKS}'),
        'seg': (train_segmentation, f'{train} --backbone {NET} {own} --tag seg --label_name {PSEUDO}'),
        'predictions': (inference_segmentation, f'{files} {device} --backbone {NET} --tag seg --scale {SCALES}'),
        'evaluate': (evaluate, f'{where} --experiment_name {PREDICTIONS} --domain val'),
        'evaluate cams': (evaluate, f'{dataset} --data_dir {data}/SegmentationClass --experiment_name {CAMS}'),
        'evaluate random_walk': (evaluate, f'{dataset} --gt_dir {data} --experiment_name {RANDOM_WALKS}'),
        'evaluate pseudo': (evaluate, f'{where} --experiment_name {PSEUDO}'),
    }
    return {name: (script, line.split()) for name, (script, line) in lines.items()}


def run(data, name: str, *more: str):
    script, line = commands(data)[name]
    return run_stage(script, [*line, *more])


@pytest.fixture(scope='module')
def finished(demo, tmp_path_factory):
    """A working directory in which all nine stages have run."""
    folder, before = tmp_path_factory.mktemp('run'), os.getcwd()
    os.chdir(folder)
    try:
        for script, line in commands(demo).values():
            run_stage(script, line)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def experiments(finished, monkeypatch):
    """The experiments/ of all stages in the working directory; tests only read it."""
    monkeypatch.chdir(finished)
    return finished / 'experiments'


@pytest.fixture
def copy(finished, demo, tmp_path, monkeypatch):
    """A copy of the data, next to a copy of all outputs in the working directory; tests may damage both."""
    shutil.copytree(finished / 'experiments', tmp_path / 'experiments')
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(demo, tmp_path / 'data')


def dataset_of(data) -> Dataset:
    return open_dataset(data / 'dataset.json', data)


def ids_of(data, domain: str) -> list[str]:
    return dataset_of(data).ids(domain)


def size_of(data, image_id: str) -> tuple[int, int]:
    """Return (h, w)."""
    with Image.open(data / 'JPEGImages' / f'{image_id}.jpg') as image:
        return image.size[::-1]


def image_of(data, image_id: str) -> np.ndarray:
    return np.array(dataset_of(data).read_image(image_id))


def keys_in(data, image_id: str) -> list[int]:
    return [0, *(np.flatnonzero(dataset_of(data).read_labels(image_id)) + 1)]


def state_of(tag: str) -> dict:
    """Return the state dict of a model."""
    return read_state_dict(Path(f'experiments/models/{tag}.pth'))[0]


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def files_in(folder, name: str) -> list:
    return sorted(path for path in (folder / 'predictions' / name).iterdir() if path.suffix in ('.npz', '.png'))


# Outputs of each stage ----------------------------------------------------------------------------------------------


def test_the_stages_write_their_documented_files_and_no_others(experiments, demo):
    folders = {path.name for path in (experiments / 'predictions').iterdir()}
    assert folders == {CAMS, AFFINITY_LABELS, RANDOM_WALKS, PSEUDO, PREDICTIONS}
    for name, domain, ending in (
        (CAMS, 'train_aug', 'npz'), (AFFINITY_LABELS, 'train_aug', 'png'), (RANDOM_WALKS, 'train_aug', 'npz'),
        (PSEUDO, 'train_aug', 'png'), (PREDICTIONS, 'val', 'png'),
    ):  # fmt: skip
        folder = experiments / 'predictions' / name
        assert {path.name for path in folder.iterdir()} == {
            'args.json', 'inputs.json', '.lock', *(f'{image_id}.{ending}' for image_id in ids_of(demo, domain))
        }  # fmt: skip
        assert (folder / '.lock').read_bytes() == b''
        record = json.loads((folder / 'args.json').read_text())
        assert set(record) == {'fingerprint', 'options', 'versions', 'history', 'seconds'}
        assert record['seconds'] > 0
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
    assert results == scored | counts | {files.lock_path(Path(name)).name for name in scored}
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


def test_random_walks_normalised_by_class(copy, monkeypatch):
    """The same walks, each class divided by its own maximum, in a folder of their own."""

    def uneven(cam, edge, **options):
        """Walks of classes that are the weaker the later they come."""
        maps = random_walk(cam, edge, **options) + 0.1
        return maps / (1 + torch.arange(len(maps)))[:, None, None]

    monkeypatch.setattr(inference_rw, 'random_walk', uneven)
    run(copy, 'random_walk', '--overwrite')
    before = outputs_of(RANDOM_WALKS)
    run(copy, 'random_walk', '--rw_normalization', 'class')
    assert outputs_of(RANDOM_WALKS) == before
    folders = [Path('experiments/predictions', name) for name in (RANDOM_WALKS, BY_CLASS)]
    weaker = 0
    for image_id in ids_of(copy, 'train_aug'):
        (_, joint), (_, by_class) = (read_maps(folder / f'{image_id}.npz', 'rw', 6) for folder in folders)
        largest = joint.max((1, 2), keepdims=True)
        np.testing.assert_allclose(by_class, joint / np.where(largest > 0, largest, 1), atol=2e-3)
        weaker += ((0 < largest) & (largest < 1)).any()
    assert weaker


EDGES = 'aff@train@edge'


def outputs_of(name: str) -> dict[str, bytes]:
    """Return the bytes of every file of a folder of predictions."""
    return {path.name: path.read_bytes() for path in Path('experiments/predictions', name).glob('[!.]*')}


def test_edges_are_added_to_a_finished_random_walk(copy, capsys, monkeypatch):
    """The walk is not computed again; its folder stays as it is, and does not depend on --save_edges."""
    before = outputs_of(RANDOM_WALKS)
    with monkeypatch.context() as patch:
        patch.setattr(inference_rw, 'random_walk', None)
        run(copy, 'random_walk', '--save_edges')
    assert outputs_of(RANDOM_WALKS) == before
    ids = ids_of(copy, 'train_aug')
    edges = outputs_of(EDGES)
    assert set(edges) == {'args.json', 'inputs.json', *(f'{image_id}.npz' for image_id in ids)}
    capsys.readouterr()
    run(copy, 'random_walk', '--save_edges')
    assert capsys.readouterr().out.count('0 of them new') == 2
    assert (outputs_of(RANDOM_WALKS), outputs_of(EDGES)) == (before, edges)

    # Both at once, and the edges of another walk, which are the same.
    run(copy, 'random_walk', '--save_edges', '--overwrite')
    for name, content in ((RANDOM_WALKS, before), (EDGES, edges)):
        found = outputs_of(name)
        assert {file: found[file] for file in found if file != 'args.json'} == {
            file: content[file] for file in content if file != 'args.json'
        }
    capsys.readouterr()
    run(copy, 'random_walk', '--save_edges', '--beta', '5')
    assert f'12 edge maps in experiments/predictions/{EDGES}, 0 of them new' in capsys.readouterr().out
    with pytest.raises(UserError, match=f'{EDGES} exists with different settings .image_size: 96, requested 64'):
        run(copy, 'random_walk', '--save_edges', '--beta', '3', '--image_size', '64')


def test_edges_are_those_of_the_walk(copy):
    run(copy, 'random_walk', '--save_edges')
    model = AffinityNet(NET)
    model.load_state_dict(state_of('aff'))
    folder = Folder(EDGE, Path('experiments/predictions', EDGES), dataset_of(copy), ids_of(copy, 'train_aug'))
    for image_id in folder.ids:
        image = torch.from_numpy(image_of(copy, image_id))[None]
        (expected,) = predict_edges(model.eval(), normalize(image), 96)
        edge = folder.read_edge(image_id, tuple(expected.shape))
        np.testing.assert_allclose(edge, expected.numpy(), atol=2e-3)
        with np.load(folder.file(image_id)) as file:
            assert (file.files, file['edge'].dtype) == (['edge'], np.float16)


def test_either_missing_file_is_made_again(copy, capsys):
    run(copy, 'random_walk', '--save_edges')
    before = outputs_of(RANDOM_WALKS), outputs_of(EDGES)
    one, other, damaged = ids_of(copy, 'train_aug')[:3]
    Path(f'experiments/predictions/{RANDOM_WALKS}/{one}.npz').unlink()
    Path(f'experiments/predictions/{EDGES}/{other}.npz').unlink()
    Path(f'experiments/predictions/{EDGES}/{damaged}.npz').write_bytes(b'PK')
    capsys.readouterr()
    run(copy, 'random_walk', '--save_edges', '--repair')
    text = capsys.readouterr().out
    assert f'regenerating: experiments/predictions/{EDGES}/{damaged}.npz: not an npz file with "edge"' in text
    assert '12 edge maps' in text and ', 2 of them new' in text and ', 1 of them new' in text
    for name, content in zip((RANDOM_WALKS, EDGES), before, strict=True):
        found = outputs_of(name)
        assert all(found[file] == content[file] for file in content if file.endswith('.npz'))


def test_edges_cannot_be_evaluated(copy, capsys):
    script, line = commands(copy)['evaluate']
    words = [*without(line, '--domain'), '--experiment_name', EDGES]
    assert f'{EDGES} not found; run inference_rw.py first' in fault_of(script, words, capsys)
    run(copy, 'random_walk', '--save_edges')
    for mode in ([], ['--mode', 'rw']):
        text = fault_of(script, [*words, *mode], capsys)
        assert f'{EDGES}/train_00000.npz: an edge map has no classes to score; train_affinitynet.py logs' in text


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


@pytest.mark.parametrize(
    'name, folder, flag, value',
    [
        ('affinity_labels', AFFINITY_LABELS, 'crf_bilateral', '5,5,1'),
        ('affinity_labels', AFFINITY_LABELS, 'crf_iteration', '0'),
        ('pseudo', PSEUDO, 'gt_prob', '0.3'),
        ('predictions', PREDICTIONS, 'crf_bilateral', '80,13,0'),
    ],
)
def test_options_of_the_crf(copy, capsys, name, folder, flag, value):
    """Defaults leave fingerprints as they were before these options; other values go to a folder of their own."""
    path = copy.parent / 'experiments/predictions' / folder
    before = {file.name: file.read_bytes() for file in path.glob('*.png')}
    options = read_args(path)['fingerprint']
    assert not {'gt_prob', 'crf_gaussian', 'crf_bilateral'} & options.keys()
    assert ('crf_iteration' in options) == (name == 'pseudo')
    run(copy, name, f'--{flag}', value)
    start, _, end = folder.rpartition('@')
    other = path.with_name(f'{start}@{flag}={value}@{end}')
    changed = {key: text for key, text in read_args(other)['fingerprint'].items() if options.get(key) != text}
    assert {key: str(text) for key, text in changed.items()} == {flag: value}
    assert {file.name for file in other.glob('*.png')} == before.keys()
    if name != 'predictions':  # so little training leaves the CRF nothing to change there
        assert any(file.read_bytes() != before[file.name] for file in other.glob('*.png'))
    capsys.readouterr()
    run(copy, name)
    assert ' 0 of them new' in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in path.glob('*.png')} == before
    assert read_args(path)['fingerprint'] == options


def test_kernels_of_the_crf_reach_predictions(copy, monkeypatch):
    seen = []

    def refine(image, probability, iterations, **kernels):
        seen.append((iterations, kernels))
        return probability

    monkeypatch.setattr(inference_segmentation, 'crf_from_probability', refine)
    run(copy, 'predictions', '--overwrite')
    run(copy, 'predictions', '--crf_gaussian', '1,30', '--crf_bilateral', '8,1.3,0')
    one = (10, {'gaussian': [3, 3], 'bilateral': [80, 13, 10]})
    other = (10, {'gaussian': [1, 30], 'bilateral': [8, 1.3, 0]})
    assert seen == [one] * 4 + [other] * 4


@pytest.mark.parametrize(
    'tag, own',
    [
        ('cls', {'network': 'Classifier', 'mode': 'normal'}),
        ('aff', {'network': 'AffinityNet', 'mode': 'fix', 'radius': 4}),
        ('seg', {'network': 'DeepLabv3+', 'mode': 'fix', 'use_gn': True}),
    ],
)
def test_models_are_state_dicts_with_metadata(experiments, demo, tag, own):
    content = torch.load(experiments / 'models' / f'{tag}.pth', map_location='cpu', weights_only=True)
    assert set(content) == {'model', 'meta'}
    state, meta = content['model'], content['meta']
    assert all(isinstance(value, torch.Tensor) and torch.isfinite(value.float()).all() for value in state.values())
    assert any(name.startswith('backbone.') for name in state)
    score = meta.pop('score') if tag != 'aff' else None
    palette = dataset_of(demo).palette[:7].tolist()
    common = {
        'backbone': NET,
        'image_size': 64,
        'classes': dataset_of(demo).class_names,
        'palette': palette,
        'epoch': 1,
    }
    assert meta == {**common, **own, **({'select': 'best'} if tag != 'aff' else {})}
    assert score is None or 0 <= score <= 1


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
    for path in sorted((copy.parent / 'experiments/predictions' / AFFINITY_LABELS).glob('*.png'))[1:]:
        Image.fromarray(np.full_like(pixels(path), 255)).save(path)
    run(copy, 'aff', '--tag', 'sparse', '--batch_size', '1', '--print_ratio', '0')
    curves = json.loads((copy.parent / 'experiments/data/sparse.json').read_text())['curves']
    losses = [value for _, value in curves['loss']]
    assert 0 in losses
    assert max(losses) > 0


@pytest.mark.parametrize('end', ['start', 'end'])
def test_gradients_of_the_losses(experiments, capsys, end):
    """At the end of the run, the first batch is compared with separate backward passes."""
    gradients.main(gradients.parse_args(['--tag', 'cls', '--at', end, '--batches', '1', '--device', 'cpu']))
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[3:]]
    found = {name: [float(x) for x in values] for name, *values in rows}
    assert list(found) == ['L_cls', 'L_p-cls', 'L_re']
    assert found['L_cls'][2] == 1
    if end == 'end':
        run = gradients.run_options('cls', 'cpu')
        dataset = open_dataset(run.dataset, run.data_dir)
        loader, *_ = train_classification.build_loaders(run, dataset, torch.device('cpu'))
        batch = next(iter(loader))
        for term, name in (('cl', 'L_cls'), ('re', 'L_re')):
            model = Classifier(NET, 6).train()
            model.load_state_dict(state_of('cls'))
            images = normalize(batch['images'])
            loss = train_classification.compute_losses(model, images, batch['labels'], run, run.bn_replicas)[term]
            loss.backward()
            norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
            assert found[name][:2] == pytest.approx([loss.item(), norm], rel=1e-2, abs=1e-4)


def test_gradients_of_a_missing_run_are_refused(in_tmp):
    with pytest.raises(UserError, match='--tag none: .*data/none.json is missing or damaged; run train_class'):
        gradients.main(gradients.parse_args(['--tag', 'none']))


def test_how_far_precision_moves_cams_and_losses(experiments, capsys):
    """fp32 by nothing, fp16 less than bf16, and both by little; the CAMs of fp32 score as those of stage 2."""
    flags = ['--tag', 'cls', '--scales', SCALES, '--num_workers', '0', '--device', 'cpu']
    precision.main(precision.parse_args([*flags, '--settings', 'fp16', 'bf16', '--batches', '2']))
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith('|:'))
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[start + 1 :]]
    exact, fp16, bf16 = ([float(x) for x in values] for _, *values in rows)
    assert [name for name, *_ in rows] == ['fp32', 'fp16', 'bf16']
    result = json.loads((experiments / f'results/{CAMS}@train.json').read_text())
    assert exact[2] == pytest.approx(max(row['miou'] for row in result['thresholds']), abs=0.2)
    assert 0 < fp16[0] < bf16[0] / 2
    for i in (0, 1, 3, 4, 5):  # CAMs, three losses
        assert exact[i] == 0
        assert 0 < fp16[i] < 0.05
        assert 0 < bf16[i] < 0.05
    assert exact[6] == 0 < min(fp16[6], bf16[6]) < math.inf  # gradient


def rounding_of(capsys) -> tuple[dict, dict]:
    """Return {(name, threshold): (mIoU of files, of float32)} and {name: difference in points}."""
    rounding.main(rounding.parse_args(['--rw_dir', RANDOM_WALKS, '--device', 'cpu', '--num_workers', '0']))
    words = [line.replace(',', '').replace(':', '').split() for line in capsys.readouterr().out.splitlines()]
    scores = {(line[0], float(line[2])): (float(line[4]), float(line[7])) for line in words if line[1] == 'threshold'}
    return scores, {line[0]: float(line[3]) for line in words if line[1] == 'at'}


def test_rounding_of_files(copy, capsys):
    """The files score as in stage 9; float32 differs little from them, and much from wrong files."""
    scores, apart = rounding_of(capsys)
    for name, folder in (('CAM', CAMS), ('RW', RANDOM_WALKS)):
        result = json.loads((copy.parent / f'experiments/results/{folder}@train.json').read_text())
        assert {threshold for kind, threshold in scores if kind == name} >= {
            row['threshold'] for row in result['thresholds']
        }
        for row in result['thresholds']:
            assert scores[name, row['threshold']][0] == pytest.approx(row['miou'], abs=1e-4)
        assert apart[name] < 0.2
        assert apart[name] == pytest.approx(max(abs(a - b) for (n, _), (a, b) in scores.items() if n == name), abs=2e-4)
    for path in (copy.parent / 'experiments/predictions' / RANDOM_WALKS).glob('*.npz'):
        keys, rw = read_maps(path, 'rw', 6)
        write_npz(path, keys=keys, rw=(1 - rw).astype(np.float16))
    for path in (copy.parent / 'experiments/predictions' / CAMS).glob('*.npz'):
        keys, cam = read_maps(path, 'cam', 6)
        _, hr_cam = read_maps(path, 'hr_cam', 6)
        write_npz(path, keys=keys, cam=cam.astype(np.float16), hr_cam=(1 - hr_cam).astype(np.float16))
    _, apart = rounding_of(capsys)
    assert apart['CAM'] > 1
    assert apart['RW'] > 1


@pytest.mark.parametrize('name, folder', [('cls', CAMS), ('aff', RANDOM_WALKS)])
def test_rounding_of_another_model_is_refused(copy, name, folder):
    torch.save({key: value + 1 for key, value in state_of(name).items()}, f'experiments/models/{name}.pth')
    with pytest.raises(UserError, match=rf'{folder} exists with different settings \(model'):
        rounding.main(rounding.parse_args(['--rw_dir', RANDOM_WALKS]))


def test_rounding_of_a_folder_without_args_is_refused(copy):
    Path('experiments/predictions', RANDOM_WALKS, 'args.json').unlink()
    with pytest.raises(UserError, match=f'{RANDOM_WALKS}/args.json is missing or damaged'):
        rounding.main(rounding.parse_args(['--rw_dir', RANDOM_WALKS]))


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
    """Each epoch; the score of the epoch is that of the best one."""
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
    assert {path.name for path in (experiments / 'tensorboards').iterdir()} == set(TAGS)  # no runs of their own
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


def test_scored_masks_are_few_and_evenly_spaced(demo, monkeypatch):
    args = SimpleNamespace(image_size=64, batch_size=4, num_workers=0)
    for most, expected in ((1000, [0, 1, 2, 3, 4, 5]), (4, [0, 1, 3, 4]), (1, [0])):
        monkeypatch.setattr(train_affinitynet, 'SCORED_IMAGES', most)
        loader = train_affinitynet.build_score_loader(args, dataset_of(demo), (16, 16), torch.device('cpu'))
        ids = ids_of(demo, 'train')
        assert loader.dataset.ids == [ids[i] for i in expected]
        assert next(iter(loader))['masks'].shape[1:] == (16, 16)


def scored(predictions: list, masks: list, num_classes: int) -> list[float]:
    """Return the IoU of each class in %, from sets of pixels."""
    prediction, mask = (np.concatenate([x.ravel() for x in maps]) for maps in (predictions, masks))
    prediction, mask = prediction[mask != 255], mask[mask != 255]
    result = []
    for c in range(num_classes):
        union = ((prediction == c) | (mask == c)).sum()
        result.append(100 * ((prediction == c) & (mask == c)).sum() / union if union else None)
    return result


@pytest.mark.parametrize('name, domain', [(PSEUDO, 'train'), (PREDICTIONS, 'val')])
def test_results_of_label_maps(experiments, demo, name, domain):
    result = json.loads((experiments / 'results' / f'{name}@{domain}.json').read_text())
    ids, classes = ids_of(demo, domain), dataset_of(demo).class_names
    masks = [pixels(demo / 'SegmentationClass' / f'{image_id}.png') for image_id in ids]
    predictions = [pixels(experiments / 'predictions' / name / f'{image_id}.png') for image_id in ids]
    iou = scored(predictions, masks, len(classes) + 1)
    present = [value for value in iou if value is not None]
    assert (result['mode'], result['images'], result['domain']) == ('png', len(ids), domain)
    assert list(result['iou']) == ['background', *classes]
    for found, expected in zip(result['iou'].values(), iou, strict=True):
        assert found == (None if expected is None else pytest.approx(expected, abs=1e-3))
    assert result['miou'] == pytest.approx(sum(present) / len(present))
    nothing = [x for x in scored([0 * mask for mask in masks], masks, len(classes) + 1) if x is not None]
    assert result['all_background_miou'] == pytest.approx(sum(nothing) / len(nothing))
    assert result['made_with']['options']['dataset'] == str(demo / 'dataset.json')


@pytest.mark.parametrize('name, key, mode, last', [(CAMS, 'hr_cam', 'npy', 0.75), (RANDOM_WALKS, 'rw', 'rw', 0.45)])
def test_results_of_maps_at_every_threshold(experiments, demo, name, key, mode, last):
    result = json.loads((experiments / 'results' / f'{name}@train.json').read_text())
    assert result['mode'] == mode
    assert [row['threshold'] for row in result['thresholds']] == [i / 100 for i in range(5, round(100 * last) + 1, 5)]
    ids, classes = ids_of(demo, 'train'), dataset_of(demo).class_names
    masks = [pixels(demo / 'SegmentationClass' / f'{image_id}.png') for image_id in ids]
    best = max(row['miou'] for row in result['thresholds'])
    for row in result['thresholds']:
        predictions = []
        for image_id in ids:
            with np.load(experiments / 'predictions' / name / f'{image_id}.npz') as file:
                keys, maps = file['keys'], file[key].astype(np.float32)
            maps = upsample_rw(maps, size_of(demo, image_id)) if mode == 'rw' else maps
            confident = maps.max(0) > np.float32(row['threshold'])
            predictions.append(np.where(confident, keys[1:][maps.argmax(0)], 0))
        present = [x for x in scored(predictions, masks, len(classes) + 1) if x is not None]
        assert row['miou'] == pytest.approx(sum(present) / len(present))
        if row['miou'] == best:
            assert result['miou'] == best
    assert result['threshold'] in [row['threshold'] for row in result['thresholds'] if row['miou'] == best]


def test_single_threshold_and_end_of_the_thresholds(copy, capsys):
    run(copy, 'evaluate cams', '--threshold', '0.3')
    result = json.loads((copy.parent / f'experiments/results/{CAMS}@train.json').read_text())
    assert [row['threshold'] for row in result['thresholds']] == [0.3]
    capsys.readouterr()
    run(copy, 'evaluate random_walk', '--mode', 'rw', '--max_th', '0.25')
    result = json.loads((copy.parent / f'experiments/results/{RANDOM_WALKS}@train.json').read_text())
    assert [row['threshold'] for row in result['thresholds']] == [0.05, 0.1, 0.15, 0.2]
    assert {'over:', 'under:'} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    'name, domain', [(CAMS, 'train'), (RANDOM_WALKS, 'train'), (PSEUDO, 'train'), (PREDICTIONS, 'val')]
)
def test_results_say_what_was_scored(experiments, demo, name, domain):
    result = json.loads((experiments / 'results' / f'{name}@{domain}.json').read_text())
    dataset, ids = dataset_of(demo), ids_of(demo, domain)
    hashes = [file_hash(dataset.mask_path(image_id))[:16] for image_id in ids]
    assert result['masks'] == digest(dict(zip(ids, hashes, strict=True)))
    assert (result['dataset'], result['num_classes']) == (dataset.name, dataset.num_classes)
    assert result['threshold_choice'] == (None if result['threshold'] is None else 'best on these masks')
    assert result['crf_iteration'] == 0


@pytest.mark.parametrize(
    'name, domain', [(CAMS, 'train'), (RANDOM_WALKS, 'train'), (PSEUDO, 'train'), (PREDICTIONS, 'val')]
)
def test_counts_per_image_add_up_to_the_result(experiments, demo, name, domain):
    result = json.loads((experiments / 'results' / f'{name}@{domain}.json').read_text())
    with np.load(experiments / 'results' / f'{name}@{domain}.npz', allow_pickle=False) as file:
        ids, thresholds = file['ids'], file['thresholds']
        counts = np.zeros((len(ids), len(thresholds) or 1, result['num_classes'] + 1, 3), np.int64)
        counts[file['images'], :, file['classes']] = file['counts']
        assert len(file['counts']) < counts.shape[0] * counts.shape[2]  # not every image has every class
        assert [file[name].dtype for name in ('images', 'classes', 'counts')] == [np.uint8, np.uint8, np.uint16]
    assert ids.tolist() == ids_of(demo, domain)
    label_maps = result['mode'] == 'png'
    assert thresholds.tolist() == ([] if label_maps else [row['threshold'] for row in result['thresholds']])
    total = counts.sum(0)
    for row, (target, predicted, both) in zip(result['thresholds'], np.moveaxis(total, -1, 1), strict=True):
        union = target + predicted - both
        iou = [100 * b / u if u else None for b, u in zip(both, union, strict=True)]
        assert list(row['iou'].values()) == [None if x is None else pytest.approx(x, abs=1e-4) for x in iou]
    confusion = np.array(result['confusion'])
    best = total[0 if label_maps else thresholds.tolist().index(result['threshold'])]
    assert np.array_equal(best, np.stack([confusion.sum(1), confusion.sum(0), np.diag(confusion)], 1))

    # One image by a loop: the mask's pixels of each class.
    mask = pixels(demo / 'SegmentationClass' / f'{ids[1]}.png')
    assert counts[1, 0, :, 0].tolist() == [(mask == c).sum() for c in range(len(confusion))]


def test_results_do_not_depend_on_workers_or_dates(copy):
    files_of = [Path(f'experiments/results/{CAMS}@train.{ending}') for ending in ('json', 'npz')]
    before = [without_seconds(path) for path in files_of]
    assert json.loads(files_of[0].read_text())['seconds'] > 0
    assert json.loads(files_of[0].read_text())['versions'] == versions()
    for workers in ('0', '2'):
        for path in files_of:
            path.unlink()
        run(copy, 'evaluate cams', '--num_workers', workers)
        assert [without_seconds(path) for path in files_of] == before


def test_thresholds_and_their_table(copy, capsys):
    run(copy, 'evaluate cams', '--min_th', '0.1', '--max_th', '0.3', '--step_th', '0.025', '--csv', 'new/sweep.csv')
    assert '\nthreshold 0.125: mIoU' in capsys.readouterr().out
    result = json.loads(Path(f'experiments/results/{CAMS}@train.json').read_text())
    thresholds = [0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.275]
    assert [row['threshold'] for row in result['thresholds']] == thresholds
    with open('new/sweep.csv', newline='') as file:
        head, *lines = csv.reader(file)
    assert head == ['threshold', 'mIoU', 'FP', 'FN', 'background', *dataset_of(copy).class_names]
    for line, row in zip(lines, result['thresholds'], strict=True):
        values = [row['threshold'], row['miou'], row['fp'], row['fn'], *row['iou'].values()]
        assert [float(cell) if cell else None for cell in line] == values
    run(copy, 'evaluate cams', '--threshold', '0.3')
    assert json.loads(Path(f'experiments/results/{CAMS}@train.json').read_text())['threshold_choice'] == 'given'
    run(copy, 'evaluate pseudo', '--csv', 'labels.csv')
    assert Path('labels.csv').read_text().splitlines()[1].startswith(',')


def test_table_that_cannot_be_written_is_refused_before_scoring(copy, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, 'count_pixels', lambda *_: pytest.fail('scored'))
    script, line = commands(copy)['evaluate cams']
    assert '--csv .: is a folder' in fault_of(script, [*line, '--csv', '.'], capsys)


def test_result_is_written_before_it_is_printed(copy, monkeypatch):
    """Whoever reads the output, such as head, may stop early."""
    path = Path(f'experiments/results/{CAMS}@train.json')
    before = json.loads(path.read_text())
    path.unlink()

    def stop(result):
        raise BrokenPipeError

    monkeypatch.setattr(evaluate.results, 'report', stop)
    with pytest.raises(BrokenPipeError):
        run(copy, 'evaluate cams', '--csv', 'sweep.csv')
    assert json.loads(path.read_text()) | {'seconds': None} == before | {'seconds': None}
    assert Path('sweep.csv').is_file()


def test_random_walk_and_crf_scores_what_stage_6_scores(copy):
    """Also at one of several thresholds, which share a CRF; nothing else is overwritten."""
    results = Path('experiments/results')
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    expected = json.loads(before[f'{PSEUDO}@train.json'])
    line = ['--data_dir', str(copy), '--crf_iteration', '1']
    for more in (['--threshold', '0.35'], ['--min_th', '0.3']):
        run(copy, 'evaluate random_walk', *line, *more)
        result = json.loads((results / f'{RANDOM_WALKS}@dcrf=1@train.json').read_text())
        row = next(row for row in result['thresholds'] if row['threshold'] == 0.35)
        assert {name: row[name] for name in ('miou', 'fp', 'fn', 'iou')} == {
            name: expected[name] for name in ('miou', 'fp', 'fn', 'iou')
        }
        assert (result['crf_iteration'], result['mode']) == (1, 'rw')
    run(copy, 'evaluate cams', *line)
    assert len(json.loads((results / f'{CAMS}@dcrf=1@train.json').read_text())['thresholds']) == 15
    assert {name: (results / name).read_bytes() for name in before} == before


def test_crf_needs_the_images(copy, capsys):
    script, line = commands(copy)['evaluate cams']  # --data_dir is the folder of masks
    text = fault_of(script, [*line, '--crf_iteration', '1'], capsys)
    assert 'SegmentationClass/JPEGImages/train_00000.jpg: no such file (6 of 6 are missing)' in text


def test_upload_for_the_test_server(copy, capsys):
    info = json.loads((copy / 'dataset.json').read_text())
    info['lists']['test'] = info['lists']['val']
    (copy / 'dataset.json').write_text(json.dumps(info))
    run(copy, 'predictions', '--domain', 'test', '--iteration', '0')
    name = f'seg@test@scale={SCALES}@iteration=0'
    run(copy, 'evaluate', '--experiment_name', name, '--domain', 'test')  # with masks: scored like any list
    assert json.loads((copy.parent / f'experiments/results/{name}@test.json').read_text())['images'] == 4
    shutil.rmtree(copy / 'SegmentationClass')  # not public
    shutil.rmtree(copy / 'Annotations')
    run(copy, 'evaluate', '--experiment_name', name, '--domain', 'test')
    (upload,) = (copy.parent / 'experiments' / 'results').glob('*.tgz')
    assert name in upload.name
    with tarfile.open(upload, 'r:gz') as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    info['lists']['test'] = info['lists']['train']
    (copy / 'dataset.json').write_text(json.dumps(info))
    script, line = commands(copy)['evaluate cams']
    text = fault_of(script, [*line, '--domain', 'test'], capsys)
    assert f'--domain test: has no masks, and experiments/predictions/{CAMS} contains no label maps to upload' in text
    folder = 'results/VOC2012/Segmentation/comp6_test_cls'
    assert set(members) == {f'{folder}/{image_id}.png' for image_id in ids_of(copy, 'val')}
    for path, content in members.items():
        picture = Image.open(io.BytesIO(content))
        assert picture.mode == 'P'
        source = copy.parent / 'experiments' / 'predictions' / name / path.rsplit('/', 1)[1]
        assert np.array_equal(np.array(picture), pixels(source))


# Workers ------------------------------------------------------------------------------------------------------------


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


# Options of training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'line, terms',
    [
        ('--loss_option cl', {'cl'}),
        ('--loss_option cl_pcl --re_loss_option none', {'cl', 'pcl'}),
        ('--loss_option cl_re --re_loss L2_Loss --re_loss_option none', {'cl', 're'}),
        ('--loss_option cl_pcl_re --level cam --re_loss_option selection', {'cl', 'pcl', 're'}),
        ('--loss_option cl_conf --augment colorjitter --label_smoothing 0.1', {'cl', 'conf'}),
        ('--loss_option cl_pcl_re_conf --level cam --alpha_schedule 0 --select last', {'cl', 'pcl', 're', 'conf'}),
        ('--mode fix --num_pieces 16 --augment colorjitter,randaugment --nesterov False', {'cl', 'pcl', 're'}),
        ('--num_pieces 1 --bn_replicas 1 --augment randaugment_torchvision --seed 3', {'cl', 'pcl', 're'}),
        ('--precision bf16', {'cl', 'pcl', 're'}),
        ('--precision fp16', {'cl', 'pcl', 're'}),
    ],
)
def test_options_of_the_classifier(demo, in_tmp, line, terms):
    args = run(demo, 'cls', *line.split())
    curves = json.loads((in_tmp / 'experiments/data/cls.json').read_text())['curves']
    assert set(curves) - {'alpha', 'scale'} == terms | {'loss', 'lr', 'mIoU', 'mAP', 'F1'}
    assert [step for step, _ in curves['loss']] == [1, 2, 3]
    for i, (step, loss) in enumerate(curves['loss']):
        alpha = alpha_at(step - 1, 3, args.alpha, args.alpha_schedule)
        if 're' in terms:
            assert curves['alpha'][i][1] == alpha
        # The first steps of fp16 only lower the scale of the loss, from 2^16.
        scales = [2**16, *(value for _, value in curves.get('scale', []))][: i + 1]
        taken = sum(b >= a for a, b in pairwise(scales)) if args.precision == 'fp16' else i
        assert curves['lr'][i][1] == pytest.approx(args.lr * (1 - taken / 3) ** 0.9)
        expected = sum((alpha if term == 're' else 1) * curves[term][i][1] for term in terms)
        assert loss == pytest.approx(expected, rel=1e-5)
    assert all(math.isfinite(value) for points in curves.values() for _, value in points)
    if args.num_pieces == 1 and 're' in terms:
        assert max(value for _, value in curves['re']) < 1e-6  # one tile is the image
    assert read_state_dict(Path('experiments/models/cls.pth'))[1]['select'] == args.select
    other = 'best' if args.select == 'last' else 'last'
    assert (in_tmp / f'experiments/models/cls.{other}.pth').is_file()


@pytest.mark.parametrize(
    'line',
    [
        '--architecture Seg_Model --mode normal --select last',
        '--architecture CSeg_Model',
        '--use_gn False',
        '--precision bf16',
    ],
)
def test_options_of_the_segmenter(copy, line):
    run(copy, 'seg', *line.split(), '--tag', 'other')
    words = line.replace('--select last', '').split()
    run(copy, 'predictions', *words, '--tag', 'other', '--scale', '1.0', '--iteration', '1')
    assert len(files_in(copy.parent / 'experiments', 'other@val@scale=1.0@iteration=1')) == 4
    curves = json.loads((copy.parent / 'experiments/data/other.json').read_text())['curves']
    assert all(math.isfinite(value) for points in curves.values() for _, value in points)
    assert len(curves['loss']) == 3


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize(
    'name, output', [('cams', f'cls@train@scale={SCALES},1.5'), ('random_walk', 'other@train@beta=10')]
)
def test_cams_and_random_walks_in_half_precision(copy, name, output, precision):
    """Close to those of float32, but not equal."""
    run(copy, 'aff', '--tag', 'other', '--precision', precision)
    more = {'cams': ['--scales', f'{SCALES},1.5'], 'random_walk': ['--model_name', 'other']}[name]
    found = []
    for value in ('fp32', precision):
        run(copy, name, *more, '--precision', value, '--overwrite')
        folder = next(
            path for path in (copy.parent / 'experiments/predictions').iterdir() if path.name.startswith(output)
        )
        with np.load(folder / f'{first(copy)}.npz') as file:
            found.append(file['rw' if name == 'random_walk' else 'cam'].astype(float))
    assert 0 < np.abs(found[0] - found[1]).mean() < 0.03


@pytest.mark.parametrize('name', ['cls', 'cams', 'aff', 'seg', 'predictions'])
def test_resizing_backend_is_that_of_the_flag(copy, monkeypatch, name):
    backends = []

    def spy(image, size, backend='pillow'):
        backends.append(backend)
        return resize(image, size, backend)

    monkeypatch.setattr('core.data.transforms.resize', spy)
    with pytest.raises(UserError, match='resize: pillow, requested torch'):
        run(copy, name, '--resize', 'torch')
    assert not backends
    run(copy, name, '--resize', 'torch', '--overwrite', '--num_workers', '0')
    assert set(backends) == {'torch'}
    backends.clear()
    run(copy, name, '--overwrite', '--num_workers', '0')
    assert set(backends) == {'pillow'}


@pytest.mark.parametrize('factor', [1e-9, 1e9])
def test_random_walk_scores_beyond_float16(copy, monkeypatch, factor):
    """They are scaled to a maximum of 1 before they are written."""

    def scaled(*args, **kwargs):
        return random_walk(*args, **kwargs) * factor

    folder = copy.parent / 'experiments/predictions' / RANDOM_WALKS
    expected = {path.name: read_maps(path, 'rw', 6) for path in folder.glob('*.npz')}
    assert sum(rw.any() for _, rw in expected.values()) > 2  # or this compares nothing
    monkeypatch.setattr(inference_rw, 'random_walk', scaled)
    run(copy, 'random_walk', '--overwrite')
    for name, (keys, rw) in expected.items():
        found_keys, found = read_maps(folder / name, 'rw', 6)
        assert found_keys.tolist() == keys.tolist()
        np.testing.assert_allclose(found, rw, atol=1e-3)


def test_images_per_batch_change_only_the_rounding_and_are_recorded(copy):
    folder = copy.parent / 'experiments/predictions' / CAMS
    removed = sorted(folder.glob('*.npz'))[::2]
    expected = {path: read_maps(path, 'hr_cam', 6) for path in removed}
    for path in removed:
        path.unlink()
    before = read_args(folder)
    run(copy, 'cams', '--batch_size', '1')
    for path, (keys, hr_cam) in expected.items():
        found_keys, found = read_maps(path, 'hr_cam', 6)
        assert found_keys.tolist() == keys.tolist()
        np.testing.assert_allclose(found, hr_cam, atol=2e-3)
    record = read_args(folder)
    assert record['fingerprint'] == before['fingerprint']
    assert record['options']['batch_size'] == 1
    assert [entry['options']['batch_size'] for entry in record['history']] == [4]


# What the fingerprints of stages 2, 5 and 8 held when the flags of the network had defaults of their own.
OPTIONS = {
    'cams': {'tag': 'cls', 'scales': SCALES, 'resize': 'pillow'},
    'random_walk': {'model_name': 'aff', 'cam_dir': CAMS, 'beta': 10, 'exp_times': 8, 'image_size': 96},
    'predictions': {'tag': 'seg', 'scales': SCALES, 'resize': 'pillow', 'iteration': 10},
}
SEGMENTER = {'architecture': 'DeepLabv3+', 'backbone': NET, 'mode': 'fix', 'use_gn': True}


def without(words: list[str], *flags: str) -> list[str]:
    """Return a command line without some flags and their values."""
    return [word for i, word in enumerate(words) if word not in flags and (i == 0 or words[i - 1] not in flags)]


@pytest.mark.parametrize('form', ['today', 'earlier'])
@pytest.mark.parametrize(
    'name, tag, folder',
    [('cams', 'cls', CAMS), ('random_walk', 'aff', RANDOM_WALKS), ('predictions', 'seg', PREDICTIONS)],
)
def test_stages_take_the_network_from_the_model_file(copy, capsys, name, tag, folder, form):
    """Folders do not depend on whether flags or the file say what the network is, nor on the version of the file."""
    script, words = commands(copy)[name]
    if form == 'earlier':
        path = Path(f'experiments/models/{tag}.pth')
        content = torch.load(path, weights_only=True)
        architecture = f'DeepLabv3+ {NET} GN' if tag == 'seg' else NET
        content['meta'] = {'architecture': architecture, 'classes': content['meta']['classes'], 'epoch': 1}
        torch.save(content, path)
    run_stage(script, [*words, '--overwrite'])
    path = copy.parent / 'experiments/predictions' / folder
    record, before = read_args(path), {file: without_seconds(file) for file in path.glob('*.*')}
    network = SEGMENTER if tag == 'seg' else {'architecture': NET}
    options = {key: value for key, value in record['fingerprint'].items() if key not in ('classes', 'model', 'cams')}
    assert options == {**OPTIONS[name], **network, 'precision': 'fp32'}
    capsys.readouterr()
    run_stage(script, without(words, '--architecture', '--backbone'))
    assert '0 of them new' in capsys.readouterr().out
    run_stage(script, [*without(words, '--architecture', '--backbone'), '--overwrite'])
    assert {**read_args(path), 'seconds': record['seconds']} == record
    assert {file: without_seconds(file) for file in path.glob('*.*')} == before


@pytest.mark.parametrize('name, tag', [('cams', 'cls'), ('random_walk', 'aff'), ('predictions', 'seg')])
def test_swapped_class_names_are_refused(copy, capsys, name, tag):
    info = json.loads((copy / 'dataset.json').read_text())
    first, second, *others = info['classes']
    (copy / 'dataset.json').write_text(json.dumps({**info, 'classes': [second, first, *others]}))
    line = f"--dataset {copy}/dataset.json: class 1 is '{second}'; experiments/models/{tag}.pth expects"
    assert f"{line} '{first}'" in fault_of(*commands(copy)[name], capsys)


@pytest.mark.parametrize(
    'name, flag, tag, line',
    [
        ('cams', '--tag', 'aff', 'contains AffinityNet: pass a model of train_classification_with_puzzle.py'),
        ('random_walk', '--model_name', 'cls', 'contains Classifier: pass a model of train_affinitynet.py'),
        ('predictions', '--tag', 'cls', 'contains Classifier: pass a model of train_segmentation.py'),
        ('predictions', '--mode', 'normal', '--mode normal: experiments/models/seg.pth was trained with fix'),
    ],
)
def test_models_of_another_stage_are_refused(copy, capsys, name, flag, tag, line):
    script, words = commands(copy)[name]
    assert line in fault_of(script, [*words, flag, tag], capsys)


def test_bare_state_dicts_need_flags(copy, capsys):
    torch.save(state_of('seg'), 'experiments/models/seg.pth')
    script, words = commands(copy)['predictions']
    line = 'experiments/models/seg.pth: is a bare state dict without metadata: pass --architecture'
    assert line in fault_of(script, words, capsys)
    run_stage(script, [*words, '--architecture', 'DeepLabv3+', '--overwrite'])


@pytest.mark.parametrize('form', ['plain', 'module.', 'state_dict'])
def test_models_in_other_common_forms(copy, form):
    """They give the same CAMs; without metadata the flags say what the network is."""
    path = Path(f'experiments/predictions/{CAMS}/{first(copy)}.npz')
    expected, state = path.read_bytes(), state_of('cls')
    if form == 'module.':
        state = {f'module.{name}': value for name, value in state.items()}
    torch.save({form: state} if form == 'state_dict' else state, 'experiments/models/cls.pth')
    run(copy, 'cams', '--overwrite')
    assert path.read_bytes() == expected


@pytest.mark.parametrize(
    'tag, name, layer, line',
    [
        ('cls', 'cams', 'classifier.', 'have a CAM that is zero everywhere: the classifier does not see the class'),
        (
            'aff',
            'random_walk',
            'head.classify.',
            'have an almost constant edge map, so nothing stops the random walk: check AffinityNet',
        ),
    ],
)
def test_models_that_see_nothing_are_warned_of(copy, capsys, tag, name, layer, line):
    state = {key: 0 * value if key.startswith(layer) else value for key, value in state_of(tag).items()}
    torch.save(state, f'experiments/models/{tag}.pth')
    run(copy, name, '--overwrite')
    assert f'warning: 12 of 12 images (train_00000, ...) {line}\n' in capsys.readouterr().err


def test_predictions_fork_before_a_gpu_is_in_use(copy, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    with pytest.raises(AssertionError, match='fork the workers before a GPU is in use'):
        run(copy, 'predictions', '--num_workers', '1')


def test_second_evaluation_of_a_folder_is_refused(copy):
    result = Path(f'experiments/results/{CAMS}@train.json')
    before = result.read_bytes()
    with files.locked(files.lock_path(result), str(result)):
        with pytest.raises(UserError, match=f'is being written by process {os.getpid()}'):
            run(copy, 'evaluate cams')
    assert result.read_bytes() == before


def test_warnings_count_the_files_of_this_call(copy, capsys):
    """Also if an unfinished image shares its batch with finished ones."""
    state = {key: 0 * value if key.startswith('classifier.') else value for key, value in state_of('cls').items()}
    torch.save(state, 'experiments/models/cls.pth')
    run(copy, 'cams', '--overwrite')
    Path(f'experiments/predictions/{CAMS}/{first(copy)}.npz').unlink()
    capsys.readouterr()
    run(copy, 'cams')
    assert f'warning: 1 of 1 images ({first(copy)}, ...) have a CAM' in capsys.readouterr().err


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


# Invalid input ------------------------------------------------------------------------------------------------------


def first(data, domain='train_aug') -> str:
    return ids_of(data, domain)[0]


@pytest.mark.parametrize(
    'name, gone, script',
    [
        ('cams', 'models/cls.pth', 'train_classification_with_puzzle.py'),
        ('affinity_labels', f'predictions/{CAMS}', 'inference_classification.py'),
        ('affinity_labels', f'predictions/{CAMS}/train_00000.npz', 'inference_classification.py'),
        ('aff', f'predictions/{AFFINITY_LABELS}', 'make_affinity_labels.py'),
        ('aff', f'predictions/{AFFINITY_LABELS}/train_00000.png', 'make_affinity_labels.py'),
        ('random_walk', 'models/aff.pth', 'train_affinitynet.py'),
        ('random_walk', f'predictions/{CAMS}', 'inference_classification.py'),
        ('random_walk', f'predictions/{CAMS}/train_00000.npz', 'inference_classification.py'),
        ('pseudo', f'predictions/{RANDOM_WALKS}', 'inference_rw.py'),
        ('pseudo', f'predictions/{RANDOM_WALKS}/train_00000.npz', 'inference_rw.py'),
        ('seg', f'predictions/{PSEUDO}', 'make_pseudo_labels.py'),
        ('seg', f'predictions/{PSEUDO}/train_00000.png', 'make_pseudo_labels.py'),
        ('predictions', 'models/seg.pth', 'train_segmentation.py'),
        ('evaluate', f'predictions/{PREDICTIONS}', ''),
        ('evaluate', f'predictions/{PREDICTIONS}/val_00000.png', ''),
    ],
)
def test_missing_output_of_an_earlier_stage_is_named(copy, capsys, name, gone, script):
    path = copy.parent / 'experiments' / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = fault_of(*commands(copy)[name], capsys)
    assert path.name in text
    assert script in text


@pytest.mark.parametrize('name', ['cls', 'cams', 'affinity_labels', 'aff', 'random_walk', 'pseudo', 'seg'])
@pytest.mark.parametrize('damage', [b'', b'no JPEG', None])
def test_unreadable_or_missing_image_is_named(copy, capsys, name, damage):
    path = copy / 'JPEGImages' / f'{first(copy)}.jpg'
    path.unlink() if damage is None else path.write_bytes(damage)
    assert path.name in fault_of(*commands(copy)[name], capsys)


@pytest.mark.parametrize('name', ['cams', 'affinity_labels'])
def test_error_in_a_worker_is_one_line_too(copy, capsys, name):
    path = copy / 'JPEGImages' / f'{first(copy)}.jpg'
    path.write_bytes(b'no JPEG')
    script, line = commands(copy)[name]
    assert path.name in fault_of(script, [*line, '--num_workers', '1'], capsys)


PICTURES = {
    'cls': 'data/SegmentationClass', 'aff': f'experiments/predictions/{AFFINITY_LABELS}',
    'seg': f'experiments/predictions/{PSEUDO}', 'evaluate pseudo': f'experiments/predictions/{PSEUDO}',
}  # fmt: skip


@pytest.mark.parametrize('name', [*PICTURES, 'evaluate'])
@pytest.mark.parametrize('damage', ['size', 'class', 'colour', 'cut'])
def test_wrong_mask_is_named(copy, capsys, name, damage):
    folder = copy.parent / PICTURES.get(name, 'data/SegmentationClass')
    path = folder / f'{first(copy, "val" if name == "evaluate" else "train")}.png'
    mask = pixels(path)
    if damage == 'size':
        Image.fromarray(mask[:-1]).save(path)
    elif damage == 'class':
        mask[0, 0] = 21
        Image.fromarray(mask).save(path)
    elif damage == 'colour':
        Image.fromarray(np.stack([mask] * 3, -1)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:60])
    assert path.name in fault_of(*commands(copy)[name], capsys)


def test_ignored_pixels_in_scored_labels_are_named(copy, capsys):
    path = copy.parent / 'experiments' / 'predictions' / PSEUDO / f'{first(copy, "train")}.png'
    Image.fromarray(np.full_like(pixels(path), 255)).save(path)
    assert path.name in fault_of(*commands(copy)['evaluate pseudo'], capsys)


@pytest.mark.parametrize('name', ['cls', 'cams'])
@pytest.mark.parametrize('damage', ['unknown', 'cut', 'missing'])
def test_wrong_annotation_is_named(copy, capsys, name, damage):
    path = copy / 'Annotations' / f'{first(copy)}.xml'
    text = path.read_text()
    if damage == 'missing':
        path.unlink()
    elif damage == 'unknown':
        path.write_text(text.replace('<object>', '<object><name>unicorn</name>'))
    else:
        path.write_text(text[:40])
    assert path.name in fault_of(*commands(copy)[name], capsys)


@pytest.mark.parametrize(
    'name, file',
    [
        ('affinity_labels', f'predictions/{CAMS}'),
        ('random_walk', f'predictions/{CAMS}'),
        ('pseudo', f'predictions/{RANDOM_WALKS}'),
        ('evaluate cams', f'predictions/{CAMS}'),
        ('cams', 'models/cls.pth'),
        ('random_walk', 'models/aff.pth'),
        ('predictions', 'models/seg.pth'),
    ],
)
@pytest.mark.parametrize('content', [b'', b'damaged'])
def test_damaged_output_of_an_earlier_stage_is_named(copy, capsys, name, file, content):
    path = copy.parent / 'experiments' / file
    path = path / f'{first(copy, "train")}.npz' if path.is_dir() else path
    path.write_bytes(content)
    assert path.name in fault_of(*commands(copy)[name], capsys)


@pytest.mark.parametrize(
    'name, line, part',
    [
        ('cls', '--num_pieces 3', '--num_pieces: 3'),
        ('cls', '--image_size 50', '--image_size 50'),
        ('cls', '--num_pieces 9', '--image_size 64'),
        ('cls', '--device nonsense', '--device nonsense'),
        ('cls', '--batch_size 16', '--batch_size 16'),
        ('cls', '--weights nowhere.pth', '--weights nowhere.pth: cannot be read'),
        ('cls', '--lr 1e20', '--lr'),
        ('aff', '--lr 1e30', '--lr'),
        ('seg', '--lr 1e20', '--lr'),
        ('cls', '--weights imagenet', '--weights imagenet: '),
        ('cls', '--dataset nowhere.json', '--dataset nowhere.json: '),
        ('cls', '--data_dir nowhere', 'nowhere'),
        ('cls', '--architecture mobilenet_v2 --weights experiments/models/cls.pth', 'mobilenet_v2'),
        ('cams', '--domain test', "--domain 'test'"),
        ('cams', '--architecture resnest14', 'resnest14'),
        ('affinity_labels', '--domain nowhere', "--domain 'nowhere'"),
        ('affinity_labels', f'--experiment_name {RANDOM_WALKS}', '"cam"'),
        ('affinity_labels', '--domain val', 'inference_classification.py'),
        ('aff', '--radius 10', '--radius 10 is'),
        ('random_walk', '--architecture resnest14', 'resnest14'),
        ('random_walk', f'--cam_dir {RANDOM_WALKS}', '"cam"'),
        ('pseudo', f'--experiment_name {CAMS}', '"rw"'),
        ('seg', '--pred_dir nowhere', 'nowhere'),
        ('seg', '--batch_size 13', '--batch_size 13'),
        ('predictions', '--use_gn False', 'seg.pth'),
        ('predictions', '--architecture Seg_Model', 'Seg_Model'),
        ('predictions', '--domain train_aug --data_dir nowhere', 'nowhere'),
        ('evaluate', '--domain test', "--domain 'test'"),
        ('evaluate', '--mode npy', '--mode npy'),
        ('evaluate', '--data_dir nowhere', 'nowhere'),
        ('evaluate cams', '--mode rw', '--mode rw'),
        ('evaluate cams', '--mode png', '--mode png'),
        ('evaluate', '--threshold 0.3', '--threshold 0.3'),
        ('evaluate', '--crf_iteration 1', '--crf_iteration 1'),
        ('evaluate cams', '--min_th 0.5 --max_th 0.5', '--max_th 0.5 --step_th 0.05: 0 thresholds, expected 1 to 255'),
        ('evaluate cams', '--max_th 1 --step_th 0.001', '--step_th 0.001: 950 thresholds'),
    ],
)
def test_invalid_options_are_named(copy, capsys, name, line, part):
    script, words = commands(copy)[name]
    assert part in fault_of(script, [*words, *line.split()], capsys)


def test_data_set_of_other_classes_is_refused(copy, capsys):
    info = json.loads((copy / 'dataset.json').read_text())
    info['classes'] = info['classes'][:1]
    (copy / 'dataset.json').write_text(json.dumps(info))
    for name in ('cams', 'affinity_labels', 'aff', 'pseudo', 'seg', 'predictions', 'evaluate'):
        assert fault_of(*commands(copy)[name], capsys)


@pytest.mark.parametrize('name', ['random_walk', 'cams'])
def test_scripts_end_with_one_line_and_a_status(copy, name):
    """Run as programs: exit status and stderr."""
    script, line = commands(copy)[name]
    if name == 'random_walk':
        shutil.rmtree(copy.parent / 'experiments' / 'predictions' / CAMS)
        part = 'inference_classification.py'
    else:
        (copy / 'JPEGImages' / f'{first(copy)}.jpg').write_bytes(b'no JPEG')
        part = f'{first(copy)}.jpg'
    done = subprocess.run(
        [sys.executable, REPOSITORY / f'{script.__name__}.py', *line],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert part in done.stderr
