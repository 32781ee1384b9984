"""What tools.export writes, read by the programs that it is meant for, where they are installed.

None of them is a dependency, because they pin other versions of NumPy or Pillow: tests/README.md says how to run this.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.labelling import FILES, NAMES, REX, SIZES, TOM, label_maps, make_photographs, run_export, run_import
from tools.exchange import brush


@pytest.fixture
def photographs(in_tmp) -> Path:
    make_photographs(in_tmp)
    return in_tmp


def expected(image_id: str) -> np.ndarray:
    """The label map without ignored pixels."""
    label = label_maps()[image_id]
    return np.where(label == 255, 0, label)


def id_of(name: str) -> str:
    return next(image_id for image_id, path in FILES.items() if Path(path).with_suffix('').as_posix() == name)


def test_datumaro_reads_masks_for_cvat(photographs):
    components = pytest.importorskip('datumaro.components.dataset')
    annotation = pytest.importorskip('datumaro.components.annotation')
    found = components.Dataset.import_from(str(run_export('cvat')), 'voc_segmentation')
    names = [label.name for label in found.categories()[annotation.AnnotationType.label]]
    assert names == ['background', *NAMES]
    seen = set()
    for item in found:
        label = np.zeros(SIZES[id_of(item.id)], np.uint8)
        for each in item.annotations:
            assert each.label > 0
            label[each.image > 0] = each.label
        np.testing.assert_array_equal(label, expected(id_of(item.id)))
        seen.add(id_of(item.id))
    assert seen == {*FILES}


def test_masks_that_datumaro_writes_come_back(photographs):
    """As CVAT exports them: with colours, in another order of labels."""
    components = pytest.importorskip('datumaro.components.dataset')
    found = components.Dataset.import_from(str(run_export('cvat')), 'voc_segmentation')
    colours = {'dog': (9, 8, 7), 'background': (0, 0, 0), 'traffic light, red': (1, 2, 3), 'cat': (255, 0, 250)}
    label_map = {name: [colour, [], []] for name, colour in colours.items()}
    found.export('theirs', 'voc_segmentation', label_map=label_map, apply_colormap=True)
    masks = run_import('theirs')
    assert set(masks) == {REX, TOM}
    for image_id, mask in masks.items():
        np.testing.assert_array_equal(mask, expected(image_id))


def test_datumaro_reads_coco(photographs):
    components = pytest.importorskip('datumaro.components.dataset')
    folder = run_export('coco')
    for name in ('annotations', 'images'):
        (folder / name).mkdir()
    (folder / 'annotations.json').rename(folder / 'annotations' / 'instances_train.json')
    found = components.Dataset.import_from(str(folder), 'coco_instances')
    for item in found:
        label = np.zeros(SIZES[id_of(item.id)], np.uint8)
        for each in item.annotations:
            if hasattr(each, 'rle'):
                label[each.image > 0] = each.label + 1
        np.testing.assert_array_equal(label, expected(id_of(item.id)))


def test_supervision_reads_coco(photographs):
    supervision = pytest.importorskip('supervision')
    path = run_export('coco') / 'annotations.json'
    found = supervision.DetectionDataset.from_coco('photos', str(path), force_masks=True)
    assert found.classes == list(NAMES)
    for image, _, detections in found:
        image_id = id_of(Path(image).relative_to(photographs / 'photos').with_suffix('').as_posix())
        label = np.zeros(SIZES[image_id], np.uint8)
        for mask, index in zip([] if detections.mask is None else detections.mask, detections.class_id, strict=True):
            label[mask] = index + 1
        np.testing.assert_array_equal(label, expected(image_id))


def test_labelme_reads_masks(photographs):
    label_file = pytest.importorskip('labelme._label_file')
    shape = pytest.importorskip('labelme.utils.shape')
    folder = run_export('labelme', '--shapes', 'masks')
    for image_id, name in FILES.items():
        content = label_file.read_label_file(str(folder / Path(name).with_suffix('.json')))
        assert np.array(Image.open(io.BytesIO(content.image_data))).shape[:2] == SIZES[image_id]
        label, _ = shape.shapes_to_label(SIZES[image_id], content.shapes, {n: i for i, n in enumerate(NAMES, 1)})
        np.testing.assert_array_equal(label, expected(image_id))


def test_labelme_reads_polygons_and_writes_what_comes_back(photographs):
    """labelme's own rasterising counts the border to the right and below, so only what lies inside is compared."""
    label_file = pytest.importorskip('labelme._label_file')
    shape = pytest.importorskip('labelme.utils.shape')
    path = run_export('labelme') / 'b c' / 'tom 1.5.json'
    content = label_file.read_label_file(str(path))
    label, _ = shape.shapes_to_label(SIZES[TOM], content.shapes, {n: i for i, n in enumerate(NAMES, 1)})
    assert ((label > 0) >= (expected(TOM) > 0)).all() and (label != expected(TOM)).mean() < 0.12
    label_file.write_label_file(
        str(path), shapes=json.loads(path.read_text())['shapes'], image_path=content.image_path,
        image_height=30, image_width=20, image_data=content.image_data,
    )  # fmt: skip
    np.testing.assert_array_equal(run_import(path)[TOM], expected(TOM))


