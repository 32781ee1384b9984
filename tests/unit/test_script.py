"""How scripts end: one line for what the user can mend, a traceback for a fault of the program; progress lines."""

import argparse
import copy
import errno
import subprocess
import sys

import pytest
import torch

from core import UserError
from support import fault_of, subprocess_environment
from util import script


def raising(error):
    """Return a script whose main raises the error."""

    def main(args):
        raise error

    return argparse.Namespace(main=main, parse_args=lambda line=None: argparse.Namespace())


def test_user_errors_are_one_line(capsys):
    assert fault_of(raising(UserError('--flag x: wrong')), [], capsys).endswith('error: --flag x: wrong')
    assert fault_of(raising(OSError(28, 'No space left', 'f')), [], capsys).endswith("No space left: 'f'")
    assert fault_of(raising(UserError('a\nb: no such file')), [], capsys).endswith('error: a\\nb: no such file')
    # As it arrives from a worker of a data loader.
    text = 'Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\ncore.UserError: a.jpg: not readable'
    assert fault_of(raising(UserError(text)), [], capsys).endswith('error: a.jpg: not readable')


def caused(error, cause):
    error.__cause__ = cause
    return error


GPU_MEMORY = 'the GPU is out of memory: lower --batch_size or --image_size, or choose another --device'
CPU_MEMORY = 'out of memory: lower --batch_size, --image_size or --num_workers'
GPU_FAILED = 'the GPU failed: check it with nvidia-smi or choose another --device, then run the same command to resume'
FILES = 'too many open files: raise the limit (ulimit -n 65536), or lower --num_workers'
WORKER = 'a data-loading worker was killed (out of memory?): lower --num_workers or --batch_size'
SHARED = 'shared memory (/dev/shm) is full: pass --num_workers 0, or give the container more (--shm-size)'


@pytest.mark.parametrize(
    'error, line',
    [
        (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...'), GPU_MEMORY),
        (RuntimeError('CUDA error: out of memory\nCUDA kernel errors might be ...'), GPU_MEMORY),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
            CPU_MEMORY,
        ),
        (
            RuntimeError('Caught _ArrayMemoryError in DataLoader worker process 0.\nTraceback\n_ArrayMemoryError: ...'),
            CPU_MEMORY,
        ),
        (RuntimeError('CUDA error: an illegal memory access was encountered'), GPU_FAILED),
        (RuntimeError('CUDA error: unspecified launch failure\nCUDA kernel errors ...'), GPU_FAILED),
        (OSError(errno.EROFS, 'Read-only file system'),
         'shared memory (/dev/shm) cannot be written: pass --num_workers 0, or mount it'),
        (RuntimeError('unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)'),
         FILES),
        (RuntimeError('DataLoader worker (pid 12) is killed by signal: Killed. '), WORKER),
        (RuntimeError('DataLoader worker (pid(s) 12, 13) exited unexpectedly'), WORKER),
        (
            caused(
                RuntimeError('DataLoader worker (pid(s) 12) exited unexpectedly'),
                RuntimeError('DataLoader worker (pid 12) exited unexpectedly with exit code 28. Details are lost'),
            ),
            SHARED,
        ),
        (RuntimeError('DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader\'s '
                      'workers are out of shared memory. Please try to raise your shared memory limit.'), SHARED),
        (RuntimeError('[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer'), script.ENDED),
        (RuntimeError('read: Connection reset by peer [10.0.0.1]:1234'), script.ENDED),
        (
            MemoryError('Unable to allocate 7.11 PiB'),
            'out of memory (Unable to allocate 7.11 PiB): use smaller images, a smaller --batch_size or fewer '
            '--num_workers',
        ),
        (
            MemoryError(),
            'out of memory (MemoryError): use smaller images, a smaller --batch_size or fewer --num_workers',
        ),
        (
            MemoryError('Caught MemoryError in DataLoader worker process 0.\nTraceback:\nMemoryError: big'),
            'out of memory (MemoryError: big): use smaller images, a smaller --batch_size or fewer --num_workers',
        ),
        (OSError(), 'OSError'),
        (BlockingIOError(11, 'Resource temporarily unavailable'), script.PROCESSES),
        (RuntimeError("can't start new thread"), script.PROCESSES),
    ],
)  # fmt: skip
def test_errors_of_memory_and_devices_are_one_line(capsys, error, line):
    assert fault_of(raising(error), [], capsys) == f'{sys.argv[0]}: error: {line}'


def test_exceptions_of_torch_itself_are_explained(capsys):
    for allocate in (lambda: torch.zeros(10**15), lambda: torch.zeros(10).expand(10**14, 10).clone()):
        with pytest.raises(RuntimeError) as error:
            allocate()
        assert script.explain(error.value) == CPU_MEMORY


def test_faults_of_torch_compile_are_explained():
    error = torch._inductor.exc.InvalidCxxCompiler()
    line = script.explain(error)
    assert line.startswith('--compile: torch.compile does not work here (No working C++ compiler found in ')
    assert line.endswith('): leave it out')


@pytest.mark.parametrize(
    'error',
    [
        ZeroDivisionError(),
        RuntimeError('mat1 and mat2 shapes cannot be multiplied'),
        RuntimeError('Caught RuntimeError in DataLoader worker process 0.\nTraceback\nRuntimeError: shapes'),
        KeyError('cam'),
        AssertionError(),
        ValueError('wrong'),
    ],
)
def test_faults_of_the_program_keep_their_traceback(in_tmp, error):
    assert script.explain(error) is None
    with pytest.raises(SystemExit, match='this is a bug in the program') as ended:
        script.run(raising(error).main, argparse.Namespace)
    assert ended.value.__cause__ is error


