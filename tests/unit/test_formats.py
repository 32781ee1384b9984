"""The kinds of output folders, and how their folders are named."""

import pytest

from support import REPOSITORY
from util.store.formats import (
    AFFINITY_LABEL,
    CAM,
    EDGE,
    FORMATS,
    PREDICTION,
    PSEUDO_LABEL,
    RANDOM_WALK,
    folder_name,
    model_path,
    result_path,
    run_path,
)

CRF = dict(crf_gaussian='3,3', crf_bilateral='50,5,10')
SCALES = '0.5,1.0,1.5,2.0'
DEFAULTS = {
    CAM: dict(tag='T@x', scales=SCALES, cam='published', tile=None),
    AFFINITY_LABEL: dict(
        experiment_name='C', fg_threshold=0.4, bg_threshold=0.1, crf_iteration=10, gt_prob=0.7, tile=None, **CRF
    ),
    RANDOM_WALK: dict(model_name='M', beta=10, exp_times=8, rw_normalization='joint', tile=None),
    EDGE: dict(model_name='M', beta=10, exp_times=8, rw_normalization='joint', tile=None),
    PSEUDO_LABEL: dict(experiment_name='R', crf_iteration=1, gt_prob=0.7, tile=None, **CRF),
    PREDICTION: dict(tag='D', scales=SCALES, iteration=10, crf_gaussian='3,3', crf_bilateral='80,13,10', tile=None),
}


def name_of(kind, domain='train_aug', **changes) -> str:
    """Return the name of the folder of a command with the default options and some changes."""
    return folder_name(kind, {**DEFAULTS[kind], 'domain': domain, **changes}, DEFAULTS[kind])


@pytest.mark.parametrize(
    'domain, split', [('train_aug', 'train'), ('train', 'train'), ('val', 'val'), ('test', 'test')]
)
def test_folder_names(domain, split):
    assert {kind.title: name_of(kind, domain) for kind in FORMATS.values()} == {
        'CAM': f'T@x@{split}@scale=0.5,1.0,1.5,2.0',
        'affinity label': 'C@aff_fg=0.40_bg=0.10',
        'random-walk CAM': f'M@{split}@beta=10@exp_times=8@rw',
        'edge map': f'M@{split}@edge',
        'pseudo-label': 'R@crf=1',
        'prediction': f'D@{split}@scale=0.5,1.0,1.5,2.0@iteration=10',
    }


def test_numbers_are_written_in_one_way():
    assert name_of(RANDOM_WALK, 'val', beta=10.0) == 'M@val@beta=10@exp_times=8@rw'


@pytest.mark.parametrize(
    'kind, changes, name',
    [
        (CAM, {'cam': 'positive'}, f'T@x@train@cam=positive@scale={SCALES}'),
        (AFFINITY_LABEL, {'crf_iteration': 0}, 'C@crf_iteration=0@aff_fg=0.40_bg=0.10'),
        (AFFINITY_LABEL, {'bg_threshold': None}, 'C@aff_fg=0.40'),
        (CAM, {'cam': 'mean', 'tile': 512}, f'T@x@train@cam=mean@tile=512@scale={SCALES}'),
        (PSEUDO_LABEL, {'crf_iteration': 10}, 'R@crf=10'),
        (PSEUDO_LABEL, {'gt_prob': 0.9, 'crf_gaussian': '1,3'}, 'R@gt_prob=0.9@crf_gaussian=1,3@crf=1'),
        (RANDOM_WALK, {'rw_normalization': 'class'}, 'M@train@beta=10@exp_times=8@rw_normalization=class@rw'),
        (EDGE, {'rw_normalization': 'class'}, 'M@train@edge'),
        (PREDICTION, {'crf_bilateral': '5,5,1'}, f'D@train@scale={SCALES}@crf_bilateral=5,5,1@iteration=10'),
    ],
)
def test_changed_options_are_part_of_the_name(kind, changes, name):
    assert name_of(kind, **changes) == name


def test_formats_are_found_by_their_titles():
    assert all(FORMATS[kind.title] is kind for kind in DEFAULTS)
    assert len(FORMATS) == len(DEFAULTS)


def test_scripts_of_formats_exist():
    for kind in FORMATS.values():
        assert (REPOSITORY / kind.script).is_file()


def test_suffixes():
    suffixes = {kind.title: kind.suffix for kind in FORMATS.values()}
    maps, labels = {'CAM', 'random-walk CAM', 'edge map'}, {'affinity label', 'pseudo-label', 'prediction'}
    assert suffixes == {**dict.fromkeys(maps, '.npz'), **dict.fromkeys(labels, '.png')}


def test_paths_of_models_runs_and_results():
    assert [str(model_path('a@b', suffix)) for suffix in ('', '.last')] == [
        'experiments/models/a@b.pth',
        'experiments/models/a@b.last.pth',
    ]
    assert str(run_path('a@b')) == 'experiments/data/a@b.json'
    assert [str(path) for path in (result_path('a'), result_path('a', 'npz'))] == [
        'experiments/results/a.json',
        'experiments/results/a.npz',
    ]
