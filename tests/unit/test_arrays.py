"""The npz files of maps: they round-trip, or are refused in one line."""

import os
import pickle
import re
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from core import UserError
from support.folders import CAMS, HR_CAMS, KEYS, folder_at, write_rw
from util.store.arrays import names_inside, read_edge, read_maps
from util.store.formats import CAM, EDGE


def test_equal_maps_give_equal_bytes(tmp_path, monkeypatch):
    write_rw(tmp_path / 'a.npz', KEYS, HR_CAMS)
    monkeypatch.setattr('time.time', lambda: 2e9)
    write_rw(tmp_path / 'b.npz', KEYS, HR_CAMS)
    assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()


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


def test_edge_maps_that_do_not_fit_are_refused(tmp_path):
    path, edge = tmp_path / 'a.npz', CAMS[0]
    for content, size, part in (
        (edge, (4, 3), '"edge" is 4x3, the image is 3x4'),
        (CAMS, None, 'is not an edge map'),
        (np.zeros((3, 4), int), None, 'is not an edge map'),
        (edge + 1, None, 'contains values outside 0 to 1'),
        (with_nan()[1], None, 'contains non-finite values'),
    ):
        np.savez(path, edge=content)
        with pytest.raises(UserError, match=re.escape(f'{path}: ')) as error:
            read_edge(path, size)
        assert part in str(error.value)
    np.savez(path, rw=edge)
    with pytest.raises(UserError, match='not an npz file with "edge"'):
        folder_at(tmp_path, EDGE).check('a')
    with pytest.raises(UserError, match='would not be finite'):
        folder_at(tmp_path, EDGE).write_edge('b', with_nan()[1])
    assert os.listdir(tmp_path) == ['a.npz']


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
    assert names_inside(tmp_path / 'a.npz') == []


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
        names_inside(tmp_path / 'a.npz')


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
    assert names_inside(tmp_path / 'b.npz') == []
    assert not (tmp_path / 'sprung').exists()


# Files that claim more than they hold -------------------------------------------------------------------------------


def claiming(path, **shapes) -> None:
    """Write an npz file whose arrays of float16 begin with a header of a shape and have no numbers; 'keys' are KEYS."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name, shape in shapes.items():
            with archive.open(f'{name}.npy', 'w') as file:
                header = {'descr': '<f2', 'fortran_order': False, 'shape': shape}
                np.lib.format.write_array_header_1_0(file, header)
        with archive.open('keys.npy', 'w') as file:
            np.lib.format.write_array(file, KEYS)


def test_what_is_not_of_the_expected_size_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / 'a.npz'
    claiming(path, rw=(2, 40_000, 20_000), edge=(40_000, 20_000), hr_cam=(10**6, 9, 14))
    monkeypatch.setattr('numpy.lib.format.read_array', None)
    assert error_of(path, size=(9, 14)) == f'{path}: "rw" is 20000x40000, the image is 14x9'
    assert 'does not match "keys" int64(3,)' in error_of(path, 'hr_cam', size=(9, 14))
    with pytest.raises(UserError, match='"edge" is 20000x40000, the image is 14x9'):
        read_edge(path, (9, 14))
    monkeypatch.setattr('util.store.arrays.available_memory', lambda: 10**9)
    assert re.search(r'takes 3\.2 GB of memory, 1\.0 GB are available$', error_of(path))


def test_maps_of_more_classes_than_the_data_set_has_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / 'a.npz'
    np.savez(path, keys=np.arange(6), rw=np.zeros((5, 9, 14), np.float16))
    monkeypatch.setattr('numpy.lib.format.read_array', None)
    assert error_of(path, num_classes=4).endswith(
        '5 classes, the data set has 4: it belongs to another data set: check --dataset'
    )


def test_the_array_that_is_checked_is_the_one_that_is_read(tmp_path):
    """NumPy would prefer a member of the archive without .npy."""
    path = tmp_path / 'a.npz'
    np.savez(path, keys=KEYS, rw=HR_CAMS)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('rw', b'other')
    np.testing.assert_array_equal(read_maps(path, 'rw', 20)[1], HR_CAMS)
