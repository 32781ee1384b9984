"""What a stage wrote: files.json of a folder holds a hash of every file, so that any other file is noticed.

Every command has a journal. Before a file gets its name, the thread or process that writes it notes its hash there. At
the end the journal becomes a part of files.json. A killed command leaves its journal, which counts too.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from core.data.files import fits, read_bytes
from util.store.files import make_folder, write_json
from util.store.fingerprints import read_args, read_inputs, read_json
from util.store.formats import Format
from util.store.hashes import file_hashes

RECORD = 'files.json'
FOLDERS = ('maps', 'cams', 'labels')  # input folders in args.json; several have numbers: cams_1
JOURNALS = '.*.written'


def note(journal: Path, image_id: str, content: bytes, *beside: str) -> None:
    """Note the content that the main file of an image is about to get, and the hashes of the files beside it."""
    make_folder(journal.parent)
    hashes = [hashlib.sha256(content).hexdigest()[:16], *beside]
    try:
        with journal.open('ab', buffering=0) as file:  # in one piece: processes of a command share the journal
            file.write(f'{",".join(hashes)} {image_id}\n'.encode(errors='backslashreplace'))
    except OSError as error:
        raise OSError(error.errno, f'cannot be written: {error.strerror}', str(journal)) from None


def read_written(folder: Path) -> dict[str, str]:
    """Return the hashes of the files that were written into a folder, by image id (several: comma-separated)."""
    content = read_json(folder / RECORD)
    found = dict(content) if fits(content, {str: str}) else {}
    for journal in sorted(folder.glob(JOURNALS)):
        with suppress(OSError):
            for line in read_bytes(journal).decode(errors='replace').split('\n')[:-1]:
                value, _, image_id = line.partition(' ')
                found[image_id] = value
    return found


def record(folder: Path, ids: Sequence[str], *journals: Path) -> None:
    """Make journals (default: all) a part of files.json, which is in the order of the list `ids`.

    Call it while holding the lock of the records. Without a journal nothing is written.
    """
    done = [path for path in journals or folder.glob(JOURNALS) if path.is_file()]
    if done:
        _write(folder, ids, read_written(folder))
    for path in done:
        path.unlink(missing_ok=True)


def forget(folder: Path, gone: Collection[str], ids: Sequence[str]) -> None:
    """Drop the hashes of files that were removed, so that they are not taken for recorded ones if they come back."""
    hashes = read_written(folder)
    if not hashes.keys().isdisjoint(gone):
        _write(folder, ids, {image_id: value for image_id, value in hashes.items() if image_id not in gone})


def _write(folder: Path, ids: Sequence[str], hashes: Mapping[str, str]) -> None:
    order = {image_id: position for position, image_id in enumerate(ids)}
    write_json(folder / RECORD, dict(sorted(hashes.items(), key=lambda item: (order.get(item[0], -1), item[0]))))


def find_unrecorded(folder: Path, kind: Format, ids: Collection[str], needed: Collection[str] = ()) -> list[str]:
    """Return the ids with a file that is not what files.json says, or whose inputs inputs.json does not say.

    There are none in a folder without args.json. Ids without a main file and inputs without any hash do not count: an
    import names no images. `needed`: inputs by image (default: images, and the folders that args.json names).
    """
    recorded, settings = read_inputs(folder), read_args(folder).get('fingerprint')
    if not settings:
        return []
    written, found, finished = read_written(folder), set(), ids
    for position, ending in enumerate(kind.endings):
        now = {i: value for i, value in file_hashes({i: folder / f'{i}{ending}' for i in finished}).items() if value}
        found |= {i for i, value in now.items() if [value] != written.get(i, '').split(',')[position : position + 1]}
        finished = finished if position else list(now)
    for name in needed or {'images', *(name for name in settings if name.partition('_')[0] in FOLDERS)}:
        found |= {i for i in finished if recorded.get(name) != {} and i not in recorded.get(name, ())}
    return [image_id for image_id in ids if image_id in found]


def describe(ids: Sequence[str], total: int, suffix: str) -> str:
    """Return the text about the ids of `find_unrecorded`, out of a total."""
    shown = ', '.join(f'{image_id}{suffix}' for image_id in ids[:3]) + (', ...' if len(ids) > 3 else '')
    return f'{len(ids)} of {total} files are not as recorded ({shown})'
