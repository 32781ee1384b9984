"""tools.report on class names that look like numbers, dates or HTML; the worst of a class; several data sets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from core.data.dataset import open_dataset
from support import fault_of, run_stage
from support.made_outputs import CAM, LABELS, PREDICTIONS_ON_VAL
from tools import report
from tools.reporting import charts

NAMES = ('1', '2', '2024-05-01', '<b>bold</b>', 'a & "b" &amp; %{y}', '10')


@pytest.fixture
def renamed(experiment, in_tmp) -> Path:
    """The outputs of the drawn set with other class names, which its JSON and the results have."""
    shutil.copytree(experiment / 'experiments', 'experiments')
    args = json.loads(Path(f'experiments/predictions/{CAM}/args.json').read_text())
    data = Path(args['options']['data_dir'])
    shutil.copytree(data, 'set')
    old = open_dataset(data / 'dataset.json', data).class_names
    new = dict(zip(old, NAMES, strict=False))
    content = json.loads(Path('set/dataset.json').read_text())
    Path('set/dataset.json').write_text(json.dumps({**content, 'classes': [new[name] for name in old]}))
    for path in Path('set/Annotations').glob('*.xml'):
        text = path.read_text()
        for name, other in new.items():
            escaped = other.replace('&', '&amp;').replace('<', '&lt;')
            text = text.replace(f'<name>{name}</name>', f'<name>{escaped}</name>')
        path.write_text(text)
    for path in Path('experiments/results').glob('*.json'):
        result = json.loads(path.read_text())
        result['iou'] = {new.get(name, name): value for name, value in result['iou'].items()}
        path.write_text(json.dumps(result))
    return in_tmp


def make_page(*more: str) -> Path:
    line = ['--num_workers', '0', '--out', 'r.html', '--dataset', 'set/dataset.json', '--data_dir', 'set', *more]
    run_stage(report, line)
    return Path('r.html')


def test_axes_of_classes_are_categories():
    figures = [
        charts.chart_classes({0: dict.fromkeys(NAMES, 50.0)}, ['x']),
        charts.chart_errors(np.ones((6, 6)), NAMES),
        charts.chart_confusion(np.ones((6, 6)), NAMES),
    ]
    for figure in figures:
        assert figure.layout.yaxis.type == 'category'
        assert list(figure.data[0].y)[::-1] == [charts.literal(name) for name in NAMES]
    assert figures[2].layout.xaxis.type == 'category'
    assert charts.literal('<b>"x" & y</b>') == '&lt;b&gt;"x" &amp; y&lt;/b&gt;'


def test_names_are_text_in_tables_and_charts(renamed):
    """As a browser shows them."""
    sync_api = pytest.importorskip('playwright.sync_api')
    shown = open_dataset('set/dataset.json', 'set').class_names
    path = make_page('my')
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        except Exception:  # whatever a missing browser raises
            pytest.skip('no browser')
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(path.absolute().as_uri())
        chart = page.locator('[data-chart=classes]')
        chart.scroll_into_view_if_needed()
        chart.locator('.ytick text').first.wait_for()
        labels = chart.locator('.ytick text').all_text_contents()
        assert sorted(labels) == sorted(('background', *shown))
        assert chart.locator('.ytick tspan').count() == 0, 'markup'
        assert {*shown} <= {*page.locator('th[scope=row]').all_text_contents()}
        assert page.locator('table b').count() == 0
        browser.close()


def test_the_worst_of_a_class_have_the_class(experiment, tmp_path, monkeypatch):
    sync_api = pytest.importorskip('playwright.sync_api')
    monkeypatch.chdir(experiment)
    out = tmp_path / 'r.html'
    run_stage(report, ['my', '--num_workers', '0', '--out', str(out)])
    # Predict the first class in an image without it.
    head, _, rest = out.read_text().partition('<script type="application/json" id="data">')
    text, _, tail = rest.partition('</script>')
    data = json.loads(text)
    cards = data['gallery']['cards']
    index = cards[0]['classes'][0]
    other = next(card for card in cards if index not in card['classes'])
    last = max(other['scores'], key=int)
    other['scores'][last][str(index)] = 0
    for card in cards:
        if index in card['classes']:
            for score in card['scores'].values():
                score[str(index)] = max(score.get(str(index), 0), 1)
    out.write_text(f'{head}<script type="application/json" id="data">{json.dumps(data)}</script>{tail}')
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        except Exception:  # whatever a missing browser raises
            pytest.skip('no browser')
        page = browser.new_page()
        page.goto(out.as_uri())
        page.select_option('#filters [name=class]', str(index))
        for order in ('worst', 'best', 'median'):
            page.select_option('#filters [name=sort]', order)
            ids = [text.split()[0] for text in page.locator('.card h3').all_text_contents()]
            have = [card['id'] for card in cards if index in card['classes']]
            assert other['id'] in ids
            assert {*ids[: len(have)]} == {*have}, order
        browser.close()


def test_several_data_sets_are_one_line(experiment, in_tmp, capsys):
    shutil.copytree(experiment / 'experiments', 'experiments')
    path = next(Path('experiments/results').glob(f'{LABELS}@*.json'))
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, 'dataset': 'cars'}))
    line = fault_of(report, ['--num_workers', '0'], capsys)
    assert 'a report is of one data set, these are of 2 (' in line
    assert f'{LABELS} of "cars"' in line
    assert 'name the outputs of one, such as: python3 -m tools.report my@' in line
    # A folder that was not scored is of the data set that it records.
    path.unlink()
    path.with_suffix('.npz').unlink()
    args = Path(f'experiments/predictions/{LABELS}/args.json')
    content = json.loads(args.read_text())
    data = Path(content['options']['data_dir'])
    entries = json.loads((data / 'dataset.json').read_text())
    lists = {name: str((data / file).absolute()) for name, file in entries['lists'].items()}
    Path('cars.json').write_text(json.dumps({**entries, 'name': 'cars', 'lists': lists}))
    content['options']['dataset'] = 'cars.json'
    args.write_text(json.dumps(content))
    assert f'{LABELS} of "cars"' in fault_of(report, ['--num_workers', '0'], capsys)
    run_stage(report, [PREDICTIONS_ON_VAL, '--num_workers', '0', '--out', 'r.html'])
