"""tools.tune on the drawn set: it scores as the stages do, and the commands that it prints run."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import evaluate
import inference_rw
from core.data.dataset import open_dataset
from core.maps import threshold_cams, upsample_rw
from core.metrics import ConfusionMatrix
from support import REPOSITORY, fault_of, folder_of, run_stage
from support.chain import CAMS, EDGES, RANDOM_WALKS, as_process, contents
from support.documents import commands_of, module_of
from tools import export, tune
from util.store.formats import RANDOM_WALK, result_path

LIST = ['--domain', 'train_aug', '--num_workers', '0']  # all 12 images have masks
ARGUMENTS = ['cls', *LIST, '--device', 'cpu', '--image_size', '96']


def tuned(*more: str) -> dict:
    """Tune, and return what was written."""
    run_stage(tune, [*ARGUMENTS, *more])
    with open('experiments/tune/cls.json') as file:
        return json.load(file)


def score(data, folder: str, threshold: float) -> float:
    """Return the mIoU of a folder that evaluate.py computes."""
    where = ['--dataset', f'{data}/dataset.json', '--data_dir', str(data), *LIST]
    run_stage(evaluate, [*where, '--experiment_name', folder, '--threshold', str(threshold)])
    return json.loads(result_path(f'{folder}@train_aug').read_text())['miou']


def test_scores_and_commands_are_those_of_the_stages(copy, demo):
    before = contents(copy.parent)
    found = tuned()
    assert contents(copy.parent) == before
    assert found['model_name'] == 'aff'
    assert found['masks'] == 12
    cams, walks = found['scores']['CAM'], found['scores']['random walk']
    assert cams['compared_miou'] == pytest.approx(score(copy, CAMS, 0.25), abs=1e-9)
    assert walks['compared_miou'] == pytest.approx(score(copy, RANDOM_WALKS, 0.35), abs=0.05)
    assert cams['miou_same_images'] == pytest.approx(score(copy, CAMS, cams['best']['threshold']), abs=1e-9)

    # Run stage 5 at the best settings, and the next stages as printed.
    words = f'--dataset {demo}/dataset.json --data_dir {demo} --num_workers 0 --device cpu --image_size 96'.split()
    words += ['--model_name', 'aff', '--cam_dir', CAMS, '--beta', f'{walks["best"]["beta"]}']
    args = run_stage(inference_rw, [*words, '--rw_normalization', walks['best']['rw_normalization']])
    best = score(copy, folder_of(RANDOM_WALK, args), walks['best']['threshold'])
    assert walks['miou_same_images'] == pytest.approx(best, abs=0.05)
    for command in found['commands'][:2]:
        python, script, *words = shlex.split(command)
        assert python == 'python3'
        run_stage(module_of(script.removesuffix('.py')), [*words, '--num_workers', '0'])
    expected = walks['miou_same_images' if walks['chosen'] == walks['best'] else 'compared_miou']
    assert expected == pytest.approx(score(copy, found['walk_dir'], found['threshold']), abs=0.05)
    assert (copy.parent / 'experiments/predictions' / f'{found["walk_dir"]}@crf=1').is_dir()
    assert found['commands'][2].startswith('python3 -m tools.predict experiments/models/cls.pth --affinity')
    assert ' --scales 0.5,1.0 ' in found['commands'][2]


@pytest.mark.parametrize(
    'more, flags', [({'tile': 256}, '--scales 1.0 --cam positive --tile 256'), ({'cam_dirs': ['a', 'b']}, None)]
)
def test_masks_are_predicted_as_the_cams_were_made(more, flags):
    """And not from the mean of several folders."""
    options = {'dataset': 'd.json', 'data_dir': 'd', 'domain': 'train', 'tag': 'x', 'scales': '1.0', 'cam': 'positive'}
    chosen = {tune.CAMS: tune.Setting(None, None, 0.3)}
    found = tune.plan(tune.parse_args(['x']), {'options': {**options, **more}}, 'x@cams', None, chosen)
    data = '--threshold 0.3 --dataset d.json --data_dir d --overwrite'
    expected = [f'python3 -m tools.predict experiments/models/x.pth {flags} {data}'] if flags else []
    assert found['commands'] == expected


def test_the_edges_that_stage_5_saved_are_used(copy, demo, monkeypatch):
    predicted = tuned()
    words = f'--dataset {demo}/dataset.json --data_dir {demo} --num_workers 0 --device cpu --image_size 96'.split()
    run_stage(inference_rw, [*words, '--model_name', 'aff', '--cam_dir', CAMS, '--save_edges'])
    assert (copy.parent / 'experiments/predictions' / EDGES).is_dir()
    monkeypatch.setattr(tune, 'load_network', None)
    saved = tuned()
    for name in ('compared_miou', 'miou_same_images'):
        pair = [content['scores']['random walk'][name] for content in (predicted, saved)]
        assert pair[0] == pytest.approx(pair[1], abs=0.1)  # float16


def test_any_number_of_workers_writes_the_same(copy):
    alone = tuned()
    assert tuned('--num_workers', '2') == alone


def test_the_settings_to_compare_with_can_be_chosen(copy):
    found = tuned('--beta', '15', '--rw_normalization', 'class', '--threshold', '0.42')['scores']
    asked = {'beta': 15, 'rw_normalization': 'class', 'threshold': 0.42}
    assert found['random walk']['compared_with'] == asked
    assert found['random walk']['miou_same_images'] >= found['random walk']['compared_miou']
    assert found['CAM']['compared_with']['threshold'] == 0.25


def test_with_fewer_masks_the_settings_to_compare_with_remain(copy):
    run_stage(tune, ['cls', '--num_workers', '0', '--beta', '20', '--threshold', '0.45'])  # 6 masks
    found = json.loads((copy.parent / 'experiments/tune/cls.json').read_text())
    assert (found['walk_flags'], found['threshold']) == ('--beta 20', 0.45)
    assert found['walk_dir'] == 'aff@train@beta=20@exp_times=8@rw'
    assert found['doubts'][0].startswith('6 masks with an object: at least 10 are needed')


def test_labels_that_another_threshold_made_are_overwritten_by_the_command(copy):
    found = tuned()
    walks = found['scores']['random walk']['chosen']
    for threshold, replaced in ((0.99, True), (walks['threshold'], False)):
        folder = copy.parent / 'experiments/predictions' / f'{found["walk_dir"]}@crf=1'
        folder.mkdir(exist_ok=True)
        (folder / 'args.json').write_text(json.dumps({'options': {'threshold': threshold}}))
        assert ('--overwrite' in tuned()['commands'][1]) is replaced


def test_the_circle_of_the_page(copy, capsys):
    """docs/own_images.md, "The circle on drawn scenes": word for word but for the names and sizes of this data set."""
    page = (REPOSITORY / 'docs/own_images.md').read_text()
    section = page.split('### The circle on drawn scenes\n')[1].split('\n## ')[0]
    smaller = (
        ('experiments/demo', str(copy)),
        ("ids('train')", "ids('train_aug')"),
        ('demo@affinity', 'aff'),
        ('demo@puzzle', 'cls'),
        ('--image_size 128', '--image_size 96 --num_workers 0'),
    )
    for words, replacement in smaller:
        assert words in section
        section = section.replace(words, replacement)
    tag, correct = re.findall(r'^```python\n(.*?)^```', section, re.DOTALL | re.MULTILINE)
    (_, words), *later = commands_of(section)
    exec(tag, {})
    run_stage(export, [*words, '--num_workers', '0'])
    exec(correct, {})
    for module, words in later:
        run_stage(module_of(module), [*words, '--num_workers', '0'])
    images = open_dataset(copy / 'dataset.json', copy)
    ids = images.ids('train_aug')
    corrected = open_dataset('experiments/labels_imported.csv', copy / 'JPEGImages')
    assert corrected.ids_with_masks('train') == ids[:10]
    assert all((corrected.read_mask(i) == images.read_mask(i)).all() for i in ids[:10])

    # Run the printed commands, and score the other two scenes directly.
    found = json.loads(Path('experiments/tune/cls.json').read_text())
    for command in found['commands'][:2]:
        _, script, *words = shlex.split(command)
        run_stage(module_of(script.removesuffix('.py')), [*words, '--num_workers', '0'])
    row, matrix = found['others']['random walk'], ConfusionMatrix(images.num_classes + 1)
    for image_id in ids[10:]:
        mask = images.read_mask(image_id)
        with np.load(f'experiments/predictions/{found["walk_dir"]}/{image_id}.npz') as file:
            maps = upsample_rw(file['rw'], mask.shape)
            matrix.update(file['keys'][threshold_cams(maps, found['threshold'])], mask)
    assert row['masks'] == 2
    assert row['miou'] == pytest.approx(100 * matrix.miou(), abs=0.05)
    assert f'random walk, 2 held-out masks in {copy}/SegmentationClass: ' in capsys.readouterr().out


def test_outdated_cams_are_refused(copy, capsys):
    data = ['--dataset', f'{copy}/dataset.json', '--data_dir', str(copy)]
    image_id = open_dataset(copy / 'dataset.json', copy).ids('train_aug')[0]
    path = copy / 'JPEGImages' / f'{image_id}.jpg'
    path.write_bytes(path.read_bytes() + b'\0')
    line = fault_of(tune, [*ARGUMENTS, *data], capsys)
    assert '1 image changed' in line and ' again' in line
    assert not (copy.parent / 'experiments/tune/cls.json').exists()


def test_torchrun_is_refused(copy, monkeypatch, capsys):
    as_process(monkeypatch, 0, 2)
    assert 'python3 instead of torchrun' in fault_of(tune, ARGUMENTS, capsys)
