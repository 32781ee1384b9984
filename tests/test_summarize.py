"""tools/summarize.py: Markdown tables over runs, and the picture."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import fault_of
from PIL import Image

from core import UserError
from core.data.dataset import open_dataset
from core.maps import present_keys
from tools import summarize
from util import visualize
from util.artifacts import PREDICTIONS, results_path, write_npz
from util.files import write_bytes, write_json


def write_result(name, miou, threshold=0.3, domain='train', folder='cams'):
    result = {
        'miou': miou,
        'fp': 20.04,
        'fn': 70 - miou,
        'threshold': threshold,
        'images': 6,
        'all_background_miou': 12.5,
        'thresholds': [{'threshold': threshold, 'miou': miou}]
        + ([] if threshold is None else [{'threshold': 0.2, 'miou': miou - 3}]),
        'domain': domain,
        'experiment_name': folder,
    }
    write_json(results_path(name, 'json'), result)


def cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table."""
    assert line.startswith('|') and line.endswith('|')
    return [cell.strip() for cell in line[1:-1].split('|')]


def tables(capsys, *arguments) -> list[list[list[str]]]:
    """Run the program and return the tables that it prints, without their lines of dashes."""
    summarize.main(summarize.parse_args(arguments))
    found = []
    for block in capsys.readouterr().out.strip().split('\n\n'):
        head, dashes, *lines = block.splitlines()
        # The first column is aligned to the left, the others to the right.
        assert cells(dashes)[0].strip('-') == ':'
        assert all(cell.strip('-') == ':' and cell.endswith('-:') for cell in cells(dashes)[1:])
        assert len({len(line) for line in (head, dashes, *lines)}) == 1
        found.append([cells(line) for line in (head, *lines)])
        assert len({len(row) for row in found[-1]}) == 1
    return found


HEADERS = ['', 'runs', 'images', 'mIoU %', 'FP %', 'FN %', 'threshold', 'all-background %']


def test_mean_and_deviation_over_runs(in_tmp, capsys):
    for seed, (miou, threshold) in enumerate([(50, 0.3), (52, 0.4), (57, 0.3)]):
        write_result(f'a@seed={seed}@scale=0.5,1.0@train', miou, threshold)
    write_result('ab@train', 99, None)
    (table,) = tables(capsys, 'three | a@seed=*@scale=0.5,1.0@train | 51.53', 'one | ab@train')
    assert table == [
        [*HEADERS, 'published %'],
        ['three', '3', '6', '53.00 +- 3.61', '20.0', '17.0', '0.30 0.40', '12.50', '51.53'],
        ['one', '1', '6', '99.00', '20.0', '-29.0', '-', '12.50', ''],
    ]
    (table,) = tables(capsys, 'one | ab@train')
    assert table == [HEADERS, ['one', '1', '6', '99.00', '20.0', '-29.0', '-', '12.50']]


def test_names_are_literal_except_for_the_star(in_tmp, capsys):
    for name, miou in (('a[1]@train', 10), ('a1@train', 20), ('a?@train', 30), ('ab@train', 40)):
        write_result(name, miou)
    (table,) = tables(capsys, 'x | a[1]@train', 'y | a?@train', 'z | *@train')
    assert [row[3] for row in table[1:]] == ['10.00', '30.00', '25.00 +- 12.91']


def test_thresholds(in_tmp, capsys):
    for seed, miou in enumerate([50, 52]):
        write_result(f'cam@seed={seed}@train', miou, 0.3)
    write_result('walk@train', 60, 0.4)
    write_result('label@train', 61, None)
    rows = 'CAM | cam@seed=*@train', 'RW | walk@train', 'label | label@train'
    assert tables(capsys, '--thresholds', *rows)[1] == [
        ['threshold', '0.20', '0.30', '0.40'],
        ['CAM', '48.00', '[51.00]', '-'],
        ['RW', '57.00', '-', '[60.00]'],
    ]
    assert len(tables(capsys, *rows)) == 1
    assert len(tables(capsys, '--thresholds', 'label | label@train')) == 1


def test_missing_results_are_named(in_tmp, capsys):
    with pytest.raises(UserError, match='results/none@train.json not found; run evaluate.py first'):
        summarize.main(summarize.parse_args(['x | none@train']))
    assert 'results/none@train.json not found' in fault_of(summarize, ['x | none@train'], capsys)
    for name in ('../a', 'a/b', '**'):
        with pytest.raises(UserError, match='is not the name of a result'):
            summarize.main(summarize.parse_args([f'x | {name}']))
    for row in ('no bar', 'a | b | c | d'):
        assert 'is not TITLE | NAME' in fault_of(summarize, [row], capsys)


