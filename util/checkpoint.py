"""Model files: {'model': state dict of CPU tensors, 'meta': what it is}, read without unpickling code."""

import io
from argparse import Namespace
from collections.abc import Collection
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from core import UserError
from core.models.weights import check_not_published, read_state_dict
from util import launcher
from util.artifacts import model_path
from util.devices import pick_device, to_device, unwrap
from util.files import check_name, write_bytes
from util.fingerprint import file_hash

# The published values, where neither flag nor file says more: `mode` does not affect inference, and all files of
# DeepLabv3+ with metadata have `use_gn`.
UNRECORDED = {'mode': 'fix', 'use_gn': True}


class Classes(Protocol):
    """What this module asks of a data set (core.data.dataset.Dataset)."""

    class_names: tuple[str, ...]
    num_classes: int
    palette: np.ndarray


def describe(args: Namespace, dataset: Classes) -> dict:
    """Return the metadata that the models of all trainers have in common."""
    palette = dataset.palette[: dataset.num_classes + 1].tolist()
    return {'image_size': args.image_size, 'classes': dataset.class_names, 'palette': palette}


def check_finite(model: nn.Module) -> None:
    """Raise UserError if a weight or statistic is NaN or infinite: earlier checkpoints are good, this one is not."""
    for name, value in unwrap(model).state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f'{name} became non-finite; nothing was saved. Try a smaller --lr, or check --weights')


def save_model(model: nn.Module, path: Path, **meta) -> None:
    """Write a model file atomically. `meta`: network, backbone, classes, ... Raises UserError if not finite."""
    check_finite(model)
    state = {name: value.detach().cpu().contiguous() for name, value in unwrap(model).state_dict().items()}
    save_torch({'model': state, 'meta': meta}, path)


def save_torch(content: dict, path: Path) -> None:
    """Write with torch.save, atomically; of several processes only the first one writes."""
    if not launcher.is_main():
        return
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


class ModelFile:
    """A model file: state dict and metadata, {} for a bare state dict.

    Raises UserError naming the file if it cannot be read. `script` is the stage that writes such files.
    """

    def __init__(self, path: Path, script: str = ''):
        self.path, self.script = path, script
        self.state, meta, self.form = read_state_dict(path)
        check_not_published(str(path), self.state)
        self.meta = _complete(meta, self.state)
        for entry, is_valid in _VALID.items():
            if entry in self.meta and not is_valid(self.meta[entry]):
                raise UserError(f'{path}: its metadata is damaged ({entry}: {str(self.meta[entry])[:40]!r})')

    def check_network(self, networks: Collection[str]) -> None:
        """Raise UserError if the file contains another network than these; files without metadata pass."""
        network = self.meta.get('network')
        if network is not None and network not in networks:
            raise UserError(f'{self.path}: contains {network}: pass a model of {self.script}')

    def check_classes(self, args: Namespace, dataset: Classes) -> None:
        """Raise UserError naming the first class that differs from the data set's in name or order."""
        pairs = zip_longest(dataset.class_names, self.meta.get('classes', dataset.class_names))
        for number, (ours, theirs) in enumerate(pairs, 1):
            if ours != theirs:
                has = f'class {number} is {ours!r}' if ours else f'has no class {number}'
                expects = f'{self.path} expects {theirs!r}' if theirs else f'{self.path} does not know it'
                raise UserError(f'--dataset {args.dataset}: {has}; {expects}')

    def resolve(self, args: Namespace, dataset: Classes, networks: Collection[str], **options: str) -> dict:
        """Return the metadata to build the network from, completed by flags; set these on args as well.

        options: the flags that describe the network, and the entry of the metadata that each stands for. What is not
        given comes from the file. Raises UserError if the file is not of these networks, a flag contradicts it, neither
        says what is needed, or the data set has other classes.
        """
        self.check_network(networks)
        self.check_classes(args, dataset)
        meta = {'classes': dataset.class_names, **self.meta}
        if len(networks) == 1:
            meta.setdefault('network', *networks)
        for flag, entry in options.items():
            given, known = getattr(args, flag), meta.get(entry)
            if None not in (given, known) and given != known:
                known = known if isinstance(known, str) else f'--{flag} {known}'
                raise UserError(f'--{flag} {given}: {self.path} was trained with {known}')
            meta[entry] = next((value for value in (known, given) if value is not None), UNRECORDED.get(entry))
        missing = ' and '.join(f'--{flag}' for flag, entry in options.items() if meta[entry] is None)
        if missing:
            raise UserError(f'{self.path}: is {self.form} without metadata: pass {missing}')
        vars(args).update({flag: meta[entry] for flag, entry in options.items()})
        return meta

    def load(self, network: nn.Module) -> None:
        """Load the weights into a network. Raises UserError naming the file if they do not fit."""
        try:
            network.load_state_dict(self.state)
        except RuntimeError as error:
            reason = str(error).splitlines()[1:2] or [str(error)]
            name = type(network).__name__
            raise UserError(f'{self.path} ({self.form}): does not fit {name}: {reason[0].strip()[:200]}') from None

    def load_for_inference(self, network: nn.Module, args: Namespace) -> tuple[nn.Module, torch.device, str]:
        """Load the weights, prepare the network for inference and move it to --device, in --precision, with --compile.

        Returns the network, the device and the file's fingerprint; raises UserError as `load` and `pick_device` do.
        """
        device = pick_device(args.device)
        if device.type == 'cuda':
            # cuDNN plans each convolution again for each size of image, which takes longer than all its products
            # (docs/results.md, "5. Speed"). Without it, torch has kernels of its own.
            torch.backends.cudnn.enabled = False
        self.load(network)
        compiled = getattr(args, 'compile', False)
        network = to_device(network.for_inference(), device, args.precision, compiled)
        return network, device, file_hash(self.path)


def open_model(tag: str, flag: str, script: str) -> ModelFile:
    """Read the model file of a tag. Raises UserError naming the flag and the script to run if there is none."""
    path = model_path(tag)
    check_name(path, flag)
    if not path.is_file():
        raise UserError(f'{flag}: {path} not found; run {script} first')
    return ModelFile(path, script)


def _complete(meta: dict, state: dict) -> dict:
    """Return metadata with `network`, `backbone` and `use_gn`. Earlier files have one name of all, `architecture`.

    It is 'resnest101' in stages 1 and 4, and 'DeepLabv3+ resnest101 GN' or 'Seg_Model resnest101' in stage 7.
    """
    words = str(meta.get('architecture', '')).split()
    if 'network' in meta or not words:
        return meta
    if len(words) == 1:
        network = 'AffinityNet' if any(name.startswith('head.') for name in state) else 'Classifier'
        return {**meta, 'network': network, 'backbone': words[0]}
    use_gn = {'use_gn': words[2:] == ['GN']} if words[0] == 'DeepLabv3+' else {}
    return {**meta, 'network': words[0], 'backbone': words[1], **use_gn}


def _are_names(value: object) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(name, str) and name for name in value)


def _are_colours(value: object) -> bool:
    try:
        colours = np.array(value)
        return colours.dtype.kind == 'i' and colours.shape[1:] == (3,) and 0 <= colours.min() <= colours.max() <= 255
    except (ValueError, TypeError):
        return False


# Entries of the metadata that are used, and what they must be.
_VALID = {
    'network': lambda value: isinstance(value, str),
    'backbone': lambda value: isinstance(value, str),
    'mode': lambda value: value in ('normal', 'fix'),
    'use_gn': lambda value: isinstance(value, bool),
    'image_size': lambda value: isinstance(value, int) and value > 0,
    'classes': _are_names,
    'palette': _are_colours,
}
