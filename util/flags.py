"""Command-line flags: the parser, the types of values, and the flags of data, outputs and the CRF. No torch.

A flag is declared in one place: a row of a table that several scripts share, or an `add_argument` in the only script
that has it. The declaration gives its group in --help, its type, its default, and what it affects:

    'result'     what the stage computes (the default): another value makes another output
    a title      only the output of this format (util/store/formats.py), in a stage that writes several
    'input'      what inputs are recorded by: the path of the data or of a model, how images are read
    'batch'      how a batch is divided, the same in all processes: memory and rounding
    'share'      which share of the work this command does
    'speed'      only speed, rounding, or what is kept and printed
"""

import argparse
import csv
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from core import UserError, printable
from core.data.pixels import parse_plane, parse_window
from util import launcher
from util.store.fingerprints import Record
from util.store.shares import number_of

REPOSITORY = Path(__file__).resolve().parent.parent
GROUPS = ('data', 'model', 'loss', 'optimisation', 'augmentation', 'inference', 'run and output')


class Flag(NamedTuple):
    """A row of a table of flags. kind: type of the value, tuple of choices, or None for a flag without a value."""

    group: str
    name: str
    kind: Callable | Sequence | None
    default: object
    help: str
    affects: str = 'result'


LARGEST = 1e38  # the range of single precision
REQUIRED = ...  # the default of a required flag


class Options(argparse.Namespace):
    """The options of a command, and how each was declared."""

    __slots__ = ('declared',)  # not in __dict__, which holds the options

    def record(self) -> Record:
        """Return what an output records of its command."""
        affects = {action.dest: action.affects for action in self.declared}
        return Record(vars(self), affects, {action.dest: action.default for action in self.declared})

    def pick(self, names: Sequence[str]) -> dict[str, object]:
        """Return the values of these options, except options that the command does not have."""
        return {name: vars(self)[name] for name in names if name in self}


class _Declares:
    """A container of flags whose actions record what they affect."""

    def add_argument(self, *names, affects: str = 'result', **options) -> argparse.Action:
        action = super().add_argument(*names, **options)
        action.affects = affects
        return action


class Group(_Declares, argparse._ArgumentGroup):
    """A group of flags in --help."""


class Parser(_Declares, argparse.ArgumentParser):
    """--help begins with the script's docstring, lists flags by group and shows every default. No abbreviations.

    A flag may have several spellings: the first one names the option.

    Only scripts with a flag that divides a batch or the work run as several processes (torchrun).
    """

    def __init__(self, docstring: str):
        super().__init__(description=docstring, formatter_class=_Formatter, allow_abbrev=False)
        self.groups = {title: self.add_argument_group(title) for title in GROUPS}

    def add_argument_group(self, *arguments, **options) -> Group:
        group = Group(self, *arguments, **options)
        self._action_groups.append(group)
        return group

    def add_table(self, *tables: Sequence[Flag], **defaults: object) -> None:
        """Add the flags of some tables, with other defaults for some of them."""
        for flag in (flag for table in tables for flag in table):
            names = flag.name.split()
            default = defaults.get(names[0].strip('-'), flag.default)
            how = {'action': 'store_true'} if flag.kind is None else {'type': flag.kind}
            how = how if flag.kind is None or callable(flag.kind) else {'choices': flag.kind}
            how |= {'required': True} if default is REQUIRED else {'default': default}
            self.groups[flag.group].add_argument(*names, affects=flag.affects, help=flag.help, **how)

    def parse_args(self, argv: Sequence[str] | None = None, namespace: Options | None = None) -> Options:
        return self._check(super().parse_args(argv, namespace or self._options()))

    def parse_intermixed_args(self, argv: Sequence[str] | None = None) -> Options:
        return self._check(super().parse_intermixed_args(argv, self._options()))

    def _options(self) -> Options:
        options = Options()
        options.declared = [action for action in self._actions if action.dest != 'help']
        return options

    def _check(self, args: Options) -> Options:
        """Reject what cannot be combined with several processes or shards."""
        shares = any(action.affects in ('batch', 'share') for action in self._actions)
        if launcher.world_size() > 1 and not shares:
            self.error('cannot share its work among processes: start it with python3 instead of torchrun')
        if 'shard' in args and args.overwrite and number_of(args.shard)[1] > 1:
            self.error('--overwrite: with --shard or torchrun it would remove files of other shares: remove the folder')
        if 'tile' in args and args.tile and 'resize' in args and args.resize != 'pillow':
            self.error(f'--resize {args.resize}: cannot resize a tile of an image: leave it out with --tile')
        return args

    def error(self, message: str):
        if re.search('unrecognized arguments:.*--local[-_]rank', message):  # of torch.distributed.launch
            message = 'start the processes with torchrun instead of python -m torch.distributed.launch: same flags'
            if not launcher.is_main():
                self.exit(2)
        line = printable('\\n'.join(message.splitlines()))
        self.exit(2, f'{launcher.prefix()}{self.prog}: error: {line}\n')

    @contextmanager
    def checking_values(self) -> Iterator[None]:
        """Report a UserError raised inside as an error of its flag."""
        try:
            yield
        except UserError as error:
            self.error(f'--{error}')


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        """Add '(required)' or the default, except to switches (off) and optional positionals (their help says it)."""
        if action.required and action.option_strings:
            return f'{action.help} (required)'
        default = action.default
        if default in (None, '', [], argparse.SUPPRESS) or not action.option_strings or action.nargs == 0:
            return action.help
        shown = ' '.join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        shown = shown.removeprefix(f'{REPOSITORY}{os.sep}').replace('%', '%%')
        return f'{action.help} (default: {shown})'


