"""Atomic writes, names, leftovers of killed writers, and locks."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from core import UserError
from support import subprocess_environment
from support.programs import held, refusal
from util import files
from util.files import (
    check_name,
    check_output,
    is_held,
    locked,
    make_folder,
    remove_all_leftovers,
    remove_leftovers,
    write_bytes,
    write_json,
)

# Writing ------------------------------------------------------------------------------------------------------------


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
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


@pytest.mark.parametrize('name', ['x' * 255, 'ä' * 127, 'a b', '-', 'x' * 251 + '.png'])
def test_any_name_of_the_file_system_can_be_written(tmp_path, name):
    path = tmp_path / name
    check_name(path, '--flag')
    write_bytes(path, b'content')
    assert path.read_bytes() == b'content'
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(OSError, match='cannot be written'):
        write_bytes(tmp_path / ('x' * 256), b'content')


@pytest.mark.parametrize('name, length', [('x' * 256, 256), ('ä' * 128, 256), ('x' * 300 + '.last.pth', 309)])
def test_names_that_are_too_long_are_refused(tmp_path, name, length):
    line = f'--flag: {name[:40]}... would have {length} bytes, the limit is 255: shorten it'
    with pytest.raises(UserError, match=f'^{re.escape(line)}$'):
        check_name(tmp_path / name, '--flag')


def test_error_of_a_write_names_the_file_and_the_reason(tmp_path):
    (tmp_path / 'folder').mkdir()
    with pytest.raises(OSError) as error:
        write_bytes(tmp_path / 'folder', b'content')
    assert str(error.value).endswith(f"cannot be written: Is a directory: '{tmp_path / 'folder'}'")
    assert os.listdir(tmp_path) == ['folder']


def test_outputs_are_checked_before_the_work(in_tmp):
    Path('file').write_text('kept')
    check_output(Path('new/table.csv'), '--csv')
    check_output(Path('file'), '--csv')  # may be replaced
    assert os.listdir('new') == []
    assert Path('file').read_text() == 'kept'
    for path, line in (
        ('new', '--csv new: is a folder: add the name of a file'),
        ('', '--csv .: is a folder: add the name of a file'),
        ('file/table.csv', '--csv file: is not a folder: remove it or name another folder'),
        ('x' * 252 + '.csv', f'--csv: {"x" * 40}... would have 256 bytes, the limit is 255: shorten it'),
    ):
        with pytest.raises(UserError) as error:
            check_output(Path(path), '--csv')
        assert str(error.value) == line


def test_folders_without_permission_are_named(in_tmp, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, 'Permission denied', f'{dir}/tmpabc')

    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    line = r'--csv a/b.csv: cannot be written \(Permission denied\): name another file'
    with pytest.raises(UserError, match=f'^{line}$'):
        check_output(Path('a/b.csv'), '--csv')


def test_json_round_trip(tmp_path):
    content = {'a': [1, 2.5, None], 'b': {'c': 'text'}}
    write_json(tmp_path / 'a.json', content)
    assert json.loads((tmp_path / 'a.json').read_text()) == content


# Folders ------------------------------------------------------------------------------------------------------------


def test_make_folder_names_what_is_in_the_way(in_tmp):
    Path('experiments').symlink_to('nowhere')
    for path in (Path('experiments'), Path('experiments/models'), Path('experiments/predictions/x')):
        with pytest.raises(UserError) as error:
            make_folder(path)
        assert str(error.value) == 'experiments: is a broken link: remove it or name another folder'
    Path('file').touch()
    for path in (Path('file'), Path('file/models')):
        with pytest.raises(UserError) as error:
            make_folder(path)
        assert str(error.value) == 'file: is not a folder: remove it or name another folder'


def test_make_folder_follows_links(in_tmp):
    Path('elsewhere').mkdir()
    Path('experiments').symlink_to('elsewhere')
    make_folder(Path('experiments/models'))
    make_folder(Path('experiments/models'))
    assert Path('elsewhere/models').is_dir()


# Leftovers ----------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from util import files

files.os.replace = lambda *_: os.kill(os.getpid(), 9)
files.write_bytes(Path(sys.argv[1]), b'content')
"""


def leave(path: Path) -> Path:
    """Leave the temporary file of a writer that is killed just before the end; return it."""
    before = set(path.parent.iterdir())
    done = subprocess.run([sys.executable, '-c', KILLED, str(path)], env=subprocess_environment())
    assert done.returncode == -9
    (leftover,) = set(path.parent.iterdir()) - before
    assert re.fullmatch(r'\.[0-9a-f]{16}\.\d+\.tmp', leftover.name)
    return leftover


