"""CSV data sets, other layouts of JSON data sets, values of masks."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from core import UserError
from core.data.dataset import open_dataset
from core.data.images import MaskValues
from support import draw_image


def write_csv(folder, text: str, name='labels.csv'):
    (folder / name).write_text(text, encoding='utf-8')
    return folder / name


def refusal(folder, text: str) -> str:
    path = write_csv(folder, text)
    with pytest.raises(UserError) as error:
        open_dataset(path, folder)
    assert str(error.value).startswith(f'dataset {path}: ')
    assert '\n' not in str(error.value)
    return str(error.value).removeprefix(f'dataset {path}: ')


# The table ----------------------------------------------------------------------------------------------------------


def test_image_and_classes_are_enough(tmp_path):
    text = 'image,classes\npets/rex.JPG,dog;sofa\npets/猫 1.webp,cat\nempty.png,\n'
    dataset = open_dataset(write_csv(tmp_path, text), tmp_path / 'photos')
    assert dataset.class_names == ('cat', 'dog', 'sofa')
    assert dataset.lists == ('train_aug', 'train')
    assert dataset.ids('train_aug') == dataset.ids('train') == ['pets__rex', 'pets__猫 1', 'empty']
    assert dataset.image_path('pets__rex') == tmp_path / 'photos/pets/rex.JPG'
    assert [dataset.read_labels(i).tolist() for i in dataset.ids('train')] == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert dataset.mask_path('empty') is None
    assert dataset.ids_with_masks('train') == []
    with pytest.raises(UserError, match='domain \'val\': the data set "labels" has the lists train_aug, train'):
        dataset.ids('val')


def test_splits_and_masks(tmp_path):
    text = (
        'Image, Classes ,mask,split,photographer\na.jpg,x,m/a.png,train,me\nb.jpg,y,,val\nc.jpg,x,,test\n'
        'd.jpg,x,,train_aug\ne.jpg,y,,\n'
    )
    (tmp_path / 'm').mkdir()
    Image.fromarray(np.array([[0, 2]], np.uint8)).save(tmp_path / 'm/a.png')
    dataset = open_dataset(write_csv(tmp_path, text), tmp_path)
    lists = {domain: dataset.ids(domain) for domain in dataset.lists}
    assert lists == {'train_aug': ['a', 'd', 'e'], 'train': ['a', 'e'], 'val': ['b'], 'test': ['c']}
    assert dataset.ids_with_masks('train') == ['a']
    assert dataset.read_mask('a').tolist() == [[0, 2]]
    (tmp_path / 'm/a.png').unlink()
    with pytest.raises(UserError, match=r'm/a.png: no such file \(1 of 1 are missing\)'):
        dataset.ids_with_masks('train')


def test_first_line_fixes_the_classes(tmp_path):
    path = write_csv(tmp_path, '# classes: zebra; ant\nimage,classes\na.jpg,ant\n')
    assert open_dataset(path, tmp_path).class_names == ('zebra', 'ant')
    dataset = open_dataset(write_csv(tmp_path, '# classes: zebra\nimage,classes\na.jpg,ant\n'), tmp_path)
    with pytest.raises(UserError, match=r"labels.csv, line 3: 'ant' is not a class of the data set"):
        dataset.read_labels('a')


def test_json_of_the_same_name_fixes_classes_palette_and_name(tmp_path):
    path = write_csv(tmp_path, 'image,classes\na.jpg,ant\n')
    (tmp_path / 'labels.json').write_text(
        json.dumps({'name': 'zoo', 'classes': ['bee', 'ant'], 'palette': [[0, 0, 0], [1, 2, 3]]})
    )
    dataset = open_dataset(path, tmp_path)
    assert (dataset.name, dataset.class_names) == ('zoo', ('bee', 'ant'))
    assert dataset.palette[1].tolist() == [1, 2, 3]
    with pytest.raises(UserError, match=r'needs the entries "classes" and "lists" \(pass .*labels.csv itself\)'):
        open_dataset(tmp_path / 'labels.json', tmp_path)


@pytest.mark.parametrize('what', ['broken link', 'folder', 'FIFO'])
def test_a_json_of_the_same_name_that_cannot_be_read_is_named(tmp_path, what):
    """It may say what the masks and pixels mean."""
    path = tmp_path / 'labels.json'
    make = {'broken link': lambda: path.symlink_to('gone'), 'folder': path.mkdir, 'FIFO': lambda: os.mkfifo(path)}
    make[what]()
    with pytest.raises(UserError, match=re.escape(f'dataset {path}: cannot be read (')):
        open_dataset(write_csv(tmp_path, 'image,classes\na.jpg,cat\n'), tmp_path)


@pytest.mark.parametrize(
    'text, part',
    [
        ('', 'needs a header with the columns image and classes'),
        ('image,kind\na.jpg,x\n', 'needs a header with the columns image and classes'),
        ('image,classes\n', 'has no rows'),
        ('image,classes\n,x\n', 'line 2 names no image'),
        ('image,classes\na.jpg,x,y\n', 'line 2 has 3 columns, the header 2 (names with commas need quotes)'),
        (
            'image,classes,split\na.jpg,x,\n\na.jpg,y,val\n',
            'a.jpg is in line 2 and again in line 4, with another split',
        ),
        ('image,classes\nb/a.jpg,x\nb__a.png,x\n', "b/a.jpg (line 2) and b__a.png (line 3) both have the image id"),
        ('image,classes\na.jpg,x\na.JPG,x\n', "a.jpg (line 2) and a.JPG (line 3) both have the image id 'a'"),
        ('image,classes\n../a.jpg,x\n', "line 2: '../a.jpg' is not a relative path of an image"),
        ('image,classes,mask\na.jpg,x,/m.png\n', "line 2: '/m.png' is not a path relative to --data_dir"),
        ('image,classes,split\na.jpg,x,training\n', "line 2: the split 'training' is not one of train, train_aug, "),
        ('image,classes\na.jpg,\n', 'no row names a class'),
        ('image,classes\na.jpg,background\n', 'line 2: background is not a class: leave the cell'),
        ('image,classes\na.jpg,Background\n', 'line 2: background is not a class: leave the cell'),
        ('image,classes\n"a\nb.jpg",x\n', "line 2: 'a\\nb.jpg' contains control characters: rename the file"),
    ],
)  # fmt: skip
def test_wrong_tables_are_named(tmp_path, text, part):
    assert part in refusal(tmp_path, text)


def test_tables_that_are_not_text(tmp_path):
    (tmp_path / 'a.csv').write_bytes(b'image,classes\n\xff\xfe,x\n')
    with pytest.raises(UserError, match='a.csv: is not UTF-8 text, but ANSI .* in line 2: save it as "CSV UTF-8"'):
        open_dataset(tmp_path / 'a.csv', tmp_path)
    with pytest.raises(UserError, match='b.csv: cannot be read'):
        open_dataset(tmp_path / 'b.csv', tmp_path)


def test_quotes_line_ends_and_byte_order_mark_of_spreadsheets(tmp_path):
    path = tmp_path / 'labels.csv'
    path.write_bytes('\ufeffimage,classes\r\n"my, cat.jpg","big cat; dog;dog"\r\n\r\nsub\\b.jpg,dog\r\n'.encode())
    dataset = open_dataset(path, tmp_path)
    assert dataset.class_names == ('big cat', 'dog')
    assert dataset.ids('train') == ['my, cat', 'sub__b']
    assert dataset.image_path('sub__b') == tmp_path / 'sub/b.jpg'


@pytest.mark.parametrize('text', ['# classes: dog;cat\nimage,classes\na.jpg,dog\n', 'image,dog,cat\na.jpg,1,0\n'])
def test_classes_of_the_file_and_of_the_json_beside_it_must_agree(tmp_path, text):
    path = write_csv(tmp_path, text)
    (tmp_path / 'labels.json').write_text('{"classes": ["cat", "dog"]}')
    with pytest.raises(UserError, match='labels.csv: has other classes, or another order, than "classes" in .*json'):
        open_dataset(path, tmp_path)
    (tmp_path / 'labels.json').write_text('{"classes": ["dog", "cat"]}')
    assert open_dataset(path, tmp_path).class_names == ('dog', 'cat')


def test_as_many_classes_as_a_mask_can_have(tmp_path):
    names = [f'c{i:03d}' for i in range(255)]
    text = 'image,classes\n' + ''.join(f'{name}.jpg,{name}\n' for name in names)
    assert '"classes" must be 1 to 254' in refusal(tmp_path, text)
    dataset = open_dataset(write_csv(tmp_path, text[: text.index('c254')]), tmp_path)
    assert dataset.num_classes == 254
    assert dataset.read_labels('c253').argmax() == 253


def test_first_error_and_their_number(tmp_path):
    path = write_csv(tmp_path, '# classes: x\nimage,classes\na.jpg,x\nb.jpg,y\nc.jpg,z\n')
    dataset = open_dataset(path, tmp_path)
    with pytest.raises(UserError) as error:
        dataset.read_all_labels(dataset.ids('train'))
    assert str(error.value) == (
        f'{path}, line 4: \'y\' is not a class of the data set "labels" '
        '(2 of 3 labels are wrong: python3 -m tools.check_dataset lists them)'
    )
    with pytest.raises(UserError, match=r'a.jpg: no such file \(3 of 3 are missing\)'):
        dataset.ids('train', with_images=True)


# Other layouts of a JSON --------------------------------------------------------------------------------------------


def write_json(folder, **entries):
    content = {'classes': ['cat', 'dog'], 'lists': {'train': 'train.txt'}, **entries}
    (folder / 'set.json').write_text(json.dumps(content))
    return folder / 'set.json'


@pytest.mark.parametrize(
    'table', ['id,classes\na,dog;cat\nb,\n', 'image,classes\nphotos/a.png,dog;cat\nphotos/b.png,\n']
)
def test_templates_and_labels(tmp_path, table):
    (tmp_path / 'train.txt').write_text('a\nb\n')
    write_csv(tmp_path, table)
    path = write_json(tmp_path, images='photos/{id}.png', masks='m/{id}_mask.png', labels='labels.csv')
    dataset = open_dataset(path, tmp_path / 'root')
    assert dataset.image_path('a') == tmp_path / 'root/photos/a.png'
    assert dataset.mask_path('a') == tmp_path / 'root/m/a_mask.png'
    assert dataset.read_all_labels(['a', 'b']).tolist() == [[1, 1], [0, 0]]
    with pytest.raises(UserError, match=r"labels.csv: has no row for the image 'c'"):
        dataset.read_labels('c')


@pytest.mark.parametrize(
    'entries, part',
    [
        ({'images': 'photos/a.jpg'}, '"images" must be a path with {id} in it'),
        ({'masks': 3}, '"masks" must be a path with {id} in it'),
        ({'labels': ['a']}, '"labels" must name a CSV file'),
        ({'labels': 'nowhere.csv'}, 'nowhere.csv: cannot be read'),
        ({'mask_values': {}}, '"mask_values" must map values'),
        ({'mask_values': {'red': 'cat'}}, '"mask_values" must have only whole numbers or only colours'),
        ({'mask_values': {'1': 'cat', '#ff0000': 'dog'}}, '"mask_values" must have only whole numbers or only colours'),
        ({'mask_values': {'1': 'cow'}}, '"mask_values" must name classes, "background" or "ignore", not \'cow\''),
        ({'mask_values': {'1': 2}}, '"mask_values" must name classes'),
    ],
)
def test_wrong_entries_are_named(tmp_path, entries, part):
    with pytest.raises(UserError) as error:
        open_dataset(write_json(tmp_path, **entries), tmp_path)
    assert part in str(error.value)
    assert '\n' not in str(error.value)


# Values of masks ----------------------------------------------------------------------------------------------------


def read_mask(folder, picture: Image.Image, values: dict) -> np.ndarray:
    (folder / 'train.txt').write_text('a\n')
    dataset = open_dataset(write_json(folder, masks='{id}.png', mask_values=values), folder)
    picture.save(folder / 'a.png')
    return dataset.read_mask('a').tolist()


GREY = np.array([[0, 255, 128]], np.uint8)
BINARY = {'0': 'background', '255': 'dog', '128': 'ignore'}
COLOURS = np.array([[[0, 0, 0], [255, 0, 0], [0, 128, 0]]], np.uint8)


@pytest.mark.parametrize(
    'picture, values',
    [
        (Image.fromarray(GREY), BINARY),
        (Image.fromarray(GREY.astype(np.uint16)), BINARY),
        (Image.fromarray(GREY).convert('RGB'), BINARY),
        (Image.fromarray(GREY).convert('RGBA'), BINARY),
        (Image.fromarray(GREY).convert('LA'), BINARY),
        (Image.fromarray(COLOURS), {'#000000': 'background', '#FF0000': 'dog', '#008000': 'ignore'}),
        (Image.fromarray(COLOURS).quantize(4), {'#000000': 'background', '#ff0000': 'dog', '#008000': 'ignore'}),
    ],
)
def test_values_and_colours_of_masks(tmp_path, picture, values):
    assert read_mask(tmp_path, picture, values) == [[0, 2, 255]]


def test_masks_of_one_bit(tmp_path):
    assert read_mask(tmp_path, Image.fromarray(GREY == 255), {'0': 'background', '1': 'cat'}) == [[0, 1, 0]]


def test_repeated_rows_of_labels_are_named(tmp_path):
    (tmp_path / 'train.txt').write_text('a\n')
    write_csv(tmp_path, 'id,classes\na,cat\na,\n')
    with pytest.raises(UserError, match='labels.csv: a is in line 2 and again in line 3, once without classes'):
        open_dataset(write_json(tmp_path, labels='labels.csv'), tmp_path)


def test_scored_labels(tmp_path):
    """Tags are scored on val if its images are there and labelled, else on train."""
    for name in 'abc':
        draw_image(tmp_path / f'{name}.jpg')
    text = 'image,classes,split\na.jpg,x,train\nb.jpg,{},val\nc.jpg,y,val\n'
    dataset = open_dataset(write_csv(tmp_path, text.format('y')), tmp_path)
    domain, ids, labels = dataset.scored_labels()
    assert (domain, ids, labels.tolist()) == ('val', ['b', 'c'], [[0, 1], [0, 1]])
    (tmp_path / 'c.jpg').unlink()
    assert dataset.scored_labels()[0] == 'train'
    unlabelled = open_dataset(write_csv(tmp_path, text.format('').replace('c.jpg,y', 'a2.jpg,')), tmp_path)
    draw_image(tmp_path / 'a2.jpg')
    assert unlabelled.scored_labels()[0] == 'train'


def test_values_without_meaning_are_named(tmp_path):
    with pytest.raises(UserError, match='a.png: contains 128, which "mask_values" does not name'):
        read_mask(tmp_path, Image.fromarray(GREY), {'0': 'background', '255': 'cat'})
    with pytest.raises(UserError, match='a.png: contains #008000, which "mask_values" does not name'):
        read_mask(tmp_path, Image.fromarray(COLOURS), {'#000000': 'background', '#ff0000': 'cat'})
    with pytest.raises(UserError, match='a.png: is coloured, but "mask_values" has no colours'):
        read_mask(tmp_path, Image.fromarray(COLOURS), BINARY)


def test_outputs_are_class_indices_whatever_the_masks_are(tmp_path):
    (tmp_path / 'train.txt').write_text('a\n')
    dataset = open_dataset(write_json(tmp_path, mask_values=BINARY), tmp_path)
    (tmp_path / 'label.png').write_bytes(dataset.encode_label_map(np.array([[0, 1, 2, 255]])))
    assert dataset.read_label_map(tmp_path / 'label.png').tolist() == [[0, 1, 2, 255]]


def test_several_values_may_be_one_class():
    values = MaskValues.parse({'0': 'background', '3': 'cat', '7': 'cat'}, ('cat',))
    assert values.read(Image.fromarray(np.array([[0, 3, 7]], np.uint8))).tolist() == [[0, 1, 1]]


# Photographs of every kind ------------------------------------------------------------------------------------------


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    write_csv(tmp_path, 'image,classes\na.png,cat\n')
    dataset = open_dataset(tmp_path / 'labels.csv', tmp_path)
    assert np.array(dataset.read_image('a')).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_of_an_animation_the_data_set_names_a_picture(tmp_path):
    first, second = (draw_image(tmp_path / f'{i}.png', (20, 10), seed=i) for i in range(2))
    first.save(tmp_path / 'a.webp', save_all=True, append_images=[second], lossless=True)
    write_csv(tmp_path, 'image,classes\na.webp,cat\n')
    with pytest.raises(UserError, match='a.webp: has 2 planes: pass --plane'):
        open_dataset(tmp_path / 'labels.csv', tmp_path).read_image('a')
    (tmp_path / 'labels.json').write_text('{"plane": 2}')
    found = open_dataset(tmp_path / 'labels.csv', tmp_path).read_image('a')
    assert np.array_equal(np.array(found), np.array(second.convert('RGB')))
