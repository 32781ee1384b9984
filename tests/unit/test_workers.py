"""Worker processes: order, errors, an end with their parent; work in the background."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor

import numpy as np
import pytest
import torch

from core import UserError
from support import subprocess_environment
from support.programs import signal_after_each_fork
from util import script
from util.parallel import workers
from util.parallel.workers import BackgroundWriter, parallel_map


def half_of_even(text):
    if int(text) % 2:
        raise UserError(f'{text} is odd')
    return int(text) // 2


def be_killed(text):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_parallel_map_keeps_the_order_and_raises_errors(num_workers):
    assert list(parallel_map(half_of_even, ['0', '4', '2', '8'], num_workers, 'x')) == [0, 2, 1, 4]
    with pytest.raises(UserError, match='5 is odd'):
        list(parallel_map(half_of_even, ['0', '2', '5', '4'], num_workers, 'x'))


def test_there_are_no_more_workers_than_ids(monkeypatch):
    counts, start = [], workers._start_pool
    monkeypatch.setattr(workers, '_start_pool', lambda count, *rest: (counts.append(count), start(count, *rest))[1])
    assert list(parallel_map(half_of_even, ['0', '4'], 200, 'x')) == [0, 2]
    assert list(parallel_map(half_of_even, [], 200, 'x')) == []
    assert counts == [2, 1]


def test_a_signal_to_a_worker_that_has_just_been_forked_is_left_to_the_main_process(monkeypatch):
    signal_after_each_fork(monkeypatch)
    assert list(parallel_map(half_of_even, ['0', '4', '2'], 2, 'x')) == [0, 2, 1]


INTERRUPTED = """
import os, signal, sys, threading, time
from util import script
from util.parallel.workers import parallel_map

def wait(second):
    time.sleep(float(second))

def main(args):
    number, delay, to_all = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == 'all'
    start, parent = threading.Thread.start, os.getpid()

    def interrupt(thread):  # the first thread is the pool's
        threading.Thread.start = start
        if os.getpid() != parent:
            pass
        elif delay:
            send = (lambda: os.killpg(0, number)) if to_all else (lambda: os.kill(os.getpid(), number))
            threading.Timer(delay, send).start()
        else:
            os.kill(os.getpid(), number)
        start(thread)

    threading.Thread.start = interrupt
    list(parallel_map(wait, ['3'] * 12, 2, 'x', sys.argv[4]))

if __name__ == '__main__':
    script.run(main, lambda: None)
