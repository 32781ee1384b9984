"""Model files and what a training run needs to go on: plain tensors and numbers, read without pickle.

A model file is a state dict of CPU tensors with a note on how it came to be.
"""

import io
import math
import shutil
import signal
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from tools import UserError
from tools.experiment import EXPERIMENTS, check_identity, file_hash, identity_of, list_hash, model_path
from tools.files import remove_leftovers, write_bytes


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside nn.DataParallel, or itself."""
    return model.module if isinstance(model, nn.DataParallel) else model


def check_finite(model: nn.Module) -> None:
    """Raise UserError where a weight or a statistic is nan or infinite: what was saved before is good, this is not."""
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(
                f'{name} is not finite any more, nothing is saved: try a smaller --lr (are --weights good?)'
            )


def save_model(model: nn.Module, path: Path, **note) -> None:
    """Write the state dict whole; raises UserError where it is not finite.

    `note` (strings and numbers: architecture, epoch, why this epoch) rides in the state dict's metadata, which
    load_state_dict passes over.
    """
    check_finite(unwrap(model))
    state = unwrap(model).state_dict()
    for name, value in state.items():
        state[name] = value.detach().cpu().contiguous()
    state._metadata['']['note'] = note
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def read_torch(path: Path) -> object:
    """What torch.save wrote, without running any pickle; raises where the file's own checksums do not agree."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError('wrong checksum')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.load(path, map_location='cpu', weights_only=True)


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
        state = read_torch(path)
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


def weights_hash(source: str) -> str:
    """What identifies --weights: the name, or the hash of the file."""
    return source if source in ('imagenet', 'none') else file_hash(Path(source))


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

    def state_dict(self) -> dict:
        return {'best_score': self.best_score, 'best_epoch': self.best_epoch, 'epoch': self.epoch}

    def load_state_dict(self, state: dict) -> None:
        self.best_score, self.best_epoch, self.epoch = state['best_score'], state['best_epoch'], state['epoch']

    def summary(self) -> str:
        other = 'last' if self.select == 'best' else 'best'
        chosen = f'best epoch {self.best_epoch}' if self.select == 'best' else f'last epoch {self.epoch}'
        return f'{self.path(self.select)}: the {chosen} (--select {self.select}); the {other} one is {self.path(other)}'


class TrainingState:
    """All that a trainer needs to go on: experiments/checkpoints/{tag}.pth, written whole.

    `parts` have state_dict and load_state_dict (model, optimiser, schedule, log, ...). `iteration` is that of the last
    save, 0 at first; a save at the end of an epoch comes after its scoring. Inside the context SIGINT and SIGTERM wait
    for the end of the iteration, which is then saved. Raises UserError where the run was begun with other options or
    inputs (--weights and the images of `loader` among them), and where its models are there without it; --overwrite
    removes all of it first. A run that is finished says so and ends the program.
    """

    def __init__(self, args: Namespace, loader: DataLoader, parts: dict, **inputs):
        self.path = EXPERIMENTS / 'checkpoints' / f'{args.tag}.pth'
        self.interval, self.loader, self.per_epoch, self.parts = args.save_interval, loader, len(loader), parts
        self.max_epoch, self.iterations = args.max_epoch, args.max_epoch * len(loader)
        inputs |= {'images': list_hash(loader.dataset.ids), 'weights_file': weights_hash(args.weights)}
        self.identity = identity_of(args, **inputs)
        self.iteration, self.stop = 0, None
        models = [model_path(args.tag, suffix) for suffix in ('', '.last', '.best')]
        for folder in ('checkpoints', 'models', 'data'):
            remove_leftovers(EXPERIMENTS / folder)
        if args.overwrite:
            for path in [self.path, *models, EXPERIMENTS / 'logs' / f'{args.tag}.txt']:
                path.unlink(missing_ok=True)
            shutil.rmtree(EXPERIMENTS / 'tensorboards' / args.tag, ignore_errors=True)
        if self.path.is_file():
            self._load()
        elif models[0].is_file():
            raise UserError(
                f'--tag {args.tag}: {models[0]} is there but not {self.path}: pass --overwrite to train anew'
            )
        if self.iteration == self.iterations:
            print(f'{self.path}: this run is finished; --overwrite starts anew')
            raise SystemExit

    def epochs(self) -> Iterator[int]:
        """The epochs from 0 that are left, the loader's next pass being what is left of each."""
        first, done = divmod(self.iteration, self.per_epoch)
        for epoch in range(first, self.max_epoch):
            self.loader.sampler.start(epoch, done * self.loader.batch_size)
            done = 0
            yield epoch

    def _load(self) -> None:
        try:
            state = read_torch(self.path)
            identity = state['identity']
        except Exception as error:
            raise UserError(f'{self.path}: damaged ({type(error).__name__}): pass --overwrite to train anew') from None
        check_identity(f'the run of {self.path}', identity, self.identity)
        if state.get('iteration') == 0:  # saved on starting: everything is as it begins
            return
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state['parts'][name])
            torch.set_rng_state(state['random'])
            if state['random_cuda'] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(state['random_cuda'])
            self.iteration = state['iteration']
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(f'{self.path}: damaged ({type(error).__name__}): pass --overwrite to train anew') from None

    def save(self, iteration: int) -> None:
        """Save now, unless the model is not finite (UserError); leave the program where a signal has asked for it."""
        check_finite(self.parts['model'])
        state = {
            'identity': self.identity,
            'iteration': iteration,
            'parts': {name: part.state_dict() for name, part in self.parts.items()},
            'random': torch.get_rng_state(),
            'random_cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.path, buffer.getvalue())
        self.iteration = iteration
        if self.stop:
            raise SystemExit(f'stopped at iteration {iteration} of {self.iterations}: the same command goes on')

    def after(self, iteration: int) -> None:
        """To be called after each iteration: saves at the interval and when stopped, not before an epoch's scoring."""
        if iteration % self.per_epoch and (self.stop or iteration % self.interval == 0):
            self.save(iteration)

    def __enter__(self) -> 'TrainingState':
        self.handlers = {s: signal.signal(s, self._note_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        if not self.path.is_file():
            self.save(0)  # models that a killed first epoch leaves are known to be this run's
        return self

    def _note_signal(self, number, frame) -> None:
        self.stop = number

    def __exit__(self, *exception) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
