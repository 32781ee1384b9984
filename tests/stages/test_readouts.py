"""recipes/readouts.py: every command is accepted, reads what an earlier one writes, and tables name the results."""

import importlib
import shlex

import pytest

from core.cam import READ_OUTS
from recipes import readouts, truth
from support.results import write_result
from tools import average_cams
from util.store import formats

FLAGS = ['--data_dir', '/data/VOC 2012', '--weights', 'lite0.pth']


def dry_run(capsys, *flags: str) -> list[list[str]]:
    """Return the printed commands as words, without `python3`."""
    readouts.main(readouts.parse_args([*FLAGS, *flags, '--dry_run']))
    return [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    'on, edges', [*((on, 'own') for on in readouts.SETTINGS), ('photographs', 'published'), ('photographs', 'truth')]
)
def test_every_command_is_accepted_and_reads_what_an_earlier_one_writes(in_tmp, capsys, on, edges):
    written, models, scored = {}, set(), set()  # written: the list of each folder
    cams = [*READ_OUTS, *(['truth'] if edges == 'truth' else [])]
    line = ['--on', on, '--until', 'predictions', '--seeds', '4', '--edges', edges, '--cam', *cams]
    for first, *words in dry_run(capsys, *line):
        name, words = (words[0], words[1:]) if first == '-m' else (first.removesuffix('.py'), words)
        args = importlib.import_module(name).parse_args(words)
        options = vars(args)
        for option in ('cam_dir', 'experiment_name', 'label_name'):
            assert options.get(option) in {None, *written}
            if options.get(option) and options.get('domain', 'train_aug') == 'train_aug':
                assert written[options[option]] == 'train_aug', 'train may be only a part of it'
        if name.startswith('train_'):
            models.add(args.tag)
        kind = next((kind for kind in formats.FORMATS.values() if kind.script == first), None)
        if name == 'tools.average_cams':
            assert {*args.cam_dirs} <= written.keys()
            kind = average_cams.MEAN
        kind = truth.TRUTH if name == 'recipes.truth' else kind
        if kind:
            assert {options.get('tag'), options.get('model_name')} & models or name.startswith('make_')
            defaults = {action.dest: action.default for action in args.declared}
            written[formats.folder_name(kind, options, defaults)] = options['domain']
        if name == 'evaluate':
            scored.add(f'{args.experiment_name}@{args.domain}')
        if name == 'tools.summarize':
            shown = {row[-1] for row in args.rows} | set(args.paired or ())
            assert {result.replace('seed=*', 'seed=4') for result in shown} <= scored
    # A classifier for each loss, and for each of its read-outs a segmentation network and, unless shared, AffinityNet.
    assert len(models) == 3 + 3 * len(cams) + (9 if edges == 'own' else 3)


def test_drawn_scenes_of_another_folder_have_their_own_lists(in_tmp, capsys):
    commands = [words for words in dry_run(capsys, '--on', 'drawn') if '--data_dir' in words]
    assert {words[words.index('--dataset') + 1] for words in commands} == {'/data/VOC 2012/dataset.json'}


def test_finished_scores_are_not_repeated(in_tmp, capsys):
    before = dry_run(capsys, '--seeds', '0', '--losses', 'cl', '--cam', 'positive')
    write_result('photographs@cl@seed=0@train@cam=positive@scale=0.5,1.0,1.5@train', 38)
    after = dry_run(capsys, '--seeds', '0', '--losses', 'cl', '--cam', 'positive')
    gone = [words for words in before if words not in after]
    assert [words[0] for words in gone] == ['evaluate.py'] and 'train' in gone[0]


def test_differences_are_to_the_first_loss_and_the_first_read_out(in_tmp, capsys):
    commands = dry_run(capsys, '--losses', 'cl', 'positive', '--cam', 'published', 'positive')
    pairs = [words[-2:] for words in commands if '--paired' in words]
    of = {
        (loss, cam): f'photographs@{loss}@seed=*@train{named}@scale=0.5,1.0,1.5@train'
        for loss in ('cl', 'positive')
        for cam, named in (('published', ''), ('positive', '@cam=positive'))
    }
    first = [[of['cl', cam], of['positive', cam]] for cam in ('published', 'positive')]
    second = [[of[loss, 'published'], of[loss, 'positive']] for loss in ('cl', 'positive')]
    assert sorted(pairs[: len(pairs) // 2]) == sorted(first + second)


@pytest.mark.parametrize(
    'line, named',
    [
        ('--losses cl_re', '--losses'),
        ("--more='--max_epoh 3'", '--max_epoh'),
        ("--more='--dataset other.json'", 'argument --more: --dataset is chosen by the recipe'),
        ("--more='--data_dir=x'", 'argument --more: --data_dir=x is chosen by the recipe'),
        ("--more '--tag \"x'", "argument --more: '--tag \"x': No closing quotation"),
        ('--edges published --cam mean', '--edges published: also needs published in --cam'),
        ('--edges truth', '--edges truth: also needs truth in --cam'),
    ],
)
def test_wrong_flags_are_named(in_tmp, capsys, line, named):
    with pytest.raises(SystemExit):
        readouts.main(readouts.parse_args([*FLAGS, *shlex.split(line), '--dry_run']))
    assert named in capsys.readouterr().err.splitlines()[-1]
