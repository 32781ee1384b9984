"""tools/show.py: pages of pictures with captions."""

import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from core.data import drawing
from core.data.dataset import open_dataset
from core.maps import strided_size
from support import fault_of
from support.made_outputs import AFFINITY, CAM, LABELS, PREDICTIONS_ON_VAL, VERSIONS, WALK
from tools import show
from util.store import arrays, fingerprints
from util.store.files import write_json
from util.store.formats import PREDICTIONS

FONT = drawing.open_font()


def dataset_of(folder: str):
    options = fingerprints.read_args(PREDICTIONS / folder)['options']
    return open_dataset(options['dataset'], options['data_dir'])


@pytest.fixture
def captions(monkeypatch) -> list:
    """What is written below the pictures: (title, names, note) of each."""
    found, caption = [], drawing.caption

    def record(picture, title, chips, note, font):
        found.append((title, [name for name, _ in chips], note))
        return caption(picture, title, chips, note, font)

    monkeypatch.setattr(drawing, 'caption', record)
    return found


def run(*line: str) -> None:
    show.main(show.parse_args([*line]))


@pytest.fixture
def here(experiment, monkeypatch) -> Path:
    monkeypatch.chdir(experiment)
    return experiment


def test_a_page_of_cams(here, tmp_path, captions):
    dataset = dataset_of(CAM)
    ids = dataset.ids('train')[:2]
    run(CAM, '--images', '2', '--out', str(tmp_path / 'pages'))
    assert [path.name for path in (tmp_path / 'pages').glob('*.png')] == ['page-1.png']
    names = [[n for n, x in zip(dataset.class_names, dataset.read_labels(i), strict=True) if x] for i in ids]
    titles = [title for title, *_ in captions]
    expected = [[i, 'ground truth', *len(n) * ['CAM'], 'errors of CAM'] for i, n in zip(ids, names, strict=True)]
    assert titles == [*expected[0], *expected[1]]
    assert captions[0][1] == names[0]
    maps = [caption for caption in captions if caption[0] == 'CAM']
    assert [chips for _, chips, _ in maps] == [[name] for image in names for name in image]
    assert all(note.startswith('maximum 0.9') or note == 'maximum 1.00' for *_, note in maps)
    page = iio.imread(tmp_path / 'pages' / 'page-1.png')
    assert page.shape[1] <= show.COLUMNS * (show.SIDE + 8) + 16
    assert page.shape[0] > 2 * show.SIDE * 0.7


@pytest.mark.parametrize('folder', [CAM, AFFINITY, WALK, LABELS, PREDICTIONS_ON_VAL])
def test_every_folder_has_pages(here, tmp_path, folder, captions):
    run(folder, '--out', str(tmp_path))
    pages = sorted(tmp_path.glob('page-*.png'))
    assert pages
    dataset = dataset_of(folder)
    ids = dataset.ids('val' if folder == PREDICTIONS_ON_VAL else 'train')
    assert [title for title, *_ in captions if title in ids] == ids
    # Affinity labels are unsure in places, so they are not scored.
    errors = [title for title, *_ in captions if title.startswith('errors')]
    assert len(errors) == (0 if folder == AFFINITY else len(ids))


def test_folders_side_by_side(here, tmp_path, captions):
    image_id = dataset_of(CAM).ids('train')[2]
    run(f'plain | {CAM}', f'walk | {WALK}', f'{LABELS}', '--ids', image_id, '--out', str(tmp_path))
    titles = [title for title, *_ in captions]
    classes = int(dataset_of(CAM).read_labels(image_id).sum())
    pairs = [*classes * ['plain'], 'errors of plain', *classes * ['walk'], 'errors of walk']
    assert titles == [image_id, 'ground truth', *pairs, 'pseudo-label', 'errors of pseudo-label']


def test_without_masks(here, tmp_path, in_tmp, captions):
    root = fingerprints.read_args(here / PREDICTIONS / CAM)['options']['data_dir']
    shutil.copytree(root, 'set', ignore=lambda folder, names: names if folder.endswith('Class') else [])
    run(str(here / PREDICTIONS / CAM), '--dataset', 'set/dataset.json', '--data_dir', 'set', '--images', '1')
    assert {title for title, *_ in captions[1:]} == {'CAM'}
    assert (Path('experiments/show') / CAM / 'page-1.png').is_file()