"""


@pytest.mark.parametrize('method', ['fork', 'spawn'])
@pytest.mark.parametrize(
    'number, delay, whom',
    [
        (15, 0, 'one'),
        (2, 0.02, 'all'),
        pytest.param(15, 0.1, 'all', marks=pytest.mark.slow),
        pytest.param(2, 1, 'one', marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_workers_start_or_work_ends_all_silently(tmp_path, method, number, delay, whom):
    (tmp_path / 'program.py').write_text(INTERRUPTED)
    command = [sys.executable, 'program.py', str(number), str(delay), whom, method]
    begun = time.monotonic()
    # The pipes of its output end with the last worker.
    ended = subprocess.run(
        command, cwd=tmp_path, env=subprocess_environment(), capture_output=True, text=True, start_new_session=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, '', '')
    assert time.monotonic() - begun < 15


def test_killed_workers_are_named():
    line = 'a worker process was killed (out of memory?): lower --num_workers and run the same command to resume'
    with pytest.raises(BrokenExecutor) as error:
        list(parallel_map(be_killed, ['0', '1'], 2, 'x'))
    assert script.explain(error.value) == line
    with pytest.raises(BrokenExecutor) as error, BackgroundWriter(2, processes=True) as writer:
        writer.submit(be_killed, '0')
    assert script.explain(error.value) == line


@pytest.mark.parametrize('which', [0, 1])
def test_an_idle_worker_that_is_killed_is_noticed(which):
    """One of the two holds the lock of the queue of tasks, for which the other one waits."""
    with pytest.raises(BrokenExecutor), BackgroundWriter(2, processes=True) as writer:
        [*writer.pool._processes.values()][which].kill()
        while not writer.pool._broken:
            time.sleep(0.01)
        writer.submit(int)


def write_half(path, text):
    path.write_text(str(half_of_even(text)))


@pytest.mark.parametrize('count', [0, 2])
@pytest.mark.parametrize('processes', [False, True])
def test_background_work_is_done_on_leaving_and_raises_errors(tmp_path, count, processes):
    with BackgroundWriter(count, processes) as writer:
        for i in range(20):
            writer.submit(write_half, tmp_path / str(i), str(2 * i))
    assert [(tmp_path / str(i)).read_text() for i in range(20)] == [str(i) for i in range(20)]
    with pytest.raises(UserError, match='7 is odd'), BackgroundWriter(count, processes) as writer:
        writer.submit(write_half, tmp_path / 'odd', '7')


@pytest.mark.parametrize('count', [0, 2])
def test_results_of_background_work_are_received_in_order(count):
    received = []
    with BackgroundWriter(count, processes=True, receive=received.append) as writer:
        for i in range(20):
            writer.submit(half_of_even, str(2 * i))
    assert received == [*range(20)]


def test_error_inside_leaves_the_rest_undone():
    with pytest.raises(ZeroDivisionError), BackgroundWriter(1) as writer:
        for _ in range(2):
            writer.submit(half_of_even, '7')
        raise ZeroDivisionError


def test_background_processes_are_not_forked_once_a_gpu_is_in_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    with pytest.raises(AssertionError, match='fork the workers before a GPU is in use'):
        BackgroundWriter(2, processes=True)
    for count, processes in ((2, False), (0, True), (0, False)):  # threads
        with BackgroundWriter(count, processes) as writer:
            writer.submit(half_of_even, '2')


ORPHANS = r"""
import os, time
from util.parallel.workers import BackgroundWriter, parallel_map

def work(i):
    os.write(1, b'%d\n' % os.getpid())
    time.sleep(600)

{start}
"""
STARTS = {
    'parallel_map': "list(parallel_map(work, ['0', '1'], 2, 'x'))",
    'BackgroundWriter': 'writer = BackgroundWriter(2, processes=True)\nfor i in range(2):\n    writer.submit(work, i)\n'
    'time.sleep(600)',
}


@pytest.mark.parametrize('start', STARTS)
def test_workers_end_with_a_parent_that_was_killed(start):
    program = ORPHANS.replace('{start}', STARTS[start])
    process = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, env=subprocess_environment())
    for _ in range(2):
        assert int(process.stdout.readline()) != process.pid
    process.kill()
    # The workers hold the pipe: it ends when the last of them has.
    assert process.stdout.read() == b''
    process.wait()
    process.stdout.close()


class Large:
    """Something that must not be pickled for every task."""

    def __reduce__(self):
        raise AssertionError('pickled')

    def __call__(self, image_id: str) -> str:
        return image_id * 2


@pytest.mark.parametrize('num_workers', [0, 2])
def test_the_function_is_inherited_and_not_pickled(num_workers):
    assert list(parallel_map(Large(), list('abcdef'), num_workers, 'x')) == ['aa', 'bb', 'cc', 'dd', 'ee', 'ff']


@pytest.mark.parametrize('limit, most', [(workers.WAITING_BYTES, 5), (250, 2), (1, 1)])
def test_large_arrays_do_not_pile_up(monkeypatch, limit, most):
    monkeypatch.setattr(workers, 'WAITING_BYTES', limit)
    counts = []
    with BackgroundWriter(2) as writer:
        for _ in range(10):
            writer.submit(len, np.zeros(100, np.uint8))
            counts.append(len(writer.waiting))
    assert max(counts) == min(most, writer.limit)
