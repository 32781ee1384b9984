"""tools/check_dataset.py: every error of a data set at once, counts, warnings."""

import numpy as np
import pytest
from PIL import Image

from core import UserError
from core.data.dataset import open_dataset
from support import draw_image, run_stage, voc_xml
from support.kinds import image_folder
from tools import check_dataset


def write_mask(path, values) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    """Four photographs: a and b to train on, c to score on, d without classes; a and c have masks."""
    for i, name in enumerate('abcd'):
        draw_image(tmp_path / f'{name}.jpg', (8, 6 + i % 2), seed=i)
    for name, k, height in (('a', 1, 6), ('c', 2, 6)):
        mask = np.zeros((height, 8))
        mask[:, 1:7] = k
        write_mask(tmp_path / 'masks' / f'{name}.png', mask)
    write_table(tmp_path)
    return tmp_path


def write_table(folder, **replaced: str) -> None:
    rows = {'a': 'a.jpg,cat,masks/a.png,train', 'b': 'b.jpg,cat;dog,,train', 'c': 'c.jpg,dog,masks/c.png,val',
            'd': 'd.jpg,,,train'}  # fmt: skip
    (folder / 'labels.csv').write_text('\n'.join(['image,classes,mask,split', *{**rows, **replaced}.values(), '']))


def check(folder, capsys, workers: int = 0) -> tuple[list[str], str]:
    """Return the lines printed and the error ('' if none)."""
    line = ['--dataset', str(folder / 'labels.csv'), '--data_dir', str(folder), '--num_workers', str(workers)]
    error = ''
    try:
        run_stage(check_dataset, line)
    except UserError as raised:
        error = str(raised)
    return capsys.readouterr().out.splitlines(), error


@pytest.mark.parametrize('workers', [0, 2])
def test_counts_of_a_good_data_set(photos, capsys, workers):
    lines, error = check(photos, capsys, workers)
    assert error == ''
    assert [line.split() for line in lines[:3]] == [
        ['train_aug', '3', 'images:', 'complete'],
        ['train', '3', 'images:', 'complete'],
        ['val', '1', 'images:', 'complete'],
    ]
    table = {cells[1].strip(): cells[2:5] for cells in (line.split('|') for line in lines if '|' in line)}
    numbers = {name: [int(cell) for cell in cells] for name, cells in table.items() if cells[0].strip().isdigit()}
    assert numbers == {
        'cat': [2, 2, 0], 'dog': [1, 1, 1], '(background alone)': [1, 1, 0], '(with a mask)': [1, 1, 1],
    }  # fmt: skip
    assert 'sizes: 8x6 to 8x7 (2 distinct, median 8x7)' in lines
    assert lines[-1] == f'{photos}: no errors'
    assert not [line for line in lines if line.startswith('warning')]


def test_all_errors_are_listed_at_once(photos, capsys):
    (photos / 'a.jpg').write_bytes(b'damaged')
    (photos / 'b.jpg').unlink()
    write_mask(photos / 'masks' / 'c.png', [[7]])
    (photos / 'labels.json').write_text('{"classes": ["cat", "dog"]}')
    write_table(photos, d='d.jpg,cow,masks/no.png,train')
    lines, error = check(photos, capsys)
    assert error == f'{photos}: 5 errors, listed above'
    text = '\n'.join(lines)
    assert [line.partition('images: ')[2] for line in lines if line.startswith('train ')] == ['no further errors']
    for part in (
        'a.jpg: not a readable image',
        'b.jpg: no such image',
        "labels.csv, line 5: 'cow' is not a class",
        'masks/no.png: no such mask',
        'masks/c.png: the mask is 1x1, the image is 8x6',
    ):
        assert part in text


