"""The log of a run: lines, curves, pictures."""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from core import UserError
from util.store.fingerprints import versions
from util.training.log import Log

OPTIONS = {'tag': 'tag', 'print_ratio': 0.5, 'max_epoch': 2}


def new_log(interval: int = 5, iterations: int = 20) -> Log:
    return Log('tag', OPTIONS, 'Classifier', interval, iterations)


def curves() -> dict:
    return json.loads(Path('experiments/data/tag.json').read_text())['curves']


def test_losses_are_averaged_from_line_to_line(in_tmp):
    with new_log(2) as log:
        for iteration, losses in enumerate(({'loss': 1, 're': 4}, {'loss': 2, 're': 0}, {'loss': 6}, {'loss': 8}), 1):
            log.iteration(iteration, 0.1, {name: torch.tensor(float(value)) for name, value in losses.items()})
        log.save_curves()
    assert curves() == {'lr': [[2, 0.1], [4, 0.1]], 'loss': [[2, 1.5], [4, 7]], 're': [[2, 2]]}


def test_averages_resume(in_tmp):
    """A checkpoint between two lines of the log."""
    with new_log(2) as log:
        log.iteration(1, 0.1, {'loss': torch.tensor(1.0)})
        state = log.state_dict()
    resumed = new_log(2)
    resumed.load_state_dict(state)
    with resumed as log:
        log.iteration(2, 0.1, {'loss': torch.tensor(2.0)})
        log.save_curves()
    assert curves()['loss'] == [[2, 1.5]]


def test_a_pipe_in_place_of_the_file_is_refused(in_tmp):
    """Nobody reads it: opening it would wait for ever."""
    Path('experiments/logs').mkdir(parents=True)
    os.mkfifo('experiments/logs/tag.txt')
    with pytest.raises(UserError, match='^experiments/logs/tag.txt: is not a regular file: remove it$'), new_log():
        pass


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_loss_that_is_not_finite_ends_the_run(in_tmp, value):
    with new_log() as log, pytest.raises(UserError, match='not finite at iteration 5 .*--lr'):
        log.iteration(5, 0.05, {'loss': torch.tensor(value)})


def test_lines_and_curves(in_tmp):
    with new_log() as log:
        log.iteration(4, 0.06, {'loss': torch.tensor(1.0)}, alpha=1.0)
        log.iteration(5, 0.05, {'loss': torch.tensor(1.5)}, alpha=2.0)
        log.epoch(10, 1, 'val mIoU', 0.5, True)
        log.epoch(20, 2, 'val mIoU', 0.25, False)
        log.picture(10, 'CAMs', np.zeros((4, 5, 3), np.uint8))
        assert not (in_tmp / 'experiments/data').exists()
        log.save_curves()
    lines = (in_tmp / 'experiments/logs/tag.txt').read_text().splitlines()
    assert json.loads(lines[0])['options'] == OPTIONS
    assert lines[1].startswith('iteration 5/20, lr 0.05000, loss 1.2500, alpha 2.0000, ')
    assert lines[2].startswith('epoch 1: val mIoU 50.00 % (best so far), time 0:0')
    assert lines[3].startswith('epoch 2: val mIoU 25.00 %, time 0:0')
    content = json.loads((in_tmp / 'experiments/data/tag.json').read_text())
    assert content == {
        'network': 'Classifier',
        'options': OPTIONS,
        'versions': versions(),
        'seconds': content['seconds'],
        'sweeps': {},
        'curves': {'lr': [[5, 0.05]], 'loss': [[5, 1.25]], 'alpha': [[5, 2.0]], 'mIoU': [[10, 50.0], [20, 25.0]]},
    }


def test_seconds_are_summed_over_sessions(in_tmp, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr('util.training.log.time.time', lambda: now[0])
    content = {}
    for length, expected in ((5.25, 5.25), (2, 7.25), (10, 17.25)):
        log = new_log(2, 8)
        if content:
            log.load_state_dict(content)
        with log:
            now[0] += length
            log.save_curves()
            content = log.state_dict()
            now[0] += 100  # after its last checkpoint the session is killed
        assert json.loads((in_tmp / 'experiments/data/tag.json').read_text())['seconds'] == expected


def tensorboard_of(in_tmp) -> EventAccumulator:
    events = EventAccumulator(str(in_tmp / 'experiments/tensorboards/tag'))
    events.Reload()
    return events


@pytest.mark.parametrize('saved', [False, True])
def test_sweeps_and_options_survive_resuming_without_duplicates(in_tmp, saved):
    """A run is killed after its last scores, before they are saved, and repeats that epoch, or both."""

    def epoch(log, step, values):
        log.sweep(step, 'mIoU', (0.1, 0.25), values)
        log.epoch(step, step // 10, 'mIoU', max(values), True)

    with new_log() as log:
        epoch(log, 10, (0.5, 0.75))
        state = json.loads(json.dumps(log.state_dict()))
        epoch(log, 20, (0.125, 1))
        log.finish(20)
    time.sleep(1.1)  # as below
    resumed = new_log()
    if saved:
        resumed.load_state_dict(state)
    with resumed as log:
        if not saved:
            epoch(log, 10, (0.5, 0.75))
        epoch(log, 20, (0.25, 0.5))
        log.finish(20)
        log.save_curves()
    content = json.loads((in_tmp / 'experiments/data/tag.json').read_text())
    assert content['sweeps'] == {'mIoU': {'thresholds': [0.1, 0.25], 'points': [[10, [50, 75]], [20, [25, 50]]]}}
    assert content['curves'] == {'mIoU': [[10, 75], [20, 50]]}  # a sweep is not a curve
    events = tensorboard_of(in_tmp)
    for name, expected in (
        ('mIoU by threshold/0.10', [(10, 50), (20, 25)]),
        ('mIoU by threshold/0.25', [(10, 75), (20, 50)]),
        ('best mIoU', [(20, 75)]),
    ):
        assert [(point.step, point.value) for point in events.Scalars(name)] == expected
    layout, *again = events.Tensors('custom_scalars__config__')
    assert len(again) == (not saved)  # the accumulator drops no tensors; TensorBoard reads one
    chart = Layout.FromString(layout.tensor_proto.string_val[0]).category[0].chart[0]
    assert list(chart.multiline.tag) == ['mIoU by threshold/.*']
    content = events.PluginTagToContent('hparams')
    start = HParamsPluginData.FromString(content[SESSION_START_INFO_TAG]).session_start_info
    found = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert found == OPTIONS
    assert HParamsPluginData.FromString(content[SESSION_END_INFO_TAG]).session_end_info.status


def test_points_after_the_last_checkpoint_are_dropped(in_tmp):
    with new_log(2, 8) as log:
        for i in range(1, 3):
            log.iteration(2 * i, 0.1, {'loss': torch.tensor(float(i))})
        state = json.loads(json.dumps(log.state_dict()))
        log.iteration(6, 0.1, {'loss': torch.tensor(9.0)})  # not saved: the run is killed
    time.sleep(1.1)  # files of one second are read in the order of a counter as text: 10 before 9
    resumed = new_log(2, 8)
    resumed.load_state_dict(state)
    with resumed as log:
        log.iteration(6, 0.1, {'loss': torch.tensor(3.0)})
        log.save_curves()
    curves = json.loads((in_tmp / 'experiments/data/tag.json').read_text())['curves']
    assert curves['loss'] == [[2, 1.0], [4, 2.0], [6, 3.0]]
    events = tensorboard_of(in_tmp)
    assert [(point.step, point.value) for point in events.Scalars('loss')] == [(2, 1), (4, 2), (6, 3)]
