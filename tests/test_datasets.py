"""Data sets in the VOC layout: the lists, what an annotation says, and that damaged files are named in one line."""

import io
import json

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, draw_image, voc_xml
from core.datasets import (
    ImageSet,
    ScaledBatches,
    check_files,
    encode_mask,
    image_path,
    image_size,
    keys_of,
    label_path,
    load_info,
    mask_path,
    read_image,
    read_labels,
    read_mask,
    voc_palette,
    xml_path,
)
from core.transforms import Pipeline, RandomCrop, RandomFlip, scaled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core import InputError

VOC = REPOSITORY / 'data' / 'voc2012.json'
NAMES = (
    'aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep '
    'sofa train tvmonitor'
).split()
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_one_line(fault) -> str:
    text = str(fault.value)
    assert text
    assert '\n' not in text
    return text


# The data set's JSON ------------------------------------------------------------------------------------------------


def test_voc():
    info = load_info(VOC)
    assert list(info.class_names) == NAMES
    assert info.num_classes == 20
    lengths = {domain: len(info.ids(domain)) for domain in info.lists}
    assert lengths == {'train': 1464, 'train_aug': 10582, 'val': 1449, 'test': 1456}
    train, train_aug, val, test = (set(info.ids(d)) for d in ('train', 'train_aug', 'val', 'test'))
    assert train < train_aug
    assert not val & train_aug
    assert not test & (train_aug | val)


