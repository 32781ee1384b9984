"""recipes/terms.py: scores at equal L_cls, and the plan of scoring each scale by itself."""

import json
from pathlib import Path

import pytest

import evaluate
import inference_classification
from core import UserError
from recipes import runner, terms
from support import folder_of
from util.store import formats

# Two iterations per epoch: mean L_cls 0.4, 0.2, 0.1.
LOSSES = [[1, 0.5], [2, 0.3], [3, 0.25], [4, 0.15], [5, 0.1], [6, 0.1]]


def write_run(tag: str, scores: list[float], losses: list = LOSSES, **settings: object) -> None:
    path = Path('experiments/data') / f'{tag}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    curves = {'cl': losses, 'mIoU': [[2 * (i + 1), score] for i, score in enumerate(scores)]}
    options = {'dataset': 'set.json', 'data_dir': 'set'}
    path.write_text(json.dumps({'options': options, 'curves': curves, 'fingerprint': settings}))


def run(words: list[str], capsys) -> dict[str, list[str]]:
    """Return the cells of the first table."""
    terms.main(terms.parse_args(words))
    lines = [line.strip('|').split('|') for line in capsys.readouterr().out.splitlines()]
    return {title.strip(): [cell.strip() for cell in cells] for title, *cells in lines if '--' not in title}


def test_scores_at_equal_loss(in_tmp, capsys):
    write_run('cl@seed=0', [10, 20, 30])
    write_run('cl@seed=1', [12, 24, 30])
    write_run('all@seed=0', [40, 50], LOSSES[:4])
    write_run('all@seed=1', [42, 52, 54])
    table = run([' L_cls | cl@seed=*', 'three|all@seed=*', '--levels', '0.3', '0.45', '0.2', '0.15', '0.05'], capsys)
    assert table == {
        'L_cls': ['L_cls', 'three'],
        '0.45': ['', ''],
        '0.3': ['16.50 +- 2.12', '46.00 +- 1.41'],
        '0.2': ['22.00 +- 2.83', '51.00 +- 1.41'],
        '0.15': ['26.00 +- 1.41', '53.00 (1 of 2)'],
        '0.05': ['', ''],
        'end: mIoU %': ['30.00 +- 0.00', '52.00 +- 2.83'],
        'end: L_cls': ['0.100', '0.150'],
    }


def test_rows_that_cannot_be_compared(in_tmp, capsys):
    for tag, masks in (('a', {'x': '11'}), ('b', {'x': '22'})):
        write_run(tag, [10, 20, 30])
        path = Path(f'experiments/data/{tag}.json')
        path.write_text(json.dumps({**json.loads(path.read_text()), 'inputs': {'scored masks': masks}}))
    with pytest.raises(UserError, match='a and b cannot be in one table: their CAMs were scored on different masks'):
        run(['one | a', 'two | b'], capsys)
    with pytest.raises(SystemExit):
        terms.parse_args(['one | a', 'one | b'])
    assert "two rows are called 'one'" in capsys.readouterr().err


def test_the_first_time_a_level_is_reached_counts():
    assert terms.score_at([0.4, 0.2, 0.3, 0.1], [10, 20, 90, 40], 0.25) == pytest.approx(17.5)
    assert terms.score_at([0.4, 0.4], [10, 20], 0.4) == 10
    assert terms.score_at([0.4], [10], 0.4) is None


def test_each_scale_is_scored_once(in_tmp, monkeypatch):
    """The stages accept the commands, and the tables read the results that they write."""
    write_run('cl@seed=0', [10, 20, 30])
    write_run('cl@seed=1', [10, 20, 30])
    planned, tables = [], []
    monkeypatch.setattr(terms, 'execute_every_run', lambda runs, jobs: planned.append(runs))
    monkeypatch.setattr(terms, 'execute_summaries', lambda summaries: tables.append(summaries))
    words = ['L_cls | cl@seed=*', '--scales', '0.5,2.0']
    done = formats.result_path('cl@seed=1@train@scale=2.0@train', 'json')
    done.parent.mkdir(parents=True)
    done.write_text('{}')
    terms.main(terms.parse_args(words))
    assert {name: len(commands) for name, commands in planned[0].items()} == {
        'cl@seed=0@scales': 4,
        'cl@seed=1@scales': 2,
    }
    written = set()
    for (_, *infer), (_, *score) in zip(*[iter(planned[0]['cl@seed=0@scales'])] * 2, strict=True):
        folder = folder_of(formats.CAM, inference_classification.parse_args(infer))
        args = evaluate.parse_args(score)
        assert args.experiment_name == folder
        written.add(f'{folder}@{args.domain}')
    assert written == {f'cl@seed=0@train@scale={scale}@train' for scale in ('0.5', '2.0')}
    assert tables[0]['Scale 2.0'] == ['-m', 'tools.summarize', 'L_cls | cl@seed=*@train@scale=2.0@train']


def test_a_failed_scale_is_an_error(in_tmp, monkeypatch):
    write_run('cl', [10, 20, 30])
    monkeypatch.setattr(runner, 'execute_runs', lambda runs, jobs: ['cl@scales'])
    monkeypatch.setattr(terms, 'execute_summaries', lambda summaries: pytest.fail('a table of a run that failed'))
    with pytest.raises(UserError, match='1 of 1 runs failed'):
        terms.main(terms.parse_args(['L_cls | cl', '--scales', '1.0']))


def test_runs_that_cannot_be_compared_are_named(in_tmp):
    with pytest.raises(UserError, match=r'cl@seed=\*: no such run in experiments/data'):
        terms.main(terms.parse_args(['L_cls | cl@seed=*']))
    write_run('cl@seed=0', [10], seed=0, lr=0.1)
    write_run('cl@seed=1', [10], seed=1, lr=0.3)
    with pytest.raises(UserError, match='cl@seed=0 and cl@seed=1 cannot be in one row: lr is 0.1 and 0.3'):
        terms.main(terms.parse_args(['L_cls | cl@seed=*']))
    write_run('aff', [10], [])
    with pytest.raises(UserError, match=r'aff.json is damaged, or not of stage 1 with masks'):
        terms.main(terms.parse_args(['edges | aff']))


@pytest.mark.parametrize(
    ('words', 'named'),
    [(['cl'], "'cl' is not TITLE | TAG"), (['a | b | c'], 'TITLE | TAG'), (['a | b', '--scales', '0'], '--scales')],
)
def test_wrong_flags_are_named(words, named, capsys):
    with pytest.raises(SystemExit) as ended:
        terms.parse_args(words)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
