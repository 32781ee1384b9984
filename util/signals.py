"""SIGINT, SIGTERM and SIGHUP: handled everywhere except inside a fork or while a lock changes hands.

A signal raises SystemExit in the main thread, so that locks are left and workers ended. Where Python drops an exception
(in __del__, in hooks), it is raised again a moment later.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOMENT = 0.01  # seconds until an exception that Python has dropped is raised again
_received = 0  # the last signal that has come
_held = 0  # depth of nested `held`


def listen() -> None:
    """Let SIGNALS end this process from now on, but not SIGHUP if nohup has it ignored."""
    global _received
    _received = 0
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _hear)
    signal.signal(signal.SIGALRM, lambda *_: stop_if_asked())


@contextmanager
def heard() -> Iterator[None]:
    """Let SIGNALS end this process inside. Outside, their actions are as before.

    A program is outside while Python shuts down, where an exception would be printed and lost.
    """
    global _held
    before, hook = [signal.getsignal(number) for number in SIGNALS], sys.unraisablehook
    sys.unraisablehook = partial(_raise_again, hook)
    listen()
    try:
        yield
    finally:
        _held += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, action in zip(SIGNALS, before, strict=True):
            signal.signal(number, action)
        sys.unraisablehook = hook
        _held -= 1


def _raise_again(report: Callable, dropped: 'sys.UnraisableHookArgs') -> None:
    """Raise the exception of a signal again, elsewhere, that Python has dropped; report any other one."""
    if _received and dropped.exc_type is SystemExit:
        signal.setitimer(signal.ITIMER_REAL, MOMENT)
    else:
        report(dropped)


def received() -> int:
    """Return the number of the signal that has come, 0 if none has."""
    return _received


def stop_if_asked() -> None:
    """Raise SystemExit if a signal has come, unless signals are held."""
    if _received and not _held:
        raise SystemExit(128 + _received)


@contextmanager
def held() -> Iterator[None]:
    """Hold signals inside: a signal takes effect at the end, unless an exception is already being raised."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if sys.exc_info()[0] is None:
        stop_if_asked()


@contextmanager
def held_while_forking() -> Iterator[None]:
    """Hold signals inside; processes that are forked there do not get one before `leave_to_parent`."""
    with held():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """Leave signals to the parent: terminals and schedulers signal every process of a command.

    A second SIGTERM ends this worker, so that the parent can stop one that hangs.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _hear(number: int, frame: object) -> None:
    global _received
    _received = number
    stop_if_asked()


@contextmanager
def obeyed_within(seconds: float) -> Iterator[None]:
    """Inside, end the process if a signal is not handled within some seconds.

    Python handles signals between its own instructions, which a library that waits for another process can delay.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    done = threading.Event()

    def watch() -> None:
        number = os.read(reader, 1)
        if number and number[0] in SIGNALS and not done.wait(seconds):
            os._exit(128 + number[0])

    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(before)
        os.close(writer)  # which ends the thread
