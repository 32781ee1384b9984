"""What a program does before its other imports, which take a second: it comes first in every script.

Ctrl-C ends a program silently, with the shell's status 130, until util.script.run hears it. An import that fails is one
line. A stage ends with torchrun or the recipe that started it. A stream that is closed, as cron may leave it, discards
what is printed; otherwise the next file that is opened would get its number. In any other process, such as a notebook
or a test, nothing happens.
"""

import ctypes
import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _is_program() -> bool:
    """Return whether this process runs a stage, or python -m with a package that imports this module first."""
    name = sys.argv[0]
    return name == '-m' or os.path.dirname(os.path.abspath(name)) == ROOT and os.path.isfile(name)


def _report(kind: type[BaseException], error: BaseException, *trace) -> None:
    if not issubclass(kind, ImportError):
        sys.__excepthook__(kind, error, *trace)
        return
    reason = (str(error).strip() or kind.__name__).splitlines()[-1]
    advice = 'see "Install" in README.md'
    print(f'{sys.argv[0]}: error: a package cannot be imported ({reason}): {advice}', file=sys.stderr)


def follow_launcher() -> None:
    """On Linux, get SIGTERM when torchrun or the recipe that started this process dies, even by kill -9."""
    recipe = os.environ.get('PUZZLE_CAM_RECIPE')  # its process id; a program that is started by its stage has another
    if sys.platform == 'linux' and ('TORCHELASTIC_RUN_ID' in os.environ or recipe == str(os.getppid())):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if _is_program():
    follow_launcher()
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.exit('error: the working directory was removed: change to another one')
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background of a script it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.excepthook = _report
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, 'w')
    sys.stderr = sys.stderr or open(os.devnull, 'w')
