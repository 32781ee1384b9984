"""What a trainer prints: a short first line, the time left; all options are in the log file."""

import json
from pathlib import Path

import torch

import train_classification_with_puzzle as stage1
from util.training.log import Log


def test_options_are_in_the_log_file_alone(in_tmp, capsys):
    with Log('tag', {'lr': 0.1}, 'Classifier', 1, 20) as log:
        log.line('a line')
    assert capsys.readouterr().err == 'a line\n'
    first, second = Path('experiments/logs/tag.txt').read_text().splitlines()
    assert json.loads(first)['options'] == {'lr': 0.1}
    assert second == 'a line'


def test_lines_of_iterations_end_with_the_time_left(in_tmp, capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr('util.training.log.time.time', lambda: now[0])
    loss = {'loss': torch.tensor(1.0)}
    with Log('tag', {}, 'Classifier', 5, 20) as log:  # resumed after iteration 10
        for iteration in range(11, 21):
            now[0] += 6
            log.iteration(iteration, 0.1, loss)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition('time ')[2] for line in lines] == ['0:30, about 30 s left', '1:00']


def test_the_first_line_of_a_training_is_short(demo, in_tmp, capsys):
    sizes = '--image_size 64 --min_image_size 48 --max_image_size 80 --batch_size 4 --max_epoch 1 --lr 0.01'
    line = f'--dataset {demo}/dataset.json --data_dir {demo} --num_workers 0 --architecture resnest14_narrow'
    line += f' --weights none --bn_replicas 1 --loss_option cl --tag t --device cpu {sizes}'
    stage1.main(stage1.parse_args(line.split()))
    printed = capsys.readouterr()
    lines = [*printed.out.splitlines(), *printed.err.splitlines()]
    assert 't: Classifier with resnest14_narrow, 12 images, 3 iterations' in lines
    assert max(map(len, lines)) < 200
    assert json.loads(Path('experiments/logs/t.txt').read_text().splitlines()[0])['options']['tag'] == 't'
