"""tools/prepare_coco.py: masks, class names and CSV of a small COCO folder; error lines; resuming."""

import csv
import importlib
import json
import subprocess

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from core.data import voc
from core.data.dataset import open_dataset
from support import REPOSITORY, fault_of, run_stage
from support.coco import (
    NAMES,
    TRAIN,
    H,
    W,
    annotation,
    compressed,
    content,
    filled,
    make_coco,
    rectangle,
    write,
)
from tools import prepare_coco
from util.store import formats

# pycocotools 2.0.11 with NumPy 2.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')


@pytest.fixture
def root(tmp_path):
    return make_coco(tmp_path / 'COCO')


@pytest.fixture
def entries():
    """The annotations of train, to be damaged."""
    return json.loads(json.dumps(content(2017, 'train', TRAIN, (1, 4, 5, 6))))


def command(root, *more) -> list[str]:
    return ['--data_dir', str(root), '--num_workers', '0', *more]


def read_mask(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == 'P'
        assert image.getpalette() == voc.palette().reshape(-1).tolist()
        return np.array(image)


def read_rows(path) -> list[list[str]]:
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.reader(file))


def expected_masks() -> dict[str, np.ndarray]:
    """The masks by the direct way: rectangles painted from the largest to the smallest."""
    masks = {f'train/{i:012d}': np.zeros((H, W), np.uint8) for i in (1, 4, 5, 6)}
    masks['train/000000000001'][2:20, 4:28] = 3
    masks['train/000000000001'][8:12, 8:12] = 2
    masks['train/000000000005'][:4, :4] = masks['train/000000000005'][10:16, 10:20] = 1
    masks['train/000000000005'][:5, :2] = masks['train/000000000005'][20:, 30:] = 255
    masks['val/000000000001'] = np.zeros((H, W), np.uint8)
    masks['val/000000000001'][:2, :2] = masks['val/000000000001'][5:, 5:] = 255
    masks['val/000000000001'][:, 0] = 1
    return masks


