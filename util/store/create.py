"""How a stage creates its output folder, or resumes it: locked, with a record of its inputs and files."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from core import UserError
from core.data.dataset import Dataset
from util.store import written
from util.store.files import check_name, write_json
from util.store.fingerprints import (
    Record,
    changed_ids,
    check_fingerprint,
    fingerprint,
    list_changes,
    read_args,
    read_inputs,
    versions,
)
from util.store.folders import Folder, identify_inputs
from util.store.formats import PREDICTIONS, Format, folder_name
from util.store.shares import Share, divide


@contextmanager
def create_folder(
    kind: Format,
    record: Record,
    dataset: Dataset,
    ids: Sequence[str],
    *,
    overwrite: bool = False,
    repair: bool = False,
    shard: str | None = None,
    batch_size: int | None = None,
    **inputs: str | dict[str, str] | Folder,
) -> Iterator[Folder]:
    """Create or resume the output folder of a stage, and hold the lock of the folder or of a share inside.

    With a shard or under torchrun, the folder has only the ids of this process (util/store/shares.py; batch_size keeps
    the images of a batch together). Other processes of the same command write their images at the same time.

    `inputs` are hashes, dicts with a hash per image id, and folders of earlier stages; the images are always an input.
    args.json in the folder holds the format, the fingerprint (options, classes and inputs), all options, the versions
    and the seconds of the commands that wrote files; inputs.json holds the hashes by image id, files.json the hashes of
    the files. The same command resumes, and regenerates the files of images whose inputs have changed, and files that
    are not as recorded. Other settings raise UserError if there are outputs, unless `overwrite` removes the outputs
    first. `repair` reads every existing file and regenerates the damaged ones. Prints a summary at the end.
    """
    share = divide(dataset, ids, shard, batch_size)
    folder = Folder(kind, PREDICTIONS / folder_name(kind, record.options, record.defaults), dataset, share.ids)
    check_name(folder.path, 'the name of the output folder')
    with fill_folder(folder, record, share, ids, overwrite=overwrite, repair=repair, **inputs):
        yield folder


@contextmanager
def fill_folder(
    folder: Folder,
    record: Record,
    share: Share,
    ids: Sequence[str],
    *,
    overwrite: bool = False,
    repair: bool = False,
    **inputs: str | dict[str, str] | Folder,
) -> Iterator[Folder]:
    """Create or resume a folder of the ids of a share, as `create_folder` does; `ids` are all ids."""
    begun = time.monotonic()
    sources = [value for value in inputs.values() if isinstance(value, Folder)]
    picked = {name: share.pick(value) for name, value in inputs.items()}
    inputs, hashes = identify_inputs(folder.dataset, share.ids, picked)
    inputs |= folder.dataset.reading.record()
    settings = fingerprint(record, folder.kind.title, **folder.dataset.class_entries, **inputs)
    with share.claimed(folder.path, settings, ids) as (records_locked, folder.journal):
        with records_locked():
            if overwrite:
                records = [folder.path / name for name in ('args.json', 'inputs.json', written.RECORD)]
                for path in [*folder.existing(), *folder.path.glob(written.JOURNALS), *records]:
                    path.unlink(missing_ok=True)
            old = _read_settings(folder, settings, record)
            if not old:
                (folder.path / written.RECORD).unlink(missing_ok=True)  # of files that are gone
        unrecorded = written.find_unrecorded(folder.path, folder.kind, share.ids, hashes)
        with records_locked():
            _remove_outdated(folder, unrecorded, hashes, ids)
        folder.missing = {image_id for image_id in folder.ids if folder.lacks(image_id)}
        if repair:
            existing = set(folder.ids) - folder.missing
            folder.missing |= {image_id for image_id in sorted(existing) if _is_damaged(folder, image_id)}
        if folder.missing:
            with records_locked():  # another share may have written them in the meantime
                _record(folder, record, settings, _read_settings(folder, settings, record) or old)
        try:
            yield folder
        finally:
            with records_locked():
                written.record(folder.path, ids, folder.journal)
                _add_seconds(folder, time.monotonic() - begun)
        _check_written(folder)
        for source in sources:
            source.check_unchanged()
    print(f'{share.label}{folder.summary()}')


def _read_settings(folder: Folder, settings: dict, record: Record) -> dict:
    """Return args.json if there are outputs, {} if there are none: an empty folder may be reused.

    Raises UserError if it is invalid, or if its format or settings differ from the requested ones.
    """
    if not folder.existing():
        return {}
    old = read_args(folder.path)
    if not {'format', 'fingerprint', 'options', 'versions', 'history', 'seconds'} <= old.keys():
        raise UserError(
            f'{folder.path} contains files but no valid args.json, so their settings are unknown: pass --overwrite'
        )
    if old['format'] != folder.kind.title:
        raise UserError(f'{folder.path} contains {old["format"]}s: pass --overwrite to replace them, or {folder.other}')
    check_fingerprint(folder.path, old['fingerprint'], settings, record.defaults, f'or {folder.other}')
    return old


def _record(folder: Folder, record: Record, settings: dict, old: dict) -> None:
    """Write args.json; the options and versions of earlier commands become its history.

    The fingerprint of earlier commands stays, so outputs that were made from the folder remain valid when new options
    are added.
    """
    new = {
        'format': folder.kind.title,
        'fingerprint': old.get('fingerprint', settings),
        'options': {name: value for name, value in record.options.items() if record.affects[name] != 'share'},
        'versions': versions(),
        'history': [],
        'seconds': 0,
    }
    if old:
        before, now = ({name: content[name] for name in ('options', 'versions')} for content in (old, new))
        new |= {'history': old['history'] + [before] * (before != now), 'seconds': old['seconds']}
    if new != old:
        write_json(folder.path / 'args.json', new)


def _add_seconds(folder: Folder, seconds: float) -> None:
    """Add the duration of a command to args.json if it has written a file."""
    record = read_args(folder.path)
    if 'seconds' in record and any(folder.file(image_id).is_file() for image_id in folder.missing):
        write_json(folder.path / 'args.json', {**record, 'seconds': round(record['seconds'] + seconds, 2)})


def _check_written(folder: Folder) -> None:
    """Raise UserError if the folder and its record were removed while files were written."""
    if folder.missing and not read_args(folder.path):
        gone = sum(not folder.file(image_id).is_file() for image_id in folder.ids)
        raise UserError(
            f'{folder.path}: was removed while it was written ({gone} of {len(folder.ids)} files are missing): '
            'remove the rest of it and run the same command again'
        )


def _remove_outdated(
    folder: Folder, unrecorded: Sequence[str], hashes: dict[str, dict[str, str]], ids: Sequence[str]
) -> None:
    """Remove files that are not as recorded, or whose inputs have changed; record the inputs by name and image id.

    The ids of a list are in the order of the list (`ids`), whichever share writes first.
    """
    path, old = folder.path / 'inputs.json', read_inputs(folder.path)
    lines, gone = list_changes(old, hashes, folder.image_name), set(unrecorded)
    if unrecorded:
        lines.append(written.describe(unrecorded, len(folder.ids), folder.kind.suffix))
    for line in lines:
        print(f'{folder.path}: {line}: regenerating', file=sys.stderr)
    gone.update(*(changed_ids(old.get(name, {}), new) for name, new in hashes.items()))
    for image_id in gone:
        folder.file(image_id).unlink(missing_ok=True)
    written.forget(folder.path, gone, ids)
    known = {name: {image_id: value for image_id, value in new.items() if value} for name, new in hashes.items()}
    order = {image_id: position for position, image_id in enumerate(ids)}
    record = {
        name: dict(sorted({**old.get(name, {}), **new}.items(), key=lambda item: order.get(item[0], -1)))
        for name, new in known.items()
    }
    if record != old:
        write_json(path, record)


def _is_damaged(folder: Folder, image_id: str) -> bool:
    try:
        folder.check(image_id)
    except UserError as error:
        print(f'regenerating: {error}')
        return True
    return False
