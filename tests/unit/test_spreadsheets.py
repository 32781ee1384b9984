"""CSV data sets as spreadsheets and other programs write them: no label is lost or invented."""

import json
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from core import DataWarning, UserError
from core.data.dataset import open_dataset
from core.data.entries import look_alikes
from core.data.images import MaskValues, find_file
from support import draw_image, fault_of
from tools import show
from util import flags

NFC, NFD = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))


def open_text(folder, text):
    (folder / 'labels.csv').write_text(text, encoding='utf-8')
    return open_dataset(folder / 'labels.csv', folder)


def tags(folder, text) -> dict[str, list[str]]:
    dataset = open_text(folder, text)
    return {image_id: dataset.source.read_tags(image_id) for image_id in dataset.ids('train')}


@pytest.mark.parametrize(
    'text',
    [
        'image,classes\na.jpg,dog;cat,\nb.jpg,cat,,\n',  # trailing cells
        'image;classes\na.jpg;dog,cat\nb.jpg;cat\n',
        'image;classes;\na.jpg;"dog;cat";\nb.jpg;cat;\n',
        'image\tclasses\na.jpg\tdog;cat\nb.jpg\tcat\n',
        'sep=;\nimage;classes\na.jpg;dog,cat\nb.jpg;cat\n',
        '\ufeffsep=;\r\nimage;classes\r\na.jpg;dog,cat\r\nb.jpg;cat\r\n',
        'image,classes\na.jpg,dog\na.jpg,cat\nb.jpg,cat\n',  # a row for each object
        'image,classes,note\na.jpg,dog;cat\nb.jpg,cat,x\n',
    ],
)
def test_separators_and_rows(tmp_path, text):
    assert tags(tmp_path, text) == {'a': ['dog', 'cat'], 'b': ['cat']}


@pytest.mark.parametrize(
    'line', ['# classes: dog;cat', '# classes: dog;cat,,,', '"# classes: dog;cat",,', '# classes: dog; cat ,']
)
def test_comment_lines_may_be_padded(tmp_path, line):
    dataset = open_text(tmp_path, f'{line}\nimage,classes,note,\na.jpg,dog,x,\nb.jpg,cat,,\n')
    assert dataset.class_names == ('dog', 'cat')
    assert str(dataset.labels_path('b')).endswith('labels.csv, line 4')


@pytest.mark.parametrize('line', ['# classes: dog;cat;;', '"# classes: dog;cat";;', '# classes: dog;cat'])
def test_comment_lines_of_files_with_semicolons(tmp_path, line):
    assert open_text(tmp_path, f'{line}\nimage;classes;note\na.jpg;dog;\n').class_names == ('dog', 'cat')


@pytest.mark.parametrize(
    'text, said',
    [
        ('image,classes,classes\na.jpg,dog,cat\n', 'line 1 has 2 columns "classes"'),
        ('# classes: x\nimage,Image ,classes\na.jpg,,x\n', 'line 2 has 2 columns "image"'),
        (
            'image,classes,note\na.jpg\nb.jpg,cat,\n',
            'line 2 has 1 column, the header 3: an image without classes needs an empty cell for them',
        ),
        ('image,mask,classes\nb.jpg,m.png,cat\na.jpg,m.png\n', 'line 3 has 2 columns, the header 3: an image without'),
        ('"image,classes"\n"a.jpg,dog"\n', "line 1 has one column, 'image,classes'"),
        ('image,classes\na.jpg,"dog\ncat"\n', "line 2: 'dog\\ncat' contains control characters: join classes by ';'"),
        ('image,classes\na.jpg,dog\x1b[2J\n', "line 2: 'dog\\x1b[2J' contains control characters"),
        ('image,classes,mask\na.jpg,dog,m\x07.png\n', "line 2: 'm\\x07.png' contains control characters: rename"),
        ('# classes: a\x1b[2J\nimage,classes\na.jpg,\nb.jpg,b\n', "the class 'a\\x1b[2J' contains control characters"),
        ('image,classes\nb.jpg,cat\na.jpg,background\n', 'line 3: background is not a class: leave the cell'),
        ('image,classes\na.jpg,dog\na.jpg,\n', 'a.jpg is in line 2 and again in line 3, once without classes'),
        ('image,classes,mask\na.jpg,dog,m.png\na.jpg,dog,n.png\n', 'again in line 3, with another mask'),
        (
            'image,class,label\na.jpg,dog,cat\n',
            'line 1 has the columns "class" and "label": call one of them "classes"',
        ),
        ('image,dog,note\na.jpg,1,x\n', "line 2 has 'x' in the column 'note': a class has 0 or 1 in its column"),
        ('image,dog,cat\na.jpg,1\n', 'line 2 has 2 columns, the header 3'),
        ('image,dog,dog\na.jpg,1,1\n', 'line 1 has 2 columns "dog"'),
    ],
)
def test_errors_name_the_line(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        open_text(tmp_path, text)
    assert said in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    'text',
    [
        'filename, dog, cat\na.jpg, 1, 1\nb.jpg, 0, 1\n',  # _classes.csv of Roboflow
        'image;mask;dog;cat;\na.jpg;;1;1;\nb.jpg;;0;1;\n',
        'image,dog,cat\na.jpg,True,true\nb.jpg,FALSE,1.0\n',
    ],
)
def test_a_column_for_each_class(tmp_path, text):
    dataset = open_text(tmp_path, text)
    assert dataset.class_names == ('dog', 'cat')
    assert tags(tmp_path, text) == {'a': ['dog', 'cat'], 'b': ['cat']}