@pytest.mark.parametrize('workers', ['0', '2'])
def test_masks(root, workers):
    run_stage(prepare_coco, ['--data_dir', str(root), '--num_workers', workers])
    expected = expected_masks()
    folder = root / 'masks2017'
    assert {path.relative_to(folder).with_suffix('').as_posix() for path in folder.rglob('*.png')} == set(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(read_mask(folder / f'{name}.png'), mask, err_msg=name)


@pytest.mark.parametrize('year', [2014, 2017])
def test_rows_and_class_names(tmp_path, year, capsys):
    root = make_coco(tmp_path / 'COCO', year)
    run_stage(prepare_coco, command(root, '--year', str(year)))
    prefix = {split: f'COCO_{split}2014_' if year == 2014 else '' for split in ('train', 'val')}

    def row(split, number, classes):
        stem = f'{prefix[split]}{number:012d}'
        return [f'{split}{year}/{stem}.jpg', classes, f'masks{year}/{split}/{stem}.png', split]

    assert read_rows(root / f'coco{year}.csv') == [
        ['image', 'classes', 'mask', 'split'],
        row('train', 1, 'dog;cat'),
        row('train', 4, ''),
        row('train', 5, 'traffic light, red;dog'),
        row('train', 6, ''),
        row('val', 1, 'traffic light, red;cat'),
    ]
    assert json.loads((root / f'coco{year}.json').read_text()) == {'name': f'COCO {year}', 'classes': NAMES}
    for image, _, mask, _ in read_rows(root / f'coco{year}.csv')[1:]:
        assert (root / image).is_file() and (root / mask).is_file()
    assert f'coco{year}.csv: 4 images of train, 1 of val, 3 classes' in capsys.readouterr().out


def test_negatives_can_be_skipped(root):
    run_stage(prepare_coco, command(root, '--negatives', 'skip'))
    assert [row[0][-5:] for row in read_rows(root / 'coco2017.csv')[1:]] == ['1.jpg', '5.jpg', '1.jpg']
    assert len(list(root.rglob('*.png'))) == 3
    run_stage(prepare_coco, command(root))
    assert len(read_rows(root / 'coco2017.csv')) == 6
    assert len(list(root.rglob('*.png'))) == 5


def test_slanted_polygon_as_pycocotools_draws_it(root, entries):
    polygon = [3.3, 2.71, 29.5, 9.25, 17.12, 22.9, 5.05, 15.5]
    entries['annotations'] = [annotation(4, 90, [polygon], 300.5)]
    write(root, 'train', entries)
    run_stage(prepare_coco, command(root))
    mask = coco_mask.decode(coco_mask.frPyObjects([polygon], H, W))[..., 0]
    np.testing.assert_array_equal(read_mask(root / 'masks2017/train/000000000004.png'), 3 * mask)


def test_equal_areas_keep_the_order_of_the_file(root, entries):
    entries['annotations'] = [
        annotation(4, 7, [rectangle(0, 0, 9, 9)], 81),
        annotation(4, 90, [rectangle(2, 2, 9, 9)], 81),
    ]
    write(root, 'train', entries)
    run_stage(prepare_coco, command(root))
    expected = 2 * filled((0, 0, 9, 9)) + filled((2, 2, 9, 9))
    np.testing.assert_array_equal(read_mask(root / 'masks2017/train/000000000004.png'), expected)


def test_a_stopped_run_resumes(root, monkeypatch):
    """The second run writes the missing mask only, and the same CSV."""
    real, written = prepare_coco.write_bytes, []

    def full_disk(path, data):
        if len(written) == 2:
            raise OSError('disk full')
        written.append(path.name)
        real(path, data)

    monkeypatch.setattr(prepare_coco, 'write_bytes', full_disk)
    with pytest.raises(OSError, match='disk full'):
        run_stage(prepare_coco, command(root))
    assert written == ['000000000001.png', '000000000004.png']
    assert not (root / 'coco2017.csv').exists() and not (root / 'coco2017.json').exists()
    leftover = root / 'masks2017' / 'train' / '.0123456789abcdef.1.tmp'
    leftover.touch()

    monkeypatch.setattr(prepare_coco, 'write_bytes', lambda path, data: (written.append(path.name), real(path, data)))
    del written[:]
    run_stage(prepare_coco, command(root))
    assert written == ['000000000005.png', '000000000006.png', '000000000001.png', 'coco2017.csv']
    assert not leftover.exists()
    for name, mask in expected_masks().items():
        np.testing.assert_array_equal(read_mask(root / 'masks2017' / f'{name}.png'), mask)
    resumed = (root / 'coco2017.csv').read_bytes()
    del written[:]
    run_stage(prepare_coco, command(root))
    assert written == ['coco2017.csv']
    assert (root / 'coco2017.csv').read_bytes() == resumed


@pytest.mark.parametrize('damage', ['cut', 'text', 'size'])
def test_a_damaged_mask_is_made_again(root, damage):
    run_stage(prepare_coco, command(root))
    path = root / 'masks2017/train/000000000001.png'
    before = path.read_bytes()
    if damage == 'size':
        Image.new('P', (4, 4)).save(path)
    else:
        path.write_bytes(before[:-20] if damage == 'cut' else b'xx')
    run_stage(prepare_coco, command(root))
    assert path.read_bytes() == before


def test_other_annotations_replace_the_masks_of_their_split(root, entries, monkeypatch):
    run_stage(prepare_coco, command(root))
    before = (root / 'masks2017' / 'val' / '000000000001.png').stat().st_mtime_ns
    entries['annotations'] = [annotation(1, 2, [rectangle(0, 0, 3, 3)], 9)]
    entries['images'] = [image for image in entries['images'] if image['id'] == 1]
    write(root, 'train', entries)

    def stop(*_):
        raise OSError('stopped')

    with monkeypatch.context() as patch:
        patch.setattr(prepare_coco, 'parallel_map', stop)
        with pytest.raises(OSError, match='stopped'):
            run_stage(prepare_coco, command(root))
    assert not (root / 'coco2017.csv').exists(), 'it lists masks that were removed'
    run_stage(prepare_coco, command(root))
    assert [path.name for path in (root / 'masks2017' / 'train').glob('*.png')] == ['000000000001.png']
    np.testing.assert_array_equal(read_mask(root / 'masks2017/train/000000000001.png'), filled((0, 0, 3, 3)))
    assert (root / 'masks2017' / 'val' / '000000000001.png').stat().st_mtime_ns == before


@pytest.mark.parametrize('name', ['masks2017/val/mine.png', 'coco2017.csv', 'coco2017.json'])
def test_files_of_others_are_kept(root, name, capsys):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
    assert f'{path}: already exists, and was not written by this program' in fault_of(
        prepare_coco, command(root), capsys
    )
    assert path.read_text() == 'mine'


def test_removed_folder_of_masks_is_made_again(root):
    run_stage(prepare_coco, command(root))
    for path in (root / 'masks2017' / 'val').iterdir():
        path.unlink()
    run_stage(prepare_coco, command(root))
    np.testing.assert_array_equal(
        read_mask(root / 'masks2017/val/000000000001.png'), expected_masks()['val/000000000001']
    )


# Errors -------------------------------------------------------------------------------------------------------------


def test_missing_images_are_counted(root, capsys):
    for number in (4, 6):
        (root / 'train2017' / f'{number:012d}.jpg').unlink()
    first = root / 'train2017' / '000000000004.jpg'
    text = fault_of(prepare_coco, command(root), capsys)
    assert f'{first}: no such image (2 of 4 are missing): unpack train2017.zip there' in text
    assert not list(root.rglob('*.png'))


def test_missing_folders_and_files(root, capsys):
    text = fault_of(prepare_coco, ['--data_dir', str(root / 'nowhere')], capsys)
    assert f'--data_dir {root / "nowhere"}: no such folder' in text
    assert not (root / 'nowhere').exists()
    (root / 'val2017' / '000000000001.jpg').unlink()
    (root / 'val2017').rmdir()
    assert f'{root / "val2017"}: cannot be read' in fault_of(prepare_coco, command(root), capsys)
    path = root / 'annotations' / 'instances_train2014.json'
    assert f'{path}: cannot be read' in fault_of(prepare_coco, command(root, '--year', '2014'), capsys)


@pytest.mark.parametrize('line, named', [('--year 2015', '--year'), ('--negatives no', '--negatives')])
def test_wrong_flags_are_named(line, named, capsys):
    with pytest.raises(SystemExit):
        prepare_coco.parse_args(line.split())
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    'text, said',
    [
        (b'{"images": [', 'not valid JSON'),
        (b'\xff\xfe', 'not valid JSON'),
        (b'[' * 100_000, 'not valid JSON'),
        (b'[]', 'needs the lists images, annotations, categories'),
        (b'{"images": [], "annotations": {}, "categories": []}', 'needs the lists images, annotations, categories'),
        (b'{"images": [], "annotations": [{"id": 1}], "categories": []}', 'an annotation lacks "image_id"'),
        (b'{"images": [], "annotations": [{"id": 8, "image_id": 1, "caption": "x"}]}', '8: lacks "category_id"'),
        (b'{"images": [], "annotations": [], "categories": []}', 'has 0 categories: 1 to 254 are possible'),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', 'contains no images'),
    ],
)
def test_damaged_or_foreign_json(root, text, said, capsys):
    path = root / 'annotations' / 'instances_val2017.json'
    path.write_bytes(text)
    line = fault_of(prepare_coco, command(root), capsys)
    assert str(path) in line
    assert said in line
    assert not list(root.rglob('*.png')), 'nothing is written before both files are good'


