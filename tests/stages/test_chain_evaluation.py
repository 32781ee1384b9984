"""Stage 9 on the outputs of the others: every number against sets of pixels, tables, the upload."""

import csv
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from core import UserError
from core.image_scores import two_folds
from core.maps import upsample_rw
from support import fault_of, without_seconds
from support.chain import (
    CAMS,
    PREDICTIONS,
    PSEUDO,
    RANDOM_WALKS,
    SCALES,
    as_process,
    commands,
    dataset_of,
    ids_of,
    pixels,
    run,
    size_of,
)
from util.store import locks
from util.store.fingerprints import read_args, versions
from util.store.hashes import digest, file_hash


def scored(predictions: list, masks: list, num_classes: int) -> list[float]:
    """Return the IoU of each class in %, from sets of pixels."""
    prediction, mask = (np.concatenate([x.ravel() for x in maps]) for maps in (predictions, masks))
    prediction, mask = prediction[mask != 255], mask[mask != 255]
    result = []
    for c in range(num_classes):
        union = ((prediction == c) | (mask == c)).sum()
        result.append(100 * ((prediction == c) & (mask == c)).sum() / union if union else None)
    return result


@pytest.mark.parametrize('name, domain', [(PSEUDO, 'train'), (PREDICTIONS, 'val')])
def test_results_of_label_maps(experiments, demo, name, domain):
    result = json.loads((experiments / 'results' / f'{name}@{domain}.json').read_text())
    ids, classes = ids_of(demo, domain), dataset_of(demo).class_names
    masks = [pixels(demo / 'SegmentationClass' / f'{image_id}.png') for image_id in ids]
    predictions = [pixels(experiments / 'predictions' / name / f'{image_id}.png') for image_id in ids]
    iou = scored(predictions, masks, len(classes) + 1)
    present = [value for value in iou if value is not None]
    assert (result['mode'], result['images'], result['domain']) == ('png', len(ids), domain)
    assert list(result['iou']) == ['background', *classes]
    for found, expected in zip(result['iou'].values(), iou, strict=True):
        assert found == (None if expected is None else pytest.approx(expected, abs=1e-3))
    assert result['miou'] == pytest.approx(sum(present) / len(present))
    nothing = [x for x in scored([0 * mask for mask in masks], masks, len(classes) + 1) if x is not None]
    assert result['all_background_miou'] == pytest.approx(sum(nothing) / len(nothing))
    assert result['made_with']['options']['dataset'] == str(demo / 'dataset.json')


@pytest.mark.parametrize('name, key, mode, last', [(CAMS, 'hr_cam', 'npy', 0.75), (RANDOM_WALKS, 'rw', 'rw', 0.45)])
def test_results_of_maps_at_every_threshold(experiments, demo, name, key, mode, last):
    result = json.loads((experiments / 'results' / f'{name}@train.json').read_text())
    assert result['mode'] == mode
    assert [row['threshold'] for row in result['thresholds']] == [i / 100 for i in range(5, round(100 * last) + 1, 5)]
    ids, classes = ids_of(demo, 'train'), dataset_of(demo).class_names
    masks = [pixels(demo / 'SegmentationClass' / f'{image_id}.png') for image_id in ids]
    best = max(row['miou'] for row in result['thresholds'])
    for row in result['thresholds']:
        predictions = []
        for image_id in ids:
            with np.load(experiments / 'predictions' / name / f'{image_id}.npz') as file:
                keys, maps = file['keys'], file[key].astype(np.float32)
            maps = upsample_rw(maps, size_of(demo, image_id)) if mode == 'rw' else maps
            confident = maps.max(0) > np.float32(row['threshold'])
            predictions.append(np.where(confident, keys[1:][maps.argmax(0)], 0))
        present = [x for x in scored(predictions, masks, len(classes) + 1) if x is not None]
        assert row['miou'] == pytest.approx(sum(present) / len(present))
        if row['miou'] == best:
            assert result['miou'] == best
    assert result['threshold'] in [row['threshold'] for row in result['thresholds'] if row['miou'] == best]


