"""Creating and resuming an output folder: what it records, what it refuses, and who may write it."""

import hashlib
import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from core import UserError
from support.folders import (
    ARGS,
    CAMS,
    FOLDER,
    HR_CAMS,
    IDS,
    KEYS,
    LabelMaps,
    args_json,
    created,
    fill,
    folder_at,
    record_as_written,
)
from support.programs import held, refusal
from util.store import create as module
from util.store import folders, written
from util.store.files import write_json
from util.store.fingerprints import read_args
from util.store.folders import open_folder
from util.store.formats import CAM, EDGE, PREDICTION
from util.store.written import find_unrecorded

CLASSES = list(LabelMaps.class_names)


def test_folder_records_options_inputs_and_versions(in_tmp, capsys):
    with created() as folder:
        assert (folder.path, folder.missing) == (FOLDER, {'a', 'b'})
        record = args_json()
        assert record['format'] == 'CAM'
        assert record['options'] == ARGS
        settings = {'tag': 'x', 'scales': '1.0', 'cam': 'published', 'alpha': 4.0, 'classes': CLASSES, 'model': '1234'}
        assert record['fingerprint'] == settings
        assert record['versions']['numpy'] == np.__version__
        assert record['history'] == []
        assert read_args(folder.path) == record
        fill(folder)
    assert capsys.readouterr().out == f'2 CAMs in {FOLDER}, 2 of them new\n'
    opened = open_folder(CAM, FOLDER.name, '--flag', LabelMaps(), IDS)
    assert opened.path == FOLDER
    assert opened.fingerprint == folder.fingerprint
    assert read_args(in_tmp) == {}


def test_same_command_resumes(in_tmp):
    with created() as folder:
        fill(folder, ['b'])
    before = (FOLDER / 'args.json').read_bytes()
    with created() as folder:
        assert folder.missing == {'a'}
    assert (FOLDER / 'args.json').read_bytes() == before


@pytest.mark.parametrize('with_args', [True, False])
def test_folder_without_outputs_protects_nothing(in_tmp, with_args):
    with created():
        pass
    if not with_args:
        (FOLDER / 'args.json').unlink()
    with created(alpha=1.0, inputs={'model': 'another'}) as folder:
        assert folder.missing == {'a', 'b'}
    settings = {'tag': 'x', 'scales': '1.0', 'cam': 'published', 'alpha': 1.0, 'classes': CLASSES, 'model': 'another'}
    assert args_json()['fingerprint'] == settings
    assert args_json()['history'] == []


@pytest.mark.parametrize('damage', ['{', '[]', '{"fingerprint": 1}', '{"history": []}'])
def test_damaged_args_without_outputs_are_replaced_and_with_outputs_refused(in_tmp, damage):
    with created():
        pass
    (FOLDER / 'args.json').write_text(damage)
    with created() as folder:
        fill(folder)
    assert args_json()['options'] == ARGS
    (FOLDER / 'args.json').write_text(damage)
    with pytest.raises(UserError, match='contains files but no valid args.json.*pass --overwrite') as error, created():
        pass
    assert '\n' not in str(error.value)
    assert (FOLDER / 'args.json').read_text() == damage


@pytest.mark.parametrize(
    'changes, inputs, line',
    [
        ({'alpha': 1.0}, None, 'alpha: 4.0, requested 1.0'),
        ({}, {'model': '5678'}, 'model: 1234, requested 5678'),
        ({'alpha': 1.0}, {'model': '5678'}, 'alpha: 4.0, requested 1.0; model: 1234, requested 5678'),
        ({'new_option': 3}, None, 'new_option: None, requested 3'),
        ({}, {'model': '1' * 64}, f'model: 1234, requested {"1" * 12}...'),
    ],
)
def test_outputs_of_other_settings_are_refused(in_tmp, changes, inputs, line):
    with created() as folder:
        fill(folder, ['a'])
    before = {path: path.read_bytes() for path in FOLDER.iterdir()}
    with pytest.raises(UserError) as error, created(inputs=inputs, **changes):
        pass
    assert str(error.value) == (
        f'{FOLDER} exists with different settings ({line}): pass --overwrite to regenerate it, or another name'
    )
    assert {path: path.read_bytes() for path in FOLDER.iterdir()} == before
    with created(inputs=inputs, **changes, overwrite=True) as folder:
        assert folder.missing == {'a', 'b'}
    assert args_json()['history'] == []


