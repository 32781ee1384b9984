"""Types of flags, and the parser."""

import argparse

import pytest

from core import UserError
from support.chain import as_process, commands
from util import crf_flags, flags, tile_flags
from util.store.formats import FORMATS


@pytest.mark.parametrize(
    'kind, good, bad',
    [
        (flags.boolean, {'True': True, 'false': False, '1': True, '0': False, 'yes': True}, ['', 'maybe', '2']),
        (flags.integer(1), {'1': 1, '32': 32}, ['0', '-1', '1.5', 'x', '', 'nan']),
        (flags.integer(0, 16), {'0': 0, '16': 16}, ['17', '-1']),
        (flags.real(0), {'0': 0, '1e-4': 1e-4, '5': 5}, ['-0.1', 'nan', 'inf', 'x', '']),
        (flags.real(0, 1), {'0.40': 0.4, '1': 1}, ['1.01', '-1', 'nan']),
        (tile_flags.tile, {'64': 64, '1024': 1024}, ['0', '48', '100', '64.0', 'x', '', '16400']),
        (flags.square, {'1': 1, '4': 4, '144': 144}, ['0', '-4', '2', '3', '8', '4.0', 'x', '']),
        (flags.scales, {'0.5,1.0': '0.5,1.0', '1': '1'}, ['', '0', '-1', '0.5,', 'a', 'nan', 'inf', '0.5;1', '1e9']),
        (crf_flags.kernel(1), {'3,3': '3,3', '3.0,0': '3,0'}, ['', '3', '0,3', '3,-1', '3,3,3', '3;3', 'nan,3']),
        (
            crf_flags.kernel(2),
            {'50,5,10': '50,5,10', '8,0.5,1': '8,0.5,1'},
            ['50,5', '0,5,1', '5,0,1', 'a,b,c', '1,2,nan', '1,nan,2'],
        ),
        (
            flags.folder_name,
            {'A@b=0.5,1.0+': 'A@b=0.5,1.0+'},
            ['', 'a/b', '..', '.x', 'a\\b', '/', 'a\nb', 'a\tb', 'a|b', 'a*', ' a', 'a '],
        ),
    ],
)
def test_types_of_flags(kind, good, bad):
    for text, value in good.items():
        assert kind(text) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


def test_scales_are_kept_as_typed_and_read_as_numbers():
    assert flags.floats(flags.scales('0.50,1,2.0')) == [0.5, 1, 2]
    assert flags.scales('0.50,1,2.0') == '0.50,1,2.0'


def test_parsers_take_no_abbreviations():
    parser = flags.Parser('text')
    parser.add_argument('--threshold')
    with pytest.raises(SystemExit):
        parser.parse_args(['--thresh', '1'])


def test_errors_are_one_line_with_status_2(capsys):
    parser = flags.Parser('text')
    for report in (lambda: parser.error('wrong'), lambda: parser.parse_args(['--wrong'])):
        with pytest.raises(SystemExit) as ended:
            report()
        assert ended.value.code == 2
        assert capsys.readouterr().err.count('\n') == 1


def test_errors_of_values_name_their_flag(capsys):
    parser = flags.Parser('text')
    with pytest.raises(SystemExit) as ended, parser.checking_values():
        raise UserError('10 is too large', 'radius')
    assert ended.value.code == 2
    assert capsys.readouterr().err == f'{parser.prog}: error: --radius 10 is too large\n'
    with pytest.raises(ZeroDivisionError), parser.checking_values():
        raise ZeroDivisionError


def test_help_lists_groups_and_defaults():
    parser = flags.Parser('First line.\n\n    a command')
    parser.groups['data'].add_argument('--needed', required=True, help='a folder')
    parser.groups['data'].add_argument('--optional', help='another folder')
    parser.groups['loss'].add_argument('--alpha', default=4.0, help='a weight')
    text = parser.format_help()
    assert 'First line.\n\n    a command' in text
    assert [title for title in flags.GROUPS if f'\n{title}:\n' in text] == ['data', 'loss']  # the others are empty
    assert 'a folder (required)' in text
    assert 'a weight (default: 4.0)' in text
    assert 'None' not in text


