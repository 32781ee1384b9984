"""The nine published commands, parsed by the scripts' own parsers, and that each finds what the one before made."""

import importlib
import shlex
import subprocess
import sys

import pytest
from conftest import REPOSITORY, STAGES, subprocess_environment

from tools import experiment

COMMANDS = """
train_classification_with_puzzle.py --architecture resnest101 --re_loss_option masking --re_loss L1_Loss \
    --alpha_schedule 0.50 --alpha 4.00 --tag ResNeSt101@Puzzle@optimal --data_dir $D
inference_classification.py --architecture resnest101 --tag ResNeSt101@Puzzle@optimal --domain train_aug --data_dir $D
make_affinity_labels.py --experiment_name ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0 --domain train_aug \
    --fg_threshold 0.40 --bg_threshold 0.10 --data_dir $D
train_affinitynet.py --architecture resnest101 --tag AffinityNet@ResNeSt-101@Puzzle \
    --label_name ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0@aff_fg=0.40_bg=0.10 --data_dir $D
inference_rw.py --architecture resnest101 --model_name AffinityNet@ResNeSt-101@Puzzle \
    --cam_dir ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0 --domain train_aug --data_dir $D
make_pseudo_labels.py --experiment_name AffinityNet@ResNeSt-101@Puzzle@train@beta=10@exp_times=8@rw \
    --domain train_aug --threshold 0.35 --crf_iteration 1 --data_dir $D
train_segmentation.py --backbone resnest101 --mode fix --use_gn True --tag DeepLabv3+@ResNeSt-101@Fix@GN \
    --label_name AffinityNet@ResNeSt-101@Puzzle@train@beta=10@exp_times=8@rw@crf=1 --data_dir $D
inference_segmentation.py --backbone resnest101 --mode fix --use_gn True --tag DeepLabv3+@ResNeSt-101@Fix@GN \
    --scale 0.5,1.0,1.5,2.0 --iteration 10
evaluate.py --experiment_name DeepLabv3+@ResNeSt-101@Fix@GN@val@scale=0.5,1.0,1.5,2.0@iteration=10 --domain val \
    --data_dir $D/SegmentationClass
"""


def module_of(stage: str):
    return importlib.import_module(stage)


def parsed(root: str) -> dict:
    """The options of each command, by script, as a shell would hand them over."""
    options = {}
    for line in COMMANDS.strip().splitlines():
        script, *words = shlex.split(line.replace('$D', root))
        stage = script.removesuffix('.py')
        options[stage] = module_of(stage).parse_args(words)
    return options


@pytest.mark.parametrize('root', ['../VOC2012', '../VOC2012/', '/data/my VOC'])
def test_the_nine_commands_are_parsed(root):
    quoted = shlex.quote(root).strip("'").replace(' ', '\\ ')
    options = parsed(quoted)
    assert tuple(options) == STAGES
    for stage, args in options.items():
        if stage not in ('inference_segmentation', 'evaluate'):
            assert args.data_dir == root
    first = options['train_classification_with_puzzle']
    assert (first.architecture, first.tag) == ('resnest101', 'ResNeSt101@Puzzle@optimal')
    assert (first.alpha, first.alpha_schedule, first.re_loss, first.re_loss_option) == (4, 0.5, 'L1_Loss', 'masking')
    segmentation = options['inference_segmentation']
    assert (segmentation.scales, segmentation.iteration) == ('0.5,1.0,1.5,2.0', 10)
    assert (segmentation.use_gn, segmentation.mode, segmentation.domain) == (True, 'fix', 'val')
    assert options['evaluate'].data_dir == f'{root}/SegmentationClass'
    assert options['evaluate'].mode is None


def test_each_command_reads_what_the_one_before_writes():
    by = parsed('D')
    cams = by['inference_classification']
    labels = by['make_affinity_labels']
    affinity = by['train_affinitynet']
    walk = by['inference_rw']
    pseudo = by['make_pseudo_labels']
    deeplab = by['train_segmentation']
    predictions = by['inference_segmentation']
    assert cams.tag == by['train_classification_with_puzzle'].tag
    folder = experiment.cam_name(cams.tag, cams.domain, cams.scales)
    assert folder == labels.experiment_name == walk.cam_dir
    folder = experiment.affinity_label_name(labels.experiment_name, labels.fg_threshold, labels.bg_threshold)
    assert folder == affinity.label_name
    assert walk.model_name == affinity.tag
    folder = experiment.random_walk_name(walk.model_name, walk.domain, walk.beta, walk.exp_times)
    assert folder == pseudo.experiment_name
    assert experiment.pseudo_label_name(folder, pseudo.crf_iteration) == deeplab.label_name
    assert predictions.tag == deeplab.tag
    folder = experiment.segmentation_name(
        predictions.tag, predictions.domain, predictions.scales, predictions.iteration
    )
    assert folder == by['evaluate'].experiment_name
    for args in (affinity, deeplab):
        assert args.pred_dir.rstrip('/') == str(experiment.PREDICTIONS)


