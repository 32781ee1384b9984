"""A training run: resume, log, curves, pictures, best and last model, signals, parts of a batch.

It never calls the model. Of several processes, all have a Run, and the first one reads and writes its files.
"""

import math
import shutil
import signal
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader

from core import UserError
from core.models.weights import read_torch
from util import launcher, processes
from util.artifacts import EXPERIMENTS, Folder, identify_inputs, model_path
from util.checkpoint import check_finite, describe, save_model, save_torch
from util.devices import unwrap
from util.files import check_name, locked, remove_leftovers
from util.fingerprint import (
    check_contents,
    check_fingerprint,
    digest,
    file_hashes,
    fingerprint,
    label_hashes,
    list_hash,
    weights_hash,
)
from util.log import Log
from util.stage import progress

# Options of the trainers that came later, and the values that earlier runs were made with (see `fingerprint`).
ADDED = {'label_smoothing': 0.0, 'compile': False}


class BestAndLast:
    """Which epoch is the best and which the last; --select says which of the two becomes {tag}.pth.

    The other one is {tag}.last.pth or {tag}.best.pth; the metadata of each file says which it is.
    """

    def __init__(self, tag: str, select: str):
        self.tag, self.select = tag, select
        self.best_score, self.best_epoch, self.epoch = -1.0, 0, 0

    def path(self, which: str) -> Path:
        return model_path(self.tag, '' if which == self.select else f'.{which}')

    def save(self, model: nn.Module, epoch: int, score: float | None, **meta) -> bool:
        """Save the model as the last, and as the best if its score is above all earlier ones; return whether it is."""
        self.epoch = epoch
        if score is None:
            save_model(model, self.path('last'), **meta, epoch=epoch)
            return False
        is_best = self.best_epoch == 0 or score > self.best_score
        if is_best:
            self.best_score, self.best_epoch = -1.0 if math.isnan(score) else score, epoch
        for which in ('best', 'last') if is_best else ('last',):
            save_model(model, self.path(which), **meta, select=which, epoch=epoch, score=float(score))
        return is_best

    def state_dict(self) -> dict:
        return {'best_score': self.best_score, 'best_epoch': self.best_epoch, 'epoch': self.epoch}

    def load_state_dict(self, state: dict) -> None:
        self.best_score, self.best_epoch, self.epoch = state['best_score'], state['best_epoch'], state['epoch']

    def summary(self) -> str:
        if self.best_epoch == 0:  # without scores
            return f'{self.path("last")}: last epoch {self.epoch}'
        epochs = {'best': self.best_epoch, 'last': self.epoch}
        other = 'last' if self.select == 'best' else 'best'
        chosen = f'{self.path(self.select)}: {self.select} epoch {epochs[self.select]} (--select {self.select})'
        return f'{chosen}; {self.path(other)}: {other} epoch {epochs[other]}'


