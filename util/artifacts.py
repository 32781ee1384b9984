"""Output folders under experiments/predictions/: a table of what each stage writes, a class that reads and writes it.

To add an output format, add a row here. No torch: stages 3, 6 and 9 import this module and fork.
"""

import io
import json
import sys
import time
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from core import UserError
from util import shards
from util.files import check_name, write_bytes, write_json
from util.fingerprint import (
    changed_ids,
    check_fingerprint,
    digest,
    file_hashes,
    fingerprint,
    label_hashes,
    list_changes,
    versions,
)
from util.parallel import parallel_map

EXPERIMENTS = Path('experiments')
PREDICTIONS = EXPERIMENTS / 'predictions'


class Format(NamedTuple):
    """A kind of output: {folder}/{image_id}{suffix}, an .npz of `keys` and maps, or a .png label map if maps is ()."""

    title: str
    script: str  # the stage that writes it
    folder: str  # template of the folder's name: options of the stage, and {split}
    maps: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()  # options of the stage that do not affect this output
    added: tuple[tuple[str, object], ...] = ()  # later options, with the values of earlier folders (see `fingerprint`)

    @property
    def ending(self) -> str:
        """What the last part of the folder's name begins with, such as 'crf='."""
        return self.folder.rsplit('@', 1)[-1].split('{')[0]

    @property
    def suffix(self) -> str:
        return '.npz' if self.maps else '.png'


CAM = Format('CAM', 'inference_classification.py', '{tag}@{split}@scale={scales}', ('cam', 'hr_cam'))
AFFINITY_LABEL = Format(
    'affinity label',
    'make_affinity_labels.py',
    '{experiment_name}@aff_fg={fg_threshold:.2f}_bg={bg_threshold:.2f}',
    added=(('crf_iteration', 10), ('gt_prob', 0.7), ('crf_gaussian', '3,3'), ('crf_bilateral', '50,5,10')),
)
RANDOM_WALK = Format(
    'random-walk CAM',
    'inference_rw.py',
    '{model_name}@{split}@beta={beta:g}@exp_times={exp_times}@rw',
    ('rw',),
    added=(('rw_normalization', 'joint'),),
)
EDGE = Format(
    'edge map',
    'inference_rw.py',
    '{model_name}@{split}@edge',
    ('edge',),
    unused=('cam_dir', 'beta', 'exp_times', 'rw_normalization'),
)
PSEUDO_LABEL = Format(
    'pseudo-label',
    'make_pseudo_labels.py',
    '{experiment_name}@crf={crf_iteration}',
    added=(('gt_prob', 0.7), ('crf_gaussian', '3,3'), ('crf_bilateral', '50,5,10')),
)
PREDICTION = Format(
    'prediction',
    'inference_segmentation.py',
    '{tag}@{split}@scale={scales}@iteration={iteration}',
    added=(('crf_gaussian', '3,3'), ('crf_bilateral', '80,13,10')),
)
FORMATS = (CAM, AFFINITY_LABEL, RANDOM_WALK, EDGE, PSEUDO_LABEL, PREDICTION)

# Options of the network stages that change only the rounding of their outputs (docs/method.md, "CAMs").
ROUNDING_OPTIONS = ('batch_size',)
# Options that came later and are not part of a folder's name, with the values of earlier folders (see `fingerprint`).
ADDED = {'compile': False}

# Raised by numpy and zipfile for damaged or foreign files; NotImplementedError is a RuntimeError.
NPZ_ERRORS = (
    OSError,
    MemoryError,
    ValueError,
    KeyError,
    EOFError,
    AttributeError,
    RuntimeError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
)
REPAIR = '; run its stage with --repair to regenerate it'


class LabelMaps(Protocol):
    """What this module asks of a data set (core.data.dataset.Dataset)."""

    class_names: tuple[str, ...]
    num_classes: int

    def batches(self, ids: Sequence[str], batch_size: int) -> list[list[str]]: ...

    def image_path(self, image_id: str) -> Path: ...

    def read_labels(self, image_id: str) -> np.ndarray: ...

    def read_label_map(self, path: Path, size: tuple[int, int] | None = None) -> np.ndarray: ...

    def encode_label_map(self, label: np.ndarray) -> bytes: ...


