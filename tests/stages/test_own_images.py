"""The stages on a folder of photographs of every kind and a CSV of their tags, without masks or with some."""

import json
import os
import re
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
from core import UserError
from core.data.dataset import open_dataset
from core.models.weights import read_state_dict
from support import REPOSITORY, draw_image, fault_of, made_once, run_stage
from support.coco import NAMES, make_coco
from support.documents import commands_of, module_of
from tools import prepare_coco
from util.store.arrays import names_inside

NET = 'resnest14_narrow'
ORIENTATION = 0x0112
TAGS = {
    'pets/mein Hund.JPG': 'dog',
    'pets/2024/猫 1.jpeg': 'cat;sofa',
    'pets/grey.PNG': 'cat',
    'cmyk.jpg': 'dog;cat',
    'palette.png': 'sofa',
    'transparent.webp': 'cat',
    'animated.gif': 'dog',
    'old.bmp': 'sofa',
    'scan.tif': 'dog',
    'dot.png': 'cat',
    'panorama.jpg': 'cat;dog;sofa',
    'garden/empty.jpg': '',
    **{f'exif/{i}.jpg': 'dog' for i in range(1, 9)},
}
DATA = '--dataset labels.csv --data_dir photos --num_workers 0'
SIZES = '--image_size 64 --min_image_size 48 --max_image_size 80 --batch_size 4'
TRAIN = f'{DATA} --device cpu {SIZES} --max_epoch 1 --lr 0.01'
CAMS = 'cls@train@scale=1.0'
LABELS = f'{CAMS}@aff_fg=0.40_bg=0.10'
WALKS = 'aff@train@beta=10@exp_times=4@rw'
PREDICTIONS = 'seg@train@scale=1.0@iteration=1'
COMMANDS = {
    'cls': (train_classification, f'{TRAIN} --architecture {NET} --weights none --bn_replicas 1 --tag cls'),
    'cams': (inference_classification, f'{DATA} --device cpu --tag cls --scales 1.0'),
    'labels': (make_affinity_labels, f'{DATA} --experiment_name {CAMS}'),
    'aff': (
        train_affinitynet,
        f'{TRAIN} --architecture {NET} --weights experiments/models/cls.pth --radius 4 --tag aff --label_name {LABELS}',
    ),
    'walks': (
        inference_rw,
        f'{DATA} --device cpu --model_name aff --cam_dir {CAMS} --exp_times 4 --image_size 64',
    ),
    'pseudo': (make_pseudo_labels, f'{DATA} --experiment_name {WALKS}'),
    'seg': (
        train_segmentation,
        f'{TRAIN} --backbone {NET} --weights experiments/models/cls.pth --tag seg --label_name {WALKS}@crf=1',
    ),
    'predictions': (
        inference_segmentation,
        f'{DATA} --device cpu --tag seg --domain train --scales 1.0 --iteration 1',
    ),
    'evaluate': (evaluate, f'{DATA} --experiment_name {CAMS}'),
}


def run(name: str, *more: str):
    script, line = COMMANDS[name]
    return run_stage(script, [*line.split(), *more])


def draw_photographs(folder) -> None:
    """Draw the images of TAGS, one of each kind."""
    picture = draw_image(folder / 'plain.jpg', (52, 40))
    for i, path in enumerate(TAGS):
        draw_image(folder / 'plain.jpg', (44 + 4 * (i % 3), 40), seed=i)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(folder / 'plain.jpg') as image:
            if path.startswith('exif'):
                exif = Image.Exif()
                exif[ORIENTATION] = int(path[5])
                image.save(folder / path, exif=exif)
            elif path == 'animated.gif':
                image.save(folder / path, save_all=True, append_images=[picture.resize(image.size)])
            else:
                mode = {'pets/grey.PNG': 'L', 'cmyk.jpg': 'CMYK', 'palette.png': 'P', 'transparent.webp': 'RGBA'}
                size = {'dot.png': (1, 1), 'panorama.jpg': (1200, 72)}.get(path, image.size)
                image.resize(size).convert(mode.get(path, 'RGB')).save(folder / path)
    (folder / 'plain.jpg').unlink()


def write_csv(tags: dict[str, str]) -> None:
    lines = [f'{path},{classes},' for path, classes in tags.items()]
    with open('labels.csv', 'w', encoding='utf-8') as file:
        file.write('\n'.join(['image,classes,mask', *lines, '']))


