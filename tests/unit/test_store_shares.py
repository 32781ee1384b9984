"""Shares of a list: who gets what, who may write at once, and what they record."""

import json
import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import UserError
from support.chain import as_process
from support.folders import FOLDER, fill
from support.folders import created as create
from support.programs import held, refusal
from util.store import shares
from util.store.fingerprints import read_args


def batches_of_two(ids, batch_size):
    assert batch_size == 2
    return [ids[i : i + 2] for i in range(0, len(ids), 2)]


@pytest.mark.parametrize('network', [False, True])
def test_shares_are_disjoint_and_complete(monkeypatch, network):
    """Also with processes of a job array; batches stay together, in the order of the list."""
    ids = list('abcdefghi')
    dataset = SimpleNamespace(batches=batches_of_two)
    found = []
    for shard in ('1/2', '2/2'):
        for rank in range(3):
            as_process(monkeypatch, rank, 3)
            found.append(''.join(shares.divide(dataset, ids, shard, 2 if network else None).ids))
    assert found == (['ab', 'cd', 'ef', 'gh', 'i', ''] if network else ['ag', 'bh', 'ci', 'd', 'e', 'f'])


def test_one_process_has_all(monkeypatch):
    share = shares.divide(None, ['b', 'a'], batch_size=2)
    assert (share.ids, share.label) == (['b', 'a'], '')
    as_process(monkeypatch, 0, 1)
    assert shares.divide(None, ['b', 'a'], '1/1', 2).ids == ['b', 'a']


created = partial(create, ids=('a', 'b', 'c'))


def refused_line(**options) -> str:
    with pytest.raises(UserError) as error, created(**options):
        pass
    return str(error.value)


def line(what) -> str:
    return refusal(what, SimpleNamespace(pid=os.getpid()))


def test_shards_write_side_by_side(in_tmp, capsys):
    with created(shard='1/2') as first, created(shard='2/2') as second:
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
    with created(shard='1/2'):
        assert re.fullmatch(line(f'{FOLDER} (shard 1/2)'), refused_line(shard='1/2'))
    with created(shard='1/2'):
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
    with created(shard='1/2'):
        assert re.fullmatch(line(f'{FOLDER} (shard 1/2 of another command)'), refused_line(**changes))
    with created(**changes):
        pass


def test_a_shard_is_refused_beside_a_command_for_all(in_tmp):
    with created():
        assert re.fullmatch(line(FOLDER), refused_line(shard='1/2'))
    with created(shard='1/2') as folder:
        assert len(folder.missing) == 2


def test_locks_of_killed_shards_are_removed(in_tmp):
    """And their leftovers, if nobody else writes; both may come from a command with another number of shards."""
    with created(shard='1/2'):
        (lock,) = FOLDER.glob('.*.1of2.lock')
    stale = lock.with_name(lock.name.replace('1of2', '3of4'))
    leftover = FOLDER / '.0123456789abcdef.12.tmp'
    for more in ('2/2', None):
        for path in (stale, stale.with_suffix('.json'), leftover):
            path.write_text('')
        with created(shard='1/2') if more else created():
            with created(shard=more) if more else created(shard='1/2', tag='y'):
                assert not stale.exists() and not stale.with_suffix('.json').exists()
                assert not leftover.exists()
    with held(lock.absolute()) as process:
        leftover.write_text('')
        assert re.fullmatch(refusal(f'{FOLDER} (shard 1/2)', process), refused_line(shard='1/2'))
        with created(shard='2/2'):
            assert leftover.exists()


def test_records_are_those_of_one_process(in_tmp, monkeypatch):
    """Whichever shard comes first, and whatever has been there."""
    clock = iter(range(1000))
    monkeypatch.setattr('time.monotonic', lambda: float(next(clock)))
    for path in ('a', 'b', 'c'):
        Path(f'{path}.jpg').write_text(path)
    with created() as folder:
        fill(folder)
    expected = {name: (FOLDER / name).read_bytes() for name in ('args.json', 'inputs.json', 'files.json')}
    seconds = read_args(FOLDER)['seconds']
    for name in ('a.npz', 'b.npz', 'c.npz', *expected):
        (FOLDER / name).unlink()
    for shard in ('3/3', '1/3', '2/3'):
        with created(shard=shard) as folder:
            fill(folder)
    record = read_args(FOLDER)
    assert record.pop('seconds') > seconds  # the seconds of all shards
    whole = json.loads(expected['args.json'])
    assert record == {name: value for name, value in whole.items() if name != 'seconds'}
    for name in ('inputs.json', 'files.json'):
        assert (FOLDER / name).read_bytes() == expected[name]
