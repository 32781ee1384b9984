"""tools/import_masks.py: round trips, files as the tools write them, problems, image-level labels."""

import base64
import csv
import errno
import io
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from core.data.dataset import open_dataset
from support import claim_sides, fault_of
from support.coco import compressed, uncompressed
from support.labelling import (
    EMPTY,
    FILES,
    NAMES,
    REX,
    SIZES,
    TOM,
    import_line,
    imported,
    label_maps,
    make_photographs,
    run_export,
    run_import,
    submit,
)
from tools import check_dataset, export, import_masks
from tools.exchange import brush, tables
from tools.exchange.taking import near_borders

H, W = SIZES[REX]


@pytest.fixture
def photographs(in_tmp) -> Path:
    make_photographs(in_tmp)
    return in_tmp


def box(top, left, bottom, right, size=(H, W)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def rows(path='labels_imported.csv') -> list[list[str]]:
    with open(path) as file:
        return list(csv.reader(file))


def save_json(name: str, content) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(json.dumps(content))
    return Path(name)


def fault(source, capsys, *more: str) -> tuple[str, list[str]]:
    """Return the line that an import ends with, and the lines before it. Nothing is written."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        import_masks.script.run(import_masks.main, lambda: import_masks.parse_args(import_line(source, *more)))
    assert not Path('labels_imported.csv').exists() and not Path('photos/labels_imported_masks').exists()
    assert not list(Path('photos').glob('.*.partial'))
    printed = capsys.readouterr().err.splitlines()
    return ended.value.code, [line for line in printed if not line.startswith('masks: ')]  # progress


# Round trips --------------------------------------------------------------------------------------------------------

LOSSLESS = [
    ('coco', 'masks'),
    ('cvat', 'masks'),
    ('labelme', 'masks'),
    ('labelstudio', 'masks'),
    ('yolo', 'masks'),
    ('png', 'masks'),
    ('geotiff', 'masks'),
    ('geojson', 'polygons'),
]


def exported(kind, shapes, *more) -> Path:
    folder = run_export(kind, '--shapes', shapes, '--keep_ignored', *more)
    if kind == 'labelstudio':
        submit(folder / 'tasks.json')
    return folder


@pytest.mark.parametrize('kind, shapes', LOSSLESS)
def test_the_same_pixels_come_back(photographs, kind, shapes, capsys):
    old = Path('labels.csv').read_bytes()
    masks = run_import(exported(kind, shapes), '--empty', 'background')
    assert set(masks) == {REX, TOM, EMPTY}
    for image_id, label in label_maps().items():
        np.testing.assert_array_equal(masks[image_id], label)
    assert Path('labels.csv').read_bytes() == old
    assert rows() == [
        ['image', 'classes', 'mask', 'split'],
        ['holiday/rex.jpg', 'dog;cat;traffic light, red', f'labels_imported_masks/{REX}.png', 'train'],
        ['empty.jpg', '', f'labels_imported_masks/{EMPTY}.png', 'train_aug'],
        ['b c/tom 1.5.png', 'cat;traffic light, red', f'labels_imported_masks/{TOM}.png', 'val'],
    ]
    assert 'labels_imported.csv: masks taken: 3 (0 new, 0 changed, 3 as before)' in capsys.readouterr().out
    check_dataset.main(check_dataset.parse_args(['--dataset', 'labels_imported.csv', '--data_dir', 'photos']))
    assert open_dataset('labels_imported.csv', 'photos').class_names == NAMES


@pytest.mark.parametrize('kind', ['coco', 'labelme', 'labelstudio', 'yolo'])
def test_polygons_come_back_with_holes_filled(photographs, kind):
    masks = run_import(exported(kind, 'polygons'))
    expected = label_maps()
    rex = expected[REX]
    rex[5:10, 6:12][rex[5:10, 6:12] == 0] = 2  # the cat in the hole is still there
    for image_id, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[image_id])
    assert set(masks) == {REX, TOM}, 'nobody has said that the image without an object is empty'


@pytest.mark.parametrize('kind, shapes', LOSSLESS)
def test_a_file_of_other_names_and_order_of_classes(photographs, kind, shapes):
    """The data set has other names by now, and in another order: classes are found by name."""
    folder = exported(kind, shapes)
    Path('labels.csv').write_text(
        '# classes: kitten;lamp;dog\nimage,classes\nholiday/rex.jpg,dog\nb c/tom 1.5.png,kitten\nempty.jpg,\n'
    )
    masks = run_import(folder, '--rename', 'cat=kitten', 'traffic light, red=lamp')
    order = np.arange(256)
    order[[1, 2, 3]] = 1, 3, 2
    for image_id, mask in masks.items():
        np.testing.assert_array_equal(mask, order[label_maps()[image_id]])


# Files as the tools write them --------------------------------------------------------------------------------------


def test_coco_of_cvat(photographs):
    """Categories from 1 in its own order, masks as RLE with iscrowd 1, the larger object last in the file."""
    annotations = [
        {'id': 1, 'image_id': 9, 'category_id': 2, 'segmentation': [[8, 8, 12, 8, 12, 12, 8, 12]], 'iscrowd': 0},
        {'id': 2, 'image_id': 9, 'category_id': 1, 'segmentation': uncompressed(box(4, 4, 20, 28)), 'iscrowd': 1},
    ]
    images = [{'id': 9, 'width': W, 'height': H, 'file_name': 'rex.jpg', 'license': 0}]
    categories = [{'id': 1, 'name': 'dog', 'supercategory': ''}, {'id': 2, 'name': 'cat', 'supercategory': ''}]
    content = {'licenses': [], 'images': images, 'annotations': annotations, 'categories': categories}
    save_json('job/annotations/instances_default.json', content)
    expected = 2 * box(4, 4, 20, 28)
    expected[8:12, 8:12] = 1
    assert list(run_import('job')) == [REX]
    np.testing.assert_array_equal(imported()[REX], expected)


def test_coco_of_label_studio(photographs):
    """Categories from 0, the path of the upload, and an object of which only the box is known."""
    annotations = [
        {'id': 0, 'image_id': 0, 'category_id': 0, 'segmentation': [[1, 1, 9, 1, 9, 5, 1, 5]], 'bbox': [1, 1, 8, 4]},
        {'id': 1, 'image_id': 0, 'category_id': 1, 'segmentation': [], 'bbox': [6, 3, 10, 7], 'area': 70},
    ]
    images = [{'id': 0, 'width': W, 'height': H, 'file_name': 'images\\1a2b3c4d-rex.jpg'}]
    categories = [{'id': 0, 'name': 'cat'}, {'id': 1, 'name': 'dog'}]
    source = save_json('result.json', {'images': images, 'annotations': annotations, 'categories': categories})
    expected = 255 * box(3, 6, 10, 16)
    expected[1:5, 1:9] = 1
    np.testing.assert_array_equal(run_import(source)[REX], expected)


def test_coco_of_a_resized_picture(photographs):
    """Polygons are scaled before they are drawn, RLE to the nearest pixel."""
    annotations = [
        {'id': 1, 'image_id': 1, 'category_id': 1, 'segmentation': [[2, 2, 10, 2, 10, 7, 2, 7]]},
        {'id': 2, 'image_id': 1, 'category_id': 2, 'segmentation': compressed(box(8, 0, 12, 16, (12, 16)))},
    ]
    images = [{'id': 1, 'width': 16, 'height': 12, 'file_name': 'holiday/rex.jpg'}]
    categories = [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]
    source = save_json('r.json', {'images': images, 'annotations': annotations, 'categories': categories})
    np.testing.assert_array_equal(run_import(source)[REX], box(4, 4, 14, 20) + 2 * box(16, 0, 24, 32))


def test_masks_of_cvat_with_all_classes_that_a_mask_can_have(photographs):
    names = [f'c{i}' for i in range(1, 255)]
    Path('labels.csv').write_text(f'# classes: {";".join(names)}\nimage,classes\nholiday/rex.jpg,c254\n')
    for path in Path('masks').glob('*.png'):
        path.unlink()
    label = np.resize(np.arange(256, dtype=np.uint8), (H, W))
    Image.fromarray(label).save(f'masks/{REX}.png')
    words = ['masks', '--dataset', 'labels.csv', '--data_dir', 'photos', '--keep_ignored', '--num_workers', '0']
    export.main(export.parse_args([*words, '--format', 'cvat', '--out', 'cvat']))
    np.testing.assert_array_equal(run_import('cvat')[REX], label)


def test_masks_of_cvat_with_its_own_colours(photographs):
    """As CVAT writes them: labels in its order with its colours, and only pictures with an object have masks."""
    Path('cvat/ImageSets/Segmentation').mkdir(parents=True)
    Path('cvat/SegmentationClass/holiday').mkdir(parents=True)
    text = '# label:color_rgb:parts:actions\ndog:250,50,83::\nbackground:0,0,0::\ncat:51,221,255::\n'
    Path('cvat/labelmap.txt').write_text(text)
    Path('cvat/ImageSets/Segmentation/default.txt').write_text('holiday/rex\nempty\n')
    picture = np.zeros((H, W, 3), np.uint8)
    picture[2:9, 3:7], picture[10:20, 8:30] = (250, 50, 83), (51, 221, 255)
    Image.fromarray(picture).save('cvat/SegmentationClass/holiday/rex.png')
    expected = 2 * box(2, 3, 9, 7) + box(10, 8, 20, 30)
    np.testing.assert_array_equal(run_import('cvat', '--empty', 'background')[REX], expected)
    np.testing.assert_array_equal(imported()[EMPTY], label_maps()[EMPTY])


@pytest.mark.parametrize('mode', ['P', 'L'])
def test_index_masks_of_cvat_in_the_order_of_its_labels(photographs, mode):
    Path('cvat/SegmentationClass').mkdir(parents=True)
    Path('cvat/labelmap.txt').write_text('background:0,0,0::\ndog:250,50,83::\ncat:51,221,255::\n')
    picture = Image.fromarray(box(2, 3, 9, 7) + 2 * box(10, 8, 20, 30))
    if mode == 'P':
        picture.putpalette(np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8).tobytes())
        picture = Image.fromarray(np.array(picture), 'P') if picture.mode != 'P' else picture
    picture.save('cvat/SegmentationClass/rex.png')
    np.testing.assert_array_equal(run_import('cvat')[REX], 2 * box(2, 3, 9, 7) + box(10, 8, 20, 30))


def labelme_content(shapes, path='../photos/holiday/rex.jpg', size=(H, W)) -> dict:
    return {
        'version': '6.3.1', 'flags': {}, 'shapes': shapes, 'imagePath': path, 'imageData': 'QUJD' * 9,
        'imageHeight': size[0], 'imageWidth': size[1],
    }  # fmt: skip


def labelme_shape(label, kind, points, **more) -> dict:
    return {'label': label, 'points': points, 'group_id': None, 'shape_type': kind, 'flags': {}, **more}


def test_shapes_of_labelme(photographs):
    png = io.BytesIO()
    Image.fromarray(np.array([[0, 1], [1, 1]], bool)).save(png, 'PNG')
    shapes = [
        labelme_shape('dog', 'rectangle', [[20.0, 10.0], [4.0, 2.0]]),
        labelme_shape('cat', 'polygon', [[6, 4], [10, 4], [10, 8], [6, 8]]),
        labelme_shape('traffic light, red', 'circle', [[26, 6], [29, 6]]),
        labelme_shape('cat', 'mask', [[0, 20], [1, 21]], mask=base64.b64encode(png.getvalue()).decode()),
        labelme_shape('cat', 'oriented_rectangle', [[20, 14], [24, 14], [24, 18], [20, 18]]),
    ]
    mask = run_import(save_json('work/rex.json', labelme_content(shapes)))[REX]
    expected = 2 * box(2, 4, 10, 20)
    expected[4:8, 6:10] = 1
    expected[20, 1] = expected[21, 0] = expected[21, 1] = expected[14:18, 20:24] = 1
    circle = mask == 3
    assert circle.sum() == 32 and circle[6, 26] and not circle[:, :22].any()
    np.testing.assert_array_equal(np.where(circle, 0, mask), expected)


def test_a_labelme_file_of_a_resized_picture(photographs):
    shapes = [labelme_shape('cat', 'polygon', [[12, 8], [20, 8], [20, 16], [12, 16]])]
    mask = run_import(save_json('rex.json', labelme_content(shapes, size=(2 * H, 2 * W))))[REX]
    np.testing.assert_array_equal(mask, box(4, 6, 8, 10))


def result(kind, label, size=(H, W), **value) -> dict:
    return {
        'id': 'x', 'type': kind, 'from_name': 'a', 'to_name': 'image', 'original_height': size[0],
        'original_width': size[1], 'image_rotation': 0, 'value': {kind: [label], **value},
    }  # fmt: skip


def task(*results, image='/data/upload/3/1a2b3c4d-rex.jpg', **more) -> dict:
    annotation = {'id': 5, 'was_cancelled': False, 'updated_at': '2026-01-02', 'result': list(results), **more}
    return {'id': 7, 'data': {'image': image}, 'annotations': [annotation], 'predictions': []}


def test_an_export_of_label_studio(photographs):
    """A brush mask of another size, a polygon in per cent, a box. The latest annotation counts if not cancelled."""
    small = brush.encode(box(6, 4, 12, 16, (12, 16)) > 0)
    first = task(
        result('brushlabels', 'dog', (12, 16), format='rle', rle=small),
        result('polygonlabels', 'cat', points=[[25, 25], [50, 25], [50, 75], [25, 75]], closed=True),
        result('rectanglelabels', 'traffic light, red', x=75, y=0, width=25, height=25, rotation=0),
        {'type': 'choices', 'value': {'choices': ['cat']}, 'from_name': 'tags', 'to_name': 'image'},
    )
    older = {'id': 4, 'was_cancelled': False, 'updated_at': '2026-01-01', 'result': []}
    cancelled = {'id': 6, 'was_cancelled': True, 'updated_at': '2026-01-03', 'result': []}
    first['annotations'] = [*first['annotations'], older, cancelled]
    second = {'id': 8, 'data': {'image': 'http://server/b%20c/tom%201.5.png'}, 'annotations': [], 'predictions': []}
    expected = 2 * box(12, 8, 24, 32)
    expected[6:18, 8:16] = 1
    expected[0:6, 24:32] = 255
    masks = run_import(save_json('project.json', [first, second]))
    assert list(masks) == [REX]
    np.testing.assert_array_equal(masks[REX], expected)


YAMLS = {
    'numbered': 'names:\n  0: dog\n  1: "traffic light, red"  # a comment\n  2: \'cat\'\n',
    'dashes': "# made by a tool\npath: .\nnames:\n- dog\n- 'traffic light, red'\n- cat\nnc: 3\n",
    'list': 'nc: 3\nnames: [\'dog\', "traffic light, red", cat]  # in order\n',
    'mapping': 'train: images\nnames: {0: dog, 1: "traffic light, red", 2: cat}\n',
}


@pytest.mark.parametrize('text', YAMLS.values(), ids=YAMLS)
def test_polygons_of_ultralytics(photographs, text):
    """With classes in another order; the confidence of a prediction at the end of a line does not count."""
    Path('yolo/labels/train').mkdir(parents=True)
    Path('yolo/dataset.yaml').write_text(text)
    lines = '2 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5\n0 0 0 1 0 1 1 0 1 0.93\n'
    Path('yolo/labels/train/rex.txt').write_text(lines)
    expected = np.full((H, W), 2, np.uint8)
    expected[6:12, 8:16] = 1
    np.testing.assert_array_equal(run_import('yolo')[REX], expected)


def test_masks_of_ultralytics_without_a_background(photographs):
    """As in Cityscapes: the value 0 is a class, 255 is ignored."""
    Path('yolo/masks/train').mkdir(parents=True)
    Path('yolo/data.yaml').write_text('train: images/train\nmasks_dir: masks\nnames:\n  0: dog\n  1: cat\n')
    label = box(2, 3, 9, 7)
    label[20:] = 255
    Image.fromarray(label).save('yolo/masks/train/rex.png')
    expected = np.where(label == 255, 255, np.where(label == 1, 1, 2))
    np.testing.assert_array_equal(run_import('yolo')[REX], expected)


@pytest.mark.parametrize('others', [(), ('overlays', 'records')])
def test_plain_masks_have_the_values_of_the_data_set(photographs, others):
    """Such as the folders of tools.predict and of stage 6, edited in a paint program that keeps palettes."""
    if 'overlays' in others:
        Image.new('RGB', (W, H)).save(f'masks/{REX}_overlay.png')
    if 'records' in others:
        Path('masks/args.json').write_text('{"format": "pseudo-label"}')
    np.testing.assert_array_equal(run_import('masks')[REX], label_maps()[REX])


def test_geojson_of_qupath(photographs):
    """Its own properties, a polygon in two parts; the file is named after the picture."""
    squares = [[[[2, 2], [6, 2], [6, 6], [2, 6], [2, 2]]], [[[8, 8], [12, 8], [12, 12], [8, 12], [8, 8]]]]
    feature = {'type': 'Feature', 'id': 'a-b', 'geometry': {'type': 'MultiPolygon', 'coordinates': squares}}
    feature['properties'] = {'objectType': 'annotation', 'classification': {'name': 'cat', 'color': [1, 2, 3]}}
    source = save_json('out/rex.geojson', {'type': 'FeatureCollection', 'features': [feature]})
    expected = box(2, 2, 6, 6) + box(8, 8, 12, 12)
    np.testing.assert_array_equal(run_import(source)[REX], expected)


def test_geojson_of_a_picture_with_a_world_file(photographs):
    """It goes to the ground and back to the same pixels."""
    Path('photos/holiday/rex.jgw').write_text('0.5\n0.1\n-0.1\n-0.5\n1000.2\n2000.7\n')
    folder = run_export('geojson', '--keep_ignored', '--ids', REX)
    features = json.loads((folder / 'holiday/rex.geojson').read_text())['features']
    assert features[0]['geometry']['coordinates'][0][0][0] > 900
    np.testing.assert_array_equal(run_import(folder)[REX], label_maps()[REX])


# What cannot be taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kind, name, content, line',
    [
        (
            'geojson',
            'holiday/rex.geojson',
            '{"type": "FeatureCollection", "features": "x"}',
            '"features" is not a list of',
        ),
        ('geojson', 'holiday/rex.geojson', '{"type": "FeatureCollection"}', '"features" is not a list of features'),
        (
            'coco',
            'annotations.json',
            '{"images": [5], "annotations": [], "categories": []}',
            '"images" is not an object',
        ),
    ],
)
def test_a_damaged_file_is_named(photographs, capsys, kind, name, content, line):
    folder = run_export(kind)
    (folder / name).write_text(content)
    end, _ = fault(folder, capsys)
    assert f'{folder}/{name}: ' in end and line in end


def test_json_files_of_something_else_are_counted(photographs, capsys):
    folder = run_export('labelme', '--keep_ignored')
    (folder / 'b c/tom 1.5.json').write_text('{"imagePath": "b c/tom 1.5.png"}')
    assert set(run_import(folder)) == {REX}
    assert (
        f'warning: files that are not of the format labelme are left out: 1 ({folder}/b c/' in capsys.readouterr().err
    )


@pytest.mark.parametrize('kind', ['keypointlabels', None])
def test_results_of_label_studio_without_an_area(photographs, capsys, kind):
    folder = exported('labelstudio', 'masks')
    tasks = json.loads((folder / 'tasks.json').read_text())
    results = tasks[0]['annotations'][0]['result']
    results.append({'type': 'textarea', 'value': {'text': ['blurred']}})
    save_json(folder / 'tasks.json', tasks)
    assert len(run_import(folder)) == 2
    for path in Path().glob('labels_imported.*'):
        path.unlink()
    shutil.rmtree('photos/labels_imported_masks')
    results[0]['type'] = kind
    save_json(folder / 'tasks.json', tasks)
    _, lines = fault(folder, capsys)
    assert [f"a result is of the type '{kind}': draw it with the brush or as a polygon" in line for line in lines] == [
        True
    ]


def test_a_file_that_cannot_be_read_is_a_problem_of_its_image(photographs, capsys):
    folder = run_export('yolo', '--shapes', 'polygons', '--keep_ignored')
    path = next(path for path in (folder / 'labels').rglob('*.txt') if 'rex' in path.name)
    path.unlink()
    os.mkfifo(path)
    _, lines = fault(folder, capsys)
    assert lines == [f'{path}: cannot be read (Not a regular file)']
    assert set(run_import(folder, '--skip')) == {TOM}


# What is said and kept ----------------------------------------------------------------------------------------------


def with_masks(values: str = '') -> None:
    """Give the data set a mask for two images."""
    Path('photos/gt').mkdir()
    shutil.copy(f'masks/{REX}.png', 'photos/gt/rex.png')
    shutil.copy(f'masks/{TOM}.png', 'photos/gt/tom.png')
    text = Path('labels.csv').read_text().replace('image,classes,split', 'image,classes,mask,split')
    text = text.replace(',train\n', ',gt/rex.png,train\n').replace(',val\n', ',gt/tom.png,val\n')
    Path('labels.csv').write_text(text.replace(',train_aug', ',,train_aug'))


def correct(label: np.ndarray) -> np.ndarray:
    """Return a label map with 10 pixels more of a class, and none of another."""
    corrected = np.where(label == 3, 0, label)
    corrected[22, 0:10] = 1
    return corrected


def test_what_changed_is_counted_by_class(photographs, capsys):
    with_masks()
    shutil.copytree('masks', 'corrected')
    Image.fromarray(correct(label_maps()[REX])).save(f'corrected/{REX}.png')
    masks = run_import('corrected', '--changed_only')
    assert list(masks) == [REX], 'the other mask is as before'
    assert [row[2] for row in rows()[1:]] == [f'labels_imported_masks/{REX}.png', '', 'gt/tom.png']
    printed = capsys.readouterr().out
    table = {
        cells[0]: cells[1:] for line in printed.splitlines() if (cells := [c.strip() for c in line.split('|')[1:-1]])
    }
    assert table['class'] == ['images before', 'images now', 'pixels that came', 'pixels that went']
    assert table['cat'] == ['1', '1', '10', '0']
    assert table['traffic light, red'] == ['1', '0', '0', '2']
    assert table['background'] == ['', '', '2', '10']
    assert 'dog' in table and 'labels_imported.csv: masks taken: 1 (0 new, 1 changed, 0 as before)' in printed


def test_changes_are_counted_against_what_was_exported(photographs, capsys):
    shutil.copytree('masks', 'corrected')
    Image.fromarray(correct(label_maps()[REX])).save(f'corrected/{REX}.png')
    run_import('corrected', '--before', 'masks')
    assert 'masks taken: 2 (0 new, 1 changed, 1 as before)' in capsys.readouterr().out


def default_labelme() -> Path:
    """Export with simplified polygons, filled holes and ignored pixels as background."""
    line = ['masks', '--dataset', 'labels.csv', '--data_dir', 'photos', '--format', 'labelme', '--out', 'out']
    export.main(export.parse_args([*line, '--num_workers', '0', '--min_area', '2']))
    return Path('out')


def test_what_nobody_touched_is_not_a_change(photographs, capsys):
    """Whatever the export has simplified, filled and left out."""
    folder = default_labelme()
    line, _ = fault(folder, capsys, '--changed_only', '--empty', 'background')
    assert 'out: has no mask to take: nothing was written' in line
    path = folder / 'b c' / 'tom 1.5.json'
    content = json.loads(path.read_text())
    content['shapes'][0]['label'] = 'dog'
    path.write_text(json.dumps(content))
    assert list(run_import(folder, '--changed_only')) == [TOM]
    printed = capsys.readouterr().out
    assert 'masks taken: 1 (0 new, 1 changed, 0 as before)' in printed


def test_a_picture_that_was_replaced_since_the_export_is_named(photographs, capsys):
    run_export('coco')
    Image.new('RGB', (W, H), 'red').save(Path('photos', FILES[REX]))
    run_import('out')
    expected = f'warning: 1 of 3 images ({REX}, ...) have changed since they were exported'
    assert expected in capsys.readouterr().err


def test_a_folder_that_is_no_export_is_refused(photographs, capsys):
    run_export('coco')
    line, _ = fault('out', capsys, '--before', 'photos')
    assert line.endswith('--before photos: tools.export has not written it, and it has no mask {id}.png')


def test_removing_all_objects_is_a_correction(photographs):
    """Where the export had some; the image that was empty before is left alone."""
    folder = default_labelme()
    for name in ('holiday/rex', 'empty'):
        content = json.loads((folder / f'{name}.json').read_text())
        (folder / f'{name}.json').write_text(json.dumps({**content, 'shapes': []}))
    masks = run_import(folder, '--changed_only')
    assert list(masks) == [REX] and not masks[REX].any()


def test_another_file_is_compared_with_the_export_it_came_from(photographs, capsys):
    folder = exported('labelstudio', 'polygons', '--simplify', '1')
    source = Path('project.json')
    shutil.move(folder / 'tasks.json', source)
    line, _ = fault(source, capsys, '--before', 'out', '--changed_only')
    assert 'has no mask to take' in line
    run_import(source)
    assert 'masks taken: 2 (2 new, 0 changed, 0 as before)' in capsys.readouterr().out


def test_differences_at_borders_can_be_conversions(photographs, capsys):
    """A tool that turns masks into polygons and back moves borders by a pixel or two."""
    before = label_maps()
    Path('converted').mkdir()
    for image_id, label in before.items():
        Image.fromarray(cv2.erode(label, np.ones((3, 3), np.uint8))).save(f'converted/{image_id}.png')
    run_export('cvat', '--keep_ignored')
    line, _ = fault('converted', capsys, '--before', 'out', '--changed_only', '--slack', '1')
    assert 'has no mask to take' in line
    moved = before[TOM].copy()
    moved[3:9, 9:12] = 2
    Image.fromarray(moved).save(f'converted/{TOM}.png')
    assert list(run_import('converted', '--before', 'out', '--changed_only', '--slack', '1')) == [TOM]


@pytest.mark.parametrize('distance', [0, 1, 2, 5, 10**9])
def test_pixels_near_borders(distance):
    label = np.zeros((20, 20), np.uint8)
    assert not near_borders(label, distance).any()
    label[6:13, 4:15] = 1
    near = near_borders(label, distance)
    for y, x in np.ndindex(label.shape):
        window = label[max(0, y - distance) : y + distance + 1, max(0, x - distance) : x + distance + 1]
        assert near[y, x] == (len(np.unique(window)) > 1), (y, x)


def test_images_without_an_object_are_left_alone(photographs, capsys):
    assert set(run_import(exported('coco', 'masks'))) == {REX, TOM}
    assert 'images without an object, left alone: 1 (--empty background takes them)' in capsys.readouterr().out


def test_other_masks_of_a_data_set_with_values_get_the_values_of_classes(photographs):
    """The new file has no "mask_values" any more: all its masks have indices. A damaged old mask is replaced."""
    with_masks()
    label = label_maps()[TOM]
    Image.fromarray(np.array([10, 11, 12, 13] + [0] * 251 + [99], np.uint8)[label]).save('photos/gt/tom.png')
    values = {'10': 'background', '11': 'cat', '12': 'dog', '13': 'traffic light, red', '99': 'ignore'}
    Path('labels.json').write_text(json.dumps({'mask_values': values, 'name': 'pets'}))
    run_import('masks', '--ids', REX)
    dataset = open_dataset('labels_imported.csv', 'photos')
    assert (dataset.name, dataset.mask_values) == ('pets', None)
    for image_id in (REX, TOM):
        np.testing.assert_array_equal(dataset.read_mask(image_id), label_maps()[image_id])


def test_classes_that_the_tags_lack_are_named(photographs, capsys):
    Path('labels.csv').write_text('# classes: ' + ';'.join(NAMES[:2]) + ';x\nimage,classes\nholiday/rex.jpg,dog\n')
    run_import('masks', '--ids', REX)
    assert '1 of 1 images (holiday__rex, ...) have a class in the mask that the tags lack' in capsys.readouterr().err


def test_colours_of_the_data_set_are_kept(photographs):
    colours = [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    Path('labels.json').write_text(json.dumps({'palette': colours}))
    run_import('masks')
    assert open_dataset('labels_imported.csv', 'photos').palette[:3].tolist() == colours
    with Image.open(f'photos/labels_imported_masks/{REX}.png') as image:
        assert image.getpalette()[:9] == sum(colours, [])


# Image-level labels -------------------------------------------------------------------------------------------------


def tags() -> dict[str, str]:
    return {row[0]: row[1] for row in rows()[1:]}


def test_labels_alone(photographs, capsys):
    """Boxes, tags and masks all name classes; masks and other images stay."""
    with_masks()
    tom = task({'type': 'choices', 'value': {'choices': ['dog']}}, image='b c/tom 1.5.png')
    rex = task(result('rectanglelabels', 'cat', x=0, y=0, width=9, height=9))
    run_import(save_json('project.json', [rex, tom]), '--labels_only')
    assert tags() == {'holiday/rex.jpg': 'cat', 'b c/tom 1.5.png': 'dog', 'empty.jpg': ''}
    assert [row[2] for row in rows()[1:]] == ['gt/rex.png', '', 'gt/tom.png']
    printed = capsys.readouterr().out
    assert 'labels_imported.csv: images whose tags were taken: 2 (2 changed)' in printed
    assert imported() == {}
    assert not Path('photos/labels_imported_masks').exists()


def test_labels_alone_keep_the_values_of_masks(photographs):
    with_masks()
    values = {'0': 'background', '1': 'cat', '2': 'dog', '3': 'traffic light, red', '255': 'ignore'}
    Path('labels.json').write_text(json.dumps({'mask_values': values}))
    run_import('masks', '--labels_only')
    content = json.loads(Path('labels_imported.json').read_text())
    assert content['mask_values'] == values
    colours = {'#000000': 'background', '#ff00ff': 'dog'}
    Path('labels.json').write_text(json.dumps({'mask_values': colours}))
    import_masks.main(import_masks.parse_args(import_line('masks', '--labels_only', '--out', 'colours.csv')))
    assert json.loads(Path('colours.json').read_text())['mask_values'] == colours


def test_empty_images_become_negatives_only_if_asked(photographs):
    folder = exported('coco', 'masks')
    text = Path('labels.csv').read_text().replace('empty.jpg,,', 'empty.jpg,dog,')
    Path('labels.csv').write_text(text)
    run_import(folder, '--labels_only')
    assert tags()['empty.jpg'] == 'dog'
    for path in Path().glob('labels_imported.*'):
        path.unlink()
    run_import(folder, '--labels_only', '--empty', 'background')
    assert tags()['empty.jpg'] == ''


def test_a_csv_file_from_labels_alone(photographs):
    """Without --dataset: the images of the file, with its classes, sorted. Other photographs are not negatives."""
    Path('labels.csv').unlink()
    source = save_json('project.json', [task(result('rectanglelabels', 'Hund', x=0, y=0, width=9, height=9))])
    line = [str(source), '--data_dir', 'photos', '--labels_only', '--out', 'new.csv', '--num_workers', '0']
    import_masks.main(import_masks.parse_args(line))
    assert rows('new.csv')[1:] == [['holiday/rex.jpg', 'Hund', '', 'train']]
    import_masks.main(import_masks.parse_args([*line[:-3], 'other.csv', '--rename', 'Hund=dog', '--num_workers', '0']))
    assert rows('other.csv')[1:] == [['holiday/rex.jpg', 'dog', '', 'train']]
    assert open_dataset('other.csv', 'photos').class_names == ('dog',)


# Problems -----------------------------------------------------------------------------------------------------------


def coco(*entries, categories=('cat', 'dgo', 'tree')) -> Path:
    """Write COCO of images (name, size, category, segmentation)."""
    images = [
        {'id': i, 'file_name': name, 'height': size[0], 'width': size[1]} for i, (name, size, *_) in enumerate(entries)
    ]
    annotations = [
        {'id': i, 'image_id': i, 'category_id': number, 'segmentation': shape}
        for i, (*_, number, shape) in enumerate(entries)
    ]
    named = [{'id': i, 'name': name} for i, name in enumerate(categories, 1)]
    return save_json('c.json', {'images': images, 'annotations': annotations, 'categories': named})


SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]


def test_all_problems_are_listed_a_line_each(photographs, capsys):
    source = coco(
        ('holiday/rex.jpg', (H, W), 2, SQUARE),
        ('b c/tom 1.5.png', (30, 30), 1, SQUARE),
        ('empty.jpg', (16, 16), 3, SQUARE),
        ('bob.jpg', (16, 16), 1, SQUARE),
        ('x/empty.jpg', (16, 16), 1, SQUARE),
    )
    line, before = fault(source, capsys)
    assert 'c.json: 5 problems, listed above: nothing was written (--skip leaves these images out)' in line
    assert before[:2] == [
        "c.json: image 3: 'bob.jpg' is not an image of the data set",
        "c.json: image 4: 'x/empty.jpg' is the image of c.json: image 2 too",
    ]
    assert before[3].startswith('c.json: image 1: is 30x30 in the file, but the image is 20x30') or before[
        2
    ].startswith('c.json: image 1: is 30x30 in the file, but the image is 20x30')
    text = '\n'.join(before)
    assert "'dgo' is not a class (objects: 1, images: 1, the first is holiday__rex): --rename dgo=dog" in text
    assert (
        "'tree' is not a class (objects: 1, images: 1, the first is empty): --rename tree=ignore, or another class"
        in text
    )


@pytest.mark.parametrize('kind', ['png', 'cvat', 'yolo'])
def test_large_masks_are_not_decoded(photographs, capsys, kind):
    """Of a small file, which would take gigabytes."""
    run_export(kind)
    shutil.rmtree('out/.exported')
    folder = 'SegmentationClass' if kind == 'cvat' else ''
    path = next(path for path in sorted(Path('out', folder).rglob('*.png')) if path.stem.endswith('rex'))
    claim_sides(path, 300 * W, 300 * H)
    _, before = fault('out', capsys)
    assert before[0].startswith(
        f'{path}: is {300 * W}x{300 * H} in the file, but the image is only {W}x{H}: export it at'
    )


@pytest.mark.parametrize('what', ['categories', 'images'])
def test_two_entries_of_an_id(photographs, capsys, what):
    source = coco(('holiday/rex.jpg', (H, W), 1, SQUARE), ('empty.jpg', (16, 16), 1, SQUARE))
    content = json.loads(source.read_text())
    content[what][1]['id'] = content[what][0]['id']
    line, _ = fault(save_json('c.json', content), capsys)
    assert f'c.json: two entries of "{what}" have the same "id"' in line


@pytest.mark.parametrize(
    'change, said',
    [
        ({'category_id': [1]}, '"image_id" and "category_id" of an annotation must be integers or texts'),
        ({'image_id': {}}, '"image_id" and "category_id" of an annotation must be integers or texts'),
        ({'segmentation': 5}, '"segmentation" must be a list of polygons, or RLE'),
    ],
)
def test_coco_of_other_types(photographs, capsys, change, said):
    source = coco(('holiday/rex.jpg', (H, W), 1, SQUARE))
    content = json.loads(source.read_text())
    content['annotations'][0] |= change
    line, before = fault(save_json('c.json', content), capsys)
    assert said in '\n'.join([line, *before])


def test_objects_outside_the_image_are_a_problem(photographs, capsys):
    """Such as GeoJSON in degrees of a picture in metres: not a picture without objects."""
    outside = [[500, 500, 600, 500, 600, 600]]
    source = coco(('holiday/rex.jpg', (H, W), 1, outside), ('empty.jpg', (16, 16), 3, SQUARE), categories=NAMES)
    _, before = fault(source, capsys)
    assert before == ['c.json: image 0: none of its objects covers a pixel of the image: check their coordinates']


def test_classes_of_one_colour(photographs, capsys):
    """Their objects could not be told apart."""
    run_export('cvat')
    Path('out/labelmap.txt').write_text('background:0,0,0::\ncat:250,50,83::\ndog:250,50,83::\n')
    line, _ = fault('out', capsys)
    assert "labelmap.txt: 'cat' and 'dog' have the same colour 250,50,83" in line


@pytest.mark.parametrize(
    'kind, name, old, new, line',
    [
        ('cvat', 'labelmap.txt', 'dog:', 'cat:', "labelmap.txt: names 'cat' twice"),
        ('png', 'classes.txt', 'dog', 'cat', "classes.txt: names 'cat' twice"),
        ('yolo', 'data.yaml', 'dog', 'cat', "data.yaml: names 'cat' twice"),
    ],
)
def test_a_class_that_is_named_twice(photographs, capsys, kind, name, old, new, line):
    """The objects of one of the two would have the other's class."""
    path = run_export(kind) / name
    path.write_text(path.read_text().replace(old, new))
    assert line in fault('out', capsys)[0]


def test_a_table_that_cannot_be_written_leaves_nothing(photographs, capsys, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, 'No space left on device', str(path))

    monkeypatch.setattr(tables, 'write_bytes', fail)
    line, _ = fault(exported('coco', 'masks'), capsys)
    assert 'No space left on device' in line
    assert not Path('labels_imported.json').exists()


def test_a_label_that_a_shell_would_run_is_quoted(photographs, capsys):
    source = coco(('holiday/rex.jpg', (H, W), 2, SQUARE), categories=('cat', "$(rm -r x)'\x1b[2J", 'x'))
    _, before = fault(source, capsys)
    assert "--rename '$(rm -r x)'" in before[0] and '\x1b' not in before[0]


def test_skip_takes_the_rest(photographs, capsys):
    source = coco(
        ('holiday/rex.jpg', (H, W), 1, SQUARE), ('bob.jpg', (16, 16), 1, SQUARE), ('empty.jpg', (9, 9), 3, SQUARE)
    )
    assert list(run_import(source, '--skip')) == [REX]
    assert 'images with a problem, left out: 1' in capsys.readouterr().out


def test_labels_can_be_renamed_to_background_and_ignored(photographs):
    source = coco(('holiday/rex.jpg', (H, W), 2, SQUARE), ('empty.jpg', (16, 16), 3, SQUARE))
    masks = run_import(source, '--rename', 'dgo=ignore', 'tree=background', '--empty', 'background')
    np.testing.assert_array_equal(masks[REX], 255 * box(1, 1, 9, 9))
    assert not masks[EMPTY].any()


def test_many_problems_are_counted(photographs, capsys):
    source = coco(*((f'no{i}.jpg', (9, 9), 1, SQUARE) for i in range(30)))
    line, before = fault(source, capsys)
    assert '30 problems' in line
    assert before[20] == '... and 10 more like this' and len(before) == 21


def test_names_that_may_be_several_images(photographs, capsys):
    shutil.copy('photos/empty.jpg', 'photos/b c/rex.jpg')
    with open('labels.csv', 'a') as file:
        file.write('b c/rex.jpg,dog,train\n')
    _, before = fault(coco(('rex.jpg', (H, W), 1, SQUARE)), capsys)
    assert "'rex.jpg' may be holiday/rex.jpg and b c/rex.jpg: their names must differ" in before[0]


@pytest.mark.parametrize(
    'words, said',
    [
        (['nowhere'], 'nowhere: no such file or folder'),
        (['labels.csv'], 'labels.csv: is not a JSON file'),
        (['a.zip'], 'a.zip: is an archive: unpack it'),
        (['photos', '--format', 'cvat'], 'photos: is not of the format cvat'),
        (['masks', '--out', 'x.txt'], '--out x.txt: must end in .csv'),
        (['masks', '--before', 'nowhere'], '--before nowhere: no such folder'),
        (['masks', '--rename', 'a'], '--rename a: must be OLD=NEW'),
        (['masks', '--rename', 'a=cat', 'a=dog'], '--rename a=cat a=dog: names a class twice before "="'),
        (['masks', '--rename', 'a=b'], "--rename 'b' is not a class: cat, dog"),
        (['masks', '--ids', 'bob'], '--ids bob: is not an image of the data set'),
        (['masks', '--empty', 'yes'], "invalid choice: 'yes'"),
    ],
)
def test_wrong_flags(photographs, words, said, capsys):
    Path('a.zip').write_bytes(b'PK')
    assert said in fault_of(import_masks, import_line(*words), capsys)
    assert not Path('labels_imported.csv').exists()


def test_flags_that_are_missing(photographs, capsys):
    base = ['masks', '--data_dir', 'photos']
    assert '--dataset is needed' in fault_of(import_masks, base, capsys)
    assert '--out is needed without --dataset' in fault_of(import_masks, [*base, '--labels_only'], capsys)
    Path('set.json').write_text('{}')
    assert '--dataset set.json: only a CSV file' in fault_of(import_masks, [*base, '--dataset', 'set.json'], capsys)


@pytest.mark.parametrize('name', ['labels_imported.csv', 'labels_imported.json', 'photos/labels_imported_masks/x'])
def test_nothing_is_overwritten(photographs, name, capsys):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text('mine')
    assert 'exists: pass another --out' in fault_of(import_masks, import_line('masks'), capsys)
    assert Path(name).read_text() == 'mine'
    import_masks.main(import_masks.parse_args(import_line('masks', '--out', 'other.csv')))
    assert Path(f'photos/other_masks/{REX}.png').is_file()
