"""The model files of stages 1, 4 and 7, and the stages that read them."""

import json
from pathlib import Path

import pytest
import torch

from support import fault_of, run_stage
from support.chain import (
    CAMS,
    NET,
    PREDICTIONS,
    RANDOM_WALKS,
    SCALES,
    commands,
    dataset_of,
    first,
    outputs_of,
    put_model,
    run,
    state_of,
    without,
)
from util.store.fingerprints import read_args


@pytest.mark.parametrize(
    'tag, own',
    [
        ('cls', {'network': 'Classifier', 'mode': 'normal'}),
        ('aff', {'network': 'AffinityNet', 'mode': 'fix', 'radius': 4}),
        ('seg', {'network': 'DeepLabv3+', 'mode': 'fix', 'use_gn': True}),
    ],
)
def test_models_are_state_dicts_with_metadata(experiments, demo, tag, own):
    content = torch.load(experiments / 'models' / f'{tag}.pth', map_location='cpu', weights_only=True)
    assert set(content) == {'model', 'meta'}
    state, meta = content['model'], content['meta']
    assert all(isinstance(value, torch.Tensor) and torch.isfinite(value.float()).all() for value in state.values())
    assert any(name.startswith('backbone.') for name in state)
    score = meta.pop('score') if tag != 'aff' else None
    palette = dataset_of(demo).palette[:7].tolist()
    common = {
        'backbone': NET,
        'image_size': 64,
        'classes': dataset_of(demo).class_names,
        'palette': palette,
        'epoch': 1,
    }
    assert meta == {**common, **own, **({'select': 'best'} if tag != 'aff' else {})}
    assert score is None or 0 <= score <= 1


# What the fingerprints of stages 2, 5 and 8 hold: the hash of the model says what the network is.
COMPUTING = {'precision': 'fp32', 'compile': False}
OPTIONS = {
    'cams': {'tag': 'cls', 'scales': SCALES, 'resize': 'pillow', 'cam': 'published'},
    'random_walk': {
        'model_name': 'aff', 'cam_dir': CAMS, 'beta': 10, 'exp_times': 8, 'image_size': 96, 'rw_normalization': 'joint'
    },
    'predictions': {
        'tag': 'seg', 'scales': SCALES, 'resize': 'pillow', 'iteration': 10, 'crf_gaussian': '3,3',
        'crf_bilateral': '80,13,10',
    },
}  # fmt: skip


@pytest.mark.parametrize('name, folder', [('cams', CAMS), ('random_walk', RANDOM_WALKS), ('predictions', PREDICTIONS)])
def test_stages_take_the_network_from_the_model_file(copy, capsys, name, folder):
    """Folders do not depend on whether flags or the file say what the network is."""
    script, words = commands(copy)[name]
    path = copy.parent / 'experiments/predictions' / folder
    fingerprint, before = dict(read_args(path)['fingerprint']), outputs_of(folder)
    own = {key: value for key, value in fingerprint.items() if key not in ('classes', 'model')}
    assert set(fingerprint['model']) <= set('0123456789abcdef')
    assert {**own, 'cams': None} == {**OPTIONS[name], **COMPUTING, 'tile': None, 'cams': None}
    capsys.readouterr()
    run_stage(script, without(words, '--architecture', '--backbone'))
    assert '0 of them new' in capsys.readouterr().out
    run_stage(script, [*without(words, '--architecture', '--backbone'), '--overwrite'])
    assert read_args(path)['fingerprint'] == fingerprint
    assert {**outputs_of(folder), 'args.json': None} == {**before, 'args.json': None}


@pytest.mark.parametrize('name, tag', [('cams', 'cls'), ('predictions', 'seg')])
def test_swapped_class_names_are_refused(copy, capsys, name, tag):
    info = json.loads((copy / 'dataset.json').read_text())
    first, second, *others = info['classes']
    (copy / 'dataset.json').write_text(json.dumps({**info, 'classes': [second, first, *others]}))
    text = fault_of(*commands(copy)[name], capsys)
    assert text.partition(': error: ')[2].startswith('--dataset')
    assert text.endswith(f"class 1 is '{second}'; experiments/models/{tag}.pth expects '{first}'")
    text = fault_of(*commands(copy)['random_walk'], capsys)
    assert text.endswith(
        f'{CAMS}: the classes of the data set "drawn scenes" changed; run inference_classification.py again'
    )


@pytest.mark.parametrize(
    'name, flag, tag, line',
    [
        ('cams', '--tag', 'aff', 'contains AffinityNet: pass a model of train_classification_with_puzzle.py'),
        ('random_walk', '--model_name', 'cls', 'contains Classifier: pass a model of train_affinitynet.py'),
        ('predictions', '--tag', 'cls', 'contains Classifier: pass a model of train_segmentation.py'),
        ('predictions', '--mode', 'normal', '--mode normal: experiments/models/seg.pth was trained with fix'),
    ],
)
def test_models_of_another_stage_are_refused(copy, capsys, name, flag, tag, line):
    script, words = commands(copy)[name]
    assert line in fault_of(script, [*words, flag, tag], capsys)


def test_bare_state_dicts_need_flags(copy, capsys):
    put_model('seg', state_of('seg'))
    script, words = commands(copy)['predictions']
    line = 'experiments/models/seg.pth: is a bare state dict without metadata: pass --architecture'
    assert line in fault_of(script, words, capsys)
    run_stage(script, [*words, '--architecture', 'DeepLabv3+', '--overwrite'])


@pytest.mark.parametrize('form', ['plain', 'module.', 'state_dict'])
def test_models_in_other_common_forms(copy, form):
    """They give the same CAMs; without metadata the flags say what the network is."""
    path = Path(f'experiments/predictions/{CAMS}/{first(copy)}.npz')
    expected, state = path.read_bytes(), state_of('cls')
    if form == 'module.':
        state = {f'module.{name}': value for name, value in state.items()}
    put_model('cls', {form: state} if form == 'state_dict' else state)
    run(copy, 'cams', '--overwrite')
    assert path.read_bytes() == expected


@pytest.mark.parametrize(
    'tag, name, layer, line',
    [
        ('cls', 'cams', 'classifier.', 'have a CAM that is zero everywhere: the classifier does not see the class'),
        (
            'aff',
            'random_walk',
            'head.classify.',
            'have an almost constant edge map, so nothing stops the random walk: check AffinityNet',
        ),
    ],
)
def test_models_that_see_nothing_are_warned_of(copy, capsys, tag, name, layer, line):
    state = {key: 0 * value if key.startswith(layer) else value for key, value in state_of(tag).items()}
    put_model(tag, state)
    run(copy, name, '--overwrite')
    assert f'warning: 12 of 12 images (train_00000, ...) {line}\n' in capsys.readouterr().err


def test_warnings_count_the_files_of_this_call(copy, capsys):
    """Also if an unfinished image shares its batch with finished ones."""
    state = {key: 0 * value if key.startswith('classifier.') else value for key, value in state_of('cls').items()}
    put_model('cls', state)
    run(copy, 'cams', '--overwrite')
    Path(f'experiments/predictions/{CAMS}/{first(copy)}.npz').unlink()
    capsys.readouterr()
    run(copy, 'cams')
    assert f'warning: 1 of 1 images ({first(copy)}, ...) have a CAM' in capsys.readouterr().err
