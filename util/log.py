"""The log of a training run: lines on screen and in logs/{tag}.txt, curves in data/{tag}.json, all in TensorBoard."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from core import UserError
from util import launcher
from util.artifacts import EXPERIMENTS
from util.files import make_folder, write_json
from util.fingerprint import versions


class Averages:
    """Means of the loss terms since the last line, accumulated on the device to avoid a sync per step."""

    def __init__(self):
        self.sums, self.count = {}, 0

    def add(self, values: dict) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def take(self) -> dict[str, float]:
        """Return the means, in the order of the first `add`, and reset."""
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state_dict(self) -> dict:
        return {'sums': dict(self.sums), 'count': self.count}

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.count = dict(state['sums']), state['count']


class Log:
    """`line(text)` writes a line, `iteration(...)` a line per print interval, `epoch(...)` the score, `picture(...)`.

    Files are opened on entering, after the curves of an interrupted run have been loaded. Of several processes only the
    first one opens and writes them; all keep the curves.
    """

    def __init__(self, args: Namespace, per_epoch: int):
        self.tag, self.options = args.tag, vars(args)
        self.interval, self.iterations = max(1, int(per_epoch * args.print_ratio)), per_epoch * args.max_epoch
        self.averages = Averages()
        self.curves: dict[str, list[list[float]]] = {}
        self.sweeps: dict[str, dict[str, list]] = {}  # thresholds, and points [step, values] at them
        self.versions = versions()
        self.earlier: float | None = 0.0  # seconds of the sessions before this one

    def state_dict(self) -> dict:
        return {'curves': self.curves, 'sweeps': self.sweeps, 'seconds': self.seconds()}

    def load_state_dict(self, state: dict) -> None:
        self.curves = state['curves']
        # Checkpoints of earlier versions lack these.
        self.sweeps, self.earlier = state.get('sweeps', {}), state.get('seconds')

    def __enter__(self) -> 'Log':
        self.start = time.time()
        if not launcher.is_main():
            return self
        path = EXPERIMENTS / 'logs' / f'{self.tag}.txt'
        make_folder(path.parent)
        self.file = path.open('a')
        # Drop the points that a killed run logged after its last checkpoint.
        done = max((points[-1][0] for points in self.curves.values()), default=-1)
        self.writer = SummaryWriter(str(EXPERIMENTS / 'tensorboards' / self.tag), purge_step=done + 1)
        self.line(json.dumps({'options': self.options, 'versions': self.versions}))
        return self

    def __exit__(self, *exception) -> None:
        if launcher.is_main():
            self.file.close()
            self.writer.close()

    def line(self, text: str) -> None:
        if not launcher.is_main():
            return
        self.file.write(text + '\n')
        self.file.flush()
        print(text, file=sys.stderr, flush=True)

    def iteration(self, iteration: int, lr: float, losses: dict, **more: float) -> None:
        """Call after every iteration: logs means at the print interval. `losses` are tensors; `more` is logged as is.

        Raises UserError if a mean is not finite.
        """
        self.averages.add(losses)
        if iteration % self.interval:
            return
        values = {**self.averages.take(), **more}
        if not np.isfinite(list(values.values())).all():
            advice = 'try a smaller --lr (or --alpha), or check --weights'
            raise UserError(f'the loss is not finite at iteration {iteration} ({values}): {advice}')
        text = ', '.join(f'{name} {value:.4f}' for name, value in values.items())
        self.line(f'iteration {iteration}/{self.iterations}, lr {lr:.5f}, {text}, time {self.elapsed()}')
        self.scalars(iteration, lr=lr, **values)

    def epoch(self, iteration: int, epoch: int, name: str, miou: float, best: bool) -> None:
        """Log the score of an epoch; miou in [0, 1]."""
        self.line(f'epoch {epoch}: {name} {100 * miou:.2f} %{" (best so far)" if best else ""}, time {self.elapsed()}')
        self.scalars(iteration, mIoU=100 * miou)

    def scores(self, iteration: int, title: str, **values: np.ndarray | float) -> None:
        """Log scores in [0, 1], or the means over classes of scores such as AP; NaN marks what does not occur."""
        means = {name: 100 * float(np.nanmean(value)) for name, value in values.items() if not np.isnan(value).all()}
        self.line(f'{title}: {", ".join(f"{name} {mean:.2f} %" for name, mean in means.items()) or "nothing to score"}')
        self.scalars(iteration, **means)

    def table(self, head: str, names: Sequence[str], columns: dict[str, np.ndarray]) -> None:
        """Log a table of a row per name; NaN is '-'."""
        cells = [['-' if np.isnan(x) else f'{x:.1f}' for x in column] for column in columns.values()]
        rows = zip(names, *cells, strict=True)
        align = ('left', *('right' for _ in columns))
        self.line(tabulate(rows, (head, *columns), 'pipe', colalign=align, disable_numparse=True))

    def scalars(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self.curves.setdefault(name, []).append([step, value])
            if launcher.is_main():
                self.writer.add_scalar(name, value, step)

    def sweep(self, step: int, name: str, thresholds: Sequence[float], values: Sequence[float]) -> None:
        """Log a score in [0, 1] at several thresholds: TensorBoard gets a curve of each, and one chart of all."""
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

    def save_curves(self) -> None:
        """Write data/{tag}.json: options, versions, seconds of all sessions, [step, value] points by curve, sweeps."""
        if not launcher.is_main():
            return
        content = {'options': self.options, 'versions': self.versions, 'seconds': self.seconds()}
        write_json(EXPERIMENTS / 'data' / f'{self.tag}.json', {**content, 'curves': self.curves, 'sweeps': self.sweeps})
        self.writer.flush()

    def seconds(self) -> float | None:
        """Return the duration of this session and of the earlier ones up to their last checkpoints."""
        return None if self.earlier is None else round(self.earlier + time.time() - self.start, 2)

    def elapsed(self) -> str:
        minutes, seconds = divmod(int(time.time() - self.start), 60)
        return f'{minutes}:{seconds:02d}'
