"""Networks saved by the authors' published code: recognised by the names of their tensors, and converted.

Their files contain every tensor of the backbone at least twice: as `model.*`, with the names of the released ImageNet
files, and as `stage1.*` to `stage5.*` (in some also `backbone.*`), with positions in a Sequential.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core import UserError
from core.models.affinitynet import AffinityNet
from core.models.backbones import BACKBONES, build_backbone
from core.models.classifier import Classifier
from core.models.segmenters import build_segmenter

# Beginnings of names here, and in the published code.
LINEAR = {'backbone.': 'model.', 'classifier.': 'classifier.'}
EDGES = {
    'backbone.': 'model.',
    **{f'head.reduce.{i}.': f'fc_edge{i + 1}.' for i in range(5)},
    'head.classify.': 'fc_edge6.',
}
DEEPLAB = {
    'backbone.': 'model.',
    **{f'aspp.branches.{i}.0.': f'aspp.aspp{i + 1}.atrous_conv.' for i in range(4)},
    **{f'aspp.branches.{i}.1.': f'aspp.aspp{i + 1}.bn.' for i in range(4)},
    'aspp.pooled.0.': 'aspp.global_avg_pool.1.',
    'aspp.pooled.1.': 'aspp.global_avg_pool.2.',
    'aspp.project.0.': 'aspp.conv1.',
    'aspp.project.1.': 'aspp.bn1.',
    'decoder.low.0.': 'decoder.conv1.',
    'decoder.low.1.': 'decoder.bn1.',
    'decoder.fuse.0.0.': 'decoder.classifier.0.',
    'decoder.fuse.0.1.': 'decoder.classifier.1.',
    'decoder.fuse.1.0.': 'decoder.classifier.4.',
    'decoder.fuse.1.1.': 'decoder.classifier.5.',
    'decoder.classify.': 'decoder.classifier.8.',
}
HEADS = {'classifier.weight': LINEAR, 'fc_edge6.weight': EDGES, 'decoder.classifier.8.weight': DEEPLAB}

# Tensors that are not used: ImageNet's head, the copies of the backbone, AffinityNet's table of pixel pairs.
UNUSED = ('model.fc.', *(f'stage{i}.' for i in range(1, 6)), 'backbone.', 'path_indices_')
COPIES = {
    'stage1.0.': 'model.conv1.',
    'stage1.1.': 'model.bn1.',
    **{f'stage{i + 1}.0.': f'model.layer{i}.' for i in range(1, 5)},
}
COUNTER = 'num_batches_tracked'  # not in files of torch before 0.4.1; no stage uses it


class Published(NamedTuple):
    """A converted network, its name and backbone, and for DeepLabv3+ whether its norms are GroupNorm."""

    network: nn.Module
    name: str
    backbone: str
    use_gn: bool | None


def convert(state: dict[str, Tensor], num_classes: int) -> Published:
    """Return the network of this repository with the tensors of a published one, for C = num_classes.

    Raises UserError naming a tensor if the file is of another network, backbone or number of classes, if a tensor is
    missing, left over or not finite, or if the copies of the backbone differ.
    """
    output = next((name for name in HEADS if name in state), None)
    if output is None:
        raise UserError(f'is not a network of the published code, which has one of {", ".join(HEADS)}')
    if not any(name.startswith('model.') for name in state):
        raise UserError('contains no model.* (the backbone with the names of its ImageNet file): cannot be imported')
    name = _find_network(output, state[output], num_classes)
    backbone = _find_backbone({key.removeprefix('model.'): x for key, x in state.items() if key.startswith('model.')})
    use_gn = 'aspp.bn1.running_mean' not in state if name == 'DeepLabv3+' else None
    network = _build(name, backbone, num_classes, bool(use_gn))
    _load(network, state, HEADS[output])
    return Published(network, name, backbone, use_gn)


def _find_network(output: str, weight: Tensor, num_classes: int) -> str:
    """Return the name of the network whose last weight this is."""
    by_outputs = {
        'classifier.weight': {num_classes: 'Classifier', num_classes + 1: 'Seg_Model'},
        'fc_edge6.weight': {1: 'AffinityNet', num_classes + 1: 'CSeg_Model'},
        'decoder.classifier.8.weight': {num_classes + 1: 'DeepLabv3+'},
    }[output]
    outputs = weight.shape[0] if weight.dim() else 0
    if outputs not in by_outputs:
        expected = ' or '.join(f'{count} ({name})' for count, name in by_outputs.items())
        raise UserError(f'{output} has {outputs} outputs, expected {expected}: is it of another data set?')
    return by_outputs[outputs]


def _find_backbone(state: dict[str, Tensor]) -> str:
    """Return the name of the registered backbone with these tensors."""
    found = _shapes({name: x for name, x in state.items() if not name.startswith('fc.')})
    wrong = {}
    for backbone in BACKBONES:
        expected = _backbone_shapes(backbone)
        wrong[backbone] = [name for name in expected | found if expected.get(name) != found.get(name)]
    nearest = min(wrong, key=lambda backbone: len(wrong[backbone]))
    if wrong[nearest]:
        count = f'{len(wrong[nearest])} tensors are missing, unknown or of another shape'
        raise UserError(
            f'fits no registered backbone; the nearest is {nearest}: {count}, the first is model.{wrong[nearest][0]}'
        )
    return nearest


@cache
def _backbone_shapes(backbone: str) -> dict[str, torch.Size]:
    with torch.device('meta'):
        return _shapes(build_backbone(backbone).state_dict())


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in state.items() if not name.endswith(COUNTER)}


def _build(name: str, backbone: str, num_classes: int, use_gn: bool) -> nn.Module:
    """Return the network without allocating memory for its tensors."""
    with torch.device('meta'):
        if name == 'Classifier':
            return Classifier(backbone, num_classes)
        if name == 'AffinityNet':
            return AffinityNet(backbone)
        return build_segmenter(name, backbone, num_classes + 1, 'fix', use_gn)


def _load(network: nn.Module, state: dict[str, Tensor], beginnings: dict[str, str]) -> None:
    """Give a network the tensors of the published one."""
    own = network.state_dict()
    names = {
        name: next(theirs + name[len(ours) :] for ours, theirs in beginnings.items() if name.startswith(ours))
        for name in own
    }
    for name in state:
        if name not in names.values() and not name.startswith(UNUSED):
            raise UserError(f'contains {name}, which is not a tensor of the published network')
    loaded = {}
    for name, theirs in names.items():
        if theirs not in state and theirs.endswith(COUNTER):
            loaded[name] = torch.tensor(0)
            continue
        if theirs not in state:
            raise UserError(f'{theirs} is missing')
        value = state[theirs]
        if value.shape != own[name].shape:
            raise UserError(f'{theirs} has the shape {tuple(value.shape)}, expected {tuple(own[name].shape)}')
        if not torch.isfinite(value).all():
            raise UserError(f'{theirs} contains non-finite values')
        loaded[name] = value.to(own[name].dtype)
    _check_copies(state)
    network.load_state_dict(loaded, assign=True)


def _check_copies(state: dict[str, Tensor]) -> None:
    """Raise UserError if a tensor of the stages differs from its copy in model.*: their forward uses the stages."""
    for name, value in state.items():
        original = next((there + name[len(here) :] for here, there in COPIES.items() if name.startswith(here)), None)
        if original in state and not torch.equal(value, state[original]):
            raise UserError(f'{name} differs from {original}, of which it should be a copy')
