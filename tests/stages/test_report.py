"""tools/report.py: what is on the page, and the page in a real browser."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from core import UserError
from core.data.dataset import open_dataset
from core.intervals import difference_interval, score_interval
from core.models import build_network
from support import CHROMIUM, REPOSITORY, fault_of, run_stage
from support.made_outputs import AFFINITY, CAM, LABELS, PREDICTIONS_ON_VAL, WALK
from tools import predict, report
from tools.reporting import charts, find, tables
from tools.reporting.entries import find_entries
from tools.reporting.gallery import choose_ids
from tools.reporting.provenance import read_run
from util import script
from util.store.files import write_json
from util.store.formats import PREDICTIONS
from util.training.models import save_model


def make_page(out: Path, *arguments: str) -> str:
    report.main(report.parse_args([*arguments, '--out', str(out), '--num_workers', '0']))
    return out.read_text()


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def rows_of(page: str, label: str) -> list[list[str]]:
    """Return the cells of the table in the region of a label, as text."""
    table = re.search(rf'aria-label="{re.escape(label)}"><table>(.*?)</table>', page, re.S)[1]
    rows = re.findall(r'<tr>(.*?)</tr>', table, re.S)
    clean = [
        [re.sub(r'<[^>]+>|\s+', ' ', cell).split() for cell in re.findall(r'<t[hd].*?</t[hd]>', r, re.S)] for r in rows
    ]
    return [[' '.join(words) for words in row] for row in clean]


@pytest.fixture
def here(experiment, monkeypatch) -> Path:
    monkeypatch.chdir(experiment)
    return experiment


@pytest.fixture(scope='module')
def page_file(experiment, tmp_path_factory):
    """The page of everything."""
    out = tmp_path_factory.mktemp('page') / 'report.html'
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(experiment)
        make_page(out)
    return out


@pytest.fixture
def page(page_file, here) -> str:
    return page_file.read_text()


# Tables -------------------------------------------------------------------------------------------------------------


def test_chain(page):
    head, *rows = rows_of(page, 'Results')
    assert head[1:8] == ['mIoU %', '95 % interval', 'Dice %', 'best mIoU %', 'FP %', 'FN %', 'threshold']
    assert [row[0] for row in rows] == [
        'CAM: my@puzzle',
        'random-walk CAM: my@affinity',
        'pseudo-label: my@affinity',
        'prediction: my@deeplab',
    ]
    for row, folder, domain in zip(rows, (CAM, WALK, LABELS, PREDICTIONS_ON_VAL), 3 * ['train'] + ['val'], strict=True):
        (result,) = find.of_folder(folder)
        scores = result['two_fold'] if folder in (CAM, WALK) else result
        low, high = score_interval(find.read_counts(result, two_fold=True)[1])['miou']
        assert row[1:4] == [f'{scores["miou"]:.2f}', f'{100 * low:.2f} to {100 * high:.2f}', f'{scores["dice"]:.1f}']
        assert row[4] == (f'{result["miou"]:.2f}' if folder in (CAM, WALK) else '-')
        assert row[8:10] == [domain, str(result['images'])]
        low, high = score_interval(find.read_counts(result)[1])['fp']
        assert row[5] == f'{result["fp"]:.1f} {100 * low:.2f} to {100 * high:.2f}'
        assert row[6].split()[0] == f'{result["fn"]:.1f}'
    assert rows[0][7].endswith('best on these masks')
    assert rows[2][7] == '-'


def test_only_a_page_of_this_program_is_replaced(here, tmp_path):
    out = tmp_path / 'r.html'
    make_page(out, LABELS, '--images', '1')
    make_page(out, LABELS, '--images', '1')
    out.write_text('<!doctype html>\n<html lang="en">\n<title>notes</title>')
    with pytest.raises(UserError, match='--out .*r.html: exists, and this program has not written it: remove it or'):
        make_page(out, LABELS)


@pytest.mark.parametrize('is_deleted', [False, True])
@pytest.mark.parametrize('change', [lambda names: names[::-1], lambda names: [*names, 'zebra']])
def test_outputs_of_other_classes_are_refused(here, in_tmp, change, is_deleted):
    """One class's IoU would stand under the name of another one."""
    shutil.copytree(here / 'experiments', 'experiments')
    (result,) = find.of_folder(CAM)
    made_with, options = result['made_with'], result['made_with']['options']
    content = json.loads(Path(options['dataset']).read_text())
    made_with['fingerprint'] = {'classes': content['classes']}
    write_json(PREDICTIONS / CAM / 'args.json', {**made_with, 'format': 'CAM'})
    write_json(result['path'], {**json.loads(result['path'].read_text()), 'made_with': made_with})
    if is_deleted:
        shutil.rmtree(PREDICTIONS / CAM)
    Path('other.json').write_text(json.dumps({**content, 'classes': change(content['classes'])}))
    with pytest.raises(UserError, match=f'{CAM}: its labels are of .*: pass the data set that it was made with'):
        make_page(in_tmp / 'r.html', CAM, '--dataset', 'other.json', '--data_dir', options['data_dir'])


