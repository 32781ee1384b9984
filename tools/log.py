"""The log of a training run: lines on screen and in logs/{tag}.txt, curves in data/{tag}.json, all in TensorBoard."""

import json
import sys
import time
from argparse import Namespace

import numpy as np

from tools import UserError
from tools.experiment import EXPERIMENTS, versions, write_json


class Averages:
    """Means of the loss terms since the last line, summed on their device: reading a value there would wait for it."""

    def __init__(self):
        self.sums, self.count = {}, 0

    def add(self, values: dict) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def take(self) -> dict[str, float]:
        """The means, in the order of the first call; starts anew."""
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state_dict(self) -> dict:
        return {'sums': dict(self.sums), 'count': self.count}

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.count = dict(state['sums']), state['count']


class RunLog:
    """log(text) writes a line; scalars(step, **values) a point of each curve; picture(step, name, image) an image.

    `args` are the run's options, `per_epoch` the iterations of an epoch, each --print_ratio of which has a line. Files
    are opened on entering, after the curves of an interrupted run have been loaded.
    """

    def __init__(self, args: Namespace, per_epoch: int):
        self.tag, self.options = args.tag, vars(args)
        self.every, self.iterations = max(1, int(per_epoch * args.print_ratio)), per_epoch * args.max_epoch
        self.averages = Averages()
        self.curves: dict[str, list[list[float]]] = {}

    def state_dict(self) -> dict:
        return {'curves': self.curves}

    def load_state_dict(self, state: dict) -> None:
        self.curves = state['curves']

    def __enter__(self) -> 'RunLog':
        from torch.utils.tensorboard import SummaryWriter

        self.start = time.time()
        path = EXPERIMENTS / 'logs' / f'{self.tag}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open('a')
        done = max((points[-1][0] for points in self.curves.values()), default=-1)
        # What a killed run had drawn beyond its last save is drawn again.
        self.writer = SummaryWriter(str(EXPERIMENTS / 'tensorboards' / self.tag), purge_step=done + 1)
        self.log(json.dumps({'options': self.options, 'versions': versions()}))
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()
        self.writer.close()

    def log(self, text: str) -> None:
        self.file.write(text + '\n')
        self.file.flush()
        print(text, file=sys.stderr, flush=True)

    def training(self, iteration: int, lr: float, losses: dict, **more: float) -> None:
        """To be called after each iteration: once in a while a line and a point of each curve, of means since the last.

        losses: tensors of one value each. `more` is told as it is then.
        """
        self.averages.add(losses)
        if iteration % self.every:
            return
        values = {**self.averages.take(), **more}
        if not np.isfinite(list(values.values())).all():
            advice = 'try a smaller --lr (or --alpha; are --weights good?)'
            raise UserError(f'the loss is not finite at iteration {iteration} ({values}): {advice}')
        text = ', '.join(f'{name} {value:.4f}' for name, value in values.items())
        self.log(f'iteration {iteration}/{self.iterations}, lr {lr:.5f}, {text}, time {self.elapsed()}')
        self.scalars(iteration, lr=lr, **values)

    def scored(self, iteration: int, epoch: int, name: str, miou: float, best: bool) -> None:
        """A line and a point after an epoch; also writes the curves' file. miou in [0, 1]."""
        self.log(f'epoch {epoch}: {name} {100 * miou:.2f} %{" (best so far)" if best else ""}, time {self.elapsed()}')
        self.scalars(iteration, mIoU=100 * miou)
        self.save_curves()

    def scalars(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self.curves.setdefault(name, []).append([step, value])
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """image (h, w, 3) uint8 RGB."""
        self.writer.add_image(name, image, step, dataformats='HWC')

    def save_curves(self) -> None:
        """Write data/{tag}.json: options, and [step, value] points by curve."""
        write_json(EXPERIMENTS / 'data' / f'{self.tag}.json', {'options': self.options, 'curves': self.curves})
        self.writer.flush()

    def elapsed(self) -> str:
        minutes, seconds = divmod(int(time.time() - self.start), 60)
        return f'{minutes}:{seconds:02d}'
