"""recipes/choices.py: every result that its tables need is planned, from commands that the stages accept."""

import importlib
import shutil
from pathlib import Path

import pytest

from core import UserError
from core.data.dataset import open_dataset
from recipes import choices
from support import folder_of
from support.results import write_result
from util.store import formats

SEEDS = [3, 4, 5]


def planned() -> list[list[str]]:
    """Return all commands in the order in which they run."""
    chains = [command for seed in SEEDS for command in choices.plan_chain(seed)]
    variants = [choices.plan_variants(seed, SEEDS[0]).values() for seed in SEEDS]
    return chains + [command for commands in variants for run in commands for command in run]


def needed() -> set[str]:
    """Return the names of the results in the tables."""
    compared = {name.format(seed=seed) for choice in choices.list_choices() for name in choice[1:] for seed in SEEDS}
    return compared | {name for names in choices.list_spreads(SEEDS).values() for name in names}


def test_every_command_finds_what_it_reads(in_tmp):
    """Models and folders are written by an earlier command, under the names that the stages give them."""
    kinds = {kind.script: kind for kind in formats.FORMATS.values() if kind != formats.EDGE}
    models, folders, results = set(), set(), set()
    for script, *words in planned():
        args = importlib.import_module(script.removesuffix('.py')).parse_args(words)
        options = vars(args)
        read = [options[name] for name in ('experiment_name', 'cam_dir', 'label_name') if name in options]
        assert set(read) <= folders, script
        if script.startswith('train_'):
            models |= {args.tag, f'{args.tag}.best', f'{args.tag}.last'}
            assert args.weights == 'none' or Path(args.weights).stem in models
        elif script == 'evaluate.py':
            results.add(f'{args.experiment_name}@{args.domain}')
        else:
            assert {options[name] for name in ('tag', 'model_name') if name in options} <= models
            folders.add(folder_of(kinds[script], args))
    assert results == needed()


def test_the_chain_of_other_seeds_is_repeated_on_inputs_of_the_first(in_tmp):
    assert len(choices.plan_variants(4, 3)) == len(choices.plan_variants(3, 3)) + 2


def write_results(scores):
    for name in needed():
        write_result(name, scores(name), domain=name.rpartition('@')[2])


def test_tables(in_tmp, capsys):
    noise = {3: 0.5, 4: -0.5, 5: 0}

    def score(name):
        seed = int(name.partition('@seed=')[2][0])
        return 70 + 10 * seed + (2 + noise[seed] if 'bn_replicas=4' in name else 0)

    write_results(score)
    choices.print_choices(SEEDS)
    lines = {line.split('|')[1].strip(): line.split('|')[2:-1] for line in capsys.readouterr().out.splitlines()[2:]}
    assert len(lines) == len(choices.list_choices())
    found = [cell.strip() for cell in lines['1: --bn_replicas 4 instead of 1']]
    assert found == ['112.00', '110.00', '+2.00', '+0.76 to +3.24', '+2.50, +1.50, +2.00']
    choices.print_spreads(SEEDS)
    table = capsys.readouterr().out
    assert '| stage 1, CAMs ' in table
    assert '| 110.00 | 10.00 ' in table


def test_a_missing_result_is_named(in_tmp):
    with pytest.raises(UserError, match='choices@'):
        choices.print_choices(SEEDS)


def test_finished_results_are_not_scored_again(in_tmp):
    before = [command for command in planned() if command[0] == 'evaluate.py']
    assert len(before) == len(needed())
    write_results(lambda name: 50)
    assert not [command for command in planned() if command[0] == 'evaluate.py']


def test_one_scene_in_eight(demo, tmp_path):
    folder = Path(shutil.copytree(demo, tmp_path / 'set'))
    choices.write_eighth(folder)
    dataset = open_dataset(folder / 'eighth.json', folder)
    assert dataset.ids('eighth') == dataset.ids('train')[::8]
    assert dataset.ids('train_aug') == open_dataset(folder / 'dataset.json', folder).ids('train_aug')


@pytest.mark.parametrize('line', ['--seeds 1', '--seeds 2 2', '--jobs 0'])
def test_wrong_flags_are_named(line, capsys):
    with pytest.raises(SystemExit):
        choices.parse_args(line.split())
    assert line.split()[0] in capsys.readouterr().err