def test_warnings_do_not_fail(photos, capsys):
    (photos / 'c.jpg').write_bytes((photos / 'a.jpg').read_bytes())
    (photos / 'd.jpg').write_bytes((photos / 'b.jpg').read_bytes())
    (photos / 'labels.json').write_text('{"classes": ["cat", "dog", "Dog", "cow"]}')
    write_table(photos, c='c.jpg,cat,masks/c.png,val')
    lines, error = check(photos, capsys)
    assert error == ''
    assert [line.removeprefix('warning: ') for line in lines if line.startswith('warning: ')] == [
        f'val and train_aug share 1 image ({photos}/a.jpg and {photos}/c.jpg, ...): remove from one of them',
        f'train_aug contains copies of 1 image ({photos}/b.jpg and {photos}/d.jpg, ...)',
        f'copies of 1 image have different classes ({photos}/b.jpg and {photos}/d.jpg, ...): keep one, with all its '
        'classes',
        f'in 1 of 2 images the mask contains a class that the labels do not ({photos}/c.jpg, ...)',
        f'in 1 of 2 images the labels contain a class that the mask does not ({photos}/c.jpg, ...)',
        'no image of train_aug has the class Dog, cow',
        'classes differ only in case, blanks, Unicode form or markup: dog, Dog',
    ]


def test_masks_without_background_are_noticed(photos, capsys, monkeypatch):
    monkeypatch.setattr(check_dataset, 'FEW_MASKS', 2)
    hint = 'warning: none of 2 masks has background (0): if every pixel of the images has a class, the data set needs'
    assert not [line for line in check(photos, capsys)[0] if line.startswith('warning: none of')]
    for name, k in (('a', 1), ('c', 2)):
        write_mask(photos / 'masks' / f'{name}.png', np.full((6, 8), k))
    (found,) = [line for line in check(photos, capsys)[0] if line.startswith('warning: none of')]
    assert found.startswith(hint)
    write_table(photos, d='d.jpg,cat,,train')
    (photos / 'labels.json').write_text('{"background": false}')
    assert not [line for line in check(photos, capsys)[0] if line.startswith('warning: none of')]


def test_binary_masks_are_named(photos, capsys):
    write_mask(photos / 'masks' / 'a.png', np.full((6, 8), 255))
    _, error = check(photos, capsys)
    assert 'the 1 masks of the list contain only the values [255], so no object' in error


def test_folder_that_does_not_exist(tmp_path, capsys):
    write_table(tmp_path)
    with pytest.raises(UserError, match='nowhere: no such folder'):
        run_stage(check_dataset, ['--dataset', str(tmp_path / 'labels.csv'), '--data_dir', str(tmp_path / 'nowhere')])


# What will not work -------------------------------------------------------------------------------------------------


def warnings_of(text: str, capsys) -> list[str]:
    """Return the warnings about a CSV of photographs in the working directory."""
    with open('labels.csv', 'w', encoding='utf-8') as file:
        file.write(text)
    lines, error = check_here(capsys)
    assert error == ''
    return lines


def check_here(capsys, *more: str) -> tuple[list[str], str]:
    run_stage(check_dataset, ['--dataset', 'labels.csv', '--data_dir', '.', '--num_workers', '0', *more])
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix('warning: ') for line in lines if line.startswith('warning: ')], ''


@pytest.fixture
def here(in_tmp):
    for i, name in enumerate('abcdefgh'):
        draw_image(in_tmp / f'{name}.jpg', (64, 48), seed=i)
    return in_tmp


def test_a_class_needs_images_without_it(here, capsys):
    rows = 'image,classes\na.jpg,cat\nb.jpg,cat\n'
    only = 'every image of train_aug has the only class, cat: add images without it, or it cannot be learned'
    assert warnings_of(rows, capsys) == [only]
    assert warnings_of(f'{rows}c.jpg,\n', capsys) == []
    everywhere = 'every image of train_aug has the class cat: add images without it, or its mask can be anything'
    assert warnings_of(f'{rows}c.jpg,cat;dog\n', capsys) == [everywhere]


@pytest.mark.parametrize('side, warned', [(3, True), (30, True), (40, False)])
def test_small_objects_in_masks(here, capsys, side, warned):
    """Of 64 pixels, 32 are the tile and 2 a cell of 16 at 512 pixels."""
    mask = np.zeros((48, 64))
    mask[4 : 4 + side, 2 : 2 + side] = 1
    mask[40, 60] = 255
    for name in 'ab':
        write_mask(here / f'{name}.png', mask)
    rows = 'image,classes,mask\na.jpg,cat,a.png\nb.jpg,cat,b.png\nc.jpg,,\n'
    expected = (
        'the largest object is smaller than a tile of the crop (256 of 512 pixels) in 2 of 2 images with masks or'
    )
    found = warnings_of(rows, capsys)
    assert [line.startswith(expected) for line in found] == [True] * warned
    found, _ = check_here(capsys, '--image_size', '256')  # 3 of 64 pixels are 12 of 256
    assert ['smaller than 16 pixels, one value of a class map, in 2:' in line for line in found] == [side == 3] * warned


