"""Outputs whose inputs have changed since, and mixtures of two: every reader names them, and refuses nothing else."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from core import UserError
from core.data.dataset import open_dataset
from core.models.weights import read_state_dict
from support import chain
from support.chain import AFFINITY_LABELS, CAMS, PREDICTIONS, PSEUDO, RANDOM_WALKS, commands, first
from support.programs import held, refusal
from tools import import_published, predict, report, show, summarize
from tools.reporting import panels, provenance
from util.script import run as run_script
from util.store import results
from util.store.arrays import write_npz
from util.store.current import find_outdated
from util.store.folders import Folder
from util.store.hashes import file_hash, label_hashes, mask_hashes
from util.training.models import BestAndLast
from util.training.run import Run

STAGES = ('cls', 'cams', 'affinity_labels', 'aff', 'random_walk', 'pseudo', 'seg', 'predictions', 'evaluate')
FIRST = 'train_classification_with_puzzle.py'
MODEL = 'experiments/models/cls.pth'


@pytest.fixture
def moved(copy, demo) -> Path:
    """The outputs of all stages in the working directory, which record the copy of the data in data/."""
    for path in Path('experiments').glob('*/**/*.json'):
        content = path.read_text()
        path.write_text(content.replace(str(demo), str(copy)))
    return copy


def relabel(data, image_id: str) -> None:
    """Change the classes of an image, on which stage 1 was trained."""
    path = data / 'Annotations' / f'{image_id}.xml'
    classes = json.loads((data / 'dataset.json').read_text())['classes']
    text = path.read_text()
    used = [name for name in classes if f'<name>{name}</name>' in text]
    other = next(name for name in classes if name not in used)
    path.write_text(text.replace(f'<name>{used[0]}</name>', f'<name>{other}</name>'))


def line_of(data, name: str, capsys, *more: str) -> str:
    """Return the line of error that a command ends with."""
    script, words = commands(data)[name]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_script(script.main, lambda: script.parse_args([*words, *more]))
    assert isinstance(ended.value.code, str)
    assert '\n' not in ended.value.code
    return ended.value.code.split(': error: ', 1)[1]


def run_again(data, name: str, *more: str) -> None:
    script, words = commands(data)[name]
    script.main(script.parse_args([*words, *more]))


# The good sequence --------------------------------------------------------------------------------------------------


def test_nothing_is_outdated_if_nothing_changed(moved, capsys):
    for name in STAGES:
        before = chain.contents(Path())
        try:
            run_again(moved, name)
        except SystemExit as end:
            assert end.code is None
        printed = capsys.readouterr().out
        assert 'already finished' in printed or '0 of them new' in printed or name == 'evaluate', name
        if name != 'evaluate':
            assert chain.contents(Path()) == before
    summarize.main(summarize.parse_args([]))
    show.main(show.parse_args([PSEUDO, '--images', '1']))
    assert 'warning' not in capsys.readouterr().err


def test_a_moved_data_set_is_the_same(copy, demo, capsys):
    """The records name the folder of the data when it was elsewhere."""
    shutil.rmtree('experiments/cache')
    for path in Path('experiments').glob('*/**/*.json'):
        path.write_text(path.read_text().replace(str(demo), '/nowhere'))
    run_again(copy, 'pseudo')
    assert '0 of them new' in capsys.readouterr().out
    relabel(copy, first(copy))
    assert FIRST in line_of(copy, 'pseudo', capsys)


@pytest.mark.parametrize(
    'gone',
    [f'predictions/{CAMS}', 'models/cls.pth', 'data/cls.json checkpoints/cls.pth', f'predictions/{AFFINITY_LABELS}'],
)
def test_what_was_deleted_upstream_is_not_a_change(moved, capsys, gone):
    for path in map(Path('experiments').joinpath, gone.split()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_again(moved, 'pseudo')
    run_again(moved, 'predictions')
    run_again(moved, 'evaluate')


@pytest.mark.parametrize('what', ['lost', 'of another run'])
def test_the_record_of_a_run_that_is_lost_is_named_and_written_again(moved, capsys, what):
    path = Path('experiments/data/cls.json')
    before = json.loads(path.read_text())
    path.unlink()
    if what == 'of another run':
        shutil.copy('experiments/data/aff.json', path)
    expected = f'{path}: is missing, damaged or not of {MODEL}, so its inputs are unknown: run its trainer again'
    assert line_of(moved, 'cams', capsys).startswith(expected)
    with pytest.raises(SystemExit):  # it has finished
        run_again(moved, 'cls')
    assert {**json.loads(path.read_text()), 'seconds': 0} == {**before, 'seconds': 0}
    run_again(moved, 'cams')


# What has changed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name', ['cams', 'affinity_labels', 'aff', 'random_walk', 'pseudo', 'seg', 'predictions', 'evaluate']
)
@pytest.mark.parametrize('change', ['label', 'image'])
def test_a_changed_label_or_image_names_stage_1_everywhere(moved, capsys, name, change):
    image_id = first(moved)
    if change == 'label':
        relabel(moved, image_id)
        what = f'labels of 1 image changed ({image_id}.jpg)'
    else:
        path = moved / 'JPEGImages' / f'{image_id}.jpg'
        with Image.open(path) as image:
            turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turned.save(path)
        what = f'1 image changed ({image_id}.jpg)'
    text = line_of(moved, name, capsys)
    assert text.startswith(f'{MODEL}: {what}')
    assert text.endswith(f'; run {FIRST} again')


def test_other_meanings_of_the_values_of_masks_are_a_change(moved, capsys):
    path = moved / 'dataset.json'
    entries = json.loads(path.read_text())
    names = ['background', *entries['classes']]
    path.write_text(
        json.dumps({**entries, 'mask_values': {'255': 'ignore', **{str(i): n for i, n in enumerate(names)}}})
    )
    assert 'masks of 6 images changed' in line_of(moved, 'cams', capsys)
    run_again(moved, 'cls', '--overwrite')
    names[1:3] = names[2:0:-1]
    path.write_text(
        json.dumps({**entries, 'mask_values': {'255': 'ignore', **{str(i): n for i, n in enumerate(names)}}})
    )
    assert 'masks of 6 images changed' in line_of(moved, 'cams', capsys)


@pytest.mark.parametrize('content', [None, '', '{', '{}', 'no fingerprint'])
@pytest.mark.parametrize('name', ['affinity_labels', 'pseudo'])
def test_a_folder_whose_record_is_lost_is_refused(moved, capsys, name, content):
    """By the stage that reads it, and by later ones."""
    path = Path('experiments/predictions', CAMS, 'args.json')
    if content is None:
        path.unlink()
    else:
        path.write_text(json.dumps({'format': 'CAM'}) if content == 'no fingerprint' else content)
    expected = f'{path}: is missing or damaged, so its inputs are unknown: write the folder again with --overwrite'
    assert line_of(moved, name, capsys).startswith(expected)


def test_stages_1_and_2_again(moved, capsys):
    """Stage 6 does not say that it has nothing to do, and each stage in its order is named."""
    run_again(moved, 'cls', '--overwrite', '--seed', '1')
    assert line_of(moved, 'affinity_labels', capsys) == (
        f'experiments/predictions/{CAMS}: {MODEL} changed; run inference_classification.py again'
    )
    run_again(moved, 'cams', '--overwrite')
    where = f'experiments/predictions/{CAMS} changed'
    labels = f'experiments/predictions/{AFFINITY_LABELS}: {where}; run make_affinity_labels.py again'
    for name in ('aff', 'pseudo', 'seg', 'predictions', 'evaluate'):
        assert line_of(moved, name, capsys) == labels
    assert 'different settings' in line_of(moved, 'affinity_labels', capsys)
    run_again(moved, 'affinity_labels', '--overwrite')
    text = line_of(moved, 'pseudo', capsys)
    assert text.startswith('experiments/models/aff.pth: ') and text.endswith('; run train_affinitynet.py again')
    assert f'{MODEL} changed; experiments/predictions/{AFFINITY_LABELS} changed' in text
    run_again(moved, 'aff', '--overwrite')
    assert line_of(moved, 'pseudo', capsys).endswith('; run inference_rw.py again')
    run_again(moved, 'random_walk', '--overwrite')
    assert line_of(moved, 'seg', capsys).endswith('; run make_pseudo_labels.py again')
    run_again(moved, 'pseudo', '--overwrite')
    assert line_of(moved, 'evaluate', capsys).endswith('; run train_segmentation.py again')
    run_again(moved, 'seg', '--overwrite')
    assert line_of(moved, 'evaluate', capsys).endswith('; run inference_segmentation.py again')
    run_again(moved, 'predictions', '--overwrite')
    run_again(moved, 'evaluate')


def test_files_of_a_folder_that_were_made_again(moved, capsys):
    """Of images that no network was trained on."""
    record = Path('experiments/predictions', CAMS, 'inputs.json')
    content = json.loads(record.read_text())
    content['labels'][first(moved)] = '1 2 3'
    record.write_text(json.dumps(content))
    text = line_of(moved, 'pseudo', capsys)
    assert text.startswith(f'experiments/predictions/{CAMS}: labels of 1 image changed')
    del content['labels']
    record.write_text(json.dumps(content))
    text = line_of(moved, 'pseudo', capsys)
    assert text.startswith(f'experiments/predictions/{AFFINITY_LABELS}: maps of 12 images changed')


def test_other_masks_date_a_model_only_if_they_selected_it(moved):
    path = moved / 'SegmentationClass' / f'{open_dataset(moved / "dataset.json", moved).ids("train")[0]}.png'
    with Image.open(path) as mask:
        other = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    other.save(path)
    assert 'scored masks of 1 image changed' in find_outdated([Path(MODEL)])
    record = Path('experiments/data/cls.json')
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, 'options': {**content['options'], 'select': 'last'}}))
    assert find_outdated([Path(MODEL)]) is None


@pytest.mark.parametrize('tag', ['cls', 'aff'])
def test_the_masks_that_epochs_are_scored_on_are_recorded(moved, tag):
    recorded = json.loads(Path(f'experiments/data/{tag}.json').read_text())['inputs']
    masks = mask_hashes({i: moved / f'SegmentationClass/{i}.png' for i in recorded['scored masks']}, None)
    assert recorded['scored masks'] == masks and '' not in masks.values() and masks


def test_the_tags_that_epochs_are_scored_on_are_recorded_and_date_no_model(moved):
    dataset = open_dataset(moved / 'dataset.json', moved)
    tags = label_hashes({i: dataset.read_labels(i) for i in dataset.ids('val')})
    recorded = json.loads(Path('experiments/data/cls.json').read_text())['inputs']
    assert recorded['validation labels'] == tags and tags
    assert recorded['validation images'].keys() == tags.keys()
    relabel(moved, dataset.ids('val')[0])
    assert find_outdated([Path(MODEL)]) is None


def test_a_finished_run_of_outdated_labels_is_not_finished(moved, capsys):
    relabel(moved, first(moved))
    assert 'already finished' not in line_of(moved, 'seg', capsys)


def test_a_copied_model_is_taken_as_it_is(moved, capsys):
    relabel(moved, first(moved))
    shutil.copy(MODEL, 'experiments/models/kept.pth')
    run_again(moved, 'cams', '--tag', 'kept')
    text = line_of(moved, 'cams', capsys)
    shutil.copy('experiments/models/seg.pth', MODEL)  # its tag has a record, which is of another file
    assert text.endswith(f'run {FIRST} again')
    assert find_outdated([Path(MODEL)]) == f'{MODEL}: is not as recorded; run {FIRST} again'


def test_classes_of_another_order(moved, capsys):
    path = moved / 'dataset.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, 'classes': content['classes'][::-1]}))
    assert 'the classes of the data set' in line_of(moved, 'evaluate', capsys)


@pytest.mark.parametrize('tool', ['summarize', 'summarize all', 'show', 'report', 'predict'])
def test_tools_print_one_warning(moved, capsys, tool):
    relabel(moved, first(moved))
    if tool.startswith('summarize'):
        summarize.main(summarize.parse_args([] if 'all' in tool else [f'{PREDICTIONS}@val']))
    elif tool == 'show':
        show.main(show.parse_args([PSEUDO, '--images', '1']))
    elif tool == 'report':
        report.main(report.parse_args(['--images', '1', '--num_workers', '0']))
    else:
        image = str(moved / 'JPEGImages' / f'{first(moved)}.jpg')
        predict.main(predict.parse_args([MODEL, image, '--scales', '1.0', '--device', 'cpu']))
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith('warning: ')]
    assert found == [f'warning: {MODEL}: labels of 1 image changed ({first(moved)}.jpg); run {FIRST} again']


@pytest.mark.parametrize('what', ['written again', 'record lost'])
def test_a_score_of_what_was_a_folder_is_named(moved, capsys, what):
    record = Path('experiments/predictions', PSEUDO, 'args.json')
    if what == 'record lost':
        record.unlink()
    else:
        run_again(moved, 'pseudo', '--overwrite', '--threshold', '0.5')
    summarize.main(summarize.parse_args([f'{PSEUDO}@train']))
    err = capsys.readouterr().err
    if what == 'record lost':
        assert f'warning: {record}: is missing or damaged, so its inputs are unknown: ' in err
        return
    assert f'warning: {PSEUDO}@train: its folder has changed since it was scored; run evaluate.py again' in err
    run_again(moved, 'evaluate pseudo')
    capsys.readouterr()
    summarize.main(summarize.parse_args([f'{PSEUDO}@train']))
    assert 'warning' not in capsys.readouterr().err


# Records of other types -------------------------------------------------------------------------------------------

OTHERS = ([], None, {'a': 5}, 5, 'a', [{}])


def changes_of(content: dict):
    """Yield a record with another value in each place of its first two levels."""
    for name, value in content.items():
        for other in OTHERS:
            yield name, {**content, name: other}
        for inner in value if isinstance(value, dict) else ():
            for other in OTHERS:
                yield name, {**content, name: {**value, inner: other}}


def check_readers(path: Path, content: dict) -> list[str]:
    """Write a record, and return the lines that readers of the folder behind it end with."""
    path.write_text(json.dumps(content))
    lines = []
    for read in (
        lambda: find_outdated([Path('experiments/predictions', PSEUDO)]),
        lambda: provenance.trace({PSEUDO: 'pseudo-label'}),
        lambda: provenance.warn_if_outdated([Path('experiments/predictions', PSEUDO)]),
    ):
        try:
            read()
        except UserError as error:
            assert str(error).startswith(f'{path}: '), error
            lines.append(str(error))
    return lines


def test_the_record_of_a_run_with_other_types(moved):
    path = Path('experiments/data/cls.json')
    content = json.loads(path.read_text())
    named = [name for name, changed in changes_of(content) if check_readers(path, changed)]
    assert set(named) == {'network', 'options', 'versions', 'seconds', 'curves', 'fingerprint', 'inputs', 'models'}
    (line,) = check_readers(path, {**content, 'inputs': {'images': 5}})
    assert f'{path}: is missing, damaged or not of ' in line and 'run its trainer again' in line


@pytest.mark.parametrize('folder', [CAMS, RANDOM_WALKS, PSEUDO])
def test_the_record_of_a_folder_with_other_types(moved, folder):
    path = Path('experiments/predictions', folder, 'args.json')
    named = {name for name, changed in changes_of(json.loads(path.read_text())) if check_readers(path, changed)}
    assert {'format', 'fingerprint'} <= named


def test_a_checkpoint_with_other_types(moved, capsys):
    path = Path('experiments/checkpoints/cls.pth')
    content = torch.load(path, weights_only=True)
    for change in (
        {'fingerprint': []},
        {'fingerprint': {'max_epoch': 'a'}},
        {'contents': {'a': 5}},
        {'iteration': 'a'},
    ):
        torch.save({**content, **change}, path)
        assert line_of(moved, 'cls', capsys) == f'{path}: damaged (TypeError): pass --overwrite to train again'


# Files that are not as recorded -------------------------------------------------------------------------------------

# Who reads a folder, and all that is made from it.
READERS = {
    CAMS: ('affinity_labels', 'aff', 'random_walk', 'evaluate cams', 'pseudo', 'seg', 'predictions', 'evaluate'),
    AFFINITY_LABELS: ('aff', 'random_walk', 'pseudo', 'seg', 'predictions', 'evaluate'),
    RANDOM_WALKS: ('pseudo', 'evaluate random_walk', 'seg', 'predictions', 'evaluate'),
    PSEUDO: ('seg', 'evaluate pseudo', 'predictions', 'evaluate'),
    PREDICTIONS: ('evaluate',),
}
WRITERS = {folder: name for name, folder in chain.FOLDERS.items()}


def replace_file(folder: str) -> Path:
    """Put another file in the place of the first image's, as if from another machine or seed."""
    path = min(Path('experiments/predictions', folder).glob('*_0*'))
    if path.suffix == '.png':
        with Image.open(path) as image:
            image.putpixel((0, 0), 2 if image.getpixel((0, 0)) == 1 else 1)
            image.save(path)
    else:
        with np.load(path) as file:
            arrays = {
                name: array if name == 'keys' else (array / 2 + 0.25).astype(array.dtype)
                for name, array in file.items()
            }
        write_npz(path, **arrays)
    return path


