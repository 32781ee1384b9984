"""Entry point, error lines and progress of the scripts."""

import atexit
import errno
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from core import DataWarning, UserError, printable
from core.data.dataset import Dataset
from util import launcher, signals

SHARED_MEMORY_FULL = 28  # exit code of a data-loading worker that could not send its batch (ENOSPC)
WORKER_KILLED = 'a data-loading worker was killed (out of memory?): lower --num_workers or --batch_size'
OUT_OF_MEMORY = 'out of memory: lower --batch_size, --image_size or --num_workers'
COMPILE = '--compile: torch.compile does not work here ({}): leave it out'
TERMINATED = 'stopped by SIGTERM, as torchrun stops all processes when one has ended; run the same command to resume'
SHARED_MEMORY = 'shared memory (/dev/shm) is full: pass --num_workers 0, or give the container more (--shm-size)'
NO_SHARED_MEMORY = 'shared memory (/dev/shm) cannot be written: pass --num_workers 0, or mount it'
ENDED = 'another process of this run has ended: its message says why; run the same command to resume'
SILENT = 'another process has not answered for 2 minutes: check it and the network, then run the same command to resume'
PROCESSES = 'no further process or thread can be started: lower --num_workers, or raise the limit (ulimit -u, pids.max)'
OUTPUT = 'the output of this command (stdout) cannot be written: {}'
GPU = 'the GPU failed: check it with nvidia-smi or choose another --device, then run the same command to resume'

# Errors of torch that users meet: a part of the message, and the line to print.
TORCH_ERRORS = (
    ('Too many open files', 'too many open files: raise the limit (ulimit -n 65536), or lower --num_workers'),
    (f'exit code {SHARED_MEMORY_FULL}', SHARED_MEMORY),
    ('shared memory', SHARED_MEMORY),
    ("can't start new thread", PROCESSES),
    ('DataLoader worker (pid', WORKER_KILLED),
    ('ArrayMemoryError', OUT_OF_MEMORY),  # NumPy's error in a worker
    ('DefaultCPUAllocator', OUT_OF_MEMORY),
    ('out of memory', 'the GPU is out of memory: lower --batch_size or --image_size, or choose another --device'),
    ('imed out waiting', SILENT),
    ('onnection closed by peer', ENDED),
    ('onnection reset by peer', ENDED),
    ('gloo', ENDED),
    ('CUDA error', GPU),
)


def run(main: Callable[[Namespace], None], parse_args: Callable[[], Namespace]) -> None:
    """Run a script. Errors are one line on stderr and status 1.

    The line names what the user can fix (UserError, OSError, memory, devices), or the file with the traceback of a bug.
    However the script ends, none of the processes that it started keeps running.
    """
    args = parse_args()
    if not launcher.is_main():
        sys.stdout = open(os.devnull, 'w')  # only the first process prints
    atexit.register(gc.freeze)  # to end, Python would search torch's objects for garbage, for a second
    others = multiprocessing.active_children()
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    # An error in a thread (TensorBoard's, on a full disk) is also one line; the thread that waits for it ends the
    # stage.
    threading.excepthook = lambda error: print(f'{sys.argv[0]}: {error.exc_value}', file=sys.stderr)
    try:
        with signals.heard():
            _run(main, args)
    finally:
        _end_children(others)


def _run(main: Callable[[Namespace], None], args: Namespace) -> None:
    """Call main. Raises SystemExit with the line that says why it failed, or its status."""
    process = os.getpid()
    try:
        main(args)
        sys.stdout.flush()
    except SystemExit:
        if launcher.world_size() > 1 and signals.received() == signal.SIGTERM and os.getpid() == process:
            print(f'{launcher.prefix()}{sys.argv[0]}: {TERMINATED}', file=sys.stderr)
        raise
    except Exception as error:
        fault = _fault_of_output() if isinstance(error, OSError) and error.filename is None else None
        if isinstance(fault, BrokenPipeError):
            sys.exit(141)
        line = OUTPUT.format(fault.strerror) if fault else explain(error) or _report_bug(error)
        is_flag = getattr(error, 'option', None) in vars(args or Namespace())
        raise SystemExit(f'{launcher.prefix()}{sys.argv[0]}: error: {"--" if is_flag else ""}{line}') from error


def _report_bug(error: Exception) -> str:
    """Write the traceback to a file, and return the error line that names it."""
    line = f'this is a bug in the program ({type(error).__name__}: {_last_line(error)})'
    name = time.strftime(f'crash-%Y%m%d-%H%M%S-{os.getpid()}.txt')
    for path in (Path('experiments', 'logs', name), Path(name)):
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(''.join(traceback.format_exception(error)), errors='backslashreplace')
            return f'{line}: please report it with its traceback, which is in {path}'
    return f'{line}: please report it'


