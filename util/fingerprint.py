"""Fingerprints: the options and inputs behind an output. Equal fingerprints mean equal results."""

import hashlib
import json
import platform
import subprocess
from argparse import Namespace
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core import UserError

# Options that do not affect the content of an output. Files that they name enter the fingerprint by their content.
IGNORED_OPTIONS = frozenset(
    'data_dir dataset device domain num_workers overwrite pred_dir print_ratio repair save_interval weights'.split()
)
PACKAGES = ('torch', 'torchvision', 'numpy', 'opencv-python', 'pillow', 'pydensecrf2')


def fingerprint(args: Namespace, ignored: Collection[str] = (), **inputs) -> dict:
    """Return the options that affect the result, and the fingerprints of the inputs."""
    options = {name: value for name, value in vars(args).items() if name not in IGNORED_OPTIONS and name not in ignored}
    return json.loads(json.dumps({**options, **inputs}))


def check_fingerprint(what: Path | str, old: dict, new: dict) -> None:
    """Raise UserError listing each difference between the settings of an existing output and the requested ones."""
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if names:
        shown = '; '.join(f'{name}: {_short(old.get(name))}, requested {_short(new.get(name))}' for name in names)
        raise UserError(
            f'{what} exists with different settings ({shown}): pass --overwrite to regenerate it, or another name'
        )


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
