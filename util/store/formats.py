"""The kinds of output folders under experiments/predictions/, and the names of files under experiments/.

To add a kind, add a row to FORMATS. A folder is recognised by the title in its args.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

EXPERIMENTS = Path('experiments')
PREDICTIONS = EXPERIMENTS / 'predictions'


class Format(NamedTuple):
    """A kind of output: {folder}/{image_id}{suffix}, an .npz of `maps`, or a .png label map if there are none."""

    title: str
    script: str  # the stage that writes it
    folder: str  # template of the folder's name: options of the stage, {split} and {_bg} (`folder_name`)
    maps: tuple[str, ...] = ()
    by_class: bool = True  # maps are (K, h, w) of the classes in `keys`; otherwise (h, w)
    optional: tuple[str, ...] = ()  # options in the name, before its last part, unless at their defaults
    beside: tuple[str, ...] = ()  # endings of further files of an image, written before its main file

    @property
    def suffix(self) -> str:
        return '.npz' if self.maps else '.png'

    @property
    def endings(self) -> tuple[str, ...]:
        return self.suffix, *self.beside


CAM = Format(
    'CAM', 'inference_classification.py', '{tag}@{split}@scale={scales}', ('cam', 'hr_cam'), optional=('cam', 'tile')
)
AFFINITY_LABEL = Format(
    'affinity label',
    'make_affinity_labels.py',
    '{experiment_name}@aff_fg={fg_threshold:.2f}{_bg}',
    optional=('crf_iteration', 'gt_prob', 'crf_gaussian', 'crf_bilateral', 'tile'),
)
RANDOM_WALK = Format(
    'random-walk CAM',
    'inference_rw.py',
    '{model_name}@{split}@beta={beta:g}@exp_times={exp_times}@rw',
    maps=('rw',),
    optional=('rw_normalization', 'tile', 'variant'),
)
EDGE = Format(
    'edge map', 'inference_rw.py', '{model_name}@{split}@edge', maps=('edge',), by_class=False, optional=('tile',)
)
PSEUDO_LABEL = Format(
    'pseudo-label',
    'make_pseudo_labels.py',
    '{experiment_name}@crf={crf_iteration}',
    optional=('gt_prob', 'crf_gaussian', 'crf_bilateral', 'tile'),
)
PREDICTION = Format(
    'prediction',
    'inference_segmentation.py',
    '{tag}@{split}@scale={scales}@iteration={iteration}',
    optional=('crf_gaussian', 'crf_bilateral', 'tile'),
)
PREDICTED = Format('predicted mask', 'tools.predict', '', beside=('.npz', '_overlay.png'))
FORMATS = {kind.title: kind for kind in (CAM, AFFINITY_LABEL, RANDOM_WALK, EDGE, PSEUDO_LABEL, PREDICTION)}
RECORDED = {**FORMATS, PREDICTED.title: PREDICTED}  # also masks of tools.predict, which no stage reads


def folder_name(kind: Format, options: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """Return the name of the folder that a stage writes; train_aug shares the folder of train."""
    domain, bg = options.get('domain'), options.get('bg_threshold')
    derived = {'split': 'train' if domain == 'train_aug' else domain, '_bg': '' if bg is None else f'_bg={bg:.2f}'}
    name = kind.folder.format(**options, **derived)
    changed = [
        f'@{key}={options[key]}' for key in kind.optional if key in options and options[key] != defaults.get(key)
    ]
    start, at, end = name.rpartition('@')
    return ''.join([start, *changed, at, end])


def model_path(tag: str, suffix: str = '') -> Path:
    """Return experiments/models/{tag}.pth, {tag}.last.pth or {tag}.best.pth."""
    return EXPERIMENTS / 'models' / f'{tag}{suffix}.pth'


def run_path(tag: str) -> Path:
    """Return the record of a training run."""
    return EXPERIMENTS / 'data' / f'{tag}.json'


def result_name(folder: str, domain: str, crf_iteration: int = 0) -> str:
    """Return the name under which evaluate.py writes the result of an output folder."""
    return f'{folder}@dcrf={crf_iteration}@{domain}' if crf_iteration else f'{folder}@{domain}'


def result_path(name: str, extension: str = 'json') -> Path:
    """Return the path of a file of evaluate.py."""
    return EXPERIMENTS / 'results' / f'{name}.{extension}'
