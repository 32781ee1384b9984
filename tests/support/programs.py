"""Programs in separate processes: forked from a server that has imported torch, or with a lock in their hands.

A fresh interpreter takes seconds to import torch. It remains where it is the point of a test.
"""

import multiprocessing
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, reduction
from pathlib import Path
from unittest import mock

import torch

from support import subprocess_environment

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['support.chain', 'tools.predict', 'torch.utils.tensorboard'])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('localhost', 0))
        return listener.getsockname()[1]


def served(target: Callable, *args, **options):
    """Return a process, not started yet, that will be forked from the server and calls target(*args)."""
    # Python starts the server without the paths of this process, and the server is silent about modules it cannot find.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return SERVER.Process(target=target, args=args, **options)


def start_program(words: Sequence, stdout: int, stderr: int, cwd=None, env: dict[str, str] | None = None):
    """Start what `python words...` would run (a file, -m module or -c code) in a child process; return the process.

    stdout and stderr are descriptors. Without `env` it gets the environment of subprocess_environment().
    """
    environment = subprocess_environment() if env is None else env
    where = [str(word) for word in words], str(cwd or Path.cwd()), environment
    process = served(_run, *where, Descriptor(stdout), Descriptor(stderr))
    process.start()
    return process


def signal_after_each_fork(monkeypatch) -> None:
    """Send SIGTERM and SIGINT to every process that this one forks from now on, as soon as there is one."""
    fork = os.fork

    def fork_and_signal() -> int:
        child = fork()
        if child:
            os.kill(child, signal.SIGTERM)
            os.kill(child, signal.SIGINT)
        return child

    monkeypatch.setattr(os, 'fork', fork_and_signal)


def run_program(
    words: Sequence, cwd=None, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess:
    """Run to the end what `python words...` would run, in a child process; return its status and what it printed."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = start_program(words, stdout.fileno(), stderr.fileno(), cwd, env)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise AssertionError(f'{words} has not ended within {timeout} s')
        printed = []
        for file in (stdout, stderr):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(words, process.exitcode, *printed)


class Descriptor:
    """An open file on its way to a child process, where `number` is another."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self):
        return _received, (reduction.DupFd(self.number),)


def _received(descriptor) -> Descriptor:
    return Descriptor(descriptor.detach())


def _run(words: list[str], cwd: str, environment: dict[str, str], stdout: Descriptor, stderr: Descriptor) -> None:
    for number, descriptor in ((1, stdout.number), (2, stderr.number)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as util.startup does
    what, *rest = words
    status = 0
    try:
        if what in ('-m', '-c'):
            sys.argv = [what, *rest[1:]]
            sys.path.insert(0, '')
            if what == '-m':
                runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
            else:
                exec(compile(rest[0], '<string>', 'exec'), vars(_new_main()))
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(what).resolve().parent))
            runpy.run_path(what, run_name='__main__')
    except SystemExit as end:
        status = end.code
    except Exception:
        traceback.print_exc()
        status = 1
    # Only now that no traceback holds them are loaders deleted, which ends their workers, as it is in an interpreter.
    sys.exit(status)


def _new_main():
    """Return an empty module __main__, whose classes can be pickled."""
    module = type(sys)('__main__')
    sys.modules['__main__'] = module
    return module


HOLDER = """
import os, sys, time
from pathlib import Path
from util.store.locks import locked
from util.parallel.workers import BackgroundWriter

holder = os.getpid()
with locked(Path(sys.argv[1]), 'it'):
    # Keep the lock's file open in forked workers, as versions of filelock do that do not close it after a fork.
    for file in Path('/proc/self/fd').iterdir():
        if os.path.exists(file) and os.path.samefile(file, sys.argv[1]):
            os.dup(int(file.name))
    if sys.argv[2] == 'workers':
        writer = BackgroundWriter(2, processes=True)
        for _ in range(2):
            writer.submit(time.sleep, 600)
    elif sys.argv[2] and os.fork() == 0:  # outlives the holder by this many seconds
        while os.getppid() == holder:
            time.sleep(0.01)
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print('locked', flush=True)
    time.sleep(600)
"""


@contextmanager
def held(lock: Path, workers: str = ''):
    """Hold a lock in another process inside."""
    command = [sys.executable, '-c', HOLDER, str(lock), workers]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=subprocess_environment())
    try:
        assert process.stdout.readline() == b'locked\n'
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def refusal(what, process) -> str:
    """A pattern of the line that refuses a second writer."""
    who = rf'process {process.pid} on {re.escape(os.uname().nodename)} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d'
    return rf'{re.escape(str(what))} is being written by {who}: wait for it to finish, or stop it'
