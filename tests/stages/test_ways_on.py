"""Lines that say how to go on: torchrun, the model of a checkpoint, a longer run; batches without labelled pixels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_segmentation
from core import IGNORE
from core.models.backbones import BACKBONES, Backbone
from support import draw_image, fault_of, run_stage
from support.networks import Tiny, labels_of
from tools import check_dataset
from util import script
from util.training import Run

SIZES = '--image_size 32 --min_image_size 24 --max_image_size 64 --batch_size 4'


@pytest.fixture
def line(demo, in_tmp, monkeypatch) -> list[str]:
    """The command of stage 7 on labels in patches."""
    monkeypatch.setitem(BACKBONES, 'tiny', Backbone(lambda output_stride: Tiny(), {}))
    files = f'--dataset {demo}/dataset.json --data_dir {demo} --num_workers 0 --device cpu --weights none --tag run'
    return f'{files} --backbone tiny {SIZES} --label_name {labels_of(demo, in_tmp)}'.split()


def train(line, monkeypatch, *more) -> list[float]:
    """Return the loss of each step."""
    losses = []

    def step(self, *arguments, real=Run.step, **options):
        losses.append(float(self.loss))
        real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Run, 'step', step)
        run_stage(train_segmentation, [*line, '--max_epoch', '1', *more])
    return losses


@pytest.mark.parametrize('more', [(), ('--micro_batches', '2')])
def test_batches_without_labelled_pixels(line, in_tmp, monkeypatch, more):
    labels = sorted(Path('experiments/predictions/labels').glob('*.png'))
    for path in labels:
        with Image.open(path) as image:
            void = Image.fromarray(np.full(image.size[::-1], IGNORE, np.uint8))
        void.save(path)
    assert train(line, monkeypatch, *more) == [0, 0, 0]
    state = torch.load('experiments/models/run.pth', weights_only=True)['model']
    assert all(torch.isfinite(value).all() for value in state.values())


def test_one_batch_without_labelled_pixels_among_others(line, monkeypatch):
    real, calls = train_segmentation.SharedModel.micro_batches, []

    def without(self, batch):
        calls.append(len(calls))
        yield from real(self, batch)

    def receive(self, batch, real=train_segmentation.SharedModel.receive):
        batch = real(self, batch)
        if len(calls) == 1 and self.model.training:
            batch['masks'][:] = IGNORE
        return batch

    monkeypatch.setattr(train_segmentation.SharedModel, 'micro_batches', without)
    monkeypatch.setattr(train_segmentation.SharedModel, 'receive', receive)
    losses = train(line, monkeypatch)
    assert losses[0] > 0 and losses[1] == 0 and losses[2] > 0


def test_a_longer_run_and_a_checkpoint_as_weights(line, capsys, monkeypatch):
    run_stage(train_segmentation, [*line, '--max_epoch', '1'])
    with pytest.raises(SystemExit) as ended:
        script.run(train_segmentation.main, lambda: train_segmentation.parse_args([*line, '--max_epoch', '2']))
    assert '(max_epoch: 1, requested 2)' in ended.value.code
    assert 'to train on from its backbone, pass --weights experiments/models/run.pth --tag OTHER' in ended.value.code

    other = [*line, '--tag', 'other', '--max_epoch', '1']
    text = fault_of(train_segmentation, [*other, '--weights', 'experiments/checkpoints/run.pth'], capsys)
    assert '--weights experiments/checkpoints/run.pth: is the checkpoint of a run' in text
    assert text.endswith('pass its model, experiments/models/run.pth')
    run_stage(train_segmentation, [*other, '--weights', 'experiments/models/run.pth'])
    assert Path('experiments/models/other.pth').is_file()


@pytest.mark.parametrize('flag', ['--local-rank=0', '--local_rank=0'])
def test_the_old_launcher(line, flag, capsys, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        train_segmentation.parse_args([*line, flag])
    assert ended.value.code == 2
    said = 'start the processes with torchrun instead of python -m torch.distributed.launch'
    assert said in capsys.readouterr().err
    for name, value in {'RANK': '1', 'LOCAL_RANK': '1', 'WORLD_SIZE': '2'}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        train_segmentation.parse_args([*line, flag])
    assert capsys.readouterr().err == '', 'the first process says it'


def test_warnings_of_a_data_set_are_a_line(in_tmp, capsys):
    for name in 'ab':
        draw_image(in_tmp / f'{name}.jpg')
    Path('labels.csv').write_text('image,classes\na.jpg,"dog, cat"\nb.jpg,cat\n')
    command = '--dataset labels.csv --data_dir . --num_workers 0'.split()
    script.run(check_dataset.main, lambda: check_dataset.parse_args(command))
    assert capsys.readouterr().err.startswith("warning: labels.csv: 'dog, cat' is a single class: join classes by ';'")


def test_check_says_how_to_go_on_without_an_image(in_tmp, capsys):
    draw_image(in_tmp / 'a.jpg')
    Path('labels.csv').write_text('image,classes\na.jpg,cat\nb.jpg,cat\n')
    command = '--dataset labels.csv --data_dir . --num_workers 0'.split()
    with pytest.raises(ValueError, match='1 error, listed above'):
        run_stage(check_dataset, command)
    advice = 'to go on without images that are missing or cannot be read, remove them from labels.csv'
    assert advice in capsys.readouterr().out.splitlines()
    shutil.copy('a.jpg', 'b.jpg')
    run_stage(check_dataset, command)
    assert 'to go on' not in capsys.readouterr().out