@pytest.mark.parametrize('name, key, mode', [(CAMS, 'hr_cam', 'npy'), (RANDOM_WALKS, 'rw', 'rw')])
def test_each_half_is_scored_at_the_threshold_of_the_other(experiments, demo, name, key, mode):
    result = json.loads((experiments / 'results' / f'{name}@train.json').read_text())
    ids, classes = ids_of(demo, 'train'), dataset_of(demo).num_classes + 1
    thresholds = [row['threshold'] for row in result['thresholds']]
    labels = {threshold: [] for threshold in thresholds}
    for image_id in ids:
        with np.load(experiments / 'predictions' / name / f'{image_id}.npz') as file:
            keys, maps = file['keys'], file[key].astype(np.float32)
        maps = upsample_rw(maps, size_of(demo, image_id)) if mode == 'rw' else maps
        for threshold in thresholds:
            labels[threshold].append(np.where(maps.max(0) > np.float32(threshold), keys[1:][maps.argmax(0)], 0))
    masks, folds = [pixels(demo / 'SegmentationClass' / f'{image_id}.png') for image_id in ids], two_folds(ids)

    def miou(threshold_of) -> float:
        """Return the mIoU of the images for which there is a threshold."""
        chosen = [i for i, fold in enumerate(folds) if fold in threshold_of]
        found = [labels[threshold_of[folds[i]]][i] for i in chosen]
        return np.mean([x for x in scored(found, [masks[i] for i in chosen], classes) if x is not None])

    best = [max(thresholds, key=lambda threshold, fold=fold: miou({fold: threshold})) for fold in (0, 1)]
    assert result['two_fold']['thresholds'] == best[::-1]
    assert result['two_fold']['miou'] == pytest.approx(miou({0: best[1], 1: best[0]}))


@pytest.mark.parametrize(
    'name, line, pattern',
    [
        ('cams', '', r'best {0} at threshold [.\d]+, best on these masks\ntwo-fold {0}: .*'),
        ('cams', '--threshold 0.3', '{0} at threshold 0.30'),
        ('pseudo', '', '{0}'),
    ],
)
def test_the_last_lines_say_how_the_threshold_was_chosen(copy, capsys, name, line, pattern):
    capsys.readouterr()
    run(copy, f'evaluate {name}', *line.split())
    text = capsys.readouterr().out
    last = pattern.format(r'mIoU \d+\.\d\d %, Dice \d+\.\d\d %')
    assert re.search(rf'\(predicting .*\)\n{last}\nwritten to .*\n$', text)
    assert '| class' in text and '| objects' in text and 'images without an object' in text


def test_too_few_objects_for_two_folds(copy, capsys):
    """One mask has an object, so one half of the images has none."""
    for path in sorted((copy / 'SegmentationClass').glob('train_*.png'))[1:]:
        mask = Image.open(path)
        mask.paste(0, (0, 0, *mask.size))
        mask.save(path)
    run(copy, 'evaluate cams')
    assert 'no two-fold mIoU: half of the images have no object' in capsys.readouterr().out
    assert json.loads(Path(f'experiments/results/{CAMS}@train.json').read_text())['two_fold'] is None


def test_single_threshold_and_end_of_the_thresholds(copy, capsys):
    run(copy, 'evaluate cams', '--threshold', '0.3')
    result = json.loads((copy.parent / f'experiments/results/{CAMS}@train.json').read_text())
    assert [row['threshold'] for row in result['thresholds']] == [0.3]
    capsys.readouterr()
    run(copy, 'evaluate random_walk', '--mode', 'rw', '--max_th', '0.25')
    result = json.loads((copy.parent / f'experiments/results/{RANDOM_WALKS}@train.json').read_text())
    assert [row['threshold'] for row in result['thresholds']] == [0.05, 0.1, 0.15, 0.2]
    assert {'over:', 'under:'} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    'name, domain', [(CAMS, 'train'), (RANDOM_WALKS, 'train'), (PSEUDO, 'train'), (PREDICTIONS, 'val')]
)
def test_results_say_what_was_scored(experiments, demo, name, domain):
    result = json.loads((experiments / 'results' / f'{name}@{domain}.json').read_text())
    dataset, ids = dataset_of(demo), ids_of(demo, domain)
    hashes = [file_hash(dataset.mask_path(image_id))[:16] for image_id in ids]
    assert result['masks'] == digest(dict(zip(ids, hashes, strict=True)))
    assert (result['dataset'], result['num_classes']) == (dataset.name, dataset.num_classes)
    assert result['threshold_choice'] == (None if result['threshold'] is None else 'best on these masks')
    assert result['crf_iteration'] == 0
    assert result['format'] == read_args(experiments / 'predictions' / name)['format']


