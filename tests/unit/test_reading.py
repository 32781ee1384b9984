"""tools/exchange/reading.py and the readers: shapes of other sizes, order, files that are damaged or foreign."""

import json
from pathlib import Path

import numpy as np
import pytest

from core import UserError
from tools.exchange import formats
from tools.exchange.formats import FOLDERS, FORMATS, JSON
from tools.exchange.reading import Box, Content, Polygons, Shape, check_size, compose, draw, read_size, scale
from tools.exchange.shapes import read_polygons
from tools.exchange.yolo import read_yaml


def square(top, left, bottom, right) -> tuple[bytes, ...]:
    return read_polygons([[left, top, right, top, right, bottom, left, bottom]])


def filled(size, top, left, bottom, right) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_polygons_are_scaled_before_they_are_drawn():
    content = Polygons(square(1, 2, 5, 7), square(2, 3, 4, 4))
    expected = filled((20, 20), 2, 4, 10, 14) & ~filled((20, 20), 4, 6, 8, 8)
    np.testing.assert_array_equal(draw(content, (10, 10), (20, 20)), expected)
    np.testing.assert_array_equal(draw(content, None, (10, 10)), expected[::2, ::2])


@pytest.mark.parametrize('old, new', [((2, 3), (4, 6)), ((4, 6), (2, 3)), ((3, 3), (7, 7)), ((5, 4), (5, 4))])
def test_masks_are_scaled_to_the_nearest_pixel(old, new, rng):
    mask = rng.random(old) < 0.5
    scaled = scale(mask, new)
    for y in range(new[0]):
        for x in range(new[1]):
            assert scaled[y, x] == mask[int((y + 0.5) * old[0] / new[0]), int((x + 0.5) * old[1] / new[1])]


def test_a_polygon_outside_of_the_image_has_no_pixel():
    assert not draw(Polygons(square(50, 50, 60, 60)), None, (10, 10)).any()
    assert draw(Polygons(square(-5, -5, 60, 60)), None, (10, 10)).all()
    assert not draw(Polygons(()), None, (10, 10)).any()


def test_order_of_shapes():
    shapes = [Shape('a', Polygons(square(2, 2, 4, 4))), Shape('b', Polygons(square(0, 0, 6, 6)))]
    later_on_top = compose(Content(None, shapes), [1, 2], (6, 6))
    assert (later_on_top == 2).all()
    small_on_top = compose(Content(None, shapes, by_area=True), [1, 2], (6, 6))
    np.testing.assert_array_equal(small_on_top, np.where(filled((6, 6), 2, 2, 4, 4), 1, 2))


def test_boxes_are_ignored_where_nothing_is_drawn_and_tags_have_no_pixels():
    shapes = [Shape('a', Polygons(square(0, 0, 3, 3))), Shape('b', Box(square(0, 0, 6, 6))), Shape('c', None)]
    label = compose(Content(None, shapes), [1, 2, 3], (8, 8))
    np.testing.assert_array_equal(label, np.where(filled((8, 8), 0, 0, 3, 3), 1, 255 * filled((8, 8), 0, 0, 6, 6)))


@pytest.mark.parametrize('stated', [None, (30, 40), (15, 20), (60, 80), (8, 10), (7, 10), (3, 4), (301, 400)])
def test_sizes_of_the_same_ratio_up_to_rounding(stated):
    check_size(stated, (30, 40))


@pytest.mark.parametrize('stated', [(40, 30), (15, 24), (30, 42), (1, 10), (400, 300)])
def test_sizes_of_another_ratio(stated):
    with pytest.raises(ValueError, match='but the image is 40x30'):
        check_size(stated, (30, 40))


def test_sizes_that_are_too_large_to_decode():
    with pytest.raises(ValueError, match='export it at the size of the image'):
        check_size((30_000, 40_000), (30, 40))
    check_size((30_000, 40_000), (30_000, 40_000))


@pytest.mark.parametrize(
    'sides', [(0, 1), (1, -1), ('1', 1), (1.5, 2), (True, 1), (1, None), (1e9, 1e9), (float('nan'), 1)]
)
def test_sides_that_are_not_numbers_of_pixels(sides):
    with pytest.raises(ValueError, match='is not a number of pixels'):
        read_size(*sides)


def test_sides():
    assert (read_size(None, None), read_size(3, 4.0)) == (None, (3, 4))


# Files --------------------------------------------------------------------------------------------------------------

TEXTS = {
    'coco': {'images': [{'id': 1, 'file_name': 'a.jpg'}], 'annotations': [], 'categories': []},
    'labelme': {'shapes': [], 'imagePath': 'a.jpg', 'imageHeight': 3, 'imageWidth': 4},
    'labelstudio': [{'data': {'image': 'a.jpg'}, 'annotations': [{'result': []}]}],
    'geojson': {'type': 'FeatureCollection', 'features': []},
}


