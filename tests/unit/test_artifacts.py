"""Output folders: names, settings, locks, and npz files that round-trip or are refused in one line."""

import json
import os
import pickle
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from core import UserError
from support.folders import ARGS, CAMS, FOLDER, HR_CAMS, KEYS, LabelMaps, options
from support.programs import held, refusal
from util import artifacts
from util.artifacts import (
    AFFINITY_LABEL,
    CAM,
    EDGE,
    PREDICTION,
    PSEUDO_LABEL,
    RANDOM_WALK,
    Folder,
    create_folder,
    folder_name,
    format_of,
    maps_inside,
    open_folder,
    read_args,
    read_maps,
)


def folder_at(path, kind, ids=('a',)) -> Folder:
    return Folder(kind, path, LabelMaps(), ids)


def write_rw(path, keys, maps) -> None:
    folder_at(path.parent, RANDOM_WALK).write_maps(path.stem, keys, maps)


# Names --------------------------------------------------------------------------------------------------------------


def test_folder_names():
    scales = '0.5,1.0,1.5,2.0'
    for domain, split in (('train_aug', 'train'), ('train', 'train'), ('val', 'val'), ('test', 'test')):
        cams = options(tag='T@x', domain=domain, scales=scales)
        assert folder_name(CAM, cams) == f'T@x@{split}@scale=0.5,1.0,1.5,2.0'
        random_walk = options(model_name='M', domain=domain, beta=10, exp_times=8)
        assert folder_name(RANDOM_WALK, random_walk) == f'M@{split}@beta=10@exp_times=8@rw'
        assert folder_name(EDGE, random_walk) == f'M@{split}@edge'
    random_walk = options(model_name='M', domain='val', beta=10.0, exp_times=8)
    assert folder_name(RANDOM_WALK, random_walk) == 'M@val@beta=10@exp_times=8@rw'
    labels = options(experiment_name='C', domain='train_aug', fg_threshold=0.4, bg_threshold=0.1)
    assert folder_name(AFFINITY_LABEL, labels) == 'C@aff_fg=0.40_bg=0.10'
    assert folder_name(PSEUDO_LABEL, options(experiment_name='R', domain='train', crf_iteration=1)) == 'R@crf=1'
    predictions = options(tag='D', domain='val', scales=scales, iteration=10)
    assert folder_name(PREDICTION, predictions) == f'D@val@scale={scales}@iteration=10'


def test_changed_options_that_came_later_are_part_of_the_name():
    labels = dict(experiment_name='C', domain='train', fg_threshold=0.4, bg_threshold=0.1)
    labels |= dict(crf_iteration=10, gt_prob=0.7, crf_gaussian='3,3', crf_bilateral='50,5,10')
    pseudo = {**labels, 'crf_iteration': 1}
    walks = dict(model_name='A', domain='train', beta=10, exp_times=8, rw_normalization='joint')
    predictions = dict(tag='D', domain='val', scales='1.0', iteration=10, crf_gaussian='3,3', crf_bilateral='80,13,10')
    for kind, values, changes, name in (
        (AFFINITY_LABEL, labels, {}, 'C@aff_fg=0.40_bg=0.10'),
        (AFFINITY_LABEL, labels, {'crf_iteration': 0}, 'C@crf_iteration=0@aff_fg=0.40_bg=0.10'),
        (PSEUDO_LABEL, pseudo, {}, 'C@crf=1'),
        (PSEUDO_LABEL, pseudo, {'crf_iteration': 10}, 'C@crf=10'),
        (PSEUDO_LABEL, pseudo, {'gt_prob': 0.9, 'crf_gaussian': '1,3'}, 'C@gt_prob=0.9@crf_gaussian=1,3@crf=1'),
        (RANDOM_WALK, walks, {}, 'A@train@beta=10@exp_times=8@rw'),
        (RANDOM_WALK, walks, {'rw_normalization': 'class'}, 'A@train@beta=10@exp_times=8@rw_normalization=class@rw'),
        (PREDICTION, predictions, {}, 'D@val@scale=1.0@iteration=10'),
        (PREDICTION, predictions, {'crf_bilateral': '50,5,10'}, 'D@val@scale=1.0@crf_bilateral=50,5,10@iteration=10'),
    ):
        found = folder_name(kind, options(**{**values, **changes}))
        assert found == name
        assert format_of(found) is kind