def test_palette_is_vocs():
    known = [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
        (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
        (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
    ]  # fmt: skip
    palette = voc_palette()
    assert [tuple(colour) for colour in palette[:21].tolist()] == known
    assert palette[255].tolist() == [224, 224, 192]
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    assert np.array_equal(load_info(VOC).palette, palette)


def write_info(folder, **entries):
    content = {'classes': ['car', 'dog', 'sheep'], 'lists': {'train': 'train.txt'}, **entries}
    (folder / 'set.json').write_text(json.dumps(content))
    return folder / 'set.json'


def test_lists_lie_beside_the_json_and_a_palette_replaces_vocs(tmp_path):
    (tmp_path / 'train.txt').write_text('a\nb c\n\n')
    info = load_info(write_info(tmp_path, palette=[[9, 8, 7], [1, 2, 3]]))
    assert info.ids('train') == ['a', 'b', 'c']
    assert info.palette[:2].tolist() == [[9, 8, 7], [1, 2, 3]]
    assert np.array_equal(info.palette[2:], voc_palette()[2:])


@pytest.mark.parametrize(
    'entries',
    [
        {'classes': []},
        {'classes': 'car'},
        {'classes': ['car', 'car']},
        {'classes': [1, 2]},
        {'classes': [str(i) for i in range(255)]},
        {'lists': ['train.txt']},
        {'lists': {'train': 3}},
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
def test_a_wrong_json_is_refused(tmp_path, entries):
    path = write_info(tmp_path, **entries)
    with pytest.raises(InputError, match='--dataset .*set.json') as fault:
        load_info(path)
    assert_one_line(fault)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'null', b'{"classes": ["a"]}', b'\xff\xfe\x00'])
def test_what_is_no_data_set_is_refused(tmp_path, content):
    (tmp_path / 'set.json').write_bytes(content)
    with pytest.raises(InputError, match='--dataset .*set.json') as fault:
        load_info(tmp_path / 'set.json')
    assert_one_line(fault)
    with pytest.raises(InputError, match='--dataset .*nowhere.json'):
        load_info(tmp_path / 'nowhere.json')


@pytest.mark.parametrize(
    'ids', ['', ' \n', '../secret', 'a/b', '.hidden', 'a\\b', 'twice b twice', '/etc/passwd', 'a\0b']
)
def test_unsafe_lists_are_refused(tmp_path, ids):
    (tmp_path / 'train.txt').write_text(ids)
    with pytest.raises(InputError, match='train.txt') as fault:
        load_info(write_info(tmp_path)).ids('train')
    assert_one_line(fault)


def test_lists_that_are_not_there(tmp_path):
    info = load_info(write_info(tmp_path))
    with pytest.raises(InputError, match='--domain val.*train'):
        info.ids('val')
    with pytest.raises(InputError, match='train.txt'):
        info.ids('train')
    (tmp_path / 'train.txt').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(InputError, match='train.txt'):
        info.ids('train')


@QUICK
@given(content=st.text('ab01_./\\ \n\0\x1b\u00e9', max_size=12).map(str.encode) | st.binary(max_size=12))
def test_any_list_gives_ids_that_stay_in_their_folder_or_an_input_error(tmp_path, content):
    (tmp_path / 'train.txt').write_bytes(content)
    try:
        ids = load_info(write_info(tmp_path)).ids('train')
    except InputError as error:
        assert 'train.txt' in str(error)
        return
    assert ids
    for image_id in ids:
        path = image_path(tmp_path, image_id)
        assert path.resolve().parent == tmp_path.resolve() / 'JPEGImages'
        assert not path.is_file()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(classes=json_values, lists=json_values, palette=json_values)
def test_any_json_gives_a_data_set_or_an_input_error(tmp_path, classes, lists, palette):
    for entries in ({'classes': classes}, {'lists': lists}, {'palette': palette}):
        try:
            info = load_info(write_info(tmp_path, **entries))
        except InputError:
            continue
        for domain in info.lists:
            try:
                info.ids(domain)
            except InputError:
                pass


# Annotations --------------------------------------------------------------------------------------------------------


@pytest.fixture
def info(tmp_path):
    (tmp_path / 'train.txt').write_text('a\nb\n')
    return load_info(write_info(tmp_path))


def labels_of(tmp_path, info, text: str | bytes) -> list[float]:
    path = tmp_path / 'a.xml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(path, info).tolist()


def test_labels_are_the_set_of_names(tmp_path, info):
    assert labels_of(tmp_path, info, voc_xml('sheep', 'car', 'sheep')) == [1, 0, 1]
    assert read_labels(tmp_path / 'a.xml', info).dtype == np.float32
    assert keys_of(np.array([1, 0, 1.0])).tolist() == [0, 1, 3]
    assert keys_of(np.zeros(3)).tolist() == [0]


def test_difficult_objects_count(tmp_path, info):
    assert labels_of(tmp_path, info, voc_xml('dog', more='<difficult>1</difficult>')) == [0, 1, 0]


def test_parts_of_objects_do_not_count(tmp_path, info):
    part = '<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>'
    assert labels_of(tmp_path, info, voc_xml('dog').replace('</object>', part + '</object>')) == [0, 1, 0]


@pytest.mark.parametrize(
    'box', [(5, 1, 5, 9), (1, 5, 9, 5), (40, 1, 60, 9), (-9, 1, 0, 9), (1, 30, 9, 99), (9, 1, 2, 9)]
)
def test_degenerate_boxes_are_skipped(tmp_path, info, box):
    """Some are so only once they are clipped to the image of 40x30."""
    lone = voc_xml('dog', box=box)
    two = lone.replace('</annotation>', voc_xml('car').split('</size>')[1])
    assert labels_of(tmp_path, info, two) == [1, 0, 0]
    with pytest.raises(InputError, match='a.xml.*no object'):
        labels_of(tmp_path, info, lone)


def test_boxes_that_reach_over_the_image_count(tmp_path, info):
    assert labels_of(tmp_path, info, voc_xml('dog', box=(-5, -5, 99, 99))) == [0, 1, 0]
    assert labels_of(tmp_path, info, voc_xml('dog', box=(38.5, 2.5, 40.5, 3.5))) == [0, 1, 0]


@pytest.mark.parametrize(
    'text, part',
    [
        (voc_xml('cow'), "'cow'"),
        (voc_xml(''), "''"),
        (voc_xml(), 'no object'),
        ('<annotation>', 'not a VOC annotation'),
        ('', 'not a VOC annotation'),
        (b'\xff\xd8\xff\xe0 a JPEG', 'not a VOC annotation'),
        (voc_xml('dog').replace('<width>40</width>', ''), 'lacks a number'),
        (voc_xml('dog', box=('x', 1, 9, 9)), 'not a VOC annotation'),
        (voc_xml('dog', box=('nan', 1, 9, 9)), 'lacks a number'),
        (voc_xml('dog').replace('<xmax>9</xmax>', ''), 'lacks a number'),
        ('<!DOCTYPE a [<!ENTITY e "dog">]>' + voc_xml('&e;'), 'document type'),
        (('<?xml version="1.0" encoding="utf-16"?>' + voc_xml('cow')).encode('utf-16'), "'cow'"),
        ('<?xml version="1.0" encoding="no-such"?>' + voc_xml('dog'), 'not a VOC annotation'),
    ],
)
def test_wrong_annotations_are_named(tmp_path, info, text, part):
    with pytest.raises(InputError, match='a.xml') as fault:
        labels_of(tmp_path, info, text)
    assert part in assert_one_line(fault)


def test_entities_are_refused_in_any_encoding(tmp_path, info):
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY e "dog">]>' + voc_xml('&e;')
    with pytest.raises(InputError, match='a.xml'):
        labels_of(tmp_path, info, text.encode('utf-16'))


def test_entities_from_files_are_not_read(tmp_path, info):
    (tmp_path / 'secret.txt').write_text('dog')
    text = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{tmp_path}/secret.txt">]>' + voc_xml('&e;')
    with pytest.raises(InputError, match='a.xml'):
        labels_of(tmp_path, info, text)


def test_a_missing_annotation_is_named(tmp_path, info):
    with pytest.raises(InputError, match='nowhere.xml'):
        read_labels(tmp_path / 'nowhere.xml', info)


@QUICK
@given(
    name=st.text(max_size=5),
    box=st.lists(st.text('0123456789.-einf ', max_size=4), min_size=4, max_size=4),
    cut=st.integers(0, 300),
    junk=st.binary(max_size=8),
)
def test_any_annotation_gives_labels_or_an_input_error(tmp_path, info, name, box, cut, junk):
    text = voc_xml('dog', box=box).replace('dog', name).encode()
    for content in (text, text[:cut] + junk + text[cut:], text[:cut] + junk, junk):
        try:
            assert labels_of(tmp_path, info, content).count(1) >= 1
        except InputError as error:
            assert 'a.xml' in str(error)


# Images and masks ---------------------------------------------------------------------------------------------------


def test_paths(tmp_path):
    (tmp_path / 'SegmentationClass').mkdir()
    assert mask_path(tmp_path, 'x') == mask_path(f'{tmp_path}/SegmentationClass', 'x')
    assert mask_path(f'{tmp_path}/', 'x') == tmp_path / 'SegmentationClass' / 'x.png'
    assert image_path(f'{tmp_path}/', 'x') == tmp_path / 'JPEGImages' / 'x.jpg'
    assert xml_path(tmp_path, 'x') == tmp_path / 'Annotations' / 'x.xml'
    assert label_path(tmp_path, 'x') == tmp_path / 'x.png'


def test_check_files(tmp_path):
    (tmp_path / 'a').touch()
    check_files([tmp_path / 'a'], 'do this')
    with pytest.raises(InputError, match=r'/b: no such file \(2 of 3.*do this'):
        check_files([tmp_path / name for name in 'abc'], 'do this')


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1'])
def test_images_become_rgb(tmp_path, mode):
    image = draw_image(tmp_path / 'a.jpg')
    image.convert(mode).save(tmp_path / 'b.tiff')
    assert read_image(tmp_path / 'b.tiff').mode == 'RGB'


@pytest.mark.parametrize('content', [b'', b'text', b'\xff\xd8\xff\xe0'])
def test_unreadable_images_and_masks_are_named(tmp_path, content):
    (tmp_path / 'a.png').write_bytes(content)
    for read in (read_image, lambda path: read_mask(path, 20)):
        with pytest.raises(InputError, match='a.png') as fault:
            read(tmp_path / 'a.png')
        assert_one_line(fault)
        with pytest.raises(InputError, match='nowhere.png'):
            read(tmp_path / 'nowhere.png')
        with pytest.raises(InputError):
            read(tmp_path)


def test_a_truncated_image_is_refused(tmp_path):
    draw_image(tmp_path / 'a.jpg', (200, 200))
    content = (tmp_path / 'a.jpg').read_bytes()
    (tmp_path / 'a.jpg').write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match='a.jpg'):
        read_image(tmp_path / 'a.jpg')


