"""tools/prepare_coco.py --annotations: files of Roboflow, CVAT, Label Studio, and those made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.dataset import open_dataset
from support import fault_of, kinds, run_stage
from support.kinds import BOXES, SIZE, TAGS
from tools import prepare_coco

# pycocotools 2.0.11 with NumPy 2.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')


def flags_of(annotations, images, *more) -> list[str]:
    return ['--annotations', str(annotations), '--images', str(images), '--num_workers', '0', *map(str, more)]


def expected(tags) -> np.ndarray:
    mask = np.zeros(SIZE[::-1], np.uint8)
    for k, (name, (left, top, right, bottom)) in enumerate(BOXES.items(), 1):
        mask[top:bottom, left:right] = k if name in tags else 0
    return mask


def check(path, root, domain='train') -> None:
    """Check tags and masks of a CSV."""
    dataset = open_dataset(path, root)
    assert dataset.class_names == ('cat', 'dog')
    ids = dataset.ids(domain, with_images=True)
    assert [image_id[-1] for image_id in ids] == [*TAGS]
    for image_id in ids:
        tags = TAGS[image_id[-1]]
        assert [dataset.class_names[c] for c in np.flatnonzero(dataset.read_labels(image_id))] == tags
        np.testing.assert_array_equal(dataset.read_mask(image_id, SIZE[::-1]), expected(tags))


def test_splits_of_roboflow_come_into_one_csv(tmp_path, capsys):
    root, _ = kinds.roboflow_coco(tmp_path)
    for split, folder in (('train', 'train'), ('val', 'valid')):
        run_stage(prepare_coco, flags_of(root / folder / '_annotations.coco.json', root / folder))
        out = capsys.readouterr().out
        assert f'{root}/coco.csv: 4 images of {split}, 2 classes' in out
        assert f'pass --dataset {root}/coco.csv --data_dir {root}' in out
    for split in ('train', 'val'):
        check(root / 'coco.csv', root, split)
    assert json.loads((root / 'coco.json').read_text()) == {'name': 'export', 'classes': ['cat', 'dog']}
    before = (root / 'coco.csv').read_bytes()
    run_stage(prepare_coco, flags_of(root / 'valid/_annotations.coco.json', root / 'valid'))
    assert (root / 'coco.csv').read_bytes() == before
    assert open_dataset(root, '').class_names == ('cat', 'dog')  # the masks beside the splits are not another split

    # Other annotations replace the rows and masks of their split alone.
    file = root / 'valid/_annotations.coco.json'
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, 'images': content['images'][:1], 'annotations': content['annotations'][:1]}))
    run_stage(prepare_coco, flags_of(file, root / 'valid'))
    assert len(list((root / 'masks/val').glob('*.png'))) == 1
    check(root / 'coco.csv', root, 'train')
    assert open_dataset(root / 'coco.csv', root).ids('val') == ['valid__im_jpg.rf.a']


def test_a_stopped_run_leaves_the_rows_of_other_splits(tmp_path, monkeypatch):
    root, _ = kinds.roboflow_coco(tmp_path)
    for folder in ('train', 'valid'):
        run_stage(prepare_coco, flags_of(root / folder / '_annotations.coco.json', root / folder))
    file = root / 'valid/_annotations.coco.json'
    file.write_text(file.read_text() + ' ')

    def stop(*_):
        raise OSError('stopped')

    with monkeypatch.context() as patch:
        patch.setattr(prepare_coco, 'parallel_map', stop)
        with pytest.raises(OSError, match='stopped'):
            run_stage(prepare_coco, flags_of(file, root / 'valid'))
    assert open_dataset(root / 'coco.csv', root).lists == ('train_aug', 'train')  # the masks of val are removed
    check(root / 'coco.csv', root, 'train')
    run_stage(prepare_coco, flags_of(file, root / 'valid'))
    check(root / 'coco.csv', root, 'val')


def test_other_classes_in_another_split_are_refused(tmp_path, capsys):
    root, _ = kinds.roboflow_coco(tmp_path)
    run_stage(prepare_coco, flags_of(root / 'train/_annotations.coco.json', root / 'train'))
    before = (root / 'coco.csv').read_bytes()
    file = root / 'valid/_annotations.coco.json'
    file.write_text(file.read_text().replace('"dog"', '"cow"'))
    line = fault_of(prepare_coco, flags_of(file, root / 'valid'), capsys)
    assert f'{root}/coco.csv: has rows of train with other classes than val' in line
    assert (root / 'coco.csv').read_bytes() == before
    assert not (root / 'masks/val').exists()


def test_images_of_another_split_are_refused(tmp_path, capsys):
    """A table with an image in two splits would be refused by all programs."""
    root, _ = kinds.roboflow_coco(tmp_path)
    words = flags_of(root / 'train/_annotations.coco.json', root / 'train')
    run_stage(prepare_coco, words)
    before = (root / 'coco.csv').read_bytes()
    line = fault_of(prepare_coco, [*words, '--split', 'val'], capsys)
    assert f'{root}/coco.csv: has train/' in line and 'in train, so it cannot be in val too: remove its rows' in line
    assert (root / 'coco.csv').read_bytes() == before
    assert not (root / 'masks/val').exists()


@pytest.mark.parametrize('make', [kinds.cvat_coco, kinds.label_studio_coco])
def test_files_of_cvat_and_label_studio(tmp_path, make):
    file, images = make(tmp_path)
    run_stage(prepare_coco, flags_of(file, images))
    check(tmp_path / 'coco.csv', tmp_path)


def test_relative_paths_and_the_folder_itself(in_tmp):
    kinds.label_studio_coco(in_tmp)
    run_stage(prepare_coco, flags_of('result.json', '.', '--split', 'val'))
    check('coco.csv', '.', 'val')


@pytest.mark.parametrize(
    'name',
    ['images\\0a1b2c3d-{}.jpg', '../../label-studio/upload/1/0a1b2c3d-{}.jpg', 'C:\\data\\0a1b2c3d-{}.jpg'],
)
def test_paths_of_other_machines(tmp_path, name):
    file, root = kinds.label_studio_coco(tmp_path)
    content = json.loads(file.read_text())
    for image, letter in zip(content['images'], TAGS, strict=True):
        image['file_name'] = name.format(letter)
    file.write_text(json.dumps(content))
    folder = tmp_path if name.startswith('images') else tmp_path / 'images'
    run_stage(prepare_coco, flags_of(file, folder, '--data_dir', tmp_path))
    check(tmp_path / 'coco.csv', tmp_path)


def change(content: dict, how: str) -> dict:
    """Return annotations as they are made by hand."""
    for image in content['images']:
        if how == 'no sizes':
            del image['width'], image['height']
        if how == 'sizes of VIA':
            image.update(width=-1, height=-1)
        if how == 'float sizes':
            image.update(width=float(image['width']), height=float(image['height']))
        if how == 'ids are texts':
            image['id'] = str(image['id'])
    for note in content['annotations']:
        if how == 'ids are texts':
            note.update(image_id=str(note['image_id']), category_id=str(note['category_id']))
        if how == 'no areas':
            note.update(area=None, iscrowd=None)
    for category in content['categories']:
        if how == 'ids are texts':
            category['id'] = str(category['id'])
    return content


@pytest.mark.parametrize(
    'how', ['no sizes', 'sizes of VIA', 'float sizes', 'ids are texts', 'no areas', 'nothing else']
)
def test_files_made_by_hand(tmp_path, how):
    """Only images, annotations and categories are needed: no info, licences, areas, crowds, sizes."""
    kinds.draw_all(tmp_path / 'photos')
    file = kinds.write(tmp_path / 'notes.json', json.dumps(change(kinds.coco(), how)))
    run_stage(prepare_coco, flags_of(file, tmp_path / 'photos'))
    check(tmp_path / 'coco.csv', tmp_path)


def test_objects_with_a_box_alone_are_counted(tmp_path, capsys):
    kinds.draw_all(tmp_path / 'photos')
    content = kinds.coco()
    content['annotations'][0]['segmentation'] = []
    file = kinds.write(tmp_path / 'notes.json', json.dumps(content))
    run_stage(prepare_coco, flags_of(file, tmp_path / 'photos'))
    assert '1 of 4 objects have no outline: their tags are kept, their boxes are 255' in capsys.readouterr().err
    dataset = open_dataset(tmp_path / 'coco.csv', tmp_path)
    assert dataset.read_labels('photos__a').tolist() == [1, 0]
    mask = np.array(Image.open(tmp_path / 'masks/train/a.png'))
    np.testing.assert_array_equal(mask, 255 * (expected(['cat']) > 0))


def test_files_of_others_are_kept(tmp_path, capsys):
    file, images = kinds.cvat_coco(tmp_path)
    kinds.write(tmp_path / 'coco.csv', 'mine')
    line = fault_of(prepare_coco, flags_of(file, images), capsys)
    assert f'{tmp_path}/coco.csv: already exists, and was not written by this program' in line
    assert (tmp_path / 'coco.csv').read_text() == 'mine'


@pytest.mark.parametrize(
    'line, said',
    [
        ('--annotations a.json', '--annotations, --images and --split go together'),
        ('--images photos', '--annotations, --images and --split go together'),
        ('--split val', '--annotations, --images and --split go together'),
        ('--annotations a.json --images photos --split valid', '--split'),
    ],
)
def test_flags_that_go_together(line, said, capsys):
    with pytest.raises(SystemExit):
        prepare_coco.parse_args(line.split())
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_images_outside_of_the_folder_and_missing_ones(tmp_path, capsys):
    file, images = kinds.cvat_coco(tmp_path)
    (tmp_path / 'other').mkdir()
    line = fault_of(prepare_coco, flags_of(file, images, '--data_dir', tmp_path / 'other'), capsys)
    assert f'--images {images}: must be inside of {tmp_path}/other (--data_dir)' in line
    line = fault_of(prepare_coco, flags_of(file, tmp_path / 'other'), capsys)
    assert f'{tmp_path}/other/a.jpg: no such image (4 of 4 are missing): check --images' in line
    assert not Path(tmp_path / 'coco.csv').exists()
