"""Atomic writes, checks of names and outputs, leftovers of killed writers."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from core import UserError
from core.data.files import NotRegular, check_regular

NAME_LIMIT = 255  # bytes of a file name, on nearly every file system


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: under a temporary name in the same folder, then renamed. No reader sees half a file."""
    make_folder(path.parent)
    temporary = path.with_name(f'.{temporary_stem(path)}.{os.getpid()}.tmp')
    try:
        with temporary.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # written to disk before it gets its name, in case the machine crashes
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f'cannot be written: {error.strerror or error}', str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Write JSON atomically."""
    write_bytes(path, json.dumps(content, indent=1).encode())


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises UserError if a file or a broken link is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        obstacle = next(p for p in (path, *path.parents) if os.path.lexists(p) and not p.is_dir())
        what = 'a broken link' if obstacle.is_symlink() and not obstacle.exists() else 'not a folder'
        raise UserError(f'{obstacle}: is {what}: remove it or name another folder') from None


def check_not_special(path: Path) -> None:
    """Raise UserError if there is a FIFO, a socket or a device where a file should be: opening it may wait for ever."""
    try:
        check_regular(path)
    except NotRegular:
        raise UserError(f'{path}: is not a regular file: remove it') from None
    except OSError:
        pass


def check_output(path: Path | None, flag: str, begins: bytes | None = None) -> None:
    """Create the folder of a file that is written later. Raises UserError naming the flag if that is impossible.

    An existing file is replaced only if it is empty or begins like a file of this program, with these bytes. None
    instead of a path: the flag was not given.
    """
    if path is None:
        return
    check_name(path, flag)
    if path.is_dir():
        raise UserError(f'{flag} {path}: is a folder: add the name of a file')
    try:
        make_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f'{flag} {path}: cannot be written ({error.strerror}): name another file') from None
    except UserError as error:
        raise UserError(f'{flag} {error}') from None
    if path.exists() and not _is_replaceable(path, begins):
        why = 'exists' if begins is None else 'exists, and this program has not written it'
        raise UserError(f'{flag} {path}: {why}: remove it or name another file')


def _is_replaceable(path: Path, begins: bytes | None) -> bool:
    if not path.is_file():
        return False
    with path.open('rb') as file:
        start = file.read(len(begins or b'x'))
    return start in (b'', begins)


def check_name(path: Path, flag: str) -> None:
    """Raise UserError naming the flag if the file system would refuse the name of a file or folder as too long."""
    length = len(os.fsencode(path.name))
    if length > NAME_LIMIT:
        raise UserError(f'{flag}: {path.name[:40]}... would have {length} bytes, the limit is {NAME_LIMIT}: shorten it')


def remove_leftovers(*paths: Path) -> None:
    """Remove the temporary files of killed writers of these files. Call it while holding their lock."""
    for path in paths:
        for leftover in path.parent.glob(f'.{temporary_stem(path)}.*.tmp'):
            leftover.unlink(missing_ok=True)


def remove_all_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writers in a folder. Call it while holding the folder's lock."""
    for leftover in folder.glob(f'.{"[0-9a-f]" * 16}.*.tmp'):  # temporary_stem: no other program's files
        leftover.unlink(missing_ok=True)


def temporary_stem(path: Path) -> str:
    """A short stand-in for the name: with a prefix and suffix the name itself could exceed the limit."""
    return hashlib.sha256(path.name.encode()).hexdigest()[:16]
