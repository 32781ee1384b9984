"""Hashes of files, labels and lists, which identify the inputs of an output."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from core import UserError
from core.data.files import check_regular
from core.data.images import MaskValues
from util import launcher
from util.script import progress
from util.store.files import write_json
from util.store.fingerprints import read_json
from util.store.locks import BRIEF_PATIENCE, locked

MANY_FILES = 1000  # show progress when hashing more files than this
CACHE = Path('experiments') / 'cache' / 'files.json'


def digest(content: dict) -> str:
    """Return the sha256 of a fingerprint, which identifies an output folder for the stages that read it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def list_hash(ids: Sequence[str]) -> str:
    """Return the sha256 of a list of ids."""
    return hashlib.sha256('\n'.join(ids).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of a file. Raises UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        check_regular(path)
        with path.open('rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    return digest.hexdigest()


def file_hashes(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return 16 hex digits of the sha256 of each file, by image id; '' for a file that cannot be read.

    The hashes are kept in experiments/cache/files.json, so a file is read again only if its size or times changed.
    """
    cache, new = read_json(CACHE), {}
    hashes, unknown = {}, {}
    for image_id, path in paths.items():
        try:
            status = path.stat()
        except OSError:
            hashes[image_id] = ''
            continue
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        name = os.path.abspath(path)
        known = cache.get(name)
        if isinstance(known, list) and known[:-1] == stamp and isinstance(known[-1], str):
            hashes[image_id] = known[-1]
        else:
            unknown[image_id] = name, stamp
    if unknown:
        with ThreadPoolExecutor(8) as pool:  # hashing and reading release the GIL
            found = pool.map(_short_hash, (name for name, _ in unknown.values()))
            if len(unknown) > MANY_FILES:
                found = progress(found, 'fingerprints of files', len(unknown))
            for (image_id, (name, stamp)), value in zip(unknown.items(), found, strict=True):
                hashes[image_id] = value
                if value:
                    new[name] = [*stamp, value]
        if launcher.is_main():
            # Shards hash at the same time. If the disk cannot be written, the cache is not updated.
            with suppress(OSError), locked(CACHE.with_name('.files.lock'), str(CACHE), BRIEF_PATIENCE):
                write_json(CACHE, {**read_json(CACHE), **new})
    # Equal hashes become one string, so that the bytes of a checkpoint do not depend on the cache.
    return {image_id: sys.intern(hashes[image_id]) for image_id in paths}


def mask_hashes(masks: Mapping[str, Path], values: MaskValues | None) -> dict[str, str]:
    """Return hashes of masks by image id, as `file_hashes` does, and of what the values in them mean."""
    found = file_hashes(masks)
    if not values:
        return found
    meaning = digest({'are_colours': values.are_colours, 'indices': values.indices})[:16]
    return {image_id: sys.intern(f'{value} {meaning}') if value else '' for image_id, value in found.items()}


def _short_hash(name: str) -> str:
    try:
        return file_hash(Path(name))[:16]
    except UserError:
        return ''


def label_hashes(labels: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the image-level labels, (C,) multi-hot by image id, as text: the numbers of the classes, or 0."""
    return {image_id: ' '.join(map(str, np.flatnonzero(label) + 1)) or '0' for image_id, label in labels.items()}
