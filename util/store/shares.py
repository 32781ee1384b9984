"""Shares of a list for --shard and torchrun: the images of each process, and which processes may write together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from core import UserError
from core.data.dataset import Dataset
from util import launcher
from util.store import written
from util.store.files import remove_all_leftovers
from util.store.hashes import digest
from util.store.locks import BRIEF_PATIENCE, is_held, locked, refusal


class Share(NamedTuple):
    """The images of this process, with the number of its share and the number of shares."""

    ids: Sequence[str]
    index: int
    count: int
    division: list[list[str]]  # the batches of the whole list, which are shared

    @property
    def label(self) -> str:
        """The beginning of a line about the share, '' if there is only one."""
        return f'shard {self.index + 1}/{self.count}: ' if self.count > 1 else ''

    def pick(self, value: object) -> object:
        """Return a dict by image id without the images of other shares; anything else unchanged."""
        return {image_id: value[image_id] for image_id in self.ids} if isinstance(value, dict) else value

    @contextmanager
    def claimed(
        self, folder: Path, settings: dict, ids: Sequence[str]
    ) -> Iterator[tuple[Callable[[], AbstractContextManager], Path]]:
        """Hold the lock of a folder or of a share of the list `ids` inside.

        Yield the function that locks its records briefly, and the path of the journal (util/store/written.py).

        Shares of one command (settings and division of the list are the same) are written side by side. Raises
        UserError naming the process if another command writes the folder, or another process this share. Leftovers of
        killed processes are removed if nobody else is writing, and their journals become a part of the record.
        """
        if self.count == 1:
            with locked(folder / '.lock', str(folder)):
                _check_others(folder)
                remove_all_leftovers(folder)
                written.record(folder, ids)
                yield nullcontext, folder / '.all.written'
            return
        command = digest({'settings': settings, 'division': self.division, 'count': self.count})[:16]
        own = folder / f'.{command}.{self.index + 1}of{self.count}.lock'
        records_locked = partial(locked, folder / '.records.lock', f'{folder}/args.json', BRIEF_PATIENCE)
        with ExitStack() as stack:
            with records_locked():
                stack.enter_context(locked(own, _name(folder, own)))
                if is_held(folder / '.lock'):
                    raise refusal(folder / '.lock', str(folder))
                if not _check_others(folder, own):
                    remove_all_leftovers(folder)
                    written.record(folder, ids)
            try:
                yield records_locked, own.with_suffix('.written')
            finally:
                with records_locked():
                    stack.close()
                    own.unlink(missing_ok=True)


def number_of(shard: str | None) -> tuple[int, int]:
    """Return the number of this process's share, from 0, and the number of shares.

    `shard` is i/n of --shard, from 1, or None; the processes of torchrun divide a shard further.
    """
    number, count = map(int, (shard or '1/1').split('/'))
    return (number - 1) * launcher.world_size() + launcher.rank(), count * launcher.world_size()


def divide(dataset: Dataset, ids: Sequence[str], shard: str | None = None, batch_size: int | None = None) -> Share:
    """Return the share of a list that this process has.

    Images that pass through a network in one batch (batch_size) stay together, so that all shares together write the
    same bytes as one process.
    """
    index, count = number_of(shard)
    if count == 1:
        return Share(ids, index, count, [])
    batches = dataset.batches(ids, batch_size) if batch_size else [[image_id] for image_id in ids]
    own = {image_id for batch in batches[index::count] for image_id in batch}
    return Share([image_id for image_id in ids if image_id in own], index, count, batches)


@contextmanager
def noticing_writers(folder: Path) -> Iterator[None]:
    """Raise UserError naming the process that writes a folder instead of any UserError inside, if there is one."""
    try:
        yield
    except UserError:
        for path in folder.glob('.*lock'):
            if path.name != '.records.lock' and is_held(path):
                raise refusal(path, str(folder)) from None
        raise


def _check_others(folder: Path, own: Path | None = None) -> int:
    """Return how many other shares of the command of `own` are being written; remove lock files of killed processes.

    Raises UserError if another command is writing.
    """
    count = 0
    for path in sorted(folder.glob('.*.*of*.lock')):
        if path == own:
            continue
        if not is_held(path):
            path.unlink(missing_ok=True)
            path.with_suffix('.json').unlink(missing_ok=True)
        elif own is None or _command_and_share(path)[0] != _command_and_share(own)[0]:
            raise refusal(path, _name(folder, path, ' of another command'))
        else:
            count += 1
    return count


def _name(folder: Path, lock: Path, more: str = '') -> str:
    """Return how a line names a share of a folder, from its lock file."""
    return f'{folder} (shard {_command_and_share(lock)[1].replace("of", "/")}{more})'


def _command_and_share(lock: Path) -> list[str]:
    """Return the command and the share that the name of a lock file has."""
    return lock.name.split('.')[1:3]
