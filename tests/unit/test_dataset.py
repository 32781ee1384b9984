"""Data sets: the JSON, the lists, image-level labels, and checks of images and masks."""

import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core import DataWarning, UserError
from core.data import voc
from core.data.dataset import open_dataset
from core.data.images import encode_label_map
from support import REPOSITORY, draw_image, voc_xml

VOC = REPOSITORY / 'data' / 'voc2012.json'
NAMES = (
    'aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep '
    'sofa train tvmonitor'
).split()
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_one_line(error) -> str:
    text = str(error.value)
    assert text
    assert '\n' not in text
    return text


# The JSON -----------------------------------------------------------------------------------------------------------


def test_voc_2012(tmp_path):
    dataset = open_dataset(VOC, tmp_path)
    assert list(dataset.class_names) == NAMES
    assert dataset.num_classes == 20
    assert dataset.root == tmp_path
    lengths = {domain: len(dataset.ids(domain)) for domain in dataset.lists}
    assert lengths == {'train': 1464, 'train_aug': 10582, 'val': 1449, 'test': 1456}
    train, train_aug, val, test = (set(dataset.ids(d)) for d in ('train', 'train_aug', 'val', 'test'))
    assert train < train_aug
    assert not val & train_aug
    assert not test & (train_aug | val)
    assert np.array_equal(dataset.palette, voc.palette())


def write_json(folder, **entries):
    content = {'classes': ['car', 'dog', 'sheep'], 'lists': {'train': 'train.txt'}, **entries}
    (folder / 'set.json').write_text(json.dumps(content))
    return folder / 'set.json'


def write_list(folder, *ids: str):
    """Write the list "train" of a data set whose root is the same folder; return the data set."""
    (folder / 'train.txt').write_text('\n'.join([*ids, '']))
    return open_dataset(write_json(folder), folder)


def test_lists_are_relative_to_the_json_and_a_palette_replaces_vocs(tmp_path):
    (tmp_path / 'lists').mkdir()
    (tmp_path / 'lists' / 'train.txt').write_text('a\nb\nc\n\n')
    path = write_json(tmp_path, palette=[[9, 8, 7], [1, 2, 3]], lists={'train': 'lists/train.txt'})
    dataset = open_dataset(path, '/nowhere')
    assert dataset.ids('train') == ['a', 'b', 'c']
    assert dataset.palette[:2].tolist() == [[9, 8, 7], [1, 2, 3]]
    assert np.array_equal(dataset.palette[2:], voc.palette()[2:])
    assert dataset.name == 'set'
    assert open_dataset(write_json(tmp_path, name='drawn'), '/nowhere').name == 'drawn'


def write_covered(folder, *ids: str, **entries):
    """Write a data set without a background; return it."""
    write_list(folder, *ids)
    return open_dataset(write_json(folder, background=False, **entries), folder)


def test_without_a_background_labels_keep_their_values(tmp_path):
    """Class k is k + 1 with and without a background, so that no label map can be read as one of the other kind."""
    dataset = write_covered(tmp_path, 'a', palette=[[1, 2, 3], [4, 5, 6]])
    assert (dataset.num_classes, dataset.first_label) == (3, 1)
    assert dataset.label_names == ('', 'car', 'dog', 'sheep')
    assert dataset.palette[:4].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6], voc.palette()[3].tolist()]
    assert dataset.class_entries == {'classes': ('car', 'dog', 'sheep'), 'background': False}
    other = write_list(tmp_path, 'a')
    assert (other.first_label, other.label_names[0]) == (0, 'background')
    assert other.class_entries == {'classes': ('car', 'dog', 'sheep')}


def test_masks_without_a_background_have_no_0(tmp_path):
    dataset = write_covered(tmp_path, 'a', masks='{id}.png', labels='masks')
    label = np.array([[1, 3, 255]], np.uint8)
    Image.fromarray(label).save(tmp_path / 'a.png')
    assert np.array_equal(dataset.read_mask('a'), label)
    assert dataset.read_labels('a').tolist() == [1, 0, 1]
    assert dataset.ids_with_masks('train') == ['a']
    Image.fromarray(label % 255).save(tmp_path / 'a.png')
    for read in (dataset.read_mask, lambda _: dataset.read_label_map(tmp_path / 'a.png')):
        with pytest.raises(
            UserError, match='a.png: contains 0, but without a background the classes have the'
        ) as error:
            read('a')
        assert '"mask_values" of the data set names other values: {"0": CLASS or "ignore"}' in assert_one_line(error)
    values = {'0': 'sheep', '1': 'background', '3': 'car'}
    dataset = write_covered(tmp_path, 'a', masks='{id}.png', mask_values=values)
    assert dataset.read_mask('a').tolist() == [[255, 1, 3]]


