"""Whether an output still matches its current inputs, back to images, labels and models. No torch.

A folder records its inputs in args.json and inputs.json, a model in data/{tag}.json of its run.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from core import UserError
from core.data.dataset import Dataset, open_dataset
from util.store.fingerprints import list_changes, read_args, read_inputs, read_run, without
from util.store.formats import EXPERIMENTS, PREDICTIONS, RECORDED, model_path, run_path
from util.store.hashes import digest, file_hashes, label_hashes, mask_hashes
from util.store.written import describe, find_unrecorded, read_written

IMPORT, AVERAGE = 'tools.import_published', 'tools.average_cams'
# The programs that write a folder or a model, in their order. A folder is imported before anything is made from it.
SCRIPTS = (
    IMPORT,
    'train_classification_with_puzzle.py',
    'inference_classification.py',
    AVERAGE,
    'make_affinity_labels.py',
    'train_affinitynet.py',
    'inference_rw.py',
    'make_pseudo_labels.py',
    'train_segmentation.py',
    'inference_segmentation.py',
    'tools.predict',
)
# Trainers by network (all others: stage 7), and programs by the option that no other records with a folder.
TRAINERS = {'Classifier': 'train_classification_with_puzzle.py', 'AffinityNet': 'train_affinitynet.py'}
TOOLS = {'source': IMPORT, 'cam_dirs': AVERAGE}
# The option that names an input folder, by the name of the input.
FOLDERS = {'maps': 'experiment_name', 'cams': 'cam_dir', 'labels': 'label_name'}
OF_DATA = {'images', 'labels', 'masks', 'scored images', 'scored masks'}  # inputs by image
MODELS = {'model': 'model', 'affinity': 'affinity', 'weights_file': 'weights'}  # stages have a tag instead of a model


class Output(NamedTuple):
    """A folder or model file, and the record of its inputs."""

    path: Path
    script: str
    options: dict
    fingerprint: dict
    inputs: dict[str, dict[str, str]]  # hashes by input and image id

    def folders(self) -> dict[str, Path]:
        """Return its input folders by the name of the input."""
        parent = Path(self.options.get('pred_dir') or PREDICTIONS)
        names = {name: self.options.get(option) for name, option in FOLDERS.items()}
        names |= {f'cams_{number}': name for number, name in enumerate(self.options.get('cam_dirs') or (), 1)}
        return {name: parent / folder for name, folder in names.items() if folder and name in self.fingerprint}

    def models(self) -> dict[str, Path]:
        """Return its input model, or its --weights, by the name of the input."""
        tag, no_file = self.options.get('model_name') or self.options.get('tag'), (None, 'none', 'imagenet')
        found = {name: self.options.get(option) for name, option in MODELS.items()}
        found |= {'model': model_path(tag)} if tag else {}
        return {name: Path(path) for name, path in found.items() if path and self.fingerprint.get(name) not in no_file}


def identity(folder: Path, ids: Collection[str] | None = None) -> str:
    """Return a hash of everything that a folder records about the files of these ids, by default of all ids."""
    return digest({'fingerprint': read_args(folder).get('fingerprint'), 'inputs': _some(read_inputs(folder), ids)})


def digests(inputs: Mapping[str, Mapping[str, str]], ids: Iterable[str]) -> dict[str, str]:
    """Return a hash of the inputs of each image's file (`read_inputs`), '' if they are unknown."""
    made_from = {image_id: [hashes.get(image_id, '') for hashes in inputs.values()] for image_id in ids}
    return {image_id: digest(hashes)[:16] if any(hashes) else '' for image_id, hashes in made_from.items()}


def find_outdated(
    outputs: Iterable[Path], dataset: Dataset | None = None, ids: Collection[str] | None = None
) -> str | None:
    """Return a line with the changes since one of the outputs was made, and the first stage to run again.

    `outputs` are model files and folders; of a folder only the files of `ids` matter (default: all). A file that is not
    as its stage recorded it is a change too. The images and labels of a folder come from `dataset` if it has them,
    otherwise from the data set that the folder records; a model uses the recorded one. Inputs that no longer exist do
    not count as changed, nor does an input that the record does not name: a deleted folder, a model file that came from
    another program or was copied to another name, an image that was added or removed. None: nothing has changed.
    """
    search = _Search(dataset)
    found = [change for path in outputs for change in search.visit(path, ids)]
    return min(found)[1] if found else None


