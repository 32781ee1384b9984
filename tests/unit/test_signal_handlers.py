"""SIGINT and SIGTERM: raised once, wherever they come, and held where they would do harm."""

import os
import signal
import subprocess
import sys
import time

import pytest

from support import subprocess_environment
from util import signals


class Signalled:
    """Its end gets a signal."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(10):  # instructions, between which Python hears it
            pass


def lose_in_del():
    Signalled()


def lose_twice():
    class Nested:
        def __init__(self):
            self.first, self.second = Signalled(), Signalled()

    Nested()


def lose_in_generator():
    def numbers():
        try:
            yield 1
        finally:
            Signalled()

    next(numbers())


@pytest.mark.parametrize('lose', [lose_in_del, lose_twice, lose_in_generator])
def test_a_signal_whose_exception_python_drops_is_raised_again(lose, capsys):
    begun = time.monotonic()
    with pytest.raises(SystemExit) as ended, signals.heard():
        lose()
        time.sleep(60)
    assert ended.value.code == 143
    assert time.monotonic() - begun < 5
    assert capsys.readouterr().err == ''


def test_other_dropped_exceptions_are_reported(monkeypatch):
    class Failing:
        def __del__(self):
            raise ZeroDivisionError

    reports = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda dropped: reports.append(dropped.exc_type))
    with signals.heard():
        Failing()
    assert reports == [ZeroDivisionError]


def test_held_signals_are_raised_at_the_end():
    done = []
    with pytest.raises(SystemExit), signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        done.append('held')
    assert done == ['held']


@pytest.mark.parametrize('action, status', [(signal.SIG_DFL, 129), (signal.SIG_IGN, None)])
def test_a_closed_terminal_is_heard_unless_nohup_ignores_it(action, status):
    before = signal.signal(signal.SIGHUP, action)
    try:
        with signals.heard():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        ended = None
    except SystemExit as error:
        ended = error.code
    finally:
        assert signal.signal(signal.SIGHUP, before) == action
    assert ended == status


def test_the_error_that_ends_a_held_part_stays():
    with pytest.raises(ZeroDivisionError), signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        raise ZeroDivisionError


LATE = """
import atexit, os, signal, sys
from util import script

signal.signal(signal.SIGINT, signal.SIG_DFL)  # as util.startup does
atexit.register(lambda: (os.kill(os.getpid(), signal.{name}), sys.stdout.write('not ended')))
script.run(lambda args: print('done'), lambda: None)
"""


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_a_signal_while_python_shuts_down_ends_it_silently(name):
    command = [sys.executable, '-c', LATE.format(name=name)]
    run = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (-getattr(signal, name), 'done\n', '')


FOLLOWER = "import time; from util import startup; startup.follow_launcher(); print('ready', flush=True); time.sleep(9)"
PARENTS = {
    'recipe': f'from recipes import runner; runner.execute(["-c", {FOLLOWER!r}])',
    'torchrun': f'import os, subprocess, sys; subprocess.run([sys.executable, "-c", {FOLLOWER!r}])',
}


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells a process that its parent died')
@pytest.mark.parametrize('parent', PARENTS)
def test_kill_of_the_launcher_ends_what_it_started(parent):
    environment = subprocess_environment() | ({'TORCHELASTIC_RUN_ID': 'none'} if parent == 'torchrun' else {})
    command = [sys.executable, '-c', PARENTS[parent]]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == 'ready\n'
        launcher.kill()
        launcher.communicate(timeout=6)  # to the end of the stdout that the follower has inherited
