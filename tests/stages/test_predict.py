"""tools/predict.py: masks of photographs equal the masks of the stages; which images, which outputs, which errors."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference_classification
import inference_rw
import inference_segmentation
import make_pseudo_labels
from core import UserError
from core.data.dataset import open_dataset
from core.data.transforms import normalize
from core.data.voc import palette
from core.models import build_network
from support import draw_image, fault_of, run_stage
from support.folders import record_as_written
from tools import export, predict, report
from tools.predicting import folder as folder_module
from tools.predicting import masks
from util.store.arrays import read_maps
from util.store.files import write_json
from util.store.fingerprints import read_args
from util.training.models import save_model

NET = 'resnest14_narrow'
SCALES = '0.5,1.0'


@torch.no_grad()
def vary(network, demo) -> None:
    """Make random class maps vary over an image, around 0."""
    images = [np.array(Image.open(path).resize((64, 64))) for path in (demo / 'JPEGImages').iterdir()]
    features = network.eval().backbone(normalize(torch.from_numpy(np.stack(images))))[-1].mean((0, 2, 3))
    weight = network.classifier.weight[:, :, 0, 0]
    weight -= torch.outer(weight @ features, features) / (features @ features)
    weight *= 30


@pytest.fixture(scope='module')
def models(demo, tmp_path_factory):
    """Model files of every kind with random weights, under experiments/ of a working directory."""
    folder = tmp_path_factory.mktemp('models')
    dataset = open_dataset(demo / 'dataset.json', demo)
    colours = dataset.palette[: dataset.num_classes + 1].tolist()
    common = {'image_size': 64, 'classes': dataset.class_names, 'palette': colours, 'backbone': NET}
    for i, (tag, own) in enumerate(
        {
            'cls': {'network': 'Classifier', 'mode': 'normal'},
            'aff': {'network': 'AffinityNet', 'mode': 'fix', 'radius': 4},
            'seg': {'network': 'DeepLabv3+', 'mode': 'fix', 'use_gn': True},
            'small': {'network': 'Seg_Model', 'mode': 'fix'},
        }.items()
    ):
        torch.manual_seed(i)
        network = build_network({**common, **own})
        if tag == 'seg':
            network.decoder.classify.weight.data *= 30  # or the CRF leaves a single class
        elif tag != 'aff':
            vary(network, demo)
        save_model(network, folder / f'experiments/models/{tag}.pth', **common, **own)
    return folder


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    """A working directory with the models in experiments/models/ and photographs in photos/."""
    shutil.copytree(models / 'experiments', tmp_path / 'experiments')
    monkeypatch.chdir(tmp_path)
    draw_image(Path('photos/a.jpg'), (70, 50), seed=1)
    draw_image(Path('photos/trip/b.jpg'), (40, 64), seed=2)
    return tmp_path


def model(tag: str) -> str:
    return f'experiments/models/{tag}.pth'


def run(line: str, workers: int = 0):
    return run_stage(predict, [*line.split(), '--device', 'cpu', '--num_workers', str(workers)])


def fault(line: str, capsys) -> str:
    return fault_of(predict, [*line.split(), '--device', 'cpu', '--num_workers', '0'], capsys).split(': error: ')[1]


def names_in(folder: str) -> set[str]:
    """Return the names of the files that are neither locks nor records."""
    return {path.name for path in Path(folder).iterdir() if path.suffix in ('.png', '.npz')}


def outputs_of(*ids: str) -> set[str]:
    return {f'{image_id}{ending}' for image_id in ids for ending in ('.png', '.npz', '_overlay.png')}


def mask_of(path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == 'P'
        return np.array(picture)


# The same masks as the stages ---------------------------------------------------------------------------------------


def of_data(demo) -> str:
    return f'--dataset {demo}/dataset.json --data_dir {demo}'


@pytest.mark.parametrize('tag', ['seg', 'small'])
@pytest.mark.parametrize('iteration', [0, 10])
def test_masks_of_a_segmenter_are_those_of_stage_8(here, demo, tag, iteration):
    line = f'{of_data(demo)} --tag {tag} --scale {SCALES} --batch_size 1 --num_workers 0 --device cpu'
    run_stage(inference_segmentation, [*line.split(), '--iteration', str(iteration)])
    run(f'{model(tag)} {demo}/JPEGImages/val_*.jpg --scales {SCALES} --iteration {iteration}')
    folder = Path(f'experiments/predictions/{tag}@val@scale={SCALES}@iteration={iteration}')
    found = sorted(folder.glob('*.png'))
    assert len(found) == 4
    assert len({value for path in found for value in np.unique(mask_of(path))}) > 2  # or this compares nothing
    for path in found:
        assert Path(f'experiments/predict/{tag}/{path.name}').read_bytes() == path.read_bytes()


def test_probabilities_of_a_segmenter(here):
    run(f'{model("seg")} photos/a.jpg --scales 1.0')
    mask = mask_of('experiments/predict/seg/a.png')
    with np.load('experiments/predict/seg/a.npz') as file:
        keys, probability = file['keys'], file['probability']
    assert keys.tolist() == sorted({0, *np.unique(mask).tolist()})
    assert (probability.shape, probability.dtype) == ((len(keys), 50, 70), np.float16)
    assert (probability.max(0) <= np.take_along_axis(probability, np.searchsorted(keys, mask)[None], 0)[0]).all()


@pytest.mark.parametrize(
    'read_out, exp_times, by, threshold, iterations',
    [('published', 0, 'joint', 0.35, 1), ('positive', 1, 'class', 0.5, 3), ('mean', 3, 'joint', 0.6, 0)],
)
def test_masks_of_a_classifier_with_affinitynet_are_those_of_stages_2_5_and_6(
    here, demo, read_out, exp_times, by, threshold, iterations
):
    common = f'{of_data(demo)} --num_workers 0 --domain train'
    network = f'{common} --batch_size 1 --device cpu'
    run_stage(inference_classification, f'{network} --tag cls --scales {SCALES} --cam {read_out}'.split())
    named = '' if read_out == 'published' else f'@cam={read_out}'
    cams, walk = f'cls@train{named}@scale={SCALES}', f'--beta 4 --exp_times {exp_times} --rw_normalization {by}'
    run_stage(inference_rw, f'{network} --model_name aff --cam_dir {cams} --image_size 64 {walk}'.split())
    walks = f'aff@train@beta=4@exp_times={exp_times}{"@rw_normalization=class" * (by == "class")}@rw'
    crf = f'--threshold {threshold} --crf_iteration {iterations}'
    run_stage(make_pseudo_labels, f'{common} --experiment_name {walks} {crf}'.split())
    more = f'--scales {SCALES} --cam {read_out} --affinity {model("aff")} {walk} {crf}'

    # The tags of a data set say which classes get a CAM.
    run(f'{model("cls")} {of_data(demo)} {more}')
    found = sorted(Path(f'experiments/predictions/{walks}@crf={iterations}').glob('*.png'))
    assert len(found) == 6
    assert any(mask_of(path).any() and not mask_of(path).all() for path in found)  # or this compares nothing
    for path in found:
        mask = Path('experiments/predict/cls', path.name)
        assert mask.read_bytes() == path.read_bytes()
        for name, folder in (('cam', cams), ('hr_cam', cams), ('rw', walks)):
            keys, expected = read_maps(Path('experiments/predictions', folder, f'{path.stem}.npz'), name, 6)
            ours, maps = read_maps(mask.with_suffix('.npz'), name, 6)
            assert keys.tolist() == ours.tolist()
            assert np.array_equal(maps, expected)

    # --classes says the same of a single photograph.
    dataset = open_dataset(demo / 'dataset.json', demo)
    image_id = found[0].stem
    tags = ','.join(name for name, tag in zip(dataset.class_names, dataset.read_labels(image_id), strict=True) if tag)
    image = dataset.image_path(image_id)
    run(f'{model("cls")} {image} --classes {tags} {more} --out one')
    assert Path('one', found[0].name).read_bytes() == found[0].read_bytes()


def test_masks_of_plain_cams_are_thresholded_at_a_quarter(here):
    run(f'{model("cls")} photos/a.jpg --classes dog --scales {SCALES} --crf_iteration 0')
    keys, hr_cam = read_maps(Path('experiments/predict/cls/a.npz'), 'hr_cam', 6)
    assert keys.tolist() == [0, 4]
    mask = mask_of('experiments/predict/cls/a.png')
    assert np.array_equal(mask == 4, hr_cam[0] > 0.25)
    assert 0 < (mask > 0).mean() < 1
    run(f'{model("cls")} photos/a.jpg --classes dog --scales {SCALES} --threshold 0.6 --crf_iteration 0 --overwrite')
    assert np.array_equal(mask_of('experiments/predict/cls/a.png') == 4, hr_cam[0] > 0.6)


# Classes ------------------------------------------------------------------------------------------------------------


def scores_of(path: str, tag: str = 'cls') -> np.ndarray:
    """Return the class scores of a photograph at scale 1, by hand."""
    content = torch.load(model(tag), weights_only=True)
    network = build_network(content['meta']).eval()
    network.load_state_dict(content['model'])
    with Image.open(path) as picture:
        image = (np.array(picture.convert('RGB')) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float32)
    with torch.no_grad():
        return torch.sigmoid(torch.cat([network(x), network(x.flip(3))])).mean(0).numpy()


def test_classes_above_the_threshold_are_predicted(here, demo, capsys):
    scores, names = scores_of('photos/a.jpg'), open_dataset(demo / 'dataset.json', demo).class_names
    order = np.argsort(-scores)
    threshold = (scores[order[1]] + scores[order[2]]) / 2
    run(f'{model("cls")} photos/a.jpg --scales 1.0 --class_threshold {threshold}')
    keys, cam = read_maps(Path('experiments/predict/cls/a.npz'), 'cam', 6)
    assert keys.tolist() == [0, *sorted(order[:2] + 1)]
    assert cam.shape == (2, 13, 18)
    first, second = (f'{names[i]} {scores[i]:.2f}' for i in order[:2])
    assert capsys.readouterr().out.splitlines()[0] == f'photos/a.jpg: {first}, {second}'


@pytest.mark.parametrize('affinity', ['', f'--affinity {model("aff")}'])
def test_image_without_a_predicted_class_is_background(here, demo, capsys, affinity):
    scores, names = scores_of('photos/a.jpg'), open_dataset(demo / 'dataset.json', demo).class_names
    run(f'{model("cls")} photos/a.jpg --scales 1.0 --class_threshold 1 {affinity}')
    assert not mask_of('experiments/predict/cls/a.png').any()
    best = f'{names[scores.argmax()]} {scores.max():.2f}'
    line = f'photos/a.jpg: no class found, the mask is background (best: {best})'
    assert capsys.readouterr().out.splitlines()[0] == line
    for name, shape in (('cam', (0, 13, 18)), ('hr_cam', (0, 50, 70)), ('rw', (0, 13, 18)))[: 3 if affinity else 2]:
        keys, maps = read_maps(Path('experiments/predict/cls/a.npz'), name, 6)
        assert (keys.tolist(), maps.shape) == ([0], shape)


def test_tags_are_read_only_where_they_say_something(here, demo):
    """Not for a segmentation network, and not next to --classes."""
    data = shutil.copytree(demo, 'data')
    shutil.rmtree(Path(data, 'Annotations'))
    more = f'{of_data(data)} --scales 1.0'
    run(f'{model("small")} {more}')
    run(f'{model("cls")} {more} --classes dog')
    assert len(list(Path('experiments/predict/small').glob('*_overlay.png'))) == 16
    assert len(list(Path('experiments/predict/cls').glob('*_overlay.png'))) == 16


def test_classes_of_the_data_set_must_be_those_of_the_model(here, demo, capsys):
    data = Path(shutil.copytree(demo, 'data'))
    info = json.loads((data / 'dataset.json').read_text())
    (data / 'dataset.json').write_text(json.dumps({**info, 'classes': info['classes'][::-1]}))
    line = "--dataset of \"drawn scenes\": class 1 is 'sheep'; experiments/models/cls.pth expects 'bus'"
    assert fault(f'{model("cls")} --dataset data/dataset.json --data_dir data', capsys) == line


def test_a_model_without_a_palette_has_that_of_voc(here):
    """Files of other programs have none."""
    run(f'{model("seg")} photos/a.jpg --scales 1.0 --out today')
    content = torch.load(model('seg'), weights_only=True)
    del content['meta']['palette']
    torch.save(content, model('seg'))
    run(f'{model("seg")} photos/a.jpg --scales 1.0')
    assert np.array_equal(mask_of('experiments/predict/seg/a.png'), mask_of('today/a.png'))
    with Image.open('experiments/predict/seg/a.png') as picture:
        assert np.array_equal(np.array(picture.getpalette()).reshape(-1, 3)[:20], palette()[:20])


# Images -------------------------------------------------------------------------------------------------------------


FAST = f'{model("small")} --scales 1.0 --iteration 0'


@pytest.mark.parametrize(
    'images, ids',
    [
        ('photos/trip/b.jpg', ['b']),
        ('photos', ['a', 'trip__b']),
        ('photos/', ['a', 'trip__b']),
        ('photos/a.jpg photos/trip', ['a', 'trip__b']),
        ('photos photos/a.jpg photos/../photos/a.jpg', ['a', 'trip__b']),
        ('photos/**/*.jpg', ['a', 'trip__b']),
        ('photos/*.jpg', ['a']),
        ('photos/t*/*', ['trip__b']),
        ('.', ['photos__a', 'photos__trip__b']),
        ('**/b.*', ['photos__trip__b']),
    ],
)
def test_images_and_their_names(here, images, ids):
    run(f'{FAST} {images}')
    assert names_in('experiments/predict/small') == outputs_of(*ids)


def test_images_may_stand_between_flags(here):
    run(f'{model("small")} --scales 1.0 photos/a.jpg --iteration 0 photos/trip')
    assert names_in('experiments/predict/small') == outputs_of('a', 'trip__b')


def test_formats_of_images(here):
    with Image.open('photos/a.jpg') as picture:
        for i, (ending, mode) in enumerate(
            [('.png', 'RGBA'), ('.JPEG', 'L'), ('.webp', 'RGB'), ('.bmp', 'P'), ('.TIF', 'RGB'), ('.tiff', 'CMYK')]
        ):
            picture.convert(mode).save(f'photos/trip/{i}{ending}')
    for name in ('notes.txt', 'trip/._0.jpg', '.thumbs/x.jpg'):
        Path('photos', name).parent.mkdir(exist_ok=True)
        Path('photos', name).write_text('no image')
    run(f'{FAST} photos/trip')
    assert names_in('experiments/predict/small') == outputs_of('b', *'012345')


@pytest.mark.parametrize('tag', ['seg', 'cls'])
@pytest.mark.parametrize('size', [(1, 1), (3, 200), (200, 3), (17, 31)])
def test_sizes_of_images(here, tag, size):
    Image.new('RGB', size, (9, 200, 30)).save('photos/x.png')
    more = f'--classes dog,cow --affinity {model("aff")}' if tag == 'cls' else ''
    run(f'{model(tag)} photos/x.png {more}')
    assert mask_of(f'experiments/predict/{tag}/x.png').shape == size[::-1]


def test_photographs_are_upright(here):
    with Image.open('photos/a.jpg') as picture:
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save('photos/turned.jpg', exif=exif)
    run(f'{FAST} photos/turned.jpg')
    assert mask_of('experiments/predict/small/turned.png').shape == (70, 50)


def test_outputs_are_not_taken_as_images(here):
    for _ in range(2):
        run(f'{FAST} . --out masks --overwrite')
        assert names_in('masks') == outputs_of('photos__a', 'photos__trip__b')


def test_leftovers_of_killed_commands_are_removed(here):
    folder = Path('experiments/predict/small')
    folder.mkdir(parents=True)
    for name in ('.0123456789abcdef.12.tmp', '.notes.1.tmp'):
        (folder / name).touch()
    run(f'{FAST} photos')
    assert [path.name for path in folder.glob('.*.tmp')] == ['.notes.1.tmp']


def test_unreadable_images_are_counted(here, capsys):
    Path('photos/c.jpg').write_text('no image')
    Path('photos/d.jpg').write_bytes(Path('photos/a.jpg').read_bytes()[:500])
    capsys.readouterr()
    with pytest.raises(UserError) as error:
        run(f'{FAST} photos')
    assert str(error.value) == '2 of 4 images could not be predicted: see the warnings'
    out, err = capsys.readouterr()
    assert 'experiments/predict/small: masks of 2 of 4 images, 2 of them new\n' in out
    warnings = [line for line in err.splitlines() if line.startswith('warning: ')]
    assert [line.split(': ')[1] for line in warnings] == ['photos/c.jpg', 'photos/d.jpg']
    assert names_in('experiments/predict/small') == outputs_of('a', 'trip__b')
    assert fault(f'{FAST} photos/c.jpg', capsys).startswith('photos/c.jpg: not a readable image')


@pytest.mark.parametrize(
    'error', [MemoryError(), torch.OutOfMemoryError('CUDA'), RuntimeError('DefaultCPUAllocator: no')]
)
def test_images_that_are_too_large_are_counted(here, monkeypatch, capsys, error):
    right = masks.chain.image_probabilities

    def fail(model, images, size):
        if size == (50, 70):
            raise error
        return right(model, images, size)

    monkeypatch.setattr(masks.chain, 'image_probabilities', fail)
    with pytest.raises(UserError, match='^1 of 2 images could not be predicted'):
        run(f'{FAST} photos')
    assert 'warning: photos/a.jpg: does not fit in memory: pass --tile 1024, or' in capsys.readouterr().err
    assert names_in('experiments/predict/small') == outputs_of('trip__b')


def test_images_that_are_large_for_the_model_are_warned_of(here, capsys):
    """Longer than twice the training crop at the smallest scale."""
    for side in (256, 257):
        Image.new('RGB', (20, side), (9, 200, 30)).save(f'photos/{side}.png')
    run(f'{model("small")} photos --scales 0.5,1.0')
    line = (
        'warning: 1 of 4 images (257, ...) are much larger than the crops of 64 pixels that the model was trained on: '
        'try smaller --scales\n'
    )
    assert line in capsys.readouterr().err
    run(f'{model("small")} photos --scales 0.25 --overwrite')
    assert 'much larger' not in capsys.readouterr().err


def test_bugs_are_not_hidden(here, monkeypatch):
    def fail(*_):
        raise RuntimeError('bug')

    monkeypatch.setattr(masks.chain, 'image_probabilities', fail)
    with pytest.raises(RuntimeError, match='^bug$'):
        run(f'{FAST} photos')


# Outputs ------------------------------------------------------------------------------------------------------------


def all_bytes(folder: str) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in names_in(folder)}


SMALL = 'experiments/predict/small'


def test_the_same_command_resumes(here, capsys):
    run(f'{FAST} photos')
    before = all_bytes(SMALL)
    capsys.readouterr()
    run(f'{FAST} photos')
    assert capsys.readouterr().out == f'{SMALL}: masks of 2 of 2 images, 0 of them new\n'
    for ending in ('.png', '.npz', '_overlay.png'):
        Path(SMALL, f'a{ending}').unlink()
        run(f'{FAST} photos')
        assert capsys.readouterr().out.endswith(f'{SMALL}: masks of 2 of 2 images, 1 of them new\n')
        assert all_bytes(SMALL) == before
    draw_image(Path('photos/c.jpg'), (30, 40), seed=3)
    run(f'{FAST} photos')
    assert names_in(SMALL) == outputs_of('a', 'c', 'trip__b')
    assert all_bytes(SMALL).items() >= before.items()
    assert list(json.loads(Path(SMALL, 'photographs.json').read_text())['images']) == ['a', 'trip__b', 'c']


def test_a_stopped_command_is_resumed(here, monkeypatch):
    run(f'{FAST} photos')
    expected = all_bytes(SMALL)
    shutil.rmtree(SMALL)
    write = folder_module.MaskFolder.write

    def write_or_stop(folder, image_id, *more):
        if image_id == 'trip__b':
            raise SystemExit(130)
        write(folder, image_id, *more)

    monkeypatch.setattr(folder_module.MaskFolder, 'write', write_or_stop)
    with pytest.raises(SystemExit):
        run(f'{FAST} photos')
    assert names_in(SMALL) == outputs_of('a')
    monkeypatch.undo()
    monkeypatch.chdir(here)
    run(f'{FAST} photos')
    assert all_bytes(SMALL) == expected


def test_changed_photographs_are_predicted_again(here, capsys):
    run(f'{FAST} photos')
    before = all_bytes(SMALL)
    draw_image(Path('photos/a.jpg'), (70, 50), seed=9)
    run(f'{FAST} photos')
    assert f'{SMALL}: 1 image changed (a.jpg): regenerating' in capsys.readouterr().err
    changed = {name for name, content in all_bytes(SMALL).items() if content != before[name]}
    assert 'a_overlay.png' in changed <= outputs_of('a')


@pytest.mark.parametrize('ending', ['.png', '.npz', '_overlay.png'])
def test_files_of_another_photograph_are_noticed(here, capsys, ending):
    """By tools that read the folder, and by the same command, which makes the three files of the photograph again."""
    draw_image(Path('photos/c.jpg'), (70, 50), seed=3)
    run(f'{FAST} photos')
    before = all_bytes(SMALL)
    shutil.copy(Path(SMALL, f'c{ending}'), Path(SMALL, f'a{ending}'))
    line = f'{SMALL}: 1 of 3 files are not as recorded (a.png)'
    classes = ','.join(read_args(Path(SMALL))['fingerprint']['classes'])
    for tool, more in ((export, f'--classes {classes} --data_dir photos --format png --out out'), (report, '')):
        run_stage(tool, [SMALL, '--num_workers', '0', *more.split()])
        assert f'warning: {line}; run tools.predict again' in capsys.readouterr().err
    run(f'{FAST} photos')
    assert f'{line}: regenerating' in capsys.readouterr().err
    assert all_bytes(SMALL) == before


def test_changed_inputs_are_noticed_by_tools_that_read_the_folder(here, capsys):
    run(f'{FAST} photos')
    draw_image(Path('photos/a.jpg'), (70, 50), seed=9)
    shutil.copy(model('seg'), model('small'))
    run_stage(report, [SMALL, '--num_workers', '0'])
    changes = f'{model("small")} changed; 1 image changed (a.jpg)'
    assert f'warning: {SMALL}: {changes}; run tools.predict again' in capsys.readouterr().err


def test_changed_tags_are_predicted_again(here, demo, capsys):
    data = Path(shutil.copytree(demo, 'data'))
    line = f'{model("cls")} {of_data(data)} --scales 1.0 --crf_iteration 0'
    run(line)
    path = data / 'Annotations' / 'train_00000.xml'
    text = path.read_text()
    name = re.search('<name>(.*?)</name>', text)[1]
    path.write_text(text.replace(f'<name>{name}</name>', f'<name>{"dog" if name != "dog" else "cow"}</name>'))
    capsys.readouterr()
    run(line)
    out, err = capsys.readouterr()
    assert 'labels of 1 image changed (train_00000.jpg): regenerating' in err
    assert ' 1 of them new' in out


@pytest.mark.parametrize(
    'more, difference',
    [
        ('--threshold 0.6', 'threshold: 0.25, requested 0.6'),
        ('--classes cow', 'masks_of: dog, requested cow'),
        ('--scales 0.5', 'scales: 1.0, requested 0.5'),
        (f'--affinity {model("aff")} --threshold 0.25', 'affinity: None, requested '),
        ('--crf_iteration 2', 'crf_iteration: 1, requested 2'),
    ],
)
def test_other_settings_are_refused(here, capsys, more, difference):
    run(f'{model("cls")} photos/a.jpg --classes dog --scales 1.0')
    before = all_bytes('experiments/predict/cls')
    line = fault(f'{model("cls")} photos/a.jpg --classes dog --scales 1.0 {more}', capsys)
    assert line.startswith('experiments/predict/cls exists with different settings (')
    assert difference in line
    assert line.endswith('): pass --overwrite to regenerate it, or another --out')
    assert all_bytes('experiments/predict/cls') == before


def test_another_model_of_the_same_name_is_refused(here, capsys):
    run(f'{FAST} photos --out masks')
    assert 'masks exists with different settings (the model changed): ' in fault(
        f'{model("seg")} --scales 1.0 --iteration 0 photos --out masks', capsys
    )


def test_overwriting_starts_over_and_leaves_other_files_alone(here):
    run(f'{FAST} photos')
    Path(SMALL, 'mine.png').write_bytes(b'mine')
    run(f'{model("small")} --scales 0.5 --iteration 0 photos/trip --overwrite')
    assert names_in(SMALL) == outputs_of('b') | {'mine.png'}
    assert list(json.loads(Path(SMALL, 'inputs.json').read_text())['images']) == ['b']
    assert list(json.loads(Path(SMALL, 'photographs.json').read_text())['images']) == ['b']


def test_files_without_a_record_are_replaced_only_on_request(here, capsys):
    for first in ('', f'{FAST} photos/trip'):
        if first:
            run(first)
        path = Path(SMALL, 'a.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'mine')
        line = (
            f'--out {SMALL}: a.png exists, and no record says that it is a predicted mask: '
            'choose another folder, or pass --overwrite to replace it'
        )
        assert fault(f'{FAST} photos/a.jpg', capsys) == line
        assert path.read_bytes() == b'mine'
    run(f'{FAST} photos/a.jpg --overwrite')
    assert mask_of(path).shape == (50, 70)


def test_another_photograph_of_the_same_name_is_refused(here, capsys):
    run(f'{FAST} photos/a.jpg')
    before = all_bytes(SMALL)
    shutil.copytree('photos', 'copied')
    run(f'{FAST} copied/a.jpg')  # the same photograph
    draw_image(Path('other/a.jpg'), (40, 64), seed=2)
    line = (
        f'--out {SMALL}: a.png is the mask of copied/a.jpg, not of other/a.jpg: '
        'choose another folder, or pass --overwrite to start over'
    )
    assert fault(f'{FAST} other/a.jpg', capsys) == line
    assert all_bytes(SMALL) == before


def test_damaged_files_are_repaired(here):
    run(f'{FAST} photos')
    before = all_bytes(SMALL)
    Path(SMALL, 'a.png').write_bytes(b'damaged')
    Path(SMALL, 'trip__b.npz').write_bytes(b'damaged')
    record_as_written(Path(SMALL))
    run(f'{FAST} photos')
    assert all_bytes(SMALL) != before
    run(f'{FAST} photos --repair')
    assert all_bytes(SMALL) == before


@pytest.mark.parametrize('tag', ['cls', 'seg'])
def test_workers_and_shards_write_the_same_bytes(here, tag, capsys):
    for i in range(4):
        draw_image(Path(f'photos/{i}.jpg'), (40 + i, 30), seed=10 + i)
    Path('photos/z.jpg').write_text('no image')
    more = f'--scales {SCALES} ' + (f'--classes dog,cow --affinity {model("aff")}' if tag == 'cls' else '')
    for out, shards, workers in (('one', [''], 0), ('two', [''], 2), ('parts', ['--shard 2/2', '--shard 1/2'], 0)):
        for shard in shards:
            with (
                pytest.raises(UserError, match='^1 of . images could not') if shard != '--shard 2/2' else nullcontext()
            ):
                run(f'{model(tag)} photos {more} --out {out} {shard}', workers)
    expected = all_bytes('one')
    assert expected.keys() == outputs_of('a', *'0123', 'trip__b')
    assert all_bytes('two') == all_bytes('parts') == expected
    assert Path('parts/inputs.json').read_bytes() == Path('one/inputs.json').read_bytes()
    assert 'shard 2/2: parts: masks of 3 of 3 images, 3 of them new\n' in capsys.readouterr().out


def test_shards_do_not_start_over(here, capsys):
    line = 'error: --overwrite: with --shard or torchrun it would remove files of other shares: remove the folder'
    assert line in fault_of(predict, f'{FAST} photos --shard 1/2 --overwrite'.split(), capsys)


def test_names_that_clash(here, capsys):
    shutil.copy('photos/a.jpg', 'photos/a.JPEG')
    line = 'photos/a.JPEG and photos/a.jpg: both would be written as a.png: rename one of them'
    assert fault(f'{FAST} photos', capsys) == line
    Path('photos/a.JPEG').rename('photos/a_overlay.png')
    line = 'photos/a.jpg and photos/a_overlay.png: both would be written as a_overlay.png: rename one of them'
    assert fault(f'{FAST} photos', capsys) == line
    assert not Path('experiments/predict').exists()


def test_photographs_are_never_replaced(here, capsys):
    with Image.open('photos/a.jpg') as picture:
        picture.save('photos/trip/a.png')
    before = Path('photos/trip/a.png').read_bytes()
    line = '--out photos/trip: photos/trip/a.png is one of the images or their masks: choose another folder'
    assert fault(f'{FAST} photos/trip --out photos/trip --overwrite', capsys) == line
    assert Path('photos/trip/a.png').read_bytes() == before


@pytest.mark.parametrize('images, out', [('photos', 'photos'), ('photos/a.jpg', 'photos'), ('photos', 'photos/masks')])
def test_masks_of_earlier_commands_are_no_photographs(here, capsys, images, out):
    """Wherever they are: the next command, with the same --out or another one, finds the photographs alone."""
    run(f'{FAST} {images} --out {out}')
    if out == 'photos':
        count = 3 * len(list(Path(out).glob('*.npz')))
        capsys.readouterr()
        run(f'{FAST} photos --out {out}')
        assert f'{count} outputs of an earlier command (photos/a.npz, ...)' in capsys.readouterr().err
    run(f'{FAST} photos --out elsewhere')
    assert f'6 outputs of an earlier command ({out}/a.npz, ...)' in capsys.readouterr().err
    assert names_in('elsewhere') == outputs_of('a', 'trip__b')


def test_masks_of_the_data_set_and_other_outputs_are_never_replaced(here, demo, capsys):
    """Not even by --overwrite, which removes predicted masks alone."""
    data = Path(shutil.copytree(demo, 'data'))
    path = data / 'SegmentationClass' / f'{open_dataset(demo / "dataset.json", demo).ids("val")[0]}.png'
    before = path.read_bytes()
    line = f'{model("small")} {of_data(data)} --overwrite'
    expected = ' is one of the images or their masks: choose another folder'
    assert fault(f'{line} --out {path.parent}', capsys).endswith(expected)
    assert path.read_bytes() == before
    other = Path('experiments/predictions/x')
    write_json(other / 'args.json', {'format': 'CAM'})
    assert fault(f'{FAST} photos --out {other} --overwrite', capsys) == (
        f'--out {other}: contains CAMs of a stage: choose another folder'
    )


def test_overlay_shows_classes_and_scores(here, monkeypatch):
    drawn, draw = [], folder_module.pictures.label_mask
    monkeypatch.setattr(folder_module.pictures, 'label_mask', lambda *args: drawn.append(args) or draw(*args))
    run(f'{model("cls")} photos/a.jpg --classes dog,cow --scales 1.0')
    ((_, mask, _, labels, _),) = drawn
    scores = scores_of('photos/a.jpg')
    assert labels == {3: f'cow {scores[2]:.2f}', 4: f'dog {scores[3]:.2f}'}
    assert np.array_equal(mask, mask_of('experiments/predict/cls/a.png'))
    with Image.open('experiments/predict/cls/a_overlay.png') as overlay:
        assert np.array_equal(np.array(overlay), draw(*drawn[0]))


def test_an_affinity_net_of_other_classes_is_refused(here, capsys):
    """As stage 5 does."""
    content = torch.load(model('aff'), weights_only=True)
    content['meta']['classes'] = ('cat', *content['meta']['classes'][1:])
    torch.save(content, model('aff'))
    line = f'{model("cls")} photos/a.jpg --affinity {model("aff")}'
    assert fault(line, capsys).startswith(f'--affinity {model("aff")}: was trained with the classes cat, ')


def test_class_names_that_the_font_lacks(here, monkeypatch, capsys):
    content = torch.load(model('cls'), weights_only=True)
    content['meta']['classes'] = ('猫', *content['meta']['classes'][1:])
    torch.save(content, model('cls'))
    labels = []
    monkeypatch.setattr(folder_module.pictures, 'label_mask', lambda *args: labels.append(args[3]) or args[0])
    run(f'{model("cls")} photos/a.jpg --classes 猫,dog --scales 1.0')
    out, err = capsys.readouterr()
    assert 'warning: the font lacks characters of 1 class names (猫, ...), shown as numbers: pass --font a file' in err
    assert '猫 0.' in out
    assert [text.rsplit(' ', 1)[0] for text in labels[0].values()] == ['class 1', 'dog']


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'line, part',
    [
        ('nowhere.pth photos', 'nowhere.pth: cannot be read (No such file or directory)'),
        ('photos photos', 'photos: cannot be read (Is a directory)'),
        ('photos/a.jpg photos', 'photos/a.jpg: damaged, or not a file of weights; '),
        (
            f'{model("aff")} photos',
            f'{model("aff")}: contains AffinityNet, which predicts edges and no classes: '
            'pass a classifier as MODEL and this file as --affinity',
        ),
        (
            f'{model("cls")} photos --affinity {model("seg")}',
            f'--affinity {model("seg")}: contains DeepLabv3+: pass a model of stage 4',
        ),
        (f'{model("cls")} photos --affinity nowhere.pth', 'nowhere.pth: cannot be read'),
        (f'{model("cls")} photos --classes dog,cat', f'--classes cat: {model("cls")} has only bus, car,'),
        (f'{model("cls")} photos --classes=', "argument --classes: '' is not one line of names, separated by commas"),
        (f'{model("cls")} photos --beta 4', '--beta: has no effect without --affinity'),
        (f'{FAST} photos --classes dog', f'--classes: has no effect on Seg_Model of {model("small")}'),
        (f'{FAST} photos --affinity {model("aff")}', '--affinity: has no effect on Seg_Model'),
        (f'{FAST} photos/x.jpg', 'photos/x.jpg: no image found (.jpg, .jpeg, .png, '),
        (f'{FAST} photos photos/*.gif', 'photos/*.gif: no image found ('),
        (f'{FAST} experiments', 'experiments: no image found ('),
        (f'{FAST} photos --out photos/a.jpg', 'photos/a.jpg: is not a folder'),
        (f'{FAST} photos --font nowhere.ttf', '--font nowhere.ttf: cannot be read ('),
        (f'{FAST} photos --device nonsense', '--device nonsense: not usable here'),
        (f'{FAST} --dataset nowhere.json --data_dir photos', '--dataset nowhere.json: cannot be read'),
        (FAST, 'pass either IMAGEs or --dataset with --data_dir'),
        (f'{FAST} photos --dataset x.json --data_dir photos', 'pass either IMAGEs or --dataset with --data_dir'),
        (f'{FAST} --dataset x.json', 'pass either IMAGEs or --dataset with --data_dir'),
        (f'{FAST} photos --data_dir photos', 'pass either IMAGEs or --dataset with --data_dir'),
        ('', 'the following arguments are required: MODEL'),
    ],
)
def test_errors_are_one_line(here, capsys, line, part):
    line = f'{line} --device cpu' if '--device' not in line else line
    assert fault_of(predict, line.split(), capsys).split(': error: ')[1].startswith(part)
    assert not Path('experiments/predict').exists()


def test_bare_state_dicts_are_refused(here, capsys):
    torch.save(torch.load(model('cls'), weights_only=True)['model'], model('cls'))
    line = (
        f'{model("cls")}: is a bare state dict without metadata (network, backbone, classes), so it cannot be used here'
    )
    assert fault(f'{model("cls")} photos', capsys) == line


def test_models_that_have_diverged_are_named(here, capsys):
    content = torch.load(model('cls'), weights_only=True)
    content['model']['classifier.weight'] *= float('nan')
    torch.save(content, model('cls'))
    line = fault(f'{model("cls")} photos/a.jpg', capsys)
    assert line == f'{model("cls")}: its scores are not finite: the model has diverged, train it again'
