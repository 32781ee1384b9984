"""docs/labelling.md: its commands run, from predicted masks to a corrected one in a new CSV file."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from core.data.dataset import open_dataset
from support import REPOSITORY
from support.chain import dataset_of
from support.documents import commands_of, module_of
from support.labelling import FILES, REX, SIZES, TOM, label_maps, make_photographs, submit
from tools import predict

PAGE = (REPOSITORY / 'docs' / 'labelling.md').read_text()


def section(heading: str) -> list[tuple[str, list[str]]]:
    """Return the commands below a heading; those in numbered lists are indented."""
    text = PAGE.split(f'\n## {heading}\n')[1].split('\n## ')[0]
    return commands_of('\n'.join(line.removeprefix('   ') for line in text.splitlines()))


def run(module: str, words: list[str]) -> None:
    program = module_of(module)
    program.main(program.parse_args([*words, '--num_workers', '0']))


def prepare(folder: Path) -> dict[str, np.ndarray]:
    """Write photographs, tags and the masks of tools.predict, of two classes."""
    make_photographs(folder)
    Path('labels.csv').write_text(
        'image,classes\n'
        + ''.join(f'{name},{"" if image_id == "empty" else "cat;dog"}\n' for image_id, name in FILES.items())
    )
    own = Path('experiments/predict/own')
    own.mkdir(parents=True)
    masks = {image_id: np.where(label == 3, 2, label) for image_id, label in label_maps().items()}
    for image_id, label in masks.items():
        Image.fromarray(label).save(own / f'{image_id}.png')
        Image.new('RGB', SIZES[image_id][::-1]).save(own / f'{image_id}_overlay.png')
    return masks


def test_the_circle_with_labelme(in_tmp, capsys):
    prepare(in_tmp)
    (export, with_classes), back = section('The circle')[::2], section('The circle')[1]
    run(*export)
    path = Path('labelme/holiday/rex.json')
    content = json.loads(path.read_text())
    content['shapes'] = [{'label': 'cat', 'points': [[4, 4], [20, 4], [20, 12], [4, 12]], 'shape_type': 'polygon'}]
    path.write_text(json.dumps(content))
    run(*back)
    dataset = open_dataset('labels_imported.csv', 'photos')
    assert [image_id for image_id in dataset.ids('train') if dataset.has_mask(image_id)] == [REX]
    expected = np.zeros(SIZES[REX], np.uint8)
    expected[4:12, 4:20] = 1
    np.testing.assert_array_equal(dataset.read_mask(REX), expected)
    assert 'masks taken: 1 (0 new, 1 changed, 0 as before)' in capsys.readouterr().out
    run(*with_classes)
    assert json.loads(Path('coco/annotations.json').read_text())['categories'][1]['name'] == 'dog'


def test_cvat(in_tmp):
    masks = prepare(in_tmp)
    export, back = section('CVAT')
    run(*export)
    Path('cvat').rename('exported')  # as somebody else's archive, unpacked
    Path('exported/.exported').rename('kept')
    Path('cvat').mkdir()
    Path('kept').rename('cvat/.exported')
    mask = Path('exported/SegmentationClass/b c/tom 1.5.png')
    corrected = np.array(Image.open(mask))
    corrected[20:28, 2:6] = 0
    Image.fromarray(corrected).save(mask)
    run(*back)
    dataset = open_dataset('labels_imported.csv', 'photos')
    assert [image_id for image_id in dataset.ids('train') if dataset.has_mask(image_id)] == [TOM]
    expected = masks[TOM].copy()
    expected[20:28, 2:6] = 0
    np.testing.assert_array_equal(dataset.read_mask(TOM), expected)


def test_label_studio(in_tmp):
    masks = prepare(in_tmp)
    export, back = section('Label Studio')
    run(*export)
    submit(Path('ls/tasks.json'))
    Path('ls/tasks.json').rename('project.json')
    run(*back)
    dataset = open_dataset('labels_imported.csv', 'photos')
    np.testing.assert_array_equal(dataset.read_mask(REX), np.where(masks[REX] == 255, 0, masks[REX]))


def test_masks_of_predict_have_scores(experiments, demo, tmp_path):
    """The mean of the CAM over the pixels of each object; of probabilities: tests/unit/test_export.py."""
    out, names = tmp_path / 'predicted', dataset_of(demo).class_names
    line = ['experiments/models/cls.pth', str(demo / 'JPEGImages'), '--out', str(out), '--scales', '1.0']
    predict.main(predict.parse_args([*line, '--device', 'cpu', '--crf_iteration', '0']))
    classes = ['--classes', ','.join(f'"{name}"' for name in names), '--data_dir', str(demo / 'JPEGImages')]
    run('tools.export', [str(out), *classes, '--format', 'coco', '--out', str(tmp_path / 'coco')])
    content = json.loads((tmp_path / 'coco/annotations.json').read_text())
    assert len(content['images']) == 16 and [entry['name'] for entry in content['categories']] == list(names)
    assert content['annotations']
    for entry in content['annotations'][:20]:
        name = next(image['file_name'] for image in content['images'] if image['id'] == entry['image_id'])
        with np.load(out / f'{Path(name).stem}.npz') as file:
            keys, maps = file['keys'].tolist(), file['hr_cam']
        scores = maps[keys.index(entry['category_id']) - 1].astype(np.float32)
        mask = coco_mask.decode(entry['segmentation']) > 0
        assert abs(entry['score'] - scores[mask].mean()) < 1e-4


def test_labels_alone_and_ultralytics(in_tmp):
    prepare(in_tmp)
    for command in section('Ultralytics'):
        run(*command)
    assert Path(f'yolo-seg/labels/train/{REX}.txt').is_file() and Path(f'yolo/masks/train/{REX}.png').is_file()
    for name, command in zip(('project.json', 'annotations.json'), section('Labels alone'), strict=True):
        kind = 'labelstudio' if name == 'project.json' else 'coco'
        words = ['experiments/predict/own', '--dataset', 'labels.csv', '--data_dir', 'photos']
        run('tools.export', [*words, '--format', kind, '--out', kind])
        if kind == 'labelstudio':
            submit(Path('labelstudio/tasks.json'))
            Path('labelstudio/tasks.json').rename(name)
        else:
            Path('coco/annotations.json').rename(name)
            Path('labels.csv').unlink()
        run(*command)
    assert open_dataset('labels.csv', 'photos').class_names == ('cat', 'dog')