def outdated_line(folder: str, path: Path) -> str:
    """Return the line about a replaced file as a pattern: readers count the files that they read."""
    script = commands('')[WRITERS[folder]][0].__name__
    start, what = re.escape(f'experiments/predictions/{folder}: 1 of '), re.escape(f'as recorded ({path.name})')
    return rf'{start}\d+ files are not {what}; run {script}\.py again'


@pytest.mark.parametrize('folder', READERS)
def test_a_foreign_file_is_named_by_every_reader(moved, capsys, folder):
    before = Path('experiments/predictions', folder).glob('*')
    before = {path: path.read_bytes() for path in before if path.suffix in ('.npz', '.png')}
    path = replace_file(folder)
    for name in READERS[folder]:
        assert re.fullmatch(outdated_line(folder, path), line_of(moved, name, capsys)), name
    show.main(show.parse_args([folder, '--images', '1']))
    summarize.main(summarize.parse_args([f'{PREDICTIONS}@val']))
    assert len(re.findall(f'warning: {outdated_line(folder, path)}', capsys.readouterr().err)) == 2
    run_again(moved, WRITERS[folder])
    assert {path: path.read_bytes() for path in before} == before
    for name in READERS[folder]:
        try:
            run_again(moved, name)
        except SystemExit as end:
            assert end.code is None


