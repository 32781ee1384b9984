"""Fingerprints: equal exactly when options and inputs that affect the result are."""

import json
import re
import subprocess
from contextlib import ExitStack
from importlib.metadata import version

import pytest

from core import UserError
from support.folders import CAMS, IDS, LabelMaps, fill
from util import flags
from util.flags import Flag
from util.store import AFFINITY_LABEL, CAM, EDGE, create_folder
from util.store.fingerprints import (
    Record,
    check_contents,
    check_fingerprint,
    fingerprint,
    list_changes,
    read_args,
    read_inputs,
    versions,
)
from util.training.files import RunFiles


def record_of(affects=None, **options) -> Record:
    """Return the record of a command whose options affect the result unless said otherwise; defaults are None."""
    return Record(options, {**dict.fromkeys(options, 'result'), **(affects or {})}, dict.fromkeys(options))


def test_fingerprint_contains_what_affects_the_result():
    speed = {'num_workers': 'speed'}
    one = fingerprint(record_of(speed, lr=0.1, num_workers=1), model='a')
    assert one == {'lr': 0.1, 'model': 'a'}
    same = record_of(speed, lr=0.1, num_workers=8)
    check_fingerprint('x', one, fingerprint(same, model='a'), same.defaults)
    for other, model in (
        (record_of(speed, lr=0.2, num_workers=1), 'a'),
        (record_of(speed, lr=0.1, num_workers=1), 'b'),
        (record_of(speed, lr=0.1, wd=0, num_workers=1), 'a'),
        (record_of(speed, num_workers=1), 'a'),
    ):
        with pytest.raises(UserError, match='exists with different settings'):
            check_fingerprint('x', one, fingerprint(other, model=model), other.defaults)


@pytest.mark.parametrize('affects', ['input', 'batch', 'share', 'speed'])
def test_options_that_do_not_affect_the_result_are_left_out(affects):
    record = record_of({'other': affects}, lr=0.1, other=1)
    assert fingerprint(record) == fingerprint(record.changed(other=2)) == {'lr': 0.1}


def test_options_of_one_output_are_in_its_fingerprint_alone():
    record = record_of({'beta': 'random-walk CAM'}, lr=0.1, beta=10)
    assert fingerprint(record, 'random-walk CAM') == {'lr': 0.1, 'beta': 10}
    assert fingerprint(record, 'edge map') == fingerprint(record) == {'lr': 0.1}


def test_a_changed_record_is_another_one():
    record = record_of(select='best', lr=0.1)
    assert record.changed(select='last').options == {'select': 'last', 'lr': 0.1}
    assert record.options == {'select': 'best', 'lr': 0.1}


def test_fingerprint_is_as_read_back_from_json():
    made = fingerprint(record_of(lr=0.1, use_gn=True, threshold=None), classes=('bus', 'cow'))
    assert made['classes'] == ['bus', 'cow']
    assert json.loads(json.dumps(made)) == made


def test_every_difference_is_listed():
    old, new = {'alpha': 4.0, 'lr': 0.1, 'model': 'a' * 64, 'gone': 1}, {'alpha': 1.0, 'lr': 0.1, 'model': 'b' * 64}
    with pytest.raises(UserError) as error:
        check_fingerprint('experiments/x', old, new, {})
    assert str(error.value) == (
        'experiments/x exists with different settings (alpha: 4.0, requested 1.0; gone: 1, requested None; '
        'the model changed): pass --overwrite to regenerate it, or another name'
    )


def test_long_names_are_shown_where_they_differ():
    old, new = ({'label_name': f'own@affinity@train@beta=40@exp_times=8{end}@rw@crf=1'} for end in ('', '@class'))
    shown = 'label_name: ...times=8@rw@crf=1, requested ...times=8@class@rw@crf=1'
    with pytest.raises(UserError, match=re.escape(f'({shown})')):
        check_fingerprint('x', old, new, {})


def test_versions(monkeypatch):
    found = versions()
    assert {'code', 'python', 'torch', 'torchvision', 'numpy', 'opencv-python', 'pillow'} <= found.keys()
    assert found['numpy'] == version('numpy')

    def no_git(*command, **options):
        raise FileNotFoundError('git')

    monkeypatch.setattr(subprocess, 'run', no_git)
    assert versions() == {**found, 'code': 'unknown'}


# A flag that comes later ------------------------------------------------------------------------------------------

