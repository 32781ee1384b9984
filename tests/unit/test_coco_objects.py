"""tools/prepare_coco.py on annotations as other programs write them: no object is lost, wrong ones are named."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from core.data.dataset import open_dataset
from support import fault_of, run_stage
from support.coco import H, W, annotation, content, filled, make_coco, rectangle, write
from tools import prepare_coco

# pycocotools 2.0.11 with NumPy 2.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
CAT = 3
BOX = [4.5, 2, 10, 6]  # touches the pixels 4 to 14 and 2 to 7
BOXED = filled((2, 4, 8, 15))


@pytest.fixture
def root(tmp_path):
    return make_coco(tmp_path / 'COCO')


def prepare(root, annotations, images=None):
    """Return the tags and the mask of image 4, the only one of train."""
    entries = content(2017, 'train', annotations, (4,))
    entries['images'][0] |= images or {}
    write(root, 'train', entries)
    run_stage(prepare_coco, ['--data_dir', str(root), '--num_workers', '0'])
    with (root / 'coco2017.csv').open(newline='') as file:
        row = next(row for row in csv.DictReader(file) if row['split'] == 'train')
    (mask,) = (root / 'masks2017' / 'train').glob('*.png')
    assert row['mask'] in ('', mask.relative_to(root).as_posix())
    return row['classes'], np.array(Image.open(mask))


def cat(segmentation, **more):
    return {**annotation(4, 90, segmentation, 0), 'bbox': BOX, **more}


@pytest.mark.parametrize('segmentation', [[], None, [[]], [[1, 1, 5, 5]], [[1, 1]]])
def test_objects_without_outline_keep_their_tag_and_their_box_is_ignored(root, segmentation, capsys):
    tags, mask = prepare(root, [cat(segmentation)])
    assert tags == 'cat'
    np.testing.assert_array_equal(mask, 255 * BOXED)
    warned = 'warning: 1 of 3 objects have no outline: their tags are kept, their boxes are 255 in the masks'
    assert warned in capsys.readouterr().err


def test_a_split_without_outlines_has_no_masks_to_score(root, capsys):
    prepare(root, [cat([])])
    assert 'train: no object has an outline, so coco2017.csv names no masks of this split' in capsys.readouterr().out
    dataset = open_dataset(root / 'coco2017.csv', root)
    assert dataset.ids_with_masks('train') == []
    assert dataset.ids_with_masks('val') == ['val2017__000000000001']
    assert dataset.read_labels('train2017__000000000004').tolist() == [0, 0, 1]


def test_segmentation_may_be_absent(root):
    entry = cat(None)
    del entry['segmentation']
    tags, mask = prepare(root, [entry])
    assert (tags, mask.max()) == ('cat', 255)


def test_without_a_box_the_rest_of_the_image_is_ignored(root):
    entry = cat([])
    del entry['bbox']
    tags, mask = prepare(root, [annotation(4, 7, [rectangle(0, 0, 3, 3)], 9), entry])
    assert tags == 'dog;cat'
    np.testing.assert_array_equal(mask, np.where(filled((0, 0, 3, 3)), 2, 255))


@pytest.mark.parametrize(
    'box', [[1, 2, 3], [0, 0, -1, 4], [0, 0, float('nan'), 4], [0, 0, 1e300, 4], 'x', [[0, 0, 1, 1]]]
)
def test_wrong_boxes_are_named(root, box, capsys):
    write(root, 'train', content(2017, 'train', [cat([], bbox=box)], (4,)))
    line = fault_of(prepare_coco, ['--data_dir', str(root), '--num_workers', '0'], capsys)
    assert 'instances_train2017.json: annotation 402: ' in line


def test_a_box_without_area_is_a_pixel(root):
    tags, mask = prepare(root, [cat([], bbox=[3, 5, 0, 0])])
    np.testing.assert_array_equal(mask, 255 * filled((5, 3, 6, 4)))
    assert tags == 'cat'


def test_pairs_are_an_error(root, capsys):
    write(root, 'train', content(2017, 'train', [cat([[1, 1], [9, 1], [9, 9], [1, 9]])], (4,)))
    line = fault_of(prepare_coco, ['--data_dir', str(root), '--num_workers', '0'], capsys)
    assert 'its points are [x, y] pairs: a polygon must be a list x1, y1, x2, y2, ...' in line


@pytest.mark.parametrize('absent', [('area',), ('iscrowd',), ('area', 'iscrowd')])
def test_area_and_iscrowd_may_be_absent(root, absent):
    """The pixels are counted instead, so that the small one is on top, as it is if both areas are 0."""
    small, large = cat([rectangle(8, 8, 12, 12)]), annotation(4, 7, [rectangle(2, 4, 20, 28)], 0)
    for entry in (small, large):
        for name in absent:
            del entry[name]
    tags, mask = prepare(root, [small, large])
    assert tags == 'dog;cat'
    np.testing.assert_array_equal(mask, np.where(filled((8, 8, 12, 12)), CAT, 2 * filled((2, 4, 20, 28))))


def test_sizes_may_be_floats(root):
    _, mask = prepare(root, [cat([rectangle(0, 0, 3, 3)])], {'height': float(H), 'width': float(W)})
    np.testing.assert_array_equal(mask, CAT * filled((0, 0, 3, 3)))


def test_sizes_must_be_those_of_the_images(root, capsys):
    entries = content(2017, 'train', [], (4,))
    entries['images'][0] |= {'height': W, 'width': H}
    write(root, 'train', entries)
    line = fault_of(prepare_coco, ['--data_dir', str(root), '--num_workers', '0'], capsys)
    assert f'000000000004.jpg: is {W}x{H}, the annotations say {H}x{W}' in line
    assert not (root / 'coco2017.csv').exists()


@pytest.mark.parametrize('moved', [True, False])
def test_names_may_have_folders(root, moved):
    """The images are in this folder, or were unpacked without it."""
    if moved:
        (root / 'train2017' / 'cats').mkdir()
        (root / 'train2017' / '000000000004.jpg').rename(root / 'train2017' / 'cats' / '000000000004.jpg')
    prepare(root, [cat([rectangle(0, 0, 3, 3)])], {'file_name': 'cats/000000000004.jpg'})
    row = (root / 'coco2017.csv').read_text().splitlines()[1]
    folder, name = ('cats/', 'cats__') if moved else ('', '')
    assert row == f'train2017/{folder}000000000004.jpg,cat,masks2017/train/{name}000000000004.png,train'


def test_names_in_another_unicode_form(root):
    image = root / 'train2017' / '000000000004.jpg'
    image.rename(image.with_name('cafe\u0301.jpg'))
    tags, _ = prepare(root, [cat([rectangle(0, 0, 3, 3)])], {'file_name': 'caf\u00e9.jpg'})
    assert tags == 'cat'
    assert json.loads((root / 'coco2017.json').read_text())['classes'][2] == 'cat'
