"""Fingerprints: the options and inputs behind an output, as folders record them. Equal ones mean equal results."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from core import UserError
from core.data.files import Some, fits, load_json
from util.store.files import check_not_special
from util.store.formats import run_path

# The types of the entries of args.json and of the record of a run. All other options are shown and compared only.
TEXT = (str, None)
INPUTS = Some(dict.fromkeys(('model', 'weights_file', 'maps', 'cams', 'labels'), TEXT))
NAMES = ('dataset', 'data_dir', 'window', 'plane', 'tag', 'model_name', 'weights')
NAMES += ('experiment_name', 'cam_dir', 'label_name', 'pred_dir')
MADE_FROM = {'fingerprint': INPUTS, 'options': Some(dict.fromkeys(NAMES, TEXT)), 'versions': {str: str}}
ARGS = {'format': str, **MADE_FROM, 'history': list, 'seconds': float}
HASHES = {str: {str: str}}  # by input and image id
RUN = {'network': str, **MADE_FROM, 'seconds': float, 'curves': {str: [[float]]}, 'inputs': HASHES}
RUN |= {'models': {str: str}}
# Inputs that are recorded as one hash, in words.
OF_HASHES = {'images': 'the list of images', 'maps': 'the folder of --experiment_name', 'model': 'the model'}
OF_HASHES |= {'weights_file': 'the file of --weights', 'cams': 'the folder of --cam_dir', 'files': 'the .npy files'}
OF_HASHES |= {'labels': 'the folder of --label_name'}
GROUPS = 'parts of a batch that BatchNorm normalises (--bn_replicas, or processes without --sync_bn)'
PACKAGES = ('torch', 'torchvision', 'numpy', 'opencv-python', 'pillow', 'pydensecrf2', 'timm')


class Record(NamedTuple):
    """The options of a command, what each option affects (util/flags.py), and its default."""

    options: dict[str, object]
    affects: dict[str, str]
    defaults: dict[str, object]

    def settings(self, *outputs: str) -> dict:
        """Return the options that affect the result or one of these outputs, as JSON values."""
        wanted = {'result', *outputs}
        return _as_json({name: value for name, value in self.options.items() if self.affects.get(name) in wanted})

    def check_unused(self, names: Collection[str], why: str) -> None:
        """Raise UserError naming the first of these options that is not at its default, because it has no effect."""
        for name in names:
            if self.options[name] != self.defaults[name]:
                raise UserError(f'{self.options[name]}: has no effect: {why}', option=name)

    def changed(self, **options: object) -> 'Record':
        """Return the record with other values of some options."""
        return self._replace(options={**self.options, **options})


def fingerprint(record: Record, *outputs: str, **inputs) -> dict:
    """Return the settings of a record and the identity of its inputs."""
    return {**record.settings(*outputs), **_as_json(inputs)}


def _as_json(content: dict) -> dict:
    return json.loads(json.dumps(content))


def check_fingerprint(
    what: Path | str, old: dict, new: dict, defaults: Mapping[str, object], remedy: str = 'or another name'
) -> None:
    """Raise UserError listing each difference between the settings of an existing output and the requested ones.

    An option that the older record lacks has its default, because the flag is newer. `remedy` is the alternative to
    --overwrite.
    """
    old = {**{name: value for name, value in _as_json(dict(defaults)).items() if name in new}, **old}
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if names:
        shown = '; '.join(_difference(name, old.get(name), new.get(name)) for name in names)
        raise UserError(f'{what} exists with different settings ({shown}): pass --overwrite to regenerate it, {remedy}')


def check_contents(what: Path | str, old: dict, new: dict, file_name: Callable[[str], str]) -> None:
    """Raise UserError naming what changed since an output was written: hashes by input ('labels') and image id."""
    changes = list_changes(old, new, file_name)
    for name in [name for name in ('images', 'masks', 'scored masks', 'validation labels') if name in old]:
        before, now = old[name].keys(), new.get(name, {}).keys()
        for verb, ids in (('added', now - before), ('removed', before - now)):
            if ids:
                changes.append(f'{_count(name, ids)} {verb} ({min(ids)})')
    if changes:
        raise UserError(f'{what}: {"; ".join(changes)}: pass --overwrite to regenerate it, or another name')


def without(inputs: dict, kind: str) -> dict:
    """Return inputs by name without a kind of them: 'scored ' is the images and masks that epochs were scored on."""
    return {name: hashes for name, hashes in inputs.items() if not name.startswith(kind)}


def list_changes(old: dict, new: dict, file_name: Callable[[str], str]) -> list[str]:
    """Return texts such as 'labels of 1 image changed (cat.jpg)'. Hashes that one side lacks are not a change."""
    texts = []
    for name in new:
        ids = changed_ids(old.get(name, {}), new[name])
        if ids:
            shown = ', '.join(file_name(image_id) for image_id in ids[:3]) + (', ...' if len(ids) > 3 else '')
            texts.append(f'{_count(name, ids)} changed ({shown})')
    return texts


def _count(name: str, ids: Collection[str]) -> str:
    """Return '3 images', or 'labels of 3 images'."""
    count = f'{len(ids)} image{"s" if len(ids) > 1 else ""}'
    return count if name == 'images' else f'{name} of {count}'


def changed_ids(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the ids whose hashes differ, where both are known."""
    return [image_id for image_id, value in new.items() if value and old.get(image_id) not in (None, '', value)]


def _difference(name: str, old: object, new: object) -> str:
    """Return a difference in words: hashes would not say what has changed."""
    if all(isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value) for value in (old, new)):
        return f'{OF_HASHES.get(name, name)} changed'
    old, new = str(old), str(new)
    same = len(os.path.commonprefix((old, new)))
    if same > 12 and max(len(old), len(new)) > 40:
        old, new = (f'...{text[same - 8 :]}' for text in (old, new))
    old, new = (text if len(text) <= 40 else f'{text[:12]}...' for text in (old, new))
    shown = GROUPS if name == 'norm_groups' else name
    return f'{shown}: {old}, requested {new}'


def read_args(folder: Path) -> dict:
    """Return the args.json of an output folder, {} if there is none or it is damaged."""
    return read_json(folder / 'args.json', **ARGS)


def read_inputs(folder: Path) -> dict[str, dict[str, str]]:
    """Return the inputs.json of an output folder: hashes by name and image id."""
    content = read_json(folder / 'inputs.json')
    return content if fits(content, HASHES) else {}


def read_run(tag: str) -> dict:
    """Return the record of a training run, {} if there is none or it is damaged."""
    return read_json(run_path(tag), **RUN)


def read_json(path: Path, **expected: object) -> dict:
    """Return the object in a JSON file; {} if there is none, it is damaged, or an entry is not of its expected type.

    The same file is parsed only once: do not change what it returns. Raises UserError for a FIFO, a device, or
    a file that may not be read.
    """
    check_not_special(path)
    try:
        status = path.stat()
        content = _parse(os.path.abspath(path), (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except PermissionError as error:  # what it says is unknown, not nothing
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    except (OSError, ValueError):
        return {}
    return content if fits(content, Some(expected)) else {}


@lru_cache(64)
def _parse(path: str, stamp: tuple) -> object:
    return load_json(Path(path))


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
