"""Bad inputs, each with the one line that answers it; nothing that exists is changed or lost.

A row: what is damaged (a function of the folder that holds data/ and experiments/), the stage that meets it, further
flags, the line. {D} is the data set's folder, {cams}, {labels}, ... are folders of predictions; a * stands for the words
of another library.
"""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline import AFFINITY_LABELS, CAMS, PREDICTIONS, PSEUDO, WALKED, commands, copy, made  # noqa: F401
from test_resume import FOLDERS
from tools.files import write_cam

from core import InputError
from tools import stage

ID = 'train_00000'


def untouched(folder):
    pass


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
        maps_ = np.asarray(maps, np.float32)
        write_cam(folder / f'experiments/predictions/{CAMS}/{ID}.npz', np.asarray(keys), maps_, maps_)

    return damage


def arrays(**content):
    return lambda folder: np.savez(folder / f'experiments/predictions/{CAMS}/{ID}.npz', **content)


def all_unsure(folder):
    for path in (folder / f'experiments/predictions/{AFFINITY_LABELS}').glob('*.png'):
        Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)


def model(name, change_state):
    def damage(folder):
        path = folder / f'experiments/models/{name}.pth'
        state = torch.load(path, weights_only=True)
        torch.save(change_state(state), path)

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
    # flags
    (untouched, 'cls', '--num_pieces 3', '--num_pieces 3 is no square number: 1, 4, 9, 16, ... are'),
    (untouched, 'cls', '--num_pieces 9', '--image_size 64 is no multiple of 48 = 16 x sqrt(--num_pieces 9)'),
    (untouched, 'cls', '--image_size 50', '--image_size 50 is no multiple of 32 = 16 x sqrt(--num_pieces 4)'),
    (untouched, 'cls', '--image_size 0', 'argument --image_size: 0 is out of range: 32 to 16384'),
    (untouched, 'cls', '--min_image_size 90 --max_image_size 80', '--min_image_size 90 is above --max_image_size 80'),
    (untouched, 'cls', '--architecture vgg16', 'argument --architecture: invalid choice: *vgg16* (choose from *)'),
    (untouched, 'cls', '--alpha nan', 'argument --alpha: nan is out of range: 0 or more'),
    (untouched, 'cls', '--lr -1', 'argument --lr: -1.0 is out of range: 0 or more'),
    (untouched, 'cls', '--seed 4294967296', 'argument --seed: 4294967296 is out of range: 0 to 4294967295'),
    (untouched, 'cls', '--momentum 0', '--nesterov True needs --momentum above 0'),
    (untouched, 'cls', '--augment blur', '--augment blur: knows colorjitter and randaugment'),
    (untouched, 'cls', '--tag a/b', "argument --tag: 'a/b' is not a name (no slashes, no leading dot)"),
    (untouched, 'cls', '--batch_size 5', '--batch_size 5 is no multiple of --bn_replicas 2'),
    (untouched, 'cls', '--batch_size 2', '--batch_size 2 is below 2 images for each of --bn_replicas 2'),
    (untouched, 'cls', '--batch_size 20', '--batch_size 20: the training list has only 12 images'),
    (
        untouched,
        'cls',
        '--weights nowhere.pth',
        '--weights nowhere.pth: cannot be read (No such file or directory); or pass imagenet or none',
    ),
    (
        untouched,
        'cls',
        '--weights imagenet',
        '--weights imagenet: no ImageNet file is published for resnest14_narrow: pass none or a local file',
    ),
    (untouched, 'cls', '--device tpu', '--device tpu: cannot be used here; auto finds what there is'),
    (untouched, 'cls', '--nesterov maybe', "argument --nesterov: 'maybe' is neither True nor False"),
    (untouched, 'cls', '--unknown 1', 'unrecognized arguments: --unknown 1'),
    (
        untouched,
        'cams',
        '--scales 0.5,x',
        "argument --scales/--scale: '0.5,x' is not a list of scales above 0 such as 0.5,1.0,1.5,2.0",
    ),
    (
        untouched,
        'cams',
        '--domain nowhere',
        '--domain nowhere: the data set "drawn scenes" has the lists train_aug, train, val',
    ),
    (untouched, 'affinity_labels', '--fg_threshold 0.05', '--fg_threshold 0.05 is below --bg_threshold 0.1'),
    (untouched, 'affinity_labels', '--fg_threshold 1.5', 'argument --fg_threshold: 1.5 is out of range: 0 to 1'),
    (untouched, 'aff', '--radius 10', '--radius 10 does not fit a 16x16 edge map (see --image_size)'),
    (untouched, 'walk', '--exp_times 17', 'argument --exp_times: 17 is out of range: 0 to 16'),
    (
        untouched,
        'walk',
        f'--cam_dir {WALKED}',
        '{walked}/train_00000.npz: no npz file with "keys" and "cam", or damaged (*); its stage makes it again with --repair',
    ),
    (
        untouched,
        'pseudo',
        f'--experiment_name {CAMS}',
        '{cams}/train_00000.npz: no npz file with "keys" and "rw", or damaged (*); its stage makes it again with --repair',
    ),
    (
        untouched,
        'seg',
        '--mode normal --batch_size 1',
        '--mode normal needs --batch_size 2 or more, not 1: BatchNorm trains',
    ),
    (
        untouched,
        'predictions',
        '--use_gn False',
        'experiments/models/seg.pth: was trained as DeepLabv3+ resnest14_narrow GN, not as DeepLabv3+ resnest14_narrow',
    ),
    (untouched, 'evaluate', '--threshold 0.3', '--threshold 0.3: {predictions} holds label maps, which have no scores'),
    (
        untouched,
        'evaluate',
        '--mode npy',
        '{predictions}/val_00000.npz is not there (4 of 4 are missing); inference_segmentation.py makes it',
    ),
    # lists and the data set's JSON
    (
        remove(LIST),
        'cls',
        '',
        '{D}/ImageSets/Segmentation/train_aug.txt: the list "train_aug" of --dataset cannot be read (FileNotFoundError)',
    ),
    (
        write(LIST, ''),
        'cls',
        '',
        '{D}/ImageSets/Segmentation/train_aug.txt: the list "train_aug" of --dataset is empty',
    ),
    (
        write(LIST, b'\xff\xfe\x00'),
        'cls',
        '',
        '{D}/ImageSets/Segmentation/train_aug.txt: the list "train_aug" of --dataset cannot be read (UnicodeDecodeError)',
    ),
    (
        write(LIST, f'{ID}\n{ID}\n'),
        'cls',
        '',
        '{D}/ImageSets/Segmentation/train_aug.txt: *train_00000* stands there twice (one image id a line is expected)',
    ),
    (
        write(LIST, '../secret\n'),
        'cams',
        '',
        "{D}/ImageSets/Segmentation/train_aug.txt: '../secret' is no image id (a file name without folder and ending)",
    ),
    (write(LIST, 'nobody\n'), 'cams', '', '{D}/Annotations/nobody.xml: no such annotation (check --data_dir)'),
    (remove('data/dataset.json'), 'cls', '', '--dataset {D}/dataset.json: cannot be read (No such file or directory)'),
    (write('data/dataset.json', '{'), 'cls', '', '--dataset {D}/dataset.json: is no JSON (*)'),
    (
        write('data/dataset.json', '[]'),
        'cls',
        '',
        '--dataset {D}/dataset.json: needs the entries "classes" and "lists"',
    ),
    (
        in_json(classes=['bus', 'bus']),
        'cls',
        '',
        '--dataset {D}/dataset.json: "classes" must be 1 to 254 different names, without the background',
    ),
    (
        in_json(classes=['bus']),
        'cls',
        '',
        '{D}/Annotations/train_00000.xml: object \'cow\' is no class of the data set "drawn scenes" (--dataset)',
    ),
    (
        in_json(palette=[[0, 0, 256]]),
        'pseudo',
        '',
        '--dataset {D}/dataset.json: "palette" must be up to 256 [r, g, b] colours',
    ),
    (in_json(lists=[]), 'evaluate', '', '--dataset {D}/dataset.json: "lists" must name a file for each domain'),
    # annotations
    (remove(XML), 'cams', '', '{D}/Annotations/train_00000.xml: no such annotation (check --data_dir)'),
    (write(XML, 'no XML'), 'cams', '', '{D}/Annotations/train_00000.xml: not a VOC annotation (*)'),
    (
        write(XML, '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'),
        'cams',
        '',
        '{D}/Annotations/train_00000.xml: declares a document type, which VOC annotations do not',
    ),
    (
        change(XML, r'<name>\w+</name>', '<name>unicorn</name>'),
        'cams',
        '',
        '{D}/Annotations/train_00000.xml: object \'unicorn\' is no class of the data set "drawn scenes" (--dataset)',
    ),
    (
        change(XML, r'<xmax>\d+</xmax>', '<xmax>wide</xmax>'),
        'cams',
        '',
        '{D}/Annotations/train_00000.xml: not a VOC annotation (*)',
    ),
    (
        change(XML, r'(?s)<object>.*</object>', ''),
        'cls',
        '',
        '{D}/Annotations/train_00000.xml: no object of any class: an image-level label is needed (take the id out of the list)',
    ),
    # images
    (
        remove(JPEG),
        'affinity_labels',
        '',
        '{D}/JPEGImages/train_00000.jpg: no such file (1 of 12 are missing): check --data_dir',
    ),
    (write(JPEG, ''), 'cams', '', '{D}/JPEGImages/train_00000.jpg: not a readable image (*)'),
    (cut(JPEG), 'pseudo', '', '{D}/JPEGImages/train_00000.jpg: not a readable image (*)'),
    (write(JPEG, 'no JPEG'), 'cls', '', '{D}/JPEGImages/train_00000.jpg: not a readable image (*)'),
    (
        picture(JPEG, np.zeros((9, 7, 3))),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: "hr_cam" is 64x61, the image is 7x9',
    ),
    # masks and label maps
    (
        remove(MASK),
        'cls',
        '',
        '{D}/SegmentationClass/train_00000.png: no such file (1 of 6 are missing): an earlier stage or the data set should hold it',
    ),
    (picture(MASK, ZEROS), 'cls', '', '{D}/SegmentationClass/train_00000.png: a mask of 7x9 for an image of 64x61'),
    (
        picture(MASK, np.zeros((9, 7, 3))),
        'evaluate cams',
        '',
        '{D}/SegmentationClass/train_00000.png: a mask must be an 8-bit palette or grey PNG of class indices, not RGB',
    ),
    (picture(LABEL, ZEROS), 'aff', '', '{labels}/train_00000.png: a mask of 7x9 for an image of 64x61'),
    (
        all_unsure,
        'aff',
        '',
        f'--label_name {AFFINITY_LABELS}: all its labels are 255: nothing to learn',
    ),
    (
        remove(LABEL),
        'aff',
        '',
        '{labels}/train_00000.png is not there (1 of 12 are missing); make_affinity_labels.py makes it',
    ),
    (picture(PREDICTION, ZEROS), 'evaluate', '', '{predictions}/val_00000.png: a mask of 7x9 for an image of 60x64'),
    (
        picture(PREDICTION, ZEROS + 77),
        'evaluate',
        '',
        '{predictions}/val_00000.png: a mask of 7x9 for an image of 60x64',
    ),
    (cut(PREDICTION), 'evaluate', '', '{predictions}/val_00000.png: not a readable mask (*)'),
    # CAM files
    (
        remove(CAM),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz is not there (1 of 12 are missing); inference_classification.py makes it',
    ),
    (
        write(CAM, ''),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: no npz file with "keys" and "hr_cam", or damaged (*); its stage makes it again with --repair',
    ),
    (
        cut(CAM),
        'evaluate cams',
        '',
        '{cams}/train_00000.npz: holds neither "rw" nor "hr_cam", or is damaged; inference_classification.py makes it',
    ),
    (
        pickled(CAM),
        'walk',
        '',
        '{cams}/train_00000.npz: no npz file with "keys" and "cam", or damaged (*); its stage makes it again with --repair',
    ),
    (
        arrays(keys=np.array([0, 1]), cam=np.array([None, 1], object)),
        'walk',
        '',
        '{cams}/train_00000.npz: no npz file with "keys" and "cam", or damaged (*); its stage makes it again with --repair',
    ),
    (
        cams([0, 2, 1], np.zeros((2, 9, 7))),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: keys [0, 2, 1] are not 0 and rising classes up to 6 (--dataset)',
    ),
    (
        cams([0, 77], np.zeros((1, 9, 7))),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: keys [0, 77] are not 0 and rising classes up to 6 (--dataset)',
    ),
    (
        cams([0], np.zeros((1, 9, 7))),
        'walk',
        '',
        '{cams}/train_00000.npz: "cam" of float16(1, 9, 7) does not go with "keys" of int64(1,)',
    ),
    (
        cams([0, 1], np.zeros((1, 9, 7))),
        'evaluate cams',
        '',
        '{cams}/train_00000.npz: "hr_cam" is 7x9, the image is 64x61',
    ),
    (
        arrays(keys=np.array([0, 1]), hr_cam=np.full((1, 9, 7), np.inf, np.float32)),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: "hr_cam" holds values that are not finite; its stage makes it again with --repair',
    ),
    # models
    (
        remove('experiments/models/cls.pth'),
        'cams',
        '',
        '--tag: experiments/models/cls.pth is not there; train_classification_with_puzzle.py makes it',
    ),
    (cut('experiments/models/cls.pth'), 'cams', '', 'experiments/models/cls.pth: damaged, or no model file (*)'),
    (pickled('experiments/models/aff.pth'), 'walk', '', 'experiments/models/aff.pth: damaged, or no model file (*)'),
    (
        model('seg', lambda state: [1]),
        'predictions',
        '',
        'experiments/models/seg.pth: does not fit DeepLabv3+ resnest14_narrow GN: *',
    ),
    (
        untouched,
        'cams',
        '--architecture resnest14',
        'experiments/models/cls.pth: was trained as resnest14_narrow, not as resnest14',
    ),
    (
        model('cls', lambda state: {k: v[:1] for k, v in state.items() if v.ndim}),
        'cams',
        '',
        'experiments/models/cls.pth: does not fit resnest14_narrow: *',
    ),
    # folders
    (
        remove(f'experiments/predictions/{CAMS}'),
        'affinity_labels',
        '',
        '--experiment_name cls@train@scale=0.5,1.0: {cams} is not there; inference_classification.py makes it',
    ),
    (
        remove(f'experiments/predictions/{PSEUDO}'),
        'seg',
        '',
        '--label_name aff@train@beta=10@exp_times=8@rw@crf=1: {pseudo} is not there; make_pseudo_labels.py makes it',
    ),
    (
        remove(f'experiments/predictions/{PREDICTIONS}'),
        'evaluate',
        '',
        '--experiment_name seg@val@scale=0.5,1.0@iteration=10: {predictions} is not there; inference_segmentation.py makes it',
    ),
    (
        remove(f'experiments/predictions/{PSEUDO}/args.json'),
        'pseudo',
        '',
        '{pseudo} holds files without args.json, so nobody knows what made them: pass --overwrite',
    ),
    (
        remove('data/JPEGImages'),
        'cams',
        '',
        '{D}/JPEGImages/train_00000.jpg: no such file (12 of 12 are missing): check --data_dir',
    ),
    (
        remove('experiments/checkpoints/cls.pth'),
        'cls',
        '',
        '--tag cls: experiments/models/cls.pth is there but not experiments/checkpoints/cls.pth: pass --overwrite to train anew',
    ),
    (
        write('experiments/checkpoints/cls.pth', 'no state'),
        'cls',
        '',
        'experiments/checkpoints/cls.pth: damaged (*): pass --overwrite to train anew',
    ),
]


