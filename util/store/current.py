"""Whether an output is still what its inputs are now, back to images, labels and models. No torch.

A folder records what it was made from in args.json and inputs.json, a model in data/{tag}.json of its run.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from core import UserError
from core.data.dataset import Dataset, open_dataset
from util.store.fingerprints import list_changes, read_args, read_inputs, read_json
from util.store.formats import EXPERIMENTS, FORMATS, PREDICTIONS, model_path, run_path
from util.store.hashes import digest, file_hashes, label_hashes

# The stages that write a folder or a model, in their order.
SCRIPTS = (
    'train_classification_with_puzzle.py',
    'inference_classification.py',
    'make_affinity_labels.py',
    'train_affinitynet.py',
    'inference_rw.py',
    'make_pseudo_labels.py',
    'train_segmentation.py',
    'inference_segmentation.py',
)
TRAINERS = {'Classifier': SCRIPTS[0], 'AffinityNet': SCRIPTS[3]}  # by network; any other is of stage 7
# The option that names a folder which was read, by the name of this input.
FOLDERS = {'maps': 'experiment_name', 'cams': 'cam_dir', 'labels': 'label_name'}


class Output(NamedTuple):
    """A folder or model file, and the record of what it was made from."""

    path: Path
    script: str
    options: dict
    fingerprint: dict
    inputs: dict[str, dict[str, str]]  # hashes by input and image id
    is_folder: bool

    def folders(self) -> dict[str, Path]:
        """Return the folders that it was made from by the name of the input."""
        parent, named = Path(self.options.get('pred_dir') or PREDICTIONS), self.fingerprint.keys() & FOLDERS.keys()
        return {name: parent / self.options[FOLDERS[name]] for name in named if self.options.get(FOLDERS[name])}

    def models(self) -> dict[str, Path]:
        """Return the model file that it was made from, or its --weights, by the name of the input."""
        tag, weights = self.options.get('model_name') or self.options.get('tag'), self.options.get('weights')
        found = {'model': model_path(tag)} if 'model' in self.fingerprint and tag else {}
        known = self.fingerprint.get('weights_file') in (None, 'none', 'imagenet')
        return found if known or not weights else {**found, 'weights_file': Path(weights)}


def identity(folder: Path, ids: Collection[str] | None = None) -> str:
    """Return a hash of all that a folder records about the files of these ids, by default of all."""
    settings, inputs = read_args(folder).get('fingerprint', {}), _some(read_inputs(folder), ids)
    return digest({'fingerprint': settings, 'inputs': inputs})


def digests(inputs: Mapping[str, Mapping[str, str]], ids: Iterable[str]) -> dict[str, str]:
    """Return a hash of what each image's file was made from (`read_inputs`), '' where that is unknown."""
    made_from = {image_id: [hashes.get(image_id, '') for hashes in inputs.values()] for image_id in ids}
    return {image_id: digest(hashes)[:16] if any(hashes) else '' for image_id, hashes in made_from.items()}


def find_outdated(
    outputs: Iterable[Path], dataset: Dataset | None = None, ids: Collection[str] | None = None
) -> str | None:
    """Return a line that names what has changed since one of the outputs was made, and the first stage to run again.

    `outputs` are folders, of which the files of `ids` matter (default: all), and model files. The images and labels of
    a folder are those of `dataset` if it has them, otherwise of the data set that the folder records; a model has the
    recorded one. What is not recorded, or does not exist any more, is not a change: a deleted folder, a model file of
    another program or one that was copied to another name, an image that was added or removed. None: nothing changed.
    """
    search = _Search(dataset)
    found = [change for path in outputs for change in search.visit(path, ids)]
    return min(found)[1] if found else None