def test_masks_round_trip_as_palette_pngs(tmp_path, rng):
    mask = rng.choice([0, 1, 20, 255], (7, 9)).astype(np.uint8)
    (tmp_path / 'a.png').write_bytes(encode_mask(mask, voc_palette()))
    with Image.open(tmp_path / 'a.png') as picture:
        assert (picture.mode, picture.format) == ('P', 'PNG')
        assert np.array_equal(np.array(picture.getpalette(), np.uint8).reshape(-1, 3), voc_palette())
    found = read_mask(tmp_path / 'a.png', 20, (7, 9))
    assert found.dtype == np.uint8
    assert np.array_equal(found, mask)
    # 64-bit predictions of argmax and any memory layout give the same file.
    assert encode_mask(mask.astype(np.int64), voc_palette()) == (tmp_path / 'a.png').read_bytes()
    assert encode_mask(mask.T, voc_palette()) == encode_mask(mask.T.copy(), voc_palette())
    assert np.array_equal(np.array(Image.open(io.BytesIO(encode_mask(mask.T, voc_palette())))), mask.T)


def test_grey_masks_are_read_and_others_refused(tmp_path):
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    Image.fromarray(mask).save(tmp_path / 'grey.png')
    assert np.array_equal(read_mask(tmp_path / 'grey.png', 2), mask)
    Image.fromarray(np.stack([mask] * 3, -1)).save(tmp_path / 'colour.png')
    with pytest.raises(InputError, match='colour.png.*RGB'):
        read_mask(tmp_path / 'colour.png', 20)