@pytest.fixture(scope='session')
def own(tmp_path_factory):
    """A working directory in which all stages but evaluate have run."""

    def run_all(folder):
        draw_photographs(folder / 'photos')
        write_csv(TAGS)
        (folder / 'labels.json').write_text('{"plane": 1}')  # of the animation
        for name in list(COMMANDS)[:-1]:
            run(name)

    return made_once(tmp_path_factory, 'own', run_all)


@pytest.fixture
def copy(own, tmp_path, monkeypatch):
    """A copy of it as the working directory; tests may change it."""
    shutil.copytree(own, tmp_path / 'copy')
    monkeypatch.chdir(tmp_path / 'copy')
    # The copies are newer than the files in the cache: read them again.
    shutil.rmtree('experiments/cache')
    return tmp_path / 'copy'


def test_every_image_goes_through_every_stage(copy):
    dataset = open_dataset('labels.csv', 'photos')
    ids = dataset.ids('train')
    assert len(ids) == len(TAGS)
    assert {'pets__mein Hund', 'pets__2024__猫 1', 'exif__8', 'garden__empty'} < set(ids)
    folders = {
        name: copy / 'experiments/predictions' / name for name in (CAMS, LABELS, WALKS, f'{WALKS}@crf=1', PREDICTIONS)
    }
    for image_id in ids:
        size = dataset.image_size(image_id)
        assert dataset.read_image(image_id).size == size[::-1]
        assert names_inside(folders[CAMS] / f'{image_id}.npz') == ['keys', 'cam', 'hr_cam']
        assert names_inside(folders[WALKS] / f'{image_id}.npz') == ['keys', 'rw']
        present = {0, 255, *(np.flatnonzero(dataset.read_labels(image_id)) + 1)}
        for name in (LABELS, f'{WALKS}@crf=1', PREDICTIONS):
            label = dataset.read_label_map(folders[name] / f'{image_id}.png', size)
            assert name == PREDICTIONS or set(np.unique(label).tolist()) <= present


def test_trainers_keep_the_last_epoch_and_say_so(copy, capsys):
    for tag in ('cls', 'seg'):
        models = sorted(path.name for path in (copy / 'experiments/models').glob(f'{tag}*'))
        assert models == [f'{tag}.pth']
        meta = read_state_dict(copy / 'experiments/models' / f'{tag}.pth').meta
        assert meta['epoch'] == 1
        assert 'score' not in meta
    run('cls', '--tag', 'again')
    assert 'no masks to score epochs on: the last epoch is kept' in capsys.readouterr().out


def test_tags_are_scored_without_masks(copy):
    log = (copy / 'experiments/logs/cls.txt').read_text()
    assert re.search(r'epoch 1: tags of train: mAP \d+\.\d\d %, F1 \d+\.\d\d %', log)
    assert re.search(r'\| cat +\| +\d+\.\d \| +\d+\.\d \|', log)
    curves = json.loads((copy / 'experiments/data/cls.json').read_text())['curves']
    assert {'mAP', 'F1', 'loss'} < set(curves)
    assert 'mIoU' not in curves


def test_evaluate_says_that_there_is_nothing_to_compare_with(copy, capsys):
    text = fault_of(evaluate, COMMANDS['evaluate'][1].split(), capsys)
    assert text.endswith("--domain 'train': nothing to compare with: none of its images has a mask")


def test_some_masks_are_scored_and_counted(copy, capsys):
    """The masks of two images: the CAMs of these two are scored, and stage 1 chooses its epoch by them."""
    masks = ('old.bmp', 'scan.tif')
    dataset = open_dataset('labels.csv', 'photos')
    for path in masks:
        image_id = path[:-4]
        label = np.zeros(dataset.image_size(image_id), np.uint8)
        label[:20, :20] = dataset.read_labels(image_id).argmax() + 1
        (copy / 'photos' / f'{image_id}_mask.png').write_bytes(dataset.encode_label_map(label))
    write_csv(TAGS)
    text = (copy / 'labels.csv').read_text()
    for path in masks:
        text = re.sub(rf'(?m)^({path},.*,)$', rf'\g<1>{path[:-4]}_mask.png', text)
    (copy / 'labels.csv').write_text(text)
    run('evaluate')
    assert '2 of 20 images of the list "train" are scored: only images with masks can be' in capsys.readouterr().out
    result = json.loads((copy / f'experiments/results/{CAMS}@train.json').read_text())
    assert result['images'] == 2
    with pytest.raises(SystemExit):
        run('cls', '--select', 'last')  # as recipes/own.sh: masks that come later do not start over
    assert 'run already finished' in capsys.readouterr().out
    run('cls', '--tag', 'scored')
    assert '2 of 20 images of the list "train" are scored' in capsys.readouterr().out
    assert (copy / 'experiments/models/scored.last.pth').is_file()


