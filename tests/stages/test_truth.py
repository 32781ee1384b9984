"""recipes/truth.py: masks as CAMs, which score 100 % and which stage 3 ignores where a mask is void."""

import numpy as np
import pytest

import make_affinity_labels
from core import IGNORE, UserError
from core.data.dataset import open_dataset
from recipes import truth
from support import run_stage
from util.store import AFFINITY_LABEL, CAM, open_folder


def test_maps_are_the_mask():
    mask = np.array([[0, 1, 2], [IGNORE, 2, 3]], np.uint8)
    maps = truth.true_maps(mask, np.array([0, 1, 3]))
    assert maps.tolist() == [[[0, 1, 0], [0.25, 0, 0]], [[0, 0, 0], [0.25, 0, 1]]]


def test_the_next_stage_gets_the_masks_back(copy):
    data = ['--dataset', f'{copy}/dataset.json', '--data_dir', str(copy), '--num_workers', '0', '--domain', 'train']
    run_stage(truth, [*data, '--tag', 'a'])
    run_stage(make_affinity_labels, [*data, '--experiment_name', 'a@train@truth', '--crf_iteration', '0'])
    dataset = open_dataset(f'{copy}/dataset.json', copy)
    ids = dataset.ids('train')
    labels = 'a@train@truth@crf_iteration=0@aff_fg=0.40_bg=0.10'
    cams, labels = (
        open_folder(kind, name, '--experiment_name', dataset, ids)
        for kind, name in ((CAM, 'a@train@truth'), (AFFINITY_LABEL, labels))
    )
    for image_id in ids:
        mask = dataset.read_mask(image_id)
        assert np.array_equal(labels.read_label(image_id), mask)
        keys, cam = cams.read_maps(image_id, 'cam')
        assert np.array_equal(cam, truth.true_maps(mask[::4, ::4], keys))


def test_a_list_without_masks_is_refused(copy):
    (copy / 'SegmentationClass' / f'{open_dataset(f"{copy}/dataset.json", copy).ids("train")[0]}.png').unlink()
    line = ['--dataset', f'{copy}/dataset.json', '--data_dir', str(copy), '--tag', 'a', '--domain', 'train']
    with pytest.raises(UserError, match='train: 1 of 6 images have no mask'):
        truth.main(truth.parse_args(line))
