"""Invalid inputs and the line that each one ends with; nothing that exists is changed or lost.

A row: the damage (a function of the folder of data/ and experiments/), the stage that meets it, more flags, and the
line as support.faults.check_line takes it.
"""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from support.chain import AFFINITY_LABELS, CAMS, PREDICTIONS, PSEUDO
from support.faults import accept, check_line, forget
from util.store.arrays import write_npz

ID = 'train_00000'


def write(path, content):
    def damage(folder):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def remove(path):
    def damage(folder):
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return damage


def cut(path):
    def damage(folder):
        (folder / path).write_bytes((folder / path).read_bytes()[:-100])

    return damage


def change(path, old, new):
    def damage(folder):
        text = (folder / path).read_text()
        assert re.search(old, text)
        (folder / path).write_text(re.sub(old, new, text))

    return damage


def in_json(**entries):
    def damage(folder):
        path = folder / 'data/dataset.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return damage


def picture(path, array, mode=None):
    def damage(folder):
        Image.fromarray(np.asarray(array, np.uint8)).convert(mode).save(folder / path, 'PNG')

    return damage


def cams(keys, maps):
    def damage(folder):
        array = np.asarray(maps, np.float16)
        write_npz(folder / CAM, keys=np.asarray(keys), cam=array, hr_cam=array)

    return damage


def arrays(**content):
    return lambda folder: np.savez(folder / CAM, **content)


def rename(path, name):
    return lambda folder: (folder / path).rename((folder / path).with_name(name))


def copied(folder_name, name):
    """Return a damage that copies a folder of predictions under another name."""

    def damage(folder):
        predictions = folder / 'experiments/predictions'
        shutil.copytree(predictions / folder_name, predictions / name)

    return damage


def broken_link(folder):
    shutil.rmtree(folder / 'experiments')
    (folder / 'experiments').symlink_to('nowhere')


def masks_without_objects(folder):
    """Two values, 0 and 255, as many tools write the masks of two classes."""
    for path in (folder / 'data/SegmentationClass').glob('*.png'):
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(path)


def all_ignored(folder):
    for path in (folder / f'experiments/predictions/{AFFINITY_LABELS}').glob('*.png'):
        Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)


def model(name, change_state):
    def damage(folder):
        path = folder / f'experiments/models/{name}.pth'
        content = torch.load(path, weights_only=True)
        path.unlink()  # perhaps a link
        torch.save({**content, 'model': change_state(content['model'])}, path)

    return damage


def pickled(path):
    return write(path, pickle.dumps({'a': print}))


XML = f'data/Annotations/{ID}.xml'
JPEG = f'data/JPEGImages/{ID}.jpg'
MASK = f'data/SegmentationClass/{ID}.png'
LIST = 'data/ImageSets/Segmentation/train_aug.txt'
CAM = f'experiments/predictions/{CAMS}/{ID}.npz'
LABEL = f'experiments/predictions/{AFFINITY_LABELS}/{ID}.png'
PREDICTION = f'experiments/predictions/{PREDICTIONS}/val_00000.png'
ZEROS = np.zeros((9, 7))