@pytest.mark.parametrize(
    'name, kind, script',
    [
        ('T@train@scale=0.5,1.0', CAM, 'inference_classification.py'),
        ('T@train@scale=0.5,1.0@aff_fg=0.40_bg=0.10', AFFINITY_LABEL, 'make_affinity_labels.py'),
        ('M@train@beta=10@exp_times=8@rw', RANDOM_WALK, 'inference_rw.py'),
        ('M@train@edge', EDGE, 'inference_rw.py'),
        ('M@train@beta=10@exp_times=8@rw@crf=1', PSEUDO_LABEL, 'make_pseudo_labels.py'),
        ('D@val@scale=1.0@iteration=10', PREDICTION, 'inference_segmentation.py'),
    ],
)
def test_folder_name_gives_format_and_script(name, kind, script):
    assert format_of(name) is kind
    assert format_of(name).script == script


# Opening a folder ---------------------------------------------------------------------------------------------------


def test_missing_folder_and_file_name_flag_file_and_script(in_tmp):
    with pytest.raises(UserError, match=r'--flag name: .*name not found; run inference_rw.py first'):
        open_folder(RANDOM_WALK, 'name', '--flag', LabelMaps(), ['a'])
    path = artifacts.PREDICTIONS / 'name'
    write_rw(path / 'a.npz', KEYS, CAMS)
    folder = open_folder(RANDOM_WALK, 'name', '--flag', LabelMaps(), ['a'])
    assert (folder.path, folder.kind) == (path, RANDOM_WALK)
    with pytest.raises(UserError, match=r'b.npz not found \(1 of 2 are missing\); run inference_rw.py first'):
        open_folder(RANDOM_WALK, 'name', '--flag', LabelMaps(), ['a', 'b'])
    with pytest.raises(UserError, match='elsewhere/name not found'):
        open_folder(RANDOM_WALK, 'name', '--flag', LabelMaps(), ['a'], 'elsewhere')


def test_name_that_is_too_long_names_the_flag(in_tmp):
    with pytest.raises(UserError, match='--flag: x+... would have 256 bytes, the limit is 255') as error:
        open_folder(CAM, 'x' * 256, '--flag', LabelMaps(), ['a'])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', [CAM, PREDICTION])
def test_first_file_is_checked_on_opening(in_tmp, kind):
    path = artifacts.PREDICTIONS / 'name' / f'a{kind.suffix}'
    path.parent.mkdir(parents=True)
    path.write_bytes(b'damaged')
    with pytest.raises(UserError, match=re.escape(str(path))):
        open_folder(kind, 'name', '--flag', LabelMaps(), ['a'])


def test_folders_can_be_sent_to_workers_without_their_ids(tmp_path):
    folder = folder_at(tmp_path, RANDOM_WALK, [f'{i:05d}' for i in range(1000)])
    folder.missing = set(folder.ids)
    content = pickle.dumps(folder)
    assert len(content) < 1000
    pickle.loads(content).write_maps('a', KEYS, CAMS)
    assert folder.read_maps('a', 'rw')[0].tolist() == KEYS.tolist()


# Creating and resuming a folder -------------------------------------------------------------------------------------

IDS = ['a', 'b']
CLASSES = list(LabelMaps.class_names)


def created(kind=CAM, ids=IDS, inputs=None, **changes):
    return create_folder(kind, options(**{**ARGS, **changes}), LabelMaps(), ids, **(inputs or {'model': '1234'}))


def fill(folder, ids=IDS) -> None:
    for image_id in ids:
        folder.write_maps(image_id, KEYS, CAMS, HR_CAMS)


def args_json() -> dict:
    return json.loads((FOLDER / 'args.json').read_text())


def test_folder_records_options_inputs_and_versions(in_tmp, capsys):
    with created() as folder:
        assert (folder.path, folder.missing) == (FOLDER, {'a', 'b'})
        record = args_json()
        assert record['options'] == ARGS
        assert record['fingerprint'] == {'tag': 'x', 'scales': '1.0', 'alpha': 4.0, 'classes': CLASSES, 'model': '1234'}
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
    settings = {'tag': 'x', 'scales': '1.0', 'alpha': 1.0, 'classes': CLASSES, 'model': 'another'}
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
    monkeypatch.setattr(artifacts, 'versions', lambda: {'code': 'later'})
    with created() as folder:
        assert folder.missing == {'b'}
    assert args_json()['versions'] == {'code': 'later'}
    assert args_json()['history'] == [{'options': ARGS, 'versions': old}]