@pytest.mark.parametrize('change', [{'miou': None}, {'fp': 'x'}, {'fn': float('nan')}, {'thresholds': [1]}, None])
def test_damaged_results_are_named(in_tmp, capsys, change):
    write_result('a@train', 50)
    path = results_path('a@train', 'json')
    path.write_text('{' if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    text = fault_of(summarize, ['x | a@train'], capsys)
    assert 'results/a@train.json: is not a valid result file; rerun evaluate.py' in text


@pytest.fixture
def outputs(demo, in_tmp):
    """CAMs, random-walk CAMs and label maps of the first two images of train, made from their masks, and results."""
    dataset = open_dataset(demo / 'dataset.json', demo)
    ids = dataset.ids('train')[:2]
    for image_id in ids:
        mask = dataset.read_mask(image_id)
        keys = present_keys(dataset.read_labels(image_id))
        maps = np.stack([(mask == key).astype(np.float16) for key in keys[1:]])
        write_npz(PREDICTIONS / f'cams/{image_id}.npz', keys=keys, cam=maps[:, ::4, ::4], hr_cam=maps)
        write_npz(PREDICTIONS / f'walk/{image_id}.npz', keys=keys, rw=maps[:, ::4, ::4])
        label = np.where(mask == 255, 0, mask)
        write_bytes(PREDICTIONS / f'labels/{image_id}.png', dataset.encode_label_map(label))
    write_result('cams@train', 50)
    write_result('walk@train', 55, folder='walk')
    write_result('labels@train', 60, None, folder='labels')
    write_result('elsewhere@val', 60, None, 'val', 'elsewhere')
    return dataset, ids, ['--dataset', str(demo / 'dataset.json'), '--data_dir', str(demo)]


ROWS = ['a | cams@train', 'w | walk@train', 'b | labels@train', 'c | elsewhere@val']


def test_picture(outputs, monkeypatch, capsys):
    dataset, ids, data = outputs
    written, write = [], iio.imwrite
    monkeypatch.setattr(summarize.iio, 'imwrite', lambda *args, **more: written.append(args) or write(*args, **more))
    summarize.main(summarize.parse_args([*ROWS, '--picture', 'new/grid.png', '--images', '2', *data]))
    assert capsys.readouterr().out.endswith('written to new/grid.png\n')
    grid = iio.imread('new/grid.png')
    assert len(written) == 1
    assert np.array_equal(written[0][1], grid)
    with Image.open('new/grid.png') as picture:
        assert picture.format == 'PNG'

    # Image, mask and the three rows of train: one line per class of an image, under a line of titles.
    lines = sum(int(dataset.read_labels(image_id).sum()) for image_id in ids)
    assert grid.shape == (24 + lines * 196, 5 * 196, 3)
    assert (grid[:24] < 128).any()
    top = 24
    for image_id in ids:
        image = np.array(dataset.read_image(image_id))
        mask = dataset.read_mask(image_id)
        for key in present_keys(dataset.read_labels(image_id))[1:]:
            present = (mask == key).astype(np.float32)
            for column, expected in {
                0: image,
                1: visualize.overlay_mask(image, mask, dataset.palette),
                2: visualize.overlay_heatmap(image, present),
                3: visualize.overlay_heatmap(image, present[::4, ::4]),
                4: visualize.overlay_mask(image, np.where(mask == 255, 0, mask), dataset.palette),
            }.items():
                found = grid[top : top + 192, column * 196 : column * 196 + 192]
                assert np.array_equal(found, visualize.letterbox(expected, 192)), (image_id, key, column)
            top += 196


def test_picture_of_given_ids(outputs):
    dataset, ids, data = outputs
    lines = int(dataset.read_labels(ids[1]).sum())
    summarize.main(summarize.parse_args([*ROWS, '--picture', 'grid.png', '--ids', ids[1], *data]))
    grid = iio.imread('grid.png')
    assert len(grid) == 24 + lines * 196
    image = np.array(dataset.read_image(ids[1]))
    assert np.array_equal(grid[24 : 24 + 192, :192], visualize.letterbox(image, 192))


def test_picture_without_rows_of_the_list(outputs, capsys):
    text = fault_of(summarize, ['c | elsewhere@val', '--picture', 'grid.png', *outputs[2]], capsys)
    assert '--picture: none of the rows was scored on --domain train' in text
