"""tools/import_published.py: models and CAMs of the published code, as the stages then read them."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import inference_classification
import inference_rw
import inference_segmentation
import make_affinity_labels
from core import UserError
from core.data.dataset import open_dataset
from core.maps import present_keys, strided_size
from core.models import build_backbone, load_weights
from core.models.weights import read_state_dict
from support import Call, fault_of, run_stage
from support.published import NARROW, NETWORKS, PublishedClassifier, assert_same_function, published, state_of
from tools import import_published
from util.store import folders, formats
from util.store.folders import Folder
from util.store.formats import CAM, RANDOM_WALK, model_path
from util.store.hashes import file_hash
from util.training.models import load_network, open_model

PALETTE = [[0, 0, 0], [9, 9, 9], [1, 2, 3], [4, 5, 6]]


@pytest.fixture
def pets(in_tmp) -> str:
    """The JSON of a data set of three classes."""
    content = {'classes': ['cat', 'dog', 'owl'], 'lists': {}, 'palette': PALETTE}
    (in_tmp / 'pets.json').write_text(json.dumps(content))
    return 'pets.json'


def run_import(source, tag: str, dataset: str, *more: str):
    return run_stage(import_published, command(source, tag, dataset, *more))


def command(source, tag: str, dataset: str, *more: str) -> list[str]:
    return [str(source), '--tag', tag, '--dataset', str(dataset), '--num_workers', '0', *more]


def fault(capsys, *arguments) -> str:
    return fault_of(import_published, command(*arguments), capsys).partition(': error: ')[2]


# Models -------------------------------------------------------------------------------------------------------------

FORMS = {
    'bare': lambda state: state,
    'module.': lambda state: {f'module.{name}': value for name, value in state.items()},
    'state_dict': lambda state: {'state_dict': state, 'epoch': 3},
    'model, module.': lambda state: {'model': {f'module.{name}': value for name, value in state.items()}},
}


def saved(name: str, form: str = 'bare', **options) -> str:
    torch.save(FORMS[form](state_of(name)), 'published.pth', **options)
    return 'published.pth'


@pytest.mark.parametrize(
    'name, form',
    [
        (name, form) if form == 'bare' or name == 'AffinityNet' else pytest.param(name, form, marks=pytest.mark.slow)
        for name in NETWORKS
        for form in FORMS
    ],
)
def test_imported_model_loads_in_its_stage_and_computes_the_same(pets, capsys, name, form):
    run_import(saved(name, form), 'a', pets)
    printed = f'experiments/models/a.pth: {name.removesuffix(" GN")}, backbone {NARROW}, 3 classes\n'
    assert capsys.readouterr().out == printed
    dataset, network = open_dataset(pets, ''), name.removesuffix(' GN')
    model, _, fingerprint = load_network(dataset, [network], '--tag', 'a', device='cpu')
    assert fingerprint == file_hash(model_path('a'))
    assert_same_function(model, published(name))


@pytest.mark.parametrize('name', NETWORKS)
def test_metadata(pets, name):
    source = saved(name)
    run_import(source, 'a', pets)
    expected = {
        'network': name.removesuffix(' GN'),
        'backbone': NARROW,
        'mode': 'normal' if name == 'Classifier' else 'fix',
        'classes': ('cat', 'dog', 'owl'),
        'palette': PALETTE,
        'imported_from': {'file': source, 'sha256': file_hash(Path(source))},
    }
    if name.startswith('DeepLab'):
        expected['use_gn'] = name.endswith(' GN')
    assert read_state_dict(model_path('a')).meta == expected


def test_file_of_torch_before_1_6(pets):
    run_import(saved('Classifier', _use_new_zipfile_serialization=False), 'a', pets)
    assert read_state_dict(model_path('a')).meta['network'] == 'Classifier'


def test_existing_model_is_replaced_with_overwrite_only(pets, capsys):
    run_import(saved('Classifier'), 'a', pets)
    before = model_path('a').read_bytes()
    source = saved('AffinityNet')
    line = 'experiments/models/a.pth already exists: pass --overwrite to replace it, or choose another --tag'
    assert fault(capsys, source, 'a', pets) == line
    assert model_path('a').read_bytes() == before
    run_import(source, 'a', pets, '--overwrite')
    assert read_state_dict(model_path('a')).meta['network'] == 'AffinityNet'


def test_published_file_is_not_replaced_by_its_own_import(pets, capsys):
    model_path('a').parent.mkdir(parents=True)
    shutil.move(saved('Classifier'), model_path('a'))
    before = model_path('a').read_bytes()
    line = '--tag a: the import would replace experiments/models/a.pth itself: choose another'
    assert fault(capsys, model_path('a'), 'a', pets, '--overwrite') == line
    assert model_path('a').read_bytes() == before


def test_tag_of_a_training_run_is_refused(pets, capsys, in_tmp):
    (in_tmp / 'experiments/checkpoints').mkdir(parents=True)
    (in_tmp / 'experiments/checkpoints/a.pth').write_bytes(b'')
    line = '--tag a: is the tag of a training run: choose another'
    assert fault(capsys, saved('Classifier'), 'a', pets, '--overwrite') == line
    assert not model_path('a').exists()


def remove(name):
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    'network, damage, line',
    [
        ('AffinityNet', remove('fc_edge2.1.weight'), 'fc_edge2.1.weight is missing'),
        ('Classifier', lambda state: state.update(x=torch.zeros(1)), 'contains x, which is not a tensor of the pub'),
        ('Classifier', remove('model.bn1.bias'), f'fits no registered backbone; the nearest is {NARROW}: 1 tensors'),
        ('Classifier', remove('classifier.weight'), 'is not a network of the published code, which has one of class'),
        ('Classifier', lambda state: state['classifier.weight'].fill_(torch.inf), 'classifier.weight contains non-f'),
        ('Classifier', lambda state: state['stage1.1.bias'].fill_(9), 'stage1.1.bias differs from model.bn1.bias, of'),
    ],
)
def test_errors_name_the_file_and_the_tensor(pets, capsys, network, damage, line):
    state = state_of(network)
    damage(state)
    torch.save(state, 'published.pth')
    assert fault(capsys, 'published.pth', 'a', pets).startswith(f'published.pth: {line}')
    assert not model_path('a').exists()


def test_number_of_classes_of_another_data_set(pets, capsys):
    voc = import_published.parse_args(['x', '--tag', 'a']).dataset
    line = 'published.pth: classifier.weight has 3 outputs, expected 20 (Classifier) or 21 (Seg_Model): is it of anothe'
    assert fault(capsys, saved('Classifier'), 'a', voc).startswith(line)


def test_sources_that_cannot_be_read(pets, capsys, in_tmp):
    (in_tmp / 'text.pth').write_text('text')
    (in_tmp / 'empty').mkdir()
    torch.save(build_backbone(NARROW).state_dict(), 'backbone.pth')
    for name in ('breaks', 'escapes'):
        (in_tmp / name).mkdir()
    (in_tmp / 'breaks/a\nb.npy').touch()
    (in_tmp / 'escapes/a\x1b[2J.npy').touch()
    for source, line in (
        ('breaks', "breaks: 'a\\nb.npy' contains control characters: rename it"),
        ('escapes', "escapes: 'a\\x1b[2J.npy' contains control characters: rename it"),
        ('nowhere', 'nowhere: no such file or folder'),
        (
            'text.pth',
            'text.pth: damaged, or not a file of weights; if torch before 1.6 wrote it, load it and save it a',
        ),
        ('empty', 'empty: contains no .npy files'),
        ('backbone.pth', 'backbone.pth: is not a network of the published code'),
    ):
        assert fault(capsys, source, 'a', pets).startswith(line)
    assert '--dataset nowhere.json: cannot be read' in fault(capsys, 'text.pth', 'a', 'nowhere.json')
    assert 'would have 304 bytes' in fault(capsys, saved('Classifier'), 'a' * 300, pets)


# Stages that meet a published model ---------------------------------------------------------------------------------

IMPORT = 'import it with python3 -m tools.import_published'


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('form', ['bare', 'model, module.'])
def test_stages_name_the_command(in_tmp, name, form):
    model_path('a').parent.mkdir(parents=True)
    shutil.move(saved(name, form), model_path('a'))
    line = f"experiments/models/a.pth: is a network of the authors' code: {IMPORT}"
    with pytest.raises(ValueError, match=f'^{line}$'):
        open_model('a', '--tag', ['Classifier'])
    with pytest.raises(ValueError, match=f'^weights {line}$'):
        load_weights(build_backbone(NARROW), NARROW, str(model_path('a')))


def test_imported_model_gives_its_backbone_as_weights(pets):
    run_import(saved('AffinityNet'), 'a', pets)
    backbone = build_backbone(NARROW)
    load_weights(backbone, NARROW, str(model_path('a')))
    expected = published('AffinityNet').model.state_dict()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, expected[name]), name


# CAMs ---------------------------------------------------------------------------------------------------------------

KEYS = np.array([0, 1, 3])


def cam_dict(size=(30, 41), keys=KEYS, seed=0) -> dict:
    """Return the content of a published file of CAMs: `cam` is a tensor there, `hr_cam` an array."""
    rng = np.random.default_rng(seed)
    cam = torch.from_numpy(rng.random((len(keys) - 1, *strided_size(size)), np.float32))
    return {'keys': keys, 'cam': cam, 'hr_cam': rng.random((len(keys) - 1, *size), np.float32)}


def rw_dict(seed=0) -> dict:
    return {'keys': KEYS, 'rw': 70 * np.random.default_rng(seed).random((2, 8, 11), np.float32)}


def write_folder(folder, contents: dict[str, dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, content in contents.items():
        np.save(folder / f'{image_id}.npy', content)


def opened(kind, name, dataset, ids) -> Folder:
    return folders.open_folder(kind, name, '--cam_dir', open_dataset(dataset, ''), ids)


def test_cams_keep_their_values(pets, in_tmp):
    contents = {'a': cam_dict(seed=1), 'b.c': cam_dict((9, 9), np.array([0, 2]), 2), 'blank': cam_dict(keys=KEYS[:1])}
    write_folder(in_tmp / 'source', contents)
    (in_tmp / 'source' / '._a.npy').write_bytes(b'of another system')
    run_import('source', 'cams', pets)
    folder = opened(CAM, 'cams', pets, list(contents))
    for image_id, content in contents.items():
        for name in ('cam', 'hr_cam'):
            keys, maps = folder.read_maps(image_id, name)
            assert keys.tolist() == content['keys'].tolist()
            np.testing.assert_array_equal(maps, np.asarray(content[name]).astype(np.float16))
    assert sorted(path.name for path in folder.path.glob('*.npz')) == ['a.npz', 'b.c.npz', 'blank.npz']


def test_random_walk_cams_are_divided_by_the_maximum_of_all_classes(pets, in_tmp):
    contents = {'a': rw_dict(1), 'zero': {'keys': torch.from_numpy(KEYS), 'rw': torch.zeros(2, 3, 3)}}
    write_folder(in_tmp / 'source', contents)
    run_import('source', 'x@train@beta=10@exp_times=8@rw', pets)
    folder = opened(RANDOM_WALK, 'x@train@beta=10@exp_times=8@rw', pets, ['a', 'zero'])
    keys, maps = folder.read_maps('a', 'rw')
    rw = contents['a']['rw']
    np.testing.assert_array_equal(maps, (rw / rw.max()).astype(np.float16))
    assert (keys.tolist(), maps.max()) == ([0, 1, 3], 1)
    assert not folder.read_maps('zero', 'rw')[1].any()


def test_fingerprint_is_that_of_the_kind_the_classes_and_the_files(pets, in_tmp):
    def record():
        return json.loads((formats.PREDICTIONS / 'cams' / 'args.json').read_text())

    write_folder(in_tmp / 'source', {'a': cam_dict(), 'b': cam_dict()})
    shutil.copytree('source', 'copy')
    run_import('source', 'cams', pets)
    run_import('copy', 'cams', pets, '--repair')
    first = record()['fingerprint']
    assert first.keys() == {'files', 'classes', 'tag'}
    assert (record()['format'], first['classes']) == ('CAM', ['cat', 'dog', 'owl'])
    write_folder(in_tmp / 'source', {'b': cam_dict(seed=1)})
    run_import('source', 'cams', pets, '--overwrite')
    assert record()['fingerprint']['files'] != first['files']


def test_stopped_import_resumes_and_other_files_are_refused(pets, in_tmp, capsys):
    write_folder(in_tmp / 'source', {'a': cam_dict(), 'b': cam_dict()})
    run_import('source', 'cams', pets)
    target = formats.PREDICTIONS / 'cams'
    before = (target / 'b.npz').read_bytes()
    (target / 'b.npz').unlink()
    written = (target / 'a.npz').stat().st_mtime_ns
    run_import('source', 'cams', pets)
    assert (target / 'b.npz').read_bytes() == before
    assert (target / 'a.npz').stat().st_mtime_ns == written
    (target / 'a.npz').write_bytes(b'other')
    foreign = 'cams: 1 of 1 files are not as recorded (a.npz); run tools.import_published again'
    with pytest.raises(UserError, match=re.escape(foreign)):
        opened(CAM, 'cams', pets, ['a'])
    run_import('source', 'cams', pets)
    assert (target / 'a.npz').read_bytes() == before
    opened(CAM, 'cams', pets, ['a', 'b'])
    write_folder(in_tmp / 'source', {'b': cam_dict(seed=1)})
    assert 'cams exists with different settings (the .npy files changed)' in fault(capsys, 'source', 'cams', pets)
    assert (target / 'b.npz').read_bytes() == before


def test_folder_is_imported_in_its_place(pets):
    write_folder(formats.PREDICTIONS / 'cams', {'a': cam_dict()})
    published = (formats.PREDICTIONS / 'cams' / 'a.npy').read_bytes()
    for more in ((), ('--overwrite',)):
        run_import(formats.PREDICTIONS / 'cams', 'cams', pets, *more)
        opened(CAM, 'cams', pets, ['a'])
        assert (formats.PREDICTIONS / 'cams' / 'a.npy').read_bytes() == published


NAN = np.float32('nan')
FAULTS = [
    ({'hr_cam': None}, 'contains no "hr_cam", which is part of a CAM'),
    ({'keys': None}, 'contains no "keys", which is part of a CAM'),
    ({'keys': np.array([1, 2, 3])}, 'keys [1, 2, 3] are not 0 followed by increasing classes up to 3: check --dataset'),
    ({'keys': np.array([0, 3, 1])}, 'keys [0, 3, 1] are not 0 followed by'),
    ({'keys': np.array([0, 2, 2])}, 'keys [0, 2, 2] are not 0 followed by'),
    ({'keys': np.array([0, 1, 4])}, 'keys [0, 1, 4] are not 0 followed by'),
    ({'keys': np.array([0.0, 1, 3])}, 'keys [0.0, 1.0, 3.0] are not 0 followed by'),
    ({'keys': np.array([], int)}, 'keys [] are not 0 followed by'),
    ({'keys': np.array(0)}, 'keys 0 are not 0 followed by'),
    ({'keys': np.array([0, 1])}, '"cam" float32(2, 8, 11) does not match 2 keys'),
    ({'cam': np.zeros((8, 11), np.float32)}, '"cam" float32(8, 11) does not match 3 keys'),
    ({'hr_cam': np.zeros((2, 8, 11), int)}, '"hr_cam" int64(2, 8, 11) does not match 3 keys'),
    ({'cam': np.zeros((2, 0, 11), np.float32)}, '"cam" float32(2, 0, 11) has no pixels'),
    ({'cam': torch.full((2, 8, 11), -0.1)}, '"cam" contains values outside 0 to 1'),
    ({'hr_cam': np.full((2, 8, 11), 1.01)}, '"hr_cam" contains values outside 0 to 1'),
    ({'hr_cam': np.full((2, 8, 11), NAN)}, '"hr_cam" contains non-finite values'),
    ({'cam': np.full((2, 8, 11), np.inf)}, '"cam" contains non-finite values'),
    ({'rw': np.full((2, 8, 11), -1.0)}, '"rw" contains values outside 0 to 1'),
    ({'rw': np.full((2, 8, 11), np.inf)}, '"rw" contains non-finite values'),
]


@pytest.mark.parametrize('change, line', FAULTS, ids=[line for _, line in FAULTS])
@pytest.mark.parametrize('image_id', ['a', 'b'])
def test_errors_name_the_file(pets, in_tmp, capsys, change, line, image_id):
    """In the first file before anything is written, in a later one when it is read."""
    good = rw_dict() if 'rw' in change else cam_dict()
    changed = {name: value for name, value in {**good, **change}.items() if value is not None}
    write_folder(in_tmp / 'source', {'a': good, 'b': good, image_id: changed})
    text = fault(capsys, 'source', 'cams', pets)
    assert text.startswith(f'source/{image_id}.npy: {line}')
    assert (formats.PREDICTIONS / 'cams').exists() == (image_id == 'b')
    assert not (formats.PREDICTIONS / 'cams' / f'{image_id}.npz').exists()


def test_slightly_above_one_is_accepted(pets, in_tmp):
    write_folder(in_tmp / 'source', {'a': {**cam_dict(), 'cam': torch.full((2, 8, 11), 1.001)}})
    run_import('source', 'cams', pets)
    opened(CAM, 'cams', pets, ['a'])


def test_file_that_would_run_code_is_refused(pets, in_tmp, capsys):
    write_folder(in_tmp / 'source', {'a': cam_dict(), 'b': {**cam_dict(), 'cam': Call(os.system, 'touch sprung')}})
    name = f'{os.system.__module__}.system'
    line = f"source/b.npy: asks for '{name}', which is not part of an array or tensor: refused"
    assert fault(capsys, 'source', 'cams', pets) == line
    assert not (in_tmp / 'sprung').exists()


# Stages on a data set -----------------------------------------------------------------------------------------------


@pytest.fixture
def stages(demo, in_tmp):
    """Run a stage on the list train of the drawn set."""

    def run(module, *line):
        workers = ['--num_workers', '0', '--dataset', str(demo / 'dataset.json'), '--data_dir', str(demo)]
        domain = [] if '--domain' in line else ['--domain', 'train']
        return run_stage(module, [*line, *workers, *domain])

    return run


def mask_cams(dataset) -> dict[str, dict]:
    """Return good CAMs of the list train: the masks, blurred by noise."""
    contents = {}
    for i, image_id in enumerate(dataset.ids('train')):
        keys, mask = present_keys(dataset.read_labels(image_id)), dataset.read_mask(image_id)
        noise = np.random.default_rng(i).random((len(keys) - 1, *mask.shape), np.float32)
        hr_cam = np.stack([mask == key for key in keys[1:]]).astype(np.float32) * 0.6 + 0.4 * noise
        contents[image_id] = {'keys': keys, 'cam': torch.from_numpy(hr_cam[:, ::4, ::4].copy()), 'hr_cam': hr_cam}
    return contents


def test_imported_folders_score_as_the_files_of_this_repository(demo, stages):
    dataset = open_dataset(demo / 'dataset.json', demo)
    contents, ids = mask_cams(dataset), dataset.ids('train')
    rws = {image_id: {'keys': x['keys'], 'rw': 300 * x['cam'].numpy()} for image_id, x in contents.items()}
    native = {
        kind: Folder(kind, formats.PREDICTIONS / f'native {kind.title}', dataset, ids) for kind in (CAM, RANDOM_WALK)
    }
    for image_id, content in contents.items():
        native[CAM].write_maps(image_id, content['keys'], content['cam'].numpy(), content['hr_cam'])
        native[RANDOM_WALK].write_maps(image_id, content['keys'], content['cam'].numpy() / content['cam'].max().item())
    for kind, files in ((CAM, contents), (RANDOM_WALK, rws)):
        name = f'imported {kind.title}'
        write_folder(formats.PREDICTIONS / name, files)
        run_import(formats.PREDICTIONS / name, name, demo / 'dataset.json')
        scores, mode = [], 'npy' if kind is CAM else 'rw'
        for folder, more in ((name, []), (f'native {kind.title}', ['--mode', mode])):
            stages(evaluate, '--experiment_name', folder, *more)
            scores.append(json.loads(formats.result_path(f'{folder}@train', 'json').read_text()))
        assert scores[0]['thresholds'] == scores[1]['thresholds']
        assert scores[0]['miou'] > 50
        assert [(x['mode'], x['format']) for x in scores] == 2 * [(mode, kind.title)]


def test_stages_run_on_imported_models_and_cams(demo, stages, in_tmp, monkeypatch):
    dataset = open_dataset(demo / 'dataset.json', demo)
    monkeypatch.setattr('support.published.CLASSES', dataset.num_classes)
    ids = dataset.ids('train')

    # Stage 2 with an imported classifier.
    torch.save(PublishedClassifier(NARROW, dataset.num_classes).state_dict(), 'classifier.pth')
    run_import('classifier.pth', 'cls', demo / 'dataset.json')
    stages(inference_classification, '--tag', 'cls', '--architecture', NARROW, '--scales', '1.0')

    # Stages 3 and 5 with imported CAMs, stage 5 with an imported AffinityNet.
    write_folder(in_tmp / 'source', mask_cams(dataset))
    run_import('source', 'cams', demo / 'dataset.json')
    stages(make_affinity_labels, '--experiment_name', 'cams')
    run_import(saved('AffinityNet'), 'aff', demo / 'dataset.json')
    stages(inference_rw, '--model_name', 'aff', '--cam_dir', 'cams', '--architecture', NARROW, '--image_size', '64')
    folder = folders.open_folder(RANDOM_WALK, 'aff@train@beta=10@exp_times=8@rw', '--x', dataset, ids)
    assert folder.read_maps(ids[0], 'rw')[1].max() == 1

    # Stage 8 with an imported DeepLabv3+.
    run_import(saved('DeepLabv3+'), 'seg', demo / 'dataset.json')
    more = ['--backbone', NARROW, '--use_gn', 'False', '--scales', '1.0', '--iteration', '0']
    stages(inference_segmentation, '--tag', 'seg', *more)
    assert len(list((formats.PREDICTIONS / 'seg@train@scale=1.0@iteration=0').glob('*.png'))) == len(ids)


def test_stages_that_meet_a_published_folder_name_the_command(demo, in_tmp, capsys):
    dataset = open_dataset(demo / 'dataset.json', demo)
    write_folder(formats.PREDICTIONS / 'cams', mask_cams(dataset))
    first = f'experiments/predictions/cams/{dataset.ids("train")[0]}'
    command = 'import its folder with python3 -m tools.import_published'
    data = ['--domain', 'train', '--dataset', str(demo / 'dataset.json'), '--data_dir', str(demo)]
    text = fault_of(make_affinity_labels, ['--experiment_name', 'cams', *data], capsys)
    assert text.endswith(f"{first}.npz not found (6 of 6 are missing); {first}.npy is of the authors' code: {command}")
    for more in (['--mode', 'npy'], []):
        text = fault_of(evaluate, ['--experiment_name', 'cams', *data, *more], capsys)
        assert text.endswith(f"{first}.npy is of the authors' code: {command}")