NAN = float('nan')
TOO_FEW = 'do not add up to 24x32 pixels'


@pytest.mark.parametrize(
    'change, said',
    [
        ({'area': 'x'}, '"area" a number'),
        ({'area': NAN}, '"area" a number'),
        ({'iscrowd': 2}, '"iscrowd" must be 0 or 1'),
        ({'category_id': 7.0}, 'must be integers or texts'),
        ({'image_id': [1]}, 'must be integers or texts'),
        ({'category_id': 3}, 'category_id 3 is not in "categories"'),
        ({'image_id': 77}, 'image_id 77 of an annotation is not in "images"'),
        ({'segmentation': 'x'}, 'must be a list of polygons, or RLE'),
        ({'segmentation': [1, 2, 3, 4, 5, 6]}, 'a polygon must be a list'),
        ({'segmentation': [[1, 2, 3, 4, 5, 6, 7]]}, 'a polygon must be a list'),
        ({'segmentation': [[1, 2, 3, 4, 5, NAN]]}, 'a polygon must be a list'),
        ({'segmentation': [[1, 2, 3, 4, 5, 1e300]]}, 'a polygon must be a list'),
        ({'segmentation': [[1, 2, 3, 4, 5, 'x']]}, 'a polygon must be a list'),
        ({'segmentation': {'counts': [768]}}, 'RLE with "counts" and "size"'),
        ({'segmentation': {'counts': [768], 'size': [24]}}, 'must be [height, width]'),
        ({'segmentation': {'counts': [768], 'size': [10**9, 10**9]}}, 'must be [height, width]'),
        ({'segmentation': {'counts': [768], 'size': [32, 24]}}, 'is not of the size of the image'),
        ({'segmentation': {'counts': [700], 'size': [24, 32]}}, TOO_FEW),
        ({'segmentation': {'counts': [700, 100], 'size': [24, 32]}}, TOO_FEW),
        ({'segmentation': {'counts': [800, -32], 'size': [24, 32]}}, TOO_FEW),
        ({'segmentation': {'counts': [768.0], 'size': [24, 32]}}, TOO_FEW),
        ({'segmentation': {'counts': '', 'size': [24, 32]}}, TOO_FEW),
        ({'segmentation': {'counts': '1', 'size': [24, 32]}}, TOO_FEW),
        ({'segmentation': {'counts': 'ooooo', 'size': [24, 32]}}, TOO_FEW),
        ({'segmentation': {'counts': 'o\0o\0', 'size': [24, 32]}}, TOO_FEW),
        ({'segmentation': {'counts': None, 'size': [24, 32]}}, TOO_FEW),
    ],
)
def test_damaged_annotations(root, entries, change, said, capsys):
    entries['annotations'][3] |= change
    path = write(root, 'train', entries)
    text = fault_of(prepare_coco, command(root), capsys)
    assert str(path) in text
    assert said in text


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (24, 32)])
def test_compressed_counts_must_fit_exactly(size, rng):
    for density in (0, 0.1, 0.5, 1):
        rle = compressed((rng.random(size) < density).astype(np.uint8))
        assert prepare_coco.read_rle(rle)['counts'] == rle['counts'].encode()
        for wrong in ([size[0], size[1] + 1], [size[0] + 1, size[1]], [size[0], size[1] - 1]):
            with pytest.raises(ValueError):
                prepare_coco.read_rle({'counts': rle['counts'], 'size': wrong})