STAGE = (
    *flags.OUTPUT_FOLDER,
    Flag('model', '--model_name', flags.folder_name, 'M', 'model'),
    Flag('model', '--tag', flags.folder_name, 'x', 'tag'),
    Flag('inference', '--scales', flags.scales, '1.0', 'scales'),
    Flag('inference', '--cam', str, 'published', 'read-out', 'input'),
    Flag('inference', '--batch_size', flags.integer(1), 4, 'images per batch', 'batch'),
)
LATER = Flag('inference', '--later', flags.real(0), 1.5, 'a flag that came later')


def command(*later: Flag, line: str = '') -> flags.Options:
    """Return the options of a command of a stage that has some flags more."""
    parser = flags.Parser('A stage.')
    parser.add_table(STAGE, later)
    return parser.parse_args(line.split())


def created(args: flags.Options, kind=CAM, **inputs):
    record, output = args.record(), args.pick(flags.OUTPUT)
    return create_folder(kind, record, LabelMaps(), IDS, **output, **(inputs or {'model': '1234'}))


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.glob('[!.]*')}


def assert_refused(args: flags.Options, difference: str, kind=CAM) -> None:
    with pytest.raises(UserError, match=f'exists with different settings [(]{difference}[)]'), created(args, kind):
        pass


def test_a_finished_output_goes_on_with_a_later_flag_at_its_default(in_tmp):
    with created(command()) as folder:
        fill(folder)
    before = contents(folder)
    for line in ('', '--later 1.5', '--num_workers 1'):
        with created(command(LATER, line=line)) as folder:
            assert folder.missing == set()
        assert contents(folder) == before
    assert_refused(command(LATER, line='--later 2'), 'later: 1.5, requested 2.0')
    assert contents(folder) == before


def test_an_unfinished_output_goes_on_and_keeps_its_fingerprint(in_tmp):
    """So what has been made from it still belongs to it."""
    with created(command()) as folder:
        fill(folder, ['a'])
    first = read_args(folder.path)
    labels = dict(fg_threshold=0.4, bg_threshold=0.1, experiment_name='x', crf_iteration=0, gt_prob=0.7)
    labels |= dict(crf_gaussian='3,3', crf_bilateral='50,5,10')

    def made_from(cams):
        return create_folder(AFFINITY_LABEL, record_of(**labels), LabelMaps(), ['a'], cams=cams)

    with made_from(folder) as outputs:
        outputs.write_label('a', CAMS[0].astype('uint8'))
    before = contents(outputs)

    with created(command(LATER)) as folder:
        assert folder.missing == {'b'}
        fill(folder)
    record = read_args(folder.path)
    assert record['fingerprint'] == first['fingerprint']
    assert 'later' not in record['fingerprint']
    assert record['options'] == {**first['options'], 'later': 1.5}
    assert [entry['options'] for entry in record['history']] == [first['options']]
    assert_refused(command(LATER, line='--later 2'), 'later: 1.5, requested 2.0')
    with made_from(folder) as outputs:
        assert outputs.missing == set()
    assert contents(outputs) == before


def test_the_value_of_a_later_flag_is_kept(in_tmp):
    with created(command(LATER, line='--later 2')) as folder:
        fill(folder)
    assert read_args(folder.path)['fingerprint']['later'] == 2
    with created(command(LATER, line='--later 2.0')) as folder:
        assert folder.missing == set()
    assert_refused(command(LATER), 'later: 2.0, requested 1.5')
    assert_refused(command(LATER._replace(default=3.0)), 'later: 2.0, requested 3.0')
    assert_refused(command(), 'later: 2.0, requested None')


@pytest.mark.parametrize('affects', ['speed', 'input', 'batch', 'share', 'edge map'])
def test_a_later_flag_that_does_not_affect_an_output_is_never_refused(in_tmp, affects):
    """The last one affects another output of the stage alone."""
    later = LATER._replace(affects=affects)
    with created(command()) as folder:
        fill(folder)
    before = contents(folder)
    for line in ('', '--later 2'):
        with created(command(later, line=line)) as folder:
            assert folder.missing == set()
        assert contents(folder) == before


