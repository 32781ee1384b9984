"""The nine stages on the drawn data set: their command lines, their outputs, and stages run in a child process."""

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import inference_classification
import inference_rw
import inference_segmentation
import make_affinity_labels
import make_pseudo_labels
import train_affinitynet
import train_classification_with_puzzle as train_classification
import train_segmentation
from core.data.dataset import Dataset, open_dataset
from core.models.weights import read_state_dict
from support import run_stage, without_seconds
from support.programs import served
from util.script import run as run_script

NET = 'resnest14_narrow'
SCALES = '0.5,1.0'
CAMS = f'cls@train@scale={SCALES}'
AFFINITY_LABELS = f'{CAMS}@aff_fg=0.40_bg=0.10'
RANDOM_WALKS = 'aff@train@beta=10@exp_times=8@rw'
BY_CLASS = 'aff@train@beta=10@exp_times=8@rw_normalization=class@rw'
EDGES = 'aff@train@edge'
PSEUDO = f'{RANDOM_WALKS}@crf=1'
PREDICTIONS = f'seg@val@scale={SCALES}@iteration=10'
TAGS = ('cls', 'aff', 'seg')
STAGES = ('cls', 'cams', 'affinity_labels', 'aff', 'random_walk', 'pseudo', 'seg', 'predictions')
ALL = (*STAGES, 'evaluate')  # the last one starts over
FOLDERS = {
    'cams': CAMS,
    'affinity_labels': AFFINITY_LABELS,
    'random_walk': RANDOM_WALKS,
    'pseudo': PSEUDO,
    'predictions': PREDICTIONS,
}
LONGER = ('--max_epoch', '3', '--save_interval', '2')  # of a trainer that is interrupted


def commands(data) -> dict:
    """Return (script, words of its command line) by a short name, for the folder of a data set."""
    dataset = f'--dataset {data}/dataset.json'
    where = f'{dataset} --data_dir {data}'
    files = f'{where} --num_workers 0'
    device = '--device cpu'
    sizes = '--image_size 64 --min_image_size 48 --max_image_size 80 --batch_size 4 --max_epoch 1'
    train = f'{files} {device} {sizes} --lr 0.01'
    own = '--weights experiments/models/cls.pth'
    lines = {
        'cls': (
            train_classification,
            f'{train} --architecture {NET} --weights none --bn_replicas 2 --print_ratio 0 --tag cls',
        ),
        'cams': (
            inference_classification,
            f'{files} {device} --architecture {NET} --tag cls --domain train_aug --scales {SCALES}',
        ),
        'affinity_labels': (make_affinity_labels, f'{files} --experiment_name {CAMS}'),
        'aff': (
            train_affinitynet,
            f'{train} --architecture {NET} {own} --radius 4 --tag aff --label_name {AFFINITY_LABELS}',
        ),
        'random_walk': (
            inference_rw,
            f'{files} {device} --architecture {NET} --model_name aff --cam_dir {CAMS} --image_size 96',
        ),
        'pseudo': (make_pseudo_labels, f'{files} --experiment_name {RANDOM_WALKS}'),
        'seg': (train_segmentation, f'{train} --backbone {NET} {own} --tag seg --label_name {PSEUDO}'),
        'predictions': (inference_segmentation, f'{files} {device} --backbone {NET} --tag seg --scale {SCALES}'),
        'evaluate': (evaluate, f'{where} --experiment_name {PREDICTIONS} --domain val'),
        'evaluate cams': (evaluate, f'{dataset} --data_dir {data}/SegmentationClass --experiment_name {CAMS}'),
        'evaluate random_walk': (evaluate, f'{dataset} --gt_dir {data} --experiment_name {RANDOM_WALKS}'),
        'evaluate pseudo': (evaluate, f'{where} --experiment_name {PSEUDO}'),
    }
    return {name: (script, line.split()) for name, (script, line) in lines.items()}


def run(data, name: str, *more: str):
    script, line = commands(data)[name]
    return run_stage(script, [*line, *more])


# Large images --------------------------------------------------------------------------------------------------------

LARGE_DATA = '--dataset large.csv --data_dir large --num_workers 0 --domain train'
LARGE_CAMS = f'cls@train{{0}}@scale={SCALES}'  # {0}: nothing, or @tile=...
LARGE_WALKS = 'aff@train@beta=10@exp_times=8{0}@rw'
LARGE_PSEUDO = f'{LARGE_WALKS}{{0}}@crf=1'
LARGE_PREDICTIONS = f'seg@train@scale={SCALES}{{0}}@iteration=10'


def draw_large(dataset: Dataset, ids: Iterable[str]) -> None:
    """Write the data set large.csv of two images, enlarged to 160x112 and to 200x40 pixels: large/a.png and b.png."""
    rows = [f'# classes: {";".join(dataset.class_names)}', 'image,classes']
    Path('large').mkdir()
    for name, size, image_id in zip('ab', [(160, 112), (200, 40)], ids, strict=True):
        dataset.read_image(image_id).resize(size).save(f'large/{name}.png')
        tags = zip(dataset.class_names, dataset.read_labels(image_id), strict=True)
        rows.append(f'{name}.png,{";".join(name for name, tag in tags if tag)}')
    Path('large.csv').write_text('\n'.join(rows))