class _Search:
    """Goes from outputs to all that they were made from. Each file is hashed, and each label read, at most once."""

    def __init__(self, dataset: Dataset | None):
        self.dataset = dataset
        self.opened: dict[tuple, Dataset | None] = {}
        self.files: dict[str, str] = {}
        self.labels: dict[tuple, str] = {}
        self.visited: set[tuple] = set()

    def visit(self, path: Path, ids: Collection[str] | None, known: str = '') -> Iterator[tuple[int, str]]:
        """Yield the number of a stage to run again, and the line, for each outdated output. known: see `read_model`."""
        output = read_folder(path) if path.is_dir() else self.read_model(path, known)
        key = path, None if ids is None else frozenset(ids)
        if output is None or key in self.visited:
            return
        self.visited.add(key)
        for source in output.folders().values():
            yield from self.visit(source, output.inputs.get('images', {}).keys() if ids is None else ids)
        for name, source in output.models().items():
            yield from self.visit(source, None, output.fingerprint[name])
        changes = [*self.changed_files(output), *self.changed_images(output._replace(inputs=_some(output.inputs, ids)))]
        if changes:
            line = f'{output.path}: {"; ".join(changes)}; run {output.script} again'
            yield SCRIPTS.index(output.script), line

    def read_model(self, path: Path, known: str = '') -> Output | None:
        """Return a model file with the record of its run, None without one; known: its hash if it has been deleted."""
        if Path(os.path.abspath(path.parent)) != Path(os.path.abspath(EXPERIMENTS / 'models')):
            return None
        record = read_json(run_path(path.name.removesuffix('.pth').removesuffix('.last').removesuffix('.best')))
        found = self.hash_files({'': path})[''] or known[:16]
        if not found or not str(record.get('models', {}).get(path.name)).startswith(found):
            return None
        script = TRAINERS.get(record.get('network'), SCRIPTS[6])
        return Output(path, script, *(record.get(name, {}) for name in ('options', 'fingerprint', 'inputs')), False)

    def changed_files(self, output: Output) -> Iterator[str]:
        """Yield what changed as a whole: models, and folders that now have other settings."""
        for name, path in output.models().items():
            now = self.hash_files({'': path})['']
            if now and not output.fingerprint[name].startswith(now):
                yield f'{path} changed'
        for path in self.other_folders(output).values():
            yield f'{path} changed'

    def other_folders(self, output: Output) -> dict[str, Path]:
        """Return the folders of an output that were made again with other settings since, by name."""
        now = {name: (path, read_args(path).get('fingerprint')) for name, path in output.folders().items()}
        return {n: path for n, (path, found) in now.items() if found and digest(found) != output.fingerprint[n]}

    def changed_images(self, output: Output) -> list[str]:
        """Return what changed by image: images, masks, image-level labels, and the files of a folder."""
        dataset, now = self.dataset_of(output), {}
        for name, path in output.folders().items() - self.other_folders(output).items():
            now[name] = digests(read_inputs(path), output.inputs.get(name, {}))
        if dataset is None:
            return list_changes(output.inputs, now, str)
        if output.fingerprint.get('classes', list(dataset.class_names)) != list(dataset.class_names):
            return [f'the classes of the data set "{dataset.name}" changed']
        for name in output.inputs.keys() & {'images', 'scored images', 'masks'}:
            where = dataset.mask_path if name == 'masks' else dataset.image_path
            ids = [
                i for i in output.inputs[name] if name != 'scored images' or i not in output.inputs.get('images', ())
            ]
            now[name] = self.hash_files({image_id: _path(where, image_id) for image_id in ids})
        if 'labels' in output.inputs and 'labels' not in output.folders():
            now['labels'] = {image_id: self.read_label(dataset, image_id) for image_id in output.inputs['labels']}
        return list_changes(
            output.inputs, dict(sorted(now.items())), lambda i: (_path(dataset.image_path, i) or Path(i)).name
        )

    def dataset_of(self, output: Output) -> Dataset | None:
        """Return the data set that an output was made from, as far as one of its images exists."""
        place = output.options.get('dataset'), output.options.get('data_dir')
        if place not in self.opened:
            try:
                self.opened[place] = open_dataset(*place)
            except (UserError, OSError, TypeError):
                self.opened[place] = None
        order = [self.dataset, self.opened[place]] if output.is_folder else [self.opened[place], self.dataset]
        for dataset in order:
            if dataset is not None and any(
                path is not None and path.is_file()
                for path in (_path(dataset.image_path, image_id) for image_id in output.inputs.get('images', {}))
            ):
                return dataset
        return None

    def hash_files(self, paths: Mapping[str, Path | None]) -> dict[str, str]:
        new = {str(path): path for path in paths.values() if path is not None and str(path) not in self.files}
        self.files |= file_hashes(new)
        return {name: self.files.get(str(path), '') for name, path in paths.items()}

    def read_label(self, dataset: Dataset, image_id: str) -> str:
        """Return an image-level label as `label_hashes` does, '' if it cannot be read."""
        try:
            key = str(dataset.labels_path(image_id)), image_id, dataset.class_names
            if key not in self.labels:
                self.labels[key] = label_hashes({image_id: dataset.read_labels(image_id)})[image_id]
            return self.labels[key]
        except (UserError, KeyError):
            return ''


def read_folder(path: Path) -> Output | None:
    """Return a folder with its record, None without one."""
    record = read_args(path)
    kind, fingerprint = FORMATS.get(record.get('format')), record.get('fingerprint')
    if kind is None or not fingerprint:
        return None
    return Output(path, kind.script, record.get('options', {}), fingerprint, read_inputs(path), True)


def _some(inputs: dict[str, dict[str, str]], ids: Collection[str] | None) -> dict[str, dict[str, str]]:
    """Return the hashes of some ids."""
    if ids is None:
        return inputs
    return {name: {i: hashes[i] for i in ids if i in hashes} for name, hashes in inputs.items()}


def _path(where, image_id: str) -> Path | None:
    """Return the path of an image or mask, None if the data set does not know it."""
    try:
        return where(image_id)
    except (UserError, KeyError):
        return None