def test_label_maps_alone_have_no_best_threshold(here, tmp_path):
    page = make_page(tmp_path / 'r.html', LABELS)
    assert 'best mIoU' not in ' '.join(rows_of(page, 'Results')[0])
    assert 'two-fold' not in page.split('<script')[0]


def test_maps_without_two_fold_scores_have_their_best_mIoU(here, in_tmp):
    shutil.copytree(here / 'experiments', 'experiments')
    (result,) = find.of_folder(CAM)
    content = json.loads(result['path'].read_text())
    result['path'].write_text(json.dumps({**content, 'two_fold': None}))
    page = make_page(in_tmp / 'r.html', CAM, WALK)
    cams, walks, _ = rows_of(page, 'Results')[1:]
    assert cams[1:5] == ['-', '-', '-', f'{result["miou"]:.2f}']
    assert '-' not in walks[1:5]
    assert len(rows_of(page, 'Differences')) == 2  # of the walks and their labels alone


def test_objects_by_size_and_false_masks(page):
    head, *rows = rows_of(page, 'Objects by size')
    assert head[1:] == ['&lt; 1 %', '1 to 5 %', '5 to 20 %', '&gt;= 20 %', 'false masks %']
    (result,) = find.of_folder(PREDICTIONS_ON_VAL)
    cells = [(row['iou'], row['objects']) for row in result['by_size'].values()]
    cells.append((result['false_masks']['share'], result['false_masks']['images']))
    assert sum(number for _, number in cells) > 4
    assert rows[3][1:] == [f'{"-" if value is None else f"{value:.1f}"} {number}' for value, number in cells]


def test_differences(page):
    rows = rows_of(page, 'Differences')[1:]
    assert len(rows) == 3  # three outputs on train, none shares its images with val
    first, second = (find.of_folder(folder)[0] for folder in (CAM, WALK))
    counts = [find.read_counts(result, two_fold=True)[1] for result in (first, second)]
    low, high = difference_interval(*counts)['miou']
    assert rows[0][2] == f'{second["two_fold"]["miou"] - first["two_fold"]["miou"]:+.2f}'
    assert rows[0][4] == f'{second["miou"] - first["miou"]:+.2f}'
    assert rows[0][3].startswith(f'{100 * low:+.2f} to {100 * high:+.2f}')


def test_errors_by_class_add_up(page):
    head, *rows = rows_of(page, 'Errors by class')
    names = open_dataset(*_data()).class_names
    assert {row[0] for row in rows} <= {'background', *names}
    (result,) = find.of_folder(CAM)  # the first output of the page
    wrong = {name: '-' if share is None else f'{share:.1f}' for name, share in result['false_masks']['classes'].items()}
    assert head[6] == 'false masks %'
    for row in rows:
        assert sum(map(float, row[1:6])) == pytest.approx(100, abs=0.3)
        assert row[6] == wrong.get(row[0], '-')
    assert [float(row[1]) for row in rows] == sorted(float(row[1]) for row in rows)


def _data():
    options = json.loads((PREDICTIONS / CAM / 'args.json').read_text())['options']
    return options['dataset'], options['data_dir']


def test_origin(page):
    rows = rows_of(page, 'Steps')[1:]
    assert [row[:2] for row in rows] == [
        ['classifier', 'my@puzzle'],
        ['CAM', CAM],
        ['affinity label', AFFINITY],
        ['AffinityNet', 'my@affinity'],
        ['random-walk CAM', WALK],
        ['pseudo-label', LABELS],
        ['segmentation network', 'my@deeplab'],
        ['prediction', PREDICTIONS_ON_VAL],
    ]
    assert rows[0][2:] == ['abc1234', '1 h 1 min', '3']
    assert rows[1][2:] == ['abc1234', '1 min 15 s', '-']


