"""Stage 5 beyond its defaults: edge maps in a separate folder, normalisation, scores beyond float16."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from core import UserError, chain
from core.data.transforms import normalize
from core.models import AffinityNet
from core.models.affinitynet import predict_edges
from core.random_walk import random_walk
from support import fault_of
from support.chain import (
    BY_CLASS,
    CAMS,
    EDGES,
    NET,
    PSEUDO,
    RANDOM_WALKS,
    commands,
    dataset_of,
    ids_of,
    image_of,
    outputs_of,
    refused,
    run,
    state_of,
    without,
)
from util.store.arrays import read_edge, read_maps
from util.store.folders import Folder
from util.store.formats import EDGE


def test_random_walks_normalised_by_class(copy, monkeypatch):
    """The same walks, each class divided by its own maximum, in a separate folder."""

    def uneven(cam, edge, **options):
        """Walks of classes that are the weaker the later they come."""
        maps = random_walk(cam, edge, **options) + 0.1
        return maps / (1 + torch.arange(len(maps)))[:, None, None]

    monkeypatch.setattr(chain, 'random_walk', uneven)
    run(copy, 'random_walk', '--overwrite')
    before = outputs_of(RANDOM_WALKS)
    run(copy, 'random_walk', '--rw_normalization', 'class')
    assert outputs_of(RANDOM_WALKS) == before
    folders = [Path('experiments/predictions', name) for name in (RANDOM_WALKS, BY_CLASS)]
    weaker = 0
    for image_id in ids_of(copy, 'train_aug'):
        (_, joint), (_, by_class) = (read_maps(folder / f'{image_id}.npz', 'rw', 6) for folder in folders)
        largest = joint.max((1, 2), keepdims=True)
        np.testing.assert_allclose(by_class, joint / np.where(largest > 0, largest, 1), atol=2e-3)
        weaker += ((0 < largest) & (largest < 1)).any()
    assert weaker


def test_walks_of_other_cams_along_the_same_edges(copy, capsys):
    """With --variant they have another folder, which stage 6 reads by its name."""
    shutil.copytree(f'experiments/predictions/{CAMS}', f'experiments/predictions/{CAMS}@other')
    before = outputs_of(RANDOM_WALKS)
    other = ('--cam_dir', f'{CAMS}@other')
    assert 'exists with different settings (cam_dir: ' in refused(copy, 'random_walk', capsys, *other)
    run(copy, 'random_walk', *other, '--variant', 'other')
    name = RANDOM_WALKS.replace('@rw', '@variant=other@rw')
    assert {**outputs_of(name), 'args.json': b''} == {**before, 'args.json': b''}
    assert outputs_of(RANDOM_WALKS) == before
    run(copy, 'pseudo', '--experiment_name', name)
    assert outputs_of(f'{name}@crf=1').keys() == outputs_of(PSEUDO).keys()


def test_edges_are_added_to_a_finished_random_walk(copy, capsys, monkeypatch):
    """The walk is not computed again; its folder stays as it is, and does not depend on --save_edges."""
    before = outputs_of(RANDOM_WALKS)
    with monkeypatch.context() as patch:
        patch.setattr(chain, 'random_walk', None)
        run(copy, 'random_walk', '--save_edges')
    assert outputs_of(RANDOM_WALKS) == before
    ids = ids_of(copy, 'train_aug')
    edges = outputs_of(EDGES)
    assert set(edges) == {'args.json', 'inputs.json', 'files.json', *(f'{image_id}.npz' for image_id in ids)}
    capsys.readouterr()
    run(copy, 'random_walk', '--save_edges')
    assert capsys.readouterr().out.count('0 of them new') == 2
    assert (outputs_of(RANDOM_WALKS), outputs_of(EDGES)) == (before, edges)

    # Both at once, and the edges of another walk, which are the same.
    run(copy, 'random_walk', '--save_edges', '--overwrite')
    for name, content in ((RANDOM_WALKS, before), (EDGES, edges)):
        found = outputs_of(name)
        assert {file: found[file] for file in found if file != 'args.json'} == {
            file: content[file] for file in content if file != 'args.json'
        }
    capsys.readouterr()
    run(copy, 'random_walk', '--save_edges', '--beta', '5')
    assert f'12 edge maps in experiments/predictions/{EDGES}, 0 of them new' in capsys.readouterr().out
    with pytest.raises(UserError, match=f'{EDGES} exists with different settings .image_size: 96, requested 64'):
        run(copy, 'random_walk', '--save_edges', '--beta', '3', '--image_size', '64')


def test_edges_are_those_of_the_walk(copy):
    run(copy, 'random_walk', '--save_edges')
    model = AffinityNet(NET)
    model.load_state_dict(state_of('aff'))
    folder = Folder(EDGE, Path('experiments/predictions', EDGES), dataset_of(copy), ids_of(copy, 'train_aug'))
    for image_id in folder.ids:
        image = torch.from_numpy(image_of(copy, image_id))[None]
        (expected,) = predict_edges(model.eval(), normalize(image), 96)
        edge = read_edge(folder.file(image_id), tuple(expected.shape))
        np.testing.assert_allclose(edge, expected.numpy(), atol=2e-3)
        with np.load(folder.file(image_id)) as file:
            assert (file.files, file['edge'].dtype) == (['edge'], np.float16)


def test_either_missing_file_is_made_again(copy, capsys):
    run(copy, 'random_walk', '--save_edges')
    before = outputs_of(RANDOM_WALKS), outputs_of(EDGES)
    one, other, damaged = ids_of(copy, 'train_aug')[:3]
    Path(f'experiments/predictions/{RANDOM_WALKS}/{one}.npz').unlink()
    Path(f'experiments/predictions/{EDGES}/{other}.npz').unlink()
    Path(f'experiments/predictions/{EDGES}/{damaged}.npz').write_bytes(b'PK')
    capsys.readouterr()
    run(copy, 'random_walk', '--save_edges', '--repair')
    text, err = capsys.readouterr()
    assert f'experiments/predictions/{EDGES}: 1 of 12 files are not as recorded ({damaged}.npz): regenerating' in err
    assert '12 edge maps' in text and ', 2 of them new' in text and ', 1 of them new' in text
    for name, content in zip((RANDOM_WALKS, EDGES), before, strict=True):
        found = outputs_of(name)
        assert all(found[file] == content[file] for file in content if file.endswith('.npz'))


def test_edges_cannot_be_evaluated(copy, capsys):
    script, line = commands(copy)['evaluate']
    words = [*without(line, '--domain'), '--experiment_name', EDGES]
    assert f'{EDGES} not found; run the stage that writes it first' in fault_of(script, words, capsys)
    run(copy, 'random_walk', '--save_edges')
    for mode in ([], ['--mode', 'rw']):
        text = fault_of(script, [*words, *mode], capsys)
        assert f'{EDGES}: an edge map has no classes to score; train_affinitynet.py logs' in text


@pytest.mark.parametrize('factor', [1e-9, 1e9])
def test_random_walk_scores_beyond_float16(copy, monkeypatch, factor):
    """They are scaled to a maximum of 1 before they are written."""

    def scaled(*args, **kwargs):
        return random_walk(*args, **kwargs) * factor

    folder = copy.parent / 'experiments/predictions' / RANDOM_WALKS
    expected = {path.name: read_maps(path, 'rw', 6) for path in folder.glob('*.npz')}
    assert sum(rw.any() for _, rw in expected.values()) > 2  # or this compares nothing
    monkeypatch.setattr(chain, 'random_walk', scaled)
    run(copy, 'random_walk', '--overwrite')
    for name, (keys, rw) in expected.items():
        found_keys, found = read_maps(folder / name, 'rw', 6)
        assert found_keys.tolist() == keys.tolist()
        np.testing.assert_allclose(found, rw, atol=1e-3)
