"""A training run: epochs, batches, steps, and the work after each. It never calls the network.

Every process has a Run; only the first one reads and writes its files.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader

from core import UserError
from core.data.torch_datasets import ImageDataset
from util import launcher, signals
from util.parallel import processes
from util.parallel.batch import SharedModel
from util.script import print_mask_count, progress
from util.store.current import find_outdated
from util.store.fingerprints import Record, fingerprint, read_run
from util.store.folders import Folder, identify_inputs
from util.store.hashes import digest, label_hashes, list_hash
from util.training.files import RunFiles, scored_hashes
from util.training.log import Log
from util.training.models import BestAndLast, check_finite


class Run:
    """A training run of a tag, used as a context.

        with Run(loader, network, optimizer, schedule, meta, scored, tag=..., record=args.record(), ...) as run:
            for epoch in run.epochs():
                for batch in run.batches():
                    run.step(losses, weights)  # or run.backward(loss) for each micro-batch, and then run.step()
                run.end_epoch('val mIoU', score)

    A run resumes from the checkpoint of its tag, which holds `self.resumable`, the iteration and the state of the
    random numbers. The checkpoint is written atomically every `save_interval` iterations, before an epoch is scored and
    after it.

    A signal waits for the end of the iteration, which is then saved; scoring is repeated instead. Raises
    UserError if the run was started with other options (`record`) or inputs (`weights`: the result of
    core.models.load_weights; the ids, images and labels of the loader; `inputs`: see
    util.store.folders.identify_inputs), or if its models exist without a checkpoint; `overwrite` removes all of it
    first. A finished run reports so and exits. Missing model files are written again if the checkpoint has them. If an
    input folder is written again meanwhile, UserError is raised, and what was learned since the last checkpoint is not
    saved. `meta` (network, backbone, mode, ...) is written to the model files, with the size of the crops, the classes,
    their colours and the reading of images. `scored` are the samples on whose masks epochs are scored; if there are
    none, `select` becomes 'last'. `tagged` are those on whose image-level labels epochs are scored.
    """

    def __init__(
        self,
        loader: DataLoader,
        network: SharedModel,
        optimizer: SGD,
        schedule: PolynomialLR,
        meta: dict,
        scored: ImageDataset | None = None,
        tagged: ImageDataset | None = None,
        *,
        tag: str,
        record: Record,
        max_epoch: int,
        weights: str,
        image_size: int,
        print_ratio: float = 0.1,
        save_interval: int = 200,
        overwrite: bool = False,
        select: str = 'last',
        **inputs: str | dict[str, str] | Folder,
    ):
        if scored:
            print_mask_count(scored.dataset, scored.domain, scored.ids)
        if scored is not None and not scored.ids and select == 'best':
            print('no masks to score epochs on: the last epoch is kept')
            select, record = 'last', record.changed(select='last')
        self.loader, self.network, self.optimizer, self.schedule = loader, network, optimizer, schedule
        self.dataset = loader.dataset.dataset
        palette = self.dataset.palette[: self.dataset.num_classes + 1].tolist()
        self.meta = {**meta, 'image_size': image_size, **self.dataset.class_entries, 'palette': palette}
        self.meta |= self.dataset.reading.record()
        self.per_epoch, self.max_epoch, self.iterations = len(loader), max_epoch, max_epoch * len(loader)
        self.iteration, self.stop, self.unscored = 0, 0, False  # unscored: between the last batch and end_epoch
        self.save_interval, self.overwrite = save_interval, overwrite
        self.loss: Tensor | None = None  # losses of the batch so far
        self.log = Log(tag, record.options, meta['network'], max(1, int(len(loader) * print_ratio)), self.iterations)
        self.models = BestAndLast(tag, select)
        self.scaler = GradScaler(network.device.type, enabled=network.precision == 'fp16')  # only fp16 needs one
        self.sources = [value for value in inputs.values() if isinstance(value, Folder)]
        inputs |= scored_hashes({*loader.dataset.ids}, scored, tagged)
        identity = self._identify(record, weights, inputs)
        self.files = RunFiles(tag, meta['network'], record, self.dataset, *identity)

        self.resumable = {
            'model': network.model,
            'optimizer': optimizer,
            'schedule': schedule,
            'models': self.models,
            'log': self.log,
        }
        if self.scaler.is_enabled():
            self.resumable['scaler'] = self.scaler

    def _identify(self, record: Record, weights: str, inputs: dict) -> tuple[dict, dict]:
        """Return the fingerprint, and the hashes of the inputs by name and image id; the same in all processes."""
        ids, labels = self.loader.dataset.ids, self.loader.dataset.labels
        if labels is not None:
            inputs['labels'] = label_hashes(dict(zip(ids, labels, strict=True)))
        outdated = find_outdated([Path(str(record.options.get('weights')))], self.dataset)
        if outdated:
            raise UserError(outdated)
        hashes, contents = identify_inputs(self.dataset, ids, inputs)
        hashes |= {'images': list_hash(ids), 'weights_file': weights, **self.dataset.class_entries}
        hashes |= self.dataset.reading.record()
        if self.meta['mode'] == 'normal':  # the groups that BatchNorm normalised
            hashes['norm_groups'] = self.network.norm_groups
        found = fingerprint(record, **hashes)
        processes.check_equal('data', {**found, **{name: digest(ids) for name, ids in contents.items()}})
        return found, contents

    def __enter__(self) -> 'Run':
        self.files.check_names()
        with ExitStack() as stack:
            state = processes.from_main(lambda: self.files.claim(stack, self.overwrite, self.iterations))
            if state is not None:
                self._load(state)
                processes.from_main(self._restore_models)
            if self.iteration == self.iterations and not self.unscored:
                print(f'{self.files.checkpoint}: run already finished; pass --overwrite to start over')
                processes.end()
                raise SystemExit
            stack.enter_context(self.log)
            self._announce()
            self.holding = stack.enter_context(ExitStack())  # signals
            self.holding.enter_context(signals.held())
            if not self.files.checkpoint.is_file():
                self.save()  # so models left by a run killed in its first epoch are recognised
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self.stack:
            if kind is None:
                if launcher.is_main():
                    self._restore_models()  # they may have been removed
                self.log.line(f'{self.models.summary()}, time {self.log.elapsed()}')
                processes.end()
        if kind is SystemExit and signals.received() and error.code == 128 + signals.received():  # while scoring
            raise self._stopped() from None

    def _stopped(self) -> SystemExit:
        line = f'stopped at iteration {self.iteration} of {self.iterations}; run the same command to resume'
        return SystemExit(line if launcher.is_main() else 1)

    def _announce(self) -> None:
        """Print a summary of the run; the log file begins with all options."""
        network, images = f'{self.meta["network"]} with {self.meta["backbone"]}', f'{len(self.loader.dataset)} images'
        length = f'resumed at {self.iteration} of {self.iterations}' if self.iteration else str(self.iterations)
        if launcher.is_main():
            print(f'{self.files.tag}: {network}, {images}, {length} iterations', file=sys.stderr, flush=True)

    def _restore_models(self) -> None:
        self.models.check((self.iteration - self.unscored) // self.per_epoch + 1, self.meta)
        self.models.restore(self.network.model, self.iteration % self.per_epoch == 0 and not self.unscored, **self.meta)
        if read_run(self.files.tag).get('models', {}).keys() != self.models.hashes.keys():
            self._record()

    def _record(self) -> None:
        made_from = {'fingerprint': self.files.fingerprint, 'inputs': self.files.contents}
        self.log.save_curves(**made_from, models=self.models.hashes)

    def epochs(self) -> Iterator[int]:
        """Yield the remaining epochs, counted from 0."""
        for epoch in range((self.iteration - self.unscored) // self.per_epoch, self.max_epoch):
            self.epoch = epoch
            yield epoch

    def batches(self) -> Iterator[dict]:
        """Yield the remaining batches of the epoch, on the device, as the network shares them."""
        done = self.iteration - self.epoch * self.per_epoch
        self.loader.sampler.start(self.epoch, done * self.loader.sampler.batch_size)
        for batch in progress(self.loader, f'epoch {self.epoch + 1}', lines=False) if done < self.per_epoch else ():
            yield self.network.receive(batch)
        processes.copy_from_main(self.network.model.buffers())  # the running statistics, for the scoring
        self.holding.close()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss of a batch, or of a micro-batch or share whose losses add up."""
        if self.loss is None:
            self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def step(
        self, losses: dict[str, Tensor] | None = None, weights: dict[str, float] | None = None, **more: float
    ) -> None:
        """Update the weights and the learning rate; then log and save.

        losses: the terms of the batch's loss by name; the loss is their sum, each times its weight (default 1). None if
        `backward` was called. The terms and `more` are logged.
        """
        if losses:
            self.backward(sum((weights or {}).get(name, 1) * value for name, value in losses.items()))
        loss, self.loss = self.network.total(self.loss), None
        lr = self.optimizer.param_groups[0]['lr']
        self._update()
        self.iteration += 1
        if self.scaler.is_enabled():
            more['scale'] = self.scaler.get_scale()
        self.log.iteration(self.iteration, lr, {'loss': loss, **(losses or {})}, **more)

        # All processes stop after the same iteration.
        self.stop = processes.largest(signals.received())
        self.unscored = self.iteration % self.per_epoch == 0
        if self.stop or self.unscored or self.iteration % self.save_interval == 0:
            self.save()

    def _update(self) -> None:
        """Update weights and learning rate, unless gradients have overflowed in float16: then lower their scale.

        All processes do the same, because their sums of gradients are equal.
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
        self.holding.enter_context(signals.held())
        for title, picture in pictures.items():
            self.log.picture(self.iteration, title, picture)
        processes.from_main(self._check_sources)
        is_best = self.models.save(self.network.model, self.epoch + 1, score, **self.meta)
        if score is not None:
            self.log.epoch(self.iteration, self.epoch + 1, name, score, is_best)
        if self.iteration == self.iterations:
            self.log.finish(self.iteration)
        self._record()
        self.unscored = False
        self.stop = processes.largest(signals.received())
        self.save()

    def save(self) -> None:
        """Save the checkpoint unless the model is not finite (UserError); exit if a signal has asked for it."""
        check_finite(self.network.model)
        if launcher.is_main():
            self._check_sources()
            state = {name: one.state_dict() for name, one in self.resumable.items()}
            place = {'iteration': self.iteration, 'unscored': self.unscored}
            self.files.save({**place, 'state': state, **_random_state()})
        if self.stop:
            raise self._stopped()

    def _check_sources(self) -> None:
        for source in self.sources:
            source.check_unchanged()

    def _load(self, state: dict) -> None:
        try:
            for name, one in self.resumable.items():
                one.load_state_dict(state['state'][name])
            _set_random_state(state)
            self.iteration, self.unscored = state['iteration'], state['unscored']
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise self.files.damaged(error) from None


def _random_state() -> dict:
    """Return the state of the random numbers: CPU, and all GPUs of this process."""
    cuda = []
    if torch.cuda.is_initialized():
        cuda = [torch.cuda.get_rng_state()] if launcher.is_launched() else torch.cuda.get_rng_state_all()
    return {'random': torch.get_rng_state(), 'random_cuda': cuda}


def _set_random_state(state: dict) -> None:
    torch.set_rng_state(state['random'])
    if launcher.is_launched() and torch.cuda.is_initialized():  # all processes draw the same numbers
        for random in state['random_cuda'][:1]:
            torch.cuda.set_rng_state(random)
    elif torch.cuda.is_available():  # perhaps with fewer GPUs than before
        torch.cuda.set_rng_state_all(state['random_cuda'][: torch.cuda.device_count()])