class _Search:
    """Follows outputs back to all their inputs. Each file is hashed, and each label is read, at most once."""

    def __init__(self, dataset: Dataset | None):
        self.dataset = dataset
        self.opened: dict[tuple, Dataset | None] = {}
        self.known: dict[tuple, dict[str, str]] = {}
        self.visited: set[tuple] = set()

    def visit(self, path: Path, ids: Collection[str] | None, known: str = '') -> Iterator[tuple[int, str]]:
        """Yield the number of a stage to run again, and the line, for each outdated output. known: see `read_model`."""
        output = read_folder(path) if path.is_dir() else read_model(path, known)
        key = path, None if ids is None else frozenset(ids)
        if output is None or key in self.visited:
            if output is None and (script := _replaced_model_of(path)):
                yield SCRIPTS.index(script), f'{path}: is not as recorded; run {script} again'
            return
        self.visited.add(key)
        for source in output.folders().values():
            yield from self.visit(source, output.inputs.get('images', {}).keys() if ids is None else ids)
        for name, source in output.models().items():
            yield from self.visit(source, None, output.fingerprint[name])
        changes = list(self.changes(output._replace(inputs=_some(output.inputs, ids))))
        changes += self.unrecorded(output, ids)
        if changes:
            line = f'{output.path}: {"; ".join(changes)}; run {output.script} again'
            yield SCRIPTS.index(output.script), line

    def changes(self, output: Output) -> Iterator[str]:
        """Yield the changes: models, folders with other settings, and changes by image."""
        now = {}
        for name, path in output.models().items():
            if (found := file_hashes({'': path})['']) and not output.fingerprint[name].startswith(found):
                yield f'{path} changed'
        for name, path in output.folders().items():
            if path.is_dir() and digest(read_args(path).get('fingerprint', {})) != output.fingerprint[name]:
                yield f'{path} changed'
            else:
                now[name] = digests(read_inputs(path), output.inputs.get(name, {}))
        dataset = self.dataset_of(output)
        if dataset is not None:
            if output.fingerprint.get('classes', list(dataset.class_names)) != list(dataset.class_names):
                yield f'the classes of the data set "{dataset.name}" changed'
                return
            if output.fingerprint.get('background', True) != dataset.has_background:
                yield f'the entry "background" of the data set "{dataset.name}" changed'
                return
            if difference := dataset.reading.difference(output.fingerprint):
                yield f'{difference} (pass the same to keep it)'
            for name in sorted(output.inputs.keys() & OF_DATA - now.keys()):
                shown = now.get('images', {}) if name == 'scored images' else {}
                now[name] = self.hashes(dataset, name, [i for i in output.inputs[name] if i not in shown])
        yield from list_changes(output.inputs, now, lambda i: (_path(dataset, 'images', i) or Path(i)).name)

    def unrecorded(self, output: Output, ids: Collection[str] | None) -> Iterator[str]:
        """Yield the files of a folder that are not as recorded; of all that are known if `ids` is None."""
        kind = RECORDED.get(read_args(output.path).get('format')) if output.path.is_dir() else None
        if kind is not None:
            known = read_written(output.path).keys() | output.inputs.get('images', {}).keys() if ids is None else ids
            found = find_unrecorded(output.path, kind, sorted(known))
            if found:
                yield describe(found, len(known), kind.suffix)

    def dataset_of(self, output: Output) -> Dataset | None:
        """Return the data set of an output, None if none of its images exists."""
        place = tuple(output.options.get(name) for name in ('dataset', 'data_dir', 'window', 'plane'))
        if place not in self.opened:
            try:
                found = open_dataset(*place)
                self.opened[place] = self.dataset if _about(found) == _about(self.dataset) else found
            except (UserError, OSError, TypeError):
                self.opened[place] = None
        order = [self.dataset, self.opened[place]]
        if output.path.suffix == '.pth':  # perhaps trained on another data set whose images no longer exist
            own = self.dataset is not None and output.fingerprint.get('classes') == list(self.dataset.class_names)
            order = [self.opened[place], self.dataset if own else None]
        for dataset in order:
            paths = (_path(dataset, 'images', image_id) for image_id in output.inputs.get('images', {}))
            if any(path is not None and path.is_file() for path in paths):
                return dataset
        return None

    def hashes(self, dataset: Dataset, name: str, ids: Collection[str]) -> dict[str, str]:
        """Return the current hashes of images, masks or image-level labels, '' if unknown."""
        known = self.known.setdefault((id(dataset), name), {})
        new = [image_id for image_id in ids if image_id not in known]
        if name == 'labels':
            known |= {image_id: _read_label(dataset, image_id) for image_id in new}
        else:
            paths = {image_id: _path(dataset, name, image_id) for image_id in new}
            paths = {image_id: path for image_id, path in paths.items() if path is not None}
            known |= mask_hashes(paths, dataset.mask_values) if name.endswith('masks') else file_hashes(paths)
        return {image_id: known.get(image_id, '') for image_id in ids}


