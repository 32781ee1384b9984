"""tools/tune.py: the best threshold of drawn maps, what few masks cannot tell, and which outputs a tag means."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import draw_image, fault_of, run_stage
from tools import tune
from util.store import formats
from util.store.arrays import write_npz
from util.store.files import write_bytes, write_json

TUNED = Path('experiments/tune')
SIZE = 16
OBJECT, HALO = 0.62, 0.42  # scores; a label is right at a threshold from HALO up to OBJECT


def write_cams(tag: str, count: int, masks: int, classes=('cat', 'dog'), domain='train_aug', scale='1.0') -> str:
    """Write a CSV with images, masks of the first ones, and CAMs in which the object has a halo; return the folder."""
    rows, folder = ['# classes: cat;dog', 'image,classes,mask'], f'{tag}@train@scale={scale}'
    for i in range(count):
        name = classes[i % len(classes)]
        mask, score = np.zeros((SIZE, SIZE), np.uint8), np.full((SIZE, SIZE), 0.1)
        score[2:12, 2 : 12 - i % 3] = HALO
        score[4:8, 4:9] = OBJECT
        mask[4:8, 4:9] = key = 1 + ('cat', 'dog').index(name)
        draw_image(Path('photos') / f'{i:02d}.png', (SIZE, SIZE), seed=i)
        Path('photos/masks').mkdir(exist_ok=True)
        Image.fromarray(mask).save(f'photos/masks/{i:02d}.png')
        rows.append(f'{i:02d}.png,{name},{f"masks/{i:02d}.png" if i < masks else ""}')
        maps = score[None].astype(np.float16)
        arrays = {'keys': np.array([0, key]), 'cam': maps[:, ::4, ::4], 'hr_cam': maps}
        write_npz(formats.PREDICTIONS / folder / f'{i:02d}.npz', **arrays)
    Path('labels.csv').write_text('\n'.join([*rows, '']))
    given = {'dataset': 'labels.csv', 'data_dir': 'photos', 'domain': domain, 'tag': tag, 'scales': scale}
    record = {'format': 'CAM', 'fingerprint': {}, 'options': given, 'versions': {}, 'history': [], 'seconds': 1}
    write_json(formats.PREDICTIONS / folder / 'args.json', record)
    return folder


def run(*line: str) -> dict:
    """Tune, and return what was written."""
    run_stage(tune, [*line, '--num_workers', '0'])
    return json.loads((TUNED / f'{line[0]}.json').read_text())


def iou(both: int, union: int) -> float:
    return 100 * both / union


def test_the_best_threshold_is_chosen_and_its_gain_is_right(in_tmp, capsys):
    write_cams('own', 12, 12)
    found = run('own')
    row = found['scores']['CAM']
    assert found['threshold'] == row['chosen']['threshold'] == 0.45  # the first of four that make no error
    assert row['miou'] == row['miou_same_images'] == 100
    assert row['interval'] == [100, 100]

    # At 0.25 of tools.predict the halo is a part of the object: 100, 90 or 80 pixels instead of 20.
    halos = {'cat': [100, 80, 90, 100, 80, 90], 'dog': [90, 100, 80, 90, 100, 80]}
    background = iou(12 * SIZE**2 - 1080, 12 * (SIZE**2 - 20))
    expected = np.mean([background, *(iou(6 * 20, sum(areas)) for areas in halos.values())])
    assert row['compared_miou'] == pytest.approx(expected)
    assert row['gain'] == pytest.approx(100 - expected)
    assert 0 < row['gain_interval'][0] <= row['gain'] <= row['gain_interval'][1]
    assert found['doubts'] == []
    assert found['commands'] == [
        'python3 -m tools.predict experiments/models/own.pth --scales 1.0 --threshold 0.45 --dataset labels.csv '
        '--data_dir photos --overwrite'
    ]
    printed = capsys.readouterr().out
    assert '12 of 12 masks of the list "train" are used' in printed
    assert '| threshold 0.25 ' in printed and '| threshold 0.45 ' in printed
    assert found['commands'][0] in printed


def test_a_choice_is_scored_on_held_out_masks(in_tmp, capsys):
    write_cams('own', 12, 10)
    row = run('own', '--score_on', 'photos/masks')['others']['CAM']
    # At 0.25 the cat of image 10 has 90 pixels and the dog of image 11 has 80, instead of 20.
    expected = np.mean([iou(2 * SIZE**2 - 170, 2 * (SIZE**2 - 20)), iou(20, 90), iou(20, 80)])
    assert (row['masks'], row['miou']) == (2, 100)
    assert row['compared_miou'] == pytest.approx(expected)
    assert row['gain'] == pytest.approx(100 - expected)
    low, high = row['gain_interval']
    assert 0 < low < high == pytest.approx(row['gain'])
    line = f'CAM, 2 held-out masks in photos/masks: 100.0 instead of {expected:.1f} mIoU %, gain +'
    assert line in capsys.readouterr().out


def test_a_folder_without_held_out_masks_is_refused(in_tmp, capsys):
    write_cams('own', 12, 12)
    for folder in ('photos/masks', 'photos', 'nowhere'):
        line = fault_of(tune, ['own', '--score_on', folder], capsys)
        assert line.endswith(f'--score_on {folder}: has no mask {{id}}.png of an image that is not used to choose')
    assert not TUNED.exists()


def test_the_picture_has_a_row_for_each_image(in_tmp):
    write_cams('own', 11, 10)
    run('own')
    with Image.open(TUNED / 'own.png') as picture:
        assert picture.width == 4 * (tune.SIDE + 8)
        assert 10 * tune.SIDE < picture.height < 10 * (tune.SIDE + 80)


def test_the_same_command_writes_the_same_bytes(in_tmp):
    write_cams('own', 12, 12)
    run('own')
    first = {path.name: path.read_bytes() for path in TUNED.glob('own.*')}
    run_stage(tune, ['own', '--num_workers', '2'])
    assert {path.name: path.read_bytes() for path in TUNED.glob('own.*')} == first
    assert first.keys() == {'own.json', 'own.png'}


@pytest.mark.parametrize('masks', [0, 9])
def test_fewer_than_ten_masks_change_nothing(in_tmp, capsys, masks):
    write_cams('own', 12, 12)
    run('own')
    write_cams('own', 12, masks)
    found = run('own')
    line = f'{masks} masks with an object: at least 10 are needed to choose, so nothing changes'
    assert found['doubts'] == [line]
    assert found['scores'] == {}
    assert found['threshold'] == 0.25
    assert not (TUNED / 'own.png').exists()  # it was of other masks
    assert line in capsys.readouterr().out


def test_masks_without_an_object_do_not_count(in_tmp):
    write_cams('own', 12, 12)
    for i in range(3):
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(f'photos/masks/{i:02d}.png')
    assert run('own')['doubts'][0].startswith('9 masks with an object')


def test_a_class_without_a_mask_is_named(in_tmp):
    write_cams('own', 12, 12, classes=('dog',))
    assert run('own')['doubts'] == ['in no mask, so what suits them is unknown: cat']


def test_a_choice_that_one_mask_changes_is_doubted(in_tmp):
    folder = write_cams('own', 10, 10)
    maps = np.full((1, SIZE, SIZE), 0.1, np.float16)
    maps[0, 4:8, 4:9] = 0.32  # found only below the thresholds that are right for the others
    write_npz(formats.PREDICTIONS / folder / '00.npz', keys=np.array([0, 1]), cam=maps[:, ::4, ::4], hr_cam=maps)
    for i in range(1, 10):  # the others have only a small halo
        mask = np.array(Image.open(f'photos/masks/{i:02d}.png'))
        key, score = mask.max(), np.where(mask > 0, OBJECT, 0.1).astype(np.float16)
        score[9, 9] = 0.34
        arrays = {'keys': np.array([0, key]), 'cam': score[None, ::4, ::4], 'hr_cam': score[None]}
        write_npz(formats.PREDICTIONS / folder / f'{i:02d}.npz', **arrays)
    found = run('own')
    row = found['scores']['CAM']
    assert row['best']['threshold'] == 0.1
    assert row['gain'] < 0
    assert found['threshold'] == row['chosen']['threshold'] == 0.25
    assert found['doubts'] == [
        'CAM: "compared with" is kept, because the best settings gain nothing on other images',
        'CAM: 1 of the masks changes the best settings when left out, mostly to threshold 0.35',
    ]


def test_a_gain_that_the_masks_do_not_show_is_doubted():
    row = {'gain': 1.5, 'gain_interval': [-1, 2], 'changes_without_one_mask': None, 'miou': 50}
    lines = ['CAM: these masks do not show that the best settings are better; more masks can']
    assert tune.list_doubts({'CAM': row}, np.ones((10, 1), bool), ['cat']) == lines


def test_plain_cams_that_score_higher_are_pointed_out():
    row = {'gain': 1.5, 'gain_interval': [1, 2], 'changes_without_one_mask': None, 'chosen': {'threshold': 0.3}}
    objects = np.ones((10, 1), bool)
    line = 'plain CAMs score higher: use tools.predict --threshold 0.30 without --affinity'
    for walk, lines in ((49, [line]), (50, [])):
        scores = {'CAM': {**row, 'miou': 50}, 'random walk': {**row, 'miou': walk}}
        assert tune.list_doubts(scores, objects, ['cat']) == lines


def test_many_masks_are_evenly_spaced(in_tmp, capsys):
    write_cams('own', 25, 24)
    assert run('own', '--images', '12')['masks'] == 12
    assert '12 of 24 masks of the list "train" are used' in capsys.readouterr().out


def write_affinity_net(tag: str, labels: str) -> None:
    write_json(formats.run_path(tag), {'network': 'AffinityNet', 'options': {'label_name': labels}})
    write_bytes(formats.model_path(tag), b'')


def test_a_tag_means_its_own_cams_and_affinity_net(in_tmp):
    for tag in ('own', 'own@cls', 'other'):
        write_cams(tag, 2, 2)
    write_affinity_net('a', 'own@train@scale=1.0@aff_fg=0.40_bg=0.10')
    write_affinity_net('b', 'own@cls@train@scale=1.0@aff_fg=0.40_bg=0.10')
    write_json(formats.run_path('c'), {'network': 'Classifier', 'options': {'tag': 'c'}})
    assert [run(tag)['model_name'] for tag in ('own', 'own@cls', 'other')] == ['a', 'b', None]


def test_what_is_not_unique_is_an_error_that_lists_it(in_tmp, capsys):
    for scale in ('1.0', '0.5,1.0'):
        folder = write_cams('own', 2, 2, scale=scale)
    line = fault_of(tune, ['own'], capsys)
    assert 'TAG own: has several folders of CAMs: name one instead: own@train@scale=0.5,1.0, own@train' in line
    assert run(folder)['cam_dir'] == folder
    for tag in 'ab':
        write_affinity_net(tag, 'own@train@scale=1.0@aff_fg=0.40_bg=0.10')
    line = fault_of(tune, [folder], capsys)
    assert line.endswith('error: --model_name is needed: several were trained on CAMs of own: a, b')
    assert run(folder, '--model_name', 'b')['model_name'] == 'b'
    line = fault_of(tune, [folder, '--model_name', 'c'], capsys)
    assert line.endswith('error: --model_name experiments/models/c.pth not found; run train_affinitynet.py first')


def test_unknown_tags_and_lists(in_tmp, capsys):
    write_cams('own', 2, 2)
    line = fault_of(tune, ['ow'], capsys)
    assert 'TAG ow: no CAMs of it on train in experiments/predictions; run inference_classification.py first' in line
    assert 'no CAMs of it on val' in fault_of(tune, ['own', '--domain', 'val'], capsys)
    assert not TUNED.exists()
