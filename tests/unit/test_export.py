"""tools/export.py: the files of each format as their tools expect them, what is left out, and refusals."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from core import UserError
from core.data import voc
from support import fault_of
from support.labelling import EMPTY, FILES, NAMES, REX, SIZES, TOM, label_maps, make_photographs, run_export, run_import
from tools import export
from tools.exchange import georeference
from util.store.arrays import write_npz


@pytest.fixture
def photographs(in_tmp) -> Path:
    make_photographs(in_tmp)
    return in_tmp


def without_ignored(label: np.ndarray) -> np.ndarray:
    return np.where(label == 255, 0, label)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_coco_as_pycocotools_reads_it(photographs, capsys):
    coco = COCO(run_export('coco') / 'annotations.json')
    assert [coco.cats[number]['name'] for number in sorted(coco.cats)] == list(NAMES)
    assert {image['file_name'] for image in coco.imgs.values()} == set(FILES.values())
    for image in coco.imgs.values():
        (image_id,) = (key for key, name in FILES.items() if name == image['file_name'])
        assert (image['height'], image['width']) == SIZES[image_id]
        label = np.zeros(SIZES[image_id], np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            mask = coco.annToMask(annotation)
            assert annotation['area'] == mask.sum() and annotation['iscrowd'] == 0
            assert annotation['bbox'] == coco_mask.toBbox(coco.annToRLE(annotation)).tolist()
            label[mask > 0] = annotation['category_id']
        np.testing.assert_array_equal(label, without_ignored(label_maps()[image_id]))
    printed = capsys.readouterr().out
    assert 'out: 7 objects in 3 images, 0 of them with a score' in printed
    assert '60 ignored pixels (255) became background (--keep_ignored keeps them)' in printed


def test_masks_of_no_image_are_counted(photographs, capsys):
    run_export('coco')
    assert 'left out' not in capsys.readouterr().err
    for name in ('rex2.png', 'TOM.PNG', f'{REX}_overlay.png', '.hidden.txt'):
        Path('masks', name).write_bytes(Path(f'masks/{REX}.png').read_bytes())
    run_export('coco', out='again')
    assert 'left out: 2 PNG files of no image of the data set (TOM.PNG, rex2.png)\n' in capsys.readouterr().err
    run_export('coco', '--ids', REX, out='one')
    assert 'left out' not in capsys.readouterr().err


def test_polygons_of_coco_fill_holes_and_say_so(photographs, capsys):
    coco = COCO(run_export('coco', '--shapes', 'polygons') / 'annotations.json')
    assert '1 of 7 objects have holes, which these polygons fill: --shapes masks keeps them' in capsys.readouterr().err
    image = next(image for image in coco.imgs.values() if 'rex' in image['file_name'])
    largest = max(coco.loadAnns(coco.getAnnIds(image['id'])), key=lambda entry: entry['area'])
    expected = label_maps()[REX] == 2
    expected[5:10, 6:12] = True
    np.testing.assert_array_equal(coco.annToMask(largest) > 0, expected)


def test_cvat(photographs):
    folder = run_export('cvat')
    lines = (folder / 'labelmap.txt').read_text().splitlines()
    colours = voc.palette()
    assert lines[:2] == ['# label:color_rgb:parts:actions', 'background:0,0,0::']
    assert lines[2:] == [f'{name}:{",".join(map(str, colours[i].tolist()))}::' for i, name in enumerate(NAMES, 1)]
    listed = (folder / 'ImageSets/Segmentation/default.txt').read_text().splitlines()
    assert sorted(listed) == ['b c/tom 1.5', 'empty', 'holiday/rex']
    for image_id, name in zip((REX, TOM, EMPTY), ('holiday/rex', 'b c/tom 1.5', 'empty'), strict=True):
        classes = pixels(folder / f'SegmentationClass/{name}.png')
        np.testing.assert_array_equal(classes, colours[without_ignored(label_maps()[image_id])])
        numbers = pixels(folder / f'SegmentationObject/{name}.png')
        assert (numbers.any(2) == classes.any(2)).all()
    assert len(np.unique(numbers.reshape(-1, 3), axis=0)) == 1
    rex = pixels(folder / 'SegmentationObject/holiday/rex.png')
    assert set(map(tuple, rex.reshape(-1, 3))) == set(map(tuple, colours[:5].tolist()))


def test_cvat_with_more_objects_than_a_mask_has_numbers(photographs):
    """The last numbers are of the smallest objects of each class together."""
    Image.effect_noise((64, 48), 80).convert('RGB').save('photos/holiday/rex.jpg')
    label = np.zeros((48, 64), np.uint8)
    label[::2, ::2], label[::4, ::4] = 1, 2  # 768 objects
    Image.fromarray(label).save(f'masks/{REX}.png')
    folder = run_export('cvat', '--ids', REX)
    numbers = pixels(folder / 'SegmentationObject/holiday/rex.png')
    index = {tuple(colour): number for number, colour in enumerate(voc.palette().tolist())}
    numbers = np.array([index[tuple(colour)] for colour in numbers.reshape(-1, 3).tolist()]).reshape(48, 64)
    assert numbers.max() == 255
    for number in np.unique(numbers[numbers > 0]):
        assert len(np.unique(label[numbers == number])) == 1, 'of one class'
    np.testing.assert_array_equal(numbers > 0, label > 0)


def test_cvat_uses_other_colours_where_those_of_the_data_set_repeat(photographs):
    colours = [[0, 0, 0], [255, 0, 0], [255, 0, 0], [0, 0, 255]]
    Path('labels.json').write_text(json.dumps({'classes': list(NAMES), 'palette': colours}))
    assert 'dog:0,128,0::' in (run_export('cvat') / 'labelmap.txt').read_text()
    colours[2] = [9, 9, 9]
    Path('labels.json').write_text(json.dumps({'classes': list(NAMES), 'palette': colours}))
    assert 'dog:9,9,9::' in (run_export('cvat', out='own') / 'labelmap.txt').read_text()


def test_labelme(photographs):
    folder = run_export('labelme')
    assert (folder / 'labels.txt').read_text().splitlines() == list(NAMES)
    path = folder / 'holiday' / 'rex.json'
    content = json.loads(path.read_text())
    assert content['imagePath'] == '../../photos/holiday/rex.jpg'
    assert (path.parent / content['imagePath']).is_file()
    assert (content['imageHeight'], content['imageWidth'], content['imageData']) == (24, 32, None)
    assert [shape['label'] for shape in content['shapes']][:2] == ['dog', 'cat'], 'what is in the hole comes later'
    cat = content['shapes'][1]
    assert (cat['shape_type'], sorted(cat['points'])) == ('polygon', [[8, 7], [8, 9], [10, 7], [10, 9]])
    assert json.loads((folder / 'b c' / 'tom 1.5.json').read_text())['imagePath'] == '../../photos/b c/tom 1.5.png'


def test_masks_of_labelme(photographs):
    content = json.loads((run_export('labelme', '--shapes', 'masks') / 'holiday' / 'rex.json').read_text())
    dog = content['shapes'][0]
    assert (dog['shape_type'], dog['points']) == ('mask', [[3, 2], [24, 19]])
    mask = pixels(io.BytesIO(base64.b64decode(dog['mask']))) > 0
    np.testing.assert_array_equal(mask, (label_maps()[REX] == 2)[2:20, 3:25])


def test_label_studio(photographs):
    folder = run_export('labelstudio')
    tasks = {task['data']['image']: task['predictions'][0] for task in json.loads((folder / 'tasks.json').read_text())}
    assert set(tasks) == {f'/data/local-files/?d=photos/{name.replace(" ", "%20")}' for name in FILES.values()}
    prediction = tasks['/data/local-files/?d=photos/holiday/rex.jpg']
    assert prediction['model_version'] == 'masks' and 'score' not in prediction
    result = prediction['result'][1]
    assert (result['original_height'], result['original_width'], result['image_rotation']) == (24, 32, 0)
    assert (result['type'], result['from_name'], result['to_name']) == ('brushlabels', 'brush', 'image')
    assert result['value']['brushlabels'] == ['cat'] and result['value']['format'] == 'rle'
    ids = [entry['id'] for task in tasks.values() for entry in task['result']]
    assert len({*ids}) == len(ids)
    config = (folder / 'config.xml').read_text()
    assert config.count('<Label value="traffic light, red" background="#808000"/>') == 2


def test_polygons_of_label_studio_are_per_cent_of_the_sides(photographs):
    folder = run_export('labelstudio', '--shapes', 'polygons', '--image_prefix', 'http://x/', '--ids', REX)
    (task,) = json.loads((folder / 'tasks.json').read_text())
    assert task['data'] == {'image': 'http://x/holiday/rex.jpg'}
    value = task['predictions'][0]['result'][1]['value']
    assert sorted(value['points']) == [[25, 29.166667], [25, 37.5], [31.25, 29.166667], [31.25, 37.5]]
    assert (value['polygonlabels'], value['closed']) == (['cat'], True)


def test_semantic_masks_of_ultralytics(photographs, capsys):
    folder = run_export('yolo')
    assert 'ignored' not in capsys.readouterr().out
    assert (folder / 'data.yaml').read_text().splitlines() == [
        'train: images/train', 'val: images/val', 'masks_dir: masks', 'names:', '  0: "background"', '  1: "cat"',
        '  2: "dog"', '  3: "traffic light, red"',
    ]  # fmt: skip
    for image_id, split in ((REX, 'train'), (TOM, 'val'), (EMPTY, 'train')):
        np.testing.assert_array_equal(pixels(folder / f'masks/{split}/{image_id}.png'), label_maps()[image_id])
        link = folder / f'images/{split}/{image_id}{Path(FILES[image_id]).suffix}'
        assert os.path.samefile(link, f'photos/{FILES[image_id]}')


def test_pictures_are_copied_where_there_are_no_links(photographs, monkeypatch):
    def refuse(*_):
        raise OSError('no links')

    monkeypatch.setattr(os, 'symlink', refuse)
    link = run_export('yolo') / f'images/train/{REX}.jpg'
    assert not link.is_symlink()
    assert link.read_bytes() == Path('photos/holiday/rex.jpg').read_bytes()


def test_polygons_of_ultralytics(photographs):
    folder = run_export('yolo', '--shapes', 'polygons')
    assert '  0: "cat"\n  1: "dog"\n' in (folder / 'data.yaml').read_text()
    lines = (folder / f'labels/train/{REX}.txt').read_text().splitlines()
    assert [line.split()[0] for line in lines] == ['1', '0', '2', '2']
    corners = np.array(lines[1].split()[1:], float).reshape(-1, 2) * (32, 24)
    assert sorted(corners.round(3).tolist()) == [[8, 7], [8, 9], [10, 7], [10, 9]]
    assert (folder / f'labels/train/{EMPTY}.txt').read_text() == ''


def test_plain_pngs(photographs):
    folder = run_export('png')
    assert (folder / 'classes.txt').read_text().splitlines() == ['background', *NAMES]
    for image_id, name in FILES.items():
        path = folder / Path(name).with_suffix('.png')
        with Image.open(path) as image:
            assert image.mode == 'L'
        np.testing.assert_array_equal(pixels(path), label_maps()[image_id])


def test_geojson_in_pixels(photographs):
    content = json.loads((run_export('geojson') / 'holiday/rex.geojson').read_text())
    assert (content['type'], 'crs' in content) == ('FeatureCollection', False)
    dog, cat = content['features'][:2]
    assert dog['properties']['classification'] == {'name': 'dog', 'color': voc.palette()[2].tolist()}
    assert dog['properties']['image'] == 'holiday/rex.jpg'
    assert len(dog['geometry']['coordinates']) == 2, 'a hole'
    (ring,) = cat['geometry']['coordinates']
    assert ring[0] == ring[-1] and sorted(ring[:-1]) == [[8, 7], [8, 9], [10, 7], [10, 9]]


# Pixels of 0.5 m; the corner of the first one is at 1000 east, 2000 north in UTM zone 33.
TAGS = {33550: (0.5, 0.5, 0.0), 33922: (0.0, 0.0, 0.0, 1000.0, 2000.0, 0.0)}
TAGS |= {34735: (1, 1, 0, 2, 1026, 34737, 6, 0, 3072, 0, 1, 32633), 34737: 'UTM33|'}
KINDS = {33550: 12, 33922: 12, 34735: 3, 34737: 2}  # DOUBLE, SHORT, ASCII


@pytest.fixture
def on_the_ground(photographs) -> None:
    """The only photograph is a GeoTIFF, with a rectangle of class 1 in its mask."""
    directory = ImageFileDirectory_v2()
    for tag, value in TAGS.items():
        directory[tag] = value
        directory.tagtype[tag] = KINDS[tag]
    Image.new('RGB', (32, 24)).save('photos/map.tif', tiffinfo=directory)
    Path('labels.csv').write_text('# classes: cat;dog\nimage,classes\nmap.tif,cat\n')
    label = np.zeros((24, 32), np.uint8)
    label[4:8, 10:20] = 1
    Image.fromarray(label).save('masks/map.png')


def test_geojson_of_a_geotiff(on_the_ground):
    content = json.loads((run_export('geojson') / 'map.geojson').read_text())
    assert content['crs']['properties']['name'] == 'urn:ogc:def:crs:EPSG::32633'
    (ring,) = content['features'][0]['geometry']['coordinates']
    assert sorted(map(tuple, ring[:-1])) == [(1005, 1996), (1005, 1998), (1010, 1996), (1010, 1998)]


@pytest.mark.parametrize('name', ['urn:ogc:def:crs:OGC:1.3:CRS84', 'urn:ogc:def:crs:EPSG::4326', 'EPSG:4326'])
def test_geojson_of_another_reference_system_is_a_problem(on_the_ground, capsys, name):
    """As QGIS saves it, in degrees: the objects would lie elsewhere, or nowhere."""
    path = run_export('geojson') / 'map.geojson'
    assert set(np.unique(run_import('out')['map'])) == {0, 1}
    content = json.loads(path.read_text())
    content['crs']['properties']['name'] = name
    path.write_text(json.dumps(content))
    Path('labels_imported.csv').unlink()
    with pytest.raises(UserError):
        run_import('out', '--out', 'other.csv')
    line = 'out/map.geojson: its coordinates are in EPSG:4326, the image in EPSG:32633: save it in the latter'
    assert line in capsys.readouterr().err


def test_geotiff_of_a_geotiff(on_the_ground):
    """The tags of the image as they are, the class indices and their colours."""
    folder = run_export('geotiff')
    assert (folder / 'classes.txt').read_text() == 'background\ncat\ndog\n'
    with Image.open(folder / 'map.tif') as mask:
        assert mask.mode == 'P'
        assert mask.getpalette()[3:6] == voc.palette()[1].tolist()
        assert {tag: mask.tag_v2[tag] for tag in TAGS} == TAGS
        assert {tag: mask.tag_v2.tagtype[tag] for tag in KINDS} == KINDS
        np.testing.assert_array_equal(np.array(mask), pixels('masks/map.png'))
    assert georeference.find(folder / 'map.tif').epsg == 32633


def test_geotiff_in_rasterio(on_the_ground):
    rasterio = pytest.importorskip('rasterio')
    with rasterio.open(run_export('geotiff') / 'map.tif') as mask:
        assert mask.crs.to_epsg() == 32633
        assert mask.xy(4, 10, offset='ul') == (1005, 1998)
        np.testing.assert_array_equal(mask.read(1), pixels('masks/map.png'))
        assert mask.colormap(1)[1][:3] == tuple(voc.palette()[1].tolist())


@pytest.mark.parametrize('world', ['0.5\n0\n0\n-0.5\n1000.25\n1999.75\n', None])
def test_geotiff_of_a_photograph(photographs, world):
    """With a world file it has its affine map; without one it is a plain TIFF."""
    if world:
        Path('photos/holiday/rex.jgw').write_text(world)
    found = georeference.find(run_export('geotiff', '--ids', REX) / 'holiday/rex.tif')
    if world is None:
        assert found is None
    else:
        np.testing.assert_allclose(found.matrix, [[0.5, 0, 1000], [0, -0.5, 2000]])
        assert found.epsg is None


def test_scores_of_predict(photographs):
    probability = np.full((2, 24, 32), 0.25, np.float16)
    probability[1] = 0.75
    write_npz(Path(f'masks/{REX}.npz'), keys=np.array([0, 2]), probability=probability)
    annotations = json.loads((run_export('coco') / 'annotations.json').read_text())['annotations']
    assert [entry.get('score') for entry in annotations if entry['image_id'] == 1] == [0.75, None, None, None]
    (task,) = json.loads((run_export('labelstudio', '--ids', REX, out='ls') / 'tasks.json').read_text())
    assert task['predictions'][0]['score'] == 0.75
    shape = json.loads((run_export('labelme', out='lm') / 'holiday/rex.json').read_text())['shapes'][0]
    assert shape['description'] == 'score 0.75'


def test_scores_that_are_no_numbers(photographs, capsys):
    path = Path(f'masks/{REX}.npz')
    np.savez(path, keys=np.array([0, 2]), probability=np.full((2, 24, 32), np.nan, np.float16))
    assert f'{path}: "probability" contains non-finite values' in fault_of(export, line('--ids', REX), capsys)


@pytest.mark.parametrize('kind', ['coco', 'cvat', 'labelme', 'labelstudio', 'geojson'])
def test_ignored_pixels_can_be_kept_as_a_class(photographs, kind):
    folder = run_export(kind, '--keep_ignored', '--ids', REX)
    assert any('ignore' in path.read_text(errors='replace') for path in folder.rglob('*') if path.is_file())
    assert not any(
        'ignore' in path.read_text(errors='replace')
        for path in run_export(kind, '--ids', REX, out='without').rglob('*')
        if path.is_file()
    )


def test_small_objects_are_left_out_and_counted(photographs, capsys):
    content = json.loads((run_export('coco', '--min_area', '5') / 'annotations.json').read_text())
    assert min(entry['area'] for entry in content['annotations']) >= 5
    assert '3 objects of fewer than 5 pixels were left out' in capsys.readouterr().out
    label = pixels(run_export('png', '--min_area', '5', out='png') / 'holiday/rex.png')
    assert 3 not in label and 255 in label


def test_folders_of_stages_know_their_data_set(experiment, monkeypatch, tmp_path):
    monkeypatch.chdir(experiment)
    names = sorted(path.name for path in Path('experiments/predictions').iterdir() if '@crf=' in path.name)
    out = tmp_path / 'out'
    export.main(export.parse_args([names[0], '--format', 'coco', '--out', str(out), '--num_workers', '2']))
    content = json.loads((out / 'annotations.json').read_text())
    assert content['info']['description'] == names[0]
    assert len(content['images']) == len(list(Path('experiments/predictions', names[0]).glob('*.png')))


def test_classes_can_be_named_instead_of_a_data_set(photographs):
    line = ['masks', '--classes', 'cat,dog,"traffic light, red"', '--data_dir', 'photos', '--num_workers', '0']
    export.main(export.parse_args([*line, '--format', 'coco', '--out', 'out']))
    content = json.loads(Path('out/annotations.json').read_text())
    assert [entry['name'] for entry in content['categories']] == list(NAMES)
    assert {image['file_name'] for image in content['images']} == set(FILES.values())


def test_masks_of_other_classes_are_refused(photographs, capsys):
    """Every cat would go out as a dog."""
    (photographs / 'masks/args.json').write_text(json.dumps({'fingerprint': {'classes': NAMES}}))
    words = ['masks', '--classes', 'dog,cat,"traffic light, red"', '--data_dir', 'photos', '--format', 'png']
    fault = fault_of(export, [*words, '--out', 'out'], capsys)
    names = (
        'background, cat, dog, traffic light, red, the data set "photos" has background, dog, cat, traffic light, red'
    )
    assert fault.endswith(f'masks: its labels are of {names}: pass the data set that it was made with')
    assert not Path('out').exists()


# Refusals -----------------------------------------------------------------------------------------------------------


def line(*more: str, kind='coco') -> list[str]:
    return ['masks', '--dataset', 'labels.csv', '--data_dir', 'photos', '--format', kind, '--out', 'out', *more]


def named(classes: str) -> list[str]:
    return ['masks', '--classes', classes, '--data_dir', 'photos', '--format', 'coco', '--out', 'out']


@pytest.mark.parametrize(
    'words, said',
    [
        (['nowhere', '--format', 'coco', '--out', 'out'], 'FOLDER nowhere: neither'),
        (
            ['masks', '--format', 'coco', '--out', 'out'],
            'FOLDER masks: does not record its data set: pass',
        ),
        (line('--ids', 'bob'), '--ids bob: is not an image of the data set with a label map in masks'),
        (line('--shapes', 'polygons', kind='cvat'), '--shapes polygons: cvat has masks only'),
        (line('--classes', 'cat'), '--classes goes with --data_dir and without --dataset'),
        (
            named('background,x'),
            '--classes background,x: "classes" must be 1 to 254 different names, without',
        ),
        (named('cat,cat'), '--classes cat,cat: "classes" must be 1 to 254 different names'),
        (named(','.join(map(str, range(255)))), '"classes" must be 1 to 254 different names'),
        (named('cat,,dog'), "'cat,,dog' is not one line of names, separated by commas"),
        (named('cat\ndog'), "'cat\\ndog' is not one line of names, separated by commas"),
        (line('--simplify', '-1'), '--simplify'),
        (line(kind='docx'), "argument --format: invalid choice: 'docx'"),
    ],
)
def test_wrong_flags(photographs, words, said, capsys):
    assert said in fault_of(export, words, capsys)
    assert not Path('out').exists()


def test_maps_are_not_label_maps(experiment, monkeypatch, capsys):
    monkeypatch.chdir(experiment)
    name = next(path.name for path in Path('experiments/predictions').iterdir() if path.name.endswith('@rw'))
    said = fault_of(export, [name, '--format', 'coco', '--out', 'out'], capsys)
    assert 'contains random-walk CAMs: name a folder of label maps' in said


def test_nothing_is_overwritten_and_nothing_half_written(photographs, capsys):
    Path('out').mkdir()
    Path('out/mine.txt').write_text('mine')
    assert '--out' in fault_of(export, line(), capsys)
    assert [path.name for path in Path('out').iterdir()] == ['mine.txt']
    Path('out/mine.txt').unlink()
    Path(f'masks/{TOM}.png').write_bytes(b'damaged')
    assert 'not a readable mask' in fault_of(export, line('--num_workers', '0'), capsys)
    assert list(Path('out').iterdir()) == []
    assert not [path for path in Path().iterdir() if path.name.endswith('.partial')]
    Path(f'masks/{TOM}.png').unlink()
    export.main(export.parse_args(line('--num_workers', '0')))
    assert Path('out/annotations.json').is_file()


def test_a_class_name_that_cvat_cannot_hold(photographs, capsys):
    Path('labels.csv').write_text('# classes: cat;a:b;c\nimage,classes\nholiday/rex.jpg,cat\n')
    assert "the class 'a:b': labelmap.txt of CVAT cannot hold" in fault_of(export, line(kind='cvat'), capsys)
    assert not Path('out').exists()


def test_a_class_of_the_name_of_ignored_pixels(photographs, capsys):
    Path('labels.csv').write_text('# classes: cat;dog;ignore\nimage,classes\nholiday/rex.jpg,cat\n')
    said = fault_of(export, line('--keep_ignored'), capsys)
    assert '--keep_ignored would mix up the class ignore of the data set with ignored pixels' in said
