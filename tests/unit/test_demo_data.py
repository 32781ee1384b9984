"""The drawn data set: the contents of its files, their dependence on the seed, and other folders left alone."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from core import UserError
from core.data.dataset import open_dataset
from demo_data import textures
from demo_data.figures import CLASSES
from demo_data.scenes import DRAWING, draw_scene
from demo_data.textures import draw_textures, paint_texture
from tools import make_demo_data

OPTIONS = ['--num_train_aug', '20', '--num_train', '8', '--num_val', '3', '--size', '64', '--seed', '3']


def make(out: Path, *options: str) -> None:
    make_demo_data.main(make_demo_data.parse_args(['--out', str(out), *OPTIONS, '--num_workers', '1', *options]))


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('demo') / 'set'
    make(out)
    return out


def scenes(count: int, size: int) -> list:
    return [draw_scene(np.random.default_rng([11, i]), size) for i in range(count)]


def test_same_seed_same_bytes_for_any_number_of_workers(made, tmp_path):
    for workers in ('2', '0'):
        make(tmp_path / workers, '--num_workers', workers)
        assert contents(tmp_path / workers) == contents(made)


def test_samples_depend_only_on_seed_split_and_index(made, tmp_path):
    make(tmp_path / 'fewer', '--num_train_aug', '2', '--num_train', '2', '--num_val', '1')
    make(tmp_path / 'other', '--num_train_aug', '2', '--num_train', '2', '--num_val', '1', '--seed', '4')
    fewer, other, full = contents(tmp_path / 'fewer'), contents(tmp_path / 'other'), contents(made)
    pictures = [name for name in fewer if name.endswith(('.jpg', '.png', '.xml'))]
    assert len(pictures) == 9
    assert all(fewer[name] == full[name] for name in pictures)
    assert all(fewer[name] != other[name] for name in pictures if name.endswith('.jpg'))
    assert fewer['JPEGImages/train_00000.jpg'] != fewer['JPEGImages/val_00000.jpg']


def test_layout(made):
    ids = [f'train_{i:05d}' for i in range(20)] + [f'val_{i:05d}' for i in range(3)]
    info = json.loads((made / 'dataset.json').read_text())
    assert info['classes'] == sorted(info['classes']) == CLASSES
    assert set(info['lists']) == {'train', 'train_aug', 'val'}
    assert (made / info['lists']['train_aug']).read_text().split() == ids[:20]
    assert (made / info['lists']['train']).read_text().split() == ids[:8]
    assert (made / info['lists']['val']).read_text().split() == ids[20:]
    assert set(contents(made)) == {
        'dataset.json', *(f'ImageSets/Segmentation/{domain}.txt' for domain in ('train_aug', 'train', 'val')),
        *(f'{folder}/{i}.{ending}' for i in ids for folder, ending in
          [('JPEGImages', 'jpg'), ('Annotations', 'xml'), ('SegmentationClass', 'png')]),
    }  # fmt: skip


def test_files_of_a_sample_agree(made):
    for path in sorted((made / 'Annotations').iterdir()):
        root = ET.parse(path).getroot()
        image = cv2.imread(str(made / 'JPEGImages' / root.findtext('filename')))
        with Image.open(made / 'SegmentationClass' / f'{path.stem}.png') as picture:
            assert picture.mode == 'P'
            palette, mask = picture.getpalette(), np.array(picture)
        assert palette[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        assert palette[-3:] == [224, 224, 192]
        width, height = int(root.findtext('size/width')), int(root.findtext('size/height'))
        assert image.shape == (height, width, 3)
        assert mask.shape == (height, width)
        assert max(mask.shape) == 64
        names = {thing.findtext('name') for thing in root.iter('object')}
        assert names == {CLASSES[k - 1] for k in np.unique(mask) if 0 < k < 255}
        for thing in root.iter('object'):
            xmin, ymin, xmax, ymax = (int(thing.findtext(f'bndbox/{s}')) for s in ('xmin', 'ymin', 'xmax', 'ymax'))
            assert 1 <= xmin < xmax <= width
            assert 1 <= ymin < ymax <= height
            k = CLASSES.index(thing.findtext('name')) + 1
            assert (mask[ymin - 1 : ymax, xmin - 1 : xmax] == k).any()


def test_set_opens_as_a_data_set(made):
    dataset = open_dataset(made / 'dataset.json', made)
    assert list(dataset.class_names) == CLASSES
    for domain, number in {'train_aug': 20, 'train': 8, 'val': 3}.items():
        ids = dataset.ids(domain, with_images=True)
        assert len(ids) == number
        assert dataset.ids_with_masks(domain) == ids
        for image_id in ids:
            mask = dataset.read_mask(image_id, dataset.image_size(image_id))
            assert set((np.flatnonzero(dataset.read_labels(image_id)) + 1).tolist()) == set(np.unique(mask)) - {0, 255}


@pytest.mark.parametrize('size', [64, 128, 200])
def test_scenes(size):
    seen, truncated, counts = set(), 0, set()
    for image, mask, objects in scenes(60, size):
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert max(mask.shape) == size
        assert 0.74 * size <= min(mask.shape)
        values = set(np.unique(mask).tolist())
        assert {0, 255} <= values <= {*range(len(CLASSES) + 1), 255}
        names = {name for name, *_ in objects}
        assert names == {CLASSES[k - 1] for k in values - {0, 255}}
        seen |= names
        counts.add(len(objects))
        truncated += sum(cut for *_, cut in objects)
    assert seen == set(CLASSES)
    assert counts == {1, 2, 3}
    assert truncated


def test_border_separates_objects_from_everything_else():
    for _, mask, _ in scenes(30, 128):
        for one, other in [(mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])]:
            assert ((one == other) | (one == 255) | (other == 255)).all()


def test_background_colour_does_not_reveal_the_class():
    tones = {name: [] for name in CLASSES}
    for image, mask, objects in scenes(240, 64):
        for name in {name for name, *_ in objects}:
            tones[name].append(image[mask == 0].mean(0))
    means = np.array([np.mean(tone, 0) for tone in tones.values()])
    spread = np.std(np.concatenate(list(tones.values())), 0)
    assert (np.ptp(means, axis=0) < spread).all()


def test_finished_set_is_not_drawn_again(made, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.rglob('*')}
    make(made)
    assert capsys.readouterr().out == f'{made}: the data set already exists with these options\n'
    assert {path: path.stat().st_mtime_ns for path in made.rglob('*')} == before


def test_interrupted_run_is_drawn_again(made, tmp_path):
    out = tmp_path / 'set'
    for name, content in contents(made).items():
        if name != 'dataset.json':
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content[:10])
    for folder in ('', 'JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets/Segmentation'):
        (out / folder / '.0123456789abcdef.123.tmp').write_bytes(b'half')
    make(out)
    assert contents(out) == contents(made)


@pytest.mark.parametrize('name', ['notes.txt', 'JPEGImages/2007_000032.jpg', 'dataset.json'])
def test_folder_with_other_files_is_refused(tmp_path, name):
    out = tmp_path / 'set'
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{}')
    with pytest.raises(UserError, match=f'^--out {out}: already contains other files: .* delete') as error:
        make(out)
    assert '\n' not in str(error.value)
    assert contents(out) == {name: b'{}'}


def test_set_with_other_options_is_refused(made):
    before = contents(made)
    with pytest.raises(UserError, match='--out .*already contains other files'):
        make(made, '--seed', '4')
    assert contents(made) == before


@pytest.mark.parametrize(
    'flag, value', [('num_train', 0), ('num_val', 0), ('size', 63), ('seed', -1), ('num_workers', -1), ('size', 'big')]
)
def test_invalid_number_names_its_flag(flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        make_demo_data.parse_args([f'--{flag}', str(value)])
    assert ended.value.code == 2
    assert f'--{flag}' in capsys.readouterr().err.splitlines()[-1]


def test_num_train_above_num_train_aug(capsys):
    with pytest.raises(SystemExit) as ended:
        make_demo_data.parse_args(['--num_train_aug', '5', '--num_train', '6'])
    assert ended.value.code == 2
    assert '--num_train_aug 5 is below --num_train 6' in capsys.readouterr().err


def test_set_of_another_version_of_the_drawing_is_refused(made, monkeypatch):
    monkeypatch.setattr(make_demo_data.scenes, 'DRAWING', DRAWING + 1)
    with pytest.raises(UserError, match='already contains other files'):
        make(made)


def test_current_folder_can_be_the_output(tmp_path, monkeypatch):
    (tmp_path / 'set').mkdir()
    monkeypatch.chdir(tmp_path / 'set')
    make(Path('.'), '--num_train_aug', '1', '--num_train', '1', '--num_val', '1')
    assert (tmp_path / 'set' / 'dataset.json').is_file()


# Without a background ------------------------------------------------------------------------------------------------


def test_textures_cover_their_pictures():
    seen, counts = set(), set()
    for i in range(40):
        image, mask, objects = draw_textures(np.random.default_rng([11, i]), 64)
        assert image.shape == (*mask.shape, 3)
        assert image.dtype == mask.dtype == np.uint8
        values, areas = np.unique(mask, return_counts=True)
        assert values[0] >= 1 and values[-1] <= len(textures.CLASSES)
        assert areas.min() >= textures.MIN_AREA * mask.size
        assert {name for name, *_ in objects} == {textures.CLASSES[k - 1] for k in values}
        seen |= {*values.tolist()}
        counts.add(len(objects))
    assert seen == {*range(1, len(textures.CLASSES) + 1)}
    assert counts == {2, 3, 4}


def test_colour_does_not_reveal_the_texture():
    tones = [[paint_texture(np.random.default_rng([5, i]), name, (48, 48)).mean((0, 1)) for i in range(60)]
             for name in textures.CLASSES]  # fmt: skip
    means, spread = np.mean(tones, 1), np.std(np.concatenate(tones), 0)
    assert (np.ptp(means, axis=0) < spread).all()


def test_set_without_a_background(made, tmp_path):
    few = ['--num_train_aug', '2', '--num_train', '1', '--num_val', '1', '--no_background']
    make(tmp_path / 'set', *few)
    dataset = open_dataset(tmp_path / 'set/dataset.json', tmp_path / 'set')
    assert not dataset.has_background
    assert list(dataset.class_names) == textures.CLASSES
    for image_id in (*dataset.ids('train_aug', with_images=True), *dataset.ids('val', with_images=True)):
        mask = dataset.read_mask(image_id, dataset.image_size(image_id))
        assert set((np.flatnonzero(dataset.read_labels(image_id)) + 1).tolist()) == set(np.unique(mask))
    with pytest.raises(UserError, match='already contains other files'):
        make(tmp_path / 'set', *few[:-1])
