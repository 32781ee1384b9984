"""Every reader of files, on mutations of valid ones: success or one line of error, within its memory and time."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from core import has_control_characters, printable
from core.data import exports, voc
from core.data.dataset import open_dataset
from core.data.images import MaskValues, image_size, read_image, read_label_map
from core.data.pixels import Reading
from core.image_scores import SIZES
from core.models.model_file import ModelFile
from support import kinds, working_in
from support.coco import TRAIN, H, W, content, make_coco
from support.fuzz import attempt, fuzz
from support.labelling import REX, make_photographs, run_export, submit
from tools import prepare_coco
from tools.exchange import formats as formats_of_tools
from tools.exchange.matching import Classes, Images
from tools.exchange.reading import EXPORTED
from tools.exchange.taking import match, take_labels, take_mask
from tools.import_published import read_cams
from tools.importing.published import convert
from tools.reporting import find, provenance
from tools.reporting.entries import find_entries
from util.store import arrays, formats, hashes, locks
from util.store.files import write_json
from util.store.fingerprints import read_args, read_inputs

SECONDS = 5  # of CPU for a reader
MAPS = np.linspace(0, 1, 24, dtype=np.float16).reshape(2, 3, 4)
KEYS = np.array([0, 2, 5])


def saved(save, *arguments, **options) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arguments, **options)
    return buffer.getvalue()


def picture(mode: str, format: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 17, 3), np.uint8)
    return saved(Image.fromarray(pixels).convert(mode).save, format, **options)


# Seeds and readers --------------------------------------------------------------------------------------------------


def npz(folder):
    maps = saved(lambda file: np.savez_compressed(file, keys=KEYS, cam=MAPS, hr_cam=MAPS, rw=MAPS))
    plain = saved(lambda file: np.savez(file, keys=KEYS, cam=MAPS, hr_cam=MAPS, edge=MAPS[0]))

    def read(path):
        arrays.names_inside(path)
        attempt(arrays.read_maps, path, 'hr_cam', 20)
        attempt(arrays.read_edge, path)
        arrays.read_maps(path, 'cam', 20, (3, 4))

    return {'maps.npz': maps, 'plain.npz': plain}, read


def counts(folder):
    named = {'ids': np.array(['a', 'b']), 'thresholds': np.array([0.1, 0.2]), 'images': np.array([0, 1, 1], np.uint8)}
    named |= {'classes': np.array([0, 0, 1], np.uint8), 'counts': np.ones((3, 2, 3), np.uint16)}
    result = {'confusion': [[2, 0], [0, 1]], 'threshold': 0.2, 'two_fold': {'thresholds': [0.1, 0.2]}}
    seed = saved(lambda file: np.savez_compressed(file, **named))
    return {'counts.npz': seed}, lambda path: find.read_counts({**result, 'path': path.with_suffix('.json')}, True)


def npy(folder):
    content = {'keys': KEYS, 'cam': torch.from_numpy(MAPS), 'hr_cam': MAPS.astype(np.float32)}
    walk = {'keys': KEYS, 'rw': MAPS.astype(np.float32)}

    def read(path):
        kind = formats.RANDOM_WALK if path.stem == 'rw' else formats.CAM
        attempt(read_cams, path, formats.RANDOM_WALK, 20)
        read_cams(path, kind, 20)

    old = saved(np.save, content).replace(b'numpy._core.', b'numpy.core.')
    return {'a.npy': saved(np.save, content), 'b.npy': saved(np.save, content | walk), 'c.npy': old}, read


def masks(folder):
    seeds = {f'{mode}.png': picture(mode, 'PNG') for mode in ('P', 'L', '1', 'RGB', 'RGBA', 'LA', 'I;16')}
    values = [MaskValues.parse({'0': 'background', '255': 'cat', '7': 'ignore'}, ('cat',))]
    values += [MaskValues.parse({'#ff0000': 'cat', '#000000': 'background'}, ('cat',)), None]

    def read(path):
        for meaning in values:
            attempt(read_label_map, path, 255, None, meaning)

    return seeds, read


def pictures(folder):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, 'maker', 72.0
    few = [Image.new('RGB', (9, 7), colour) for colour in ('red', 'blue')]
    animated = {'save_all': True, 'append_images': few, 'duration': 10}
    animation = saved(few[0].save, 'WEBP', **animated)
    seeds = {
        'a.jpg': picture('RGB', 'JPEG', exif=exif),
        'b.jpg': picture('CMYK', 'JPEG', progressive=True),
        'c.jpg': picture('L', 'JPEG', exif=exif),
        'a.png': picture('RGBA', 'PNG', exif=exif),
        'b.png': picture('P', 'PNG', transparency=b'\0\1\2'),
        'c.png': picture('I;16', 'PNG'),
        'a.webp': picture('RGB', 'WEBP', exif=exif),
        'b.webp': picture('RGBA', 'WEBP', lossless=True),
        'c.webp': animation,
        'a.gif': picture('P', 'GIF', transparency=3),
        'b.gif': picture('RGB', 'GIF', **animated),
        'a.bmp': picture('RGB', 'BMP'),
        'b.bmp': picture('P', 'BMP'),
        'a.tif': picture('RGB', 'TIFF', exif=exif),
        'b.tif': picture('RGB', 'TIFF', compression='tiff_lzw'),
        'c.tif': picture('CMYK', 'TIFF', compression='tiff_adobe_deflate'),
        'd.tif': picture('RGB', 'TIFF', compression='jpeg'),
        'e.tif': picture('1', 'TIFF', compression='group4'),
        'f.tif': picture('F', 'TIFF'),
    }

    first, second = (Image.fromarray(np.full((7, 9), value, np.uint16)) for value in (300, 4000))
    seeds['g.tif'] = saved(first.save, 'TIFF', save_all=True, append_images=[second])
    for ending in ('png', 'tiff'):
        wide = np.full((7, 9, 4), 4000, np.uint16)
        seeds[f'w.{ending}'] = cv2.imencode(f'.{ending}', wide)[1].tobytes()

    def read(path):
        attempt(image_size, path)
        attempt(read_image, path)
        attempt(read_image, path, Reading('0,4095', 'max'))
        read_image(path, Reading('1%,99%', '1'))

    return seeds, read


def models(folder):
    classifier = {'classifier.weight': torch.ones(2, 3, 1, 1), 'backbone.bn.running_mean': torch.zeros(3)}
    meta = {'network': 'Classifier', 'backbone': 'resnet50', 'classes': ['cat', 'dog'], 'palette': [[1, 2, 3]] * 3}
    meta |= {'image_size': 512, 'mode': 'fix'}
    published = {'model.conv1.weight': torch.ones(4, 3, 1, 1), 'classifier.weight': torch.ones(2, 3, 1, 1).half()}
    seeds = {
        'own.pth': saved(lambda file: torch.save({'model': classifier, 'meta': meta}, file)),
        'bare.pth': saved(lambda file: torch.save(classifier, file)),
        'old.pth': saved(lambda file: torch.save(classifier, file, _use_new_zipfile_serialization=False)),
        'module.pth': saved(lambda file: torch.save({f'module.{k}': v for k, v in published.items()}, file)),
    }
    network = torch.nn.Sequential()
    network.add_module('classifier', torch.nn.Conv2d(3, 2, 1, bias=False))

    def read(path):
        file = ModelFile(path)
        attempt(file.load, network)
        attempt(convert, file.state, 2)

    return seeds, read


def records(folder):
    options = {'dataset': 'd.json', 'data_dir': 'd', 'domain': 'train', 'experiment_name': 'a', 'tag': 'run', 'seed': 1}
    args = {'format': 'CAM', 'fingerprint': {'classes': ['cat'], **options}, 'options': options, 'history': []}
    args |= {'versions': {'torch': '2'}, 'seconds': 1.5}
    run = {'network': 'Classifier', 'options': options, 'versions': {}, 'seconds': 2, 'curves': {'loss': [[1, 0.5]]}}
    iou = {'background': 90.0, 'cat': None}
    result = {
        'miou': 50.0,
        'fp': 1.0,
        'fn': 2.0,
        'dice': 60.0,
        'images': 3,
        'all_background_miou': 10.0,
        'domain': 'train',
        'iou': iou,
    }
    result |= {'dataset': 'd', 'format': 'CAM', 'masks': 'ab', 'made_with': args, 'confusion': [[1, 2], [3, 4]]}
    result |= {'threshold': 0.1, 'experiment_name': 'a', 'crf_iteration': 0}
    rows = [(0.1, 50.0), (0.2, 40.0)]
    result['thresholds'] = [{'threshold': t, 'miou': miou, 'fp': 1.0, 'fn': 2.0, 'iou': iou} for t, miou in rows]
    result['two_fold'] = {'miou': 49.0, 'dice': 59.0, 'thresholds': [0.2, 0.1]}
    result['false_masks'] = {'images': 1, 'share': 100.0, 'classes': {'cat': None}}
    result['by_size'] = {size: {'objects': 0, 'iou': None} for size in SIZES}
    holder = {'host': 'h', 'pid': 1, 'since': 'now'}
    cache = {str(folder / 'x'): [1, 2, 3, 'ab']}
    inputs = {'images': {'a': 'ab'}, 'labels': {'a': '1 2'}}
    write_json(folder / 'experiments/predictions/a/args.json', args)
    write_json(folder / 'experiments/results/a@train.json', result)
    (folder / 'x').write_text('x')

    def read(path):
        content = path.read_bytes()
        for place in (
            'predictions/a/args.json',
            'predictions/a/inputs.json',
            'data/run.json',
            'cache/files.json',
            'lock.json',
        ):
            target = Path('experiments', place)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        read_args(Path('experiments/predictions/a'))
        read_inputs(Path('experiments/predictions/a'))
        provenance.trace({'a': 'CAM'})
        hashes.file_hashes({'a': Path('experiments/lock.json')})
        locks.refusal(Path('experiments/lock.lock'), 'x')
        Path('experiments/results/a@train.json').write_bytes(content)
        attempt(find_entries, [])
        find.seed_of(find.read(Path('experiments/results/a@train.json')))

    seeds = {'args': args, 'run': run, 'result': result, 'holder': holder, 'cache': cache, 'inputs': inputs}
    return {f'{name}.json': json.dumps(seed).encode() for name, seed in seeds.items()}, read


def prepare_root(folder):
    for name in ('JPEGImages/a.jpg', 'JPEGImages/b.jpg', 'photos/a.jpg', 'photos/b.jpg'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture('RGB', 'JPEG'))
    (folder / 'list.txt').write_text('a\nb\n')
    (folder / 'labels.csv').write_text('id,classes\na,cat\nb,dog;cat\n')


def read_dataset(path):
    dataset = open_dataset(path, path.parent)
    for domain in dataset.lists:
        attempt(dataset.read_all_labels, dataset.ids(domain))
        attempt(dataset.ids_with_masks, domain)
        for image_id in dataset.ids(domain, with_images=True):
            dataset.read_image(image_id)
            dataset.labels_path(image_id)


def data_sets(folder):
    prepare_root(folder)
    entries = {'name': 'pets', 'classes': ['cat', 'dog'], 'lists': {'train': 'list.txt', 'val': 'list.txt'}}
    entries |= {'palette': [[0, 0, 0], [1, 2, 3]], 'images': 'photos/{id}.jpg', 'masks': 'masks/{id}.png'}
    entries |= {'labels': 'labels.csv', 'mask_values': {'0': 'background', '255': 'cat', '128': 'ignore'}}
    colours = {**entries, 'mask_values': {'#ff0000': 'cat'}}
    return {f'{i}.json': json.dumps(seed, indent=1).encode() for i, seed in enumerate((entries, colours))}, read_dataset


def tables(folder):
    prepare_root(folder)
    rows = 'image,classes,mask,split\nphotos/a.jpg,cat;dog,m/a.png,train\n"photos/b.jpg",,,val\n'
    return {
        'a.csv': rows.encode(),
        'b.csv': f'\ufeff# classes: dog;cat\n{rows}'.replace('\n', '\r\n').encode(),
    }, read_dataset


def tables_of_tools(folder):
    prepare_root(folder)
    cell = '"{""choices"": [""cat"", ""dog""]}"'
    rows = f'id,image,choice\n1,/data/upload/1/0a1b2c3d-a.jpg,{cell}\n2,/data/local-files/?d=photos/b.jpg,dog\n'
    return {
        'a.csv': b'filename, cat, dog\nphotos/a.jpg, 1, 0\nphotos/b.jpg, 0, 0\n',
        'b.csv': rows.encode(),
        'c.csv': 'sep=;\nimage;class\na.jpg;dog\na.jpg;cat\n'.encode('utf-16'),
    }, read_dataset


def exports_of_tools(folder):
    prepare_root(folder / 'coco')
    path, _ = kinds.cvat_images(folder / 'cvat')
    content = {'info': {}, **kinds.coco('photos/', group='pets')}
    return {'a.json': json.dumps(content).encode(), 'b.xml': path.read_bytes()}, read_dataset


def labelme(folder):
    path, _ = kinds.labelme(folder)
    seeds = {f'{name}.json': (path / f'{name}.json').read_bytes() for name in 'ab'}

    def read(path):
        exports.names_beside(path)
        exports.read_beside(path, path)

    return seeds, read


def folders_of_cvat(folder):
    path, _ = kinds.cvat_masks(folder)
    labelmap = path / 'labelmap.txt'

    def read(changed):
        labelmap.write_bytes(changed.read_bytes())
        attempt(read_dataset_in, path)

    return {'a.txt': labelmap.read_bytes(), 'b.txt': b'cat:1,2,3::\n'}, read


def read_dataset_in(path):
    dataset = open_dataset(path, path)
    attempt(dataset.read_all_labels, dataset.ids('train'))


def lists(folder):
    prepare_root(folder)
    entries = {
        'classes': ['cat', 'dog'],
        'lists': {'train': 'current.txt'},
        'labels': 'labels.csv',
        'images': 'photos/{id}.jpg',
    }
    (folder / 'set.json').write_text(json.dumps(entries))
    return {'list.txt': b'a\nb\n', 'other.txt': b'\xef\xbb\xbfa\r\nb'}, lambda path: read_dataset(
        path.with_name('set.json')
    )


def annotations(folder):
    box = '<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30.5</xmax><ymax>20</ymax></bndbox>'
    thing = f'<object><name>cat</name><difficult>1</difficult>{box}</object>'
    text = f'<annotation><size><width>40</width><height>30</height></size>{thing}{thing}</annotation>'
    seeds = {'a.xml': text.encode(), 'b.xml': f'<?xml version="1.0" encoding="utf-8"?>\n{text}'.encode()}
    return seeds, lambda path: voc.read_tags(path, (30, 40))


def coco(folder):
    root = make_coco(folder / 'COCO')

    def read(path):
        names, found = prepare_coco.read_annotations(path, root / 'train2017')
        indices = {number: index for index, number in enumerate(names, 1)}
        for picture in found:
            prepare_coco.write_mask(root / 'train2017', folder / 'masks', indices, 'keep', picture)
            (folder / 'masks' / f'{Path(picture.file_name).stem}.png').unlink()

    entries = content(2017, 'train', TRAIN, (1, 4, 5, 6))
    assert (H, W) == (24, 32)
    return {'a.json': json.dumps(entries).encode(), 'b.json': json.dumps(entries, indent=1).encode()}, read


def labelling(folder):
    """JSON files of every tool, and the text files beside masks and polygons; all that the import does with them."""
    with working_in(folder):
        make_photographs(folder)
        seeds = {}
        for kind in ('coco', 'labelme', 'labelstudio', 'geojson', 'yolo', 'cvat'):
            for shapes in formats_of_tools.FORMATS[kind].SHAPES:
                run_export(kind, '--shapes', shapes, '--ids', REX, out=f'{kind}_{shapes}')
        submit(folder / 'labelstudio_masks/tasks.json')
        submit(folder / 'labelstudio_polygons/tasks.json')
    places = {
        'labelmap.txt': folder / 'cvat_masks/labelmap.txt',
        'data.yaml': folder / 'yolo_masks/data.yaml',
        'corners.txt': folder / f'yolo_polygons/labels/train/{REX}.txt',
    }
    for path in [*folder.glob('*_*/**/*.json'), *folder.glob('*_*/**/*.geojson')]:
        if EXPORTED in path.parts:
            continue
        seeds[f'{path.relative_to(folder).parts[0]}.json'] = path.read_bytes()
    seeds |= {name: path.read_bytes() for name, path in places.items()}
    assert len(seeds) == 10
    dataset = open_dataset(folder / 'labels.csv', folder / 'photos')
    images, classes = Images(dataset, dataset.ids('train')), Classes(dataset.class_names, {})

    def read(path):
        if path.name in places:
            places[path.name].write_bytes(path.read_bytes())
            path = folder / places[path.name].relative_to(folder).parts[0]
        _, found = formats_of_tools.read(path, ('background', *dataset.class_names))
        matched, lines = match(found, images, [])
        for image_id in matched:
            result = take_mask(image_id, matched, dataset, classes, folder / 'new', None, True, False, 0)
            lines += [result.problem, *result.unknown]
            take_labels(image_id, matched, dataset, classes, True)
        for line in lines:
            assert not has_control_characters(printable(line).replace('\n', ' '))

    return seeds, read


READERS = [npz, counts, npy, masks, pictures, models, records, data_sets, tables, lists, annotations, coco]
READERS += [labelling, tables_of_tools, exports_of_tools, labelme, folders_of_cvat]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('reader', READERS, ids=lambda reader: reader.__name__)
def test_mutations(tmp_path, reader, count=2000, seconds=SECONDS):
    seeds, read = reader(tmp_path)
    tried = fuzz(tmp_path, seeds, read, count, seconds)
    print(f'{reader.__name__}: {tried} mutations')
    assert tried > count / 40


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('reader', READERS, ids=lambda reader: reader.__name__)
def test_many_mutations(tmp_path, reader):
    test_mutations(tmp_path, reader, 100_000, 3600)
