"""The drawn data set: what stands in its files, that they follow from the seed, and that no folder is overwritten."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tools import make_demo_data as demo

OPTIONS = ['--num_train_aug', '20', '--num_train', '8', '--num_val', '3', '--size', '64', '--seed', '3']


def make(out: Path, *options: str) -> None:
    demo.main(demo.parse_args(['--out', str(out), *OPTIONS, '--num_workers', '1', *options]))


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('demo') / 'set'
    make(out)
    return out


def scenes(count: int, size: int) -> list:
    return [demo.draw_scene(np.random.default_rng([11, i]), size) for i in range(count)]


def test_same_seed_same_bytes_for_any_number_of_workers(made, tmp_path):
    make(tmp_path / 'again', '--num_workers', '2')
    assert contents(tmp_path / 'again') == contents(made)


def test_samples_depend_on_seed_split_and_index_alone(made, tmp_path):
    make(tmp_path / 'fewer', '--num_train_aug', '2', '--num_train', '2', '--num_val', '1')
    make(tmp_path / 'other', '--num_train_aug', '2', '--num_train', '2', '--num_val', '1', '--seed', '4')
    fewer, other, whole = contents(tmp_path / 'fewer'), contents(tmp_path / 'other'), contents(made)
    pictures = [name for name in fewer if name.endswith(('.jpg', '.png', '.xml'))]
    assert len(pictures) == 9
    assert all(fewer[name] == whole[name] for name in pictures)
    assert all(fewer[name] != other[name] for name in pictures if name.endswith('.jpg'))
    assert fewer['JPEGImages/train_00000.jpg'] != fewer['JPEGImages/val_00000.jpg']


def test_layout(made):
    ids = [f'train_{i:05d}' for i in range(20)] + [f'val_{i:05d}' for i in range(3)]
    info = json.loads((made / 'dataset.json').read_text())
    assert info['classes'] == sorted(info['classes']) == demo.CLASSES
    assert set(info['lists']) == {'train', 'train_aug', 'val'}
    assert (made / info['lists']['train_aug']).read_text().split() == ids[:20]
    assert (made / info['lists']['train']).read_text().split() == ids[:8]
    assert (made / info['lists']['val']).read_text().split() == ids[20:]
    assert set(contents(made)) == {
        'dataset.json', *(f'ImageSets/Segmentation/{domain}.txt' for domain in ('train_aug', 'train', 'val')),
        *(f'{folder}/{i}.{ending}' for i in ids for folder, ending in
          [('JPEGImages', 'jpg'), ('Annotations', 'xml'), ('SegmentationClass', 'png')]),
    }  # fmt: skip


def test_files_agree_with_one_another(made):
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
        assert names == {demo.CLASSES[k - 1] for k in np.unique(mask) if 0 < k < 255}
        for thing in root.iter('object'):
            xmin, ymin, xmax, ymax = (int(thing.findtext(f'bndbox/{s}')) for s in ('xmin', 'ymin', 'xmax', 'ymax'))
            assert 1 <= xmin < xmax <= width
            assert 1 <= ymin < ymax <= height
            k = demo.CLASSES.index(thing.findtext('name')) + 1
            assert (mask[ymin - 1 : ymax, xmin - 1 : xmax] == k).any()


@pytest.mark.parametrize('size', [64, 128, 200])
def test_scenes(size):
    seen, truncated, counts = set(), 0, set()
    for image, mask, objects in scenes(60, size):
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert max(mask.shape) == size
        assert 0.74 * size <= min(mask.shape)
        values = set(np.unique(mask).tolist())
        assert {0, 255} <= values <= {*range(len(demo.CLASSES) + 1), 255}
        names = {name for name, *_ in objects}
        assert names == {demo.CLASSES[k - 1] for k in values - {0, 255}}
        seen |= names
        counts.add(len(objects))
        truncated += sum(cut for *_, cut in objects)
    assert seen == set(demo.CLASSES)
    assert counts == {1, 2, 3}
    assert truncated


def test_border_lies_between_an_object_and_all_else():
    for _, mask, _ in scenes(30, 128):
        for one, other in [(mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])]:
            assert ((one == other) | (one == 255) | (other == 255)).all()


def test_colour_of_the_background_does_not_tell_the_class():
    tones = {name: [] for name in demo.CLASSES}
    for image, mask, objects in scenes(240, 64):
        for name in {name for name, *_ in objects}:
            tones[name].append(image[mask == 0].mean(0))
    means = np.array([np.mean(tone, 0) for tone in tones.values()])
    spread = np.std(np.concatenate(list(tones.values())), 0)
    assert (np.ptp(means, axis=0) < spread).all()


def test_a_finished_set_is_left_alone(made, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.rglob('*')}
    make(made)
    assert capsys.readouterr().out.count('\n') == 1
    assert {path: path.stat().st_mtime_ns for path in made.rglob('*')} == before


def test_what_a_killed_run_left_is_drawn_again(made, tmp_path):
    out = tmp_path / 'set'
    for name, content in contents(made).items():
        if name != 'dataset.json':
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content[:10])
    (out / 'JPEGImages' / '.train_00777.jpg.123.tmp').write_bytes(b'half')
    make(out)
    assert contents(out) == contents(made)


@pytest.mark.parametrize('name', ['notes.txt', 'JPEGImages/2007_000032.jpg', 'dataset.json'])
def test_another_folder_is_refused(tmp_path, name):
    out = tmp_path / 'set'
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{}')
    with pytest.raises(SystemExit) as refusal:
        make(out)
    assert '--out' in refusal.value.code
    assert 'delete' in refusal.value.code
    assert '\n' not in refusal.value.code
    assert contents(out) == {name: b'{}'}


def test_a_set_of_other_options_is_refused(made):
    before = contents(made)
    with pytest.raises(SystemExit, match='--out'):
        make(made, '--seed', '4')
    assert contents(made) == before


@pytest.mark.parametrize(
    'flag, value', [('num_train', 0), ('num_val', 0), ('size', 63), ('seed', -1), ('num_workers', 0), ('size', 'big')]
)
def test_bad_numbers_name_their_flag(flag, value, capsys):
    with pytest.raises(SystemExit) as refusal:
        demo.parse_args([f'--{flag}', str(value)])
    assert refusal.value.code == 2
    assert f'--{flag}' in capsys.readouterr().err.splitlines()[-1]