def test_without_a_background_every_image_has_a_class(tmp_path):
    (tmp_path / 'labels.csv').write_text('id,classes\na,dog\nb,\n')
    dataset = write_covered(tmp_path, 'a', 'b', labels='labels.csv')
    assert dataset.read_labels('a').tolist() == [0, 1, 0]
    with pytest.raises(UserError, match='labels.csv: b has no class, but the data set "set" has no background: add'):
        dataset.read_labels('b')


@pytest.mark.parametrize(
    'entries, fault',
    [
        ({'background': 'no'}, '"background" must be true or false'),
        ({'background': 0}, '"background" must be true or false'),
        ({'background': False, 'classes': ['car']}, 'without a background, a data set needs at least two classes'),
    ],
)
def test_wrong_backgrounds(tmp_path, entries, fault):
    path = write_json(tmp_path, **entries)
    with pytest.raises(UserError, match=f'^dataset {path}: {fault}$'):
        open_dataset(path, tmp_path)


@pytest.mark.parametrize(
    'entries',
    [
        {'classes': []},
        {'classes': 'car'},
        {'classes': ['car', 'car']},
        {'classes': ['car', '']},
        {'classes': ['background', 'car']},
        {'classes': [1, 2]},
        {'classes': [str(i) for i in range(255)]},
        {'lists': ['train.txt']},
        {'lists': {'train': 3}},
        {'palette': []},
        {'palette': [[1, 2]]},
        {'palette': 'red'},
        {'palette': [[0, 0, 0]] * 257},
        {'palette': [[300, 0, 0]]},
        {'palette': [[-1, 0, 0]]},
        {'palette': [[0.5, 0.1, 1.0]]},
        {'palette': [10**30, 0, 0]},
        {'palette': [1, 2, 3]},
    ],
    ids=lambda entries: json.dumps(entries)[:30],
)
def test_wrong_entries_of_the_json(tmp_path, entries):
    path = write_json(tmp_path, **entries)
    with pytest.raises(UserError, match=f'^dataset {path}: "{next(iter(entries))}" must') as error:
        open_dataset(path, tmp_path)
    assert_one_line(error)