class Run:
    """A training run of a tag, used as a context.

        with Run(args, loader, model, optimizer, schedule, meta={'network': ...}, labels=...) as run:
            for epoch in run.epochs():
                for batch in run.batches(device):
                    for part in run.micro_batches(batch):  # or without them, if the loss is that of the whole batch
                        loss = ...
                        run.step(loss)
                run.end_epoch('val mIoU', score)

    It resumes from experiments/checkpoints/{tag}.pth, which holds everything needed and is written atomically at
    --save_interval and after each epoch. Inside the context SIGINT and SIGTERM wait for the end of the iteration, which
    is then saved. Raises UserError if the run was started with other options or inputs (--weights, the ids and images
    of the loader, and `inputs`: see util.artifacts.identify_inputs), and if its models exist without it; --overwrite
    removes all of it first. A finished run says so and exits. `meta` (network, backbone, mode, ...) is written to the
    model files, with what `describe` adds. `masked` are the ids on whose masks epochs are scored; if there are none,
    --select becomes 'last'.
    """

    def __init__(
        self,
        args: Namespace,
        loader: DataLoader,
        model: nn.Module,
        optimizer: SGD,
        schedule: PolynomialLR,
        meta: dict,
        masked: Sequence[str] | None = None,
        **inputs: str | dict[str, str] | Folder,
    ):
        if masked is not None and not masked and args.select == 'best':
            print('no masks to score epochs on: the last epoch is kept')
            args.select = 'last'
        self.args, self.loader, self.model = args, loader, model
        ids, self.dataset = loader.dataset.ids, loader.dataset.dataset
        self.meta = {**meta, **describe(args, self.dataset)}
        self.optimizer, self.schedule = optimizer, schedule
        self.per_epoch, self.iterations = len(loader), args.max_epoch * len(loader)
        self.iteration, self.signal, self.stop = 0, 0, 0
        self.part, self.num_parts, self.total = 0, None, 0
        self.log = Log(args, len(loader))
        device = next(model.parameters()).device
        self.scaler = GradScaler(device.type, enabled=args.precision == 'fp16')  # the others do not need one
        self.models = BestAndLast(args.tag, getattr(args, 'select', 'last'))
        self.path = EXPERIMENTS / 'checkpoints' / f'{args.tag}.pth'
        if loader.dataset.labels is not None:
            inputs['labels'] = label_hashes(dict(zip(ids, loader.dataset.labels, strict=True)))
        if masked:
            inputs['masks'] = file_hashes({image_id: self.dataset.mask_path(image_id) for image_id in masked})
            inputs['scored images'] = file_hashes({image_id: self.dataset.image_path(image_id) for image_id in masked})
        hashes, self.contents = identify_inputs(self.dataset, ids, inputs)
        hashes |= {'images': list_hash(ids), 'weights_file': weights_hash(args.weights)}
        self.fingerprint = fingerprint(args, added=ADDED, **hashes, classes=self.meta['classes'])
        processes.check_equal(
            'data', {**self.fingerprint, **{name: digest(ids) for name, ids in self.contents.items()}}
        )

        # Everything that resumes.
        self.parts = {
            'model': unwrap(model),
            'optimizer': optimizer,
            'schedule': schedule,
            'models': self.models,
            'log': self.log,
            'averages': self.log.averages,
        }
        if self.scaler.is_enabled():
            self.parts['scaler'] = self.scaler

    def __enter__(self) -> 'Run':
        files = [model_path(self.args.tag, suffix) for suffix in ('', '.last', '.best')]
        for path in files:
            check_name(path, '--tag')
        if self.args.tag.endswith(('.last', '.best')):
            raise UserError(f'--tag {self.args.tag}: .last and .best mark the other epoch of a run: choose another tag')
        with ExitStack() as stack:
            state = processes.from_main(lambda: self._claim(stack, files))
            if state is not None:
                self._load(state)
            if self.iteration == self.iterations:
                print(f'{self.path}: run already finished; pass --overwrite to start over')
                processes.end()
                raise SystemExit
            stack.enter_context(self.log)
            self.handlers = {s: signal.signal(s, self._note_signal) for s in (signal.SIGINT, signal.SIGTERM)}
            stack.callback(self._restore_handlers)
            if not self.path.is_file():
                self.save()  # so models left by a run killed in its first epoch are recognised
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind, *exception) -> None:
        with self.stack:
            if kind is None:
                self.log.line(f'{self.models.summary()}, time {self.log.elapsed()}')
                processes.end()

    def _claim(self, stack: ExitStack, files: list[Path]) -> dict | None:
        """Lock the files of the run; with --overwrite remove them; return the checkpoint to resume from, if any."""
        stack.enter_context(locked(self.path.with_name(f'.{self.args.tag}.lock'), f'the run {self.args.tag}'))
        remove_leftovers(self.path, *files, EXPERIMENTS / 'data' / f'{self.args.tag}.json')
        if self.args.overwrite:
            for path in [self.path, *files, EXPERIMENTS / 'logs' / f'{self.args.tag}.txt']:
                path.unlink(missing_ok=True)
            shutil.rmtree(EXPERIMENTS / 'tensorboards' / self.args.tag, ignore_errors=True)
        return self._read(files)

    def _read(self, files: list[Path]) -> dict | None:
        """Return the checkpoint if it has progress. A run that has saved neither that nor a model protects nothing."""
        has_models = any(path.is_file() for path in files)
        if not self.path.is_file():
            if has_models:
                found = next(path for path in files if path.is_file())
                raise UserError(
                    f'--tag {self.args.tag}: {found} exists without {self.path}: pass --overwrite to train again'
                )
            return None
        try:
            state = read_torch(self.path)
            old, iteration = state['fingerprint'], state['iteration']
        except Exception as error:
            raise self._damaged(error) from None
        if iteration == 0 and not has_models:
            if old != self.fingerprint or state.get('contents', {}) != self.contents:
                self.path.unlink()
            return None
        what = f'the run of {self.path}'
        check_contents(what, state.get('contents', {}), self.contents, lambda i: self.dataset.image_path(i).name)
        check_fingerprint(what, {**ADDED, **old}, {**ADDED, **self.fingerprint})
        return state if iteration else None  # saved on starting: everything is as initialised

    def _load(self, state: dict) -> None:
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state['parts'][name])
            torch.set_rng_state(state['random'])
            if launcher.is_launched() and torch.cuda.is_initialized():  # all processes draw the same numbers
                for random in state['random_cuda'][:1]:
                    torch.cuda.set_rng_state(random)
            elif torch.cuda.is_available():  # perhaps with fewer GPUs than before
                torch.cuda.set_rng_state_all(state['random_cuda'][: torch.cuda.device_count()])
            self.iteration = state['iteration']
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f'{self.path}: damaged ({type(error).__name__}): pass --overwrite to train again')

    def _note_signal(self, number, frame) -> None:
        self.signal = number

    def _restore_handlers(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def epochs(self) -> Iterator[int]:
        """Yield the remaining epochs, counted from 0."""
        for epoch in range(self.iteration // self.per_epoch, self.args.max_epoch):
            self.epoch = epoch
            yield epoch

    def batches(self, device: torch.device) -> Iterator[dict]:
        """Yield the remaining batches of the epoch, moved to the device."""
        done = self.iteration % self.per_epoch
        self.loader.sampler.start(self.epoch, done * self.args.batch_size)
        for batch in progress(self.loader, f'epoch {self.epoch + 1}', lines=False):
            yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        processes.copy_from_main(unwrap(self.model).buffers())  # the running statistics, for the scoring

    def micro_batches(self, batch: dict) -> Iterator[dict]:
        """Yield the parts of a batch that go through the network one at a time; their losses and gradients add up.

        Each of them takes a `step`. All draw the same random numbers and take their own (core.models.network).
        """
        self.num_parts, network = max(1, self.args.micro_batches // launcher.world_size()), unwrap(self.model)
        shared = isinstance(self.model, DistributedDataParallel)
        random = _random_state() if self.num_parts > 1 else None
        for part in range(self.num_parts):
            self.part = part
            if self.num_parts > 1:
                first = launcher.rank() * self.num_parts
                network.at_part(first + self.part, launcher.world_size() * self.num_parts)
                _set_random_state(random)
            # Add up the gradients of the processes after the last part only.
            is_last = self.part == self.num_parts - 1
            with nullcontext() if is_last or not shared else self.model.no_sync():
                yield {name: _chunk(value, self.num_parts, self.part) for name, value in batch.items()}

    def step(self, loss: Tensor, losses: dict[str, Tensor] | None = None, **more: float) -> None:
        """Take a step: gradients, weights, learning rate; then log and save. `losses` and `more` are logged too.

        Inside `micro_batches` only the last one does all of that; the others add their gradients.
        """
        if self.part == 0:
            self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.num_parts is not None:
            self.total = loss.detach() if self.part == 0 else self.total + loss.detach()
            if self.part < self.num_parts - 1:
                return
            loss = processes.add(self.total)
        lr = self.optimizer.param_groups[0]['lr']
        self._update()
        self.iteration += 1
        if self.scaler.is_enabled():
            more['scale'] = self.scaler.get_scale()
        self.log.iteration(self.iteration, lr, {'loss': loss, **(losses or {})}, **more)

        # The end of an epoch is saved after its scoring. All processes stop after the same iteration.
        self.stop = processes.largest(self.signal)
        if self.iteration % self.per_epoch and (self.stop or self.iteration % self.args.save_interval == 0):
            self.save()

    def _update(self) -> None:
        """Update weights and learning rate, unless gradients have overflowed in float16: then lower their scale.

        All processes do the same, because they have the same sums of gradients.
        """
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        scale = self.scaler.get_scale()
        if scale >= before:
            self.schedule.step()
        elif scale < 1:
            number = self.iteration + 1
            raise UserError(f'gradients are not finite in float16 at iteration {number}: pass --precision bf16 or fp32')

    def end_epoch(self, name: str | None = None, score: float | None = None, **pictures: np.ndarray) -> None:
        """Save the model, the curves and the checkpoint; log the score in [0, 1] and pictures (h, w, 3).

        Without a score only the last epoch is kept, so --select must be 'last'.
        """
        for title, picture in pictures.items():
            self.log.picture(self.iteration, title, picture)
        is_best = self.models.save(self.model, self.epoch + 1, score, **self.meta)
        if score is not None:
            self.log.epoch(self.iteration, self.epoch + 1, name, score, is_best)
        if self.iteration == self.iterations:
            self.log.finish(self.iteration)
        self.log.save_curves()
        self.stop = processes.largest(self.signal)
        self.save()

    def save(self) -> None:
        """Save the checkpoint unless the model is not finite (UserError); exit if a signal has asked for it."""
        check_finite(self.model)
        if launcher.is_main():
            save_torch(self._state(), self.path)
        if self.stop:
            line = f'stopped at iteration {self.iteration} of {self.iterations}; run the same command to resume'
            raise SystemExit(line if launcher.is_main() else 1)

    def _state(self) -> dict:
        cuda = torch.cuda.is_initialized()
        random = torch.cuda.get_rng_state_all if not launcher.is_launched() else lambda: [torch.cuda.get_rng_state()]
        return {
            'fingerprint': self.fingerprint,
            'contents': self.contents,
            'iteration': self.iteration,
            'parts': {name: part.state_dict() for name, part in self.parts.items()},
            'random': torch.get_rng_state(),
            'random_cuda': random() if cuda else [],
        }


def _chunk(value: Tensor | tuple, count: int, number: int) -> Tensor | tuple:
    """Return a part of a batch: of a tensor, or of a named tuple of tensors."""
    if count == 1:
        return value
    if isinstance(value, Tensor):
        return value.chunk(count)[number]
    return type(value)(*(_chunk(tensor, count, number) for tensor in value))


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    for value, setter in zip(state, (torch.set_rng_state, torch.cuda.set_rng_state), strict=False):
        setter(value)