@pytest.mark.parametrize(
    'name, change, said',
    [
        ('images', {'id': None}, 'an image must have an "id", an integer or a text, and a "file_name"'),
        ('images', {'height': 0}, 'image 6 must have a "height" and a "width" of 1 to 65535'),
        ('images', {'width': 1.5}, 'image 6 must have a "height" and a "width"'),
        ('images', {'file_name': '../x.jpg'}, "image 6: '../x.jpg' is not a file name"),
        ('images', {'file_name': ''}, "image 6: '' is not a file name"),
        ('images', {'file_name': 'a\nb.jpg'}, 'is not a file name'),
        ('images', {'id': 1}, 'image 1 (000000000001.jpg) occurs twice'),
        ('images', {'file_name': '000000000001.png'}, 'image 1 (000000000001.jpg) occurs twice'),
        ('categories', {'id': 90}, 'category 90 (cat) occurs twice'),
        ('categories', {'name': 'cat'}, 'category 90 (cat) occurs twice'),
        ('categories', {'name': 'a;b'}, "category 'a;b' cannot be the name of a class"),
        ('categories', {'name': 'background'}, "category 'background' cannot be"),
        ('categories', {'name': None}, 'a category must have an "id", an integer or a text, and a "name"'),
    ],
)
def test_damaged_images_and_categories(root, entries, name, change, said, capsys):
    entries[name][0] |= change
    path = write(root, 'train', entries)
    text = fault_of(prepare_coco, command(root), capsys)
    assert str(path) in text
    assert said in text


