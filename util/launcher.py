"""Which process of how many this is: what torchrun says in the environment. No torch."""

import os
import time

GRACE = 5  # seconds for the first of several processes to print an error: torchrun stops all when one has ended


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


def share(shard: str | None) -> tuple[int, int]:
    """Return which share of a list this process has, from 0, and of how many.

    `shard` is i/n of --shard, from 1, or None; the processes of torchrun divide such a share among them.
    """
    number, count = map(int, (shard or '1/1').split('/'))
    return (number - 1) * world_size() + rank(), count * world_size()


def is_main() -> bool:
    """Return whether this is the first process: the one that prints, and of trainers the only one that writes files."""
    return rank() == 0


def let_main_speak() -> None:
    """Wait in the other processes, so that an error of all is printed by the first one alone."""
    if not is_main():
        time.sleep(GRACE)