def test_a_foreign_file_is_named_when_labels_are_made_of_it(moved, capsys):
    """No label is written, so that none of a mixture remains."""
    shutil.rmtree(f'experiments/predictions/{AFFINITY_LABELS}')
    path = replace_file(CAMS)
    assert re.fullmatch(outdated_line(CAMS, path), line_of(moved, 'affinity_labels', capsys))
    assert not Path('experiments/predictions', AFFINITY_LABELS).exists()


def test_a_file_that_is_replaced_while_it_is_read(moved, capsys, monkeypatch):
    write = Folder.write_missing_labels

    def write_and_replace(self, *arguments, **inputs):
        write(self, *arguments, **inputs)
        replace_file(RANDOM_WALKS)

    shutil.rmtree(f'experiments/predictions/{PSEUDO}')
    monkeypatch.setattr(Folder, 'write_missing_labels', write_and_replace)
    assert 'was written again while it was read' in line_of(moved, 'pseudo', capsys)


@pytest.mark.parametrize('content', [None, '{', '{"images": {}, "labels": 3}'])
def test_a_lost_record_of_inputs_is_not_up_to_date(moved, capsys, content):
    """What its files were made of is unknown: an image may have changed in the meantime."""
    record = Path('experiments/predictions', CAMS, 'inputs.json')
    before = chain.contents(Path())
    record.unlink() if content is None else record.write_text(content)
    for name in ('affinity_labels', 'random_walk', 'evaluate cams', 'pseudo'):
        text = line_of(moved, name, capsys)
        assert text.startswith(f'experiments/predictions/{CAMS}: ')
        assert ' files are not as recorded (' in text and text.endswith('; run inference_classification.py again')
    run_again(moved, 'cams')
    assert '12 CAMs' in (out := capsys.readouterr().out) and ' 12 of them new' in out
    assert chain.contents(Path()) == before
    run_again(moved, 'affinity_labels')


