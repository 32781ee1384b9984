"""Command lines: the nine published ones, the README's, the defaults, --help."""

import argparse
import re
import shlex
import subprocess
import sys

import pytest

from support import REPOSITORY, STAGES, folder_of, subprocess_environment
from support.documents import commands_of, module_of
from util import flags
from util.store.formats import AFFINITY_LABEL, CAM, PREDICTION, PREDICTIONS, PSEUDO_LABEL, RANDOM_WALK

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


def parsed(root: str) -> dict:
    """Return the options of each command by script, split as a shell does."""
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
    assert folder_of(CAM, cams) == labels.experiment_name == walk.cam_dir
    assert folder_of(AFFINITY_LABEL, labels) == affinity.label_name
    assert walk.model_name == affinity.tag
    assert folder_of(RANDOM_WALK, walk) == pseudo.experiment_name
    assert folder_of(PSEUDO_LABEL, pseudo) == deeplab.label_name
    assert predictions.tag == deeplab.tag
    assert folder_of(PREDICTION, predictions) == by['evaluate'].experiment_name
    for args in (affinity, deeplab):
        assert args.pred_dir.rstrip('/') == str(PREDICTIONS)


def test_readme_has_the_nine_commands():
    documented = commands_of((REPOSITORY / 'README.md').read_text())
    for line in COMMANDS.strip().splitlines():
        script, *words = shlex.split(line)
        stage = script.removesuffix('.py')
        assert (stage, words) in documented or (stage, [*words, '--data_dir', '$D']) in documented, line
    assert ('tools.prepare_voc', ['--out', '..']) in documented


TRAINING = {
    'wd': 1e-4, 'batch_size': 32, 'momentum': 1e-4, 'nesterov': True, 'image_size': 512, 'min_image_size': 320,
    'max_image_size': 640, 'print_ratio': 0.1, 'weights': 'imagenet', 'lr': 0.1, 'device': 'auto',
}  # fmt: skip
RECIPE = {
    'train_classification_with_puzzle --tag t': TRAINING | {
        'max_epoch': 15, 'mode': 'normal', 'num_pieces': 4, 'loss_option': 'cl_pcl_re', 'level': 'feature',
        're_loss': 'L1_Loss', 're_loss_option': 'masking', 'alpha': 4, 'alpha_schedule': 0.5, 'bn_replicas': 4,
        'select': 'best', 'augment': '', 'architecture': 'resnest101', 'label_smoothing': 0,
    },
    'inference_classification --tag t': {'scales': '0.5,1.0,1.5,2.0', 'architecture': None, 'cam': 'published'},
    'make_affinity_labels --experiment_name t': {
        'fg_threshold': 0.4, 'bg_threshold': 0.1, 'crf_iteration': 10, 'gt_prob': 0.7, 'crf_gaussian': '3,3',
        'crf_bilateral': '50,5,10',
    },
    'train_affinitynet --tag t --label_name l': TRAINING | {'max_epoch': 3, 'radius': 10, 'architecture': 'resnest101'},
    'inference_rw --model_name m --cam_dir c': {
        'beta': 10, 'exp_times': 8, 'image_size': 512, 'architecture': None, 'rw_normalization': 'joint',
    },
    'make_pseudo_labels --experiment_name t': {
        'threshold': 0.35, 'crf_iteration': 1, 'gt_prob': 0.7, 'crf_gaussian': '3,3', 'crf_bilateral': '50,5,10',
    },
    'train_segmentation --tag t --label_name l': TRAINING | {
        'max_epoch': 50, 'lr': 0.007, 'wd': 4e-5, 'momentum': 4e-5, 'min_image_size': 256, 'max_image_size': 1024,
        'mode': 'fix', 'use_gn': True, 'architecture': 'DeepLabv3+', 'select': 'best', 'backbone': 'resnest101',
        'label_smoothing': 0,
    },
    'inference_segmentation --tag t': {
        'scales': '0.5,1.0,1.5,2.0', 'iteration': 10, 'architecture': None, 'backbone': None, 'mode': None,
        'use_gn': None, 'crf_gaussian': '3,3', 'crf_bilateral': '80,13,10',
    },
    'evaluate --experiment_name t': {
        'mode': None, 'threshold': None, 'min_th': 0.05, 'max_th': None, 'step_th': 0.05, 'crf_iteration': 0,
    },
}  # fmt: skip