def run_large(tile: int | None) -> None:
    """Run stages 2, 3, 5, 6 and 8 on the large images, with tiles of a size; None: without."""
    cut, named = (f'--tile {tile}', f'@tile={tile}') if tile else ('', '')
    network = f'{LARGE_DATA} {cut} --device cpu --batch_size 1'
    cams, walks = LARGE_CAMS.format(named), LARGE_WALKS.format(named)
    run_stage(inference_classification, f'{network} --tag cls --scales {SCALES}'.split())
    run_stage(make_affinity_labels, f'{LARGE_DATA} {cut} --experiment_name {cams}'.split())
    run_stage(inference_rw, f'{network} --model_name aff --cam_dir {cams} --image_size 64 --save_edges'.split())
    run_stage(make_pseudo_labels, f'{LARGE_DATA} {cut} --experiment_name {walks}'.split())
    run_stage(inference_segmentation, f'{network} --tag seg --scales {SCALES}'.split())


# Reading the data and the outputs ------------------------------------------------------------------------------------


def dataset_of(data) -> Dataset:
    return open_dataset(data / 'dataset.json', data)


def ids_of(data, domain: str) -> list[str]:
    return dataset_of(data).ids(domain)


def first(data, domain='train_aug') -> str:
    return ids_of(data, domain)[0]


def size_of(data, image_id: str) -> tuple[int, int]:
    """Return (h, w)."""
    with Image.open(data / 'JPEGImages' / f'{image_id}.jpg') as image:
        return image.size[::-1]


def image_of(data, image_id: str) -> np.ndarray:
    return np.array(dataset_of(data).read_image(image_id))


def keys_in(data, image_id: str) -> list[int]:
    return [0, *(np.flatnonzero(dataset_of(data).read_labels(image_id)) + 1)]


def state_of(tag: str) -> dict:
    """Return the state dict of a model."""
    return read_state_dict(Path(f'experiments/models/{tag}.pth'))[0]


def put_model(tag: str, content: dict) -> None:
    """Write a model file from another program in the place of a run's, whose record and checkpoint are removed."""
    Path(f'experiments/data/{tag}.json').unlink()
    Path(f'experiments/checkpoints/{tag}.pth').unlink()
    path = Path(f'experiments/models/{tag}.pth')
    path.unlink()  # perhaps a link
    torch.save(content, path)


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def files_in(folder, name: str) -> list:
    return sorted(path for path in (folder / 'predictions' / name).iterdir() if path.suffix in ('.npz', '.png'))


def outputs_of(name: str) -> dict[str, bytes]:
    """Return the bytes of every file of a folder of predictions."""
    return {path.name: path.read_bytes() for path in Path('experiments/predictions', name).glob('[!.]*')}


def without(words: list[str], *flags: str) -> list[str]:
    """Return a command line without some flags and their values."""
    return [word for i, word in enumerate(words) if word not in flags and (i == 0 or words[i - 1] not in flags)]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every output that must be equal: all but logs and the seconds that commands took."""
    kinds = ('models', 'checkpoints', 'data', 'predictions', 'results')
    paths = [path for kind in kinds for path in (folder / 'experiments' / kind).rglob('*') if path.is_file()]
    return {path.relative_to(folder).as_posix(): without_seconds(path) for path in paths}


# Child processes -----------------------------------------------------------------------------------------------------


def line_of(data, name: str, *more: str) -> list[str]:
    return [*commands(data)[name][1], *(LONGER if name in TAGS else ()), *more]


def run_child(data, name: str, folder: str, more: tuple[str, ...]) -> None:
    """Run a stage as a program does, in a child process."""
    os.chdir(folder)
    torch.set_num_threads(1)
    script = commands(data)[name][0]
    run_script(script.main, lambda: script.parse_args(line_of(data, name, *more)))


def start(data, name: str, folder, *more: str):
    process = served(run_child, data, name, str(folder), more)
    process.start()
    return process


def finish(data, name: str, folder, *more: str) -> float:
    """Run to the end; return the seconds it took."""
    begun = time.monotonic()
    process = start(data, name, folder, *more)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - begun


def start_server() -> None:
    """Start the server that child processes are forked from, and wait for its imports."""
    first = served(int)
    first.start()
    first.join()


def copy_outputs(source: Path, target: Path) -> None:
    """Copy experiments/ of a folder into another one.

    The files of DeepLabv3+, nine tenths of the bytes, are links: a test that writes into one unlinks it first.
    """
    large = {*source.rglob('seg*.pth')}
    shutil.copytree(
        source / 'experiments',
        target / 'experiments',
        copy_function=lambda file, copy: (os.link if Path(file) in large else shutil.copy2)(file, copy),
    )


def copy_without(source: Path, target: Path, name: str) -> None:
    """Copy all outputs except a stage's."""
    copy_outputs(source, target)
    remove_output(target, name)


def remove_output(folder: Path, name: str) -> None:
    if name in FOLDERS:
        shutil.rmtree(folder / 'experiments/predictions' / FOLDERS[name])
    if name == 'evaluate':
        shutil.rmtree(folder / 'experiments/results')
    for path in (folder / 'experiments').glob(f'*/{name}.*'):
        path.unlink()
    shutil.rmtree(folder / f'experiments/tensorboards/{name}', ignore_errors=True)


# In this process -----------------------------------------------------------------------------------------------------


def again(demo, name: str, *more: str) -> None:
    script = commands(demo)[name][0]
    try:
        script.main(script.parse_args(line_of(demo, name, *more)))
    except SystemExit as end:  # a finished trainer
        assert end.code is None


def refused(demo, name: str, capsys, *more: str) -> str:
    """Return the line with which a stage refuses to start, after checking that nothing has changed."""
    before = contents(Path())
    script = commands(demo)[name][0]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_script(script.main, lambda: script.parse_args(line_of(demo, name, *more)))
    assert contents(Path()) == before
    assert '\n' not in ended.value.code
    return ended.value.code


def as_process(monkeypatch, rank: int, count: int) -> None:
    for name, value in {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': count}.items():
        monkeypatch.setenv(name, str(value))