def test_every_format_reads_what_it_writes():
    assert {*JSON, *FOLDERS} == {*FORMATS} and not {*JSON} & {*FOLDERS}
    assert {*JSON} == {*TEXTS}


@pytest.mark.parametrize('name', TEXTS)
def test_json_files_are_recognised(name, tmp_path):
    path = tmp_path / 'sub' / 'a.json'
    path.parent.mkdir()
    path.write_text(json.dumps(TEXTS[name]))
    for source in (path, tmp_path):
        assert formats.read(source, ('background',))[0] == name
    for other in {*JSON} - {name}:
        with pytest.raises(UserError, match=f'is not of the format {other}'):
            formats.read(path, (), other)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{}', b'[1]', b'"x"', b'\xff', b'[' * 100_000, b'{"type": 3}'])
def test_other_json_files(tmp_path, content):
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(UserError) as error:
        formats.read(tmp_path / 'a.json', ())
    assert str(tmp_path / 'a.json') in str(error.value)


def test_empty_folders_and_other_files(tmp_path):
    with pytest.raises(UserError, match='is not recognised: a file or folder of coco, cvat, labelme'):
        formats.read(tmp_path, ())


@pytest.mark.parametrize(
    'content, said',
    [
        ({**TEXTS['coco'], 'categories': [{'id': 1}]}, 'a category lacks its "name"'),
        ({**TEXTS['coco'], 'images': [{'id': 1}]}, 'an image lacks its "id" or "file_name"'),
        ({**TEXTS['coco'], 'annotations': [{'image_id': 5}]}, 'the image_id 5 of an annotation is not in "images"'),
        ({**TEXTS['coco'], 'images': [{'id': [], 'file_name': 'a'}]}, 'an image lacks its "id" or "file_name"'),
        ([{'data': {'image': 'a.jpg'}, 'predictions': [{}]}], 'no task has an annotation; predictions'),
        ([{'data': {'text': 'a'}, 'annotations': [{'result': []}]}], 'task 1: its "data" names no picture'),
        ([{'data': 3, 'annotations': [{'result': []}]}], 'task 1: its "data" names no picture'),
    ],
)
def test_damaged_files(tmp_path, content, said):
    (tmp_path / 'a.json').write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        formats.read(tmp_path / 'a.json', ())
    assert said in str(error.value) and 'a.json' in str(error.value)


def first(tmp_path, content):
    (tmp_path / 'a.json').write_text(json.dumps(content))
    return formats.read(tmp_path / 'a.json', ())[1][0]


NAN, HUGE = float('nan'), 10**30


@pytest.mark.parametrize(
    'shape',
    [
        [[1, 1, 2, 2, 3, NAN]],
        [[1, 1, 2, 2, 3, HUGE]],
        [[1, 2, 3, 4, 5]],
        [1, 2, 3, 4, 5, 6],
        'x',
        {'size': [30, 40], 'counts': [HUGE]},
        {'size': [30, 40], 'counts': [2**63, -(2**63) + 1200]},
        {'size': [30, 40], 'counts': 'ooooooooooooo'},
        {'size': [60_000, 60_000], 'counts': [3_600_000_000]},
        {'size': [40, 30], 'counts': [1200]},
    ],
)
def test_damaged_shapes_of_coco(tmp_path, shape):
    content = {**TEXTS['coco'], 'categories': [{'id': 1, 'name': 'cat'}]}
    content['annotations'] = [{'id': 1, 'image_id': 1, 'category_id': 1, 'segmentation': shape}]
    with pytest.raises((ValueError, TypeError, OverflowError)):
        first(tmp_path, content).load((30, 40), Path())


@pytest.mark.parametrize(
    'shape',
    [
        {'label': 'a', 'points': [[1, 1], [2, 2]]},
        {'label': 'a', 'points': [[1, 1], [2, 2], [3, NAN]]},
        {'label': 'a', 'points': [[1, 1], [2, 2], [3, HUGE]]},
        {'label': 'a', 'points': [[1, 1], [2, 2], [3]]},
        {'label': 3, 'points': [[1, 1], [2, 2], [3, 3]]},
        {'label': 'a', 'points': [[1, 1]], 'shape_type': 'point'},
        {'label': 'a', 'points': [[1, 1], [2, 2]], 'shape_type': 'spiral'},
        {'label': 'a', 'points': [[1, 1], [2, 2]], 'shape_type': 'mask', 'mask': None},
        {'label': 'a', 'points': [[1, 1], [2, 2]], 'shape_type': 'mask', 'mask': '!'},
        {'label': 'a', 'points': [[1, 1], [2, 2]], 'shape_type': 'mask', 'mask': 'QUJD'},
        {'label': 'a', 'points': [[0, 0], [1e9, 1e9]], 'shape_type': 'mask', 'mask': 'QUJD'},
        {'label': 'a', 'points': [[5, 5], [1, 1]], 'shape_type': 'mask', 'mask': 'QUJD'},
        {'label': 'a', 'points': [[1, 1], [HUGE, HUGE]], 'shape_type': 'circle'},
    ],
)
def test_damaged_shapes_of_labelme(tmp_path, shape):
    found = first(tmp_path, {**TEXTS['labelme'], 'shapes': [shape]})
    with pytest.raises((ValueError, TypeError, OverflowError)):
        found.load((30, 40), Path())


def value(kind, **more) -> dict:
    return {'type': kind, 'original_height': 30, 'original_width': 40, 'value': {kind: ['a'], **more}}


@pytest.mark.parametrize(
    'result',
    [
        value('brushlabels'),
        value('brushlabels', rle=[0] * 20),
        {**value('brushlabels', rle=[255] * 20), 'original_height': 60_000, 'original_width': 80_000},
        value('polygonlabels'),
        value('polygonlabels', points=[[1, 2, 3]]),
        value('polygonlabels', points=[[1, 2], [3, 4], [5, NAN]]),
        value('rectanglelabels', x=1, y=2, width=3),
        value('rectanglelabels', x=1, y=2, width=-3, height=3),
        {**value('polygonlabels', points=[[1, 2], [3, 4], [5, 6]]), 'image_rotation': 90},
        {'type': 'brushlabels', 'value': {'brushlabels': [3]}},
    ],
)
def test_damaged_results_of_label_studio(tmp_path, result):
    found = first(tmp_path, [{**TEXTS['labelstudio'][0], 'annotations': [{'result': [result]}]}])
    with pytest.raises((ValueError, TypeError)):
        found.load((30, 40), Path())


def feature(geometry, **properties) -> dict:
    return {'properties': properties or {'label': 'a'}, 'geometry': geometry}


@pytest.mark.parametrize(
    'entry',
    [
        feature(None),
        feature({'type': 'Point', 'coordinates': [1, 2]}),
        feature({'type': 'Polygon', 'coordinates': [[1, 2]]}),
        feature({'type': 'Polygon', 'coordinates': []}),
        feature({'type': 'Polygon', 'coordinates': [[[1], [2], [3]]]}),
        feature({'type': 'Polygon', 'coordinates': [[[1, 2], [2, NAN], [3, 4]]]}),
        feature({'type': 'Polygon', 'coordinates': [[[1, 2], [2, 3], [3, 4]]]}, other='a'),
        {'properties': 3, 'geometry': None},
    ],
)
def test_damaged_features(tmp_path, entry):
    found = first(tmp_path, {**TEXTS['geojson'], 'features': [entry]})
    with pytest.raises((ValueError, TypeError)):
        found.load((30, 40), Path())


@pytest.mark.parametrize(
    'text', ['names: [a, a:', 'names:\n', 'names: 3\n  - ', 'names:\n  1: a\n', 'names: {0: a, 5: b}\n']
)
def test_names_of_yaml_that_are_not_a_list(tmp_path, text):
    (tmp_path / 'data.yaml').write_text(text)
    with pytest.raises(ValueError, match='data.yaml: "names"'):
        read_yaml(tmp_path / 'data.yaml')


@pytest.mark.parametrize(
    'line', ['0 1', 'a 0 0 1 1 1 0', '0 0 0 1 1 1 nan', '0 0 0 1 1 1 1e9', '0 x 0 1 1 1 0', '-1 0 0 1 1 1 0']
)
def test_damaged_lines_of_ultralytics(tmp_path, line):
    (tmp_path / 'labels').mkdir()
    (tmp_path / 'data.yaml').write_text('names: [a]\n')
    (tmp_path / 'labels' / 'a.txt').write_text(line)
    with pytest.raises(ValueError):
        formats.read(tmp_path, ())[1][0].load((30, 40), Path())


@pytest.mark.parametrize('line', ['a:1,2::', 'a:1,2,300::', 'a:red::', ''])
def test_damaged_label_maps_of_cvat(tmp_path, line):
    (tmp_path / 'SegmentationClass').mkdir()
    (tmp_path / 'labelmap.txt').write_text(line)
    with pytest.raises(UserError, match='labelmap.txt'):
        formats.read(tmp_path, ())


def test_names_in_lists_never_leave_their_folder(tmp_path):
    """They are only compared with the files that are there."""
    (tmp_path / 'in/SegmentationClass').mkdir(parents=True)
    (tmp_path / 'in/ImageSets/Segmentation').mkdir(parents=True)
    (tmp_path / 'out.png').write_bytes(b'secret')
    (tmp_path / 'in/labelmap.txt').write_text('background:0,0,0::\n')
    (tmp_path / 'in/ImageSets/Segmentation/a.txt').write_text('../../out\n')
    _, (found,) = formats.read(tmp_path / 'in', ())
    assert found.load((3, 4), Path()) == Content(None, [])
    (tmp_path / 'in/data.yaml').write_text('masks_dir: ../..\nnames: [a]\n')
    (tmp_path / 'in/labelmap.txt').unlink()
    with pytest.raises(UserError, match='contains no image with masks'):
        formats.read(tmp_path / 'in', ())
