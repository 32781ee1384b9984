"""Invalid inputs and the line that each one ends with; nothing that exists is changed or lost.

A row: the damage (a function of the folder of data/ and experiments/), the stage that meets it, more flags, and the
line. {D} is the folder of the data set, {cams}, {labels}, ... are folders of predictions; * is text of another library.
"""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from support.chain import AFFINITY_LABELS, CAMS, FOLDERS, PREDICTIONS, PSEUDO, RANDOM_WALKS, commands
from util import stage
from util.artifacts import write_npz

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
    # flags
    (untouched, 'cls', '--num_pieces 3', 'argument --num_pieces: 3 is not a perfect square (1, 4, 9, 16, ...)'),
    (
        untouched,
        'cls',
        '--num_pieces 9',
        '--image_size 64 is not a multiple of 48 = 16 x sqrt(num_pieces 9)',
    ),
    (
        untouched,
        'cls',
        '--image_size 50',
        '--image_size 50 is not a multiple of 32 = 16 x sqrt(num_pieces 4)',
    ),
    (untouched, 'cls', '--image_size 0', 'argument --image_size: 0 is out of range: 32 to 16384'),
    (untouched, 'cls', '--min_image_size 90 --max_image_size 80', '--min_image_size 90 is above --max_image_size 80'),
    (untouched, 'cls', '--architecture vgg16', 'argument --architecture: invalid choice: *vgg16* (choose from *)'),
    (untouched, 'cls', '--alpha nan', 'argument --alpha: nan is out of range: 0 or more'),
    (untouched, 'cls', '--lr -1', 'argument --lr: -1.0 is out of range: 0 or more'),
    (untouched, 'cls', '--seed 4294967296', 'argument --seed: 4294967296 is out of range: 0 to 4294967295'),
    (untouched, 'cls', '--momentum 0', '--nesterov True needs --momentum above 0'),
    (
        untouched,
        'cls',
        '--augment blur',
        '--augment blur: choose from colorjitter, randaugment, randaugment_torchvision',
    ),
    (untouched, 'cls', '--tag a/b', "argument --tag: 'a/b' is not a name (no slashes, no leading dot)"),
    (untouched, 'cls', '--batch_size 5', '--batch_size 5 is not a multiple of --bn_replicas 2'),
    (untouched, 'cls', '--batch_size 2', '--batch_size 2: --bn_replicas 2 needs at least 2 images each'),
    (untouched, 'cls', '--batch_size 20', '--batch_size 20: the training list has only 12 images'),
    (
        untouched,
        'cls',
        '--weights nowhere.pth',
        '--weights nowhere.pth: cannot be read (No such file or directory)',
    ),
    (
        untouched,
        'cls',
        '--weights imagenet',
        '--weights imagenet: no ImageNet weights are published for resnest14_narrow: pass none or a local file',
    ),
    (untouched, 'cls', '--device tpu', '--device tpu: not usable here; auto picks an available device'),
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
        '--domain \'nowhere\': the data set "drawn scenes" has the lists train_aug, train, val',
    ),
    (untouched, 'affinity_labels', '--fg_threshold 0.05', '--fg_threshold 0.05 is below --bg_threshold 0.1'),
    (untouched, 'affinity_labels', '--fg_threshold 1.5', 'argument --fg_threshold: 1.5 is out of range: 0 to 1'),
    (untouched, 'aff', '--radius 10', '--radius 10 is too large for a 16x16 edge map'),
    (untouched, 'random_walk', '--exp_times 17', 'argument --exp_times: 17 is out of range: 0 to 12'),
    (
        untouched,
        'random_walk',
        f'--cam_dir {RANDOM_WALKS}',
        '{random_walks}/train_00000.npz: not an npz file with "keys" and "cam", or damaged (*); run its stage with --repair to regenerate it',
    ),
    (
        untouched,
        'pseudo',
        f'--experiment_name {CAMS}',
        '{cams}/train_00000.npz: not an npz file with "keys" and "rw", or damaged (*); run its stage with --repair to regenerate it',
    ),
    (
        untouched,
        'seg',
        '--mode normal --batch_size 1',
        '--batch_size 1: --mode normal trains BatchNorm and needs 2 or more',
    ),
    (
        untouched,
        'predictions',
        '--use_gn False',
        '--use_gn False: experiments/models/seg.pth was trained with --use_gn True',
    ),
    (
        untouched,
        'evaluate',
        '--threshold 0.3',
        '--threshold 0.3: {predictions} contains label maps, which have no scores',
    ),
    (
        untouched,
        'evaluate',
        '--mode npy',
        '--mode npy: {predictions} contains files of mode png; it is detected without --mode',
    ),
    # lists and the data set's JSON
    (
        remove(LIST),
        'cls',
        '',
        '{D}/ImageSets/Segmentation/train_aug.txt: the list "train_aug" cannot be read (FileNotFoundError)',
    ),
    (
        write(LIST, ''),
        'cls',
        '',
        '{D}/ImageSets/Segmentation/train_aug.txt: the list "train_aug" is empty',
    ),
    (
        write(LIST, b'\xff\xfe\x00'),
        'cls',
        '',
        '{D}/ImageSets/Segmentation/train_aug.txt: the list "train_aug" cannot be read (UnicodeDecodeError)',
    ),
    (
        write(LIST, f'{ID}\n{ID}\n'),
        'cls',
        '',
        "{D}/ImageSets/Segmentation/train_aug.txt: duplicate image id 'train_00000' (expected one id per line)",
    ),
    (
        write(LIST, '../secret\n'),
        'cams',
        '',
        "{D}/ImageSets/Segmentation/train_aug.txt: '../secret' is not a valid image id (file name without directory or extension)",
    ),
    (
        write(LIST, 'nobody\n'),
        'cams',
        '',
        '{D}/JPEGImages/nobody.jpg: no such file (1 of 1 are missing): check the folder of the data set',
    ),
    (
        remove('data/dataset.json'),
        'cls',
        '',
        '--dataset {D}/dataset.json: cannot be read (No such file or directory)',
    ),
    (write('data/dataset.json', '{'), 'cls', '', '--dataset {D}/dataset.json: is not valid JSON (*)'),
    (
        write('data/dataset.json', '[]'),
        'cls',
        '',
        '--dataset {D}/dataset.json: must contain a JSON object',
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
        '{D}/Annotations/train_00000.xml: \'cow\' is not a class of the data set "drawn scenes" '
        '(12 of 12 labels are wrong: python3 -m tools.check_dataset lists them)',
    ),
    (
        in_json(palette=[[0, 0, 256]]),
        'pseudo',
        '',
        '--dataset {D}/dataset.json: "palette" must be up to 256 [r, g, b] colours',
    ),
    (in_json(lists=[]), 'evaluate', '', '--dataset {D}/dataset.json: "lists" must name a file for each domain'),
    # annotations
    (remove(XML), 'cams', '', '{D}/Annotations/train_00000.xml: no such annotation: check the folder of the data set'),
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
        '{D}/Annotations/train_00000.xml: \'unicorn\' is not a class of the data set "drawn scenes"',
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
        '{D}/Annotations/train_00000.xml: <size> is 99x61, the image is 64x61: correct it',
    ),
    # images
    (
        remove(JPEG),
        'affinity_labels',
        '',
        '{D}/JPEGImages/train_00000.jpg: no such file (1 of 12 are missing): check the folder of the data set',
    ),
    (write(JPEG, ''), 'cams', '', '{D}/JPEGImages/train_00000.jpg: not a readable image (*)'),
    (
        cut(JPEG),
        'pseudo',
        '',
        'experiments/predictions/aff@train@beta=10@exp_times=8@rw: 1 image changed (train_00000.jpg); '
        'run inference_rw.py again',
    ),
    (write(JPEG, 'no JPEG'), 'cls', '', '{D}/JPEGImages/train_00000.jpg: not a readable image (*)'),
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
        '{D}/JPEGImages/train_00000.jpg: no such file (1 of 12 are missing), but train_00000.JPG exists: rename it',
    ),
    # masks and label maps
    (
        masks_without_objects,
        'evaluate',
        '',
        '{D}/SegmentationClass: the 4 masks of the list contain only the values [0, 255], so no object: pixels of class k must have the value k, from 1 to 6 (255 is ignored), or the data set needs the entry "mask_values"',
    ),
    (picture(MASK, ZEROS), 'cls', '', '{D}/SegmentationClass/train_00000.png: the mask is 7x9, the image is 64x61'),
    (
        picture(MASK, np.zeros((9, 7, 3))),
        'evaluate cams',
        '',
        '{D}/SegmentationClass/train_00000.png: a mask must be an 8-bit palette or grey PNG of class indices, not mode RGB (or the data set needs the entry "mask_values")',
    ),
    (picture(LABEL, ZEROS), 'aff', '', '{labels}/train_00000.png: the mask is 7x9, the image is 64x61'),
    (
        all_ignored,
        'aff',
        '',
        f'--label_name {AFFINITY_LABELS}: all its labels are 255: check stage 3',
    ),
    (
        remove(LABEL),
        'aff',
        '',
        '{labels}/train_00000.png not found (1 of 12 are missing); run make_affinity_labels.py first',
    ),
    (picture(PREDICTION, ZEROS), 'evaluate', '', '{predictions}/val_00000.png: the mask is 7x9, the image is 60x64'),
    (
        picture(PREDICTION, ZEROS + 77),
        'evaluate',
        '',
        '{predictions}/val_00000.png: contains class 77, the largest class is 6 (255: ignore)',
    ),
    (cut(PREDICTION), 'evaluate', '', '{predictions}/val_00000.png: not a readable mask (*)'),
    # CAM files
    (
        remove(CAM),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz not found (1 of 12 are missing); run inference_classification.py first',
    ),
    (
        write(CAM, ''),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: not an npz file with "keys" and "cam", or damaged (*); run its stage with --repair to regenerate it',
    ),
    (
        cut(CAM),
        'evaluate cams',
        '',
        '{cams}/train_00000.npz: contains neither "rw" nor "hr_cam"; run its stage with --repair to regenerate it',
    ),
    (
        pickled(CAM),
        'random_walk',
        '',
        '{cams}/train_00000.npz: not an npz file with "keys" and "cam", or damaged (*); run its stage with --repair to regenerate it',
    ),
    (
        arrays(keys=np.array([0, 1]), cam=np.array([None, 1], object)),
        'random_walk',
        '',
        '{cams}/train_00000.npz: not an npz file with "keys" and "cam", or damaged (*); run its stage with --repair to regenerate it',
    ),
    (
        cams([0, 2, 1], np.zeros((2, 9, 7))),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: keys [0, 2, 1] are not 0 followed by increasing classes up to 6: it belongs to another data set: check --dataset',
    ),
    (
        cams([0, 77], np.zeros((1, 9, 7))),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: keys [0, 77] are not 0 followed by increasing classes up to 6: it belongs to another data set: check --dataset',
    ),
    (
        cams([0], np.zeros((1, 9, 7))),
        'random_walk',
        '',
        '{cams}/train_00000.npz: "cam" float16(1, 9, 7) does not match "keys" int64(1,); run its stage with --repair to regenerate it',
    ),
    (
        cams([0, 1], np.zeros((1, 9, 7))),
        'evaluate cams',
        '',
        '{cams}/train_00000.npz: "hr_cam" is 7x9, the image is 64x61',
    ),
    (
        arrays(keys=np.array([0, 1]), cam=ZEROS[None], hr_cam=np.full((1, 9, 7), np.inf)),
        'affinity_labels',
        '',
        '{cams}/train_00000.npz: "hr_cam" contains non-finite values; run its stage with --repair to regenerate it',
    ),
    # models
    (
        remove('experiments/models/cls.pth'),
        'cams',
        '',
        '--tag: experiments/models/cls.pth not found; run train_classification_with_puzzle.py first',
    ),
    (
        cut('experiments/models/cls.pth'),
        'cams',
        '',
        'experiments/models/cls.pth: damaged, or not a file of weights; if torch before 1.6 wrote it, load it and save it again with a newer torch',
    ),
    (
        pickled('experiments/models/aff.pth'),
        'random_walk',
        '',
        'experiments/models/aff.pth: damaged, or not a file of weights; if torch before 1.6 wrote it, load it and save it again with a newer torch',
    ),
    (
        model('seg', lambda state: [1]),
        'predictions',
        '',
        'experiments/models/seg.pth: is not a state dict (tensors by name, bare or under "model" or "state_dict")',
    ),
    (
        untouched,
        'cams',
        '--architecture resnest14',
        '--architecture resnest14: experiments/models/cls.pth was trained with resnest14_narrow',
    ),
    (
        model('cls', lambda state: {k: v[:1] for k, v in state.items() if v.ndim}),
        'cams',
        '',
        'experiments/models/cls.pth (a state dict under "model"): does not fit Classifier: *',
    ),
    (
        untouched,
        'cams',
        f'--tag {"t" * 252}',
        f'--tag: {"t" * 40}... would have 256 bytes, the limit is 255: shorten it',
    ),
    # folders
    (
        remove(f'experiments/predictions/{CAMS}'),
        'affinity_labels',
        '',
        '--experiment_name cls@train@scale=0.5,1.0: {cams} not found; run inference_classification.py first',
    ),
    (
        remove(f'experiments/predictions/{PSEUDO}'),
        'seg',
        '',
        '--label_name aff@train@beta=10@exp_times=8@rw@crf=1: {pseudo} not found; run make_pseudo_labels.py first',
    ),
    (
        remove(f'experiments/predictions/{PREDICTIONS}'),
        'evaluate',
        '',
        '--experiment_name seg@val@scale=0.5,1.0@iteration=10: {predictions} not found; run inference_segmentation.py first',
    ),
    (
        remove(f'experiments/predictions/{PSEUDO}/args.json'),
        'pseudo',
        '',
        '{pseudo} contains files but no valid args.json, so their settings are unknown: pass --overwrite',
    ),
    (
        write(f'experiments/predictions/{PSEUDO}/args.json', '{"options": '),
        'pseudo',
        '',
        '{pseudo} contains files but no valid args.json, so their settings are unknown: pass --overwrite',
    ),
    *(
        (
            untouched,
            name,
            f'--tag {"t" * 247}',
            f'--tag: {"t" * 40}... would have 256 bytes, the limit is 255: shorten it',
        )
        for name in ('cls', 'aff', 'seg')
    ),
    (
        untouched,
        'affinity_labels',
        f'--experiment_name {"x" * 256}',
        f'--experiment_name: {"x" * 40}... would have 256 bytes, the limit is 255: shorten it',
    ),
    (
        copied(PREDICTIONS, 'x' * 247),
        'evaluate',
        f'--experiment_name {"x" * 247}',
        f'--experiment_name: {"x" * 40}... would have 256 bytes, the limit is 255: shorten it',
    ),
    (
        copied(CAMS, 'x' * 238),
        'affinity_labels',
        f'--experiment_name {"x" * 238}',
        f'the name of the output folder: {"x" * 40}... would have 258 bytes, the limit is 255: shorten it',
    ),
    (broken_link, 'cls', '', 'experiments: is a broken link: remove it or name another folder'),
    (
        remove('data/JPEGImages'),
        'cams',
        '',
        '{D}/JPEGImages/train_00000.jpg: no such file (12 of 12 are missing): check the folder of the data set',
    ),
    (
        remove('experiments/checkpoints/cls.pth'),
        'cls',
        '',
        '--tag cls: experiments/models/cls.pth exists without experiments/checkpoints/cls.pth: pass --overwrite to train again',
    ),
    (
        write('experiments/checkpoints/cls.pth', 'no state'),
        'cls',
        '',
        'experiments/checkpoints/cls.pth: damaged (*): pass --overwrite to train again',
    ),
]