@pytest.mark.parametrize(
    'content', [b'', b'{', b'[]', b'null', b'{"classes": ["a"]}', b'{"lists": {}}', b'\xff\xfe\x00', b'[' * 100_000]
)
def test_file_that_is_not_a_data_set(tmp_path, content):
    path = tmp_path / 'set.json'
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'^dataset {path}: (is not valid JSON|needs the en|must contain)') as error:
        open_dataset(path, tmp_path)
    assert_one_line(error)
    with pytest.raises(UserError, match='^dataset .*nowhere.json: cannot be read'):
        open_dataset(tmp_path / 'nowhere.json', tmp_path)
    with pytest.raises(UserError, match='^dataset .*: needs a folder per class, or files of a labelling tool'):
        open_dataset(tmp_path, tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(classes=json_values, lists=json_values, palette=json_values, name=json_values)
def test_any_json_gives_a_data_set_or_a_user_error(tmp_path, classes, lists, palette, name):
    for entries in ({'classes': classes}, {'lists': lists}, {'palette': palette}, {'name': name}):
        try:
            dataset = open_dataset(write_json(tmp_path, **entries), tmp_path)
        except UserError:
            continue
        for domain in dataset.lists:
            try:
                dataset.ids(domain)
            except UserError:
                pass


# Lists --------------------------------------------------------------------------------------------------------------


def test_one_id_per_line(tmp_path):
    dataset = write_list(tmp_path, 'a', 'my holiday (1)', ' b.c  ', '', 'twice b twice', 'é')
    assert dataset.ids('train') == ['a', 'my holiday (1)', 'b.c', 'twice b twice', 'é']


def test_a_misspelled_entry_is_named(tmp_path):
    write_list(tmp_path, 'a')
    path = write_json(tmp_path, backgroud=False, made_with={})
    with pytest.warns(DataWarning, match="'backgroud' is not an entry: did you mean 'background'") as found:
        open_dataset(path, tmp_path)
    assert len(found) == 1


@pytest.mark.parametrize('content', ['a\r\nb c\r\n', '\ufeffa\nb c', 'a\n\n\nb c\n\n'])
def test_line_endings_and_byte_order_marks(tmp_path, content):
    (tmp_path / 'train.txt').write_bytes(content.encode())
    assert open_dataset(write_json(tmp_path), tmp_path).ids('train') == ['a', 'b c']


@pytest.mark.parametrize(
    'ids, part',
    [
        ('', 'is empty'),
        (' \n', 'is empty'),
        ('../secret', "'../secret' is not a valid image id"),
        ('a/b', "'a/b' is not a valid image id"),
        ('.hidden', "'.hidden' is not a valid image id"),
        ('a\\b', 'is not a valid image id'),
        ('b\n/etc/passwd', "'/etc/passwd' is not a valid image id"),
        ('a\0b', r"'a\\x00b' is not a valid image id"),
        ('a\tb', r"'a\\tb' is not a valid image id"),
        ('twice\nb\ntwice ', "duplicate image id 'twice'"),
        ('a b\na b', "duplicate image id 'a b'"),
    ],
)
def test_unsafe_lists(tmp_path, ids, part):
    (tmp_path / 'train.txt').write_text(ids)
    with pytest.raises(UserError, match=f'^{tmp_path / "train.txt"}: .*{part}') as error:
        open_dataset(write_json(tmp_path), tmp_path).ids('train')
    assert_one_line(error)


def test_missing_or_unreadable_list(tmp_path):
    dataset = open_dataset(write_json(tmp_path), tmp_path)
    with pytest.raises(UserError, match="domain 'val'.* has the lists train"):
        dataset.ids('val')
    with pytest.raises(UserError, match='train.txt: the list "train" cannot be read'):
        dataset.ids('train')
    (tmp_path / 'train.txt').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(UserError, match='train.txt: the list "train" cannot be read'):
        dataset.ids('train')


def test_long_list(tmp_path):
    ids = [f'image {i:05d}' for i in range(20_000)]
    dataset = write_list(tmp_path, *ids)
    assert dataset.ids('train') == ids
    with pytest.raises(UserError, match=r'JPEGImages/image 00000.jpg: no such file \(20000 of 20000 are missing\)'):
        dataset.ids('train', with_images=True)
    with pytest.raises(UserError, match="duplicate image id 'image 00000'"):
        write_list(tmp_path, *ids, ids[0]).ids('train')


@QUICK
@given(content=st.text('ab01_./\\ \n\0\x1b\u00e9', max_size=12).map(str.encode) | st.binary(max_size=12))
def test_ids_of_any_list_stay_in_their_folder(tmp_path, content):
    (tmp_path / 'train.txt').write_bytes(content)
    dataset = open_dataset(write_json(tmp_path), tmp_path)
    try:
        ids = dataset.ids('train')
    except UserError as error:
        assert 'train.txt' in str(error)
        assert '\n' not in str(error)
        return
    assert ids
    assert len(ids) == len(set(ids))
    for image_id in ids:
        path = dataset.image_path(image_id)
        assert path.resolve().parent == tmp_path.resolve() / 'JPEGImages'
        assert not path.is_file()


# Image-level labels -------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    """A data set of the images a and b of 40x30 without annotations and masks."""
    for i, image_id in enumerate('ab'):
        draw_image(tmp_path / 'JPEGImages' / f'{image_id}.jpg', (40, 30), seed=i)
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'SegmentationClass').mkdir()
    return write_list(tmp_path, 'a', 'b')


def read_labels(dataset, text: str | bytes) -> list[float]:
    dataset.labels_path('a').write_bytes(text if isinstance(text, bytes) else text.encode())
    return dataset.read_labels('a').tolist()


def test_labels_are_the_set_of_names(dataset):
    assert read_labels(dataset, voc_xml('sheep', 'car', 'sheep')) == [1, 0, 1]
    labels = dataset.read_labels('a')
    assert (labels.dtype, labels.shape) == (np.float32, (3,))


def test_labels_of_objects_without_boxes_or_size(dataset):
    text = '<annotation><object><name> dog </name></object><object><name>car</name></object></annotation>'
    assert read_labels(dataset, text) == [1, 1, 0]


