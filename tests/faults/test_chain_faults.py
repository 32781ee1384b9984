"""Outputs of earlier stages, images, masks and annotations that are missing, damaged or of another data set."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from support import REPOSITORY, fault_of
from support.chain import AFFINITY_LABELS, CAMS, PREDICTIONS, PSEUDO, RANDOM_WALKS, commands, first, pixels
from support.programs import run_program


@pytest.mark.parametrize(
    'name, gone, script',
    [
        ('cams', 'models/cls.pth', 'train_classification_with_puzzle.py'),
        ('affinity_labels', f'predictions/{CAMS}', 'inference_classification.py'),
        ('affinity_labels', f'predictions/{CAMS}/train_00000.npz', 'inference_classification.py'),
        ('aff', f'predictions/{AFFINITY_LABELS}', 'make_affinity_labels.py'),
        ('aff', f'predictions/{AFFINITY_LABELS}/train_00000.png', 'make_affinity_labels.py'),
        ('random_walk', 'models/aff.pth', 'train_affinitynet.py'),
        ('random_walk', f'predictions/{CAMS}', 'inference_classification.py'),
        ('random_walk', f'predictions/{CAMS}/train_00000.npz', 'inference_classification.py'),
        ('pseudo', f'predictions/{RANDOM_WALKS}', 'inference_rw.py'),
        ('pseudo', f'predictions/{RANDOM_WALKS}/train_00000.npz', 'inference_rw.py'),
        ('seg', f'predictions/{PSEUDO}', 'make_pseudo_labels.py'),
        ('seg', f'predictions/{PSEUDO}/train_00000.png', 'make_pseudo_labels.py'),
        ('predictions', 'models/seg.pth', 'train_segmentation.py'),
        ('evaluate', f'predictions/{PREDICTIONS}', ''),
        ('evaluate', f'predictions/{PREDICTIONS}/val_00000.png', ''),
    ],
)
def test_missing_output_of_an_earlier_stage_is_named(copy, capsys, name, gone, script):
    path = copy.parent / 'experiments' / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = fault_of(*commands(copy)[name], capsys)
    assert path.name in text
    assert script in text


@pytest.mark.parametrize('name', ['cls', 'cams', 'affinity_labels', 'aff', 'random_walk', 'pseudo', 'seg'])
@pytest.mark.parametrize('damage', [b'', b'no JPEG', None])
def test_unreadable_or_missing_image_is_named(copy, capsys, name, damage):
    path = copy / 'JPEGImages' / f'{first(copy)}.jpg'
    path.unlink() if damage is None else path.write_bytes(damage)
    assert path.name in fault_of(*commands(copy)[name], capsys)


@pytest.mark.parametrize('name', ['cams', 'affinity_labels'])
def test_error_in_a_worker_is_one_line_too(copy, capsys, name):
    path = copy / 'JPEGImages' / f'{first(copy)}.jpg'
    path.write_bytes(b'no JPEG')
    script, line = commands(copy)[name]
    assert path.name in fault_of(script, [*line, '--num_workers', '1'], capsys)


PICTURES = {
    'cls': 'data/SegmentationClass', 'aff': f'experiments/predictions/{AFFINITY_LABELS}',
    'seg': f'experiments/predictions/{PSEUDO}', 'evaluate pseudo': f'experiments/predictions/{PSEUDO}',
}  # fmt: skip


@pytest.mark.parametrize('name', [*PICTURES, 'evaluate'])
@pytest.mark.parametrize('damage', ['size', 'class', 'colour', 'cut'])
def test_wrong_mask_is_named(copy, capsys, name, damage):
    folder = copy.parent / PICTURES.get(name, 'data/SegmentationClass')
    path = folder / f'{first(copy, "val" if name == "evaluate" else "train")}.png'
    mask = pixels(path)
    if damage == 'size':
        Image.fromarray(mask[:-1]).save(path)
    elif damage == 'class':
        mask[0, 0] = 21
        Image.fromarray(mask).save(path)
    elif damage == 'colour':
        Image.fromarray(np.stack([mask] * 3, -1)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:60])
    assert path.name in fault_of(*commands(copy)[name], capsys)


def test_ignored_pixels_in_scored_labels_are_named(copy, capsys):
    path = copy.parent / 'experiments' / 'predictions' / PSEUDO / f'{first(copy, "train")}.png'
    Image.fromarray(np.full_like(pixels(path), 255)).save(path)
    assert path.name in fault_of(*commands(copy)['evaluate pseudo'], capsys)


@pytest.mark.parametrize('name', ['cls', 'cams'])
@pytest.mark.parametrize('damage', ['unknown', 'cut', 'missing'])
def test_wrong_annotation_is_named(copy, capsys, name, damage):
    path = copy / 'Annotations' / f'{first(copy)}.xml'
    text = path.read_text()
    if damage == 'missing':
        path.unlink()
    elif damage == 'unknown':
        path.write_text(text.replace('<object>', '<object><name>unicorn</name>'))
    else:
        path.write_text(text[:40])
    assert path.name in fault_of(*commands(copy)[name], capsys)


@pytest.mark.parametrize(
    'name, file',
    [
        ('affinity_labels', f'predictions/{CAMS}'),
        ('random_walk', f'predictions/{CAMS}'),
        ('pseudo', f'predictions/{RANDOM_WALKS}'),
        ('evaluate cams', f'predictions/{CAMS}'),
        ('cams', 'models/cls.pth'),
        ('random_walk', 'models/aff.pth'),
        ('predictions', 'models/seg.pth'),
    ],
)
@pytest.mark.parametrize('content', [b'', b'damaged'])
def test_damaged_output_of_an_earlier_stage_is_named(copy, capsys, name, file, content):
    path = copy.parent / 'experiments' / file
    path = path / f'{first(copy, "train")}.npz' if path.is_dir() else path
    path.unlink()  # a link
    path.write_bytes(content)
    assert path.name in fault_of(*commands(copy)[name], capsys)


def test_data_set_of_other_classes_is_refused(copy, capsys):
    info = json.loads((copy / 'dataset.json').read_text())
    info['classes'] = info['classes'][:1]
    (copy / 'dataset.json').write_text(json.dumps(info))
    for name in ('cams', 'affinity_labels', 'aff', 'pseudo', 'seg', 'predictions', 'evaluate'):
        assert fault_of(*commands(copy)[name], capsys)


@pytest.mark.parametrize('name', ['random_walk', 'cams'])
def test_scripts_end_with_one_line_and_a_status(copy, name):
    """Run as programs: exit status and stderr."""
    script, line = commands(copy)[name]
    if name == 'random_walk':
        shutil.rmtree(copy.parent / 'experiments' / 'predictions' / CAMS)
        part = 'inference_classification.py'
    else:
        (copy / 'JPEGImages' / f'{first(copy)}.jpg').write_bytes(b'no JPEG')
        part = f'{first(copy)}.jpg'
    done = run_program([REPOSITORY / f'{script.__name__}.py', *line])
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert part in done.stderr
