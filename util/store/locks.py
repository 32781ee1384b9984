"""Locks: one process at a time writes an output."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from core import UserError
from util import signals
from util.store.files import make_folder, temporary_stem, write_json
from util.store.fingerprints import read_json

HOLDER = {'host': str, 'pid': int, 'since': str}  # content of the file next to a lock file
BRIEF_PATIENCE = 120  # seconds to wait for each holder of a lock that is only held briefly
LOCK_PATIENCE = 10  # seconds to wait for a lock whose holder has died but not yet released it
SILENCE = 5  # seconds of waiting after which a line says so


def lock_path(path: Path) -> Path:
    """Return the lock file of a file that shares its folder with others."""
    return path.with_name(f'.{temporary_stem(path)}.lock')


@contextmanager
def locked(path: Path, what: str, patience: float = 0) -> Iterator[None]:
    """Hold the lock file `path` inside; raises UserError naming the holder if another process has it.

    Wait up to `patience` seconds for each holder first, for locks that are only held briefly. The system releases the
    lock when the process ends, even if it crashes. On network file systems without locks, filelock falls back to a file
    that names its owner.
    """
    make_folder(path.parent)
    holder = path.with_suffix('.json')
    lock = FileLock(path)
    try:
        _acquire(lock, path, what, patience)
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


def _acquire(lock: FileLock, path: Path, what: str, patience: float) -> None:
    """Wait for a lock, hearing signals. Raises UserError if it stays with one holder."""
    owner, begun, is_told = None, 0.0, False
    while True:
        with signals.held(), suppress(Timeout):  # only while the lock changes hands
            lock.acquire(timeout=0)
        if lock.is_locked:
            return
        signals.stop_if_asked()  # also while an exception is already being raised
        found = read_json(path.with_suffix('.json'), **HOLDER)
        if found != owner:
            owner, begun = found, time.monotonic()
        waited = time.monotonic() - begun
        if (_is_alive(owner) and not patience) or waited > max(LOCK_PATIENCE, patience):
            raise refusal(path, what)
        if waited > SILENCE and not is_told:
            print(f'waiting: {what} is being written by {_name(owner)}', file=sys.stderr, flush=True)
            is_told = True
        time.sleep(0.05)


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
    who = _name(read_json(path.with_suffix('.json'), **HOLDER))
    return UserError(f'{what} is being written by {who}: wait for it to finish, or stop it')


def _name(owner: dict) -> str:
    if not HOLDER.keys() <= owner.keys():
        return 'another process'
    return f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}'


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
