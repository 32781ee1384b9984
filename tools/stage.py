"""How a stage script starts, ends and walks over ids."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tools import UserError

KILLED = 'a worker process was killed (out of memory?): try a smaller --num_workers'


def run(main: Callable[[Namespace], None], args: Namespace, *faults: type[Exception]) -> None:
    """Run a stage; what the user did wrong (UserError and `faults`) is one line on stderr and status 1."""
    faults = (*faults, UserError)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave as any program leaves: workers are told
    # What fails in a thread (TensorBoard's, on a full disk) is one line too; who waits for the thread ends the stage.
    threading.excepthook = lambda fault: print(f'{sys.argv[0]}: {fault.exc_value}', file=sys.stderr)
    try:
        main(args)
    except faults as error:
        # An error from a data loader's worker arrives as a traceback whose last line is the message.
        line = str(error).strip().splitlines()[-1]
        for fault in faults:
            line = line.removeprefix(f'{fault.__module__}.{fault.__qualname__}: ')
        sys.exit(f'{sys.argv[0]}: error: {line}')
    except OSError as error:
        sys.exit(f'{sys.argv[0]}: error: {str(error).strip().splitlines()[-1]}')
    except MemoryError as error:
        sys.exit(f'{sys.argv[0]}: error: out of memory ({error}): smaller images, batches or --num_workers')
    except KeyboardInterrupt:
        sys.exit(130)


def progress(items: Iterable, description: str, total: int | None = None, lines: bool = True) -> Iterator:
    """Go over items with a tqdm bar or, where stderr is no terminal, a plain line at every tenth of the way.

    `lines=False` leaves those out: a training loop has lines of its own.
    """
    from tqdm import tqdm

    total = len(items) if total is None else total
    if sys.stderr.isatty():
        yield from tqdm(items, desc=description, total=total, dynamic_ncols=True)
        return
    start, step = time.time(), max(1, -(-total // 10))
    for i, item in enumerate(items, 1):
        yield item
        if lines and (i % step == 0 or i == total):
            print(f'{description}: {i}/{total}, {time.time() - start:.0f} s', file=sys.stderr, flush=True)


def each(function: Callable, ids: list[str], num_workers: int, description: str) -> Iterator:
    """function(id) for every id, in order, from num_workers processes, 0 for this one. It must be picklable."""
    if num_workers == 0:
        yield from map(function, progress(ids, description))
        return
    with _processes(num_workers) as pool:
        try:
            # A few ids at a time, but of a short list single ones: no worker should wait for another's last.
            chunk = max(1, min(4, len(ids) // (8 * num_workers)))
            yield from progress(pool.map(function, ids, chunksize=chunk), description, len(ids))
        except BrokenProcessPool:
            raise OSError(KILLED) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _processes(count: int) -> ProcessPoolExecutor:
    """fork: the workers have what is imported here. Stages that use this keep torch, which does not like it, out."""
    return ProcessPoolExecutor(count, multiprocessing.get_context('fork'), _end_with_parent)


def _end_with_parent() -> None:
    """Nothing else tells a worker that its parent was killed: it would wait for work for ever."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Behind:
    """Work that goes on behind the network: `submit` returns at once unless too much is waiting.

    Threads for writing files (numpy and zlib let others run), processes for what computes in Python or pydensecrf.
    An error of the work comes out of a later `submit` or of leaving the context.
    """

    def __init__(self, workers: int, processes: bool = False):
        if processes and workers:
            # Forked now, before torch has threads or a GPU; the first task starts them all.
            self.pool = _processes(workers)
            self.pool.submit(int).result()
        else:
            self.pool = ThreadPoolExecutor(max(1, workers))
        self.limit, self.waiting = 2 * max(1, workers), deque()

    def submit(self, function: Callable, *arguments) -> None:
        self.waiting.append(self.pool.submit(function, *arguments))
        while len(self.waiting) > self.limit:
            self._take()

    def _take(self) -> None:
        try:
            self.waiting.popleft().result()
        except BrokenProcessPool:
            raise OSError(KILLED) from None

    def __enter__(self) -> 'Behind':
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            while self.waiting and kind is None:
                self._take()
        finally:
            self.pool.shutdown(cancel_futures=True)
