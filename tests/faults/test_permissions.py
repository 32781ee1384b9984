"""Files and folders that may not be read are said to be so: neither missing, nor damaged, nor empty."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core import UserError
from support.results import write_result
from tools.reporting import find
from tools.reporting.entries import find_entries
from util.store.arrays import read_arrays, write_npz
from util.store.fingerprints import read_json


@pytest.fixture
def close(in_tmp, monkeypatch) -> Callable[[Path], str]:
    """Return a function that closes a path to everybody, root too, and returns the message about it."""

    def close(path: Path) -> str:
        def refusing(function):
            def replacement(opened, *args, **kwargs):
                if os.path.abspath(opened) == os.path.abspath(path):
                    raise PermissionError(13, 'Permission denied', str(path))
                return function(opened, *args, **kwargs)

            return replacement

        monkeypatch.setattr(io, 'open', refusing(io.open))
        monkeypatch.setattr(os, 'listdir', refusing(os.listdir))
        return f'{path}: cannot be read (Permission denied)'

    return close


def fault_of(function, *args) -> str:
    with pytest.raises(UserError) as error:
        function(*args)
    return str(error.value)


def test_folder_of_results(close):
    write_result('a@train', 50)
    said = close(find.FOLDER)
    assert fault_of(find.find, 'a') == said
    assert fault_of(find.list_paths) == said
    assert fault_of(find_entries, []) == said
    assert fault_of(find_entries, ['a*']) == said


def test_result(close, capsys):
    write_result('a@train', 50)
    write_result('b@train', 50)
    said = close(find.FOLDER / 'a@train.json')
    assert fault_of(find.find, 'a') == said
    assert [result['name'] for result in find.find('*', skip_damaged=True)] == ['b@train']
    assert capsys.readouterr().err == f'warning: {said}\n'


def test_arrays_and_records(close):
    write_result('a@train', 50)
    record, maps = find.FOLDER / 'a@train.json', find.FOLDER / 'a@train.npz'
    write_npz(maps, ids=np.arange(2))
    assert close(maps) == fault_of(read_arrays, maps, 'ids')
    assert close(record) == fault_of(read_json, record)
