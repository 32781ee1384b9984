"""The log of a training run: lines on screen and in logs/{tag}.txt, curves in data/{tag}.json, all in TensorBoard."""

import json
import sys
import time
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from core import UserError
from util import launcher
from util.script import time_left
from util.store.files import check_not_special, make_folder, write_json
from util.store.fingerprints import versions
from util.store.formats import EXPERIMENTS, run_path


class Log:
    """`line(text)` writes a line, `iteration(...)` the losses, `epoch(...)` the score, `picture(...)`.

    Files are opened on entering, after the curves of an interrupted run have been loaded. Of several processes only the
    first one opens and writes them; all keep the curves.
    """

    def __init__(self, tag: str, options: dict, network: str, interval: int, iterations: int):
        self.tag, self.options, self.network = tag, options, network
        self.interval, self.iterations = interval, iterations
        # Sums of the loss terms since the last line, on the device, so that no step waits for it.
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.curves: dict[str, list[list[float]]] = {}
        self.sweeps: dict[str, dict[str, list]] = {}  # thresholds, and points [step, values] at them
        self.versions = versions()
        self.earlier = 0.0  # seconds of earlier sessions
        self.first: int | None = None  # iteration of this session
        self.start, self.writer = time.time(), None

    def state_dict(self) -> dict:
        sums = {'sums': dict(self.sums), 'count': self.count}
        return {'curves': self.curves, 'sweeps': self.sweeps, 'seconds': self.seconds(), **sums}

    def load_state_dict(self, state: dict) -> None:
        self.curves, self.sweeps, self.earlier = state['curves'], state['sweeps'], state['seconds']
        self.sums, self.count = dict(state['sums']), state['count']

    def __enter__(self) -> 'Log':
        self.start = time.time()
        if not launcher.is_main():
            return self
        path = EXPERIMENTS / 'logs' / f'{self.tag}.txt'
        make_folder(path.parent)
        check_not_special(path)
        self.file = path.open('a')
        # Drop the points that a killed run logged after its last checkpoint.
        done = max((points[-1][0] for points in self.curves.values()), default=-1)
        self.writer = SummaryWriter(str(EXPERIMENTS / 'tensorboards' / self.tag), purge_step=done + 1)
        self._write(json.dumps({'options': self.options, 'versions': self.versions}))
        return self

    def __exit__(self, *exception) -> None:
        if launcher.is_main():
            self.file.close()
            self.writer.close()

    def line(self, text: str) -> None:
        if not launcher.is_main():
            return
        self._write(text)
        print(text, file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        """Write a line to the file only."""
        self.file.write(text + '\n')
        self.file.flush()

    def iteration(self, iteration: int, lr: float, losses: dict, **more: float) -> None:
        """Log means at the print interval; call it after every iteration. `losses` are tensors; `more` is logged as is.

        Raises UserError if a mean is not finite.
        """
        if self.first is None:
            self.first = iteration
        self.count += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        if iteration % self.interval:
            return
        values = {**{name: float(value) / self.count for name, value in self.sums.items()}, **more}
        self.sums, self.count = {}, 0
        if not np.isfinite(list(values.values())).all():
            advice = 'try a smaller --lr (or --alpha), or check --weights'
            raise UserError(f'the loss is not finite at iteration {iteration} ({values}): {advice}')
        text = ', '.join(f'{name} {value:.4f}' for name, value in values.items())
        left = time_left(time.time() - self.start, iteration - self.first + 1, self.iterations - self.first + 1)
        self.line(f'iteration {iteration}/{self.iterations}, lr {lr:.5f}, {text}, time {self.elapsed()}{left}')
        self.scalars(iteration, lr=lr, **values)

    def epoch(self, iteration: int, epoch: int, name: str, miou: float, best: bool) -> None:
        """Log the score of an epoch; miou in [0, 1]."""
        self.line(f'epoch {epoch}: {name} {100 * miou:.2f} %{" (best so far)" if best else ""}, time {self.elapsed()}')
        self.scalars(iteration, mIoU=100 * miou)

    def scores(self, iteration: int, title: str, **values: np.ndarray | float) -> None:
        """Log scores in [0, 1], or means over classes of scores such as AP; NaN marks a class that does not occur."""
        means = {name: 100 * float(np.nanmean(value)) for name, value in values.items() if not np.isnan(value).all()}
        self.line(f'{title}: {", ".join(f"{name} {mean:.2f} %" for name, mean in means.items()) or "nothing to score"}')
        self.scalars(iteration, **means)

    def scalars(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self.curves.setdefault(name, []).append([step, value])
            if launcher.is_main():
                self.writer.add_scalar(name, value, step)

    def sweep(self, step: int, name: str, thresholds: Sequence[float], values: Sequence[float]) -> None:
        """Log a score in [0, 1] at several thresholds: TensorBoard gets a curve for each, and one chart of all."""
        title, is_new = f'{name} by threshold', name not in self.sweeps
        sweep = self.sweeps.setdefault(name, {'thresholds': list(thresholds), 'points': []})
        sweep['points'].append([step, [100 * value for value in values]])
        if not launcher.is_main():
            return
        if is_new:
            self.writer.add_custom_scalars({title: {name: ['Multiline', [f'{title}/.*']]}})
        for threshold, value in zip(thresholds, values, strict=True):
            self.writer.add_scalar(f'{title}/{threshold:.2f}', 100 * value, step)

    def finish(self, step: int) -> None:
        """Log the options for TensorBoard's HParams tab, which shows the last point of each curve next to them."""
        if not launcher.is_main():
            return
        if 'mIoU' in self.curves:
            self.writer.add_scalar('best mIoU', max(value for _, value in self.curves['mIoU']), step)
        # Without the summary of the experiment, TensorBoard lists the options and curves of all runs, not of the first.
        _, *session = hparams(self.options, {})
        for summary in session:
            self.writer.file_writer.add_summary(summary, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image (h, w, 3) uint8 RGB to TensorBoard."""
        if launcher.is_main():
            self.writer.add_image(name, image, step, dataformats='HWC')

    def save_curves(self, **more: dict) -> None:
        """Write data/{tag}.json: network, options, versions, seconds of all sessions, curves of [step, value], more."""
        if not launcher.is_main():
            return
        content = {'network': self.network, 'options': self.options, 'versions': self.versions}
        content |= {'seconds': self.seconds(), 'curves': self.curves, 'sweeps': self.sweeps, **more}
        write_json(run_path(self.tag), content)
        if self.writer:
            self.writer.flush()

    def seconds(self) -> float:
        """Return the duration of this session and of the earlier ones up to their last checkpoints."""
        return round(self.earlier + time.time() - self.start, 2)

    def elapsed(self) -> str:
        minutes, seconds = divmod(int(time.time() - self.start), 60)
        return f'{minutes}:{seconds:02d}'