@pytest.mark.parametrize(
    'name, domain', [(CAMS, 'train'), (RANDOM_WALKS, 'train'), (PSEUDO, 'train'), (PREDICTIONS, 'val')]
)
def test_counts_per_image_add_up_to_the_result(experiments, demo, name, domain):
    result = json.loads((experiments / 'results' / f'{name}@{domain}.json').read_text())
    with np.load(experiments / 'results' / f'{name}@{domain}.npz', allow_pickle=False) as file:
        ids, thresholds = file['ids'], file['thresholds']
        counts = np.zeros((len(ids), len(thresholds) or 1, result['num_classes'] + 1, 3), np.int64)
        counts[file['images'], :, file['classes']] = file['counts']
        assert len(file['counts']) < counts.shape[0] * counts.shape[2]  # not every image has every class
        assert [file[name].dtype for name in ('images', 'classes', 'counts')] == [np.uint8, np.uint8, np.uint16]
    assert ids.tolist() == ids_of(demo, domain)
    label_maps = result['mode'] == 'png'
    assert thresholds.tolist() == ([] if label_maps else [row['threshold'] for row in result['thresholds']])
    total = counts.sum(0)
    for row, (target, predicted, both) in zip(result['thresholds'], np.moveaxis(total, -1, 1), strict=True):
        union = target + predicted - both
        iou = [100 * b / u if u else None for b, u in zip(both, union, strict=True)]
        assert list(row['iou'].values()) == [None if x is None else pytest.approx(x, abs=1e-4) for x in iou]
    confusion = np.array(result['confusion'])
    best = total[0 if label_maps else thresholds.tolist().index(result['threshold'])]
    assert np.array_equal(best, np.stack([confusion.sum(1), confusion.sum(0), np.diag(confusion)], 1))

    # One image by a loop: the mask's pixels of each class.
    mask = pixels(demo / 'SegmentationClass' / f'{ids[1]}.png')
    assert counts[1, 0, :, 0].tolist() == [(mask == c).sum() for c in range(len(confusion))]


def test_results_do_not_depend_on_workers_or_dates(copy):
    files_of = [Path(f'experiments/results/{CAMS}@train.{ending}') for ending in ('json', 'npz')]
    before = [without_seconds(path) for path in files_of]
    assert json.loads(files_of[0].read_text())['seconds'] > 0
    assert json.loads(files_of[0].read_text())['versions'] == versions()
    for workers in ('0', '2'):
        for path in files_of:
            path.unlink()
        run(copy, 'evaluate cams', '--num_workers', workers)
        assert [without_seconds(path) for path in files_of] == before


def test_thresholds_and_their_table(copy, capsys):
    run(copy, 'evaluate cams', '--min_th', '0.1', '--max_th', '0.3', '--step_th', '0.025', '--csv', 'new/sweep.csv')
    assert '\nthreshold 0.125: mIoU' in capsys.readouterr().out
    result = json.loads(Path(f'experiments/results/{CAMS}@train.json').read_text())
    thresholds = [0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.275]
    assert [row['threshold'] for row in result['thresholds']] == thresholds
    with open('new/sweep.csv', newline='') as file:
        head, *lines = csv.reader(file)
    assert head == ['threshold', 'mIoU', 'FP', 'FN', 'background', *dataset_of(copy).class_names]
    for line, row in zip(lines, result['thresholds'], strict=True):
        values = [row['threshold'], row['miou'], row['fp'], row['fn'], *row['iou'].values()]
        assert [float(cell) if cell else None for cell in line] == values
    run(copy, 'evaluate cams', '--threshold', '0.3')
    assert json.loads(Path(f'experiments/results/{CAMS}@train.json').read_text())['threshold_choice'] == 'given'
    run(copy, 'evaluate pseudo', '--csv', 'labels.csv')
    assert Path('labels.csv').read_text().splitlines()[1].startswith(',')


def test_table_that_cannot_be_written_is_refused_before_scoring(copy, capsys, monkeypatch):
    monkeypatch.setattr(evaluate.results, 'count_pixels', lambda *_: pytest.fail('scored'))
    script, line = commands(copy)['evaluate cams']
    assert '--csv .: is a folder' in fault_of(script, [*line, '--csv', '.'], capsys)