# What flags affect --------------------------------------------------------------------------------------------------


def test_a_record_says_what_each_option_affects():
    parser = flags.Parser('text')
    parser.add_argument('names', nargs='*', affects='input')
    parser.add_table(
        (
            flags.Flag('loss', '--alpha --a', flags.real(0), 4.0, 'a weight'),
            flags.Flag('data', '--num_workers', flags.integer(0), 2, 'workers', 'speed'),
            flags.Flag('model', '--mode', ('normal', 'fix'), 'fix', 'norms', 'edge map'),
            flags.Flag('run and output', '--overwrite', None, False, 'start over', 'speed'),
        ),
        (flags.Flag('data', '--data_dir', str, flags.REQUIRED, 'folder', 'input'),),
        alpha=2.0,
    )
    parser.groups['loss'].add_argument('--beta', default=1)
    args = parser.parse_args(['--a', '3', '--overwrite', '--data_dir', 'x'])
    options = dict(names=[], alpha=3.0, num_workers=2, mode='fix', overwrite=True, data_dir='x', beta=1)
    assert vars(args) == options  # and nothing of how they were declared
    record = args.record()
    assert record.options == options
    assert record.affects == dict(
        names='input', alpha='result', num_workers='speed', mode='edge map', overwrite='speed', data_dir='input',
        beta='result',
    )  # fmt: skip
    assert record.defaults == {**options, 'names': None, 'alpha': 2.0, 'overwrite': False, 'data_dir': None}
    assert args.pick(['beta', 'alpha', 'unknown']) == {'beta': 1, 'alpha': 3.0}


def test_options_without_effect_are_named():
    parser = flags.Parser('A script.')
    parser.add_argument('--threshold', type=flags.real(0, 1), default=0.35)
    parser.parse_args(['--threshold', '0.35']).record().check_unused(['threshold'], 'there is none')
    with pytest.raises(UserError, match=r'^threshold 0.2: has no effect: there is none$'):
        parser.parse_args(['--threshold', '0.2']).record().check_unused(['threshold'], 'there is none')


def test_flags_of_the_stages_affect_what_there_is(demo):
    """A word that nothing knows would leave a flag out of every fingerprint."""
    known = {'result', *FORMATS, 'input', 'batch', 'share', 'speed'}
    for script, line in commands(demo).values():
        args = script.parse_args(line)
        declared = {action.dest: action.affects for action in args.declared}
        assert set(declared) == set(vars(args)), script.__name__
        assert set(declared.values()) <= known, script.__name__


def test_only_scripts_that_share_their_work_run_as_several_processes(monkeypatch, capsys):
    parser = flags.Parser('text')
    parser.parse_args([])
    as_process(monkeypatch, 1, 2)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert capsys.readouterr().err.startswith(f'process 1 of 2: {parser.prog}: error: cannot share its work')
    for affects in ('batch', 'share'):
        parser = flags.Parser('text')
        parser.add_argument('--flag', affects=affects)
        parser.parse_args([])


def test_a_share_does_not_overwrite_the_files_of_others(monkeypatch, capsys):
    parser = flags.Parser('text')
    parser.add_table(flags.OUTPUT_FOLDER)
    parser.parse_args(['--overwrite', '--shard', '1/1'])
    for line, rank in ((['--overwrite', '--shard', '1/2'], None), (['--overwrite'], 0)):
        if rank is not None:
            as_process(monkeypatch, rank, 2)
        with pytest.raises(SystemExit):
            parser.parse_args(line)
        assert '--overwrite: with --shard or torchrun it would remove files of other shares' in capsys.readouterr().err


def test_errors_of_the_parser_are_one_line(capsys):
    parser = flags.Parser('')
    with pytest.raises(SystemExit):
        parser.parse_args(['--a\nb\x1b[2J'])
    assert capsys.readouterr().err.endswith('error: unrecognized arguments: --a\\nb\\x1b[2J\n')