def test_other_batch_size_and_device_resume_and_are_recorded(in_tmp):
    with created() as folder:
        fill(folder, ['a'])
    first = args_json()
    with created(batch_size=8) as folder:
        assert folder.missing == {'b'}
    with created(batch_size=8, device='cuda:1') as folder:
        assert folder.missing == {'b'}
    record = args_json()
    assert record['options'] == {**ARGS, 'batch_size': 8, 'device': 'cuda:1'}
    assert record['fingerprint'] == first['fingerprint']
    assert record['history'] == [
        {'options': ARGS, 'versions': first['versions']},
        {'options': {**ARGS, 'batch_size': 8}, 'versions': first['versions']},
    ]


def test_other_versions_resume_and_are_recorded(in_tmp, monkeypatch):
    with created() as folder:
        fill(folder, ['a'])
    old = args_json()['versions']
    monkeypatch.setattr(module, 'versions', lambda: {'code': 'later'})
    with created() as folder:
        assert folder.missing == {'b'}
    assert args_json()['versions'] == {'code': 'later'}
    assert args_json()['history'] == [{'options': ARGS, 'versions': old}]


def test_seconds_are_summed_over_the_commands_that_wrote(in_tmp, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, 'monotonic', lambda: now[0])

    def work(seconds, ids, fails=False, **changes):
        try:
            with created(**changes) as folder:
                now[0] += seconds
                fill(folder, ids)
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        return args_json()['seconds']

    assert work(5, []) == 0
    assert work(5, ['a']) == 5
    assert work(1.5, ['b'], fails=True) == 6.5
    before = (FOLDER / 'args.json').read_bytes()
    monkeypatch.setattr(module, 'versions', lambda: {'code': 'later'})
    assert work(7, [], num_workers=9) == 6.5
    assert (FOLDER / 'args.json').read_bytes() == before  # a command that writes nothing leaves no trace
    (FOLDER / 'b.npz').unlink()
    assert work(2, ['b'], num_workers=9) == 8.5
    assert work(4, IDS, overwrite=True) == 4


def test_options_that_an_output_does_not_use_share_its_folder(in_tmp):
    options = {'model_name': 'M', 'cam_dir': 'C', 'beta': 10, 'exp_times': 8, 'image_size': 64}
    with created(EDGE, **options) as folder:
        for image_id in IDS:
            folder.write_edge(image_id, CAMS[0])
    with created(EDGE, **{**options, 'cam_dir': 'D', 'beta': 5, 'exp_times': 2}) as folder:
        assert folder.missing == set()
    with pytest.raises(UserError, match='image_size: 64, requested 32'), created(EDGE, **{**options, 'image_size': 32}):
        pass


def test_outputs_of_another_format_are_refused(in_tmp):
    """With a chosen tag, an edge folder could get the name of a random walk."""
    with created() as folder:
        fill(folder)
    content = {**args_json(), 'format': EDGE.title}
    write_json(FOLDER / 'args.json', content)
    with pytest.raises(UserError) as error, created():
        pass
    assert str(error.value) == f'{FOLDER} contains edge maps: pass --overwrite to replace them, or another name'
    assert args_json() == content
    with created(overwrite=True) as folder:
        assert folder.missing == {'a', 'b'}
        assert args_json()['format'] == CAM.title


def test_outputs_without_args_are_refused(in_tmp):
    with created() as folder:
        fill(folder)
    (FOLDER / 'args.json').unlink()
    with pytest.raises(UserError, match='contains files but no valid args.json'), created():
        pass
    with created(overwrite=True) as folder:
        assert folder.missing == {'a', 'b'}


