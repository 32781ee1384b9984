"""Atomic writes, names, and leftovers of killed writers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core import UserError
from support import subprocess_environment
from util.store.files import (
    check_name,
    check_output,
    make_folder,
    remove_all_leftovers,
    remove_leftovers,
    write_bytes,
    write_json,
)

# Writing ------------------------------------------------------------------------------------------------------------


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, order = tmp_path / 'a.json', []
    for name in ('fsync', 'replace'):
        monkeypatch.setattr(os, name, lambda *_, name=name: order.append((name, path.exists())))
    write_bytes(path, b'new')
    assert order == [('fsync', False), ('replace', False)]


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
    assert os.listdir('new') == []
    assert Path('file').read_text() == 'kept'
    for path, line in (
        ('file', '--csv file: exists: remove it or name another file'),
        ('new', '--csv new: is a folder: add the name of a file'),
        ('', '--csv .: is a folder: add the name of a file'),
        ('file/table.csv', '--csv file: is not a folder: remove it or name another folder'),
        ('x' * 252 + '.csv', f'--csv: {"x" * 40}... would have 256 bytes, the limit is 255: shorten it'),
    ):
        with pytest.raises(UserError) as error:
            check_output(Path(path), '--csv')
        assert str(error.value) == line


def test_only_files_of_this_program_are_replaced(in_tmp):
    Path('a.csv').write_text('threshold,mIoU,FP,FN,cat\n')
    check_output(Path('a.csv'), '--csv', b'threshold,mIoU')
    Path('a.csv').write_text('')
    check_output(Path('a.csv'), '--csv', b'threshold,mIoU')
    os.mkfifo('fifo')
    for name, content in (
        ('labels.csv', 'image,classes\n'),
        ('a.csv', 'thresholds'),
        ('photo.jpg', 'JPEG'),
        ('fifo', ''),
    ):
        if content:
            Path(name).write_text(content)
        with pytest.raises(UserError) as error:
            check_output(Path(name), '--csv', b'threshold,mIoU')
        why = 'exists, and this program has not written it'
        assert str(error.value) == f'--csv {name}: {why}: remove it or name another file'


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
from util.store import files

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