@pytest.mark.parametrize('line', RECIPE)
def test_defaults_are_the_published_recipe(line):
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


PROGRAMS = (
    *STAGES,
    'tools.average_cams',
    'tools.export',
    'tools.import_masks',
    'tools.make_demo_data',
    'tools.prepare_coco',
    'tools.predict',
    'tools.prepare_voc',
    'tools.report',
    'tools.show',
    'tools.summarize',
    'tools.tune',
    'benchmarks.run',
    'recipes.gradients',
    'recipes.terms',
    'recipes.precision',
    'recipes.cut_pictures',
    'recipes.rounding',
)
TRAINER_GROUPS = ('data', 'model', 'loss', 'optimisation', 'augmentation', 'run and output')
INFERENCE_GROUPS = ('data', 'model', 'inference', 'run and output')
GROUPS = {
    'train_classification_with_puzzle': TRAINER_GROUPS,
    'inference_classification': INFERENCE_GROUPS,
    'make_affinity_labels': ('data', 'inference', 'run and output'),
    'train_affinitynet': TRAINER_GROUPS,
    'inference_rw': INFERENCE_GROUPS,
    'make_pseudo_labels': ('data', 'inference', 'run and output'),
    'train_segmentation': TRAINER_GROUPS,
    'inference_segmentation': INFERENCE_GROUPS,
    'evaluate': ('data', 'inference', 'run and output'),
    'tools.average_cams': ('data', 'run and output'),
    'tools.export': ('data', 'run and output'),
    'tools.import_masks': ('data', 'run and output'),
    'tools.make_demo_data': ('data', 'run and output'),
    'tools.prepare_coco': ('data',),
    'tools.predict': ('data', 'model', 'inference', 'run and output'),
    'tools.prepare_voc': ('data', 'run and output'),
    'tools.report': ('data', 'run and output'),
    'tools.show': ('data', 'run and output'),
    'tools.summarize': ('run and output',),
    'tools.tune': ('data', 'model', 'inference', 'run and output'),
}


def parser_of(name: str, monkeypatch) -> flags.Parser:
    """Return the parser of a script or program."""
    parsers = []

    class Parser(flags.Parser):
        def parse_known_args(self, *_, **__):
            parsers.append(self)
            raise SystemExit

    monkeypatch.setattr(flags, 'Parser', Parser)
    with pytest.raises(SystemExit):
        module_of(name).parse_args([])
    return parsers[0]


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_explains_every_flag_in_its_group(name, monkeypatch):
    parser = parser_of(name, monkeypatch)
    text = parser.format_help()
    document = module_of(name).__doc__
    assert document.strip() in text
    assert f'python3 {name}.py' in document if name in STAGES else f'python3 -m {name}' in document
    if name in STAGES:
        assert {'Reads', 'Writes'} <= set(document.split())
    assert 'default: None' not in ' '.join(text.split())
    titles = [title for title in flags.GROUPS if f'\n{title}:\n' in text]
    if name in GROUPS:
        assert titles == list(GROUPS[name])
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action, argparse._HelpAction):
                continue
            flag = '/'.join(action.option_strings) or action.dest
            phrase = action.help
            assert phrase and phrase.strip() == phrase and phrase != argparse.SUPPRESS, flag
            assert len(re.findall(r'[a-z]{2,}', phrase)) >= 1, f'{flag}: {phrase}'
            assert not phrase.removesuffix('...').endswith('.'), f'{flag}: {phrase}'
            if name in GROUPS and action.option_strings:
                assert group.title in flags.GROUPS, f'{flag} is in no group'


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_is_printed(name, capsys):
    with pytest.raises(SystemExit) as ended:
        module_of(name).parse_args(['--help'])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.err) == (0, '')
    assert module_of(name).__doc__.splitlines()[0] in printed.out


def test_help_of_a_program():
    """In a fresh interpreter, without torch; what the others print is tested in this one."""
    command = [sys.executable, 'make_affinity_labels.py', '--help']
    run = subprocess.run(command, cwd=REPOSITORY, env=subprocess_environment(), capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, '')
    assert module_of('make_affinity_labels').__doc__.splitlines()[0] in run.stdout
