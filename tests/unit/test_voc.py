"""PASCAL VOC: its palette and folders, the objects that an annotation names, and damaged annotations."""

import numpy as np
import pytest

from core import UserError
from core.data import voc
from support import voc_xml

SIZE = (30, 40)  # height, width; voc_xml's default


def tags(tmp_path, text: str | bytes) -> list[str]:
    path = tmp_path / 'a.xml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return voc.read_tags(path, SIZE)


def fault(tmp_path, text: str | bytes) -> str:
    """Return the one line that an annotation is rejected with; it begins with the path."""
    with pytest.raises(UserError) as error:
        tags(tmp_path, text)
    message = str(error.value)
    assert message.startswith(f'{tmp_path / "a.xml"}: ')
    assert '\n' not in message
    return message


def test_palette():
    known = [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
        (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
        (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
    ]  # fmt: skip
    palette = voc.palette()
    assert [tuple(colour) for colour in palette[:21].tolist()] == known
    assert palette[255].tolist() == [224, 224, 192]
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)


def test_paths(tmp_path):
    assert voc.image_path(tmp_path, 'x') == tmp_path / 'JPEGImages' / 'x.jpg'
    assert voc.image_path(tmp_path, 'x.y z') == tmp_path / 'JPEGImages' / 'x.y z.jpg'
    assert voc.xml_path(tmp_path, 'x') == tmp_path / 'Annotations' / 'x.xml'


def test_masks_are_in_segmentationclass_its_augmented_version_or_the_root_itself(tmp_path):
    assert voc.mask_path(tmp_path, 'x') == tmp_path / 'x.png'
    (tmp_path / 'SegmentationClassAug').mkdir()
    assert voc.mask_path(tmp_path, 'x') == tmp_path / 'SegmentationClassAug' / 'x.png'
    (tmp_path / 'SegmentationClass').mkdir()
    assert voc.mask_path(tmp_path, 'x') == tmp_path / 'SegmentationClass' / 'x.png'
    assert voc.mask_path(tmp_path / 'SegmentationClass', 'x') == tmp_path / 'SegmentationClass' / 'x.png'


# Objects ------------------------------------------------------------------------------------------------------------


def test_every_object_is_named(tmp_path):
    assert tags(tmp_path, voc_xml('sheep', 'car', 'sheep')) == ['sheep', 'car', 'sheep']
    assert tags(tmp_path, voc_xml()) == []


def test_difficult_objects_count(tmp_path):
    assert tags(tmp_path, voc_xml('dog', more='<difficult>1</difficult>')) == ['dog']


def test_parts_of_objects_do_not_count(tmp_path):
    part = '<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>'
    assert tags(tmp_path, voc_xml('dog').replace('</object>', part + '</object>')) == ['dog']


@pytest.mark.parametrize('box', [(5, 1, 5, 9), (1, 5, 9, 5), (40, 1, 60, 9), (-9, 1, 0, 9), (1, 30, 9, 99)])
def test_boxes_without_area_are_skipped(tmp_path, box):
    """The last three have no area after clipping to the image of 40x30."""
    assert tags(tmp_path, voc_xml('dog', box=box)) == []
    more = voc_xml('car').split('</size>')[1]
    assert tags(tmp_path, voc_xml('dog', box=box).replace('</annotation>', more)) == ['car']


@pytest.mark.parametrize('box', [(9, 1, 2, 9), (2, 9, 9, 1), (9, 9, 2, 1), (99, 9, -5, -9)])
def test_corners_in_either_order_are_one_box(tmp_path, box):
    assert tags(tmp_path, voc_xml('dog', box=box)) == ['dog']


def test_swapped_corners_without_area_are_skipped(tmp_path):
    assert tags(tmp_path, voc_xml('dog', box=(0, 1, -9, 9))) == []


@pytest.mark.parametrize('box', [(-5, -5, 99, 99), (38.5, 2.5, 40.5, 3.5), (-3, 4, 0.5, 5)])
def test_boxes_that_extend_beyond_the_image_count(tmp_path, box):
    assert tags(tmp_path, voc_xml('dog', box=box)) == ['dog']


@pytest.mark.parametrize(
    'box', [(41, 1, 60, 9), (-9, 1, -1, 9), (1, 31, 9, 99), (1, -9, 9, -1), (60, 1, 41, 9), (-9, -9, -9, -9)]
)
def test_box_outside_the_image_is_an_error(tmp_path, box):
    message = fault(tmp_path, voc_xml('dog', box=box))
    assert "the box of 'dog' lies outside the 40x30 image" in message


def test_size_is_optional(tmp_path):
    text = voc_xml('dog')
    assert tags(tmp_path, text[: text.index('<size>')] + text[text.index('</size>') + 7 :]) == ['dog']


def test_boxes_are_optional(tmp_path):
    assert tags(tmp_path, '<annotation><object><name>dog</name></object></annotation>') == ['dog']
    text = voc_xml('dog', 'car')
    assert tags(tmp_path, text[: text.rindex('<bndbox>')] + text[text.rindex('</bndbox>') + 9 :]) == ['dog', 'car']


@pytest.mark.parametrize(
    'size', [(0, 0), (0, 30), (40, 0), (39, 30), (40, 29), (20, 15), (41, 30), (30, 40), (400, 300)]
)
def test_size_that_differs_from_the_picture_is_an_error(tmp_path, size):
    message = fault(tmp_path, voc_xml('dog', size=size))
    assert f'<size> is {size[0]}x{size[1]}, the image is 40x30' in message


# Damaged annotations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text, part',
    [
        ('<annotation>', 'not a VOC annotation'),
        ('', 'not a VOC annotation'),
        (b'\xff\xd8\xff\xe0 a JPEG', 'not a VOC annotation'),
        (voc_xml('dog').replace('<width>40</width>', ''), "<size/width> is '', not a number"),
        (voc_xml('dog').replace('<width>40</width>', '<width/>'), "<size/width> is '', not a number"),
        (
            voc_xml('dog').replace('<height>30</height>', '<height> 3O\n</height>'),
            "<size/height> is '3O', not a number",
        ),
        (voc_xml('dog', box=('x', 1, 9, 9)), "<bndbox/xmin> is 'x', not a number"),
        (voc_xml('dog', box=('nan', 1, 9, 9)), "<bndbox/xmin> is 'nan', not a number"),
        (voc_xml('dog', box=(1, 1, 9, '1e999')), "<bndbox/ymax> is '1e999', not a number"),
        (voc_xml('dog').replace('<xmax>9</xmax>', ''), "<bndbox/xmax> is '', not a number"),
        (voc_xml('dog', box=('1\n2', 1, 9, 9)), r"<bndbox/xmin> is '1\n2', not a number"),
        ('<!DOCTYPE a [<!ENTITY e "dog">]>' + voc_xml('&e;'), 'document type'),
        ('<?xml version="1.0" encoding="no-such"?>' + voc_xml('dog'), 'not a VOC annotation'),
    ],
)
def test_damaged_annotation(tmp_path, text, part):
    assert part in fault(tmp_path, text)