def test_seconds_are_summed_over_the_commands_that_wrote(in_tmp, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(artifacts.time, 'monotonic', lambda: now[0])

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
    monkeypatch.setattr(artifacts, 'versions', lambda: {'code': 'later'})
    assert work(7, [], num_workers=9) == 6.5
    assert (FOLDER / 'args.json').read_bytes() == before  # a command that writes nothing leaves no trace
    (FOLDER / 'b.npz').unlink()
    assert work(2, ['b'], num_workers=9) == 8.5
    assert work(4, IDS, overwrite=True) == 4


def test_seconds_of_a_folder_without_them_stay_unknown(in_tmp):
    with created() as folder:
        fill(folder, ['a'])
        fingerprint = folder.fingerprint
    record = args_json()
    del record['seconds']
    (FOLDER / 'args.json').write_text(json.dumps(record))
    with created() as folder:
        fill(folder, ['b'])
    assert args_json()['seconds'] is None
    assert folder.fingerprint == fingerprint


def test_options_that_an_output_does_not_use_share_its_folder(in_tmp):
    def create(**changes):
        args = {**ARGS, 'model_name': 'M', 'cam_dir': 'C', 'beta': 10, 'exp_times': 8, 'image_size': 64, **changes}
        return create_folder(EDGE, options(**args), LabelMaps(), IDS, model='1234')

    with create() as folder:
        for image_id in IDS:
            folder.write_edge(image_id, CAMS[0])
    with create(cam_dir='D', beta=5, exp_times=2) as folder:
        assert folder.missing == set()
    with pytest.raises(UserError, match='image_size: 64, requested 32'), create(image_size=32):
        pass


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
    def create(repair):
        return create_folder(kind, options(**{**ARGS, 'iteration': 1, 'repair': repair}), LabelMaps(), ['a', 'b', 'c'])

    with create(False) as folder:
        if kind is CAM:
            fill(folder)
        else:
            for image_id in IDS:
                folder.write_label(image_id, np.full((4, 5), 20, np.uint8))
    path = folder.file('b')
    path.write_bytes(path.read_bytes()[:50])
    with create(False) as folder:
        assert folder.missing == {'c'}  # existing files are not read
    capsys.readouterr()
    with create(True) as folder:
        assert folder.missing == {'b', 'c'}
    line, summary = capsys.readouterr().out.splitlines()
    assert line.startswith(f'regenerating: {path}: ')
    assert summary == f'3 {kind.title}s in {folder.path}, 2 of them new'


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


# Files --------------------------------------------------------------------------------------------------------------


def test_cams_round_trip(tmp_path):
    folder = folder_at(tmp_path / 'folder', CAM)
    folder.write_maps('a', KEYS, CAMS, HR_CAMS)
    path = tmp_path / 'folder' / 'a.npz'
    assert sorted(maps_inside(path)) == ['cam', 'hr_cam', 'keys']
    for name, maps in (('cam', CAMS), ('hr_cam', HR_CAMS)):
        for keys, found in (read_maps(path, name, 20, maps.shape[1:]), folder.read_maps('a', name, maps.shape[1:])):
            assert np.array_equal(keys, KEYS)
            np.testing.assert_allclose(found, maps, atol=3e-4)  # kept as float16
            assert found.dtype == np.float32
    assert os.listdir(path.parent) == ['a.npz']
    with np.load(path) as file:
        assert file['cam'].dtype == file['hr_cam'].dtype == np.float16


def test_random_walk_cams_round_trip(tmp_path):
    write_rw(tmp_path / 'a.npz', KEYS, HR_CAMS)
    assert sorted(maps_inside(tmp_path / 'a.npz')) == ['keys', 'rw']
    np.testing.assert_allclose(read_maps(tmp_path / 'a.npz', 'rw', 20)[1], HR_CAMS, atol=3e-4)


def test_edge_maps_round_trip_or_are_refused(tmp_path):
    folder, edge = folder_at(tmp_path, EDGE), CAMS[0]
    folder.write_edge('a', edge)
    found = folder.read_edge('a', edge.shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, edge, atol=3e-4)
    assert maps_inside(tmp_path / 'a.npz') == ['edge']
    for content, size, part in (
        (edge, (4, 3), '"edge" is 4x3, the image is 3x4'),
        (CAMS, None, 'is not an edge map'),
        (np.zeros((3, 4), int), None, 'is not an edge map'),
        (edge + 1, None, 'contains values outside 0 to 1'),
        (with_nan()[1], None, 'contains non-finite values'),
    ):
        np.savez(tmp_path / 'a.npz', edge=content)
        with pytest.raises(UserError, match=re.escape(f'{tmp_path}/a.npz: ')) as error:
            folder.read_edge('a', size)
        assert part in str(error.value)
    np.savez(tmp_path / 'a.npz', rw=edge)
    with pytest.raises(UserError, match='not an npz file with "edge"'):
        folder.check('a')
    with pytest.raises(UserError, match='would not be finite'):
        folder.write_edge('b', with_nan()[1])


def test_every_map_of_a_format_has_to_be_written(tmp_path):
    with pytest.raises(ValueError):
        folder_at(tmp_path, CAM).write_maps('a', KEYS, CAMS)
    assert not list(tmp_path.iterdir())


def test_equal_maps_give_equal_bytes(tmp_path, monkeypatch):
    write_rw(tmp_path / 'a.npz', KEYS, HR_CAMS)
    monkeypatch.setattr('time.time', lambda: 2e9)
    write_rw(tmp_path / 'b.npz', KEYS, HR_CAMS)
    assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()


def test_label_maps_round_trip(tmp_path):
    label = np.random.default_rng(0).choice([0, 3, 20, 255], (9, 14)).astype(np.uint8)
    folder = folder_at(tmp_path, PSEUDO_LABEL)
    folder.write_label('a', label)
    assert np.array_equal(folder.read_label('a', (9, 14)), label)
    with pytest.raises(UserError, match='a.png'):
        folder.read_label('a', (14, 9))


def make_label(image_id, plus):
    return np.full((4, 5), int(image_id) + plus, np.uint8)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_missing_labels_are_written_by_workers(tmp_path, num_workers):
    ids = [str(i) for i in range(20)]
    folder = folder_at(tmp_path, PSEUDO_LABEL, ids)
    folder.missing = set(ids[3:])
    folder.write_missing_labels(make_label, num_workers, plus=1)
    assert {path.name for path in tmp_path.iterdir()} == {f'{image_id}.png' for image_id in ids[3:]}
    assert all((folder.read_label(image_id) == int(image_id) + 1).all() for image_id in ids[3:])


def test_an_image_without_classes(tmp_path):
    write_rw(tmp_path / 'a.npz', np.array([0]), np.zeros((0, 9, 14), np.float32))
    keys, maps = read_maps(tmp_path / 'a.npz', 'rw', 20, (9, 14))
    assert (keys.tolist(), maps.shape) == ([0], (0, 9, 14))


def error_of(path, name='rw', num_classes=20, size=None) -> str:
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        read_maps(path, name, num_classes, size)
    assert '\n' not in str(error.value)
    return str(error.value)


def with_nan():
    maps = HR_CAMS.copy()
    maps[1, 2, 3] = np.nan
    return maps


@pytest.mark.parametrize(
    'keys, maps, part',
    [
        (KEYS, HR_CAMS[:1], 'does not match'),
        (KEYS, HR_CAMS[0], 'does not match'),
        (KEYS[None], HR_CAMS, 'does not match'),
        (KEYS.astype(float), HR_CAMS, 'does not match'),
        (KEYS, np.zeros((2, 9, 14), np.int64), 'does not match'),
        (KEYS, np.full((2, 9, 14), 'x'), 'does not match'),
        (np.zeros(0, int), HR_CAMS[:0], 'does not match'),
        (np.array([1, 3, 20]), HR_CAMS, 'keys'),
        (np.array([0, 20, 3]), HR_CAMS, 'keys'),
        (np.array([0, 3, 3]), HR_CAMS, 'keys'),
        (np.array([0, 3, 21]), HR_CAMS, 'up to 20: it belongs to another data set: check --dataset'),
        (np.array([0, -3, 3]), HR_CAMS, 'keys'),
        (KEYS, with_nan(), 'contains non-finite values'),
        (KEYS, np.full((2, 9, 14), np.inf), 'contains non-finite values'),
        (KEYS, HR_CAMS - 0.5, 'contains values outside 0 to 1'),
        (KEYS, HR_CAMS + 1, 'contains values outside 0 to 1'),
    ],
)
def test_keys_and_maps_that_do_not_match_are_refused(tmp_path, keys, maps, part):
    np.savez(tmp_path / 'a.npz', keys=keys, rw=maps)
    assert part in error_of(tmp_path / 'a.npz')


@pytest.mark.parametrize('keys', [np.array([0, 3, 2], np.uint8), np.array([0, 3, 3], np.uint8)])
def test_unsigned_keys_that_do_not_increase_are_refused(tmp_path, keys):
    """Differences of unsigned numbers are never negative."""
    np.savez(tmp_path / 'a.npz', keys=keys, rw=HR_CAMS)
    assert 'keys' in error_of(tmp_path / 'a.npz')


def test_maps_of_another_size_are_refused(tmp_path):
    write_rw(tmp_path / 'a.npz', KEYS, HR_CAMS)
    assert '14x9' in error_of(tmp_path / 'a.npz', size=(14, 9))


@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04', bytes(100)])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / 'a.npz').write_bytes(content)
    error_of(tmp_path / 'a.npz')
    assert maps_inside(tmp_path / 'a.npz') == []


def test_truncated_and_corrupted_files_give_no_traceback(tmp_path):
    write_rw(tmp_path / 'a.npz', KEYS, HR_CAMS)
    content = (tmp_path / 'a.npz').read_bytes()
    for end in range(0, len(content), 23):
        (tmp_path / 'a.npz').write_bytes(content[:end])
        error_of(tmp_path / 'a.npz')
    for at in range(0, len(content), 7):
        (tmp_path / 'a.npz').write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            read_maps(tmp_path / 'a.npz', 'rw', 20)
        except UserError:
            pass
        maps_inside(tmp_path / 'a.npz')


ANY_ARRAY = arrays.arrays(
    st.one_of(arrays.scalar_dtypes(), st.just(np.dtype('float16')), st.just(np.dtype('int64'))),
    arrays.array_shapes(min_dims=0, min_side=0, max_side=4),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=ANY_ARRAY, maps=ANY_ARRAY, data=st.data())
def test_any_npz_gives_matching_maps_or_a_user_error(tmp_path, keys, maps, data):
    path = tmp_path / 'a.npz'
    np.savez_compressed(path, keys=keys, rw=maps)
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found, scores = read_maps(path, 'rw', 20)
    except UserError as error:
        assert str(path) in str(error)
        return
    assert found[0] == 0
    assert found.max() <= 20
    assert scores.shape[0] == len(found) - 1
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1.001)).all()


