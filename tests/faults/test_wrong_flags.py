"""Wrong flags of the stages: the line names the flag, and the value or file that it does not go with.

A row: the stage, its flags besides the flags of a command that works, and the line as support.faults.check_line takes
it. Missing and unknown files, damaged ones and wrong data are in test_bad_inputs.py.
"""

import pytest

from support.chain import CAMS, FOLDERS, RANDOM_WALKS, commands
from support.faults import check_line, forget

ROWS = [
    # values that a flag does not take
    ('cls', '--architecture vgg16', "argument --architecture: * 'vgg16' is not one of * resnest101"),
    ('cls', '--mode frozen', 'argument --mode: * frozen * choose from'),
    ('cls', '--loss_option pcl', "argument --loss_option: 'pcl' is not cl followed by some of pcl, re, conf"),
    ('cls', '--re_loss L3_Loss', 'argument --re_loss: * L3_Loss * choose from'),
    ('cls', '--loss_option cl_cl', "argument --loss_option: 'cl_cl' is not cl followed by some of"),
    ('cls', '--augment blur', "argument --augment: 'blur': choose from colorjitter, randaugment"),
    ('cls', '--nesterov maybe', "argument --nesterov: 'maybe' * True nor False"),
    ('cls', '--tag a/b', "argument --tag: 'a/b' * no slashes"),
    ('cls', '--tag ../x', "argument --tag: '../x' * leading dot"),
    ('cams', '--domain ../x', "argument --domain: '../x' * leading dot"),
    ('evaluate', '--domain ../x', "argument --domain: '../x' * no slashes"),
    ('cls', '--num_pieces 3', 'argument --num_pieces: 3 * 1, 4, 9, 16'),
    ('cls', '--unknown 1', 'unrecognized arguments: --unknown 1'),
    ('cls', '--device tpu', '--device tpu: * auto picks an available device'),
    ('cams', '--scales 0.5,x', "argument --scales/--scale: '0.5,x' * such as 0.5,1.0,1.5,2.0"),
    ('cams', '--scales 0', "argument --scales/--scale: '0' * above 0"),
    ('affinity_labels', '--crf_gaussian 0,3', 'argument --crf_gaussian: * 0,3'),
    ('predictions', '--crf_bilateral 80,13', 'argument --crf_bilateral: * 80,13'),
    ('predictions', '--use_gn perhaps', "argument --use_gn: 'perhaps' * True nor False"),
    ('evaluate', '--mode jpg', 'argument --mode: * jpg * choose from'),
    ('evaluate', '--experiment_name a/b', "argument --experiment_name: 'a/b' * no slashes"),
    # numbers out of range
    ('cls', '--image_size 0', 'argument --image_size: 0 * 32 to 16384'),
    ('cls', '--alpha nan', 'argument --alpha: nan * 0 or more'),
    ('cls', '--alpha_schedule 2', 'argument --alpha_schedule: 2'),
    ('cls', '--label_smoothing 1.5', 'argument --label_smoothing: 1.5'),
    ('cls', '--lr -1', 'argument --lr: -1.0 * 0 or more'),
    ('cls', '--lr nan', 'argument --lr: nan * 0 or more'),
    ('cls', '--seed 4294967296', 'argument --seed: 4294967296 * 0 to 4294967295'),
    ('cls', '--batch_size 0', 'argument --batch_size: 0'),
    ('cls', '--max_epoch 0', 'argument --max_epoch: 0'),
    ('affinity_labels', '--fg_threshold 1.5', 'argument --fg_threshold: 1.5 * 0 to 1'),
    ('aff', '--radius 1', 'argument --radius: 1'),
    ('random_walk', '--exp_times 17', 'argument --exp_times: 17 * 0 to 12'),
    ('random_walk', '--exp_times -1', 'argument --exp_times: -1 * 0 to 12'),
    ('pseudo', '--crf_iteration -1', 'argument --crf_iteration/--iteration: -1'),
    ('pseudo', '--gt_prob 1', 'argument --gt_prob: 1'),
    # flags that do not go together
    ('cls', '--num_pieces 9', '--image_size 64 * 48 = 16 x sqrt(num_pieces 9)'),
    ('cls', '--image_size 50', '--image_size 50 * 32 = 16 x sqrt(num_pieces 4)'),
    ('cls', '--min_image_size 90 --max_image_size 80', '--min_image_size 90 * --max_image_size 80'),
    ('cls', '--momentum 0', '--nesterov True needs --momentum above 0'),
    ('cls', '--batch_size 5', '--batch_size 5 * --bn_replicas 2'),
    ('cls', '--batch_size 2', '--batch_size 2: --bn_replicas 2 needs at least 2'),
    ('affinity_labels', '--fg_threshold 0.05', '--fg_threshold 0.05 * --bg_threshold 0.1'),
    ('seg', '--mode normal --batch_size 1', '--batch_size 1: --mode normal * needs 2 or more'),
    ('aff', '--radius 10', '--radius 10 * 16x16'),
    ('evaluate cams', '--min_th 0.5 --max_th 0.5', '* --max_th 0.5 --step_th 0.05: 0 thresholds, expected 1 to 255'),
    ('evaluate cams', '--max_th 1 --step_th 0.001', '* --step_th 0.001: 950 thresholds'),
    # flags that do not go with the data set
    ('cls', '--batch_size 20', '--batch_size 20: * 12 images'),
    ('seg', '--batch_size 13', '--batch_size 13: * 12 images'),
    ('cls', '--dataset nowhere.json', '--dataset nowhere.json: '),
    ('cls', '--data_dir nowhere', 'nowhere/'),
    ('cams', '--domain nowhere', "--domain 'nowhere': * train_aug, train, val"),
    ('cams', '--domain test', "--domain 'test': * train_aug, train, val"),
    ('affinity_labels', '--domain nowhere', "--domain 'nowhere': * train_aug, train, val"),
    ('affinity_labels', '--domain val', '* run inference_classification.py'),
    ('predictions', '--domain train_aug --data_dir nowhere', 'nowhere/'),
    ('evaluate', '--domain test', "--domain 'test': * train_aug, train, val"),
    ('evaluate', '--data_dir nowhere', '* nowhere/val_00000.png'),
    # or with models and folders
    ('cls', '--weights nowhere.pth', '--weights nowhere.pth: cannot be read'),
    ('cls', '--weights imagenet', '--weights imagenet: * resnest14_narrow: pass none or a local file'),
    ('cls', '--architecture mobilenet_v2 --weights experiments/models/seg.pth', '* mobilenet_v2'),
    ('cams', '--architecture resnest14', '--architecture resnest14: experiments/models/cls.pth * resnest14_narrow'),
    ('random_walk', '--architecture resnest14', '--architecture resnest14: experiments/models/aff.pth'),
    (
        'random_walk',
        f'--cam_dir {RANDOM_WALKS}',
        f'--cam_dir {RANDOM_WALKS}: * name a folder of CAMs (inference_classification.py)',
    ),
    (
        'affinity_labels',
        f'--experiment_name {RANDOM_WALKS}',
        f'--experiment_name {RANDOM_WALKS}: * name a folder of CAMs (inference_classification.py)',
    ),
    (
        'pseudo',
        f'--experiment_name {CAMS}',
        f'--experiment_name {CAMS}: * name a folder of random-walk CAMs (inference_rw.py)',
    ),
    ('seg', '--pred_dir nowhere', '* nowhere/'),
    ('predictions', '--use_gn False', '--use_gn False: experiments/models/seg.pth was trained with --use_gn True'),
    ('predictions', '--architecture Seg_Model', '--architecture Seg_Model: experiments/models/seg.pth'),
    ('evaluate', '--threshold 0.3', '--threshold 0.3: {predictions} contains label maps'),
    ('evaluate', '--crf_iteration 1', '--crf_iteration 1: {predictions}'),
    ('evaluate', '--mode npy', '--mode npy: {predictions} contains predictions: leave it out'),
    ('evaluate cams', '--mode rw', '--mode rw: {cams}'),
    ('evaluate cams', '--mode png', '--mode png: {cams}'),
    # names that are too long for the file system
    ('cams', f'--tag {"t" * 252}', f'--tag: {"t" * 40}... * 256 bytes, the limit is 255: shorten it'),
    *(
        (name, f'--tag {"t" * 247}', f'--tag: {"t" * 40}... * 256 bytes, the limit is 255: shorten it')
        for name in ('cls', 'aff', 'seg')
    ),
    ('affinity_labels', f'--experiment_name {"x" * 256}', f'--experiment_name: {"x" * 40}... * shorten it'),
    # a learning rate with which the loss does not stay finite
    ('cls', '--lr 1e20', '* --lr'),
    ('aff', '--lr 1e30', '* --lr'),
    ('seg', '--lr 1e20', '* --lr'),
]


@pytest.mark.parametrize('name, flags, line', ROWS, ids=[f'{name} {flags[:60]}' for name, flags, _ in ROWS])
def test_wrong_flags_are_named(copy, tmp_path, capsys, name, flags, line):
    if FOLDERS.get(name) not in flags.split():
        forget(tmp_path, name)
    check_line(copy, capsys, name, flags, line)


@pytest.mark.parametrize(
    'name, flag', [('cls', '--tag'), ('pseudo', '--experiment_name'), ('random_walk', '--cam_dir')]
)
def test_required_flags_are_named(demo, capsys, name, flag):
    script, _ = commands(demo)[name]
    with pytest.raises(SystemExit) as ended:
        script.parse_args([])
    assert ended.value.code == 2
    assert flag in capsys.readouterr().err.strip().splitlines()[-1]
