"""The npz files between stages: they come back as they were, and a damaged one is named in one line."""

import os
import pickle
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tools.files import maps_inside, read_maps, write_bytes, write_cam, write_rw

from tools import UserError

KEYS = np.array([0, 3, 20])
CAM = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
HR_CAM = np.random.default_rng(1).random((2, 9, 14)).astype(np.float32)


def test_cams_round_trip(tmp_path):
    path = tmp_path / 'folder' / 'a.npz'
    write_cam(path, KEYS, CAM, HR_CAM)
    assert sorted(maps_inside(path)) == ['cam', 'hr_cam', 'keys']
    for name, maps in (('cam', CAM), ('hr_cam', HR_CAM)):
        keys, found = read_maps(path, name, 20, maps.shape[1:])
        assert np.array_equal(keys, KEYS)
        np.testing.assert_allclose(found, maps, atol=3e-4)  # kept as float16
        assert found.dtype == np.float32
    assert os.listdir(path.parent) == ['a.npz']


def test_walked_cams_round_trip(tmp_path):
    write_rw(tmp_path / 'a.npz', KEYS, HR_CAM)
    assert sorted(maps_inside(tmp_path / 'a.npz')) == ['keys', 'rw']
    np.testing.assert_allclose(read_maps(tmp_path / 'a.npz', 'rw', 20)[1], HR_CAM / HR_CAM.max(), atol=3e-4)
    for factor in (1e-9, 1e9):  # beyond float16, were it not for the scaling
        write_rw(tmp_path / 'a.npz', KEYS, HR_CAM * np.float32(factor))
        np.testing.assert_allclose(read_maps(tmp_path / 'a.npz', 'rw', 20)[1], HR_CAM / HR_CAM.max(), atol=3e-4)


def test_an_image_without_classes(tmp_path):
    write_rw(tmp_path / 'a.npz', np.array([0]), np.zeros((0, 9, 14), np.float32))
    keys, maps = read_maps(tmp_path / 'a.npz', 'rw', 20, (9, 14))
    assert (keys.tolist(), maps.shape) == ([0], (0, 9, 14))


def refused(path, name='rw', num_classes=20, size=None) -> str:
    with pytest.raises(UserError, match=re.escape(str(path))) as fault:
        read_maps(path, name, num_classes, size)
    assert '\n' not in str(fault.value)
    return str(fault.value)


def with_nan():
    maps = HR_CAM.copy()
    maps[1, 2, 3] = np.nan
    return maps


@pytest.mark.parametrize(
    'keys, maps, part',
    [
        (KEYS, HR_CAM[:1], 'does not go with'),
        (KEYS, HR_CAM[0], 'does not go with'),
        (KEYS[None], HR_CAM, 'does not go with'),
        (KEYS.astype(float), HR_CAM, 'does not go with'),
        (KEYS, np.zeros((2, 9, 14), np.int64), 'does not go with'),
        (KEYS, np.full((2, 9, 14), 'x'), 'does not go with'),
        (np.zeros(0, int), HR_CAM[:0], 'does not go with'),
        (np.array([1, 3, 20]), HR_CAM, 'keys'),
        (np.array([0, 20, 3]), HR_CAM, 'keys'),
        (np.array([0, 3, 3]), HR_CAM, 'keys'),
        (np.array([0, 3, 21]), HR_CAM, '--dataset'),
        (np.array([0, -3, 3]), HR_CAM, 'keys'),
        (KEYS, with_nan(), 'not finite'),
        (KEYS, np.full((2, 9, 14), np.inf), 'not finite'),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, keys, maps, part):
    np.savez(tmp_path / 'a.npz', keys=keys, rw=maps)
    assert part in refused(tmp_path / 'a.npz')


@pytest.mark.parametrize('keys', [np.array([0, 3, 2], np.uint8), np.array([0, 3, 3], np.uint8)])
def test_unsigned_keys_that_do_not_rise_are_refused(tmp_path, keys):
    """Differences of unsigned numbers are never negative."""
    np.savez(tmp_path / 'a.npz', keys=keys, rw=HR_CAM)
    assert 'keys' in refused(tmp_path / 'a.npz')


def test_maps_of_another_size_are_refused(tmp_path):
    write_rw(tmp_path / 'a.npz', KEYS, HR_CAM)
    assert '14x9' in refused(tmp_path / 'a.npz', size=(14, 9))


@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04', bytes(100)])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / 'a.npz').write_bytes(content)
    refused(tmp_path / 'a.npz')
    assert maps_inside(tmp_path / 'a.npz') == []


def test_every_cut_and_many_flipped_bytes_are_no_traceback(tmp_path):
    write_rw(tmp_path / 'a.npz', KEYS, HR_CAM)
    content = (tmp_path / 'a.npz').read_bytes()
    for end in range(0, len(content), 23):
        (tmp_path / 'a.npz').write_bytes(content[:end])
        refused(tmp_path / 'a.npz')
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
def test_any_npz_gives_maps_that_go_together_or_a_user_error(tmp_path, keys, maps, data):
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


def test_maps_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match='a.npz'):
        write_rw(tmp_path / 'a.npz', KEYS, with_nan())
    assert not list(tmp_path.iterdir())


def test_missing_files_and_maps_are_named(tmp_path):
    assert 'no such file' in refused(tmp_path / 'nowhere.npz')
    write_cam(tmp_path / 'a.npz', KEYS, CAM, HR_CAM)
    assert '"rw"' in refused(tmp_path / 'a.npz')
    np.save(tmp_path / 'b.npy', CAM)
    refused(tmp_path / 'b.npy')
    (tmp_path / 'c.npz').mkdir()
    refused(tmp_path / 'c.npz')


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickles_are_not_run(tmp_path):
    trap = Trap(tmp_path / 'sprung')
    np.savez(tmp_path / 'a.npz', keys=KEYS, rw=np.array([trap, trap], object))
    refused(tmp_path / 'a.npz')
    (tmp_path / 'b.npz').write_bytes(pickle.dumps({'keys': KEYS, 'rw': trap}))
    refused(tmp_path / 'b.npz')
    assert maps_inside(tmp_path / 'b.npz') == []
    assert not (tmp_path / 'sprung').exists()


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'a'
    write_bytes(path, b'first')
    write_bytes(path, b'second')
    assert path.read_bytes() == b'second'

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        write_bytes(path, b'third')
    assert path.read_bytes() == b'second'
    assert os.listdir(path.parent) == ['a']
