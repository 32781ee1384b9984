"""tools/check_dataset.py: every error of a data set at once, counts, warnings."""

import numpy as np
import pytest
from PIL import Image

from core import UserError
from support import draw_image, run_stage
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
        mask[0, 0] = k
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
        f'in 1 of 2 images the mask contains a class that the labels do not ({photos}/c.jpg, ...)',
        f'in 1 of 2 images the labels contain a class that the mask does not ({photos}/c.jpg, ...)',
        'no image of train_aug has the class Dog, cow',
        'classes differ only in case: dog, Dog',
    ]


def test_binary_masks_are_named(photos, capsys):
    write_mask(photos / 'masks' / 'a.png', np.full((6, 8), 255))
    _, error = check(photos, capsys)
    assert 'the 1 masks of the list contain only the values [255], so no object' in error


def test_folder_that_does_not_exist(tmp_path, capsys):
    write_table(tmp_path)
    with pytest.raises(UserError, match='nowhere: no such folder'):
        run_stage(check_dataset, ['--dataset', str(tmp_path / 'labels.csv'), '--data_dir', str(tmp_path / 'nowhere')])