def test_two_runs_differ_by_class_and_option(here, tmp_path):
    page = make_page(tmp_path / 'r.html', f'one | {CAM}@train', f'two & <b> | {WALK}@train')
    assert 'two &amp; &lt;b&gt;' in page
    assert 'two & <b>' not in page.replace('\\u003c', '<').split('<script')[0]
    head, *rows = rows_of(page, 'IoU by class')
    assert head[1:] == ['one', 'two &amp; &lt;b&gt;']
    for _, first, second in rows:
        value, *difference = second.split()
        expected = [] if '-' in (first, value) else [float(value) - float(first)]
        assert [float(text) for text in difference] == pytest.approx(expected, abs=0.011)


def test_all_outputs_are_compared_with_the_first_by_class(page):
    head, *rows = rows_of(page, 'IoU by class')
    assert len(head) == 5
    assert [len(cell.split()) for cell in rows[0]] == [1, 1, 2, 2, 2]  # the class, the first output, the others


def test_published_figures_are_of_voc_alone(page, here):
    assert 'paper' not in rows_of(page, 'Results')[0][-1]
    voc = open_dataset(REPOSITORY / 'data' / 'voc2012_2007.json', 'nowhere').class_names
    classifier = read_run('my@puzzle')
    assert tables.find_published([classifier], voc) == ('resnest101', tables.find_published([], voc)[1])
    steps = [classifier._replace(options={'architecture': 'resnet50'})]
    assert tables.find_published(steps, voc) == (
        'resnet50',
        {('CAM', 'train'): 51.53, ('random-walk CAM', 'train'): 64.16, ('pseudo-label', 'train'): 64.70},
    )
    assert tables.find_published(steps, voc[::-1]) == ('', {})
    assert tables.find_published([], voc)[1]['prediction', 'val'] == 66.9


def test_the_published_figures_are_those_of_the_page_on_voc():
    text = (REPOSITORY / 'docs/voc.md').read_text()
    for backbone, row in json.loads(tables.PUBLISHED.read_text())['rows'].items():
        name = re.sub(r'resne(s?)t(\d+)', lambda m: f'ResNe{m[1].upper()}t-{m[2]}', backbone)
        cells = ' | '.join(f'{row[kind]:.2f}' for kind in ('CAM', 'random-walk CAM', 'pseudo-label'))
        assert f'| Puzzle-CAM, {name} | {cells} |' in text
        assert 'prediction' not in row or f'| {name} | {row["prediction"]} |' in text


def test_many_runs_are_not_compared_in_pairs(here, monkeypatch):
    entries = find_entries(['my'])
    counts = [find.read_counts(entry.result) for entry in entries]
    assert len(tables.tabulate_differences(entries, counts)) == 3
    monkeypatch.setattr(tables, 'MOST_COMPARED', 3)
    assert tables.tabulate_differences(entries, counts) == []


def test_an_interval_needs_two_images(here):
    (entry,) = find_entries([PREDICTIONS_ON_VAL])
    ids, counts = find.read_counts(entry.result)
    for n, expected in ((1, False), (2, True)):
        (row,) = tables.tabulate_chain([entry], *2 * [[(ids[:n], counts[:n])]], {})
        assert bool(row['interval']) == bool(row['fp_interval']) == expected
        pair = tables.tabulate_differences([entry, entry], 2 * [(ids[:n], counts[:n])])
        assert bool(pair) == expected


# Gallery ------------------------------------------------------------------------------------------------------------


def test_gallery(page):
    gallery = data_of(page)['gallery']
    dataset = open_dataset(*_data())
    assert sorted(card['id'] for card in gallery['cards']) == sorted(dataset.ids('train') + dataset.ids('val'))
    for card in gallery['cards']:
        titles = [panel['title'] for panel in card['panels']]
        classes = int(dataset.read_labels(card['id']).sum())
        if card['domain'] == 'val':
            name = 'prediction: my@deeplab'
            assert titles == ['image', 'ground truth', name, f'errors of {name}']
        else:
            cam, walk, label = 'CAM: my@puzzle', 'random-walk CAM: my@affinity', 'pseudo-label: my@affinity'
            maps = [*classes * [walk], f'errors of {walk}', label, f'errors of {label}']
            cams = [*classes * [cam], f'errors of {cam}', 'affinity label: my@puzzle']
            assert titles == ['image', 'ground truth', *cams, *maps]
        assert all(panel['layer'] for panel in card['panels'][1:])
        assert card['scores']


def test_cards_are_scored_by_image_and_class(page):
    (result,) = find.of_folder(PREDICTIONS_ON_VAL)
    ids, counts = find.read_counts(result)
    cards = {card['id']: card for card in data_of(page)['gallery']['cards']}
    for image_id, (target, predicted, both) in zip(ids, np.moveaxis(counts.astype(int), 2, 1), strict=True):
        union = target + predicted - both
        expected = {str(c): 100 * both[c] / union[c] for c in np.flatnonzero(union)}
        scores = cards[image_id]['scores']['3']
        assert scores.pop('all') == pytest.approx(np.mean(list(expected.values())), abs=0.06)
        assert scores == pytest.approx(expected, abs=0.06)


