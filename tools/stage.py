"""How a stage script starts, ends and walks over ids."""

import multiprocessing
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tools import UserError


def run(main: Callable[[Namespace], None], args: Namespace, *faults: type[Exception]) -> None:
    """Run a stage; what the user did wrong (UserError and `faults`) is one line on stderr and status 1."""
    faults = (*faults, UserError)
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


def for_each(function: Callable, ids: list[str], num_workers: int, description: str) -> None:
    """Call function(id) for every id, in num_workers processes, 0 for this one. It must be picklable."""
    if num_workers == 0:
        for image_id in progress(ids, description):
            function(image_id)
        return
    # fork: the workers have what is imported here already. These stages keep torch, which does not like it, out.
    context = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        try:
            for _ in progress(pool.map(function, ids, chunksize=4), description, len(ids)):
                pass
        except BrokenProcessPool:
            raise OSError('a worker process was killed (out of memory?): try a smaller --num_workers') from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