class Folder:
    """An output folder of a stage: reads and writes the file of an image id.

    `missing` holds the ids that a folder opened for writing still lacks.
    """

    def __init__(self, kind: Format, path: Path, dataset: LabelMaps, ids: Sequence[str]):
        self.kind, self.path, self.dataset, self.ids = kind, path, dataset, ids
        self.missing: set[str] = set()

    def __getstate__(self) -> dict:
        """Leave out the lists of ids: worker processes read and write single files."""
        return {**self.__dict__, 'ids': (), 'missing': set()}

    def file(self, image_id: str) -> Path:
        return self.path / f'{image_id}{self.kind.suffix}'

    @property
    def fingerprint(self) -> str:
        """Hash of the options and inputs behind the folder, whose inputs are hashes in turn."""
        return digest(read_args(self.path).get('fingerprint', {}))

    def digests(self, ids: Sequence[str]) -> dict[str, str]:
        """Return a hash of what each image's file was made from, '' where inputs.json does not say."""
        parts = _read_inputs(self.path)
        made_from = ([part.get(image_id, '') for part in parts.values()] for image_id in ids)
        return {i: digest(hashes)[:16] if any(hashes) else '' for i, hashes in zip(ids, made_from, strict=True)}

    def check_inputs(self, images: dict[str, str]) -> None:
        """Raise UserError if an image (hashes by id), or its label if it was an input, has changed since."""
        old = _read_inputs(self.path)
        changes = list_changes(old, {'images': images}, self.image_name)
        if not changes and 'labels' in old and self.kind == CAM:
            labels = label_hashes({image_id: self.dataset.read_labels(image_id) for image_id in images})
            changes = list_changes(old, {'labels': labels}, self.image_name)
        if changes:
            raise UserError(f'{self.path}: {"; ".join(changes)}; run {self.kind.script} again')

    def image_name(self, image_id: str) -> str:
        return self.dataset.image_path(image_id).name

    def read_label(self, image_id: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return a label map (h, w) uint8 of the size (h, w). Raises UserError naming the file."""
        return self.dataset.read_label_map(self.file(image_id), size)

    def read_maps(self, image_id: str, name: str, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return keys (K+1,) and the maps (K, h, w) float32 of a name of the size (h, w); see `read_maps` below."""
        return read_maps(self.file(image_id), name, self.dataset.num_classes, size)

    def read_edge(self, image_id: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return an edge map (h, w) float32 in [0, 1] of the size (h, w); see `read_edge` below."""
        return read_edge(self.file(image_id), size)

    def write_edge(self, image_id: str, edge: np.ndarray) -> None:
        """Write an edge map (h, w) as float16."""
        write_npz(self.file(image_id), edge=edge.astype(np.float16))

    def write_label(self, image_id: str, label: np.ndarray) -> None:
        """Write a label map (h, w) as a palette PNG."""
        write_bytes(self.file(image_id), self.dataset.encode_label_map(label))

    def write_maps(self, image_id: str, keys: np.ndarray, *maps: np.ndarray) -> None:
        """Write keys (K+1,) and the maps of this format, each (K, h, w), as float16."""
        arrays = {name: array.astype(np.float16) for name, array in zip(self.kind.maps, maps, strict=True)}
        write_npz(self.file(image_id), keys=keys, **arrays)

    def write_missing_labels(self, make: Callable[..., np.ndarray], num_workers: int, **inputs) -> None:
        """Write make(image_id, **inputs) for each missing id, from num_workers processes."""
        todo = [image_id for image_id in self.ids if image_id in self.missing]
        write = partial(self._write_made, partial(make, **inputs))
        for _ in parallel_map(write, todo, num_workers, f'{self.kind.title}s'):
            pass

    def _write_made(self, make: Callable[[str], np.ndarray], image_id: str) -> None:
        self.write_label(image_id, make(image_id))

    def check(self, image_id: str) -> None:
        """Read a file. Raises UserError if it is damaged or not of this format."""
        if not self.kind.maps:
            self.read_label(image_id)
        elif self.kind == EDGE:
            self.read_edge(image_id)
        else:
            for name in self.kind.maps:
                self.read_maps(image_id, name)

    def summary(self) -> str:
        return f'{len(self.ids)} {self.kind.title}s in {self.path}, {len(self.missing)} of them new'


def folder_name(kind: Format, args: Namespace) -> str:
    """Return the name of the folder that a stage writes; train_aug shares the folder of train.

    Options that came later are named before the last part, if they differ from what earlier folders were made with.
    """
    options = vars(args)
    domain = options.get('domain')
    name = kind.folder.format(**options, split='train' if domain == 'train_aug' else domain)
    changed = [f'@{key}={options[key]}' for key, value in kind.added if options.get(key, value) != value]
    start, at, end = name.rpartition('@')
    return ''.join([start, *changed, at, end])


def format_of(name: str) -> Format:
    """Return the format that a folder's name announces in its last part; CAM if it announces nothing else."""
    last = name.rsplit('@', 1)[-1]
    return next((kind for kind in FORMATS if last.startswith(kind.ending)), CAM)


def open_folder(
    kind: Format, name: str, flag: str, dataset: LabelMaps, ids: Sequence[str], parent: str | Path = PREDICTIONS
) -> Folder:
    """Open the output of an earlier stage for reading.

    Raises UserError naming the flag, the file and the script to run if the folder or the file of an id is missing, or
    if its first file is damaged or of another format.
    """
    folder = Folder(kind, Path(parent) / name, dataset, ids)
    check_name(folder.path, flag)
    if not folder.path.is_dir():
        raise UserError(f'{flag} {name}: {folder.path} not found; run {kind.script} first')
    missing = [image_id for image_id in ids if not folder.file(image_id).is_file()]
    if missing:
        count = f'{len(missing)} of {len(ids)} are missing'
        path = folder.file(missing[0])
        raise UserError(f'{path} not found ({count}){remedy(kind, path)}')
    folder.check(ids[0])
    return folder


def remedy(kind: Format, path: Path) -> str:
    """Return the end of the error line about a missing file: import the CAMs of the authors' code, or run the stage."""
    published = path.with_suffix('.npy')
    if published.is_file():
        return f"; {published} is of the authors' code: import its folder with python3 -m tools.import_published"
    return f'; run {kind.script} first'


@contextmanager
def create_folder(
    kind: Format, args: Namespace, dataset: LabelMaps, ids: Sequence[str], **inputs: str | dict[str, str] | Folder
) -> Iterator[Folder]:
    """Create or resume the output folder of a stage, and hold a lock inside: of the folder, or of a share of it.

    With --shard or under torchrun, the folder that is returned has the ids of this process alone (util/shards.py), and
    other processes of the same command write theirs at the same time.

    `inputs` are hashes, dicts of a hash by image id, and folders of earlier stages; the images are always an input.
    args.json in the folder holds the fingerprint (options, classes and inputs), all options, the versions and the
    seconds of the commands that wrote files; inputs.json holds the hashes by image id. The same command resumes where
    it was stopped, and regenerates the files of images whose inputs have changed. Other settings raise UserError if
    there are outputs, unless --overwrite removes them first. --repair reads every existing file and regenerates those
    that are damaged. Prints a summary at the end.
    """
    begun = time.monotonic()
    share = shards.divide(args, dataset, ids)
    folder = Folder(kind, PREDICTIONS / folder_name(kind, args), dataset, share.ids)
    check_name(folder.path, 'the name of the output folder')
    inputs, hashes = identify_inputs(dataset, share.ids, {name: share.pick(value) for name, value in inputs.items()})
    ignored, added = (*ROUNDING_OPTIONS, *kind.unused), {**dict(kind.added), **ADDED}
    settings = fingerprint(args, ignored, added, classes=dataset.class_names, **inputs)
    with share.claimed(folder.path, settings) as records_locked:
        with records_locked():
            if args.overwrite:
                records = [folder.path / name for name in ('args.json', 'inputs.json')]
                for path in [*folder.path.glob(f'*{kind.suffix}'), *records]:
                    path.unlink(missing_ok=True)
            old = _read_settings(folder, settings)
            _remove_outdated(folder, hashes, ids)
        folder.missing = {image_id for image_id in folder.ids if not folder.file(image_id).is_file()}
        if args.repair:
            existing = set(folder.ids) - folder.missing
            folder.missing |= {image_id for image_id in sorted(existing) if _is_damaged(folder, image_id)}
        if folder.missing:
            with records_locked():  # another share may have written them meanwhile
                _record(folder, args, settings, _read_settings(folder, settings) or old)
        try:
            yield folder
        finally:
            with records_locked():
                _add_seconds(folder, time.monotonic() - begun)
    print(f'{share.label}{folder.summary()}')


def identify_inputs(
    dataset: LabelMaps, ids: Sequence[str], inputs: dict[str, str | dict[str, str] | Folder]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return what identifies the inputs of an output: hashes by name, and hashes by name and image id.

    An input is a hash, a dict of a hash by image id, or the folder of an earlier stage; the images are always one.
    Raises UserError if an image or its label has changed since the file of an earlier stage was made.
    """
    single = {name: value for name, value in inputs.items() if isinstance(value, str)}
    by_image = {'images': file_hashes({image_id: dataset.image_path(image_id) for image_id in ids})}
    for name, value in inputs.items():
        if isinstance(value, Folder):
            value.check_inputs(by_image['images'])
            single[name], by_image[name] = value.fingerprint, value.digests(ids)
        elif isinstance(value, dict):
            by_image[name] = value
    return single, by_image


def _read_settings(folder: Folder, settings: dict) -> dict:
    """Return args.json if there are outputs, {} if there are none, which protects nothing.

    Raises UserError if it is not valid or of other settings than the requested ones.
    """
    if not any(folder.path.glob(f'*{folder.kind.suffix}')):
        return {}
    old = read_args(folder.path)
    if not {'fingerprint', 'options', 'versions', 'history'} <= old.keys():
        raise UserError(
            f'{folder.path} contains files but no valid args.json, so their settings are unknown: pass --overwrite'
        )
    check_fingerprint(folder.path, {**ADDED, **old['fingerprint']}, {**ADDED, **settings})
    return old


def _record(folder: Folder, args: Namespace, settings: dict, old: dict) -> None:
    """Write args.json; the options and versions of earlier commands become its history."""
    options = {name: value for name, value in vars(args).items() if name != 'shard'}
    record = {'fingerprint': settings, 'options': options, 'versions': versions(), 'history': [], 'seconds': 0}
    if old:
        before, now = ({name: content[name] for name in ('options', 'versions')} for content in (old, record))
        record['history'] = [*old['history'], before] if before != now else old['history']
        record['seconds'] = old.get('seconds')  # unknown in folders of earlier versions
    if record != old:
        write_json(folder.path / 'args.json', record)


def _add_seconds(folder: Folder, seconds: float) -> None:
    """Add the duration of a command to args.json if it has written a file."""
    record = read_args(folder.path)
    if record.get('seconds') is not None and any(folder.file(image_id).is_file() for image_id in folder.missing):
        write_json(folder.path / 'args.json', {**record, 'seconds': round(record['seconds'] + seconds, 2)})


def _remove_outdated(folder: Folder, hashes: dict[str, dict[str, str]], ids: Sequence[str]) -> None:
    """Remove the files of images whose inputs have changed, then record the inputs by part and image id.

    Those of a list are in its order, `ids`, whichever of its shares comes first.
    """
    path, old = folder.path / 'inputs.json', _read_inputs(folder.path)
    for line in list_changes(old, hashes, folder.image_name):
        print(f'{folder.path}: {line}: regenerating', file=sys.stderr)
    for part, new in hashes.items():
        for image_id in changed_ids(old.get(part, {}), new):
            folder.file(image_id).unlink(missing_ok=True)
    known = {part: {image_id: value for image_id, value in new.items() if value} for part, new in hashes.items()}
    order = {image_id: position for position, image_id in enumerate(ids)}
    record = {
        part: dict(sorted({**old.get(part, {}), **new}.items(), key=lambda item: order.get(item[0], -1)))
        for part, new in known.items()
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


def read_args(folder: Path) -> dict:
    """Return the args.json of an output folder, {} if there is none or it is damaged."""
    return _read_json(folder / 'args.json')


def _read_inputs(folder: Path) -> dict[str, dict[str, str]]:
    """Return the inputs.json of an output folder: hashes by part and image id."""
    return {part: hashes for part, hashes in _read_json(folder / 'inputs.json').items() if isinstance(hashes, dict)}


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def model_path(tag: str, suffix: str = '') -> Path:
    """Return experiments/models/{tag}.pth, {tag}.last.pth or {tag}.best.pth."""
    return EXPERIMENTS / 'models' / f'{tag}{suffix}.pth'


def results_path(name: str, extension: str) -> Path:
    """Return the path of a file of evaluate.py."""
    return EXPERIMENTS / 'results' / f'{name}.{extension}'


def maps_inside(path: Path) -> list[str]:
    """Return the names of the arrays of an npz file, [] if it is not one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except NPZ_ERRORS:
        return []


def detect_mode(folder: Path, image_id: str, kind: Format) -> str:
    """Return what a folder contains, from the file of an id: 'npy' (CAMs), 'rw' (random-walk CAMs) or 'png'.

    Raises UserError if it is none of them, or edge maps; `kind` is the format that its name announces.
    """
    path = folder / f'{image_id}.npz'
    if path.is_file():
        names = maps_inside(path)
        if 'edge' in names:
            raise UserError(f'{path}: an edge map has no classes to score; train_affinitynet.py logs scores of edges')
        if not {'rw', 'hr_cam'} & {*names}:
            raise UserError(f'{path}: contains neither "rw" nor "hr_cam"{REPAIR}')
        return 'rw' if 'rw' in names else 'npy'
    if path.with_name(f'{image_id}.png').is_file():
        return 'png'
    raise UserError(f'{folder} contains neither {image_id}.npz nor {image_id}.png{remedy(kind, path)}')


def read_edge(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the edge map (h, w) float32 of a file. Raises UserError like `read_maps`."""
    (edge,) = read_arrays(path, 'edge')
    if edge.ndim != 2 or edge.dtype.kind != 'f':
        raise UserError(f'{path}: "edge" {edge.dtype}{edge.shape} is not an edge map{REPAIR}')
    return _checked(path, 'edge', edge, size)


def read_maps(
    path: Path, name: str, num_classes: int, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return keys (K+1,) and the maps `name` (K, h, w) float32 of a file of CAMs or random-walk CAMs.

    Raises UserError naming the file if it is missing or damaged, its maps and keys disagree, a class is above
    num_classes, a value is outside [0, 1], or the maps are not of the size (h, w).
    """
    keys, maps = read_arrays(path, 'keys', name)
    if (
        keys.ndim != 1
        or maps.ndim != 3
        or len(keys) != len(maps) + 1
        or keys.dtype.kind not in 'iu'
        or maps.dtype.kind != 'f'
    ):
        raise UserError(
            f'{path}: "{name}" {maps.dtype}{maps.shape} does not match "keys" {keys.dtype}{keys.shape}{REPAIR}'
        )
    if keys[0] != 0 or (keys[1:] <= keys[:-1]).any() or keys[-1] > num_classes:
        raise UserError(
            f'{path}: keys {keys.tolist()} are not 0 followed by increasing classes up to {num_classes}: '
            'it belongs to another data set: check --dataset'
        )
    return keys, _checked(path, name, maps, size)


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Return arrays of an npz file. Raises UserError naming the file if it is missing, damaged or lacks one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except NPZ_ERRORS as error:
        expected = ' and '.join(f'"{name}"' for name in names)
        raise UserError(
            f'{path}: not an npz file with {expected}, or damaged ({type(error).__name__}){REPAIR}'
        ) from None


def _checked(path: Path, name: str, maps: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Return maps (..., h, w) as float32. Raises UserError if they are not in [0, 1] or not of the size (h, w)."""
    if size is not None and maps.shape[-2:] != tuple(size):
        h, w = maps.shape[-2:]
        raise UserError(f'{path}: "{name}" is {w}x{h}, the image is {size[1]}x{size[0]}')
    maps = maps.astype(np.float32)
    lowest, highest = maps.min(initial=0), maps.max(initial=0)  # min and max propagate NaN
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise UserError(f'{path}: "{name}" contains non-finite values{REPAIR}')
    if lowest < 0 or highest > 1.001:
        raise UserError(f'{path}: "{name}" contains values outside 0 to 1{REPAIR}')
    return maps


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as a compressed npz file. Raises UserError if a number is not finite."""
    for name, array in arrays.items():
        if array.dtype.kind == 'f' and not np.isfinite(array).all():
            raise UserError(f'{path}: "{name}" would not be finite: the model has diverged, train it again')
    # Like np.savez_compressed, but at zlib level 1 (a quarter of the time for a tenth more bytes) and without dates:
    # equal arrays give equal bytes.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    write_bytes(path, buffer.getvalue())
