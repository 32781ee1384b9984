"""tools.average_cams: the mean of folders of CAMs goes on in the next stages, and is outdated with them."""

import shutil
from pathlib import Path

import numpy as np

import make_affinity_labels
from support import fault_of, run_stage
from support.chain import CAMS, commands, first
from support.folders import record_as_written
from tools import average_cams
from util.store.arrays import read_arrays, write_npz
from util.store.current import find_outdated

OTHER = 'cls@train@scale=1.0'
MEAN = Path('experiments/predictions/two@train@mean')


def words_of(data: Path, *more: str) -> list[str]:
    line = ['--dataset', f'{data}/dataset.json', '--data_dir', str(data), '--num_workers', '0', '--tag', 'two']
    return [*line, '--cam_dirs', CAMS, OTHER, *more]


def test_the_mean_of_two_folders_goes_on(copy, capsys):
    stage, line = commands(copy)['cams']
    run_stage(stage, [*line, '--scales', '1.0'])
    run_stage(average_cams, words_of(copy))
    image_id = first(copy)
    one, other, mean = (
        read_arrays(Path('experiments/predictions', name, f'{image_id}.npz'), 'keys', 'cam', 'hr_cam')
        for name in (CAMS, OTHER, MEAN.name)
    )
    assert mean[0].tolist() == one[0].tolist()
    for a, b, found in zip(one[1:], other[1:], mean[1:], strict=True):
        expected = (a.astype(float) + b) / 2
        expected /= expected.max((1, 2), keepdims=True) + 1e-5
        np.testing.assert_allclose(found, expected, atol=5e-4)  # float16
        assert np.abs(found - a).max() > 0.01

    # The next stage takes it; the same command makes nothing; a source that changes makes it outdated.
    _, line = commands(copy)['affinity_labels']
    at = line.index('--experiment_name')
    run_stage(make_affinity_labels, [*line[: at + 1], MEAN.name, *line[at + 2 :]])
    capsys.readouterr()
    run_stage(average_cams, words_of(copy))
    assert '0 of them new' in capsys.readouterr().out
    run_stage(stage, [*commands(copy)['cams'][1], '--scales', '1.0', '--cam', 'positive'])
    shutil.rmtree(f'experiments/predictions/{OTHER}')
    Path(f'experiments/predictions/{OTHER.replace("@scale", "@cam=positive@scale")}').rename(
        f'experiments/predictions/{OTHER}'
    )
    assert find_outdated([MEAN]) == f'{MEAN}: experiments/predictions/{OTHER} changed; run tools.average_cams again'


def test_folders_that_do_not_go_together(copy, capsys):
    line = words_of(copy)
    assert fault_of(average_cams, [*line[:-1], CAMS], capsys).endswith(f'{CAMS}: name two or more folders, each once')
    assert f'--cam_dirs {OTHER}: ' in fault_of(average_cams, line, capsys)
    folder = Path('experiments/predictions')
    shutil.copytree(folder / CAMS, folder / OTHER)
    path = folder / OTHER / f'{first(copy)}.npz'
    keys, cam, hr_cam = read_arrays(path, 'keys', 'cam', 'hr_cam')
    write_npz(path, keys=keys[:1], cam=cam[:0], hr_cam=hr_cam[:0])
    record_as_written(folder / OTHER)
    expected = f'{path}: has other classes than {folder / CAMS / path.name}'
    assert expected in fault_of(average_cams, line, capsys)