def test_columns_of_classes_keep_their_case_and_may_be_joined_by_object(tmp_path):
    dataset = open_text(tmp_path, 'filename,Big Cat,dog\na.jpg,1,0\na.jpg,0,1\nb.jpg,0,0\n')
    assert dataset.class_names == ('Big Cat', 'dog')
    assert dataset.read_all_labels(['a', 'b']).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(
    'header', ['filename,class', 'file_name,label', 'path,tags', 'Image,Label', 'image,filename,classes,label']
)
def test_other_names_of_the_columns(tmp_path, header):
    cells = ['a.jpg', 'x.jpg', 'dog;cat', 'x'] if header.count(',') > 1 else ['a.jpg', 'dog;cat']
    assert tags(tmp_path, f'{header}\n{",".join(cells)}\n') == {'a': ['dog', 'cat']}


def test_a_row_for_each_box_of_roboflow(tmp_path):
    rows = ['a.jpg,64,48,dog,1,2,9,9', 'a.jpg,64,48,cat,1,2,9,9', 'b.jpg,64,48,cat,1,2,9,9']
    text = '\n'.join(['filename,width,height,class,xmin,ymin,xmax,ymax', *rows])
    assert tags(tmp_path, text) == {'a': ['dog', 'cat'], 'b': ['cat']}


@pytest.mark.parametrize(
    'cell',
    [
        {'choices': ['dog', 'cat']},
        [
            {'x': 1, 'rectanglelabels': ['dog']},
            {'x': 2, 'rectanglelabels': ['cat']},
            {'x': 3, 'rectanglelabels': ['dog']},
        ],
        [{'brushlabels': ['dog', 'cat'], 'format': 'rle', 'rle': [1, 2]}, {'x': 3, 'original_width': 64}],
        ['dog', 'cat'],
    ],
)
def test_cells_of_label_studio(tmp_path, cell):
    quoted = json.dumps(cell).replace('"', '""')
    assert tags(tmp_path, f'image,label\na.jpg,"{quoted}"\nb.jpg,[]\n') == {'a': ['dog', 'cat'], 'b': []}


@pytest.mark.parametrize(
    'cell',
    ['{"taxonomy": [["dog"]]}', '[["dog"]]', '{"choices": 5}', '{"choices": [5]}', '{"choices": ["dog",'],
)
def test_cells_of_label_studio_without_names(tmp_path, cell):
    quoted = cell.replace('"', '""')
    with pytest.raises(UserError, match='labels.csv: line 2: .* is neither {"choices": '):
        open_text(tmp_path, f'image,label\na.jpg,"{quoted}"\n')


@pytest.mark.parametrize(
    'address',
    [
        '/data/upload/3/0a1b2c3d-my%20dog.jpg',
        '/data/local-files/?d=elsewhere/pets/my%20dog.jpg',
        's3://bucket/pets/my dog.jpg',
        'https://example.org/media/my%20dog.jpg',
    ],
)
def test_addresses_of_label_studio_are_found_in_the_folder(tmp_path, address):
    draw_image(tmp_path / 'pets' / 'my dog.jpg')
    draw_image(tmp_path / 'my dog.jpg')
    (image_id,) = open_text(tmp_path, f'image,choice\n{address},dog\n').ids('train', with_images=True)
    assert image_id == ('pets__my dog' if 'pets' in address else 'my dog')