def test_a_record_of_inputs_without_the_folder_that_was_read(moved, capsys):
    """The record of the random walks names images and CAMs, not the walks that pseudo-labels are made from."""
    folder, before = Path('experiments/predictions'), chain.contents(Path())
    shutil.copy(folder / RANDOM_WALKS / 'inputs.json', folder / PSEUDO)
    text = line_of(moved, 'seg', capsys)
    assert '12 of 12 files are not as recorded (' in text and text.endswith('; run make_pseudo_labels.py again')
    run_again(moved, 'pseudo')
    assert ' 12 of them new' in capsys.readouterr().out
    assert chain.contents(Path()) == before


@pytest.mark.parametrize('tag', chain.TAGS)
def test_a_model_in_the_place_of_a_runs_own(moved, capsys, tag):
    path = Path(f'experiments/models/{tag}.pth')
    content = torch.load(path, weights_only=True)
    shutil.move(path, 'own.pth')
    content['model'] = {name: value * 1 for name, value in content['model'].items()}
    torch.save({**content, 'mine': 1}, path)
    script = f'{commands("")[tag][0].__name__}.py'
    expected = f'{path}: is not as recorded; run {script} again'
    for name in {'cls': ('cams', 'aff'), 'aff': ('random_walk', 'pseudo'), 'seg': ('predictions', 'evaluate')}[tag]:
        assert line_of(moved, name, capsys) == expected
    image = str(moved / 'JPEGImages' / f'{first(moved)}.jpg')
    if tag != 'aff':
        predict.main(predict.parse_args([str(path), image, '--scales', '1.0', '--device', 'cpu']))
        assert f'warning: {expected}' in capsys.readouterr().err
    kept = path.read_bytes()
    assert line_of(moved, tag, capsys).startswith(f'{path}: is not the model of this run: move it away')
    assert path.read_bytes() == kept
    shutil.move(path, 'experiments/models/mine.pth')
    with pytest.raises(SystemExit):
        run_again(moved, tag)
    assert path.read_bytes() == Path('own.pth').read_bytes()


