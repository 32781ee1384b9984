"""Model files of runs: writing them, choosing the epoch, and loading them for inference."""

import hashlib
import io
import math
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from core import UserError
from core.data.dataset import Dataset
from core.models import build_network
from core.models.model_file import TRAINERS, ModelFile
from core.models.network import Network
from util import launcher
from util.parallel.devices import pick_device, to_device
from util.store.current import find_outdated
from util.store.files import check_name, write_bytes
from util.store.formats import model_path
from util.store.hashes import file_hashes


def check_finite(model: nn.Module) -> None:
    """Raise UserError if a weight or statistic is NaN or infinite, so that good checkpoints are not replaced."""
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f'{name} became non-finite; nothing was saved. Try a smaller --lr, or check --weights')


def save_model(model: nn.Module, path: Path, **meta) -> str:
    """Write a model file atomically; return its hash. `meta`: network, backbone, ... Raises UserError if not finite."""
    check_finite(model)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return save_torch({'model': state, 'meta': meta}, path)


def save_torch(content: dict, path: Path) -> str:
    """Write with torch.save, atomically; return the sha256. Only the first process writes; the others return ''."""
    if not launcher.is_main():
        return ''
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


class BestAndLast:
    """The best and the last epoch; --select decides which of the two becomes {tag}.pth.

    The other becomes {tag}.last.pth or {tag}.best.pth. The metadata of each file says whether it is the best or the
    last.
    """

    def __init__(self, tag: str, select: str):
        self.tag, self.select = tag, select
        self.best_score, self.best_epoch, self.epoch = -1.0, 0, 0
        self.score: float | None = None  # score of the last epoch
        self.hashes: dict[str, str] = {}  # hashes of the files by name

    def path(self, which: str) -> Path:
        return model_path(self.tag, '' if which == self.select else f'.{which}')

    def save(self, model: nn.Module, epoch: int, score: float | None, **meta) -> bool:
        """Save the model as the last, and as the best if its score is above all earlier ones; return whether it is."""
        self.epoch, self.score = epoch, None if score is None else float(score)
        is_best = score is not None and (self.best_epoch == 0 or score > self.best_score)
        if is_best:
            self.best_score, self.best_epoch = -1.0 if math.isnan(score) else score, epoch
        for which in ('best', 'last') if is_best else ('last',):
            self._write(which, model, meta)
        return is_best

    def _write(self, which: str, model: nn.Module, meta: dict) -> None:
        scored = {} if self.score is None else {'select': which, 'epoch': self.epoch, 'score': self.score}
        path = self.path(which)
        self.hashes[path.name] = save_model(model, path, **meta, **(scored or {'epoch': self.epoch}))

    def restore(self, model: nn.Module, is_whole_epoch: bool, **meta) -> None:
        """Write missing files again from a resumed model, which is the last one if no later epoch has begun.

        Raises UserError if the best epoch is missing: the checkpoint has it only if it is also the last one.
        """
        for which, epoch in (('best', self.best_epoch), ('last', self.epoch)):
            path = self.path(which)
            if epoch == 0 or path.is_file():
                continue
            if epoch == self.epoch and is_whole_epoch:
                self._write(which, model, meta)
                print(f'{path}: was missing; written again from the checkpoint')
            elif which == 'best':
                lost = f'the model of epoch {epoch}, the best one, and the checkpoint is of a later one'
                raise UserError(f'{path}: is missing: it was {lost}: pass --overwrite to train again')

    def check(self, epoch: int, meta: dict) -> None:
        """Raise UserError if the place of a file has been taken by another one.

        A run that was killed may have left models of the epoch in progress (from 1) whose hashes it has not noted.
        """
        for path in map(self.path, ('best', 'last')):
            found = file_hashes({'': path})['']
            if found and not self.hashes.get(path.name, '').startswith(found) and not _is_of(path, epoch, meta):
                own = "move it away; the same command writes the run's own one again if the checkpoint has it"
                raise UserError(f'{path}: is not the model of this run: {own}')

    def state_dict(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ('tag', 'select')}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)

    def summary(self) -> str:
        if self.best_epoch == 0:  # without scores
            return f'{self.path("last")}: last epoch {self.epoch}'
        epochs = {'best': self.best_epoch, 'last': self.epoch}
        other = 'last' if self.select == 'best' else 'best'
        chosen = f'{self.path(self.select)}: {self.select} epoch {epochs[self.select]} (--select {self.select})'
        return f'{chosen}; {self.path(other)}: {other} epoch {epochs[other]}'


def _is_of(path: Path, epoch: int, meta: dict) -> bool:
    """Return whether a model file says that it is an epoch of a run with these metadata."""
    try:
        found = ModelFile(path).meta
    except UserError:
        return False
    return all(found.get(name) == meta[name] for name in ('network', 'backbone')) and found.get('epoch') == epoch


def load_for_inference(
    file: ModelFile, meta: dict, device: str, precision: str = 'fp32', compile: bool = False
) -> tuple[Network, torch.device]:
    """Build the network that the metadata describe, load a file's weights, and prepare it for inference on a device.

    Raises UserError if the weights do not fit or the device cannot be used.
    """
    place = pick_device(device)
    if place.type == 'cuda':
        # cuDNN plans each convolution again for each image size, which takes longer than computing the products
        # (docs/results/speed.md, "Images of many sizes on a GPU"). Without cuDNN, torch uses its own kernels.
        torch.backends.cudnn.enabled = False
    network = build_network(meta)
    file.load(network)
    return to_device(network.for_inference(), place, precision, compile), place


def open_model(tag: str, flag: str, networks: Collection[str]) -> ModelFile:
    """Read the model file of a tag. Raises UserError naming the flag and the script to run if there is none."""
    path = model_path(tag)
    check_name(path, flag)
    if not path.is_file():
        raise UserError(f'{flag}: {path} not found; run {TRAINERS[next(iter(networks))]} first')
    return ModelFile(path)


def load_network(
    dataset: Dataset,
    networks: Collection[str],
    flag: str,
    tag: str,
    *,
    device: str,
    precision: str = 'fp32',
    compile: bool = False,
    **given: object,
) -> tuple[Network, torch.device, str]:
    """Return the network of a tag ready for inference, its device, and the hash of its file.

    `networks` are the names that it may have, `given` the flags that describe it (`ModelFile.resolve`). Raises
    UserError naming the flag of the tag and the script to run if the model is missing, or if its training data have
    changed since.
    """
    file = open_model(tag, flag, networks)
    meta = file.resolve(dataset, networks, **given)
    outdated = find_outdated([file.path], dataset)
    if outdated:
        raise UserError(outdated)
    file.check_reading(dataset)
    network, place = load_for_inference(file, meta, device, precision, compile)
    return network, place, file.sha256
