"""Options of the stages: losses, networks, precision, resizing, the CRF, images per batch."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import inference_segmentation
from core import UserError
from core.data.transforms import resize
from core.losses import alpha_at
from core.models.weights import read_state_dict
from support.chain import AFFINITY_LABELS, CAMS, PREDICTIONS, PSEUDO, SCALES, files_in, first, run
from util.store.arrays import read_maps
from util.store.fingerprints import read_args


@pytest.mark.parametrize(
    'line, terms',
    [
        ('--loss_option cl', {'cl'}),
        ('--loss_option cl_pcl --re_loss_option none', {'cl', 'pcl'}),
        ('--loss_option cl_re --re_loss L2_Loss --re_loss_option none', {'cl', 're'}),
        ('--loss_option cl_pcl_re --level cam --re_loss_option selection', {'cl', 'pcl', 're'}),
        ('--loss_option cl_pcl_re --level positive --bn_replicas 2', {'cl', 'pcl', 're'}),
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


@pytest.mark.parametrize('precision', ['bf16', pytest.param('fp16', marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    'name, output', [('cams', f'cls@train@scale={SCALES},1.5'), ('random_walk', 'other@train@beta=10')]
)
def test_cams_and_random_walks_in_half_precision(copy, name, output, precision):
    """Close to the results of float32, but not equal."""
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


@pytest.mark.parametrize(
    'name', ['cls', 'cams', *(pytest.param(x, marks=pytest.mark.slow) for x in ('aff', 'seg', 'predictions'))]
)
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
    """Values other than the defaults go to a separate folder."""
    path = copy.parent / 'experiments/predictions' / folder
    before = {file.name: file.read_bytes() for file in path.glob('*.png')}
    options = read_args(path)['fingerprint']
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


def test_predictions_fork_before_a_gpu_is_in_use(copy, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    with pytest.raises(AssertionError, match='fork the workers before a GPU is in use'):
        run(copy, 'predictions', '--num_workers', '1')