# What has changed since ---------------------------------------------------------------------------------------------


def times(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob('*.*') if path.suffix in ('.npz', '.png')}


def changed(folder, before) -> set[str]:
    return {name for name, time in times(folder).items() if before[name] != time}


def test_nothing_is_made_again_if_nothing_changed(copy, capsys):
    for name in ('cams', 'labels', 'walks', 'pseudo', 'predictions'):
        run(name)
        assert ', 0 of them new' in capsys.readouterr().out
    for name in ('cls', 'aff', 'seg'):
        with pytest.raises(SystemExit):
            run(name)
        assert 'run already finished' in capsys.readouterr().out


def forget_training(folder) -> None:
    checkpoints = [folder / f'experiments/checkpoints/{tag}.pth' for tag in ('cls', 'aff')]
    for path in [*(folder / 'experiments/data').glob('*.json'), *checkpoints]:
        path.unlink()


def test_corrected_tag(copy, capsys):
    """Stage 1 comes first. Models without a record are taken as they are: then only that image is computed again."""
    write_csv({**TAGS, 'cmyk.jpg': 'sofa'})
    with pytest.raises(UserError, match=r'cls.pth: labels of 1 image changed \(cmyk.jpg\): pass --overwrite'):
        run('cls')
    again = r'models/cls.pth: labels of 1 image changed \(cmyk.jpg\); run train_classification_with_puzzle.py again'
    for name in ('cams', 'labels', 'walks', 'pseudo', 'seg'):
        with pytest.raises(UserError, match=again):
            run(name)
    forget_training(copy)
    for name in ('labels', 'walks'):
        with pytest.raises(UserError, match=r'labels of 1 image changed \(cmyk.jpg\); run inference_classification.py'):
            run(name)
    folder = copy / 'experiments/predictions'
    for name, output in (('cams', CAMS), ('labels', LABELS), ('walks', WALKS), ('pseudo', f'{WALKS}@crf=1')):
        before = times(folder / output)
        run(name)
        streams = capsys.readouterr()
        assert '1 image changed (cmyk.jpg): regenerating' in streams.err
        assert ', 1 of them new' in streams.out
        assert {os.path.splitext(name)[0] for name in changed(folder / output, before)} == {'cmyk'}
    with pytest.raises(UserError, match=r'seg.pth: labels of 1 image changed \(cmyk.jpg\): pass --overwrite'):
        run('seg')
    with np.load(folder / CAMS / 'cmyk.npz') as file:
        assert file['keys'].tolist() == [0, 3]


def test_exchanged_photograph(copy, capsys):
    Image.new('RGB', (40, 44), 'red').save(copy / 'photos/old.bmp')
    with pytest.raises(UserError, match=r'cls.pth: 1 image changed \(old.bmp\): pass --overwrite to regenerate it'):
        run('cls')
    with pytest.raises(
        UserError, match=r'cls.pth: 1 image changed \(old.bmp\); run train_classification_with_puzzle.py'
    ):
        run('cams')
    forget_training(copy)
    for name in ('labels', 'walks'):
        with pytest.raises(UserError, match=r'1 image changed \(old.bmp\); run inference_classification.py again'):
            run(name)
    run('cams')
    run('labels')
    assert ', 1 of them new' in capsys.readouterr().out


def test_added_and_removed_photographs(copy):
    tags = {path: classes for path, classes in TAGS.items() if path != 'dot.png'}
    write_csv(tags)
    with pytest.raises(UserError, match=r'cls.pth: 1 image removed \(dot\): pass --overwrite'):
        run('cls')
    shutil.copy('photos/dot.png', 'photos/dot2.png')
    write_csv({**TAGS, 'dot2.png': 'cat'})
    with pytest.raises(UserError, match=r'cls.pth: 1 image added \(dot2\): pass --overwrite'):
        run('cls')


def test_touched_photograph_is_not_a_change(copy, capsys):
    os.utime(copy / 'photos/old.bmp')
    run('cams')
    assert ', 0 of them new' in capsys.readouterr().out


def test_outputs_that_do_not_say_what_they_were_made_from_are_made_again(copy, capsys):
    """A folder whose inputs.json was lost."""
    record = copy / f'experiments/predictions/{CAMS}/inputs.json'
    content = record.read_bytes()
    record.unlink()
    with pytest.raises(UserError, match=r'files are not as recorded \(.*; run inference_classification.py again'):
        run('labels')
    run('cams')
    assert ', 0 of them new' not in capsys.readouterr().out
    assert record.read_bytes() == content
    run('cams')
    assert ', 0 of them new' in capsys.readouterr().out


