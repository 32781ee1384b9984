"""Atomic writes, leftovers of killed writers, and locks: one process at a time writes an output."""

import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from core import UserError

NAME_LIMIT = 255  # bytes of a file name, on nearly every file system
BRIEF_PATIENCE = 300  # seconds to wait for a lock that is only held briefly, but which hundreds of processes may want
LOCK_PATIENCE = 10  # seconds to wait for a lock whose holder has died but not yet let go


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: under a temporary name in the same folder, then renamed. No reader sees half a file."""
    make_folder(path.parent)
    temporary = path.with_name(f'.{_temporary_stem(path)}.{os.getpid()}.tmp')
    try:
        with temporary.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it gets its name, in case the machine goes down
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


def check_output(path: Path | None, flag: str) -> None:
    """Create the folder of a file that is written later. Raises UserError naming the flag if that would fail.

    None is a flag that was not given.
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


def check_name(path: Path, flag: str) -> None:
    """Raise UserError naming the flag if the file system would refuse the name of a file or folder as too long."""
    length = len(os.fsencode(path.name))
    if length > NAME_LIMIT:
        raise UserError(f'{flag}: {path.name[:40]}... would have {length} bytes, the limit is {NAME_LIMIT}: shorten it')


def remove_leftovers(*paths: Path) -> None:
    """Remove the temporary files of killed writers of these files. Call it while holding their lock."""
    for path in paths:
        for leftover in path.parent.glob(f'.{_temporary_stem(path)}.*.tmp'):
            leftover.unlink(missing_ok=True)


def remove_all_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writers in a folder. Call it while holding the folder's lock."""
    for leftover in folder.glob('.*.tmp'):
        leftover.unlink(missing_ok=True)


def _temporary_stem(path: Path) -> str:
    """A short stand-in for the name: with a prefix and suffix the name itself could exceed the limit."""
    return hashlib.sha256(path.name.encode()).hexdigest()[:16]


def lock_path(path: Path) -> Path:
    """Return the lock file of a file that is not in a folder of its own."""
    return path.with_name(f'.{_temporary_stem(path)}.lock')


@contextmanager
def locked(path: Path, what: str, patience: float = 0) -> Iterator[None]:
    """Hold the lock file `path` inside; raises UserError naming the holder if another process has it.

    With `patience`, wait for so many seconds first: for locks that are only held briefly. The system releases the lock
    when the process ends, however it ends. On network file systems without locks, filelock falls back to a file that
    names its owner.
    """
    make_folder(path.parent)
    holder = path.with_suffix('.json')
    lock = FileLock(path)
    deadline = time.monotonic() + max(LOCK_PATIENCE, patience)
    while True:
        try:
            lock.acquire(timeout=0.2)
            break
        except Timeout:
            if (_is_alive(_read_holder(holder)) and not patience) or time.monotonic() > deadline:
                raise refusal(path, what) from None
    try:
        write_json(
            holder,
            {'host': socket.gethostname(), 'pid': os.getpid(), 'since': time.strftime('%Y-%m-%d %H:%M:%S')},
        )
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether another process holds a lock file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def refusal(path: Path, what: str) -> UserError:
    """Return the error about an output that the holder of a lock file is writing."""
    owner = _read_holder(path.with_suffix('.json'))
    who = f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}' if owner else 'another process'
    return UserError(f'{what} is being written by {who}: wait for it to finish, or stop it')


def _read_holder(path: Path) -> dict | None:
    try:
        owner = json.loads(path.read_text())
        return owner if {'host', 'pid', 'since'} <= owner.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_alive(owner: dict | None) -> bool:
    """Return whether the holder may be running: only processes of this host can be looked up."""
    if owner is None:
        return False
    if owner['host'] != socket.gethostname():
        return True
    try:
        os.kill(owner['pid'], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