@pytest.mark.parametrize(
    'text, part',
    [
        (voc_xml('cow'), "'cow' is not a class"),
        (voc_xml('car', 'cow'), "'cow' is not a class"),
        (voc_xml('Car'), "'Car' is not a class"),
        (voc_xml('background'), "'background' is not a class"),
        (voc_xml(''), "'' is not a class"),
        (voc_xml('c\no\nw'), r"'c\no\nw' is not a class"),
        (voc_xml('dog', box=(41, 1, 50, 9)), 'outside the 40x30 image'),
        (voc_xml('dog', size=(0, 0)), '<size> is 0x0, the image is 40x30'),
        (voc_xml('dog', size=(20, 15)), '<size> is 20x15, the image is 40x30'),
        ('<annotation>', 'not a VOC annotation'),
        (('<?xml version="1.0" encoding="utf-16"?>' + voc_xml('cow')).encode('utf-16'), "'cow' is not a class"),
    ],
)
def test_wrong_annotations_are_named(dataset, text, part):
    with pytest.raises(UserError, match='^.*/Annotations/a.xml: ') as error:
        read_labels(dataset, text)
    assert part in assert_one_line(error)


@pytest.mark.parametrize('text', [voc_xml(), '<annotation/>', voc_xml('dog', box=(5, 1, 5, 9))])
def test_images_of_background_alone(dataset, text):
    assert read_labels(dataset, text) == [0, 0, 0]


def test_missing_annotation_is_named(dataset):
    with pytest.raises(UserError, match='Annotations/b.xml: no such annotation'):
        dataset.read_labels('b')


def test_size_of_an_annotation_is_that_of_the_upright_image(dataset):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = dataset.image_path('a')
    draw_image(path, (40, 30)).save(path, exif=exif)
    assert dataset.image_size('a') == (40, 30)
    assert dataset.read_image('a').size == (30, 40)
    assert read_labels(dataset, voc_xml('dog', size=(30, 40))) == [0, 1, 0]
    with pytest.raises(UserError, match='<size> is 40x30, the image is 30x40'):
        read_labels(dataset, voc_xml('dog', size=(40, 30)))


@QUICK
@given(
    name=st.text(max_size=5),
    box=st.lists(st.text('0123456789.-einf ', max_size=4), min_size=4, max_size=4),
    cut=st.integers(0, 300),
    junk=st.binary(max_size=8),
)
def test_any_annotation_gives_labels_or_a_user_error(dataset, name, box, cut, junk):
    text = voc_xml('dog', box=box).replace('dog', name).encode()
    for content in (text, text[:cut] + junk + text[cut:], text[:cut] + junk, junk):
        try:
            assert set(read_labels(dataset, content)) <= {0, 1}
        except UserError as error:
            assert 'a.xml' in str(error)
            assert '\n' not in str(error)


# Images and masks ---------------------------------------------------------------------------------------------------


def write_mask(dataset, image_id: str, mask) -> None:
    dataset.mask_path(image_id).write_bytes(encode_label_map(np.array(mask), voc.palette()))


def test_images_of_a_list(dataset):
    assert dataset.ids('train', with_images=True) == ['a', 'b']
    dataset.image_path('b').unlink()
    assert dataset.ids('train') == ['a', 'b']
    with pytest.raises(UserError, match=r'JPEGImages/b.jpg: no such file \(1 of 2 are missing\)') as error:
        dataset.ids('train', with_images=True)
    assert_one_line(error)


@pytest.mark.parametrize('name', ['b.JPG', 'B.jpg', 'b.jpeg', 'b.png'])
def test_missing_image_with_a_similar_name(dataset, name):
    dataset.image_path('b').rename(dataset.image_path('b').with_name(name))
    expected = rf'JPEGImages/b.jpg: no such file \(1 of 2 are missing\), but {name} exists: rename it$'
    with pytest.raises(UserError, match=expected) as error:
        dataset.ids('train', with_images=True)
    assert_one_line(error)


def test_missing_image_without_a_similar_name(dataset):
    dataset.image_path('b').rename(dataset.image_path('b2'))
    with pytest.raises(UserError) as error:
        dataset.ids('train', with_images=True)
    assert 'exists' not in assert_one_line(error)