def test_small_objects_in_boxes(tmp_path, capsys):
    """A box of 8 of 40 pixels, in an annotation beside the image."""
    for name in 'ab':
        draw_image(tmp_path / 'photos' / f'{name}.jpg', seed=ord(name))
        (tmp_path / 'photos' / f'{name}.xml').write_text(voc_xml(*(['cat'] if name == 'a' else [])))
    run_stage(check_dataset, ['--dataset', str(tmp_path / 'photos'), '--num_workers', '0'])
    assert 'in 1 of 1 images with masks or boxes, and smaller than 16 pixels' in capsys.readouterr().out


def test_large_images(here, capsys):
    rows = 'image,classes\na.jpg,cat\nb.jpg,\n'
    assert warnings_of(rows, capsys) == []
    draw_image(here / 'a.jpg', (300, 200))
    (line,) = check_here(capsys, '--image_size', '64')[0]
    assert line.startswith(
        '1 of 2 images are much larger than --image_size 64 (up to 300x200): they are scaled down, and'
    )
    assert '75 pixels become one value of a class map' in line


@pytest.mark.parametrize(
    'names, warned',
    [
        ('cat;Cat', True),
        ('fire truck;firetruck', True),
        ('fire_truck;fire-truck', True),
        ('<b>cat</b>;cat', True),
        ('cat &amp; dog;cat & dog', True),
        ('cat;cats', False),
        ('a1;a2', False),
    ],
)
def test_class_names_that_look_alike(here, capsys, names, warned):
    first, second = names.replace('&amp;', '&amp').split(';')
    first = first.replace('&amp', '&amp;')
    (here / 'labels.json').write_text(f'{{"classes": ["{first}", "{second}"]}}')
    found = warnings_of('image,classes\na.jpg,\nb.jpg,"' + second + '"\n', capsys)
    expected = f'classes differ only in case, blanks, Unicode form or markup: {first}, {second}'
    assert (expected in found) == warned


def test_images_that_look_like_those_of_train(here, capsys):
    pytest.importorskip('imagehash')
    with Image.open(here / 'a.jpg') as image:
        image.resize((32, 24)).save(here / 'copy.jpg', quality=60)
    Image.new('RGB', (64, 48), 'white').save(here / 'plain.png')
    Image.new('RGB', (48, 64), 'white').save(here / 'white.png')
    rows = [
        'image,classes,split',
        'a.jpg,x,',
        'b.jpg,,',
        'plain.png,,',
        'c.jpg,x,val',
        'copy.jpg,x,val',
        'white.png,,val',
    ]
    assert warnings_of('\n'.join([*rows, '']), capsys) == [
        '1 image of val look like images of train_aug (a.jpg and copy.jpg, ...): scores of copies say little'
    ]


def test_without_imagehash_a_line_says_so(here, capsys, monkeypatch):
    monkeypatch.setattr(check_dataset, 'imagehash', None)
    (here / 'labels.csv').write_text('image,classes,split\na.jpg,x,\nb.jpg,,\nc.jpg,x,val\n')
    run_stage(check_dataset, ['--dataset', 'labels.csv', '--data_dir', '.', '--num_workers', '0'])
    line = 'images that look like others were not searched for: pip install imagehash'
    assert line in capsys.readouterr().out.splitlines()
    (here / 'labels.csv').write_text('image,classes\na.jpg,x\nb.jpg,\n')
    run_stage(check_dataset, ['--dataset', 'labels.csv', '--data_dir', '.', '--num_workers', '0'])
    assert line not in capsys.readouterr().out


def test_errors_in_a_folder_name_the_folder(tmp_path, capsys):
    path, _ = image_folder(tmp_path)
    (path / 'train/cat/0.jpg').write_bytes(b'damaged')
    with pytest.raises(UserError, match='1 error, listed above'):
        run_stage(check_dataset, ['--dataset', str(path), '--num_workers', '0'])
    assert f'cannot be read, remove them from {path / "train"}' in capsys.readouterr().out
    assert open_dataset(path, '').root == path