# Mixtures -----------------------------------------------------------------------------------------------------------


def test_evaluate_refuses_a_folder_that_is_written_again_meanwhile(moved, capsys, monkeypatch):
    count = results.count_pixels

    def count_and_overwrite(*arguments):
        found = count(*arguments)
        run_again(moved, 'pseudo', '--overwrite', '--threshold', '0.5')
        return found

    before = Path(f'experiments/results/{PSEUDO}@train.json').read_bytes()
    monkeypatch.setattr(evaluate.results, 'count_pixels', count_and_overwrite)
    assert 'was written again while it was read' in line_of(moved, 'evaluate pseudo', capsys)
    assert Path(f'experiments/results/{PSEUDO}@train.json').read_bytes() == before


@pytest.mark.parametrize(
    'name, folder, lost',
    [
        ('evaluate', PREDICTIONS, 'args.json'),
        ('evaluate', PREDICTIONS, 'val_00000.png'),
        ('seg', PSEUDO, 'train_00000.png'),
    ],
)
def test_the_writer_of_a_folder_that_is_not_complete_is_named(moved, capsys, name, folder, lost):
    path = Path('experiments/predictions', folder)
    (path / lost).unlink()
    with held(path / '.lock') as process:
        assert re.fullmatch(refusal(path, process), line_of(moved, name, capsys))
    assert 'is being written' not in line_of(moved, name, capsys)


