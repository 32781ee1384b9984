"""Data sets without a background: the nine stages and the tools on drawn textures, and what they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import inference_segmentation
import make_affinity_labels
import make_pseudo_labels
from core import IGNORE, UserError
from core.crf import crf_from_label
from core.data.dataset import open_dataset
from core.metrics import ConfusionMatrix
from demo_data.textures import CLASSES
from support import chain, fault_of, made_once, run_stage
from tools import check_dataset, export, import_masks, make_demo_data, predict, report, show, summarize, tune
from util.store.arrays import read_arrays

LABELS = f'{chain.CAMS}@aff_fg=0.40'
STAGES = {name: () for name in chain.STAGES} | {'aff': ('--label_name', LABELS)}
SCORED = {'evaluate cams': chain.CAMS, 'evaluate random_walk': chain.RANDOM_WALKS, 'evaluate pseudo': chain.PSEUDO}


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
    """A working directory with the data set, in data/, and the outputs of all stages; no test may write into it."""

    def run_all(folder):
        sizes = '--num_train_aug 6 --num_train 4 --num_val 3 --size 64 --seed 5 --num_workers 0'
        run_stage(make_demo_data, ['--out', 'data', '--no_background', *sizes.split()])
        for name, more in STAGES.items():
            chain.run(Path('data'), name, *more)
        for name in (*SCORED, 'evaluate'):
            chain.run(Path('data'), name)

    return made_once(tmp_path_factory, 'no_background', run_all)


@pytest.fixture
def here(finished, monkeypatch) -> Path:
    monkeypatch.chdir(finished)
    return finished


@pytest.fixture
def dataset(here):
    return open_dataset('data/dataset.json', 'data')


def files_of(kind: str, ids) -> dict[str, np.ndarray]:
    return {image_id: np.array(Image.open(f'experiments/predictions/{kind}/{image_id}.png')) for image_id in ids}


def scores_in(name: str) -> tuple[np.ndarray, np.ndarray]:
    return read_arrays(Path('experiments/predictions', name), 'keys', 'hr_cam')


def data_flags(out: str = 'data') -> list[str]:
    return ['--dataset', f'{out}/dataset.json', '--data_dir', out]


def test_the_classes_of_an_image_share_all_its_pixels(dataset):
    for kind, ids in ((chain.PSEUDO, dataset.ids('train')), (chain.PREDICTIONS, dataset.ids('val'))):
        for image_id, label in files_of(kind, ids).items():
            assert label.shape == dataset.image_size(image_id)
            assert label.min() >= 1 and label.max() <= len(CLASSES)
            if kind == chain.PSEUDO:
                assert {*np.unique(label)} <= {*np.flatnonzero(dataset.read_labels(image_id)) + 1}


def test_affinity_labels_are_the_best_class_where_its_map_alone_is_high(dataset):
    """The rule of docs/method.md, "Without a background", step by step."""
    for image_id, label in files_of(LABELS, dataset.ids('train_aug')).items():
        keys, maps = scores_in(f'{chain.CAMS}/{image_id}.npz')
        maps = maps.astype(np.float32)
        expected = keys[1:][crf_from_label(np.array(dataset.read_image(image_id)), maps.argmax(0), len(maps), 10)]
        expected[np.sum(maps > np.float32(0.4), 0) != 1] = IGNORE
        assert np.array_equal(label, expected)


def test_scores_are_of_the_best_class(dataset):
    """One row instead of a sweep; the baseline is the most frequent class."""
    matrix, pixels = ConfusionMatrix(len(CLASSES) + 1), np.zeros(len(CLASSES) + 1, int)
    for image_id in dataset.ids('train'):
        keys, maps = scores_in(f'{chain.CAMS}/{image_id}.npz')
        mask = dataset.read_mask(image_id)
        matrix.update(keys[1:][maps.argmax(0)], mask)
        pixels += np.bincount(mask.ravel(), minlength=len(pixels))
    result = json.loads(Path(f'experiments/results/{chain.CAMS}@train.json').read_text())
    assert len(result['thresholds']) == 1
    assert (result['threshold'], result['threshold_choice'], result['two_fold']) == (None, None, None)
    assert list(result['iou']) == CLASSES
    assert result['miou'] == pytest.approx(100 * np.nanmean(matrix.iou()[1:]))
    assert result['all_background_miou'] is None
    most = int(pixels.argmax())
    assert result['one_class']['class'] == CLASSES[most - 1]
    assert result['one_class']['miou'] == pytest.approx(100 * pixels[most] / pixels.sum() / (pixels > 0).sum())


def test_tools_read_the_outputs(here, dataset, capsys):
    run_stage(check_dataset, [*data_flags(), '--num_workers', '0'])
    printed = capsys.readouterr().out
    assert 'no errors' in printed and 'background' not in printed
    run_stage(summarize, [chain.CAMS, chain.PSEUDO])
    printed = capsys.readouterr().out
    assert 'one-class %' in printed and 'background' not in printed
    run_stage(report, ['cls', 'aff', 'seg', '--out', str(here / 'page.html'), '--num_workers', '0'])
    page = (here / 'page.html').read_text().partition('<script')[0]
    assert 'one class %' in page and 'background %' not in page
    run_stage(show, [chain.CAMS, chain.PSEUDO, '--images', '1', '--out', str(here / 'shown')])


@pytest.mark.parametrize('model', ['cls', 'seg'])
def test_masks_of_photographs_have_a_class_everywhere(here, dataset, tmp_path, model):
    """A classifier that finds no class takes the most probable one."""
    image = str(dataset.image_path(dataset.ids('val')[0]))
    above = ['--class_threshold', '1'] if model == 'cls' else []
    line = [f'experiments/models/{model}.pth', image, '--scales', '1.0', '--device', 'cpu', '--out', str(tmp_path)]
    run_stage(predict, [*line, *above])
    (mask,) = tmp_path.glob('val*[0-9].png')
    values = np.unique(np.array(Image.open(mask)))
    assert values.min() >= 1 and values.max() <= len(CLASSES)
    if model == 'cls':
        assert len(values) == 1
    keys = read_arrays(mask.with_suffix('.npz'), 'keys')[0]
    assert {*keys.tolist()} - {0} == {*values.tolist()}


def test_masks_of_photographs_equal_the_masks_of_stage_8(here, dataset, tmp_path):
    line = ['experiments/models/seg.pth', *data_flags(), '--scales', chain.SCALES, '--device', 'cpu']
    run_stage(predict, [*line, '--out', str(tmp_path / 'out'), '--num_workers', '0'])
    for image_id, label in files_of(chain.PREDICTIONS, dataset.ids('val')).items():
        assert np.array_equal(np.array(Image.open(tmp_path / 'out' / f'{image_id}.png')), label)


def test_large_images_by_tiles(finished, tmp_path, monkeypatch):
    """Every pixel has a class, of its image's tags in pseudo-labels; tools.predict gives the masks of stage 8."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / 'experiments/models', 'experiments/models')
    dataset = open_dataset(finished / 'data/dataset.json', finished / 'data')
    (tmp_path / 'large.json').write_text(json.dumps({'classes': CLASSES, 'background': False}))
    chain.draw_large(dataset, dataset.ids('train')[:2])
    for tile in (None, 64):
        chain.run_large(tile)
    tags = {image_id: np.flatnonzero(dataset.read_labels(image_id)) + 1 for image_id in dataset.ids('train')[:2]}
    for name in (chain.LARGE_PSEUDO, chain.LARGE_PREDICTIONS):
        for image_id, present in zip('ab', tags.values(), strict=True):
            whole, tiled = (files_of(name.format(cut), [image_id])[image_id] for cut in ('', '@tile=64'))
            assert np.mean(whole != tiled) < 0.3
            chosen = present if name == chain.LARGE_PSEUDO else range(1, len(CLASSES) + 1)
            assert {*np.unique(tiled)} <= {*chosen}
    line = f'experiments/models/seg.pth large/a.png --tile 64 --scales {chain.SCALES} --device cpu --out masks'
    run_stage(predict, line.split())
    expected = files_of(chain.LARGE_PREDICTIONS.format('@tile=64'), 'a')['a']
    assert np.array_equal(np.array(Image.open('masks/a.png')), expected)
    keys, probability = read_arrays(Path('masks/a.npz'), 'keys', 'probability')
    assert keys.tolist() == np.unique(expected).tolist()
    assert np.array_equal(keys[probability.argmax(0)], expected)


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # of pycocotools
@pytest.mark.parametrize('kind', ['cvat', 'coco', 'png'])
def test_masks_come_back_from_labelling_tools(here, dataset, tmp_path, kind):
    """What a tool leaves without an object is ignored."""
    rows = ['image,classes,mask', *(f'JPEGImages/{i}.jpg,{";".join(CLASSES)},' for i in dataset.ids('val'))]
    (tmp_path / 'table.csv').write_text('\n'.join(rows))
    (tmp_path / 'table.json').write_text(json.dumps({'classes': CLASSES, 'background': False}))
    table = ['--dataset', str(tmp_path / 'table.csv'), '--data_dir', str(tmp_path)]
    (tmp_path / 'JPEGImages').symlink_to((here / 'data/JPEGImages').absolute())
    labels = files_of(chain.PREDICTIONS, dataset.ids('val'))
    for image_id, label in labels.items():
        label[:2, :2] = IGNORE
        label[2:4, :2] = 1 + label[10, 10] % len(CLASSES)
        picture = Image.fromarray(label)
        (tmp_path / 'labels').mkdir(exist_ok=True)
        picture.save(tmp_path / 'labels' / f'JPEGImages__{image_id}.png')
    out = str(tmp_path / 'out')
    run_stage(export, [str(tmp_path / 'labels'), *table, '--format', kind, '--out', out, '--num_workers', '0'])
    with pytest.raises(UserError, match='^empty background: the data set "table" has none$'):
        run_stage(import_masks, [out, *table, '--num_workers', '0', '--empty', 'background'])
    run_stage(import_masks, [out, *table, '--num_workers', '0'])
    taken = open_dataset(tmp_path / 'table_imported.csv', tmp_path)
    assert not taken.has_background
    for image_id, label in labels.items():
        assert np.array_equal(taken.read_mask(f'JPEGImages__{image_id}'), label)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'script, line',
    [
        (make_affinity_labels, f'--experiment_name {chain.CAMS} --bg_threshold 0.2'),
        (make_pseudo_labels, f'--experiment_name {chain.RANDOM_WALKS} --threshold 0.3'),
        (evaluate, f'--experiment_name {chain.CAMS} --max_th 0.3'),
        (evaluate, f'--experiment_name {chain.CAMS} --threshold 0.3'),
    ],
)
def test_thresholds_of_the_background_are_refused(here, capsys, script, line):
    fault = fault_of(script, [*data_flags(), '--num_workers', '0', *line.split()], capsys)
    flag, value = line.split()[-2:]
    assert fault.endswith(f'{flag} {value}: has no effect: the data set "drawn textures" has no background')


