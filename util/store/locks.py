"""Locks: one process at a time writes an output."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from core import UserError
from util import signals
from util.store.files import make_folder, temporary_stem, write_json
from util.store.fingerprints import read_json

HOLDER = {'host': str, 'pid': int, 'since': str}  # content of the file next to a lock file
BRIEF_PATIENCE = 300  # seconds to wait for a lock that is only held briefly, but by hundreds of processes in turn
LOCK_PATIENCE = 10  # seconds to wait for a lock whose holder has died but not yet released it


def lock_path(path: Path) -> Path:
    """Return the lock file of a file that shares its folder with others."""
    return path.with_name(f'.{temporary_stem(path)}.lock')


@contextmanager
def locked(path: Path, what: str, patience: float = 0) -> Iterator[None]:
    """Hold the lock file `path` inside; raises UserError naming the holder if another process has it.

    Wait up to `patience` seconds first, for locks that are only held briefly. The system releases the lock when the
    process ends, even if it crashes. On network file systems without locks, filelock falls back to a file that names
    its owner.
    """
    make_folder(path.parent)
    holder = path.with_suffix('.json')
    lock = FileLock(path)
    deadline = time.monotonic() + max(LOCK_PATIENCE, patience)
    try:
        while not lock.is_locked:
            try:
                with signals.held():
                    lock.acquire(timeout=0.2)
            except Timeout:
                if (_is_alive(read_json(holder, **HOLDER)) and not patience) or time.monotonic() > deadline:
                    raise refusal(path, what) from None
        since = time.strftime('%Y-%m-%d %H:%M:%S')
        write_json(holder, {'host': socket.gethostname(), 'pid': os.getpid(), 'since': since})
        yield
    finally:
        with signals.held():
            try:
                if lock.is_locked:
                    holder.unlink(missing_ok=True)
            finally:
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
    """Return the error for an output that is being written, naming the holder of its lock file."""
    owner = read_json(path.with_suffix('.json'), **HOLDER)
    who = (
        f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}'
        if HOLDER.keys() <= owner.keys()
        else 'another process'
    )
    return UserError(f'{what} is being written by {who}: wait for it to finish, or stop it')


def _is_alive(owner: dict) -> bool:
    """Return whether the holder may be running. Only processes of this host can be checked."""
    if not HOLDER.keys() <= owner.keys():
        return False
    if owner['host'] != socket.gethostname():
        return True
    try:
        os.kill(owner['pid'], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
