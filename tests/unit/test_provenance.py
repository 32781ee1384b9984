"""tools/reporting/provenance.py: what led to an output folder."""

import json
from pathlib import Path

import pytest

from support.made_outputs import AFFINITY, CAM, LABELS, PREDICTIONS_ON_VAL, WALK
from tools.reporting.provenance import read_run, trace
from util.store.files import write_json
from util.store.formats import PREDICTIONS


@pytest.fixture
def here(experiment, monkeypatch) -> Path:
    monkeypatch.chdir(experiment)
    return experiment


def test_the_whole_chain_inputs_first(here):
    steps = trace({PREDICTIONS_ON_VAL: 'prediction'})
    assert [step.name for step in steps] == [
        'my@puzzle', CAM, AFFINITY, 'my@affinity', WALK, LABELS, 'my@deeplab', PREDICTIONS_ON_VAL,
    ]  # fmt: skip
    assert [step.is_run for step in steps] == [True, False, False, True, False, False, True, False]
    assert [step.kind for step in steps] == [
        'classifier', 'CAM', 'affinity label', 'AffinityNet', 'random-walk CAM', 'pseudo-label',
        'segmentation network', 'prediction',
    ]  # fmt: skip
    assert all(step.path.exists() for step in steps)
    assert steps[0].seconds == 3700
    assert steps[0].curves['mAP'] == [[20, 60]]
    assert (steps[1].seconds, steps[1].versions['code'], steps[1].curves) == (75.4, 'abc1234', {})


def test_each_step_comes_once(here):
    names = [step.name for step in trace(dict.fromkeys((CAM, LABELS, WALK), 'output'))]
    assert len(names) == len(set(names))
    assert names[:2] == ['my@puzzle', CAM]
    assert names[-1] == LABELS


def test_weights_of_another_run_are_upstream(here):
    run = read_run('my@affinity')
    assert run.options['weights'] == 'experiments/models/my@puzzle.pth'
    names = [step.name for step in trace({WALK: 'output'})]
    assert names.index('my@puzzle') < names.index('my@affinity')


def test_steps_that_are_gone_or_damaged_are_left_out(in_tmp):
    write_json(PREDICTIONS / 'a@train@scale=1.0' / 'args.json', {'options': {'tag': 'gone'}})
    write_json(PREDICTIONS / 'b@crf=1' / 'args.json', {'options': {'experiment_name': 'a@train@scale=1.0', 'k': 1}})
    assert [step.name for step in trace({'b@crf=1': 'pseudo-label'})] == ['a@train@scale=1.0', 'b@crf=1']
    (PREDICTIONS / 'b@crf=1' / 'args.json').write_text('no json')
    (step,) = trace({'b@crf=1': 'pseudo-label'})
    assert (step.name, step.kind, step.options, step.seconds) == ('b@crf=1', 'pseudo-label', {}, None)
    for content in ('no json', '[]', '{}', json.dumps({'options': {'radius': 5}})):
        Path('experiments/data').mkdir(exist_ok=True)
        Path('experiments/data/run.json').write_text(content)
        assert read_run('run') is None


def test_folders_that_name_one_another_end(in_tmp):
    for name, other in (('a@crf=1', 'b@crf=1'), ('b@crf=1', 'a@crf=1')):
        write_json(PREDICTIONS / name / 'args.json', {'options': {'experiment_name': other}})
    assert {step.name for step in trace({'a@crf=1': 'pseudo-label'})} == {'a@crf=1', 'b@crf=1'}
