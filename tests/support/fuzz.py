"""Mutations of files, read in a child process with little memory and time."""

import json
import os
import random
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from core import UserError, has_control_characters
from util.script import explain

MEMORY = 2 << 30  # bytes that a reader may reserve
SECONDS = 20  # of CPU for one file
PATIENCE = 180  # seconds for one file, which other work on the machine may take from it
SHOWN = 3  # failures after which a child stops

NUMBERS = [
    b'0',
    b'-1',
    b'1',
    b'255',
    b'65536',
    b'2147483648',
    b'1e9',
    b'99999999999999999999',
    b'1e308',
    b'-1e400',
    b'NaN',
]
WORDS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
PIECES = [
    b'[' * 5000,
    b'{"a":' * 5000,
    b'<a>' * 5000,
    b'\\ud800',
    b'\x1b[2J',
    b'\xff\xfe',
    b'"',
    b'\r',
    b'\0',
    b'\xe2\x80\xae',
    b',',
]
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    float('nan'),
    10**30,
    '',
    'x',
    '\x1b[2J',
    '\u202ea',
    '\ud800',
    'a' * 300,
    [],
    {},
    [[]],
]
VALUES += [[1, 2], [None], {'a': 1}, '../../etc', '/dev/zero', '{id}']


def mutate(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return a file with one to three changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(MUTATIONS)(content or b'\0', others, rng)
    return content


def flip(content, others, rng):
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(content, others, rng):
    size = rng.choice((1, 2, 4, 8))
    word = (rng.choice(WORDS) % (1 << 8 * size)).to_bytes(size, rng.choice(('little', 'big')))
    at = rng.randrange(len(content))
    return content[:at] + word + content[at + size :]


def truncate(content, others, rng):
    return content[: rng.randrange(len(content))]


def remove(content, others, rng):
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice((1, 2, 8, 64)) :]


def repeat(content, others, rng):
    at, size = rng.randrange(len(content)), rng.choice((1, 8, 64, 512))
    return content[:at] + content[at : at + size] * rng.choice((2, 3, 50)) + content[at + size :]


def splice(content, others, rng):
    other = rng.choice(others) or b'\0'
    return content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]


def insert(content, others, rng):
    at = rng.randrange(len(content))
    return content[:at] + rng.choice([*PIECES, rng.randbytes(8)]) + content[at:]


def edit_number(content, others, rng):
    found = list(re.finditer(rb'-?\d+(\.\d+)?', content))
    if not found:
        return flip(content, others, rng)
    number = rng.choice(found)
    return content[: number.start()] + rng.choice(NUMBERS) + content[number.end() :]


def edit_json(content, others, rng):
    """Replace, remove or repeat a value of a JSON file."""
    try:
        root = json.loads(content)
    except (ValueError, RecursionError):
        return edit_number(content, others, rng)
    places = []

    def visit(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                visit(node[key])

    if isinstance(root, (dict, list)):
        visit(root)
    if not places:
        return json.dumps(rng.choice(VALUES)).encode()
    node, key = rng.choice(places)
    action = rng.randrange(8)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[rng.choice(('', 'x', '\x1b[2J', '\ud800', *map(str, node)))] = node.pop(key)
    else:
        node[key] = rng.choice(VALUES)
    return json.dumps(root).encode()


MUTATIONS = [
    flip,
    flip,
    overwrite,
    overwrite,
    truncate,
    remove,
    repeat,
    splice,
    insert,
    edit_number,
    edit_json,
    edit_json,
]


def attempt(read: Callable, *arguments) -> None:
    """Read something, which may raise what a program ends with in one line."""
    try:
        read(*arguments)
    except (UserError, OSError) as error:
        line = explain(error)
        assert '\n' not in line and not has_control_characters(line) and len(line) < 2000, repr(line)


def fuzz(folder: Path, seeds: dict[str, bytes], read: Callable[[Path], object], count: int, seconds: float) -> int:
    """Read mutations of files (by name) in a child process; return how many were tried within some seconds of its CPU.

    Fails for anything but success or a UserError of one line: another exception, a signal, too much memory or time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report, current = folder / 'report.json', folder / 'current'
    child = os.fork()
    if child == 0:
        try:
            _limit()
            report.write_text(json.dumps(_read_all(folder, seeds, read, count, seconds, current)))
        except BaseException:
            (folder / 'error.txt').write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not (folder / 'error.txt').exists(), (folder / 'error.txt').read_text()
    last = [f'{path}' for path in folder.glob('current*')]
    assert status == 0, f'ended by signal {status & 127} on {last}'
    tried, failures = json.loads(report.read_text())
    assert failures == [], '\n'.join(failures)
    return tried


def _limit() -> None:
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)  # ends the process, whatever it is doing


def _read_all(folder, seeds, read, count, seconds, current) -> tuple[int, list[str]]:
    os.chdir(folder)
    failures, names, contents = [], list(seeds), list(seeds.values())
    for name, content in seeds.items():  # these are right
        path = current.with_suffix(Path(name).suffix)
        path.write_bytes(content)
        attempt(read, path)
        path.unlink()
    begun = time.process_time()
    for number in range(count):
        if time.process_time() - begun > seconds or len(failures) >= SHOWN:
            return number, failures
        rng = random.Random(number)
        which = rng.randrange(len(names))
        path = current.with_suffix(Path(names[which]).suffix)
        path.write_bytes(mutate(contents[which], contents, rng))
        signal.alarm(PATIENCE)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            attempt(read, path)
        except BaseException:
            path.rename(folder / f'failed-{number}{path.suffix}')
            failures.append(f'{names[which]}, mutation {number}: {traceback.format_exc()[-1500:]}')
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.unlink(missing_ok=True)
    return count, failures
