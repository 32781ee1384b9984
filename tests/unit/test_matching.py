"""tools/exchange/matching.py: which image and which class a name of another program means."""

import pytest

from core import IGNORE
from support.labelling import EMPTY, REX, TOM, make_photographs
from tools.exchange.matching import Classes, Images, name_of
from tools.exchange.photographs import open_photographs


@pytest.fixture
def images(in_tmp) -> Images:
    make_photographs(in_tmp)
    dataset = open_photographs(in_tmp / 'photos', ('cat',))
    return Images(dataset, dataset.ids('train'))


@pytest.mark.parametrize(
    'name, image_id',
    [
        ('holiday/rex.jpg', REX),
        ('rex.jpg', REX),
        ('rex', REX),
        ('holiday/rex', REX),
        ('holiday__rex', REX),
        ('holiday__rex.png', REX),
        ('rex.png', REX),
        ('../../photos/holiday/rex.jpg', REX),
        ('..\\photos\\holiday\\rex.jpg', REX),
        ('C:\\Users\\me\\photos\\holiday\\rex.jpg', REX),
        ('train/holiday__rex', REX),
        ('/data/local-files/?d=photos/holiday/rex.jpg', REX),
        ('/data/local-files/?d=b%20c/tom%201.5.png', TOM),
        ('/data/upload/3/1a2b3c4d-rex.jpg', REX),
        ('1a2b3c4d-empty.jpg', EMPTY),
        ('https://server/bucket/holiday/rex.jpg?token=x%2Fy', REX),
        ('s3://bucket/holiday/rex.jpg', REX),
        ('b c/tom 1.5', TOM),
        ('tom 1.5', TOM),
        ('b c__tom 1.5', TOM),
        ('tom%201.5.png', TOM),
    ],
)
def test_names_of_images(images, name, image_id):
    assert images.find(name) == image_id


@pytest.mark.parametrize('name', ['', '/', '..', 'bob.jpg', 'x-rex.jpg', 'rex.jpg/x', 'ex.jpg', 'tom', '\0', '?d=rex'])
def test_names_of_nothing(images, name):
    with pytest.raises(ValueError, match='is not an image of the data set'):
        images.find(name)


def test_names_that_are_several_images_need_their_folder(images, in_tmp):
    for folder in ('a', 'b'):
        (in_tmp / 'photos' / folder).mkdir()
        (in_tmp / 'photos' / folder / 'same.jpg').write_bytes((in_tmp / 'photos/empty.jpg').read_bytes())
    dataset = open_photographs(in_tmp / 'photos', ('cat',))
    several = Images(dataset, dataset.ids('train'))
    assert several.find('x/a/same.jpg') == 'a__same'
    with pytest.raises(ValueError, match="'same.jpg' may be a/same.jpg and b/same.jpg: their names must differ"):
        several.find('same.jpg')


def test_other_forms_of_the_same_characters(in_tmp):
    make_photographs(in_tmp)
    (in_tmp / 'photos/empty.jpg').rename(in_tmp / 'photos/e\u0301t\u00e9.jpg')
    dataset = open_photographs(in_tmp / 'photos', ('cat',))
    assert name_of(dataset, Images(dataset, dataset.ids('train')).find('\u00e9te\u0301.jpg')).endswith('.jpg')


def test_classes():
    classes = Classes(('cat', 'caf\u00e9'), {'kitty': 'cat', 'void': 'ignore', 'other': 'background'})
    assert [classes.find(name) for name in ('cat', ' cat ', 'cafe\u0301', 'kitty')] == [1, 1, 2, 1]
    assert [classes.find(name) for name in ('background', 'other', 'ignore', 'void')] == [0, 0, IGNORE, IGNORE]
    assert [classes.find(name) for name in ('Cat', 'dog', '')] == [None] * 3
    assert (classes.near('Cats'), classes.near('zebra')) == ('cat', None)


def test_a_class_may_have_the_name_of_ignored_pixels():
    classes = Classes(('ignore', 'cat'), {})
    assert (classes.find('ignore'), classes.find(None)) == (1, IGNORE)


def test_photographs_of_a_folder(in_tmp):
    make_photographs(in_tmp)
    (in_tmp / 'photos/notes.txt').write_text('x')
    (in_tmp / 'photos/.hidden').mkdir()
    (in_tmp / 'photos/.hidden/x.jpg').write_bytes(b'x')
    dataset = open_photographs(in_tmp / 'photos', ('cat',))
    assert sorted(dataset.ids('train')) == sorted([REX, TOM, EMPTY])
    assert dataset.image_path(REX).is_file()
    assert name_of(dataset, TOM) == 'b c/tom 1.5.png'
