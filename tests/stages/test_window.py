"""Stacks of 16 bits go through all programs by a rule, which outputs and models record; other rules are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import inference_classification
import inference_rw
import inference_segmentation
import make_affinity_labels
import make_pseudo_labels
import train_affinitynet
import train_classification_with_puzzle as train_classification
import train_segmentation
from core import DataWarning, UserError
from core.models.model_file import ModelFile
from support import REPOSITORY, kinds, made_once, run_stage
from tools import check_dataset, export, predict, report, show
from util.store.fingerprints import read_args

SIZES = '--image_size 64 --min_image_size 48 --max_image_size 80 --batch_size 4 --max_epoch 1 --lr 0.01 --device cpu'
NEW = f'{SIZES} --weights none'
NET = 'resnest14_narrow'
CAMS = 'cls@train@scale=1.0'
LABELS = f'{CAMS}@aff_fg=0.40_bg=0.10'
WALKS = 'aff@train@beta=10@exp_times=4@rw'
PSEUDO = f'{WALKS}@crf=0'
PREDICTIONS = 'seg@train@scale=1.0@iteration=0'
FLAGS = ['--window', '300,4000', '--plane', '2']
RULE = {'window': '300,4000', 'plane': '2'}


def run(script, line: str, *more: str) -> None:
    run_stage(script, ['--dataset', 'labels.csv', '--data_dir', 'cells', '--num_workers', '0', *line.split(), *more])


STAGES = (
    (train_classification, f'{NEW} --architecture {NET} --bn_replicas 1 --tag cls'),
    (inference_classification, '--device cpu --tag cls --scales 1.0'),
    (make_affinity_labels, f'--experiment_name {CAMS}'),
    (train_affinitynet, f'{NEW} --architecture {NET} --radius 4 --tag aff --label_name {LABELS}'),
    (inference_rw, f'--device cpu --model_name aff --cam_dir {CAMS} --exp_times 4 --image_size 64'),
    (make_pseudo_labels, f'--experiment_name {WALKS} --crf_iteration 0'),
    (train_segmentation, f'{NEW} --backbone {NET} --tag seg --label_name {PSEUDO}'),
    (inference_segmentation, '--device cpu --tag seg --scales 1.0 --domain train --iteration 0'),
    (evaluate, f'--experiment_name {PSEUDO}'),
)


@pytest.fixture(scope='module')
def series(tmp_path_factory):
    """Outputs of all stages, by the rule in labels.json."""

    def make(folder):
        kinds.stacks(folder)
        for stage in STAGES:
            run(*stage)

    return made_once(tmp_path_factory, 'series', make)


@pytest.fixture
def here(series, in_tmp):
    shutil.copytree(series, in_tmp, dirs_exist_ok=True)
    return in_tmp


def twin_of(folder: Path) -> None:
    """Write a data set of 8 bits with the pixels that the rule makes of the stacks."""
    for i, (image, tags) in enumerate(kinds.TAGS.items()):
        plane = kinds.draw_stack(folder / 'twin/copy.tif', tags, i)[1].astype(float)
        grey = np.rint(np.clip((plane - 300) * 255 / 3700, 0, 255)).astype(np.uint8)
        Image.fromarray(grey).save(folder / f'twin/{image}.png')
    rows = (folder / 'labels.csv').read_text().replace('.tif', '.png').splitlines()
    (folder / 'twin.csv').write_text('\n'.join(row.rpartition(',')[0] for row in rows))


def test_models_and_folders_record_the_rule(series, monkeypatch):
    monkeypatch.chdir(series)
    for model in ('cls', 'aff', 'seg'):
        meta = ModelFile(Path(f'experiments/models/{model}.pth')).meta
        assert {name: meta[name] for name in RULE} == RULE
        record = json.loads(Path(f'experiments/data/{model}.json').read_text())['fingerprint']
        assert {name: record[name] for name in RULE} == RULE
    for folder in (CAMS, LABELS, WALKS, PSEUDO, PREDICTIONS):
        record = read_args(Path('experiments/predictions') / folder)['fingerprint']
        assert {name: record[name] for name in RULE} == RULE


def test_cams_are_those_of_the_mapped_images(here, capsys):
    """A copy of a model has no record of its training, so another data set may use it, with a warning."""
    twin_of(here)
    shutil.copy('experiments/models/cls.pth', 'experiments/models/copy.pth')
    line = ['--dataset', 'twin.csv', '--data_dir', 'twin', '--num_workers', '0', '--device', 'cpu', '--scales', '1.0']
    warned = 'in training images were read with --window=300,4000 --plane=2, now with neither --window nor --plane'
    with pytest.warns(DataWarning, match=f'copy.pth: {warned}'):
        run_stage(inference_classification, [*line, '--tag', 'copy'])
    for image in kinds.TAGS:
        first, second = (
            np.load(f'experiments/predictions/{tag}@train@scale=1.0/{image}.npz') for tag in ('cls', 'copy')
        )
        for name in ('keys', 'cam', 'hr_cam'):
            assert np.array_equal(first[name], second[name])


def test_the_flags_mean_the_same_as_the_entries(here, capsys):
    Path('labels.json').unlink()
    for script, line in STAGES[1:3] + STAGES[4:6]:
        run(script, line, *FLAGS)
        assert ', 0 of them new' in capsys.readouterr().out


@pytest.mark.parametrize('stage', STAGES, ids=lambda stage: stage[0].__name__)
@pytest.mark.parametrize(
    'entries, more, now',
    [
        ({}, [], 'neither --window nor --plane'),
        ({'window': [300, 4000], 'plane': 3}, [], '--window=300,4000 --plane=3'),
        ({'window': [300, 4000], 'plane': 2}, ['--window', '1%,99%'], '--window=1%,99% --plane=2'),
    ],
)
def test_another_rule_is_refused_everywhere(here, stage, entries, more, now):
    Path('labels.json').write_text(json.dumps(entries))
    script, line = stage
    if script is train_classification:
        with pytest.raises(
            UserError, match=r'exists with different settings \((plane|window): (2|300,4000), requested'
        ):
            run(script, line, *more)
        return
    with pytest.raises(UserError) as error:
        run(script, line, *more)
    assert str(error.value) == (
        f'experiments/models/cls.pth: images were read with --window=300,4000 --plane=2, now with {now} '
        '(pass the same to keep it); run train_classification_with_puzzle.py again'
    )


def test_predict_reads_by_the_rule_of_the_model(here, capsys):
    line = ['--device', 'cpu', '--scales', '1.0', '--num_workers', '0', '--crf_iteration', '0']
    run_stage(predict, ['experiments/models/seg.pth', 'cells/b.tif', 'cells/c.tif', *line])
    record = read_args(Path('experiments/predict/seg'))
    assert {name: record['options'][name] for name in RULE} == RULE
    with pytest.warns(DataWarning, match=r'seg.pth: in training .* now with --window=0,65535 --plane=2'):
        with pytest.raises(UserError, match=r'exists with different settings \(window: 300,4000, requested 0,65535\)'):
            run_stage(predict, ['experiments/models/seg.pth', 'cells/b.tif', *line, '--window', '0,65535'])

    # The page shows the photographs as the network saw them.
    run_stage(report, ['experiments/predict/seg', '--num_workers', '0'])
    assert 'cells/b' in Path('experiments/report.html').read_text()

    # A data set without a rule is read as the model's images were, and its own rule comes before.
    Path('labels.json').unlink()
    data = ['--dataset', 'labels.csv', '--data_dir', 'cells']
    run_stage(predict, ['experiments/models/seg.pth', *data, *line, '--out', 'all'])
    assert read_args(Path('all'))['options']['window'] == '300,4000'
    Path('labels.json').write_text('{"window": [0, 9000]}')
    with pytest.warns(DataWarning, match='now with --window=0,9000 --plane=2'):
        run_stage(predict, ['experiments/models/seg.pth', *data, *line, '--out', 'other'])


def test_pictures_and_exports_use_the_recorded_rule(here, capsys):
    Path('labels.json').unlink()
    for folder in (CAMS, LABELS, WALKS, PSEUDO):
        path = Path('experiments/predictions', folder, 'args.json')
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, 'options': {**content['options'], **RULE}}))
    run_stage(show, [CAMS, '--images', '1'])
    run_stage(report, ['aff', '--num_workers', '0'])
    run_stage(export, [PSEUDO, '--format', 'coco', '--out', 'coco'])
    assert len(json.loads(Path('coco/annotations.json').read_text())['images']) == 4
    words = ['--classes', 'cat,dog', '--data_dir', 'cells', '--format', 'png', '--out', 'png']
    run_stage(export, [PSEUDO, *words])


def test_check_says_where_the_window_is_for_no_image_and_where_it_leaves_one_value(in_tmp, capsys):
    kinds.stacks(in_tmp)
    kinds.draw(in_tmp / 'cells/e.png', ['cat'], 9)
    with Path('labels.csv').open('a') as file:
        file.write('e.png,cat,\n')
    run(check_dataset, '', '--window', '0,1')
    lines = capsys.readouterr().out.splitlines()
    assert 'warning: the window 0,1 is for 4 of 5 images; the others have 8 bits' in lines
    plain = 'warning: the window 0,1 leaves one value in 4 of 4 images (cells/a.tif, ...): compare it with theirs'
    assert plain in lines
    run(check_dataset, '')
    assert 'leaves one value' not in capsys.readouterr().out
    Path('labels.json').unlink()
    with pytest.raises(UserError, match='cells: 4 errors'):
        run(check_dataset, '')
    assert 'cells/d.tif: has 3 planes: pass --plane N (1 to 3) or --plane max' in capsys.readouterr().out


def test_every_program_opens_the_data_set_by_its_rule():
    """Except tools.import_masks, which reads nothing but sizes."""
    programs = [path for folder in ('.', 'tools') for path in (REPOSITORY / folder).glob('*.py')]
    plain = {path.name for path in programs if 'open_dataset(args.dataset, args.data_dir)' in path.read_text()}
    assert plain == {'import_masks.py'}
