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


def images_in(folder, *names: str) -> Images:
    """Return the images of photos/ with copies of one of them under more names."""
    for name in names:
        path = folder / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((folder / 'photos/empty.jpg').read_bytes())
    dataset = open_photographs(folder / 'photos', ('cat',))
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
    assert images.find_all([name]) == [image_id]


@pytest.mark.parametrize('name', ['', '/', '..', 'bob.jpg', 'x-rex.jpg', 'rex.jpg/x', 'ex.jpg', 'tom', '\0', '?d=rex'])
def test_names_of_nothing(images, name):
    (error,) = images.find_all([name])
    assert 'is not an image of the data set' in str(error)


def test_names_that_are_several_images_need_their_folder(images, in_tmp):
    several = images_in(in_tmp, 'a/same.jpg', 'b/same.jpg')
    found, error = several.find_all(['x/a/same.jpg', 'same.jpg'])
    assert found == 'a__same'
    assert str(error) == "'same.jpg' may be a/same.jpg and b/same.jpg: their names must differ"


def test_the_end_of_another_path_is_exact_if_that_path_is_there_too(images, in_tmp):
    """A file of a tool that leaves out folders has no name with a folder."""
    several = images_in(in_tmp, 'a.jpg', 'sub/a.jpg', 'x/sub/a.jpg', 'y/b.jpg', 'z/b.jpg', 'c.jpg', 'c.jpg.jpg')
    for start in ('', '../photos/', 'train/', '/data/local-files/?d=photos/'):
        names = [f'{start}{name}' for name in ('a.jpg', 'sub/a.jpg', 'x/sub/a.jpg')]
        assert several.find_all(names) == ['a', 'sub__a', 'x__sub__a']
    assert several.find_all(['x/sub/a.png', 'sub/a', 'a']) == ['x__sub__a', 'sub__a', 'a']
    assert several.find_all(['c.jpg', 'c.jpg.jpg']) == several.find_all(['c', 'c.jpg']) == ['c', 'c.jpg']
    for alone in (['a.jpg'], ['a.jpg', 'a.jpg'], ['a.jpg', 'x/sub/a.jpg']):
        assert 'may be a.jpg and sub/a.jpg' in str(several.find_all(alone)[0])
    assert 'may be y/b.jpg and z/b.jpg' in str(several.find_all(['b.jpg', 'y/b.jpg'])[0])


def test_other_forms_of_the_same_characters(in_tmp):
    make_photographs(in_tmp)
    (in_tmp / 'photos/empty.jpg').rename(in_tmp / 'photos/e\u0301t\u00e9.jpg')
    dataset = open_photographs(in_tmp / 'photos', ('cat',))
    assert name_of(dataset, Images(dataset, dataset.ids('train')).find_all(['\u00e9te\u0301.jpg'])[0]).endswith('.jpg')


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