def test_what_is_not_a_file_is_an_error_and_not_a_missing_mask(dataset):
    write_mask(dataset, 'a', [[0, 3]])
    dataset.mask_path('b').parent.mkdir(exist_ok=True)
    os.mkfifo(dataset.mask_path('b'))
    with pytest.raises(UserError, match='b.png: is not a regular file$'):
        dataset.ids_with_masks('train')
    with pytest.raises(UserError, match='b.png: '):
        dataset.read_mask('b')


def test_masks_of_a_list(dataset):
    assert dataset.ids_with_masks('train') == []
    assert dataset.ids_with_masks('val') == []  # not a list
    write_mask(dataset, 'b', [[0, 3]])
    assert dataset.ids_with_masks('train') == ['b']
    write_mask(dataset, 'a', [[0, 3], [1, 255]])
    assert dataset.ids_with_masks('train') == ['a', 'b']
    assert dataset.read_mask('a').tolist() == [[0, 3], [1, 255]]
    with pytest.raises(UserError, match='a.png: the mask is 2x2, the image is 40x30'):
        dataset.read_mask('a', (30, 40))


@pytest.mark.parametrize(
    'first, second, values',
    [
        ([[0, 255]], [[255, 0]], '[0, 255]'),
        ([[255, 255]], [[255, 255]], '[255]'),
        ([[0, 0]], [[255, 255]], '[0, 255]'),
        ([[0, 0]], [[0, 0]], '[0]'),
    ],
)
def test_masks_without_any_object(dataset, first, second, values):
    """Masks of 0 and 255 usually mean two classes, but 255 is ignored here."""
    write_mask(dataset, 'a', first)
    write_mask(dataset, 'b', second)
    with pytest.raises(UserError) as error:
        dataset.ids_with_masks('train')
    text = assert_one_line(error)
    assert text.startswith(f'{dataset.root / "SegmentationClass"}: ')
    assert f'the 2 masks of the list contain only the values {values}' in text
    assert (
        'class k must have the value k, from 1 to 3 (255 is ignored), or the data set needs the entry "mask_values"'
        in text
    )


@pytest.mark.parametrize('empty', [[[0, 0]], [[255, 255]], [[0, 255]]])
def test_single_masks_without_object_pass(dataset, empty):
    for first, second in ((empty, [[0, 2]]), ([[3, 3]], empty)):
        write_mask(dataset, 'a', first)
        write_mask(dataset, 'b', second)
        assert dataset.ids_with_masks('train') == ['a', 'b']


def test_masks_only_in_segmentationclassaug_are_found(dataset):
    dataset.mask_path('a').parent.rename(dataset.root / 'SegmentationClassAug')
    write_mask(dataset, 'a', [[0, 1]])
    assert (dataset.root / 'SegmentationClassAug' / 'a.png').is_file()
    assert dataset.ids_with_masks('train') == ['a']
    assert dataset.read_mask('a', (1, 2)).tolist() == [[0, 1]]


def test_root_can_be_the_folder_of_masks(dataset):
    write_mask(dataset, 'a', [[0, 1]])
    masks = open_dataset(write_json(dataset.root), f'{dataset.root}/SegmentationClass')
    assert masks.ids_with_masks('train') == ['a']
    assert masks.mask_path('a') == dataset.mask_path('a')


def test_label_maps_use_the_palette_of_the_data_set(tmp_path):
    dataset = open_dataset(write_json(tmp_path, palette=[[9, 8, 7], [1, 2, 3]]), tmp_path)
    (tmp_path / 'a.png').write_bytes(dataset.encode_label_map(np.array([[0, 1, 255]])))
    assert dataset.read_label_map(tmp_path / 'a.png').tolist() == [[0, 1, 255]]
    with Image.open(tmp_path / 'a.png') as picture:
        assert np.array(picture.convert('RGB')).tolist() == [[[9, 8, 7], [1, 2, 3], [224, 224, 192]]]
    with pytest.raises(UserError, match='a.png: contains class 4, the largest class is 3'):
        (tmp_path / 'a.png').write_bytes(dataset.encode_label_map(np.array([[4]])))
        dataset.read_label_map(tmp_path / 'a.png')


def test_pickled_data_sets_leave_out_their_lists(dataset):
    """A task of a worker process must not carry the table of a large data set; it reads and writes label maps."""
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.source is None
    label = np.array([[0, 3]], np.uint8)
    assert copy.encode_label_map(label) == dataset.encode_label_map(label)
    assert copy.class_names == dataset.class_names
