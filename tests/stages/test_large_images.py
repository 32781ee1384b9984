"""--tile: images of one tile give the same bytes, larger ones nearly the same maps; names, records, resumption."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import inference_segmentation
from support import chain, fault_of, run_stage, working_in
from support.chain import SCALES, dataset_of, pixels
from tools import predict
from util.store.arrays import names_inside, read_arrays
from util.store.fingerprints import read_args

FOLDERS = (chain.LARGE_CAMS, f'{chain.LARGE_CAMS}{{0}}@aff_fg=0.40_bg=0.10', chain.LARGE_WALKS, 'aff@train{0}@edge')
FOLDERS = (*FOLDERS, chain.LARGE_PSEUDO, chain.LARGE_PREDICTIONS)


@pytest.fixture(scope='module')
def large(demo, finished, tmp_path_factory) -> Iterator[Path]:
    """A working directory with models of all stages, and outputs of two images as a whole, in one tile and in many.

    The images a and b have 160x112 and 200x40 pixels.
    """
    folder = tmp_path_factory.mktemp('tiles')
    shutil.copytree(finished / 'experiments/models', folder / 'experiments/models')
    dataset = dataset_of(demo)
    with working_in(folder):
        chain.draw_large(dataset, dataset.ids('train')[:2])
        for tile in (None, 208, 64):
            chain.run_large(tile)
        yield folder


def files_of(name: str, tile: int | None = None) -> list[Path]:
    folder = Path('experiments/predictions', name.format(f'@tile={tile}' if tile else ''))
    return [path for path in sorted(folder.iterdir()) if path.suffix in ('.npz', '.png')]


def test_images_of_one_tile_give_the_bytes_of_whole_images(large):
    for name in FOLDERS:
        whole, tiled = files_of(name), files_of(name, 208)
        assert [path.name for path in whole] == [path.name for path in tiled]
        assert len(whole) == 2
        for one, other in zip(whole, tiled, strict=True):
            assert one.read_bytes() == other.read_bytes(), other


def test_tiles_give_nearly_the_maps_of_whole_images(large):
    """And each folder records its tiles."""
    for name in FOLDERS:
        for whole, tiled in zip(files_of(name), files_of(name, 64), strict=True):
            assert read_args(tiled.parent)['fingerprint']['tile'] == 64
            if tiled.suffix == '.png':
                assert np.mean(pixels(tiled) != pixels(whole)) < 0.3
                continue
            arrays = [array for array in names_inside(whole) if array != 'keys']
            for one, two in zip(read_arrays(tiled, *arrays), read_arrays(whole, *arrays), strict=True):
                assert (one.shape, one.dtype) == (two.shape, two.dtype)
                assert 0 < np.abs(one.astype(float) - two).mean() < 0.2


def test_what_is_missing_is_made_again_as_it_was(large):
    lost = {path: path.read_bytes() for name in FOLDERS for path in files_of(name, 64)[1:]}
    for path in lost:
        path.unlink()
    chain.run_large(64)
    assert {path: path.read_bytes() for path in lost} == lost


def test_masks_by_tiles_are_those_of_the_stages(large):
    """Of a classifier with AffinityNet, and of a segmentation network, whose probabilities fit its mask."""
    common = f'--tile 64 --num_workers 0 --device cpu --scales {SCALES}'
    walk = '--affinity experiments/models/aff.pth --image_size 64'
    for line in (f'seg.pth large/a.png {common}', f'cls.pth {chain.LARGE_DATA.split(" --num")[0]} {common} {walk}'):
        run_stage(predict, f'experiments/models/{line} --out {line[:3]}'.split())
    for ours, name in (('seg', chain.LARGE_PREDICTIONS), ('cls', chain.LARGE_PSEUDO)):
        assert np.array_equal(pixels(f'{ours}/a.png'), pixels(files_of(name, 64)[0])), ours
    keys, probability = read_arrays(Path('seg/a.npz'), 'keys', 'probability')
    mask = pixels('seg/a.png')
    assert keys.tolist() == sorted({0, *np.unique(mask).tolist()})
    assert (probability.dtype, probability.shape) == (np.float16, (len(keys), *mask.shape))
    chosen = np.take_along_axis(probability, np.searchsorted(keys, mask)[None], 0)[0]
    assert (chosen >= probability.max(0)).all()


@pytest.mark.parametrize(
    'flags, fault',
    [
        ('--tile 100', 'argument --tile: 100 is not a multiple of 16, such as 96 or 112'),
        ('--tile 48', 'argument --tile: 48 is out of range: 64 to 16384'),
        ('--tile 64 --resize torch', '--resize torch: cannot resize a tile of an image: leave it out with --tile'),
    ],
)
def test_tiles_that_are_refused(in_tmp, capsys, flags, fault):
    for script, line in ((inference_segmentation, '--tag x'), (predict, 'model.pth image.png')):
        assert fault_of(script, [*line.split(), *flags.split()], capsys).endswith(f'error: {fault}')
