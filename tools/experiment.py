"""Where things lie under experiments/: every path, and the files that are neither models nor predictions."""

import json
import platform
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tools import UserError
from tools.files import write_bytes

EXPERIMENTS = Path('experiments')
PREDICTIONS = EXPERIMENTS / 'predictions'
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


def output_folder(name: str, args: Namespace) -> Path:
    """experiments/predictions/{name}, made if need be, with args.json: the options and packages behind its files."""
    folder = PREDICTIONS / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'args.json', {'options': vars(args), 'versions': versions()})
    return folder


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
    """The versions of Python and of the main packages."""
    found = {'python': platform.python_version()}
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