@pytest.mark.parametrize('shapes', ['masks', 'polygons'])
def test_label_studio_accepts_the_predictions(photographs, shapes):
    interface = pytest.importorskip('label_studio_sdk.label_interface')
    objects = pytest.importorskip('label_studio_sdk.label_interface.objects')
    folder = run_export('labelstudio', '--shapes', shapes)
    config = interface.LabelInterface((folder / 'config.xml').read_text())
    config.validate()
    tasks = json.loads((folder / 'tasks.json').read_text())
    assert len(tasks) == 3
    for task in tasks:
        objects.TaskValue(**task)
        assert config.validate_prediction(task['predictions'][0])
        task['predictions'][0]['result'] += [{'from_name': 'nobody', 'to_name': 'image', 'type': 'brushlabels'}]
        assert not config.validate_prediction(task['predictions'][0])


def test_label_studio_decodes_the_brush(photographs):
    theirs = pytest.importorskip('label_studio_sdk.converter.brush')
    (task,) = json.loads((run_export('labelstudio', '--ids', REX) / 'tasks.json').read_text())
    label = np.zeros(SIZES[REX], np.uint8)
    for result in task['predictions'][0]['result']:
        mask = theirs.decode_rle(result['value']['rle']).reshape(*SIZES[REX], 4)[..., 3] > 0
        np.testing.assert_array_equal(mask, brush.decode(result['value']['rle'], SIZES[REX]))
        label[mask] = 1 + NAMES.index(result['value']['brushlabels'][0])
    np.testing.assert_array_equal(label, expected(REX))


@contextlib.contextmanager
def ultralytics_settings(folder, monkeypatch):
    """Let Ultralytics write its settings there."""
    monkeypatch.setenv('YOLO_CONFIG_DIR', str(folder))
    monkeypatch.setenv('YOLO_OFFLINE', 'true')
    yield pytest.importorskip('ultralytics.data'), pytest.importorskip('ultralytics.data.utils')


def test_ultralytics_reads_masks(photographs, monkeypatch):
    with ultralytics_settings(photographs, monkeypatch) as (data, utils):
        found = utils.check_det_dataset(str(run_export('yolo') / 'data.yaml'), autodownload=False)
        assert [found['names'][i] for i in range(4)] == ['background', *NAMES]
        default = pytest.importorskip('ultralytics.utils').DEFAULT_CFG
        seen = set()
        for split in ('train', 'val'):
            masks = data.SemanticDataset(
                img_path=found[split], data=found, imgsz=32, augment=False, hyp=default, task='semantic'
            )
            for i, file in enumerate(masks.mask_files):
                np.testing.assert_array_equal(masks.load_mask(i), label_maps()[Path(file).stem])
                seen.add(Path(file).stem)
        assert seen == {*FILES}


def test_ultralytics_reads_polygons(photographs, monkeypatch):
    with ultralytics_settings(photographs, monkeypatch) as (data, utils):
        found = utils.check_det_dataset(
            str(run_export('yolo', '--shapes', 'polygons') / 'data.yaml'), autodownload=False
        )
        default = pytest.importorskip('ultralytics.utils').DEFAULT_CFG
        labels = data.YOLODataset(
            img_path=found['train'], data=found, imgsz=32, augment=False, hyp=default, task='segment'
        ).labels
        rex = next(entry for entry in labels if REX in entry['im_file'])
        assert sorted(rex['cls'].reshape(-1).astype(int).tolist()) == [0, 1, 2, 2]
        assert all(len(segment) >= 4 for segment in rex['segments'])