def forget(folder, name):
    """Remove what a stage has made."""
    if name in FOLDERS:
        shutil.rmtree(folder / 'experiments/predictions' / FOLDERS[name], ignore_errors=True)
    for kind in ('models', 'checkpoints'):
        if name in ('cls', 'aff', 'seg'):
            for path in (folder / 'experiments' / kind).glob(f'{name}.*'):
                path.unlink()


def state_of(folder) -> dict:
    """Every file but logs, which grow."""
    paths = [path for path in folder.rglob('*') if path.is_file() and not {'tensorboards', 'logs'} & {*path.parts}]
    return {path: path.read_bytes() for path in paths}


@pytest.mark.parametrize('damage, name, more, line', CASES, ids=range(len(CASES)))
def test_one_line_answers_it(copy, tmp_path, capsys, damage, name, more, line):  # noqa: F811
    itself = ('--tag cls', 'experiments/checkpoints/cls.pth', '{walked}/train_00000.npz')
    if line.split(':')[0] not in itself and 'args.json' not in line:
        forget(tmp_path, name)  # what was made before is no answer
    damage(tmp_path)
    before = state_of(tmp_path)
    script, words = commands(copy)[name]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        stage.run(script.main, script.parse_args([*words, *more.split()]), InputError)

    # A string goes to stderr and makes the status 1; argparse prints its own line and exits with 2.
    status, text = (1, ended.value.code) if isinstance(ended.value.code, str) else (2, '')
    if status == 2:
        assert ended.value.code == 2
        text = capsys.readouterr().err.removesuffix('\n')
    folders = {'cams': CAMS, 'labels': AFFINITY_LABELS, 'walked': WALKED, 'pseudo': PSEUDO, 'predictions': PREDICTIONS}
    for key, folder in {
        **{key: f'experiments/predictions/{value}' for key, value in folders.items()},
        'D': copy,
    }.items():
        line = line.replace(f'{{{key}}}', str(folder))
    assert re.fullmatch(f'[^:]*: error: {re.escape(line)}'.replace(r'\*', '.*'), text), text

    # What was there is there as it was.
    after = state_of(tmp_path)
    assert {path: after.get(path) for path in before} == before


def test_the_table_is_long_enough():
    assert len(CASES) >= 60
