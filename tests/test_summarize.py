"""tools/summarize.py: tables over runs, and the picture."""

import json

import numpy as np
import pytest
from core.datasets import encode_mask
from PIL import Image
from tools.experiment import PREDICTIONS, results_path
from tools.files import write_bytes, write_cam

from tools import summarize


def write_result(name, miou, threshold=0.3, domain='train', folder='cams'):
    result = {
        'miou': miou,
        'fp': 20.04,
        'fn': 70 - miou,
        'threshold': threshold,
        'images': 6,
        'all_background_miou': 12.5,
        'thresholds': [{'threshold': threshold, 'miou': miou}]
        + ([] if threshold is None else [{'threshold': 0.2, 'miou': miou - 3}]),
        'domain': domain,
    }
    write_bytes(results_path(name, 'json'), json.dumps({**result, 'experiment_name': folder}).encode())


def table(capsys, *arguments):
    summarize.main(summarize.parse_args(arguments))
    lines = capsys.readouterr().out.splitlines()
    return [line.split() for line in lines]


def test_mean_and_spread_over_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, (miou, threshold) in enumerate([(50, 0.3), (52, 0.4), (57, 0.3)]):
        write_result(f'a@seed={seed}@scale=0.5,1.0@train', miou, threshold)
    write_result('ab@train', 99, None)
    rows = table(capsys, 'three | a@seed=*@scale=0.5,1.0@train | 51.53', 'one | ab@train')
    assert rows[1] == ['three', '3', '6', '53.00', '+-', '3.61', '20.0', '17.0', '0.30', '0.40', '12.50', '51.53']
    assert rows[2] == ['one', '1', '6', '99.00', '20.0', '-29.0', '-', '12.50']


def test_thresholds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, miou in enumerate([50, 52]):
        write_result(f'cam@seed={seed}@train', miou, 0.3)
    write_result('walk@train', 60, 0.4)
    write_result('label@train', 61, None)
    lines = table(capsys, '--thresholds', 'CAM | cam@seed=*@train', 'RW | walk@train', 'label | label@train')
    assert lines[5:] == [
        ['threshold', '0.20', '0.30', '0.40'],
        ['CAM', '48.00', '[51.00]', '-'],
        ['RW', '57.00', '-', '[60.00]'],
    ]
    assert len(table(capsys, '--thresholds', 'label | label@train')) == 2


def test_what_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match='results/none@train.json is not there: evaluate.py makes it'):
        summarize.main(summarize.parse_args(['x | none@train']))
    with pytest.raises(SystemExit):
        summarize.parse_args(['no bar'])
    assert 'is not TITLE | NAME' in capsys.readouterr().err


def test_picture(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = (demo / 'ImageSets/Segmentation/train.txt').read_text().split()[:2]
    classes = json.loads((demo / 'dataset.json').read_text())['classes']
    lines = 0
    for image_id in ids:
        mask = np.array(Image.open(demo / f'SegmentationClass/{image_id}.png'))
        keys = np.array([0, *(k for k in np.unique(mask) if 0 < k <= len(classes))])
        lines += len(keys) - 1
        maps = np.stack([(mask == key).astype(np.float32) for key in keys[1:]])
        write_cam(PREDICTIONS / f'cams/{image_id}.npz', keys, maps[:, ::4, ::4], maps)
        label = np.where(mask == 255, 0, mask)
        write_bytes(PREDICTIONS / f'labels/{image_id}.png', encode_mask(label, np.zeros((256, 3), np.uint8)))
    write_result('cams@train', 50)
    write_result('labels@train', 60, None, folder='labels')
    write_result('elsewhere@val', 60, None, 'val', 'elsewhere')
    arguments = ['a | cams@train', 'b | labels@train', 'c | elsewhere@val', '--picture', 'sheet.png', '--images', '2']
    data = ['--dataset', str(demo / 'dataset.json'), '--data_dir', str(demo)]
    summarize.main(summarize.parse_args([*arguments, *data]))
    with Image.open('sheet.png') as sheet:
        assert sheet.size == (4 * 196, lines * 196)  # image, mask and the two rows of train
        assert len(np.unique(np.array(sheet))) > 100
