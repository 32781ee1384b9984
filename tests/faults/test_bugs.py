"""A bug of the program ends with a line that says so; its traceback is in a file."""

import os
import re
import subprocess
import sys
from argparse import Namespace

import pytest

from support import subprocess_environment
from util.script import run


def ended_by(error: BaseException) -> SystemExit:
    def main(args):
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main, Namespace)
    return ended.value


def test_traceback_is_written_to_the_logs(in_tmp):
    error = KeyError('x')
    ended = ended_by(error)
    assert ended.__cause__ is error, 'a failing test shows it'
    found = re.fullmatch(
        r'.*: error: this is a bug in the program \(KeyError: \'x\'\): please report it with .* (\S+)', ended.code
    )
    (path,) = in_tmp.glob('experiments/logs/crash-*.txt')
    assert found[1] == str(path.relative_to(in_tmp))
    assert re.fullmatch(rf'crash-\d{{8}}-\d{{6}}-{os.getpid()}\.txt', path.name)
    text = path.read_text()
    assert text.startswith('Traceback (most recent call last):')
    assert text.endswith("KeyError: 'x'\n")


def test_traceback_is_written_to_the_working_directory_instead(in_tmp):
    (in_tmp / 'experiments').write_text('a file')
    ended = ended_by(ValueError('a \x1b[2J b\nlast line \ud800'))
    (path,) = in_tmp.glob('crash-*.txt')
    assert ended.code.endswith(
        f'(ValueError: last line \\ud800): please report it with its traceback, which is in {path.name}'
    )
    assert 'last line' in path.read_text()


def test_last_line_alone_where_nothing_can_be_written(in_tmp, monkeypatch):
    monkeypatch.setattr('pathlib.Path.write_text', lambda *_, **__: (_ for _ in ()).throw(OSError('full')))
    ended = ended_by(RuntimeError('unknown'))
    assert ended.code.endswith('this is a bug in the program (RuntimeError: unknown): please report it')


def test_what_the_user_can_fix_leaves_no_file(in_tmp):
    assert ended_by(OSError('disk full')).code.endswith('error: disk full')
    assert not list(in_tmp.rglob('crash-*'))


PROGRAM = """
from argparse import Namespace
from util.script import run
run(lambda args: 1 / 0, Namespace)
"""


def test_nothing_but_the_line_is_printed(in_tmp):
    command = [sys.executable, '-c', PROGRAM]
    ended = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stdout == ''
    assert re.fullmatch(
        r'-c: error: this is a bug .*ZeroDivisionError: division by zero.* experiments/logs/\S+\n', ended.stderr
    )
