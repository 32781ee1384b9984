"""tools/reporting/provenance.py: what led to an output folder."""

import json
from pathlib import Path

import pytest

from core import UserError
from support.made_outputs import AFFINITY, CAM, LABELS, PREDICTIONS_ON_VAL, WALK
from support.results import write_result
from tools.reporting import find
from tools.reporting.entries import Entry
from tools.reporting.provenance import check_mean, read_run, trace
from tools.reporting.tables import tabulate_means
from util.store.files import write_json
from util.store.formats import PREDICTIONS, run_path


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


def write_chain(tag: str, **settings: object) -> None:
    """Write the records of a classifier and its CAMs, and a result of these."""
    common = {'options': {'tag': tag}, 'fingerprint': {'tag': tag, 'model': 64 * tag[-1]}}
    write_json(
        run_path(tag), {'network': 'Classifier', 'curves': {}, **common, 'fingerprint': {'tag': tag, **settings}}
    )
    write_json(PREDICTIONS / f'{tag}@cams' / 'args.json', {'format': 'CAM', **common})
    write_result(f'{tag}@cams@train', 50, folder=f'{tag}@cams')


def test_runs_of_other_settings_have_no_mean(in_tmp):
    write_chain('seed=0', seed=0, lr=0.1, tile=None)
    write_chain('seed=1', seed=1, lr=0.1)
    write_chain('seed=2', seed=2, lr=0.3)
    check_mean(find.find('seed=0') + find.find('seed=1'))
    fault = 'seed=0@cams@train and seed=2@cams@train cannot be in one row: classifier: lr is 0.1 and 0.3'
    with pytest.raises(UserError, match=fault):
        check_mean(find.find('seed=*'))


def test_report_names_the_runs_that_have_no_mean(in_tmp, capsys):
    for seed, rate in enumerate((0.1, 0.1, 0.3)):
        write_chain(f'seed={seed}', seed=seed, lr=rate)
    results = find.find('seed=*')
    entries = [
        Entry(result['name'], result['experiment_name'], 'CAM', 'train', result, pattern='seed=*') for result in results
    ]
    (row,) = tabulate_means(entries[:2])
    assert row['seeds'] == '0, 1'
    assert capsys.readouterr().err == ''
    assert tabulate_means(entries) == []
    fault = 'seed=0@cams@train and seed=2@cams@train cannot be in one row: classifier: lr is 0.1 and 0.3'
    assert capsys.readouterr().err == f'warning: no mean: {fault}; use a narrower pattern\n'