@pytest.mark.parametrize('maps', [with_nan(), np.full((2, 9, 14), np.inf), HR_CAMS * np.float32(1e9)])
@pytest.mark.filterwarnings('ignore:overflow encountered in cast')
def test_maps_that_are_not_finite_are_not_written(tmp_path, maps):
    """The last ones are not once they are float16."""
    with pytest.raises(UserError, match='a.npz: "rw" would not be finite'):
        write_rw(tmp_path / 'a.npz', KEYS, maps)
    assert not list(tmp_path.iterdir())


def test_missing_files_and_maps_are_named(tmp_path):
    assert 'no such file' in error_of(tmp_path / 'nowhere.npz')
    folder_at(tmp_path, CAM).write_maps('a', KEYS, CAMS, HR_CAMS)
    assert '"rw"' in error_of(tmp_path / 'a.npz')
    np.save(tmp_path / 'b.npy', CAMS)
    error_of(tmp_path / 'b.npy')
    (tmp_path / 'c.npz').mkdir()
    error_of(tmp_path / 'c.npz')


class Trap:
    """Unpickled, it would create a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickles_are_not_loaded(tmp_path):
    trap = Trap(tmp_path / 'sprung')
    np.savez(tmp_path / 'a.npz', keys=KEYS, rw=np.array([trap, trap], object))
    error_of(tmp_path / 'a.npz')
    (tmp_path / 'b.npz').write_bytes(pickle.dumps({'keys': KEYS, 'rw': trap}))
    error_of(tmp_path / 'b.npz')
    assert maps_inside(tmp_path / 'b.npz') == []
    assert not (tmp_path / 'sprung').exists()