def test_leftovers_of_a_file_are_removed_and_others_stay(tmp_path):
    first, again, second = leave(tmp_path / 'a.pth'), leave(tmp_path / 'a.pth'), leave(tmp_path / 'b.pth')
    write_bytes(tmp_path / 'a.pth', b'content')
    remove_leftovers(tmp_path / 'a.pth', tmp_path / 'missing' / 'c.pth')
    assert not first.exists()
    assert not again.exists()
    assert second.exists()
    assert (tmp_path / 'a.pth').read_bytes() == b'content'


def test_all_leftovers_of_a_folder_are_removed(tmp_path):
    for name in ('a.npz', 'b.npz', 'x' * 255):
        leave(tmp_path / name)
    others = {'a.npz', 'notes.tmp', '.hidden', '.lock'}
    for name in others:
        (tmp_path / name).touch()
    remove_all_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == others


# Locks --------------------------------------------------------------------------------------------------------------


def test_lock_of_another_process_is_refused_naming_it(tmp_path):
    lock = tmp_path / 'new' / '.lock'
    with held(lock) as process:
        begun = time.monotonic()
        with pytest.raises(UserError) as error, locked(lock, 'the folder x'):
            pass
        assert re.fullmatch(refusal('the folder x', process), str(error.value))
        assert time.monotonic() - begun < files.LOCK_PATIENCE / 2
        assert set(json.loads((tmp_path / 'new' / '.lock.json').read_text())) == {'host', 'pid', 'since'}


@pytest.mark.parametrize('workers', ['', 'workers', '1.5'])
def test_lock_is_free_after_its_holder_was_killed(tmp_path, workers):
    """Also while its forked workers are still alive and have the lock's file open."""
    lock = tmp_path / '.lock'
    with held(lock, workers) as process:
        process.kill()
        process.wait()
        begun = time.monotonic()
        with locked(lock, 'it'):
            assert json.loads((tmp_path / '.lock.json').read_text())['pid'] == os.getpid()
        assert time.monotonic() - begun > (1 if workers == '1.5' else 0)
    assert not (tmp_path / '.lock.json').exists()


def test_lock_whose_workers_stay_is_refused_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'LOCK_PATIENCE', 0.5)
    with held(tmp_path / '.lock', '4') as process:
        process.kill()
        process.wait()
        with pytest.raises(UserError, match=refusal('it', process)), locked(tmp_path / '.lock', 'it'):
            pass
    monkeypatch.undo()
    with locked(tmp_path / '.lock', 'it'):
        pass


@pytest.mark.parametrize('content', ['', '{', '[]', '{"pid": 1}', None])
def test_unknown_holder_is_refused_too(tmp_path, monkeypatch, content):
    monkeypatch.setattr(files, 'LOCK_PATIENCE', 0)
    with held(tmp_path / '.lock'):
        holder = tmp_path / '.lock.json'
        holder.unlink() if content is None else holder.write_text(content)
        with pytest.raises(UserError, match='^it is being written by another process: wait'):
            with locked(tmp_path / '.lock', 'it'):
                pass


def test_holder_on_another_host_is_believed(tmp_path):
    with held(tmp_path / '.lock'):
        holder = {'host': 'elsewhere', 'pid': 2**22 + 1, 'since': 'yesterday'}
        (tmp_path / '.lock.json').write_text(json.dumps(holder))
        begun = time.monotonic()
        with pytest.raises(UserError, match=f'process {2**22 + 1} on elsewhere since yesterday'):
            with locked(tmp_path / '.lock', 'it'):
                pass
        assert time.monotonic() - begun < files.LOCK_PATIENCE / 2


def test_lock_is_released_after_an_error_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / '.lock', 'it'):
            raise ZeroDivisionError
        assert not (tmp_path / '.lock.json').exists()


def test_a_patient_process_waits_for_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'LOCK_PATIENCE', 0)
    lock = tmp_path / '.lock'
    with held(lock) as process:
        assert is_held(lock)
        with pytest.raises(UserError), locked(lock, 'it', patience=0.5):
            pass
        threading.Timer(1, process.kill).start()
        with locked(lock, 'it', patience=60):
            assert json.loads((tmp_path / '.lock.json').read_text())['pid'] == os.getpid()
    assert not is_held(lock) and not is_held(tmp_path / 'missing.lock')
    assert not (tmp_path / 'missing.lock').exists()


def test_locks_of_different_names_do_not_meet(tmp_path):
    with locked(tmp_path / '.a.lock', 'a'), locked(tmp_path / '.a.b.lock', 'b'):
        assert {path.name for path in tmp_path.glob('.*.json')} == {'.a.json', '.a.b.json'}
