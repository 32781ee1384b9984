"""Locks: one writer at a time, named if it is another, gone with its process."""

import json
import os
import re
import signal
import threading
import time

import pytest

from core import UserError
from support.programs import held, refusal
from util.store import locks
from util.store.locks import is_held, locked


def test_lock_of_another_process_is_refused_naming_it(tmp_path):
    lock = tmp_path / 'new' / '.lock'
    with held(lock) as process:
        begun = time.monotonic()
        with pytest.raises(UserError) as error, locked(lock, 'the folder x'):
            pass
        assert re.fullmatch(refusal('the folder x', process), str(error.value))
        assert time.monotonic() - begun < locks.LOCK_PATIENCE / 2
        assert set(json.loads((tmp_path / 'new' / '.lock.json').read_text())) == {'host', 'pid', 'since'}


@pytest.mark.parametrize('workers', ['', 'workers', '1.5'])
def test_lock_is_free_after_its_holder_was_killed(tmp_path, workers):
    """Also while its forked workers are still alive and have the lock's file open."""
    lock = tmp_path / '.lock'
    with held(lock, workers) as process:
        process.kill()
        process.wait()
        begun = time.monotonic()
        with locked(lock, 'it'):
            assert json.loads((tmp_path / '.lock.json').read_text())['pid'] == os.getpid()
        assert time.monotonic() - begun > (1 if workers == '1.5' else 0)
    assert not (tmp_path / '.lock.json').exists()


def test_lock_whose_workers_stay_is_refused_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, 'LOCK_PATIENCE', 0.5)
    with held(tmp_path / '.lock', '2') as process:
        process.kill()
        process.wait()
        with pytest.raises(UserError, match=refusal('it', process)), locked(tmp_path / '.lock', 'it'):
            pass
    monkeypatch.undo()
    with locked(tmp_path / '.lock', 'it'):
        pass


@pytest.mark.parametrize('content', ['', '{', '[]', '{"pid": 1}', None])
def test_unknown_holder_is_refused_too(tmp_path, monkeypatch, content):
    monkeypatch.setattr(locks, 'LOCK_PATIENCE', 0)
    with held(tmp_path / '.lock'):
        holder = tmp_path / '.lock.json'
        holder.unlink() if content is None else holder.write_text(content)
        with pytest.raises(UserError, match='^it is being written by another process: wait'):
            with locked(tmp_path / '.lock', 'it'):
                pass


def test_holder_on_another_host_is_believed(tmp_path):
    with held(tmp_path / '.lock'):
        holder = {'host': 'elsewhere', 'pid': 2**22 + 1, 'since': 'yesterday'}
        (tmp_path / '.lock.json').write_text(json.dumps(holder))
        begun = time.monotonic()
        with pytest.raises(UserError, match=f'process {2**22 + 1} on elsewhere since yesterday'):
            with locked(tmp_path / '.lock', 'it'):
                pass
        assert time.monotonic() - begun < locks.LOCK_PATIENCE / 2


def test_lock_is_released_after_an_error_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / '.lock', 'it'):
            raise ZeroDivisionError
        assert not (tmp_path / '.lock.json').exists()


def test_a_patient_process_waits_for_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, 'LOCK_PATIENCE', 0)
    lock = tmp_path / '.lock'
    with held(lock) as process:
        assert is_held(lock)
        with pytest.raises(UserError), locked(lock, 'it', patience=0.2):
            pass
        threading.Timer(0.5, process.kill).start()
        with locked(lock, 'it', patience=60):
            assert json.loads((tmp_path / '.lock.json').read_text())['pid'] == os.getpid()
    assert not is_held(lock) and not is_held(tmp_path / 'missing.lock')
    assert not (tmp_path / 'missing.lock').exists()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_a_lock_says_so_and_hears_signals(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(locks, 'SILENCE', 0.2)
    with held(tmp_path / '.lock') as process:
        process.send_signal(signal.SIGSTOP)
        threading.Timer(0.6, os.kill, (os.getpid(), number)).start()
        begun = time.monotonic()
        with pytest.raises(SystemExit) as ended, locked(tmp_path / '.lock', 'it', patience=60):
            pass
        assert time.monotonic() - begun < 10
        assert ended.value.code == 128 + number
        line = rf'waiting: it is being written by process {process.pid} on \S+ since \S+ \S+\n'
        assert re.fullmatch(line, capsys.readouterr().err)


def test_a_process_that_ends_by_a_signal_does_not_wait_for_a_lock(tmp_path):
    with held(tmp_path / '.lock'):
        begun = time.monotonic()
        with pytest.raises(SystemExit):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            finally:
                with locked(tmp_path / '.lock', 'it', patience=60):
                    pass
        assert time.monotonic() - begun < 10


def test_patience_is_for_each_holder(tmp_path, monkeypatch):
    """Hundreds of shards that take turns are not mistaken for one that does not answer."""
    monkeypatch.setattr(locks, 'LOCK_PATIENCE', 0)
    with held(tmp_path / '.lock') as process:

        def pass_on():
            for second in range(6):
                holder = {'host': 'elsewhere', 'pid': 1, 'since': str(second)}
                (tmp_path / '.lock.json').write_text(json.dumps(holder))
                time.sleep(0.25)
            process.kill()

        threading.Thread(target=pass_on).start()
        with locked(tmp_path / '.lock', 'it', patience=0.8):
            pass


def test_locks_of_different_names_do_not_meet(tmp_path):
    with locked(tmp_path / '.a.lock', 'a'), locked(tmp_path / '.a.b.lock', 'b'):
        assert {path.name for path in tmp_path.glob('.*.json')} == {'.a.json', '.a.b.json'}