def test_masks_of_another_size_or_with_unknown_classes_are_refused(tmp_path):
    Image.fromarray(np.full((4, 6), 21, np.uint8)).save(tmp_path / 'a.png')
    with pytest.raises(InputError, match='a.png.*6x4.*4x6') as fault:
        read_mask(tmp_path / 'a.png', 21, (6, 4))
    assert_one_line(fault)
    with pytest.raises(InputError, match='a.png.*class 21.*20'):
        read_mask(tmp_path / 'a.png', 20)


@QUICK
@given(data=st.data())
def test_damaged_pictures_give_pixels_or_an_input_error(tmp_path, data):
    mask = np.random.default_rng(0).integers(0, 3, (9, 9), dtype=np.uint8)
    draw_image(tmp_path / 'a.jpg', (9, 9))
    for content, read in (
        (encode_mask(mask, voc_palette()), lambda path: read_mask(path, 20)),
        ((tmp_path / 'a.jpg').read_bytes(), read_image),
    ):
        content = bytearray(content)
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / 'damaged').write_bytes(content[: data.draw(st.integers(1, len(content)))])
        try:
            read(tmp_path / 'damaged')
        except InputError as error:
            assert 'damaged' in str(error)


# Samples ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, info):
    for i, image_id in enumerate('ab'):
        draw_image(image_path(tmp_path, image_id), (40, 30), seed=i)
        for path in (xml_path(tmp_path, image_id), mask_path(tmp_path / 'SegmentationClass', image_id)):
            path.parent.mkdir(exist_ok=True)
        xml_path(tmp_path, image_id).write_text(voc_xml('car', *['dog'] * i))
        mask = np.random.default_rng(i).integers(0, 4, (30, 40), dtype=np.uint8)
        mask_path(tmp_path, image_id).write_bytes(encode_mask(mask, voc_palette()))
    return tmp_path