def forget(folder, name):
    """Remove the outputs of a stage."""
    if name in FOLDERS:
        shutil.rmtree(folder / 'experiments/predictions' / FOLDERS[name], ignore_errors=True)
    for kind in ('models', 'checkpoints'):
        if name in ('cls', 'aff', 'seg'):
            for path in (folder / 'experiments' / kind).glob(f'{name}.*'):
                path.unlink()


def state_of(folder) -> dict:
    """Return every file except logs, which grow, and locks."""
    paths = [
        path for path in folder.rglob('*') if path.is_file() and not {'tensorboards', 'logs', 'cache'} & {*path.parts}
    ]
    paths = [path for path in paths if not path.name.endswith('.lock')]
    return {path: path.read_bytes() for path in paths}


@pytest.mark.parametrize('damage, name, more, line', CASES, ids=range(len(CASES)))
def test_invalid_input_ends_with_one_line(copy, tmp_path, capsys, damage, name, more, line):
    itself = ('--tag cls', 'experiments/checkpoints/cls.pth', '{random_walks}/train_00000.npz')
    if line.split(':')[0] not in itself and 'args.json' not in line:
        forget(tmp_path, name)  # otherwise the stage has nothing to do
    damage(tmp_path)
    before = state_of(tmp_path)
    script, words = commands(copy)[name]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        stage.run(script.main, lambda: script.parse_args([*words, *more.split()]))

    # sys.exit prints a string to stderr and exits with 1; argparse prints its own line and exits with 2.
    status, text = (1, ended.value.code) if isinstance(ended.value.code, str) else (2, '')
    if status == 2:
        assert ended.value.code == 2
        text = capsys.readouterr().err.removesuffix('\n')
    folders = {
        'cams': CAMS,
        'labels': AFFINITY_LABELS,
        'random_walks': RANDOM_WALKS,
        'pseudo': PSEUDO,
        'predictions': PREDICTIONS,
    }
    for key, folder in {
        **{key: f'experiments/predictions/{value}' for key, value in folders.items()},
        'D': copy,
    }.items():
        line = line.replace(f'{{{key}}}', str(folder))
    assert re.fullmatch(f'[^:]*: error: {re.escape(line)}'.replace(r'\*', '.*'), text), text

    # No existing file has changed.
    after = state_of(tmp_path)
    assert {path: after.get(path) for path in before} == before


def test_the_table_is_long_enough():
    assert len(CASES) >= 60