def test_two_addresses_of_one_photograph(tmp_path):
    """Label Studio tells uploads of one name apart by their digits, which a folder of photographs lacks."""
    draw_image(tmp_path / 'a.jpg')
    first, second = '/data/upload/1/0a1b2c3d-a.jpg', '/data/upload/1/0a1b2c3e-a.jpg'
    assert tags(tmp_path, f'image,choice\n{first},dog\n{first},cat\n') == {'a': ['dog', 'cat']}
    with pytest.raises(UserError, match=f'line 3: {first} and {second} both lead to a.jpg: give the photographs'):
        open_text(tmp_path, f'image,choice\n{first},dog\n{second},cat\n')


@pytest.mark.parametrize(
    'encoding, what', [('utf-16', 'UTF-16'), ('utf-16-le', 'UTF-16'), ('cp1252', 'ANSI .* in line 3')]
)
def test_other_encodings_are_named(tmp_path, encoding, what):
    (tmp_path / 'labels.csv').write_bytes('image,classes\r\na.jpg,dog\r\ncafé.jpg,dog\r\n'.encode(encoding))
    with pytest.raises(UserError, match=f'is not UTF-8 text, but {what}.*: save it as "CSV UTF-8"'):
        open_dataset(tmp_path / 'labels.csv', tmp_path)


def test_a_zero_byte_is_not_another_encoding(tmp_path):
    with pytest.raises(UserError, match='line 3: .*x00.* contains control characters'):
        open_text(tmp_path, 'image,classes\na.jpg,dog\nb.jpg,c\0at\n')


def test_commas_in_names_are_warned_of_unless_confirmed(tmp_path):
    rows = 'image,classes\na.jpg,"dog, cat"\nb.jpg,cat\n'
    with pytest.warns(DataWarning, match="'dog, cat' is a single class: join classes by ';', or confirm the name"):
        assert open_text(tmp_path, rows).class_names == ('cat', 'dog, cat')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert open_text(tmp_path, f'# classes: cat;dog, cat\n{rows}').class_names == ('cat', 'dog, cat')
        (tmp_path / 'labels.json').write_text(json.dumps({'classes': ['cat', 'dog, cat']}))
        assert open_text(tmp_path, rows).num_classes == 2


@pytest.mark.parametrize('other', [NFD, 'caf\u00e9\u200b', 'ca\u00adf\u00e9', 'ｃaf\u00e9', 'c\u0430f\u00e9'])
def test_look_alikes_are_warned_of(tmp_path, other):
    with pytest.warns(DataWarning, match='are different classes that look the same') as caught:
        open_text(tmp_path, f'image,classes\na.jpg,{NFC}\nb.jpg,{other}\n')
    assert str(caught[0].message).isascii()
    assert look_alikes(['fire truck', 'x', 'fire\u00a0truck', 'fire  truck', 'Fire truck']) == [
        ['fire truck', 'fire\u00a0truck', 'fire  truck']
    ]
    dataset = open_text(tmp_path, f'# classes: {NFC}\nimage,classes\na.jpg,{other}\n')
    with pytest.raises(
        UserError, match=r"is not a class of the data set .labels., but 'caf.xe9' is, and looks the same"
    ):
        dataset.read_labels('a')


# Names on the disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('listed, on_disk', [(NFC, NFD), (NFD, NFC)])
def test_files_in_another_unicode_form_are_found(tmp_path, listed, on_disk):
    photos = tmp_path / on_disk
    photos.mkdir()
    draw_image(photos / f'{on_disk}.jpg', (20, 10))
    Image.fromarray(np.ones((10, 20), np.uint8)).save(photos / f'{on_disk}.png')
    dataset = open_text(tmp_path, f'image,classes,mask\n{listed}/{listed}.jpg,cat,{listed}/{listed}.png\n')
    (image_id,) = dataset.ids('train', with_images=True)
    assert image_id == f'{listed}__{listed}'
    assert dataset.image_path(image_id) == photos / f'{on_disk}.jpg'
    assert dataset.ids_with_masks('train', with_images=True) == [image_id]

    (tmp_path / 'train.txt').write_text(f'{listed}\n')
    (tmp_path / 'tags.csv').write_text(f'id,classes\n{on_disk},cat\n')
    layout = {'images': f'{listed}/{{id}}.jpg', 'masks': f'{listed}/{{id}}.png', 'labels': 'tags.csv'}
    (tmp_path / 'set.json').write_text(json.dumps({'classes': ['cat'], 'lists': {'train': 'train.txt'}, **layout}))
    dataset = open_dataset(tmp_path / 'set.json', tmp_path)
    assert dataset.ids_with_masks('train', with_images=True) == [listed]
    assert dataset.read_labels(listed).tolist() == [1]


