"""Reading of files that other programs may have written. No torch here: stages 3, 6 and 9 fork."""

import errno
import json
import math
import os
import re
import stat
from pathlib import Path

TEXT_LIMIT = 2**29  # bytes of a file of text: the records of millions of images
HALF_CHARACTER = re.compile(rb'\\u[dD][89a-fA-F]')  # half of a pair of surrogates, whose other half may be missing


class NotRegular(OSError):
    """A FIFO, a socket or a device instead of a file."""


def check_regular(path: Path) -> None:
    """Raise OSError unless a path leads to a file: opening a FIFO, a socket or a device may wait for ever."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, 'Is a directory', str(path))
    if not stat.S_ISREG(mode):
        raise NotRegular(errno.EINVAL, 'Not a regular file', str(path))


def available_memory() -> float:
    """Return how many bytes of memory the system has left; infinity if it does not say."""
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))
    except (OSError, StopIteration):  # not Linux
        return math.inf


def check_readable(path: Path, limit: float = math.inf) -> None:
    """Raise OSError unless a path leads to a file of at most this many bytes that fits in memory."""
    check_regular(path)
    size, limit = path.stat().st_size, min(limit, available_memory())
    if size > limit:
        reason = f'has {size / 1e9:.1f} GB, {limit / 1e9:.1f} GB can be read: check that it is the right file'
        raise OSError(errno.EFBIG, reason, str(path))


def read_bytes(path: Path, limit: float = math.inf) -> bytes:
    """Return the content of a file. Raises OSError, also if it is not a regular file or too large."""
    check_readable(path, limit)
    return path.read_bytes()


def read_text(path: Path) -> str:
    """Return UTF-8 text, without a byte-order mark. Raises OSError as above, or UnicodeDecodeError."""
    return read_bytes(path, TEXT_LIMIT).decode('utf-8-sig')


def walk(folder: Path, above: frozenset[str] = frozenset()) -> tuple[list[Path], list[Path]]:
    """Return the files below a folder, sorted, and what cannot be read: broken links, devices, closed folders.

    Links are followed, unless they lead back to a folder `above`.
    """
    above, files, others = above | {os.path.realpath(folder)}, [], []
    try:
        paths = sorted(folder.iterdir())
    except PermissionError:
        return [], [folder]
    for path in paths:
        if path.is_file():
            files.append(path)
        elif not path.is_dir():
            others.append(path)
        elif os.path.realpath(path) not in above:
            for found, more in zip((files, others), walk(path, above), strict=True):
                found += more
    return files, others


def _parse_integer(digits: str) -> int | float:
    """Return a number of JSON: infinity for one that no float can be, as of other numbers in JSON."""
    return int(digits) if len(digits) < 300 else float(digits)


def load_json(path: Path) -> object:
    """Return the content of a JSON file.

    Raises OSError, or ValueError if it is not JSON, is nested too deeply, or contains half a character.
    """
    content = read_bytes(path, TEXT_LIMIT)
    try:
        found = json.loads(content.decode('utf-8-sig'), parse_int=_parse_integer)
        if HALF_CHARACTER.search(content):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError('nested too deeply') from None
    return found


class Some(dict):
    """{name: kind} of entries that an object may have; see `fits`."""


def fits(value: object, expected: object) -> bool:
    """Return whether a value from JSON is of the expected types.

    Expected is a type or a tuple of them; [kind] for a list; {name: kind} for an object with these entries, among
    others, or Some of them; {str: kind} for an object of any names. `float` includes integers, and `int` excludes true
    and false.
    """
    if isinstance(expected, list):
        return isinstance(value, list) and all(fits(item, expected[0]) for item in value)
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            return False
        if str in expected:
            return all(fits(item, expected[str]) for item in value.values())
        if not isinstance(expected, Some) and expected.keys() - value.keys():
            return False
        return all(fits(value[name], kind) for name, kind in expected.items() if name in value)
    if isinstance(expected, tuple):
        return any(fits(value, kind) for kind in expected)
    if expected is float:
        return type(value) in (int, float)
    return value is None if expected is None else type(value) is expected
