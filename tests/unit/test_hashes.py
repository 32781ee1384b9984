"""Hashes of files, lists, labels and weights, and the cache of file hashes."""

import hashlib
import json
import os

import numpy as np
import pytest

from core import UserError
from util.store import hashes
from util.store.hashes import digest, file_hash, file_hashes, label_hashes, list_hash


def test_digest_does_not_depend_on_the_order():
    assert digest({'a': 1, 'b': 2}) == digest({'b': 2, 'a': 1})
    assert digest({'a': 1, 'b': 2}) != digest({'a': 2, 'b': 1})


def test_hashes_of_files_and_lists(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / 'a').write_bytes(content)
    assert file_hash(tmp_path / 'a') == hashlib.sha256(content).hexdigest()
    assert list_hash(['a', 'b']) != list_hash(['b', 'a'])
    assert list_hash(['a', 'b']) != list_hash(['ab'])
    with pytest.raises(UserError, match=r'b: cannot be read \(No such file or directory\)'):
        file_hash(tmp_path / 'b')


def test_unchanged_files_are_read_once(in_tmp, monkeypatch):
    paths = {name: in_tmp / name for name in 'ab'}
    for name, path in paths.items():
        path.write_text(name)
    first = file_hashes({**paths, 'missing': in_tmp / 'c'})
    assert first == {name: hashlib.sha256(name.encode()).hexdigest()[:16] for name in 'ab'} | {'missing': ''}

    read = []
    monkeypatch.setattr(hashes, '_short_hash', lambda name: read.append(name) or 'new')
    assert file_hashes(paths) == {name: first[name] for name in 'ab'}
    assert read == []

    # Another content of the same size and time of modification.
    status = paths['a'].stat()
    paths['a'].write_text('z')
    os.utime(paths['a'], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_hashes(paths) == {'a': 'new', 'b': first['b']}
    assert read == [str(paths['a'])]


@pytest.mark.parametrize('content', ['', '{', '[]', '{"a": 3}'])
def test_damaged_cache_is_replaced(in_tmp, content):
    hashes.CACHE.parent.mkdir(parents=True)
    hashes.CACHE.write_text(content)
    (in_tmp / 'a').write_text('a')
    assert file_hashes({'a': in_tmp / 'a'}) == {'a': hashlib.sha256(b'a').hexdigest()[:16]}


def test_hashes_of_other_shards_are_kept(in_tmp, monkeypatch):
    """Those written while this process was reading its files."""
    for name in 'ab':
        (in_tmp / name).write_text(name)

    def hash_beside_another(name, real=hashes._short_hash):
        monkeypatch.setattr(hashes, '_short_hash', real)
        file_hashes({'b': in_tmp / 'b'})
        return 'new'

    monkeypatch.setattr(hashes, '_short_hash', hash_beside_another)
    file_hashes({'a': in_tmp / 'a'})
    assert json.loads(hashes.CACHE.read_text()).keys() == {str(in_tmp / 'a'), str(in_tmp / 'b')}


def test_labels_are_the_numbers_of_their_classes():
    assert label_hashes({'a': np.array([0, 1, 1]), 'b': np.zeros(3)}) == {'a': '2 3', 'b': '0'}
