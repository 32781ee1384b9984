"""Model files: plain state dicts of CPU tensors, read without pickle, with a note on how they came to be."""

import io
import math
from pathlib import Path

import torch
from torch import nn

from tools import UserError
from tools.experiment import model_path
from tools.files import write_bytes


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside nn.DataParallel, or itself."""
    return model.module if isinstance(model, nn.DataParallel) else model


def save_model(model: nn.Module, path: Path, **note) -> None:
    """Write the state dict whole. `note` (strings and numbers: architecture, epoch, why this epoch) rides in the state
    dict's metadata, which load_state_dict passes over."""
    state = unwrap(model).state_dict()
    for name, value in state.items():
        state[name] = value.detach().cpu().contiguous()
    state._metadata['']['note'] = note
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def read_note(state: dict) -> dict:
    """The note of a state dict that `save_model` wrote, else {}."""
    return getattr(state, '_metadata', {}).get('', {}).get('note', {})


def load_model(model: nn.Module, path: Path, flag: str, script: str, architecture: str) -> dict:
    """Fill a network from a model file and return the file's note.

    Raises UserError where there is no file (saying which script makes it), where it is no state dict, and where it is
    that of another architecture.
    """
    if not path.is_file():
        raise UserError(f'{flag}: {path} is not there; {script} makes it')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes of the unpickler
        raise UserError(f'{path}: damaged, or no model file ({type(error).__name__})') from None
    note = read_note(state)
    if note.get('architecture', architecture) != architecture:
        raise UserError(f'{path}: was trained as {note["architecture"]}, not as {architecture}')
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f'{path}: does not fit {architecture}: {reason[0].strip()[:200]}') from None
    return note


class ModelKeeper:
    """Keeps two models of a run: the last and the best by a score. `--select` says which is {tag}.pth.

    The other is {tag}.last.pth or {tag}.best.pth; each file's note says which it is.
    """

    def __init__(self, tag: str, select: str, architecture: str):
        self.tag, self.select, self.architecture = tag, select, architecture
        self.best_score, self.best_epoch, self.epoch = -1.0, 0, 0

    def path(self, which: str) -> Path:
        return model_path(self.tag, '' if which == self.select else f'.{which}')

    def keep(self, model: nn.Module, epoch: int, score: float) -> bool:
        """Save the model as the last, and as the best where its score is above all before; tells whether it is."""
        self.epoch = epoch
        is_best = self.best_epoch == 0 or score > self.best_score
        if is_best:
            self.best_score, self.best_epoch = -1.0 if math.isnan(score) else score, epoch
        for which in ('best', 'last') if is_best else ('last',):
            note = {'architecture': self.architecture, 'select': which, 'epoch': epoch, 'score': float(score)}
            save_model(model, self.path(which), **note)
        return is_best

    def summary(self) -> str:
        other = 'last' if self.select == 'best' else 'best'
        chosen = f'best epoch {self.best_epoch}' if self.select == 'best' else f'last epoch {self.epoch}'
        return f'{self.path(self.select)}: the {chosen} (--select {self.select}); the {other} one is {self.path(other)}'
