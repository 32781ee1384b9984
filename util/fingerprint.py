"""Fingerprints: the options and inputs behind an output. Equal fingerprints mean equal results."""

import hashlib
import json
import os
import platform
import subprocess
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from core import UserError
from util import launcher
from util.files import BRIEF_PATIENCE, locked, write_json
from util.stage import progress

MANY_FILES = 1000  # show progress when hashing more files than this
CACHE = Path('experiments') / 'cache' / 'files.json'
# Options that do not affect the content of an output. Files that they name enter the fingerprint by their content.
IGNORED_OPTIONS = frozenset(
    (
        'data_dir dataset device domain micro_batches num_workers overwrite pred_dir print_ratio repair save_edges '
        'save_interval shard source sync_bn weights'
    ).split()
)
# Values of an option that had another meaning in earlier versions, and how fingerprints record them.
RENAMED = {'augment': {'randaugment': 'randaugment_fixmatch', 'randaugment_torchvision': 'randaugment'}}
PACKAGES = ('torch', 'torchvision', 'numpy', 'opencv-python', 'pillow', 'pydensecrf2')


def fingerprint(
    args: Namespace, ignored: Collection[str] = (), added: Mapping[str, object] | None = None, **inputs
) -> dict:
    """Return the options that affect the result, and the fingerprints of the inputs.

    `added` are options that came after there were outputs, and the values that these were made with. An option with
    this value is left out, so that the fingerprints of earlier outputs stay valid.
    """
    options = {name: value for name, value in vars(args).items() if name not in IGNORED_OPTIONS and name not in ignored}
    options = {name: value for name, value in options.items() if name not in (added or {}) or value != added[name]}
    for name, recorded in RENAMED.items():
        if name in options:
            options[name] = ','.join(recorded.get(value, value) for value in options[name].split(','))
    return json.loads(json.dumps({**options, **inputs}))


def check_fingerprint(what: Path | str, old: dict, new: dict) -> None:
    """Raise UserError listing each difference between the settings of an existing output and the requested ones."""
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if names:
        shown = '; '.join(f'{name}: {_short(old.get(name))}, requested {_short(new.get(name))}' for name in names)
        raise UserError(
            f'{what} exists with different settings ({shown}): pass --overwrite to regenerate it, or another name'
        )


def check_contents(what: Path | str, old: dict, new: dict, file_name: Callable[[str], str]) -> None:
    """Raise UserError naming what changed since an output was written: hashes by part ('labels') and image id."""
    changes = list_changes(old, new, file_name)
    for part in [part for part in ('images', 'masks') if part in old]:
        before, now = old[part].keys(), new.get(part, {}).keys()
        for verb, ids in (('added', now - before), ('removed', before - now)):
            if ids:
                changes.append(f'{_count(ids) if part == "images" else f"masks of {_count(ids)}"} {verb} ({min(ids)})')
    if changes:
        raise UserError(f'{what}: {"; ".join(changes)}: pass --overwrite to regenerate it, or another name')


def list_changes(old: dict, new: dict, file_name: Callable[[str], str]) -> list[str]:
    """Return texts such as 'labels of 1 image changed (cat.jpg)'. What either side does not know is not a change."""
    texts = []
    for part in new:
        ids = changed_ids(old.get(part, {}), new[part])
        if ids:
            shown = ', '.join(file_name(image_id) for image_id in ids[:3]) + (', ...' if len(ids) > 3 else '')
            texts.append(f'{_count(ids) if part == "images" else f"{part} of {_count(ids)}"} changed ({shown})')
    return texts


def _count(ids: Collection[str]) -> str:
    return f'{len(ids)} image{"s" if len(ids) > 1 else ""}'


def changed_ids(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the ids whose hashes differ, where both are known."""
    return [image_id for image_id, value in new.items() if value and old.get(image_id) not in (None, '', value)]


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 40 else f'{text[:12]}...'


def digest(content: dict) -> str:
    """Return the sha256 of a fingerprint: what identifies an output folder for the stages that read it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def list_hash(ids: Sequence[str]) -> str:
    """Return the sha256 of a list of ids."""
    return hashlib.sha256('\n'.join(ids).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of a file. Raises UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
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
    cache, new = _read_cache(), {}
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
        if isinstance(known, list) and known[:-1] == stamp:
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
            with locked(CACHE.with_name('.files.lock'), str(CACHE), BRIEF_PATIENCE):  # shards hash at the same time
                write_json(CACHE, {**_read_cache(), **new})
    return {image_id: hashes[image_id] for image_id in paths}


def _read_cache() -> dict[str, list]:
    try:
        cache = json.loads(CACHE.read_text())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _short_hash(name: str) -> str:
    try:
        return file_hash(Path(name))[:16]
    except UserError:
        return ''


def label_hashes(labels: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the image-level labels, (C,) multi-hot by image id, as text: the numbers of the classes, or 0."""
    return {image_id: ' '.join(map(str, np.flatnonzero(label) + 1)) or '0' for image_id, label in labels.items()}


def weights_hash(source: str) -> str:
    """Return what identifies --weights: 'none', 'imagenet', or the sha256 of the file."""
    return source if source in ('none', 'imagenet') else file_hash(Path(source))


def versions() -> dict[str, str]:
    """Return the commit of this code ('unknown' outside a git clone) and the versions of Python and main packages."""
    git = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty']
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # git is not installed
        commit = ''
    found = {'code': commit or 'unknown', 'python': platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found
