"""Output folders: opened for reading or refused, files that round-trip."""

import os
import pickle
import re

import numpy as np
import pytest

from core import UserError
from support.folders import CAMS, HR_CAMS, KEYS, LabelMaps, folder_at, write_rw
from util.store import formats
from util.store.arrays import names_inside, read_edge, read_maps
from util.store.files import write_json
from util.store.folders import open_folder
from util.store.formats import CAM, EDGE, FORMATS, PREDICTION, PSEUDO_LABEL, RANDOM_WALK

# Opening a folder ---------------------------------------------------------------------------------------------------


def test_missing_folder_and_file_name_flag_file_and_script(in_tmp):
    with pytest.raises(UserError, match=r'--flag name: .*name not found; run inference_rw.py first'):
        open_folder(RANDOM_WALK, 'name', '--flag', LabelMaps(), ['a'])
    path = formats.PREDICTIONS / 'name'
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
    path = formats.PREDICTIONS / 'name' / f'a{kind.suffix}'
    path.parent.mkdir(parents=True)
    path.write_bytes(b'damaged')
    with pytest.raises(UserError, match=re.escape(str(path))):
        open_folder(kind, 'name', '--flag', LabelMaps(), ['a'])


def test_a_folder_says_what_it_contains(in_tmp):
    """One of another format is refused, whatever its name; without a wish it is opened as what it is."""
    for i, kind in enumerate(FORMATS.values()):
        path = formats.PREDICTIONS / f'folder{i}'
        write_json(path / 'args.json', {'format': kind.title})
        if kind == EDGE:
            folder_at(path, kind).write_edge('a', CAMS[0])
        elif kind.maps:
            folder_at(path, kind).write_maps('a', KEYS, *len(kind.maps) * [CAMS])
        else:
            folder_at(path, kind).write_label('a', np.full((4, 5), 20, np.uint8))
        for unrecorded in (None, CAM, PREDICTION):
            folder = open_folder(None, path.name, '--flag', LabelMaps(), ['a'], unrecorded=unrecorded)
            assert folder.kind is kind
        assert open_folder(kind, path.name, '--flag', LabelMaps(), ['a']).kind is kind
        for other in FORMATS.values():
            if other is not kind:
                with pytest.raises(UserError) as error:
                    open_folder(other, path.name, '--flag', LabelMaps(), ['a'])
                assert str(error.value) == (
                    f'--flag folder{i}: contains {kind.title}s: name a folder of {other.title}s ({other.script})'
                )


@pytest.mark.parametrize('content', [None, '{', '[]', '{}', '{"format": null}'])
def test_a_folder_that_says_nothing_is_of_the_kind_that_the_caller_knows(in_tmp, content):
    path = formats.PREDICTIONS / 'name'
    write_rw(path / 'a.npz', KEYS, CAMS)
    if content is not None:
        (path / 'args.json').write_text(content)
    for kind, unrecorded in ((RANDOM_WALK, None), (None, RANDOM_WALK), (RANDOM_WALK, CAM)):
        assert open_folder(kind, 'name', '--flag', LabelMaps(), ['a'], unrecorded=unrecorded).kind is RANDOM_WALK
    with pytest.raises(UserError) as error:
        open_folder(None, 'name', '--flag', LabelMaps(), ['a'])
    assert str(error.value) == f'--flag name: {path} has no args.json that says what it contains; pass --mode'
    with pytest.raises(UserError, match='"hr_cam"|"cam"'):
        open_folder(None, 'name', '--flag', LabelMaps(), ['a'], unrecorded=CAM)
    (path / 'a.npy').touch()
    with pytest.raises(UserError, match="what it contains; .*/a.npy is of the authors' code: import its folder with"):
        open_folder(None, 'name', '--flag', LabelMaps(), ['a'])
    with pytest.raises(UserError, match='missing not found; run the stage that writes it first'):
        open_folder(None, 'missing', '--flag', LabelMaps(), ['a'])


def test_folders_can_be_sent_to_workers_without_their_ids(tmp_path):
    folder = folder_at(tmp_path, RANDOM_WALK, [f'{i:05d}' for i in range(1000)])
    folder.missing = set(folder.ids)
    content = pickle.dumps(folder)
    assert len(content) < 1000
    pickle.loads(content).write_maps('a', KEYS, CAMS)
    assert folder.read_maps('a', 'rw')[0].tolist() == KEYS.tolist()


# Files --------------------------------------------------------------------------------------------------------------


def test_cams_round_trip(tmp_path):
    folder = folder_at(tmp_path / 'folder', CAM)
    folder.write_maps('a', KEYS, CAMS, HR_CAMS)
    path = tmp_path / 'folder' / 'a.npz'
    assert sorted(names_inside(path)) == ['cam', 'hr_cam', 'keys']
    for name, maps in (('cam', CAMS), ('hr_cam', HR_CAMS)):
        for keys, found in (read_maps(path, name, 20, maps.shape[1:]), folder.read_maps('a', name, maps.shape[1:])):
            assert np.array_equal(keys, KEYS)
            np.testing.assert_allclose(found, maps, atol=3e-4)  # kept as float16
            assert found.dtype == np.float32
    assert folder.read_scores('a', HR_CAMS.shape[1:], tile=64)[1].dtype == np.float32  # not larger than a tile
    keys, scores = folder.read_scores('a', HR_CAMS.shape[1:], tile=4)
    assert np.array_equal(keys, KEYS) and scores.dtype == np.float16
    assert os.listdir(path.parent) == ['a.npz']
    with np.load(path) as file:
        assert file['cam'].dtype == file['hr_cam'].dtype == np.float16


def test_random_walk_cams_round_trip(tmp_path):
    write_rw(tmp_path / 'a.npz', KEYS, HR_CAMS)
    assert sorted(names_inside(tmp_path / 'a.npz')) == ['keys', 'rw']
    np.testing.assert_allclose(read_maps(tmp_path / 'a.npz', 'rw', 20)[1], HR_CAMS, atol=3e-4)


def test_edge_maps_round_trip(tmp_path):
    folder, edge = folder_at(tmp_path, EDGE), CAMS[0]
    folder.write_edge('a', edge)
    folder.check('a')
    found = read_edge(folder.file('a'), edge.shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, edge, atol=3e-4)
    assert names_inside(tmp_path / 'a.npz') == ['edge']


def test_every_map_of_a_format_has_to_be_written(tmp_path):
    with pytest.raises(ValueError):
        folder_at(tmp_path, CAM).write_maps('a', KEYS, CAMS)
    assert not list(tmp_path.iterdir())


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