def test_images_are_chosen_from_both_ends_and_the_middle():
    ids = [f'i{n:02d}' for n in range(30)]
    scores = {image_id: float(n) for n, image_id in enumerate(ids)}
    assert choose_ids(ids, scores, 9, []) == ['i00', 'i01', 'i02', 'i13', 'i14', 'i15', 'i27', 'i28', 'i29']
    assert 'i07' in choose_ids(ids, scores, 9, ['i07'])
    assert len(choose_ids(ids, scores, 9, ['i07', 'elsewhere'])) == 9
    assert choose_ids(ids, scores, 0, []) == choose_ids(ids, scores, 30, []) == ids
    assert choose_ids(ids, {}, 4, []) == ['i00', 'i01', 'i13', 'i29'] or len(choose_ids(ids, {}, 4, [])) == 4


def test_fewer_images_and_given_ids(here, tmp_path, capsys):
    wanted = open_dataset(*_data()).ids('train')[3]
    gallery = data_of(make_page(tmp_path / 'r.html', CAM, '--images', '2', '--ids', wanted))['gallery']
    assert len(gallery['cards']) == 2
    assert wanted in [card['id'] for card in gallery['cards']]
    assert '2 of 6 images' in capsys.readouterr().out


def test_without_masks_and_results(here, tmp_path, in_tmp):
    """A folder that was never scored, of images without masks."""
    shutil.copytree(here / PREDICTIONS / CAM, PREDICTIONS / CAM)
    dataset, root = _data()
    shutil.copytree(root, in_tmp / 'set', ignore=lambda folder, names: names if folder.endswith('Class') else [])
    page = make_page(in_tmp / 'r.html', '--dataset', 'set/dataset.json', '--data_dir', 'set')
    assert 'Nothing here has been scored' in page
    cards = data_of(page)['gallery']['cards']
    assert cards
    assert {panel['title'] for card in cards for panel in card['panels']} == {'image', f'CAM: {CAM}'}


def test_scored_folders_that_are_gone(here, in_tmp):
    """Tables and charts remain."""
    shutil.copytree(here / 'experiments' / 'results', 'experiments/results')
    page = make_page(in_tmp / 'r.html')
    assert len(rows_of(page, 'Results')) == 5
    titles = {panel['title'] for card in data_of(page)['gallery']['cards'] for panel in card['panels']}
    assert titles == {'image', 'ground truth'}


def test_a_folder_that_was_regenerated_is_named(here, in_tmp):
    shutil.copytree(here / 'experiments', 'experiments')
    assert 'regenerated with other settings' not in make_page(in_tmp / 'r.html', CAM)
    path = PREDICTIONS / CAM / 'args.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'fingerprint': {'scales': '1.0'}}))
    assert 'CAM: my@puzzle: its folder was regenerated' in make_page(in_tmp / 'r.html', CAM)


