"""Shares of a list, by --shard and under torchrun: the bytes of one process, who may write at once, killed shares."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY, run_stage, subprocess_environment
from test_artifacts import ARGS, CAMS, FOLDER, HR_CAMS, KEYS, LabelMaps, options
from test_files import held, refusal
from test_pipeline import CAMS as CAM_FOLDER
from test_pipeline import commands, finished  # noqa: F401
from test_resume import FOLDERS, contents, copy_without, refused, remove_output

from core import UserError
from util import shards
from util.artifacts import CAM, Folder, create_folder, read_args

FORK = multiprocessing.get_context('fork')

# Division -----------------------------------------------------------------------------------------------------------


def as_process(monkeypatch, rank: int, count: int) -> None:
    for name, value in {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': count}.items():
        monkeypatch.setenv(name, str(value))


def batches_of_two(ids, batch_size):
    assert batch_size == 2
    return [ids[i : i + 2] for i in range(0, len(ids), 2)]


@pytest.mark.parametrize('network', [False, True])
def test_shares_are_disjoint_and_complete(monkeypatch, network):
    """Also those of processes of a job array; batches stay together, in the order of the list."""
    ids = list('abcdefghi')
    dataset = SimpleNamespace(batches=batches_of_two)
    found = []
    for shard in ('1/2', '2/2'):
        for rank in range(3):
            as_process(monkeypatch, rank, 3)
            args = options(shard=shard, **({'batch_size': 2} if network else {}))
            found.append(''.join(shards.divide(args, dataset, ids).ids))
    assert found == (['ab', 'cd', 'ef', 'gh', 'i', ''] if network else ['ag', 'bh', 'ci', 'd', 'e', 'f'])


def test_one_process_has_all(monkeypatch):
    share = shards.divide(options(shard=None, batch_size=2), None, ['b', 'a'])
    assert (share.ids, share.label) == (['b', 'a'], '')
    as_process(monkeypatch, 0, 1)
    assert shards.divide(options(shard='1/1', batch_size=2), None, ['b', 'a']).ids == ['b', 'a']


# Who may write at once ----------------------------------------------------------------------------------------------


class Batched(LabelMaps):
    def batches(self, ids, batch_size):
        return [[image_id] for image_id in ids]


def created(shard=None, inputs=None, ids=('a', 'b', 'c'), **changes):
    args = options(**{**ARGS, 'shard': shard, **changes})
    return create_folder(CAM, args, Batched(), list(ids), **(inputs or {'model': '1234'}))


def refused_line(**options) -> str:
    with pytest.raises(UserError) as error, created(**options):
        pass
    return str(error.value)


def line(what) -> str:
    return refusal(what, SimpleNamespace(pid=os.getpid()))


def fill(folder) -> None:
    for image_id in folder.missing:
        folder.write_maps(image_id, KEYS, CAMS, HR_CAMS)


def test_shards_write_side_by_side(in_tmp, capsys):
    with created('1/2') as first, created('2/2') as second:
        assert (first.missing, second.missing) == ({'a', 'c'}, {'b'})
        fill(first)
        fill(second)
    out = capsys.readouterr().out.splitlines()
    assert out == [f'shard 2/2: 1 CAMs in {FOLDER}, 1 of them new', f'shard 1/2: 2 CAMs in {FOLDER}, 2 of them new']
    assert {path.name for path in FOLDER.glob('.*')} == {'.records.lock'}
    with created() as folder:
        assert folder.missing == set()
    assert {path.name for path in FOLDER.glob('.*')} == {'.lock', '.records.lock'}


def test_the_same_shard_is_refused(in_tmp):
    with created('1/2'):
        assert re.fullmatch(line(f'{FOLDER} (shard 1/2)'), refused_line(shard='1/2'))
    with created('1/2'):
        pass


@pytest.mark.parametrize(
    'changes',
    [
        {'shard': '2/3'},
        {'shard': '2/2', 'alpha': 1.0},
        {'shard': '2/2', 'inputs': {'model': '5678'}},
        {'shard': '2/2', 'ids': ('a', 'b')},
        {},
        {'overwrite': True},
    ],
)
def test_another_command_is_refused_beside_a_shard(in_tmp, changes):
    with created('1/2'):
        assert re.fullmatch(line(f'{FOLDER} (shard 1/2 of another command)'), refused_line(**changes))
    with created(**changes):
        pass


def test_a_shard_is_refused_beside_a_command_for_all(in_tmp):
    with created():
        assert re.fullmatch(line(FOLDER), refused_line(shard='1/2'))
    with created('1/2') as folder:
        assert len(folder.missing) == 2


def test_locks_of_killed_shards_are_removed(in_tmp):
    """And their leftovers, if nobody else writes; both may be those of a command with another number of shards."""
    with created('1/2'):
        (lock,) = FOLDER.glob('.*.1of2.lock')
    stale = lock.with_name(lock.name.replace('1of2', '3of4'))
    leftover = FOLDER / '.0123456789abcdef.12.tmp'
    for more in ('2/2', None):
        for path in (stale, stale.with_suffix('.json'), leftover):
            path.write_text('')
        with created('1/2') if more else created():
            with created(more) if more else created('1/2', tag='y'):
                assert not stale.exists() and not stale.with_suffix('.json').exists()
                assert not leftover.exists()
    with held(lock.absolute()) as process:
        leftover.write_text('')
        assert re.fullmatch(refusal(f'{FOLDER} (shard 1/2)', process), refused_line(shard='1/2'))
        with created('2/2'):
            assert leftover.exists()


def test_records_are_those_of_one_process(in_tmp, monkeypatch):
    """Whichever shard comes first, and whatever has been there."""
    clock = iter(range(1000))
    monkeypatch.setattr('time.monotonic', lambda: float(next(clock)))
    for path in ('a', 'b', 'c'):
        Path(f'{path}.jpg').write_text(path)
    with created() as folder:
        fill(folder)
    expected = {name: (FOLDER / name).read_bytes() for name in ('args.json', 'inputs.json')}
    seconds = read_args(FOLDER)['seconds']
    for name in ('a.npz', 'b.npz', 'c.npz', *expected):
        (FOLDER / name).unlink()
    for shard in ('3/3', '1/3', '2/3'):
        with created(shard) as folder:
            fill(folder)
    record = read_args(FOLDER)
    assert record.pop('seconds') > seconds  # those of all shards
    whole = json.loads(expected['args.json'])
    assert record == {name: value for name, value in whole.items() if name != 'seconds'}
    assert (FOLDER / 'inputs.json').read_bytes() == expected['inputs.json']


# Flags --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('value', ['0/0', '0/2', '3/2', 'x', '1', '1/', '/2', '-1/2', '1/2/3', '1.0/2', ''])
def test_wrong_shards_are_refused(demo, capsys, value):
    script, words = commands(demo)['pseudo']
    with pytest.raises(SystemExit) as ended:
        script.parse_args([*words, f'--shard={value}'])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.endswith(f"argument --shard: '{value}' is not i/n with i from 1 to n, such as 1/8\n")
    assert text.count('\n') == 1


@pytest.mark.parametrize('shard, count', [('1/2', 1), ('1/1', 2)])
def test_shares_cannot_overwrite(demo, monkeypatch, capsys, shard, count):
    as_process(monkeypatch, 0, count)
    script, words = commands(demo)['pseudo']
    with pytest.raises(SystemExit):
        script.parse_args([*words, '--overwrite', '--shard', shard])
    assert '--overwrite: with --shard or torchrun it would remove files of other shares' in capsys.readouterr().err
    assert script.parse_args([*words, '--shard', shard]).shard == shard


# Stages -------------------------------------------------------------------------------------------------------------


def outputs() -> dict[str, bytes]:
    return {name: content for name, content in contents(Path()).items() if not name.endswith('.lock')}


@pytest.fixture
def without(finished, tmp_path, monkeypatch):  # noqa: F811
    """A function that goes to a copy of all outputs but those of a stage, and returns what the stage has to make."""

    def copy(name):
        monkeypatch.chdir(finished)
        expected = outputs()
        copy_without(finished, tmp_path, name)
        monkeypatch.chdir(tmp_path)
        return expected

    return copy


def make_share(data, name: str, shard: str | None = None) -> None:
    script, words = commands(data)[name]
    run_stage(script, [*words, '--shard', shard] if shard else words)


@pytest.mark.parametrize('name', FOLDERS)
@pytest.mark.parametrize('number, count', [(2, 1), (3, 1), (1, 2), (2, 2)])
def test_shares_make_the_bytes_of_one_process(demo, without, monkeypatch, name, number, count):
    expected = without(name)
    for shard in range(number, 0, -1):
        for rank in range(count):
            if count > 1:
                as_process(monkeypatch, rank, count)
            make_share(demo, name, f'{shard}/{number}')
    assert outputs() == expected


def test_shares_at_the_same_time(demo, without):
    expected = without('pseudo')
    shards = [FORK.Process(target=make_share, args=(demo, 'pseudo', f'{i}/3')) for i in (1, 2, 3)]
    for process in shards:
        process.start()
    for process in shards:
        process.join()
    assert [process.exitcode for process in shards] == [0, 0, 0]
    assert outputs() == expected


def test_more_shards_than_images(demo, without):
    """The list has 4 images; the others have nothing to do."""
    expected = without('predictions')
    for i in range(1, 7):
        make_share(demo, 'predictions', f'{i}/6')
    assert outputs() == expected


def test_a_killed_share_is_completed(demo, without, monkeypatch):
    expected = without('cams')
    write, written = Folder.write_maps, []

    def fail_at_the_third(folder, image_id, *maps):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(image_id)
        write(folder, image_id, *maps)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, 'write_maps', fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            make_share(demo, 'cams', '2/2')
    for shard in ('1/2', '2/2'):
        make_share(demo, 'cams', shard)
    assert outputs() == expected


def test_later_stages_notice_missing_shards(demo, without, capsys):
    """Their shards too."""
    without('cams')
    remove_output(Path(), 'affinity_labels')
    make_share(demo, 'cams', '1/3')
    for more in ((), ('--shard', '1/3')):
        message = refused(demo, 'affinity_labels', capsys, *more)
        assert re.search(r'npz not found \(8 of 12 are missing\); run inference_classification.py first$', message)


# torchrun -----------------------------------------------------------------------------------------------------------


def torchrun(data, name: str, *more: str) -> subprocess.Popen:
    script, words = commands(data)[name]
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [f'{REPOSITORY}/{script.__name__}.py', *words, *more]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, env=subprocess_environment(), **pipes)


def test_torchrun(demo, without):
    """With workers; only the first process prints."""
    expected = without('cams')
    out, err = torchrun(demo, 'cams', '--num_workers', '1').communicate()
    assert out == f'shard 1/2: 6 CAMs in experiments/predictions/{CAM_FOLDER}, 6 of them new\n', err
    assert err.count('batches of CAMs: ') == err.count('/5, ') == 5  # of 9
    assert outputs().keys() == expected.keys()
    images = [name for name in expected if name.endswith('.npz')]
    assert {name: outputs()[name] for name in images} == {name: expected[name] for name in images}


def test_processes_end_when_another_is_killed(demo, without):
    """With one line. The same command resumes."""
    without('cams')
    scales = ','.join(['4.0'] * 8)  # long enough for both to work at once
    longer = ('--scales', scales)
    folder = Path(f'experiments/predictions/cls@train@scale={scales}')
    run, until = torchrun(demo, 'cams', *longer), time.monotonic() + 120
    while len(holders := sorted(folder.glob('.*of2.json'))) < 2:  # both have started to work
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.01)
    os.kill(json.loads(holders[1].read_text())['pid'], signal.SIGKILL)
    begun = time.monotonic()
    out, err = run.communicate()
    assert (run.returncode, out) == (1, '')
    assert time.monotonic() - begun < 60
    assert err.count('inference_classification.py: stopped by SIGTERM, as torchrun stops all processes when one') == 1
    assert torchrun(demo, 'cams', *longer).wait() == 0
    assert not [*folder.glob('*.tmp')]
    resumed = {path.name: path.read_bytes() for path in folder.glob('*.npz')}
    script, words = commands(demo)['cams']
    run_stage(script, [*words, *longer, '--overwrite'])
    assert {path.name: path.read_bytes() for path in folder.glob('*.npz')} == resumed