SIGNALLED = """
import os, signal, time
from util import script

signal.signal(signal.SIGINT, signal.default_int_handler)  # a program started in the background ignores it

def main(args):
    try:
        os.kill(os.getpid(), signal.{name})
        time.sleep(60)
    finally:
        print('cleaned up')

script.run(main, lambda: None)
"""


@pytest.mark.parametrize('name, status', [('SIGTERM', 143), ('SIGINT', 130)])
def test_signals_end_a_script_normally(name, status):
    command = [sys.executable, '-c', SIGNALLED.format(name=name)]
    run = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (status, 'cleaned up\n', '')


def test_a_script_ends_without_a_search_for_garbage():
    """Among torch's objects it takes a second, in which no signal is heard."""
    program = 'import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0))\n'
    program += 'from util import script; script.run(lambda args: None, lambda: None)'
    command = [sys.executable, '-c', program]
    assert subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True).stdout == 'True\n'


def test_a_process_of_torchrun_says_why_it_ends():
    """In one line; its workers, which get the signal too, are silent."""
    program = SIGNALLED.format(name='SIGTERM').replace('    try:\n', '    child = os.fork()\n    try:\n')
    environment = {**subprocess_environment(), 'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '2'}
    run = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True)
    assert run.returncode == 143
    assert run.stderr == f'process 0 of 2: -c: {script.TERMINATED}\n'


def test_flags_are_parsed_inside(capsys):
    def parse_args():
        sys.exit('parsed')

    with pytest.raises(SystemExit, match='parsed'):
        script.run(None, parse_args)


def test_warnings_count_images(capsys):
    script.warn([], ['a', 'b', 'c'], 'are blank')
    assert capsys.readouterr().err == ''
    script.warn(['b', 'c'], ['a', 'b', 'c'], 'are blank')
    assert capsys.readouterr().err == 'warning: 2 of 3 images (b, ...) are blank\n'


def test_progress_without_a_terminal_is_ten_lines(capsys):
    assert list(script.progress(range(100), 'scoring')) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith('scoring: 100/100')
    assert list(script.progress(iter('abc'), 'x', 3)) == ['a', 'b', 'c']
    assert list(script.progress([], 'x')) == []
    capsys.readouterr()
    assert list(script.progress(range(100), 'epoch 1', lines=False)) == list(range(100))
    assert capsys.readouterr().err == ''


def test_progress_says_how_long_the_rest_takes(capsys, monkeypatch):
    now = iter(range(0, 10_000, 30))
    monkeypatch.setattr(script.time, 'time', lambda: next(now))
    list(script.progress(range(4), 'scoring'))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'scoring: 1/4, 60 s, about 90 s left'  # the clock is read twice for each line
    assert lines[-1] == 'scoring: 4/4, 240 s'


@pytest.mark.parametrize(
    'seconds, done, total, line',
    [
        (10, 1, 10, ', about 90 s left'),
        (60, 1, 11, ', about 10 minutes left'),
        (3600, 2, 5, ', about 1.5 hours left'),
        (10, 10, 10, ''),
        (1, 9, 10, ''),  # a ninth of a second
    ],
)
def test_time_left(seconds, done, total, line):
    assert script.time_left(seconds, done, total) == line


def test_names_of_flags_get_their_dashes(capsys):
    """In the message about an option that is a flag of this script, and in no other."""

    def main(args):
        raise args.error

    for error, line in (
        (UserError("'x': unknown", option='domain'), "--domain 'x': unknown"),
        (UserError('3 is too large', option='radius'), 'radius 3 is too large'),
        (UserError("domain 'x': unknown"), "domain 'x': unknown"),
        (copy.copy(UserError("'x': unknown", option='domain')), "--domain 'x': unknown"),
    ):
        with pytest.raises(SystemExit) as ended:
            script.run(main, lambda error=error: argparse.Namespace(domain='x', error=error))
        assert ended.value.code == f'{sys.argv[0]}: error: {line}'


def test_error_of_a_process_has_its_number(monkeypatch):
    for name, value in {'RANK': '1', 'LOCAL_RANK': '1', 'WORLD_SIZE': '2'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, 'stdout', sys.stdout)
    with pytest.raises(SystemExit) as ended:
        script.run(raising(UserError("'x': unknown", option='domain')).main, lambda: argparse.Namespace(domain='x'))
    assert ended.value.code == f"process 1 of 2: {sys.argv[0]}: error: --domain 'x': unknown"


MANY_LINES = """
from util import script

def main(args):
    for i in range(20_000):
        print(i)

script.run(main, lambda: None)
"""


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_a_reader_that_stops_early_is_not_an_error(unbuffered):
    command = f"set -o pipefail; '{sys.executable}' -c '{MANY_LINES}' | head -1"
    environment = {**subprocess_environment(), 'PYTHONUNBUFFERED': unbuffered}
    run = subprocess.run(['bash', '-c', command], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (141, '0\n', '')


@pytest.mark.parametrize('lines', [1, 20_000])
def test_an_output_that_is_full_is_named(lines):
    program = MANY_LINES.replace('20_000', str(lines))
    with open('/dev/full', 'w') as full:
        command = [sys.executable, '-c', program]
        run = subprocess.run(command, env=subprocess_environment(), stdout=full, stderr=subprocess.PIPE, text=True)
    line = '-c: error: the output of this command (stdout) cannot be written: No space left on device\n'
    assert (run.returncode, run.stderr) == (1, line)


def test_other_broken_pipes_are_errors(capsys):
    assert fault_of(raising(BrokenPipeError(32, 'Broken pipe')), [], capsys).endswith('Broken pipe')