def test_missing_files_keep_their_name(tmp_path):
    assert find_file(tmp_path / NFC / 'a.jpg') == tmp_path / NFC / 'a.jpg'


def test_how_to_go_on_without_a_missing_image(tmp_path):
    draw_image(tmp_path / 'a.jpg')
    rows = 'image,classes\na.jpg,x\nb.jpg,x\n'
    with pytest.raises(UserError, match=r'or remove its line from .*labels.csv to go on without$'):
        open_text(tmp_path, rows).ids('train', with_images=True)
    with pytest.raises(UserError, match=r'or remove their lines from .*labels.csv to go on without$'):
        open_text(tmp_path, f'{rows}c.jpg,x\n').ids('train', with_images=True)
    (tmp_path / 'a.jpg').unlink()
    with pytest.raises(UserError, match='check the folder of the data set$'):
        open_text(tmp_path, rows).ids('train', with_images=True)


# Annotations beside the images, masks, flags ------------------------------------------------------------------------


def test_annotations_beside_the_images(tmp_path):
    (tmp_path / 'train').mkdir()
    draw_image(tmp_path / 'train' / 'a.jpg', (20, 10))
    (tmp_path / 'train' / 'a.xml').write_text('<annotation><object><name>dog</name></object></annotation>')
    (tmp_path / 'train.txt').write_text('a\n')
    entries = {'classes': ['cat', 'dog'], 'lists': {'train': 'train.txt'}, 'images': 'train/{id}.jpg'}
    entries |= {'annotations': 'train/{id}.xml'}
    path = tmp_path / 'set.json'
    path.write_text(json.dumps(entries))
    dataset = open_dataset(path, tmp_path)
    assert dataset.read_labels('a').tolist() == [0, 1]
    assert dataset.labels_path('a') == tmp_path / 'train' / 'a.xml'
    path.write_text(json.dumps({**entries, 'annotations': 'train/a.xml'}))
    with pytest.raises(UserError, match='"annotations" must be a path with {id} in it, such as "annotations/{id}.xml"'):
        open_dataset(path, tmp_path)
    path.write_text(json.dumps({**entries, 'labels': 'labels.csv'}))
    with pytest.raises(UserError, match='has both "labels" and "annotations": keep one'):
        open_dataset(path, tmp_path)


def test_a_class_called_ignore_is_not_void():
    with pytest.raises(ValueError, match='not name "ignore"'):
        MaskValues.parse({'0': 'background', '1': 'ignore'}, ('cat', 'ignore'))
    assert MaskValues.parse({'0': 'background', '1': 'cat'}, ('cat', 'ignore')).indices == {0: 0, 1: 1}
    assert MaskValues.parse({'1': 'ignore'}, ('cat',)).indices == {1: 255}


@pytest.mark.parametrize(
    'text, names',
    [
        ('cat, dog', ['cat', 'dog']),
        ('"cat, big",dog', ['cat, big', 'dog']),
        ('dog, "cat, big"', ['dog', 'cat, big']),
        ('5" pipe', ['5" pipe']),
        ('a b\n', ['a b']),
    ],
)
def test_names_in_flags_may_have_commas(text, names):
    assert flags.names(text) == names


@pytest.mark.parametrize('text', ['', ' ', ',', '""', 'a,,b', 'a,', 'a\nb'])
def test_an_empty_name_is_refused(text, capsys):
    """An empty list does not mean all, and later names do not move up."""
    line = fault_of(show, ['folder', '--ids', text], capsys)
    assert line.endswith(f'--ids: {text!r} is not one line of names, separated by commas')