def test_overwrite_removes_outputs_and_keeps_other_files(in_tmp):
    with created(ids=['a', 'b', 'unlisted']) as folder:
        fill(folder, folder.ids)
    (FOLDER / 'notes.txt').write_text('mine')
    with created(overwrite=True) as folder:
        assert folder.missing == {'a', 'b'}
        assert {path.name for path in FOLDER.glob('*')} - {'.lock', '.lock.json'} == {
            'args.json',
            'inputs.json',
            'notes.txt',
        }


@pytest.mark.parametrize('kind', [CAM, PREDICTION])
def test_repair_regenerates_damaged_files(in_tmp, capsys, kind):
    options = {'iteration': 1, 'crf_gaussian': '3,3', 'crf_bilateral': '50,5,10'}
    create = partial(created, kind, ['a', 'b', 'c'], **options)

    def write(ids):
        if kind is CAM:
            fill(folder, ids)
        else:
            for image_id in ids:
                folder.write_label(image_id, np.full((4, 5), 20, np.uint8))

    with create() as folder:
        write(IDS)
    path = folder.file('b')
    path.write_bytes(path.read_bytes()[:50])
    record_as_written(folder.path)
    with create() as folder:
        assert folder.missing == {'c'}  # existing files are not read
    capsys.readouterr()
    with create(repair=True) as folder:
        assert folder.missing == {'b', 'c'}
        write(['b', 'c'])
    line, summary = capsys.readouterr().out.splitlines()
    assert line.startswith(f'regenerating: {path}: ')
    assert summary == f'3 {kind.title}s in {folder.path}, 2 of them new'


# Files that are not as recorded --------------------------------------------------------------------------------------


def file_hashes_of(folder) -> dict[str, str]:
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(folder.path.glob('*.npz'))}


@pytest.fixture
def filled(in_tmp):
    """A folder whose images exist, so that inputs.json has hashes of them."""
    for image_id in IDS:
        Path(f'{image_id}.jpg').write_text(image_id)
    with created() as folder:
        fill(folder)
    return folder


def test_the_hash_of_every_file_is_recorded(filled):
    assert list(json.loads((FOLDER / 'files.json').read_text()).items()) == list(file_hashes_of(filled).items())
    assert not list(FOLDER.glob('.*.written'))
    assert not find_unrecorded(FOLDER, CAM, IDS)


@pytest.mark.parametrize('change', ['other', 'foreign', 'edited', 'files.json', 'damaged', 'inputs.json', 'input'])
def test_files_that_are_not_as_recorded_are_made_again(filled, capsys, change):
    before = {path.name: path.read_bytes() for path in FOLDER.glob('[!.]*')}
    expected = {'b'}
    if change == 'other':
        folder_at(FOLDER, CAM).write_maps('b', KEYS, CAMS / 2, HR_CAMS / 2)
    elif change == 'foreign':  # where no file was
        filled.file('b').unlink()
        with created(ids=['a']):
            pass
        written.forget(FOLDER, ['b'], IDS)
        filled.file('b').write_bytes(before['b.npz'])
    elif change == 'edited':
        filled.file('b').write_bytes(before['b.npz'] + b' ')
    elif change == 'input':
        content = json.loads(before['inputs.json'])
        del content['images']['b']
        write_json(FOLDER / 'inputs.json', content)
    else:
        expected = set(IDS)
        path = FOLDER / ('files.json' if change == 'damaged' else change)
        path.write_text('{') if change == 'damaged' else path.unlink()
    capsys.readouterr()
    assert set(find_unrecorded(FOLDER, CAM, IDS)) == expected
    with created() as folder:
        assert folder.missing == expected
        fill(folder)
    err = capsys.readouterr().err
    assert err.startswith(f'{FOLDER}: {len(expected)} of 2 files are not as recorded (')
    assert err.endswith('): regenerating\n')
    assert {name: (FOLDER / name).read_bytes() for name in before if name != 'args.json'} == {
        name: content for name, content in before.items() if name != 'args.json'
    }