# Types --------------------------------------------------------------------------------------------------------------


def boolean(text: str) -> bool:
    if text.lower() in ('true', '1', 'yes'):
        return True
    if text.lower() in ('false', '0', 'no'):
        return False
    raise argparse.ArgumentTypeError(f'{text!r} is neither True nor False')


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a flag type: an integer in [low, high]."""

    def parse(text: str) -> int:
        value = _number(text, int, 'an integer')
        return _in_range(value, value >= low and (high is None or value <= high), low, high)

    return parse


def real(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return a flag type: a number in [low, high] of single precision."""

    def parse(text: str) -> float:
        value = _number(text, float, 'a number')
        return _in_range(value, low <= value <= min(high, LARGEST), low, LARGEST if value > LARGEST else high)

    return parse


def _number(text: str, kind: type, what: str):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not {what}') from None


def _in_range(value, inside: bool, low, high):
    if not inside:
        upper = 'or more' if high in (None, math.inf) else f'to {high}'
        raise argparse.ArgumentTypeError(f'{value} is out of range: {low} {upper}')
    return value


def square(text: str) -> int:
    """A perfect square."""
    value = integer(1)(text)
    if math.isqrt(value) ** 2 != value:
        raise argparse.ArgumentTypeError(f'{value} is not a perfect square (1, 4, 9, 16, ...)')
    return value


def scales(text: str) -> str:
    """'0.5,1.0', kept as typed because it is part of folder names; `floats` gives the numbers."""
    try:
        good = text.isascii() and ' ' not in text and all(0 < value <= 8 for value in floats(text))
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of scales above 0 such as 0.5,1.0,1.5,2.0')
    return text


def floats(text: str) -> list[float]:
    return [float(part) for part in text.split(',')]


def names(text: str) -> list[str]:
    """'cat,dog', with quotes around a name that contains a comma: '"cat, big",dog'. An empty name is an error."""
    lines = text.splitlines()
    found = [cell.strip() for line in lines for cell in next(csv.reader([line], skipinitialspace=True), [''])]
    if len(lines) != 1 or '' in found:
        raise argparse.ArgumentTypeError(f'{text!r} is not one line of names, separated by commas')
    return found


def folder_name(text: str) -> str:
    """A tag or the name of a folder under experiments/, not a path; | and * have a meaning where results are named."""
    if not text.isprintable() or not text or set(text) & set('/\\|*') or text.startswith('.') or text != text.strip():
        raise argparse.ArgumentTypeError(f'{text!r} is not a name (no slashes, |, *, leading dot or outer blanks)')
    return text


def shard(text: str) -> str:
    """'i/n', the i-th of n shares, counted from 1; `shares.number_of` gives the numbers."""
    match = re.fullmatch('([0-9]+)/([0-9]+)', text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f'{text!r} is not i/n with i from 1 to n, such as 1/8')
    return text


def checked(parse: Callable[[str], str]) -> Callable[[str], str]:
    """Return a flag type from a function that raises ValueError with a line."""

    def check(text: str) -> str:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check


# Tables of flags ----------------------------------------------------------------------------------------------------


def cpu_count() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


VOC = str(REPOSITORY / 'data' / 'voc2012.json')
VOC_ROOT = '../VOCdevkit/VOC2012'  # where tools.prepare_voc --out .. puts it
LISTED = "data set: CSV (a row per image), JSON (lists of ids), a folder (one per class) or a labelling tool's file"
DATASET = (Flag('data', '--dataset', str, VOC, LISTED, 'input'),)
LAYOUT = 'folder that image paths are relative to (of VOC: with JPEGImages); a --dataset that is a folder needs none'
WINDOW = 'values that become black and white in images of more than 8 bits: LOW,HIGH (also --window=-100,400), or '
WINDOW += '0.5%%,99.5%% for percentiles of each image (default: the entry "window" of the data set)'
PLANE = 'plane of stacks and animations: a number from 1, or max (default: the entry "plane" of the data set)'
READING = (
    Flag('data', '--window', checked(parse_window), None, WINDOW, 'input'),
    Flag('data', '--plane', checked(parse_plane), None, PLANE, 'input'),
)
DATA = (*DATASET, Flag('data', '--data_dir', str, VOC_ROOT, LAYOUT, 'input'), *READING)
NUM_WORKERS = 'extra processes that load images (in stages 3, 6 and 9: that compute); 0: none'
WORKERS = (Flag('data', '--num_workers', integer(0, 256), min(4, cpu_count()), NUM_WORKERS, 'speed'),)
OVERWRITE = (
    Flag('run and output', '--overwrite', None, False, 'remove existing output of this name and start over', 'speed'),
)
DOMAIN = 'list of the data set to process, such as train_aug, train, val or test'
REPAIR = 'read all existing files and recompute the damaged ones'
SHARD = 'i/n: process every n-th image (or batch), starting with the i-th (i from 1 to n); run all n, in any order'
SHARES = (  # programs that write files for each image
    Flag('run and output', '--repair', None, False, REPAIR, 'speed'),
    Flag('run and output', '--shard', shard, None, SHARD, 'share'),
)
OUTPUT_FOLDER = (  # stages that write a file per image
    *DATA,
    Flag('data', '--domain', folder_name, 'train_aug', DOMAIN, 'input'),
    *WORKERS,
    *OVERWRITE,
    *SHARES,
)
OUTPUT = ('overwrite', 'repair', 'shard', 'batch_size')  # the options that `create_folder` takes
