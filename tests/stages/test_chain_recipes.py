"""recipes/gradients.py, precision.py and rounding.py on the outputs of the nine stages."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import train_classification_with_puzzle as train_classification
from core import UserError
from core.data.dataset import open_dataset
from core.data.transforms import normalize
from core.losses import puzzle_losses
from core.models import Classifier
from recipes import gradients, precision, rounding
from support.chain import CAMS, NET, RANDOM_WALKS, SCALES, put_model, state_of
from support.folders import record_as_written
from util.store.arrays import read_maps, write_npz


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
        run = gradients.run_options('cls')
        dataset = open_dataset(run.dataset, run.data_dir)
        loader, *_ = train_classification.build_loaders(run, dataset, torch.device('cpu'))
        batch = next(iter(loader))
        for term, name in (('cl', 'L_cls'), ('re', 'L_re')):
            model = Classifier(NET, 6).train()
            model.load_state_dict(state_of('cls'))

            def in_replicas(images, with_cam, model=model):
                outputs = [model(replica, with_cam=with_cam) for replica in images.chunk(run.bn_replicas)]
                return tuple(torch.cat(output) for output in zip(*outputs, strict=True))

            loss = puzzle_losses(in_replicas, normalize(batch['images']), batch['labels'])[term]
            loss.backward()
            norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
            assert found[name][:2] == pytest.approx([loss.item(), norm], rel=1e-2, abs=1e-4)


def test_gradients_of_a_run_of_another_stage_are_refused(experiments, capsys):
    for recipe in (gradients, precision):
        with pytest.raises(UserError, match='--tag aff: is not a run of train_classification_with_puzzle.py'):
            recipe.main(recipe.parse_args(['--tag', 'aff']))


def test_gradients_of_a_missing_run_are_refused(in_tmp):
    with pytest.raises(UserError, match='--tag none: .*data/none.json is missing or damaged; run train_class'):
        gradients.main(gradients.parse_args(['--tag', 'none']))


def test_how_far_precision_moves_cams_and_losses(experiments, capsys):
    """fp32 by nothing, fp16 less than bf16, and both by little; the CAMs of fp32 score as stage 2's do."""
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
    for folder in (RANDOM_WALKS, CAMS):
        record_as_written(copy.parent / 'experiments/predictions' / folder)
    _, apart = rounding_of(capsys)
    assert apart['CAM'] > 1
    assert apart['RW'] > 1


@pytest.mark.parametrize('name, folder', [('cls', CAMS), ('aff', RANDOM_WALKS)])
def test_rounding_of_another_model_is_refused(copy, name, folder):
    put_model(name, {key: value + 1 for key, value in state_of(name).items()})
    with pytest.raises(UserError, match=rf'{folder}: experiments/models/{name}.pth changed; run '):
        rounding.main(rounding.parse_args(['--rw_dir', RANDOM_WALKS]))


def test_rounding_of_a_folder_without_args_is_refused(copy):
    Path('experiments/predictions', RANDOM_WALKS, 'args.json').unlink()
    with pytest.raises(UserError, match=f'{RANDOM_WALKS}/args.json is missing or damaged'):
        rounding.main(rounding.parse_args(['--rw_dir', RANDOM_WALKS]))