def test_tools_that_need_a_threshold_refuse(here, capsys, dataset, tmp_path):
    image = str(dataset.image_path(dataset.ids('val')[0]))
    line = ['experiments/models/cls.pth', image, '--threshold', '0.2', '--out', str(tmp_path / 'out')]
    expected = '--threshold: has no effect because the classes of experiments/models/cls.pth have no background'
    assert fault_of(predict, line, capsys).endswith(expected)
    assert not (tmp_path / 'out').exists()
    assert fault_of(tune, ['cls'], capsys).endswith('has no background, so no threshold to choose')


def test_a_set_that_gets_a_background_makes_outputs_outdated(here, capsys, tmp_path):
    """Labels and models of one kind are not taken for the other."""
    content = json.loads(Path('data/dataset.json').read_text())
    del content['background']
    other = tmp_path / 'other'
    other.mkdir()
    for name in ('JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets'):
        (other / name).symlink_to((here / 'data' / name).absolute())
    (other / 'dataset.json').write_text(json.dumps(content))
    line = [*data_flags(str(other)), '--num_workers', '0']
    shown = fault_of(show, [chain.PSEUDO, *line[:4], '--images', '1', '--out', str(tmp_path / 'shown')], capsys)
    assert 'its labels are of ' in shown and ' has background, ' in shown
    fault = fault_of(make_pseudo_labels, [*line, '--experiment_name', chain.RANDOM_WALKS], capsys)
    assert 'the entry "background" of the data set "drawn textures" changed' in fault
    fault = fault_of(inference_segmentation, [*line, '--tag', 'seg', '--device', 'cpu'], capsys)
    assert fault.endswith('--dataset of "drawn textures": has a background; experiments/models/seg.pth expects none')