def image_set(root, info, seed=0, with_labels=True):
    transform = Pipeline(RandomFlip(), RandomCrop(16))
    return ImageSet(info, root, 'train', transform, with_labels, lambda image_id: mask_path(root, image_id), seed)


def test_samples(root, info):
    samples = image_set(root, info)
    assert len(samples) == 2
    assert samples[0].keys() == {'images', 'masks', 'labels'}
    assert samples[0]['images'].pixels.shape == (16, 16, 3)
    assert samples[0]['masks'].shape == (16, 16)
    assert [samples[i]['labels'].tolist() for i in range(2)] == [[1, 0, 0], [1, 1, 0]]
    assert ImageSet(info, root, 'train', Pipeline(RandomCrop(16)))[0].keys() == {'images'}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(x, y) for x, y in zip([*a['images'], a['masks']], [*b['images'], b['masks']], strict=True))


def test_samples_follow_from_seed_epoch_and_position(root, info):
    first = image_set(root, info)[3, 1]
    torch.manual_seed(1)
    again = image_set(root, info)[3, 1]
    assert same(first, again)
    assert same(image_set(root, info)[0, 1], image_set(root, info)[1])
    for other in (image_set(root, info)[4, 1], image_set(root, info, seed=1)[3, 1], image_set(root, info)[3, 0]):
        assert not torch.equal(first['masks'], other['masks'])


def test_a_set_begins_whole_or_not_at_all(root, info):
    mask_path(root, 'b').unlink()
    with pytest.raises(InputError, match='SegmentationClass/b.png'):
        image_set(root, info)
    xml_path(root, 'b').write_text(voc_xml())
    with pytest.raises(InputError, match='Annotations/b.xml'):
        image_set(root, info)
    image_path(root, 'a').unlink()
    for make in (
        lambda: image_set(root, info, with_labels=False),
        lambda: ScaledBatches(root, ['a'], [1], 1, scaled, torch.stack),
    ):
        with pytest.raises(InputError, match='JPEGImages/a.jpg'):
            make()


def test_a_mask_of_another_size_than_its_image_is_named(root, info):
    mask_path(root, 'b').write_bytes(encode_mask(np.zeros((40, 30), np.uint8), voc_palette()))
    with pytest.raises(InputError, match='SegmentationClass/b.png.*30x40.*40x30'):
        image_set(root, info)[1]


def test_scaled_batches(root):
    """Images of one size go together, at most so many, and each is as it would be alone."""
    for i, (image_id, size) in enumerate({'c': (30, 40), 'd': (40, 30), 'e': (40, 30)}.items()):
        draw_image(image_path(root, image_id), size, seed=i + 5)
    batches = ScaledBatches(root, list('abcde'), [0.5, 1.0, 2.0], 3, scaled, torch.stack)
    assert [batches[i][0] for i in range(len(batches))] == [['a', 'b', 'd'], ['c'], ['e']]
    for i in range(3):
        ids, images, versions = batches[i]
        for j, image_id in enumerate(ids):
            picture = read_image(image_path(root, image_id))
            assert np.array_equal(images[j], np.array(picture))
            for scale, version in zip((0.5, 1.0, 2.0), versions, strict=True):
                assert torch.equal(version[j], scaled(picture, scale))


def test_image_size(tmp_path):
    draw_image(tmp_path / 'a.jpg', (50, 37))
    assert image_size(tmp_path / 'a.jpg') == (37, 50)
    (tmp_path / 'b.jpg').write_bytes(b'text')
    for name in ('b.jpg', 'nowhere.jpg'):
        with pytest.raises(InputError, match=name):
            image_size(tmp_path / name)