def test_a_lost_record_of_inputs_is_still_lost_for_a_command_that_was_killed(filled):
    """It wrote inputs.json, and was killed before it wrote a file."""
    (FOLDER / 'inputs.json').unlink()
    with created():
        pass
    with created() as folder:
        assert folder.missing == set(IDS)


def test_a_killed_command_has_noted_its_files(in_tmp):
    """Each one before it got its name; the record is the same as without the kill."""
    ids = ['c', 'a', 'b']
    with created(ids=ids) as folder:
        fill(folder)
        journal = folder.journal.read_bytes()
        files = {path: path.read_bytes() for path in FOLDER.glob('[!.]*')}
    expected = (FOLDER / 'files.json').read_bytes()
    assert list(json.loads(expected)) == ids
    for count in range(4):
        for path in [*FOLDER.glob('*.npz'), FOLDER / 'files.json']:
            path.unlink()
        for path, content in files.items():
            path.write_bytes(content)
        lines = journal.splitlines(keepends=True)
        (FOLDER / '.all.written').write_bytes(b''.join(lines[:count]))
        noted = {line.decode().split()[1] for line in lines[:count]}
        assert set(find_unrecorded(FOLDER, CAM, ids)) == set(ids) - noted
        with created(ids=ids) as folder:
            assert folder.missing == set(ids) - noted
            fill(folder)
        assert (FOLDER / 'files.json').read_bytes() == expected


def test_a_killed_writer_has_noted_the_file_that_it_could_not_write(in_tmp, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with created() as folder:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(folders, 'write_bytes', fail)
            fill(folder)
        assert folder.journal.read_text().endswith(' a\n')
    with created() as folder:
        assert folder.missing == set(IDS)


def test_a_file_of_other_inputs_that_comes_back_is_not_as_recorded(filled):
    before = filled.file('b').read_bytes()
    Path('b.jpg').write_text('new')
    with created() as folder:
        assert folder.missing == {'b'}
    filled.file('b').write_bytes(before)
    assert find_unrecorded(FOLDER, CAM, IDS) == ['b']
    for image_id in IDS:
        filled.file(image_id).unlink()
    with created(alpha=1.0) as folder:
        filled.file('b').write_bytes(before)
        assert find_unrecorded(FOLDER, CAM, IDS) == ['b']


def test_leftovers_of_killed_writers_are_removed(in_tmp):
    with created() as folder:
        fill(folder)
    leftovers = [FOLDER / f'.0123456789abcdef.{pid}.tmp' for pid in (12, 1234567)]
    others = [FOLDER / 'notes.tmp', FOLDER / '.hidden']
    for path in [*leftovers, *others]:
        path.write_bytes(b'half')
    with created() as folder:
        assert folder.missing == set()
    assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in others)


def test_name_of_the_output_folder_that_is_too_long_is_refused(in_tmp):
    with pytest.raises(UserError, match='the name of the output folder: t+... would have 264 bytes'):
        with created(tag='t' * 248):
            pass
    assert not list(in_tmp.iterdir())
    with created(tag='t' * 239) as folder:
        assert len(folder.path.name) == 255


def test_second_writer_is_refused_until_the_first_is_gone(in_tmp):
    with created() as folder:
        fill(folder, ['a'])
    before = {path: path.read_bytes() for path in FOLDER.glob('*')}
    with held(FOLDER / '.lock') as process:
        for overwrite in (False, True):
            with pytest.raises(UserError) as error, created(overwrite=overwrite):
                pass
            assert re.fullmatch(refusal(FOLDER, process), str(error.value))
        assert {path: before[path] for path in before} == {path: path.read_bytes() for path in before}
        process.kill()
        process.wait()
        with created() as folder:
            assert folder.missing == {'b'}
            assert json.loads((FOLDER / '.lock.json').read_text())['pid'] == os.getpid()
    assert not (FOLDER / '.lock.json').exists()