def test_a_later_flag_of_one_output_is_of_this_one_alone(in_tmp):
    later = LATER._replace(affects=EDGE.title)
    with created(command()) as cams, created(command(), EDGE) as edges:
        fill(cams)
        for image_id in IDS:
            edges.write_edge(image_id, CAMS[0])
    before = contents(cams), contents(edges)
    with created(command(later)) as cams, created(command(later), EDGE) as edges:
        assert cams.missing == edges.missing == set()
    changed = command(later, line='--later 2')
    with created(changed) as cams:
        assert cams.missing == set()
    assert_refused(changed, 'later: 1.5, requested 2.0', EDGE)
    assert (contents(cams), contents(edges)) == before


def test_shares_of_a_command_with_a_later_flag_complete_an_output(in_tmp):
    with created(command()) as folder:
        fill(folder, ['a'])
    for share, missing in (('1/2', set()), ('2/2', {'b'})):
        with created(command(LATER, line=f'--shard {share}')) as folder:
            assert folder.missing == missing
            fill(folder)
    assert 'later' not in read_args(folder.path)['fingerprint']


def test_a_run_goes_on_with_a_later_flag_at_its_default(in_tmp):
    def claim(args: flags.Options, save: bool = False):
        record = args.record()
        with ExitStack() as stack:
            run = RunFiles('x', 'Classifier', record, LabelMaps(), fingerprint(record, weights_file='none'), {})
            state = run.claim(stack, overwrite=False, iterations=6)
            if save:
                run.save({'iteration': 3, 'unscored': False})
        return state

    assert claim(command(), save=True) is None
    before = (in_tmp / 'experiments/checkpoints/x.pth').read_bytes()
    for args in (command(), command(LATER), command(LATER._replace(affects='speed'), line='--later 2')):
        assert claim(args)['iteration'] == 3
    with pytest.raises(UserError, match='later: 1.5, requested 2.0'):
        claim(command(LATER, line='--later 2'))
    assert (in_tmp / 'experiments/checkpoints/x.pth').read_bytes() == before
    claim(command(LATER), save=True)
    assert claim(command(LATER))['iteration'] == 3
    with pytest.raises(UserError, match='later: 1.5, requested 2.0'):
        claim(command(LATER, line='--later 2'))


# Contents by image --------------------------------------------------------------------------------------------------


def test_changes_are_named():
    old = {'images': {'a': '1', 'b': '2', 'c': ''}, 'labels': {'a': '1'}}
    new = {'images': {'a': '1', 'b': '3', 'c': '4', 'd': '5'}, 'labels': {'a': '2', 'b': '1'}, 'masks': {'a': '1'}}
    name = '{}.jpg'.format
    assert list_changes(old, new, name) == ['1 image changed (b.jpg)', 'labels of 1 image changed (a.jpg)']
    many = {i: '0' for i in 'abcd'}, {i: '1' for i in 'abcd'}
    assert list_changes({'masks': many[0]}, {'masks': many[1]}, name) == [
        'masks of 4 images changed (a.jpg, b.jpg, c.jpg, ...)'
    ]
    check_contents('x', new, new, name)
    check_contents('x', {}, new, name)  # what is not known has not changed
    for before, now, part in ({'a': '1'}, {'a': '1', 'b': '2'}, 'added'), ({'a': '1', 'b': '2'}, {'a': '1'}, 'removed'):
        with pytest.raises(UserError, match=rf'^x: masks of 1 image {part} \(b\): pass --overwrite'):
            check_contents('x', {'masks': before}, {'masks': now}, name)
    with pytest.raises(UserError, match=r'^x: 1 image changed \(b.jpg\); labels .*: pass --overwrite to regenerate it'):
        check_contents('x', old, new, name)


@pytest.mark.parametrize('content', [None, '', '{', '[]', '3'])
def test_records_that_cannot_be_read_say_nothing(in_tmp, content):
    for name in ('args.json', 'inputs.json') if content is not None else ():
        (in_tmp / name).write_text(content)
    assert read_args(in_tmp) == read_inputs(in_tmp) == {}


def test_changed_inputs_are_named_in_words():
    old, new = {'model': 'a' * 64, 'beta': 1, 'maps': 'b' * 64}, {'model': 'c' * 64, 'beta': 2, 'maps': 'd' * 64}
    expected = 'beta: 1, requested 2; the folder of --experiment_name changed; the model changed'
    with pytest.raises(UserError, match=f'x exists with different settings [(]{expected}[)]: pass --overwrite'):
        check_fingerprint('x', old, new, {})
