"""Model files: weights of trained networks and their description, read without unpickling code.

A file holds {'model': state dict, 'meta': metadata}; files of other programs have a state dict alone.
"""

import warnings
from collections.abc import Callable, Collection
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
from torch import nn

from core import IGNORE, DataWarning, UserError, has_control_characters
from core.data.dataset import Dataset
from core.data.pixels import parse_plane, parse_window
from core.models.build import build_network
from core.models.network import Network
from core.models.segmenters import SEGMENTERS
from core.models.weights import IMPORT, PUBLISHED, read_state_dict

# The stage that trains each network.
TRAINERS = {'Classifier': 'train_classification_with_puzzle.py', 'AffinityNet': 'train_affinitynet.py'}
TRAINERS |= dict.fromkeys(SEGMENTERS, 'train_segmentation.py')

# The entry that each flag sets. In stages 2 and 5 the network is fixed, so --architecture names its backbone.
ENTRIES = {'architecture': 'network', 'backbone': 'backbone', 'mode': 'mode', 'use_gn': 'use_gn'}
# The published values, if neither the flag nor the file has one: `mode` does not affect inference, and all files of
# DeepLabv3+ with metadata have `use_gn`.
UNRECORDED = {'mode': 'fix', 'use_gn': True}


class ModelFile:
    """A model file: state dict and metadata, {} for a bare state dict.

    Raises UserError naming the file if it cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.state, self.meta, self.form, self.sha256 = read_state_dict(path)
        if self.form == PUBLISHED:
            raise UserError(f'{path}: is {PUBLISHED}: {IMPORT}')
        for entry, is_valid in _VALID.items():
            if entry in self.meta and not is_valid(self.meta[entry]):
                raise UserError(f'{path}: its metadata is damaged ({entry}: {str(self.meta[entry])[:40]!r})')

    def check_described(self, *entries: str) -> None:
        """Raise UserError if the metadata lacks some of these entries."""
        missing = [entry for entry in entries if entry not in self.meta]
        if missing:
            reason = f'is {self.form} without metadata ({", ".join(missing)})'
            raise UserError(f'{self.path}: {reason}, so it cannot be used here')

    def check_network(self, networks: Collection[str]) -> None:
        """Raise UserError if the file contains another network than these; files without metadata pass."""
        network = self.meta.get('network')
        if network is not None and network not in networks:
            raise UserError(f'{self.path}: contains {network}: pass a model of {TRAINERS[next(iter(networks))]}')

    def check_classes(self, dataset: Dataset) -> None:
        """Raise UserError naming the first class whose name or place differs from the data set's, or the background."""
        pairs = zip_longest(dataset.class_names, self.meta.get('classes', dataset.class_names))
        for number, (ours, theirs) in enumerate(pairs, 1):
            if ours != theirs:
                has = f'class {number} is {ours!r}' if ours else f'has no class {number}'
                expects = f'{self.path} expects {theirs!r}' if theirs else f'{self.path} does not know it'
                raise UserError(f'of "{dataset.name}": {has}; {expects}', option='dataset')
        if 'classes' in self.meta and dataset.has_background != self.meta.get('background', True):
            has, expects = ('has a', 'none') if dataset.has_background else ('has no', 'one')
            raise UserError(f'of "{dataset.name}": {has} background; {self.path} expects {expects}', option='dataset')

    def check_reading(self, dataset: Dataset) -> None:
        """Warn if the images of a data set are read in another way than the images in training."""
        if self.meta and (difference := dataset.reading.difference(self.meta)):
            warnings.warn(f'{self.path}: in training {difference}', DataWarning, stacklevel=2)

    def resolve(self, dataset: Dataset, networks: Collection[str], **given: object) -> dict:
        """Return the metadata to build the network from, completed by flags.

        given: the values of the flags that describe the network (ENTRIES), None for those that were not passed. Raises
        UserError if the file contains another network, a flag contradicts it, an entry is in neither, or the data set
        has other classes.
        """
        self.check_network(networks)
        self.check_classes(dataset)
        meta = {**dataset.class_entries, **self.meta}
        entries = ENTRIES
        if len(networks) == 1:
            meta.setdefault('network', *networks)
            entries = {'architecture': 'backbone'}
        for flag, value in given.items():
            entry = entries[flag]
            known = meta.get(entry)
            if None not in (value, known) and value != known:
                known = known if isinstance(known, str) else f'--{flag} {known}'
                raise UserError(f'--{flag} {value}: {self.path} was trained with {known}')
            meta[entry] = next((found for found in (known, value) if found is not None), UNRECORDED.get(entry))
        missing = ' and '.join(f'--{flag}' for flag in given if meta[entries[flag]] is None)
        if missing:
            raise UserError(f'{self.path}: is {self.form} without metadata: pass {missing}')
        return meta

    def load(self, network: nn.Module) -> None:
        """Load the weights into a network. Raises UserError naming the file if they do not fit."""
        try:
            network.load_state_dict(self.state)
        except RuntimeError as error:
            reason = str(error).splitlines()[1:2] or [str(error)]
            name = type(network).__name__
            raise UserError(f'{self.path} ({self.form}): does not fit {name}: {reason[0].strip()[:200]}') from None


def load(path: str | Path) -> Network:
    """Return the network of a model file for inference, on the CPU; docs/python.md shows how to use it.

    `classes` of the network are the names of its classes, without the background, which it has if `has_background`.
    Raises UserError naming the file if it cannot be read or does not describe its network.
    """
    file = ModelFile(Path(path))
    file.check_described('network', 'backbone', 'classes')
    network = build_network(file.meta)
    file.load(network)
    network.classes = tuple(file.meta['classes'])
    network.has_background = file.meta.get('background', True)
    return network.for_inference()


def _are_names(value: object) -> bool:
    if not isinstance(value, (tuple, list)) or not all(map(_is_name, value)):
        return False
    return 0 < len(value) < IGNORE and len({'background', *value}) == len(value) + 1


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != '' and not has_control_characters(value)


def _is_normal(parse: Callable[[str], str], value: object) -> bool:
    """Return whether a value is a text in the normal form of a function that raises ValueError for others."""
    try:
        return isinstance(value, str) and parse(value) == value
    except ValueError:
        return False


def _are_colours(value: object) -> bool:
    try:
        colours = np.array(value)
        return colours.dtype.kind == 'i' and colours.shape[1:] == (3,) and 0 <= colours.min() <= colours.max() <= 255
    except (ValueError, TypeError):
        return False


# The entries of the metadata that are used, and their types.
_VALID = {
    'network': _is_name,
    'backbone': _is_name,
    'mode': lambda value: value in ('normal', 'fix'),
    'use_gn': lambda value: isinstance(value, bool),
    'image_size': lambda value: isinstance(value, int) and value > 0,
    'classes': _are_names,
    'palette': _are_colours,
    'background': lambda value: isinstance(value, bool),
    'window': partial(_is_normal, parse_window),
    'plane': partial(_is_normal, parse_plane),
}
