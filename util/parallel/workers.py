"""Worker processes: a parallel map over ids, and work in the background of a network."""

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from util import signals
from util.script import progress

WAITING_BYTES = 2**30  # bytes of the arrays that wait for a BackgroundWriter, unless a single item is larger


def parallel_map(
    function: Callable, ids: Sequence, num_workers: int, description: str, method: str = 'fork'
) -> Iterator:
    """Yield function(id) for every id, in order, from num_workers processes (0: this one).

    Workers inherit the function by the fork: with the table of a large data set in it, pickling it for each task would
    take longer than the work. With the method 'spawn' each worker gets a pickled copy. Results must be picklable.
    """
    if num_workers == 0:
        yield from map(function, progress(ids, description))
        return
    num_workers = max(1, min(num_workers, len(ids)))
    with _start_pool(num_workers, function, method) as pool:
        try:
            # Hand out a few ids at a time, but single ids of a short list, so that no worker waits long for another.
            chunk = max(1, min(4, len(ids) // (8 * num_workers)))
            with signals.held_while_forking():  # spawned workers start with their first tasks
                results = pool.map(_call, ids, chunksize=chunk)
            yield from progress(results, description, len(ids))
        except BaseException:
            _end(pool)
            raise


def _start_pool(count: int, function: Callable | None = None, method: str = 'fork') -> ProcessPoolExecutor:
    """Return a pool of workers, which `_call` a function. Forked ones inherit it and the imports.

    Stages that fork do not import torch, whose threads do not survive it.
    """
    pool = ProcessPoolExecutor(count, multiprocessing.get_context(method), _init_worker, (function,))
    try:
        with signals.held_while_forking():
            pool.submit(int)  # the first task forks all processes
    except BaseException:
        _end(pool)
        raise
    return pool


def _end(pool: ProcessPoolExecutor) -> None:
    """End the workers of a pool at once: what they were writing is written again."""
    processes = list((pool._processes or {}).values())  # Python 3.14 has pool.kill_workers()
    thread = pool._executor_manager_thread
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    if thread is not None:
        thread.join(5)  # it closes a pipe that Python would write to on exit


def _init_worker(function: Callable | None) -> None:
    global _function
    _function = function
    signals.leave_to_parent()
    exit_with_parent()


def _call(image_id: object) -> object:
    return _function(image_id)


def exit_with_parent() -> None:
    """End this worker when its parent dies. Otherwise a worker whose parent was killed would block forever."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class BackgroundWriter:
    """Background workers: `submit` returns at once unless too much work is waiting.

    Threads for writing files (numpy and zlib release the GIL), processes for work in Python or pydensecrf. Processes
    are forked here, so create the writer before torch starts threads or a GPU. Results are passed to `receive`, in the
    order of the calls. Exceptions surface at a later `submit` or on exit.
    """

    def __init__(self, workers: int, processes: bool = False, receive: Callable[[object], None] = lambda result: None):
        if processes and workers:
            torch = sys.modules.get('torch')
            assert torch is None or not torch.cuda.is_initialized(), 'fork the workers before a GPU is in use'
            self.pool = _start_pool(workers)
        else:
            self.pool = ThreadPoolExecutor(max(1, workers))
        self.limit, self.waiting, self.receive = 2 * max(1, workers), deque(), receive

    def submit(self, function: Callable, *arguments) -> None:
        size = sum(getattr(argument, 'nbytes', 0) for argument in arguments)
        while self.waiting and sum(bytes_ for _, bytes_ in self.waiting) + size > WAITING_BYTES:
            self._wait()
        self.waiting.append((self.pool.submit(function, *arguments), size))
        while len(self.waiting) > self.limit:
            self._wait()

    def _wait(self) -> None:
        self.receive(self.waiting[0][0].result())
        self.waiting.popleft()

    def __enter__(self) -> 'BackgroundWriter':
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            while self.waiting and kind is None:
                self._wait()
        finally:
            if (self.waiting or kind) and isinstance(self.pool, ProcessPoolExecutor):  # one may have been killed
                _end(self.pool)
            self.pool.shutdown(cancel_futures=True)
