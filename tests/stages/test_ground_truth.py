"""Stage 7 with --label_name ground_truth: the masks of the data set instead of pseudo-labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference_segmentation
import train_segmentation
from core import UserError
from core.data.dataset import open_dataset
from core.models.backbones import BACKBONES, Backbone
from support import draw_image, fault_of, run_stage
from support.networks import Tiny
from util.store.formats import run_path

SIZES = '--image_size 32 --min_image_size 24 --max_image_size 64 --batch_size 2 --max_epoch 1'
TRAIN = f'--num_workers 0 --device cpu --weights none --backbone tiny {SIZES}'


@pytest.fixture
def data(demo, in_tmp, monkeypatch) -> Path:
    monkeypatch.setitem(BACKBONES, 'tiny', Backbone(lambda output_stride: Tiny(), {}))
    return shutil.copytree(demo, in_tmp / 'data')


def command(data, tag, labels='ground_truth', *more) -> list[str]:
    files = f'--dataset {data}/dataset.json --data_dir {data}'
    return [*f'{files} {TRAIN} --tag {tag} --label_name {labels}'.split(), *more]


def model(tag) -> dict[str, torch.Tensor]:
    return torch.load(f'experiments/models/{tag}.pth', weights_only=True)['model']


def test_it_trains_on_the_masks_of_the_data_set(data):
    """With the weights of a run on a folder of label maps that are these masks."""
    dataset, folder = open_dataset(data / 'dataset.json', data), Path('experiments/predictions/masks')
    folder.mkdir(parents=True)
    for image_id in dataset.ids('train_aug'):
        (folder / f'{image_id}.png').write_bytes(dataset.encode_label_map(dataset.read_mask(image_id)))
    run_stage(train_segmentation, command(data, 'folder', 'masks'))
    run_stage(train_segmentation, command(data, 'bound'))
    expected, found = model('folder'), model('bound')
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert json.loads(run_path('bound').read_text())['options']['label_name'] == 'ground_truth'


def test_only_images_with_a_mask_are_used(data, capsys):
    """A CSV of photographs, three of them with masks in which the class is white."""
    rows = ['image,classes,mask,list']
    for i in range(5):
        draw_image(data / f'{i}.jpg')
        mask = np.zeros(Image.open(data / f'{i}.jpg').size[::-1], np.uint8)
        mask[:8] = 255
        Image.fromarray(mask).save(data / f'mask{i}.png')
        rows.append(f'{i}.jpg,cat,{f"mask{i}.png" if i < 3 else ""},train')
    (data / 'labels.csv').write_text('\n'.join(rows))
    (data / 'labels.json').write_text(
        json.dumps({'classes': ['cat'], 'mask_values': {'0': 'background', '255': 'cat'}})
    )
    run_stage(train_segmentation, [*command(data, 'bound'), '--dataset', str(data / 'labels.csv')])
    assert (
        '3 of 5 images of the list "train_aug" are trained on: only images with masks can be' in capsys.readouterr().out
    )
    record = json.loads(run_path('bound').read_text())
    assert len(record['inputs']['images']) == len(record['inputs']['masks']) == 3


def test_a_mask_that_changed_is_noticed(data, capsys):
    run_stage(train_segmentation, command(data, 'bound'))
    image_id = open_dataset(data / 'dataset.json', data).ids('train_aug')[0]
    path = data / 'SegmentationClass' / f'{image_id}.png'
    with Image.open(path) as mask:
        flipped = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped.save(path)
    with pytest.raises(UserError) as error:
        run_stage(train_segmentation, command(data, 'bound'))
    assert f'masks of 1 image changed ({image_id}.jpg)' in str(error.value)
    line = f'--dataset {data}/dataset.json --data_dir {data} --num_workers 0 --device cpu --tag bound'
    text = fault_of(inference_segmentation, line.split(), capsys)
    assert f'masks of 1 image changed ({image_id}.jpg); run train_segmentation.py again' in text


def test_without_masks_it_says_what_to_name(data, capsys):
    shutil.rmtree(data / 'SegmentationClass')
    text = fault_of(train_segmentation, command(data, 'bound'), capsys)
    assert '--label_name ground_truth: no image of the list "train_aug" has a mask: name a folder of stage 6' in text
    assert not Path('experiments/models').exists()