CASES = [
    # lists and the data set's JSON
    (remove(LIST), 'cls', '', '{D}/ImageSets/Segmentation/train_aug.txt: * "train_aug" cannot be read'),
    (write(LIST, ''), 'cls', '', '{D}/ImageSets/Segmentation/train_aug.txt: * "train_aug" is empty'),
    (write(LIST, b'\xff\xfe\x00'), 'cls', '', '{D}/ImageSets/Segmentation/train_aug.txt: * cannot be read (not UTF-8'),
    (write(LIST, f'{ID}\n{ID}\n'), 'cls', '', "{D}/ImageSets/Segmentation/train_aug.txt: * 'train_00000' * one id per"),
    (
        write(LIST, '../secret\n'),
        'cams',
        '',
        "{D}/ImageSets/Segmentation/train_aug.txt: '../secret' * file name without",
    ),
    (write(LIST, 'nobody\n'), 'cams', '', '{D}/JPEGImages/nobody.jpg: * (1 of 1 * check the folder of the data set'),
    (remove('data/dataset.json'), 'cls', '', '--dataset {D}/dataset.json: cannot be read (No such file or directory)'),
    (write('data/dataset.json', '{'), 'cls', '', '--dataset {D}/dataset.json: is not valid JSON'),
    (write('data/dataset.json', '[]'), 'cls', '', '--dataset {D}/dataset.json: must contain a JSON object'),
    (in_json(classes=['bus', 'bus']), 'cls', '', '--dataset {D}/dataset.json: "classes" must be 1 to 254 different'),
    (
        in_json(classes=['bus']),
        'cls',
        '',
        "{D}/Annotations/train_00000.xml: 'cow' * (12 of 12 labels * tools.check_dataset lists them",
    ),
    (
        in_json(lists={'train_aug': 'ImageSets/Segmentation/train_aug.txt', '../../x': 'x.txt'}),
        'cams',
        '',
        '--dataset {D}/dataset.json: "lists": \'../../x\' is not a name (no slashes, no leading dot)',
    ),
    (in_json(palette=[[0, 0, 256]]), 'pseudo', '', '--dataset {D}/dataset.json: "palette" must be * [r, g, b]'),
    (in_json(lists=[]), 'evaluate', '', '--dataset {D}/dataset.json: "lists" must name a file for each domain'),
    # annotations
    (remove(XML), 'cams', '', '{D}/Annotations/train_00000.xml: no such * check the folder of the data set'),
    (write(XML, 'no XML'), 'cams', '', '{D}/Annotations/train_00000.xml: not a VOC annotation'),
    (
        write(XML, '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'),
        'cams',
        '',
        '{D}/Annotations/train_00000.xml: declares a document type',
    ),
    (
        change(XML, r'<name>\w+</name>', '<name>unicorn</name>'),
        'cams',
        '',
        '{D}/Annotations/train_00000.xml: \'unicorn\' * "drawn scenes"',
    ),
    (
        change(XML, r'<xmax>\d+</xmax>', '<xmax>wide</xmax>'),
        'cams',
        '',
        "{D}/Annotations/train_00000.xml: <bndbox/xmax> is 'wide', not a number",
    ),
    (
        change(XML, r'<width>\d+</width>', '<width>99</width>'),
        'cams',
        '',
        '{D}/Annotations/train_00000.xml: * 99x61 * 64x61: correct it',
    ),
    # images
    (
        remove(JPEG),
        'affinity_labels',
        '',
        '{D}/JPEGImages/train_00000.jpg: * (1 of 12 are missing): check the folder of the data set',
    ),
    (write(JPEG, ''), 'cams', '', '{D}/JPEGImages/train_00000.jpg: not a readable image'),
    (cut(JPEG), 'pseudo', '', '{cams}: 1 image changed (train_00000.jpg); run inference_classification.py again'),
    (write(JPEG, 'no JPEG'), 'cls', '', '{D}/JPEGImages/train_00000.jpg: not a readable image'),
    (
        picture(JPEG, np.zeros((9, 7, 3))),
        'affinity_labels',
        '',
        '{cams}: 1 image changed (train_00000.jpg); run inference_classification.py again',
    ),
    (
        rename(JPEG, 'train_00000.JPG'),
        'cams',
        '',
        '{D}/JPEGImages/train_00000.jpg: * train_00000.JPG exists: rename it',
    ),
    # masks and label maps
    (
        masks_without_objects,
        'evaluate',
        '',
        '{D}/SegmentationClass: the 4 masks * [0, 255] * value k, from 1 to 6 * "mask_values"',
    ),
    (picture(MASK, ZEROS), 'cls', '', '{D}/SegmentationClass/train_00000.png: * 7x9 * 64x61'),
    (
        picture(MASK, np.zeros((9, 7, 3))),
        'evaluate cams',
        '',
        '{D}/SegmentationClass/train_00000.png: * 8-bit palette or grey PNG * mode RGB * "mask_values"',
    ),
    (picture(LABEL, ZEROS), 'aff', '', '{labels}/train_00000.png: * 7x9 * 64x61'),
    (all_ignored, 'aff', '', f'--label_name {AFFINITY_LABELS}: * 255: check stage 3'),
    (remove(LABEL), 'aff', '', '{labels}/train_00000.png not found (1 of 12 * run make_affinity_labels.py first'),
    (picture(PREDICTION, ZEROS), 'evaluate', '', '{predictions}/val_00000.png: * 7x9 * 60x64'),
    (picture(PREDICTION, ZEROS + 77), 'evaluate', '', '{predictions}/val_00000.png: * 77 * largest class is 6'),
    (cut(PREDICTION), 'evaluate', '', '{predictions}/val_00000.png: not a readable mask'),
    # output files
    (write('a.jpg', 'JPEG'), 'evaluate', '--csv a.jpg', '--csv a.jpg: exists, and this program has not written it'),
    (
        write('a.csv', 'image,classes'),
        'evaluate',
        '--csv a.csv',
        '--csv a.csv: exists, and this program has not written it: remove it or name another file',
    ),
    (
        write('a.csv', ''),
        'evaluate',
        '--csv data/dataset.json',
        '--csv data/dataset.json: exists, and this program has not written it',
    ),
    # CAM files
    (
        remove(CAM),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz not found (1 of 12 * run inference_classification.py first',
    ),
    (write(CAM, ''), 'affinity_labels', '', '{cams}/train_00000.npz: * "cam" * run its stage with --repair'),
    (cut(CAM), 'evaluate cams', '', '{cams}/train_00000.npz: * "cam" * run its stage with --repair'),
    (pickled(CAM), 'random_walk', '', '{cams}/train_00000.npz: * "cam" * run its stage with --repair'),
    (
        arrays(keys=np.array([0, 1]), cam=np.array([None, 1], object)),
        'random_walk',
        '',
        '{cams}/train_00000.npz: * "cam" * run its stage with --repair',
    ),
    (
        cams([0, 2, 1], np.zeros((2, 16, 16))),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: keys [0, 2, 1] * up to 6: * check --dataset',
    ),
    (
        cams([0, 77], np.zeros((1, 16, 16))),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: keys [0, 77] * up to 6: * check --dataset',
    ),
    (
        cams([0], np.zeros((1, 16, 16))),
        'random_walk',
        '',
        '{cams}/train_00000.npz: "cam" * (1, 16, 16) * "keys" * run its stage with --repair',
    ),
    (cams([0, 1], np.zeros((1, 16, 16))), 'evaluate cams', '', '{cams}/train_00000.npz: "hr_cam" is 16x16 * 64x61'),
    (
        arrays(keys=np.array([0, 1]), cam=np.zeros((1, 16, 16)), hr_cam=np.full((1, 61, 64), np.inf)),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: "hr_cam" * non-finite * run its stage with --repair',
    ),
    # models
    (
        remove('experiments/models/cls.pth'),
        'cams',
        '',
        '--tag: experiments/models/cls.pth not found; run train_classification_with_puzzle.py first',
    ),
    (cut('experiments/models/cls.pth'), 'cams', '', 'experiments/models/cls.pth: damaged * save it again'),
    (pickled('experiments/models/aff.pth'), 'random_walk', '', 'experiments/models/aff.pth: damaged * save it again'),
    (model('seg', lambda state: [1]), 'predictions', '', 'experiments/models/seg.pth: is not a state dict'),
    (
        model('cls', lambda state: {k: v[:1] for k, v in state.items() if v.ndim}),
        'cams',
        '',
        'experiments/models/cls.pth * does not fit Classifier',
    ),
    # folders
    (
        remove(f'experiments/predictions/{CAMS}'),
        'affinity_labels',
        '',
        f'--experiment_name {CAMS}: {{cams}} not found; run inference_classification.py first',
    ),
    (
        remove(f'experiments/predictions/{PSEUDO}'),
        'seg',
        '',
        f'--label_name {PSEUDO}: {{pseudo}} not found; run make_pseudo_labels.py first',
    ),
    (
        remove(f'experiments/predictions/{PREDICTIONS}'),
        'evaluate',
        '',
        f'--experiment_name {PREDICTIONS}: {{predictions}} not found; run the stage that writes it first',
    ),
    (remove(f'experiments/predictions/{PSEUDO}/args.json'), 'pseudo', '', '{pseudo} * args.json * pass --overwrite'),
    (
        write(f'experiments/predictions/{PSEUDO}/args.json', '{"options": '),
        'pseudo',
        '',
        '{pseudo} * args.json * pass --overwrite',
    ),
    (
        copied(PREDICTIONS, 'x' * 247),
        'evaluate',
        f'--experiment_name {"x" * 247}',
        f'--experiment_name: {"x" * 40}... * 256 bytes, the limit is 255: shorten it',
    ),
    (
        copied(CAMS, 'x' * 238),
        'affinity_labels',
        f'--experiment_name {"x" * 238}',
        f'the name of the output folder: {"x" * 40}... * 258 bytes, the limit is 255: shorten it',
    ),
    (broken_link, 'cls', '', 'experiments: is a broken link: remove it'),
    (
        remove('data/JPEGImages'),
        'cams',
        '',
        '{D}/JPEGImages/train_00000.jpg: * (12 of 12 are missing): check the folder of the data set',
    ),
    (
        remove('experiments/checkpoints/cls.pth'),
        'cls',
        '',
        '--tag cls: * experiments/checkpoints/cls.pth: pass --overwrite',
    ),
    (
        write('experiments/checkpoints/cls.pth', 'no state'),
        'cls',
        '',
        'experiments/checkpoints/cls.pth: damaged * pass --overwrite',
    ),
]


@pytest.mark.parametrize('damage, name, more, line', CASES, ids=range(len(CASES)))
def test_invalid_input_ends_with_one_line(copy, tmp_path, capsys, damage, name, more, line):
    is_about_the_output = 'checkpoints/cls.pth' in line or 'args.json' in line
    if not is_about_the_output:
        forget(tmp_path, name)
    damage(tmp_path)
    if not is_about_the_output:
        accept(tmp_path)  # otherwise a damaged file is one that is not as recorded
    check_line(copy, capsys, name, more, line)