def test_result_is_written_before_it_is_printed(copy, monkeypatch):
    """Whoever reads the output, such as head, may stop early."""
    path = Path(f'experiments/results/{CAMS}@train.json')
    before = json.loads(path.read_text())
    path.unlink()

    def stop(result):
        raise BrokenPipeError

    monkeypatch.setattr(evaluate, 'report', stop)
    with pytest.raises(BrokenPipeError):
        run(copy, 'evaluate cams', '--csv', 'sweep.csv')
    assert json.loads(path.read_text()) | {'seconds': None} == before | {'seconds': None}
    assert Path('sweep.csv').is_file()


def test_random_walk_and_crf_scores_what_stage_6_scores(copy):
    """Also at one of several thresholds, which share a CRF; nothing else is overwritten."""
    results = Path('experiments/results')
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    expected = json.loads(before[f'{PSEUDO}@train.json'])
    line = ['--data_dir', str(copy), '--crf_iteration', '1']
    for more in (['--threshold', '0.35'], ['--min_th', '0.3']):
        run(copy, 'evaluate random_walk', *line, *more)
        result = json.loads((results / f'{RANDOM_WALKS}@dcrf=1@train.json').read_text())
        row = next(row for row in result['thresholds'] if row['threshold'] == 0.35)
        assert {name: row[name] for name in ('miou', 'fp', 'fn', 'iou')} == {
            name: expected[name] for name in ('miou', 'fp', 'fn', 'iou')
        }
        assert (result['crf_iteration'], result['mode']) == (1, 'rw')
    run(copy, 'evaluate cams', *line)
    assert len(json.loads((results / f'{CAMS}@dcrf=1@train.json').read_text())['thresholds']) == 15
    assert {name: (results / name).read_bytes() for name in before} == before


def test_crf_needs_the_images(copy, capsys):
    script, line = commands(copy)['evaluate cams']  # --data_dir is the folder of masks
    text = fault_of(script, [*line, '--crf_iteration', '1'], capsys)
    assert 'SegmentationClass/JPEGImages/train_00000.jpg: no such file (6 of 6 are missing)' in text


def test_upload_for_the_test_server(copy, capsys):
    info = json.loads((copy / 'dataset.json').read_text())
    info['lists']['test'] = info['lists']['val']
    (copy / 'dataset.json').write_text(json.dumps(info))
    run(copy, 'predictions', '--domain', 'test', '--iteration', '0')
    name = f'seg@test@scale={SCALES}@iteration=0'
    run(copy, 'evaluate', '--experiment_name', name, '--domain', 'test')  # with masks: scored like any list
    assert json.loads((copy.parent / f'experiments/results/{name}@test.json').read_text())['images'] == 4
    shutil.rmtree(copy / 'SegmentationClass')  # not public
    shutil.rmtree(copy / 'Annotations')
    run(copy, 'evaluate', '--experiment_name', name, '--domain', 'test')
    (upload,) = (copy.parent / 'experiments' / 'results').glob('*.tgz')
    assert name in upload.name
    with tarfile.open(upload, 'r:gz') as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    info['lists']['test'] = info['lists']['train']
    (copy / 'dataset.json').write_text(json.dumps(info))
    script, line = commands(copy)['evaluate cams']
    text = fault_of(script, [*line, '--domain', 'test'], capsys)
    assert f'--domain test: has no masks, and experiments/predictions/{CAMS} contains no label maps to upload' in text
    folder = 'results/VOC2012/Segmentation/comp6_test_cls'
    assert set(members) == {f'{folder}/{image_id}.png' for image_id in ids_of(copy, 'val')}
    for path, content in members.items():
        picture = Image.open(io.BytesIO(content))
        assert picture.mode == 'P'
        source = copy.parent / 'experiments' / 'predictions' / name / path.rsplit('/', 1)[1]
        assert np.array_equal(np.array(picture), pixels(source))


def test_second_evaluation_of_a_folder_is_refused(copy):
    result = Path(f'experiments/results/{CAMS}@train.json')
    before = result.read_bytes()
    with locks.locked(locks.lock_path(result), str(result)):
        with pytest.raises(UserError, match=f'is being written by process {os.getpid()}'):
            run(copy, 'evaluate cams')
    assert result.read_bytes() == before


def test_evaluation_is_not_shared_by_processes(demo, monkeypatch, capsys):
    """It has no flag that divides its work: torchrun is refused in one line."""
    as_process(monkeypatch, 1, 2)
    script, line = commands(demo)['evaluate']
    text = fault_of(script, line, capsys)
    assert text.startswith('process 1 of 2: ')
    assert text.endswith(': cannot share its work among processes: start it with python3 instead of torchrun')
