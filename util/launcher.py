"""The number of this process and of all processes, from torchrun's environment variables. No torch."""

import os


def is_launched() -> bool:
    """Return whether torchrun, or a launcher that sets the same variables, has started this process."""
    return {'RANK', 'LOCAL_RANK', 'WORLD_SIZE'} <= os.environ.keys()


def rank() -> int:
    """Return the number of this process, from 0; without a launcher 0."""
    return int(os.environ['RANK']) if is_launched() else 0


def local_rank() -> int:
    """Return the number of this process on its node, from 0."""
    return int(os.environ['LOCAL_RANK']) if is_launched() else 0


def world_size() -> int:
    """Return the number of processes, without a launcher 1."""
    return int(os.environ['WORLD_SIZE']) if is_launched() else 1


def is_main() -> bool:
    """Return whether this is the first process, which prints and, in a trainer, writes the files."""
    return rank() == 0


def prefix() -> str:
    """Return the beginning of an error line: which of several processes prints it."""
    return f'process {rank()} of {world_size()}: ' if world_size() > 1 else ''