def test_edge_maps(here, tmp_path, in_tmp, captions):
    folder = PREDICTIONS / 'my@affinity@train@edge'
    shutil.copytree(here / PREDICTIONS / WALK, PREDICTIONS / WALK)
    image_id = dataset_of(WALK).ids('train')[0]
    h, w = dataset_of(WALK).image_size(image_id)
    h, w = strided_size((h, w))
    edge = np.linspace(0, 1, w, dtype=np.float16)[None].repeat(h, 0)
    arrays.write_npz(folder / f'{image_id}.npz', edge=edge)
    options = fingerprints.read_args(PREDICTIONS / WALK)['options']
    write_json(folder / 'args.json', {'format': 'edge map', 'options': options, 'versions': VERSIONS})
    run(folder.name, '--out', 'pages')
    assert captions[-1] == ('edge map', [], '')
    page = iio.imread('pages/page-1.png').astype(int)
    last = page[8 : 8 + 40, -show.SIDE :]  # blue to the left, red to the right
    assert last[:, 20, 2].mean() > last[:, 20, 0].mean() + 50
    assert last[:, 200, 0].mean() > last[:, 200, 2].mean() + 50


@pytest.mark.parametrize('names', [('cam', 'hr_cam'), ('cam', 'hr_cam', 'rw'), ('probability',)])
def test_folders_of_predict(here, in_tmp, captions, names):
    """Their masks, and the maps of a classifier; what tools.predict writes: test_predict.py."""
    options = fingerprints.read_args(here / PREDICTIONS / CAM)['options']
    image_id = open_dataset(options['dataset'], options['data_dir']).ids('train')[0]
    with np.load(here / PREDICTIONS / CAM / f'{image_id}.npz') as file:
        keys, maps = file['keys'], file['hr_cam']
    probability = np.concatenate([1 - maps.max(0, keepdims=True), maps])
    written = {'cam': maps[:, ::4, ::4], 'hr_cam': maps, 'rw': maps[:, ::4, ::4], 'probability': probability}
    arrays.write_npz(Path(f'predicted/{image_id}.npz'), keys=keys, **{name: written[name] for name in names})
    shutil.copy(here / PREDICTIONS / LABELS / f'{image_id}.png', 'predicted')
    shutil.copy(f'predicted/{image_id}.png', f'predicted/{image_id}_overlay.png')
    data = ['--dataset', options['dataset'], '--data_dir', options['data_dir']]
    run('predicted', *data, '--out', 'pages')
    shown = [title for title, *_ in captions]
    count = len(maps)
    expected = {'hr_cam': count * ['CAM'], 'rw': count * ['random-walk CAM']}
    maps_shown = [title for name, titles in expected.items() if name in names for title in titles]
    assert shown == [image_id, 'ground truth', *maps_shown, 'prediction', 'errors of prediction']


def test_pages_are_filled_and_old_ones_removed(here, tmp_path):
    (tmp_path / 'page-9.png').write_bytes(b'of an earlier call')
    run(CAM, WALK, LABELS, '--out', str(tmp_path))
    pages = sorted(path.name for path in tmp_path.glob('page-*.png'))
    assert len(pages) > 1
    assert pages == [f'page-{i}.png' for i in range(1, len(pages) + 1)]


def test_folders_with_other_files_are_left_alone(here, tmp_path, capsys):
    for name in ('page-1.png', 'page-of-mine.png'):
        (tmp_path / name).write_bytes(b'mine')
    assert 'contains other files (page-of-mine.png, ...)' in fault_of(show, [CAM, '--out', str(tmp_path)], capsys)
    assert (tmp_path / 'page-1.png').read_bytes() == (tmp_path / 'page-of-mine.png').read_bytes() == b'mine'


@pytest.mark.parametrize(
    'line, words',
    [
        (['nowhere'], "FOLDER 'nowhere': neither experiments/predictions/nowhere nor a folder of this name"),
        ([CAM, '--ids', 'nobody'], '--ids nobody: is not an image of the data set that'),
        ([CAM, '--ids', 'val_00000'], '--ids val_00000: is not an image of the data set that'),
        ([CAM, '--font', 'nowhere.ttf'], 'font nowhere.ttf: cannot be read'),
        ([CAM, '--dataset', 'nowhere.json'], 'nowhere.json: cannot be read'),
        (['experiments/data'], '--dataset: args.json of experiments/data does not record it'),
    ],
)
def test_faults_are_one_line(here, tmp_path, capsys, line, words):
    assert words in fault_of(show, [*line, '--out', str(tmp_path / 'pages')], capsys)
    assert not list(tmp_path.rglob('*.png'))
