"""Every kind of data set, as the tool writes it, through tools.check_dataset and stages 1 to 6 with one flag or two."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import inference_classification
import inference_rw
import make_affinity_labels
import make_pseudo_labels
import train_affinitynet
import train_classification_with_puzzle as train_classification
from core.data.dataset import open_dataset
from support import kinds, run_stage
from tools import check_dataset, predict, prepare_coco, report

SIZES = '--image_size 64 --min_image_size 48 --max_image_size 80 --batch_size 4 --max_epoch 1 --lr 0.01 --device cpu'
NET = '--architecture resnest14_narrow'
CAMS = 'cls@train@scale=1.0'
LABELS = f'{CAMS}@aff_fg=0.40_bg=0.10'
WALKS = 'aff@train@beta=10@exp_times=4@rw'
STAGES = (
    (train_classification, f'{SIZES} {NET} --weights none --bn_replicas 1 --tag cls'),
    (inference_classification, '--device cpu --tag cls --scales 1.0'),
    (make_affinity_labels, f'--experiment_name {CAMS}'),
    (
        train_affinitynet,
        f'{SIZES} {NET} --weights experiments/models/cls.pth --radius 4 --tag aff --label_name {LABELS}',
    ),
    (inference_rw, f'--device cpu --model_name aff --cam_dir {CAMS} --exp_times 4 --image_size 64'),
    (make_pseudo_labels, f'--experiment_name {WALKS}'),
)


def prepared(root: Path):
    """Masks and tags of Roboflow's COCO export."""
    folder, _ = kinds.roboflow_coco(root)
    for split in ('train', 'valid'):
        places = ['--annotations', str(folder / split / '_annotations.coco.json'), '--images', str(folder / split)]
        run_stage(prepare_coco, [*places, '--num_workers', '0'])
    return folder / 'coco.csv', folder


FAST = (kinds.image_folder, kinds.label_studio_csv)
ALL = (*FAST, kinds.mvtec, prepared, *(make for make in kinds.WITH_TAGS if make not in FAST))


def flags_of(path, root) -> list[str]:
    """Return --dataset, and --data_dir unless the data set is a folder."""
    return ['--dataset', str(path), *(['--data_dir', str(root)] if root else [])]


@pytest.mark.filterwarnings('ignore::core.DataWarning', 'ignore:__array__ implementation:DeprecationWarning')
@pytest.mark.parametrize(
    'make', [pytest.param(make, id=make.__name__, marks=[pytest.mark.slow] if make not in FAST else []) for make in ALL]
)
def test_a_data_set_goes_through_check_and_six_stages(in_tmp, make, capsys):
    data = flags_of(*make(Path('set').absolute()))
    run_stage(check_dataset, [*data, '--num_workers', '0'])
    assert 'no errors' in capsys.readouterr().out
    for script, line in STAGES:
        run_stage(script, [*data, '--num_workers', '0', *line.split()])
    dataset = open_dataset(data[1], data[-1])
    ids = dataset.ids('train_aug')
    folder = Path('experiments/predictions', f'{WALKS}@crf=1')
    for image_id in ids:
        present = {0, 255, *np.flatnonzero(dataset.read_labels(image_id)) + 1}
        label = np.array(Image.open(folder / f'{image_id}.png'))
        assert label.shape == kinds.SIZE[::-1]
        assert {*np.unique(label)} <= present
    if dataset.ids_with_masks('train'):
        run_stage(evaluate, [*data, '--num_workers', '0', '--experiment_name', f'{WALKS}@crf=1', '--domain', 'train'])


@pytest.mark.filterwarnings('ignore::core.DataWarning')
def test_a_folder_per_class_is_predicted_and_reported(in_tmp, capsys):
    data = flags_of(*kinds.mvtec(Path('set').absolute()))
    for script, line in STAGES[:2]:
        run_stage(script, [*data, '--num_workers', '0', *line.split()])
    run_stage(predict, ['experiments/models/cls.pth', *data, '--scales', '1.0', '--device', 'cpu'])
    assert Path('experiments/predict/cls/test__cat__000_overlay.png').is_file()
    run_stage(evaluate, [*data, '--num_workers', '0', '--experiment_name', CAMS])
    run_stage(report, ['cls'])
    assert 'test__cat__' in Path('experiments/report.html').read_text()

    # A photograph that moves to another folder is another image, and its outputs are not taken for the old one's.
    moved = Path(data[1], 'test/dog/000.png')
    moved.rename(Path(data[1], 'test/cat/100.png'))
    capsys.readouterr()
    with pytest.raises(ValueError, match='test__cat__100.npz not found'):
        run_stage(make_affinity_labels, [*data, '--num_workers', '0', '--experiment_name', CAMS])