# Single classes, 16 bits --------------------------------------------------------------------------------------------


def test_one_class(copy, capsys):
    write_csv({path: 'thing' if classes else '' for path, classes in TAGS.items()})
    run('cls', '--tag', 'one')
    run('cams', '--tag', 'one')
    run('labels', '--experiment_name', 'one@train@scale=1.0')
    assert 'affinity labels' in capsys.readouterr().out


def test_254_classes(copy, capsys):
    write_csv({path: ';'.join(f'class {k:03d}' for k in range(i, 254, 20)) for i, path in enumerate(TAGS)})
    run('cls', '--tag', 'many')
    run('cams', '--tag', 'many')
    run('labels', '--experiment_name', 'many@train@scale=1.0')
    dataset = open_dataset('labels.csv', 'photos')
    with np.load(f'experiments/predictions/many@train@scale=1.0/{dataset.ids("train")[13]}.npz') as file:
        assert file['keys'].tolist() == [0, *range(14, 255, 20)]


def test_images_of_16_bits_are_refused(copy, capsys):
    Image.fromarray(np.ones((40, 40), np.uint16)).save(copy / 'photos/pets/grey.PNG')
    text = fault_of(*(COMMANDS['cls'][0], COMMANDS['cls'][1].split()), capsys)
    fault = 'has more than 8 bits per channel, with values from 1 to 1: pass --window=0,65535, or percentiles such as '
    assert text.endswith(f'pets/grey.PNG: {fault}--window=0.5%,99.5%, or give the data set the entry "window"')


def test_the_commands_of_the_page(in_tmp):
    """Word for word but for smaller sizes."""
    for i, name in enumerate(('rex.jpg', 'a b/mia.JPG', 'empty.png', 'tom.jpg')):
        draw_image(in_tmp / 'photos' / name, (64, 48), seed=i)
    (in_tmp / 'labels.csv').write_text('image,classes\nrex.jpg,dog\na b/mia.JPG,cat;dog\nempty.png,\ntom.jpg,cat\n')

    draw_image(in_tmp / 'new/cat.png', (64, 48), seed=9)
    page = (REPOSITORY / 'docs/own_images.md').read_text().split('then lead to masks:', 1)[1]
    five, _, later = page.partition('## Photographs without tags')
    commands = five.split('```')[1] + later.split('```')[1]
    smaller = (
        ('--architecture mobilenet_v2', '--architecture mobilenet_v2 --weights none'),
        ('--batch_size 16', '--batch_size 4 --num_workers 0'),
        ('--image_size 256 --min_image_size 224 --max_image_size 384', SIZES.split(' --batch_size')[0]),
        ('--image_size 256 --min_image_size 192 --max_image_size 512', SIZES.split(' --batch_size')[0]),
        ('--max_epoch 12', '--max_epoch 1'),
        ('--max_epoch 24', '--max_epoch 1'),
        ('--tag own@affinity', '--tag own@affinity --radius 4'),
    )
    for words, replacement in smaller:
        assert words in commands
        commands = commands.replace(words, replacement)
    found = commands_of(f'```\n{commands}```')
    assert len(found) == commands.count('python3 ') == 10
    for module, words in found:
        run_stage(module_of(module), words)
    outputs = {path.name for path in (in_tmp / 'experiments/predict/own').iterdir() if path.name != '.lock'}
    assert outputs - {'args.json', 'inputs.json', 'files.json', 'photographs.json'} == {
        f'{image_id}{ending}' for image_id in ('rex', 'a b__mia', 'empty', 'tom')
        for ending in ('.png', '.npz', '_overlay.png')
    }  # fmt: skip
    assert (in_tmp / 'experiments/predict/own@deeplab/cat.png').is_file()


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
def test_coco_goes_through_the_stages(in_tmp):
    make_coco(in_tmp / 'COCO')
    run_stage(prepare_coco, ['--data_dir', 'COCO', '--num_workers', '0'])
    for script, line in COMMANDS.values():
        run_stage(script, line.replace(DATA, '--dataset COCO/coco2017.csv --data_dir COCO --num_workers 0').split())
    result = json.loads(Path(f'experiments/results/{CAMS}@train.json').read_text())
    assert result['images'] == 4
    assert list(result['iou']) == ['background', *NAMES]
    assert Path('experiments/models/seg.last.pth').is_file()  # val has masks, so its best epoch was chosen