def test_other_encodings(tmp_path):
    text = '<?xml version="1.0" encoding="utf-16"?>' + voc_xml('cow')
    assert tags(tmp_path, text.encode('utf-16')) == ['cow']


def test_entities_are_refused_in_any_encoding(tmp_path):
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY e "dog">]>' + voc_xml('&e;')
    assert 'document type' in fault(tmp_path, text.encode('utf-16'))


def test_entities_do_not_read_files(tmp_path):
    (tmp_path / 'secret.txt').write_text('dog')
    text = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{tmp_path}/secret.txt">]>' + voc_xml('&e;')
    assert 'document type' in fault(tmp_path, text)


@pytest.mark.parametrize('begin, prefix', [('annotation xmlns="u"', ''), ('v:annotation xmlns:v="u"', 'v:')])
def test_namespaces_do_not_hide_objects(tmp_path, begin, prefix):
    thing = f'<{prefix}object><{prefix}name>dog</{prefix}name></{prefix}object>'
    (tmp_path / 'a.xml').write_text(f'<{begin}>{thing}</{prefix}annotation>')
    assert voc.read_tags(tmp_path / 'a.xml', SIZE) == ['dog']


def test_other_xml_is_no_image_without_objects(tmp_path):
    (tmp_path / 'a.xml').write_text('<html><object><name>dog</name></object></html>')
    with pytest.raises(UserError, match='a.xml: not a VOC annotation .its root is <html>, not <annotation>.'):
        voc.read_tags(tmp_path / 'a.xml', SIZE)


def test_missing_annotation(tmp_path):
    with pytest.raises(UserError, match='nowhere.xml: no such annotation'):
        voc.read_tags(tmp_path / 'nowhere.xml', SIZE)
    with pytest.raises(UserError, match=r'cannot be read \(Is a directory\)'):
        voc.read_tags(tmp_path, SIZE)


def test_missing_annotation_with_a_similar_name(tmp_path):
    (tmp_path / 'a.XML').write_text('<annotation/>')
    with pytest.raises(UserError, match='a.xml: no such annotation, but a.XML exists: rename it$'):
        voc.read_tags(tmp_path / 'a.xml', (30, 40))


def test_empty_size_and_box_are_absent(tmp_path):
    (tmp_path / 'a.xml').write_text('<annotation><size/><object><name>dog</name><bndbox/></object></annotation>')
    assert voc.read_tags(tmp_path / 'a.xml', (30, 40)) == ['dog']