def _show_warning(show_others: Callable, message: Warning, category: type[Warning], *where) -> None:
    """Print a warning of the data set as one line, without the place in the code; only the first process prints it."""
    if not issubclass(category, DataWarning):
        show_others(message, category, *where)
    elif launcher.is_main():
        print(f'warning: {message}', file=sys.stderr)


def _end_children(others: list[multiprocessing.Process]) -> None:
    """Kill the remaining workers, except some. Otherwise Python would wait for them, and they for this process."""
    children = [child for child in multiprocessing.active_children() if child not in others]
    if children:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error if a worker of a loader dies
    for child in children:
        child.kill()
    for thread in threading.enumerate():  # of a pool of processes; it closes a pipe that Python would write to on exit
        if type(thread).__name__ == '_ExecutorManagerThread':
            thread.join(5)


def _fault_of_output() -> OSError | None:
    """Return the error of writing to stdout, such as a pipe that nobody reads any more; drop what remains to print."""
    try:
        print(flush=True)
        return None
    except OSError as fault:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fault


def explain(error: Exception) -> str | None:
    """Return the error line for the user, or None for a bug in the program."""
    if isinstance(error, UserError):
        # An error of a data loader's worker arrives as a traceback that ends with the message.
        _, _, message = f'\n{error}'.rpartition(f'\n{UserError.__module__}.{UserError.__qualname__}: ')
        return '\\n'.join((message or str(error)).strip().splitlines())
    if isinstance(error, BlockingIOError):  # of a fork
        return PROCESSES
    if isinstance(error, OSError):
        no_semaphore = error.filename is None and error.errno in (errno.ENOENT, errno.EROFS)
        return NO_SHARED_MEMORY if no_semaphore else _last_line(error)
    if isinstance(error, MemoryError):
        return f'out of memory ({_last_line(error)}): use smaller images, a smaller --batch_size or fewer --num_workers'
    if isinstance(error, BrokenExecutor):
        return 'a worker process was killed (out of memory?): lower --num_workers and run the same command to resume'
    if isinstance(error, RuntimeError):
        text = f'{error} {error.__cause__ or ""}'
        known = next((line for part, line in TORCH_ERRORS if part in text), None)
        if known is None and type(error).__module__.startswith(('torch._dynamo', 'torch._inductor')):
            return COMPILE.format(text.strip().splitlines()[0])
        return known
    return None


def warn(image_ids: list[str], all_ids: Collection[str], what: str) -> None:
    """Print a warning with the number of these images, if there are any."""
    if image_ids:
        print(f'warning: {len(image_ids)} of {len(all_ids)} images ({image_ids[0]}, ...) {what}', file=sys.stderr)


def print_mask_count(dataset: Dataset, domain: str, masked: Collection[str], use: str = 'scored') -> None:
    """Print how many images of a list are used if these are not all: only images with a mask can be."""
    total = len(dataset.ids(domain)) if domain in dataset.lists else 0
    if masked and len(masked) < total:
        print(f'{len(masked)} of {total} images of the list "{domain}" are {use}: only images with masks can be')


def _last_line(error: Exception) -> str:
    return printable((str(error).strip() or type(error).__name__).splitlines()[-1])


def progress(items: Iterable, description: str, total: int | None = None, lines: bool = True) -> Iterator:
    """Iterate with a tqdm bar or, if stderr is not a terminal, a plain line at every tenth of the way.

    `lines=False` omits the lines, because a training loop logs its own. Of several processes only the first one shows
    its progress.
    """
    total = len(items) if total is None else total
    if sys.stderr.isatty() and launcher.is_main():
        items, lines = tqdm(items, desc=description, total=total, dynamic_ncols=True), False
    start, step = time.time(), max(1, -(-total // 10))
    for i, item in enumerate(items, 1):
        signals.stop_if_asked()
        yield item
        if lines and launcher.is_main() and (i % step == 0 or i == total):
            left = time_left(time.time() - start, i, total)
            print(f'{description}: {i}/{total}, {time.time() - start:.0f} s{left}', file=sys.stderr, flush=True)


def time_left(seconds: float, done: int, total: int) -> str:
    """Return ', about ... left' for work of which a part took some seconds, or '' if no time is left."""
    left = seconds / done * (total - done)
    if left < 1:
        return ''
    if left >= 3600:
        return f', about {left / 3600:.1f} hours left'
    return f', about {left:.0f} s left' if left < 100 else f', about {left / 60:.0f} minutes left'
