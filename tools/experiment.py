"""Where things lie under experiments/: every path, and the files that are neither models nor predictions."""

import hashlib
import json
import platform
import subprocess
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tools import UserError
from tools.files import remove_leftovers, write_bytes

EXPERIMENTS = Path('experiments')
PREDICTIONS = EXPERIMENTS / 'predictions'
# Options that change how or how fast a result is made, or of which images, but not the result; of files that they name
# the identity is compared.
IMMATERIAL = {
    'data_dir', 'dataset', 'device', 'domain', 'num_workers', 'overwrite', 'pred_dir', 'print_ratio',
    'repair', 'save_interval', 'weights',
}  # fmt: skip
# What was done before there was the option: results from then are as good as those of today.
BEFORE = {'resize': 'pillow'}
PACKAGES = ('torch', 'torchvision', 'numpy', 'opencv-python', 'pillow', 'pydensecrf2')


def model_path(tag: str, suffix: str = '') -> Path:
    """experiments/models/{tag}.pth, {tag}.last.pth or {tag}.best.pth."""
    return EXPERIMENTS / 'models' / f'{tag}{suffix}.pth'


def split_of(domain: str) -> str:
    """train_aug shares the folder of train."""
    return 'train' if domain == 'train_aug' else domain


def cam_name(tag: str, domain: str, scales: str) -> str:
    return f'{tag}@{split_of(domain)}@scale={scales}'


def affinity_label_name(cams: str, fg_threshold: float, bg_threshold: float) -> str:
    return f'{cams}@aff_fg={fg_threshold:.2f}_bg={bg_threshold:.2f}'


def random_walk_name(model: str, domain: str, beta: float, exp_times: int) -> str:
    return f'{model}@{split_of(domain)}@beta={beta:g}@exp_times={exp_times}@rw'


def pseudo_label_name(walked: str, crf_iteration: int) -> str:
    return f'{walked}@crf={crf_iteration}'


def segmentation_name(tag: str, domain: str, scales: str, iteration: int) -> str:
    return f'{tag}@{split_of(domain)}@scale={scales}@iteration={iteration}'


def maker_of(name: str) -> str:
    """The script that makes the predictions folder of a name, by the name's last part."""
    last = name.rsplit('@', 1)[-1]
    makers = {
        'rw': 'inference_rw.py',
        'crf=': 'make_pseudo_labels.py',
        'aff_fg=': 'make_affinity_labels.py',
        'iteration=': 'inference_segmentation.py',
    }
    return next((script for part, script in makers.items() if last.startswith(part)), 'inference_classification.py')


def file_hash(path: Path) -> str:
    """sha256 of a file, what identifies a model. Raises UserError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open('rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    return digest.hexdigest()


def folder_identity(folder: Path) -> str:
    """What identifies an output folder: a hash of the options and inputs behind it, whose inputs are hashes in turn."""
    identity = experiment_options(folder).get('identity')
    return 'unknown' if identity is None else hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def list_hash(ids: Sequence[str]) -> str:
    return hashlib.sha256('\n'.join(ids).encode()).hexdigest()


def identity_of(args: Namespace, **inputs) -> dict:
    """The options that matter and the identities of the inputs; equal means: the same results."""
    options = {name: value for name, value in vars(args).items() if name not in IMMATERIAL}
    return json.loads(json.dumps({**options, **inputs}))


def check_identity(what: Path | str, old: dict, new: dict) -> None:
    """Raise UserError naming each difference between what made `what` and what was asked for now."""
    old = {name: value for name, value in BEFORE.items() if name in new} | old
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if names:
        shown = '; '.join(f'{name}: {_short(old.get(name))} there, {_short(new.get(name))} now' for name in names)
        raise UserError(
            f'{what} was made otherwise ({shown}): pass --overwrite to make it anew, or choose another name'
        )


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 40 else f'{text[:12]}...'


def output_folder(
    name: str, args: Namespace, ids: Sequence[str], suffix: str, check: Callable[[Path], object], **inputs
) -> tuple[Path, list[str]]:
    """experiments/predictions/{name}, made if need be, and which of the ids it still lacks.

    Its args.json holds what is behind the files: options, identities of `inputs`, versions. The same command goes on
    where it was stopped; other options or inputs raise UserError unless --overwrite empties the folder first. With
    --repair every file that is there is read by check(path), and one that fails is made again.
    """
    folder = PREDICTIONS / name
    identity = identity_of(args, **inputs)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    if args.overwrite:
        for path in [*folder.glob(f'*{suffix}'), folder / 'args.json']:
            path.unlink(missing_ok=True)
    if (folder / 'args.json').exists():
        check_identity(folder, experiment_options(folder).get('identity', {}), identity)
    elif any(folder.glob(f'*{suffix}')):
        raise UserError(f'{folder} holds files without args.json, so nobody knows what made them: pass --overwrite')
    else:
        record = {'identity': identity, 'options': vars(args), 'versions': versions()}
        write_json(folder / 'args.json', record)
    todo = [image_id for image_id in ids if not (folder / f'{image_id}{suffix}').is_file()]
    if args.repair:
        there = sorted(set(ids) - set(todo))
        todo += [image_id for image_id in there if _is_damaged(folder / f'{image_id}{suffix}', check)]
    return folder, todo


def _is_damaged(path: Path, check: Callable[[Path], object]) -> bool:
    try:
        check(path)
    except Exception as error:  # InputError of core, UserError of tools: whatever reading the file says
        print(f'made again: {error}')
        return True
    return False


def input_folder(name: str, flag: str, script: str, parent: Path = PREDICTIONS) -> Path:
    """An existing output of another stage. Raises UserError naming the flag and the script that makes it."""
    folder = Path(parent) / name
    if not folder.is_dir():
        raise UserError(f'{flag} {name}: {folder} is not there; {script} makes it')
    return folder


def check_inputs(folder: Path, ids: Sequence[str], suffix: str, script: str) -> None:
    """Raise UserError unless the folder holds a file for every id: a stage starts whole or not at all."""
    missing = [image_id for image_id in ids if not (folder / f'{image_id}{suffix}').is_file()]
    if missing:
        file = folder / f'{missing[0]}{suffix}'
        raise UserError(f'{file} is not there ({len(missing)} of {len(ids)} are missing); {script} makes it')


def versions() -> dict[str, str]:
    """The commit of this code (unknown outside a git clone), the versions of Python and of the main packages."""
    git = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty']
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        commit = ''
    found = {'code': commit or 'unknown', 'python': platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def write_json(path: Path, content: dict) -> None:
    write_bytes(path, json.dumps(content, indent=1).encode())


def experiment_options(folder: Path) -> dict:
    """The args.json of an output folder, {} where there is none."""
    try:
        return json.loads((folder / 'args.json').read_text())
    except (OSError, ValueError):
        return {}


def results_path(name: str, ending: str) -> Path:
    return EXPERIMENTS / 'results' / f'{name}.{ending}'