@pytest.mark.parametrize('tool', ['show', 'report'])
def test_tools_refuse_a_folder_that_is_written_again_meanwhile(moved, capsys, monkeypatch, tool):
    draw = panels.draw_image

    def draw_and_overwrite(*arguments):
        found = draw(*arguments)
        run_again(moved, 'pseudo', '--overwrite', '--threshold', '0.5')
        return found

    monkeypatch.setattr(panels, 'draw_image', draw_and_overwrite)
    with pytest.raises(UserError, match='was written again while it was read'):
        if tool == 'show':
            show.main(show.parse_args([PSEUDO, '--images', '1']))
        else:
            report.main(report.parse_args(['--images', '1', '--num_workers', '0']))


def test_a_stage_refuses_inputs_that_are_written_again_meanwhile(moved, capsys, monkeypatch):
    write = Folder.write_missing_labels

    def write_and_change(self, *arguments, **inputs):
        write(self, *arguments, **inputs)
        path = Path('experiments/predictions', RANDOM_WALKS, 'args.json')
        content = json.loads(path.read_text())
        content['fingerprint']['beta'] = 3
        path.write_text(json.dumps(content))

    shutil.rmtree(f'experiments/predictions/{PSEUDO}')
    monkeypatch.setattr(Folder, 'write_missing_labels', write_and_change)
    assert 'was written again while it was read' in line_of(moved, 'pseudo', capsys)