TRAINING = {
    'wd': 1e-4, 'batch_size': 32, 'momentum': 1e-4, 'nesterov': True, 'image_size': 512, 'min_image_size': 320,
    'max_image_size': 640, 'print_ratio': 0.1, 'weights': 'imagenet', 'lr': 0.1, 'device': 'auto',
}  # fmt: skip
RECIPE = {
    'train_classification_with_puzzle --tag t': TRAINING | {
        'max_epoch': 15, 'mode': 'normal', 'num_pieces': 4, 'loss_option': 'cl_pcl_re', 'level': 'feature',
        're_loss': 'L1_Loss', 're_loss_option': 'masking', 'alpha': 4, 'alpha_schedule': 0.5, 'bn_replicas': 4,
        'select': 'best', 'augment': '', 'architecture': 'resnest101',
    },
    'inference_classification --tag t': {'scales': '0.5,1.0,1.5,2.0', 'architecture': 'resnest101'},
    'make_affinity_labels --experiment_name t': {'fg_threshold': 0.4, 'bg_threshold': 0.1},
    'train_affinitynet --tag t --label_name l': TRAINING | {'max_epoch': 3, 'radius': 10, 'architecture': 'resnest101'},
    'inference_rw --model_name m --cam_dir c': {
        'beta': 10, 'exp_times': 8, 'image_size': 512, 'architecture': 'resnest101',
    },
    'make_pseudo_labels --experiment_name t': {'threshold': 0.35, 'crf_iteration': 1},
    'train_segmentation --tag t --label_name l': TRAINING | {
        'max_epoch': 50, 'lr': 0.007, 'wd': 4e-5, 'momentum': 4e-5, 'min_image_size': 256, 'max_image_size': 1024,
        'mode': 'fix', 'use_gn': True, 'architecture': 'DeepLabv3+', 'select': 'best', 'backbone': 'resnest101',
    },
    'inference_segmentation --tag t': {'scales': '0.5,1.0,1.5,2.0', 'iteration': 10, 'architecture': 'DeepLabv3+'},
    'evaluate --experiment_name t': {'mode': None, 'threshold': None},
}  # fmt: skip


@pytest.mark.parametrize('line', RECIPE)
def test_no_flags_mean_the_published_recipe(line):
    stage, *words = line.split()
    options = vars(module_of(stage).parse_args(words))
    assert {name: options[name] for name in RECIPE[line]} == RECIPE[line]
    assert options['dataset'].endswith('data/voc2012.json')


def test_other_spellings():
    stage = module_of('evaluate')
    assert stage.parse_args(['--experiment_name', 'x', '--gt_dir', 'masks']).data_dir == 'masks'
    for flag in ('--scale', '--scales'):
        for name in ('inference_classification', 'inference_segmentation'):
            assert module_of(name).parse_args(['--tag', 't', flag, '1.0']).scales == '1.0'


FIRST = 'train_classification_with_puzzle --tag t'


@pytest.mark.parametrize(
    'line, flag',
    [
        ('train_classification_with_puzzle', '--tag'),
        (f'{FIRST} --architecture resnet49', '--architecture'),
        (f'{FIRST} --mode frozen', '--mode'),
        (f'{FIRST} --loss_option pcl', '--loss_option'),
        (f'{FIRST} --re_loss L3_Loss', '--re_loss'),
        (f'{FIRST} --augment blur', '--augment'),
        (f'{FIRST} --batch_size 0', '--batch_size'),
        (f'{FIRST} --batch_size 6 --bn_replicas 4', '--bn_replicas'),
        (f'{FIRST} --batch_size 4 --bn_replicas 4', '--bn_replicas'),
        (f'{FIRST} --seed 4294967296', '--seed'),
        ('train_segmentation --tag t --label_name l --mode normal --batch_size 1', '--batch_size'),
        (f'{FIRST} --max_epoch 0', '--max_epoch'),
        (f'{FIRST} --lr -1', '--lr'),
        (f'{FIRST} --lr nan', '--lr'),
        (f'{FIRST} --alpha_schedule 2', '--alpha_schedule'),
        (f'{FIRST} --nesterov maybe', '--nesterov'),
        (f'{FIRST} --momentum 0', '--momentum'),
        (f'{FIRST} --min_image_size 640 --max_image_size 320', '--min_image_size'),
        ('train_classification_with_puzzle --tag ../x', '--tag'),
        ('inference_classification --tag t --scales 0', '--scales'),
        ('make_affinity_labels --experiment_name x --fg_threshold 0.1 --bg_threshold 0.4', '--fg_threshold'),
        ('make_affinity_labels --experiment_name x --fg_threshold 2', '--fg_threshold'),
        ('inference_rw --model_name m --cam_dir c --exp_times -1', '--exp_times'),
        ('make_pseudo_labels --experiment_name x --crf_iteration -1', '--crf_iteration'),
        ('train_affinitynet --tag t --label_name l --radius 1', '--radius'),
        ('inference_segmentation --tag t --use_gn perhaps', '--use_gn'),
        ('evaluate --experiment_name x --mode jpg', '--mode'),
        ('evaluate --experiment_name a/b', '--experiment_name'),
    ],
)
def test_flags_that_cannot_be_are_named(line, flag, capsys):
    stage, *words = line.split()
    with pytest.raises(SystemExit) as ended:
        module_of(stage).parse_args(words)
    assert ended.value.code == 2
    assert flag in capsys.readouterr().err.strip().splitlines()[-1]


HELP = """
import runpy, sys
sys.argv = [sys.argv[1], '--help']
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as ended:
    assert ended.code == 0, ended.code
heavy = {'torch', 'torchvision', 'cv2', 'tensorboard'} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize('stage', STAGES)
def test_help_answers_without_the_heavy_imports(stage):
    done = subprocess.run(
        [sys.executable, '-c', HELP, f'{stage}.py'],
        cwd=REPOSITORY,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = module_of(stage).__doc__
    assert document.splitlines()[0] in done.stdout
    assert 'default: None' not in ' '.join(done.stdout.split())
    for part in ('Reads', 'Writes', f'python3 {stage}.py'):
        assert part in document
