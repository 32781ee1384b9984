"""recipes/seams.py: rows for every step; no difference where an image is one tile."""

import pytest

from core import UserError
from recipes import seams
from support import fault_of, run_stage


def rows_of(demo, capsys, line: str) -> dict[tuple[str, str], list[str]]:
    """Return the cells of the printed table by tile and step."""
    data = f'--dataset {demo}/dataset.json --data_dir {demo} --device cpu --images 1'
    run_stage(seams, [*line.split(), *data.split()])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| ')][1:]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
    return {(tile, step): cells for tile, step, *cells in rows}


def test_a_classifier_with_affinitynet(experiments, demo, capsys):
    rows = rows_of(demo, capsys, '--classifier cls --affinity aff --tiles 64 1024 --mosaic 2 --scales 1.0')
    steps = ['class maps', 'edges', 'random walk', 'random walk, alone by tiles']
    steps += ['label maps', 'label maps, CRF alone by tiles']
    assert list(rows) == [(tile, step) for tile in ('64', '1024') for step in steps]
    assert float(rows['64', 'class maps'][0]) > 0 and float(rows['64', 'edges'][1]) > 0
    for step in steps[:4]:
        assert [float(cell) for cell in rows['1024', step][:2]] == [0, 0]
    for step in steps[4:]:
        _, _, share, whole, tiled = rows['1024', step]
        assert share == '0.00 %' and whole == tiled


def test_a_segmentation_network(experiments, demo, capsys):
    rows = rows_of(demo, capsys, '--segmenter seg --tiles 64 --scales 0.5,2.0')
    steps = ['probabilities', 'masks without CRF', 'label maps', 'label maps, CRF alone by tiles']
    assert list(rows) == [('64', step) for step in steps]
    assert float(rows['64', 'probabilities'][0]) > 0
    assert rows['64', 'label maps, CRF alone by tiles'][2] == '0.00 %'  # the image itself is one tile


def test_what_is_missing_is_named(experiments, demo, capsys):
    line = f'--dataset {demo}/dataset.json --data_dir {demo}'
    assert 'pass either --classifier or --segmenter' in fault_of(seams, line.split(), capsys)
    with pytest.raises(UserError, match='domain .*test'):
        seams.main(seams.parse_args([*line.split(), '--classifier', 'cls', '--domain', 'test']))