@pytest.mark.parametrize('moment', ['first step', 'last epoch'])
def test_a_run_refuses_labels_that_are_written_again_meanwhile(moved, capsys, monkeypatch, moment):
    """Neither a model nor a checkpoint of the mixture is written."""
    step, steps = Run.step, []

    def step_and_overwrite(self, *arguments, **more):
        steps.append(self.per_epoch)
        if len(steps) == (1 if moment == 'first step' else self.iterations):
            run_again(moved, 'pseudo', '--overwrite', '--threshold', '0.5')
        step(self, *arguments, **more)

    monkeypatch.setattr(Run, 'step', step_and_overwrite)
    more = ('--tag', 'new', '--max_epoch', '2', '--save_interval', '1')
    assert f'{PSEUDO}: was written again while it was read' in line_of(moved, 'seg', capsys, *more)
    done = torch.load('experiments/checkpoints/new.pth', weights_only=True)['iteration']
    assert done == (0 if moment == 'first step' else 2 * steps[0] - 1)
    if moment == 'first step':
        assert not Path('experiments/models/new.pth').exists()
    assert len(steps) == done + 1


@pytest.mark.parametrize('workers', ['0', '2'])
def test_a_folder_that_is_removed_while_it_is_written(moved, capsys, monkeypatch, workers):
    write = Folder.write_label

    def remove_and_write(self, image_id, label):
        if image_id == self.dataset_ids[4]:
            shutil.rmtree(self.path, ignore_errors=True)
        write(self, image_id, label)

    monkeypatch.setattr(Folder, 'dataset_ids', chain.ids_of(moved, 'train_aug'), raising=False)
    monkeypatch.setattr(Folder, 'write_label', remove_and_write)
    shutil.rmtree(f'experiments/predictions/{AFFINITY_LABELS}')
    text = line_of(moved, 'affinity_labels', capsys, '--num_workers', workers)
    assert 'was removed while it was written' in text or 'cannot be written' in text  # between two calls of a worker
    assert 'of them new' not in capsys.readouterr().out


def test_two_predictions_into_one_folder(moved, capsys, monkeypatch):
    """The second one starts before the first has written, and finds its files once it has the lock."""
    image = str(moved / 'JPEGImages' / f'{first(moved)}.jpg')
    words = [MODEL, image, '--scales', '1.0', '--device', 'cpu', '--crf_iteration', '0']
    fill_folder = predict.fill_folder

    def run_first_and_fill(*arguments, **options):
        monkeypatch.setattr(predict, 'fill_folder', fill_folder)
        predict.main(predict.parse_args(words))
        return fill_folder(*arguments, **options)

    monkeypatch.setattr(predict, 'fill_folder', run_first_and_fill)
    predict.main(predict.parse_args(words))
    lines = [line for line in capsys.readouterr().out.splitlines() if 'of them new' in line]
    assert [line.split(', ')[1] for line in lines] == ['1 of them new', '0 of them new']


# What is hashed is what is used -------------------------------------------------------------------------------------


def replace_after_reading(monkeypatch, path: Path, by: Path) -> None:
    """Replace a file right after its bytes have been read."""
    read = Path.read_bytes

    def read_and_replace(self):
        content = read(self)
        if os.path.abspath(self) == os.path.abspath(path):
            shutil.copy(by, path)
        return content

    monkeypatch.setattr(Path, 'read_bytes', read_and_replace)


def test_the_hash_of_a_model_is_of_the_loaded_bytes(moved, monkeypatch, capsys):
    expected, kept = file_hash(Path(MODEL)), Path('experiments/models/kept.pth')
    shutil.copy(MODEL, kept)
    replace_after_reading(monkeypatch, kept, Path('experiments/models/cls.last.pth'))
    run_again(moved, 'cams', '--tag', 'kept')
    record = json.loads(Path('experiments/predictions', CAMS.replace('cls', 'kept'), 'args.json').read_text())
    assert record['fingerprint']['model'] == expected


def test_the_hash_of_weights_is_of_the_loaded_bytes(moved, monkeypatch):
    expected = file_hash(Path(MODEL))
    shutil.copy(MODEL, 'own.pth')
    replace_after_reading(monkeypatch, Path('own.pth'), Path('experiments/models/cls.last.pth'))
    run_again(moved, 'aff', '--tag', 'other', '--weights', 'own.pth')
    record = json.loads(Path('experiments/data/other.json').read_text())
    assert record['fingerprint']['weights_file'] == expected
    assert record['models'] == {'other.pth': file_hash(Path('experiments/models/other.pth'))}


