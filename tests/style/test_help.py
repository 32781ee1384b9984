"""--help: defaults that a reader can use, spellings that every stage accepts, figures marked as the paper's."""

import re

import pytest

from core import UserError
from support import REPOSITORY, STAGES
from support.documents import module_of
from tools import predict

PROGRAMS = (
    *STAGES,
    'tools.average_cams',
    'tools.check_dataset',
    'tools.export',
    'tools.import_masks',
    'tools.import_published',
    'tools.make_demo_data',
    'tools.prepare_coco',
    'tools.predict',
    'tools.prepare_voc',
    'tools.report',
    'tools.show',
    'tools.summarize',
    'tools.tune',
    'recipes.ablation',
    'recipes.choices',
    'recipes.cut_pictures',
    'recipes.gradients',
    'recipes.precision',
    'recipes.readouts',
    'recipes.rounding',
    'recipes.terms',
    'recipes.tuning',
)
REQUIRED = {
    'train_affinitynet': ['--label_name', 'l', '--tag', 't'],
    'train_segmentation': ['--label_name', 'l', '--tag', 't'],
    'make_affinity_labels': ['--experiment_name', 'e'],
    'make_pseudo_labels': ['--experiment_name', 'e'],
    'inference_rw': ['--cam_dir', 'c', '--model_name', 'm'],
    'evaluate': ['--experiment_name', 'e'],
}


def help_of(name: str, capsys) -> str:
    with pytest.raises(SystemExit):
        module_of(name).parse_args(['--help'])
    return capsys.readouterr().out


@pytest.mark.parametrize('name', PROGRAMS)
def test_no_default_is_a_path_of_this_machine_or_says_nothing(name, capsys):
    text = ' '.join(help_of(name, capsys).split())
    assert str(REPOSITORY) not in text
    assert not re.findall(r'\(default: (False|None|)\)|\[[^]]*\bdefault|\(default: \[', text)
    if name in STAGES:
        assert '(default: data/voc2012.json)' in text
        assert '(default: ../VOCdevkit/VOC2012)' in text  # where tools.prepare_voc --out .. puts it


@pytest.mark.parametrize('name', STAGES)
def test_the_default_data_set_is_found_from_any_directory(name, in_tmp):
    options = module_of(name).parse_args(REQUIRED.get(name, ['--tag', 't']))
    assert options.dataset == str(REPOSITORY / 'data' / 'voc2012.json')


def test_only_what_must_be_passed_is_required(capsys):
    for name in ('tools.report', 'tools.summarize', 'tools.check_dataset', 'recipes.choices'):
        assert '(required)' not in help_of(name, capsys)
    assert help_of('train_affinitynet', capsys).count('(required)') == 2


@pytest.mark.parametrize('spelling', ['--iteration', '--crf_iteration'])
@pytest.mark.parametrize(
    'name, option',
    [
        ('make_affinity_labels', 'crf_iteration'),
        ('make_pseudo_labels', 'crf_iteration'),
        ('inference_segmentation', 'iteration'),
        ('evaluate', 'crf_iteration'),
    ],
)
def test_both_names_of_the_crf_iterations(name, option, spelling):
    options = module_of(name).parse_args([*REQUIRED.get(name, ['--tag', 't']), spelling, '3'])
    assert vars(options)[option] == 3
    assert {'iteration', 'crf_iteration'} & {*vars(options)} == {option}


class File:
    """What tools.predict asks of a model file."""

    def __init__(self, network):
        self.meta = {'network': network}


@pytest.mark.parametrize('network, default', [('Classifier', 1), ('DeepLabv3+', 10)])
def test_predict_takes_both_names_for_every_network(network, default):
    def settled(*words):
        return predict.settle_flags(predict.parse_args(['m.pth', 'a.jpg', *words]), File(network), None)

    assert settled().crf_iteration == default
    for spelling in ('--iteration', '--crf_iteration'):
        assert settled(spelling, '4').crf_iteration == 4


def test_predict_names_flags_without_an_effect():
    args = predict.parse_args(['m.pth', 'a.jpg', '--threshold', '0.3'])
    with pytest.raises(UserError, match=r'--threshold: has no effect on DeepLabv3\+ of m.pth'):
        predict.settle_flags(args, File('DeepLabv3+'), None)


@pytest.mark.parametrize('name', STAGES)
def test_figures_of_the_paper_are_marked(name):
    document = ' '.join(module_of(name).__doc__.split())
    found = re.findall(r'(?:\w+ ){2}\d\d\.\d+ mIoU', document)
    assert [phrase for phrase in found if not phrase.startswith('paper reports')] == []
    assert not found or 'It has not been reproduced with this code.' in document