def test_number_of_categories(root, entries, capsys):
    entries['categories'] += [{'id': 1000 + i, 'name': f'class {i}'} for i in range(252)]
    write(root, 'train', entries)
    assert 'has 255 categories: 1 to 254 are possible' in fault_of(prepare_coco, command(root), capsys)


def test_categories_of_train_and_val_must_agree(root, entries, capsys):
    entries['categories'][0]['name'] = 'wolf'
    write(root, 'train', entries)
    text = fault_of(prepare_coco, command(root), capsys)
    assert 'train and val of 2017 have different categories' in text


# Neighbours ---------------------------------------------------------------------------------------------------------


def test_commands_of_the_recipe():
    """Every stage accepts its command, and reads what an earlier one writes."""
    _, _, text = (REPOSITORY / 'recipes' / 'coco.sh').read_text().partition('source ')
    fake = 'set -euo pipefail; python() { echo "$*"; }; D=COCO\n' + text.split('\n', 1)[1]
    printed = subprocess.run(['bash', '-c', fake], capture_output=True, text=True, check=True).stdout
    commands = [line.removeprefix('-m ').split() for line in printed.splitlines() if line]
    options = [importlib.import_module(name.removesuffix('.py')).parse_args(words) for name, *words in commands]
    prepared, classifier, cams, _, labels, affinity, walk, _, pseudo, _, deeplab, predictions, _, report = options
    assert (prepared.year, str(prepared.data_dir)) == (2017, 'COCO')
    assert all((args.dataset, args.data_dir) == ('COCO/coco2017.csv', 'COCO') for args in options[1:-1])
    assert report.names == ['COCO2017']
    assert (cams.tag, walk.model_name, predictions.tag) == (classifier.tag, affinity.tag, deeplab.tag)
    names = [
        formats.folder_name(kind, vars(args), args.record().defaults)
        for kind, args in (
            (formats.CAM, cams),
            (formats.AFFINITY_LABEL, labels),
            (formats.RANDOM_WALK, walk),
            (formats.PSEUDO_LABEL, pseudo),
            (formats.PREDICTION, predictions),
        )
    ]
    assert [labels.experiment_name, affinity.label_name, pseudo.experiment_name, deeplab.label_name] == names[:4]
    assert walk.cam_dir == names[0]
    scored = [args.experiment_name for args in (options[3], options[7], options[9], options[12])]
    assert scored == [names[0], *names[2:]]


def test_the_result_is_a_data_set(root):
    run_stage(prepare_coco, command(root))
    dataset = open_dataset(root / 'coco2017.csv', root)
    assert dataset.name == 'COCO 2017'
    assert list(dataset.class_names) == NAMES
    assert [len(dataset.ids(domain)) for domain in ('train', 'val')] == [4, 1]
    first, second = dataset.ids('train')[:2]
    assert dataset.read_labels(first).tolist() == [0, 1, 1]
    assert dataset.read_labels(second).tolist() == [0, 0, 0]
    np.testing.assert_array_equal(dataset.read_mask(first, (H, W)), expected_masks()['train/000000000001'])