def test_lists_share_the_images_of_the_gallery(here, tmp_path):
    for count in (1, 2, 5, 7):
        cards = data_of(make_page(tmp_path / 'r.html', '--images', str(count)))['gallery']['cards']
        of_list = [sum(card['domain'] == domain for card in cards) for domain in ('train', 'val')]
        assert of_list == [max(1, count - count // 2), max(1, count // 2)]


def test_results_without_counts_per_image(here, in_tmp):
    """They have no intervals and are not compared."""
    shutil.copytree(here / 'experiments', 'experiments')
    for path in Path('experiments/results').glob('*.npz'):
        path.unlink()
    page = make_page(in_tmp / 'r.html')
    head, *rows = rows_of(page, 'Results')
    assert len(rows) == 4
    assert 'interval' not in ' '.join(head) or {row[head.index('95 % interval')] for row in rows} == {'-'}
    assert 'aria-label="Differences"' not in page


def test_folders_of_train_aug_are_on_train(here, in_tmp):
    shutil.copytree(here / 'experiments', 'experiments')
    for path in Path('experiments/results').glob(f'{LABELS}@*'):
        path.unlink()
    page = make_page(in_tmp / 'r.html')
    cards = data_of(page)['gallery']['cards']
    assert {card['domain'] for card in cards} == {'train', 'val'}
    assert len({card['id'] for card in cards}) == len(cards)
    assert 'on train_aug' not in page


def test_a_list_without_labels(here, in_tmp):
    """Masks and predictions are shown without tags."""
    shutil.copytree(here / 'experiments', 'experiments')
    shutil.copytree(_data()[1], 'set')
    for path in Path('set/Annotations').glob('val_*'):
        path.unlink()
    page = make_page(in_tmp / 'r.html', PREDICTIONS_ON_VAL, '--dataset', 'set/dataset.json', '--data_dir', 'set')
    cards = data_of(page)['gallery']['cards']
    assert all(card['panels'][0]['classes'] == [] and card['panels'][1]['classes'] for card in cards)


# Predicted masks ----------------------------------------------------------------------------------------------------


def predict_masks(demo: Path, out: Path, line: str) -> None:
    """Run tools.predict with a network of random weights whose file is at `out`."""
    dataset = open_dataset(demo / 'dataset.json', demo)
    common = {'network': 'Classifier', 'mode': 'normal', 'backbone': 'resnest14_narrow', 'image_size': 64}
    meta = {**common, 'classes': dataset.class_names, 'palette': dataset.palette[: dataset.num_classes + 1].tolist()}
    save_model(build_network(meta), out, **meta)
    run_stage(predict, f'{out} {line} --scales 1.0 --crf_iteration 0 --device cpu --num_workers 0'.split())


MODELS = Path('experiments/models')


def test_predicted_masks_of_photographs(demo, in_tmp, capsys):
    shutil.copytree(demo / 'JPEGImages', 'photos')
    predict_masks(demo, MODELS / 'own.pth', 'photos/val_*.jpg --classes dog,cow')
    for name in ([], ['own'], ['experiments/predict/own'], ['mine | own']):
        data = data_of(make_page(in_tmp / 'r.html', *name))
        cards = data['gallery']['cards']
        assert [card['id'] for card in cards] == [f'val_0000{i}' for i in range(4)]
        assert {card['domain'] for card in cards} == {'photographs'}
        title = 'mine' if name == ['mine | own'] else 'predicted mask: own'
        assert [panel['title'] for panel in cards[0]['panels']] == [
            *('image', f'{title}: CAM', f'{title}: CAM', f'{title}: prediction'),
        ]
        names = [label['name'] for label in data['classes']]
        assert {names[index] for index in cards[0]['classes']} == {'cow', 'dog'}  # found by the filter of classes
    predict_masks(demo, MODELS / 'own.pth', 'photos/val_00000.jpg --out plain')
    assert len(data_of(make_page(in_tmp / 'r.html', 'plain'))['gallery']['cards']) == 1
    Path('photos/val_00001.jpg').unlink()
    assert len(data_of(make_page(in_tmp / 'r.html'))['gallery']['cards']) == 3


def test_two_models_on_the_same_photographs(demo, in_tmp, capsys):
    shutil.copytree(demo / 'JPEGImages', 'photos')
    predict_masks(demo, MODELS / 'one.pth', 'photos/val_00000.jpg photos/val_00001.jpg')
    predict_masks(demo, MODELS / 'two.pth', 'photos/val_00001.jpg photos/val_00002.jpg')
    gallery = data_of(make_page(in_tmp / 'r.html', 'one', 'two'))['gallery']
    assert gallery['sources'] == ['predicted mask: one', 'predicted mask: two']
    found = {card['id']: {panel['source'] for panel in card['panels']} - {None} for card in gallery['cards']}
    assert found == {'val_00000': {0}, 'val_00001': {0, 1}, 'val_00002': {1}}
    Path('other').mkdir()
    shutil.copy('photos/val_00003.jpg', 'other/val_00000.jpg')
    predict_masks(demo, MODELS / 'three.pth', 'other')
    line = fault_of(report, ['--num_workers', '0', '--out', 'r.html'], capsys)
    assert 'val_00000.png in experiments/predict/three is the mask of other/val_00000.jpg, in another folder of' in line
    assert line.endswith('name one folder, such as: python3 -m tools.report experiments/predict/three')


def test_predicted_masks_of_a_data_set_are_beside_its_outputs(here, demo, in_tmp, capsys):
    shutil.copytree(here / 'experiments', 'experiments')
    predict_masks(demo, MODELS / 'own.pth', f'--dataset {demo}/dataset.json --data_dir {demo}')
    shutil.copytree(demo / 'JPEGImages', 'photos')
    predict_masks(demo, MODELS / 'new.pth', 'photos/val_00000.jpg')
    capsys.readouterr()
    cards = data_of(make_page(in_tmp / 'r.html'))['gallery']['cards']
    assert {card['domain'] for card in cards} == {'train', 'val'}
    name = 'predicted mask: own: prediction'
    for card in cards:
        titles = [panel['title'] for panel in card['panels']]
        assert {name, f'errors of {name}'} <= {*titles}
        assert not any('new' in title for title in titles)
    line = 'left out: 1 folders of photographs that are in no data set; for their page: '
    assert f'{line}python3 -m tools.report experiments/predict/new\n' in capsys.readouterr().err


# Patterns -----------------------------------------------------------------------------------------------------------


def test_patterns_keep_titles_and_have_means_over_seeds(here, in_tmp):
    shutil.copytree(here / 'experiments', 'experiments')
    (result,) = find.of_folder(CAM)
    mious = []
    for seed in (1, 2, 3):
        name = f'cl@seed={seed}@train'
        content = json.loads(result['path'].read_text())
        content |= {'experiment_name': name, 'made_with': {}, 'miou': content['miou'] - seed}
        content['two_fold'] = {**content['two_fold'], 'miou': content['two_fold']['miou'] - seed**2}
        mious.append(content['two_fold']['miou'])
        Path('experiments/results', f'{name}@train.json').write_text(json.dumps(content))
    page = make_page(in_tmp / 'r.html', 'plain | cl@seed=*', LABELS)
    titles = [row[0] for row in rows_of(page, 'Results')[1:]]
    assert titles[:3] == ['plain (seed 1)', 'plain (seed 2)', 'plain (seed 3)']
    head, *rows = rows_of(page, 'Means over seeds')
    assert head == ['outputs', 'seeds', 'mIoU %', 'Dice %', 'best mIoU %', 'FP %', 'FN %', 'list']
    ((title, seeds, miou, dice, best, *_, domain),) = rows
    assert (title, seeds, domain) == ('plain', '1, 2, 3', 'train')
    assert miou == f'{np.mean(mious):.2f} +- {np.std(mious, ddof=1):.2f}'
    assert best == f'{result["miou"] - 2:.2f} +- 1.00'
    assert dice.endswith(' +- 0.00')
    assert 'Means over seeds' not in make_page(in_tmp / 'r.html', LABELS)


# Charts -------------------------------------------------------------------------------------------------------------


def test_axes_have_titles_and_the_confusion_matrix_numbers():
    names = ('background', 'cat', 'dog')
    confusion = np.array([[990, 4, 6], [0, 50, 50], [0, 0, 1]])
    figures = [
        charts.chart_classes({0: dict.fromkeys(names, 50.0)}, ['x']),
        charts.chart_errors(confusion, names),
        charts.chart_confusion(confusion, names),
        charts.chart_curve('mIoU', ['x'], [{'mIoU': [[1, 2], [2, 3]]}]),
        charts.chart_curve('loss', ['x'], [{'loss': [[1, 2], [2, 3]]}]),
    ]
    titles = [(figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) for figure in figures]
    assert titles == [
        ('IoU, %', 'class'),
        ('% of the union', 'class'),
        ('predicted', 'mask'),
        ('iteration', 'mIoU, %'),
        ('iteration', 'loss'),
    ]
    (heat,) = figures[2].data
    assert [list(row) for row in heat.text[::-1]] == [['99', '', '1'], ['', '50', '50'], ['', '', '100']]
    assert heat.texttemplate == '%{text}'


def test_the_time_left_is_printed(here, tmp_path, capsys, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(script.time, 'time', lambda: 10 * next(clock))
    make_page(tmp_path / 'r.html', CAM)
    assert re.search(r'images: 3/6, \d+ s, about \d+ s left', capsys.readouterr().err)


# Faults -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'line, words',
    [
        (['nothing@here'], 'nothing@here.json not found'),
        (['my', '--ids', 'nobody'], '--ids nobody: is not in the lists train, val'),
        (['my', '--dataset', 'nowhere.json'], 'nowhere.json'),
        (['my', '--images', '-1'], '--images'),
    ],
)
def test_faults_are_one_line(here, tmp_path, capsys, line, words):
    assert words in fault_of(report, [*line, '--num_workers', '0', '--out', str(tmp_path / 'r.html')], capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_named_first(here, tmp_path, capsys):
    assert f'--out {tmp_path}: is a folder' in fault_of(report, ['my', '--out', str(tmp_path)], capsys)


def test_an_empty_folder(in_tmp, capsys):
    assert 'run the stages first' in fault_of(report, [], capsys)


def test_a_damaged_output_is_named(here, in_tmp, capsys):
    shutil.copytree(here / 'experiments', 'experiments')
    path = next((PREDICTIONS / CAM).glob('*.npz'))
    path.write_bytes(b'no npz')
    assert path.name in fault_of(report, ['--num_workers', '0'], capsys)
    assert not Path('experiments/report.html').exists()


# Browser ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def browser():
    if CHROMIUM is None:
        pytest.skip('no Chromium: tools/test.sh says how to install it')
    api = pytest.importorskip('playwright.sync_api')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, page_file):
    """Open the page in a window; at the end nothing must have been reported or requested from elsewhere."""
    complaints, contexts = [], []

    def open_page(width=1280, scheme='light', file=page_file):
        contexts.append(browser.new_context(viewport={'width': width, 'height': 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on('console', lambda message: complaints.append(message.text))
        page.on('pageerror', lambda error: complaints.append(str(error)))
        allowed = ('file:', 'data:', 'blob:')
        page.on('request', lambda r: None if r.url.startswith(allowed) else complaints.append(r.url))
        page.goto(f'file://{file}')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def ids_shown(page) -> list[str]:
    return page.eval_on_selector_all('.card h3 > span:first-child', 'nodes => nodes.map(n => n.textContent.trim())')


WINDOWS = [('light', 1280), ('dark', 390)]
WINDOWS += [pytest.param(*window, marks=pytest.mark.slow) for window in (('light', 390), ('dark', 1280))]


@pytest.mark.parametrize('scheme, width', WINDOWS)
def test_page_fits_and_every_picture_and_chart_appears(open_page, scheme, width):
    page = open_page(width, scheme)
    for chart in page.query_selector_all('.chart'):
        if chart.is_visible():
            chart.scroll_into_view_if_needed()
            page.wait_for_function('node => node.dataset.drawn', arg=chart)
    height = page.evaluate('document.documentElement.scrollHeight')
    for y in range(0, height, 400):  # pictures are loaded when they come near
        page.evaluate(f'window.scrollTo(0, {y})')
        page.wait_for_timeout(20)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    missing = '[...document.images].filter(image => !(image.complete && image.naturalWidth)).length'
    assert page.evaluate('document.images.length') > 40
    assert page.evaluate(missing) == 0
    empty = "[...document.querySelectorAll('.chart')].filter(n => n.offsetParent && !n.querySelector('svg')).length"
    assert page.evaluate(empty) == 0


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_has_contrast(open_page, scheme):
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3) wherever a text is on a plain background."""
    page = open_page(scheme=scheme)
    worst = page.evaluate("""() => {
      const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
      const luminance = ([r, g, b]) => [r, g, b].map((x) => x / 255)
        .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
      const background = (node) => {
        for (; node; node = node.parentElement) {
          const colour = parse(getComputedStyle(node).backgroundColor);
          if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
      };
      const found = [];
      for (const node of document.querySelectorAll('h1, h2, h3, p, a, th, td, span, button, label, summary')) {
        if (!node.offsetParent || ![...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim())) continue;
        const [a, b] = [luminance(parse(getComputedStyle(node).color)), luminance(background(node))];
        found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.textContent.trim().slice(0, 40)]);
      }
      return found.sort((x, y) => x[0] - y[0])[0];
    }""")
    assert worst[0] >= 4.5, worst


def test_sort(open_page, page_file):
    page = open_page()
    cards = data_of(page_file.read_text())['gallery']['cards']
    scores = {card['id']: max((int(i), s['all']) for i, s in card['scores'].items())[1] for card in cards}
    by = lambda key: sorted(scores, key=lambda i: (key(scores[i]), i))  # noqa: E731
    assert ids_shown(page) == by(lambda score: score)
    page.select_option('[name=sort]', 'best')
    assert ids_shown(page) == by(lambda score: -score)
    page.select_option('[name=sort]', 'median')
    median = sorted(scores.values())[len(scores) // 2]
    assert ids_shown(page) == by(lambda score: abs(score - median))
    page.select_option('[name=sort]', 'id')
    assert ids_shown(page) == sorted(scores)


def test_filter_and_search(open_page, page_file):
    page = open_page()
    cards = data_of(page_file.read_text())['gallery']['cards']
    page.fill('[name=id]', 'VAL_0000')
    assert sorted(ids_shown(page)) == sorted(card['id'] for card in cards if card['id'].startswith('val_0000'))
    page.fill('[name=id]', 'nobody')
    assert page.text_content('#count') == 'No image matches.'
    page.fill('[name=id]', '')
    index = next(index for card in cards for index in card['classes'])
    page.select_option('#filters [name=class]', str(index))
    with_class = [
        c['id'] for c in cards if index in c['classes'] or str(index) in c['scores'][max(c['scores'], key=int)]
    ]
    assert sorted(ids_shown(page)) == sorted(with_class)
    page.select_option('[name=domain]', 'val')
    assert sorted(ids_shown(page)) == sorted(i for i in with_class if i.startswith('val'))


def test_hiding_a_folder_and_the_worst_of_a_class(open_page):
    page = open_page()
    before = page.locator('.card figure').count()
    page.uncheck('[name=source] >> nth=0')
    assert page.locator('.card figure').count() < before
    button = page.locator('.worst:visible').first
    name = button.text_content().removeprefix('worst ')
    page.fill('[name=id]', 'nobody')
    button.click()
    assert page.eval_on_selector('#filters [name=class]', 'n => n.selectedOptions[0].textContent') == name
    assert f'{name} IoU' in page.locator('.card h3').first.text_content()


def test_tables_are_sorted_by_the_column_that_is_clicked(open_page, page_file):
    page = open_page()
    cells = '[aria-label=Results] tbody tr > :nth-child({})'
    shown = lambda column: page.locator(cells.format(column)).all_text_contents()  # noqa: E731
    header = page.locator('[aria-label=Results] th', has_text='mIoU %').first
    values = [float(text) for text in shown(2)]
    header.locator('button').focus()
    page.keyboard.press('Enter')
    assert [float(text) for text in shown(2)] == sorted(values) != values
    assert header.get_attribute('aria-sort') == 'ascending'
    page.keyboard.press('Enter')
    assert [float(text) for text in shown(2)] == sorted(values, reverse=True)
    # Empty cells are last in both orders; the duration is sorted by its seconds.
    best = page.locator('[aria-label=Results] th', has_text='best mIoU %').locator('button')
    for _ in range(2):
        best.click()
        assert [text.strip() for text in shown(5)][2:] == ['-', '-']
    page.locator('[aria-label=Steps] th', has_text='time').locator('button').click()
    times = page.locator('[aria-label=Steps] tbody tr > :nth-child(4)').all_text_contents()
    assert times == 5 * ['1 min 15 s'] + 3 * ['1 h 1 min']


def test_a_wide_table_says_that_it_scrolls(open_page):
    hint = '.sideways:has(+ [aria-label=Results])'
    assert open_page(390).locator(hint).is_visible()
    assert not open_page(1900).locator(hint).is_visible()


def test_outputs_of_the_class_tables(open_page):
    page = open_page()
    assert page.locator('.of-entry:visible').count() == 1
    shown = page.locator('.of-entry:visible').get_attribute('data-entry')
    page.select_option('#entry', '0')
    assert page.locator('.of-entry:visible').get_attribute('data-entry') == '0' != shown


def test_keyboard(open_page):
    page = open_page()
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.className') == 'skip'
    page.locator('.card button').first.focus()
    page.keyboard.press('Enter')
    assert page.evaluate("document.getElementById('viewer').open")
    first = page.text_content('#viewer figcaption')
    page.keyboard.press('ArrowRight')
    second = page.text_content('#viewer figcaption')
    assert first != second
    page.keyboard.press('ArrowLeft')
    assert page.text_content('#viewer figcaption') == first
    page.keyboard.press('Escape')
    assert not page.evaluate("document.getElementById('viewer').open")
    assert page.evaluate("document.activeElement.matches('.card button')")


def test_print(open_page):
    page = open_page()
    page.emulate_media(media='print')
    assert not page.locator('#filters').is_visible()
    assert page.locator('#chain table').first.is_visible()


def test_theme(open_page):
    page = open_page()
    background = lambda: page.evaluate('getComputedStyle(document.body).backgroundColor')  # noqa: E731
    light = background()
    page.click('#theme')
    assert background() == light
    page.click('#theme')
    dark = background()
    assert dark != light
    page.click('#theme')
    assert background() == light


def test_show_more(open_page, here, tmp_path):
    """More images than are shown at once: the scenes of train twice, under other ids."""
    page = make_page(tmp_path / 'many.html')
    data = data_of(page)
    cards = data['gallery']['cards']
    data['gallery']['cards'] = [{**card, 'id': f'{card["id"]}_{n}'} for n in range(3) for card in cards]
    text = json.dumps(data).replace('<', '\\u003c')
    start, end = page.index('id="data">') + 10, page.index('</script>', page.index('id="data">'))
    (tmp_path / 'many.html').write_text(page[:start] + text + page[end:])
    opened = open_page(file=tmp_path / 'many.html')
    total = len(data['gallery']['cards'])
    assert opened.locator('.card').count() == 12 < total
    while opened.locator('#more').is_visible():
        opened.click('#more')
    assert opened.locator('.card').count() == total
    assert len(set(ids_shown(opened))) == total
