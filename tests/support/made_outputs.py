"""Outputs of all stages without training: made from the masks of a data set, with errors that are known."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

import evaluate
from core.data.dataset import open_dataset
from core.maps import present_keys
from util.store import formats
from util.store.arrays import write_npz
from util.store.files import write_bytes, write_json

CAM = 'my@puzzle@train@scale=0.5,1.0'
AFFINITY = f'{CAM}@aff_fg=0.40_bg=0.10'
WALK = 'my@affinity@train@beta=10@exp_times=8@rw'
LABELS = f'{WALK}@crf=1'
PREDICTIONS_ON_VAL = 'my@deeplab@val@scale=1.0@iteration=10'
VERSIONS = {'code': 'abc1234', 'torch': '2.14.1'}


def write_args(kind: formats.Format, folder: str, data: dict, domain: str, **options) -> None:
    record = {'format': kind.title, 'fingerprint': {}, 'options': {**data, 'domain': domain, **options}}
    record |= {'versions': VERSIONS, 'history': [], 'seconds': 75.4}
    write_json(formats.PREDICTIONS / folder / 'args.json', record)


def write_run(tag: str, network: str, curves: dict[str, list], **options) -> None:
    content = {'network': network, 'options': {'tag': tag, 'seed': 3, **options}, 'versions': VERSIONS}
    write_json(formats.run_path(tag), {**content, 'seconds': 3700, 'curves': curves})


def shifted(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return a mask moved to the right; void becomes background."""
    label = np.where(mask == 255, 0, mask)
    label[:, pixels:] = label[:, :-pixels].copy()
    return label


def make_experiment(demo: Path) -> None:
    """Write folders, runs and results under experiments/ in the current directory."""
    dataset = open_dataset(demo / 'dataset.json', demo)
    data = {'dataset': str(demo / 'dataset.json'), 'data_dir': str(demo)}
    for image_id in dataset.ids('train'):
        mask, keys = dataset.read_mask(image_id), present_keys(dataset.read_labels(image_id))
        maps = np.stack([gaussian_filter((mask == key).astype(np.float32), 3) for key in keys[1:]])
        maps = np.clip(maps / maps.max((1, 2), keepdims=True), 0, 1).astype(np.float16)
        write_npz(formats.PREDICTIONS / CAM / f'{image_id}.npz', keys=keys, cam=maps[:, ::4, ::4], hr_cam=maps)
        write_npz(formats.PREDICTIONS / WALK / f'{image_id}.npz', keys=keys, rw=maps[:, ::4, ::4])
        label = np.where(gaussian_filter((mask > 0).astype(np.float32), 2) > 0.9, mask, 0)
        write_bytes(
            formats.PREDICTIONS / AFFINITY / f'{image_id}.png', dataset.encode_label_map(np.where(label, mask, 255))
        )
        write_bytes(formats.PREDICTIONS / LABELS / f'{image_id}.png', dataset.encode_label_map(shifted(mask, 2)))
    for image_id in dataset.ids('val'):
        label = shifted(dataset.read_mask(image_id), 6)
        write_bytes(formats.PREDICTIONS / PREDICTIONS_ON_VAL / f'{image_id}.png', dataset.encode_label_map(label))
    write_args(formats.CAM, CAM, data, 'train_aug', tag='my@puzzle', scales='0.5,1.0')
    write_args(formats.AFFINITY_LABEL, AFFINITY, data, 'train_aug', experiment_name=CAM)
    write_args(formats.RANDOM_WALK, WALK, data, 'train_aug', cam_dir=CAM, model_name='my@affinity', beta=10)
    write_args(formats.PSEUDO_LABEL, LABELS, data, 'train_aug', experiment_name=WALK, threshold=0.35)
    write_args(formats.PREDICTION, PREDICTIONS_ON_VAL, data, 'val', tag='my@deeplab')
    losses = [[10, 0.7], [20, 0.5]]
    write_run(
        'my@puzzle',
        'Classifier',
        {'lr': losses, 'loss': losses, 'mIoU': [[20, 40.5]], 'mAP': [[20, 60]]},
        num_pieces=4,
        alpha=4,
    )
    write_run(
        'my@affinity',
        'AffinityNet',
        {'loss': losses},
        radius=5,
        label_name=AFFINITY,
        weights='experiments/models/my@puzzle.pth',
    )
    write_run('my@deeplab', 'DeepLabv3+', {'loss': losses}, backbone='resnest14_narrow', label_name=LABELS)
    for folder, domain in ((CAM, 'train'), (WALK, 'train'), (LABELS, 'train'), (PREDICTIONS_ON_VAL, 'val')):
        line = ['--experiment_name', folder, '--domain', domain, '--num_workers', '0']
        evaluate.main(evaluate.parse_args([*line, '--dataset', data['dataset'], '--data_dir', data['data_dir']]))