def read_folder(path: Path) -> Output | None:
    """Return a folder with its record, None without one. Raises UserError if only args.json is lost or damaged."""
    record = read_args(path)
    kind, fingerprint = RECORDED.get(record.get('format')), record.get('fingerprint')
    if kind is None or not fingerprint:
        rest = next((name for name in ('inputs.json', 'files.json') if (path / name).is_file()), None)
        if rest:
            remedy = f'write the folder again with --overwrite, or, if it is of another program, remove {rest} too'
            raise UserError(f'{path}/args.json: is missing or damaged, so its inputs are unknown: {remedy}')
        return None
    options = record.get('options', {})
    script = next((tool for option, tool in TOOLS.items() if option in options), kind.script)
    return Output(path, script, options, fingerprint, read_inputs(path))


def read_model(path: Path, known: str = '') -> Output | None:
    """Return a model file with the record of its run, None without one; known: its hash if it has been deleted.

    Raises UserError naming the record if it is damaged.
    """
    record = _read_run(path)
    found = file_hashes({'': path})[''] or known[:16]
    if not found or not record.get('models', {}).get(path.name, '').startswith(found):
        return None
    options, made_from, inputs = (record.get(name, {}) for name in ('options', 'fingerprint', 'inputs'))
    if options.get('select') != 'best' and not path.name.endswith('.best.pth'):
        inputs = without(inputs, 'scored ')
    return Output(path, trainer(record), options, made_from, inputs)


def _replaced_model_of(path: Path) -> str | None:
    """Return the script of a run whose record is not of the model file that has its name, None if there is none."""
    record = _read_run(path)
    return trainer(record) if record and path.is_file() and read_model(path) is None else None


def _read_run(path: Path) -> dict:
    """Return the record of the run that a model file has the name of, {} without one. Raises UserError like above."""
    if os.path.abspath(path.parent) != os.path.abspath(EXPERIMENTS / 'models'):
        return {}
    tag = path.name.removesuffix('.pth').removesuffix('.last').removesuffix('.best')
    record, checkpoint = read_run(tag), EXPERIMENTS / 'checkpoints' / f'{tag}.pth'
    if path.name not in record.get('models', {}) and (run_path(tag).is_file() or checkpoint.is_file()):
        remedy = f'run its trainer again, or, if the model is from elsewhere, remove the record and {checkpoint}'
        raise UserError(f'{run_path(tag)}: is missing, damaged or not of {path}, so its inputs are unknown: {remedy}')
    return record


def trainer(record: dict) -> str:
    """Return the stage that wrote the record of a training run."""
    return TRAINERS.get(record.get('network'), 'train_segmentation.py')


def _some(inputs: dict[str, dict[str, str]], ids: Collection[str] | None) -> dict[str, dict[str, str]]:
    """Return the hashes of some ids; None: of all."""
    if ids is None:
        return inputs
    return {name: {i: hashes[i] for i in ids if i in hashes} for name, hashes in inputs.items()}


def _about(dataset: Dataset | None) -> tuple:
    if dataset is None:
        return ()
    return os.path.abspath(dataset.root), dataset.name, dataset.class_names, dataset.has_background


def _path(dataset: Dataset | None, name: str, image_id: str) -> Path | None:
    """Return the path of a mask or image, None if the data set does not contain it."""
    try:
        return dataset and (dataset.mask_path if name.endswith('masks') else dataset.image_path)(image_id)
    except (UserError, KeyError):
        return None


def _read_label(dataset: Dataset, image_id: str) -> str:
    """Return an image-level label as `label_hashes` does, '' if it cannot be read."""
    try:
        return label_hashes({image_id: dataset.read_labels(image_id)})[image_id]
    except (UserError, KeyError):
        return ''