def test_a_file_of_a_published_folder_that_changes_meanwhile(in_tmp, monkeypatch):
    Path('published').mkdir()
    maps = np.full((1, 4, 4), 0.5, np.float32)
    content = {'keys': np.array([0, 1]), 'cam': maps, 'hr_cam': maps}
    np.save('published/a.npy', content, allow_pickle=True)
    read = import_published.read_cams
    calls = []

    def replace_and_read(path, *arguments):
        calls.append(path)
        if len(calls) == 2:  # the first call looks at the form
            np.save(path, {**content, 'cam': maps / 2}, allow_pickle=True)
        return read(path, *arguments)

    monkeypatch.setattr(import_published, 'read_cams', replace_and_read)
    with pytest.raises(UserError, match='a.npy: changed while it was imported'):
        import_published.main(import_published.parse_args(['published', '--tag', 'x', '--num_workers', '0']))


# Weights of other kinds ---------------------------------------------------------------------------------------------

ONES = torch.ones(3, 3)
KINDS = {
    'int64': (torch.ones(3, 3, dtype=torch.int64), "'w' is of the type torch.int64"),
    'bool': (torch.ones(3, 3, dtype=torch.bool), "'w' is of the type torch.bool"),
    'complex': (torch.ones(3, 3, dtype=torch.complex64), "'w' is of the type torch.complex64"),
    'sparse': (ONES.to_sparse(), "'w' is not dense (torch.sparse_coo)"),
    'sparse rows': (ONES.to_sparse_csr(), "'w' is not dense (torch.sparse_csr)"),
    'meta': (torch.ones(3, 3, device='meta'), "'w' is without values (on the meta device)"),
    'quantized': (torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8), "'w' is quantized (torch.qint8)"),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', KINDS)
def test_tensors_that_are_not_weights(tmp_path, kind):
    tensor, fault = KINDS[kind]
    path = tmp_path / 'file.pth'
    torch.save({'a': ONES, 'w': tensor, 'bn.num_batches_tracked': torch.tensor(3)}, path)
    with pytest.raises(UserError) as error:
        read_state_dict(path)
    assert str(error.value) == f'{path}: {fault}, weights are dense floating-point tensors'


def test_tensors_of_lower_precision_and_counters_are_weights(tmp_path):
    state = {'a': ONES.half(), 'b': ONES.bfloat16(), 'c': ONES.double(), 'bn.num_batches_tracked': torch.tensor(3)}
    torch.save(state, tmp_path / 'file.pth')
    file = read_state_dict(tmp_path / 'file.pth')
    assert file.state.keys() == state.keys()
    assert file.sha256 == file_hash(tmp_path / 'file.pth')


# Lost models of finished runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('tag', chain.TAGS)
def test_a_lost_model_is_written_again(moved, capsys, tag):
    """The last epoch is also the best, because there is only one."""
    files = {path: path.read_bytes() for path in Path('experiments/models').glob(f'{tag}.*')}
    for path in files:
        path.unlink()
    with pytest.raises(SystemExit) as ended:
        run_again(moved, tag)
    assert ended.value.code is None
    printed = capsys.readouterr().out
    for path, content in files.items():
        assert f'{path}: was missing; written again from the checkpoint' in printed
        assert path.read_bytes() == content
    run_again(moved, {'cls': 'cams', 'aff': 'random_walk', 'seg': 'predictions'}[tag])
    assert '0 of them new' in capsys.readouterr().out


def test_a_lost_best_model_is_named(moved, capsys, monkeypatch):
    scores = iter((0.5, 0.4))
    save = BestAndLast.save
    monkeypatch.setattr(
        BestAndLast, 'save', lambda self, model, epoch, _, **meta: save(self, model, epoch, next(scores), **meta)
    )
    run_again(moved, 'cls', '--tag', 'two', '--max_epoch', '2')
    best, last = Path('experiments/models/two.pth'), Path('experiments/models/two.last.pth')
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(SystemExit):
        run_again(moved, 'cls', '--tag', 'two', '--max_epoch', '2')
    assert last.read_bytes() == content
    best.unlink()
    text = line_of(moved, 'cls', capsys, '--tag', 'two', '--max_epoch', '2')
    assert text.startswith(f'{best}: is missing: it was the model of epoch 1, the best one')
    assert not best.exists()
