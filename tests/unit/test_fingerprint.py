"""Fingerprints: equal exactly when options and inputs that affect the result are."""

import hashlib
import json
import os
import subprocess
from argparse import Namespace
from importlib.metadata import version

import numpy as np
import pytest

from core import UserError
from util import fingerprint as module
from util.fingerprint import (
    check_contents,
    check_fingerprint,
    digest,
    file_hash,
    file_hashes,
    fingerprint,
    label_hashes,
    list_changes,
    list_hash,
    versions,
    weights_hash,
)


def test_fingerprint_contains_what_affects_the_result():
    one = fingerprint(Namespace(lr=0.1, num_workers=1), model='a')
    check_fingerprint('x', one, fingerprint(Namespace(lr=0.1, num_workers=8), model='a'))
    for other in (
        fingerprint(Namespace(lr=0.2, num_workers=1), model='a'),
        fingerprint(Namespace(lr=0.1, num_workers=1), model='b'),
        fingerprint(Namespace(lr=0.1, wd=0, num_workers=1), model='a'),
        fingerprint(Namespace(num_workers=1), model='a'),
    ):
        with pytest.raises(UserError, match='exists with different settings'):
            check_fingerprint('x', one, other)


@pytest.mark.parametrize('name', ['data_dir', 'dataset', 'device', 'domain', 'overwrite', 'pred_dir', 'print_ratio',
                                  'num_workers', 'repair', 'save_interval', 'weights'])  # fmt: skip
def test_options_that_do_not_affect_the_result_are_ignored(name):
    assert fingerprint(Namespace(lr=0.1, **{name: 1})) == {'lr': 0.1}


def test_augmentation_of_a_new_meaning_is_another_one():
    """Before there was randaugment_torchvision, randaugment was torchvision's."""
    names = {name: fingerprint(Namespace(augment=name))['augment'] for name in ('', 'colorjitter', 'randaugment')}
    assert names == {'': '', 'colorjitter': 'colorjitter', 'randaugment': 'randaugment_fixmatch'}
    before = fingerprint(Namespace(augment='colorjitter,randaugment_torchvision'))
    assert before == {'augment': 'colorjitter,randaugment'}
    with pytest.raises(UserError, match='augment: randaugment, requested randaugment_fixmatch'):
        check_fingerprint('x', {'augment': 'randaugment'}, fingerprint(Namespace(augment='randaugment')))


def test_option_that_came_later_is_left_out_at_the_value_of_earlier_outputs():
    added = {'gt_prob': 0.7}
    before = fingerprint(Namespace(lr=0.1))
    assert fingerprint(Namespace(lr=0.1, gt_prob=0.7), added=added) == before
    assert fingerprint(Namespace(lr=0.1, gt_prob=0.9), added=added) == {'lr': 0.1, 'gt_prob': 0.9}
    assert fingerprint(Namespace(lr=0.1, gt_prob=0.7)) == {'lr': 0.1, 'gt_prob': 0.7}


def test_ignored_options_of_a_caller():
    assert fingerprint(Namespace(lr=0.1, batch_size=4), ('batch_size',), model='a') == {'lr': 0.1, 'model': 'a'}
    assert fingerprint(Namespace(lr=0.1, batch_size=4), model='a') == {'lr': 0.1, 'batch_size': 4, 'model': 'a'}


def test_fingerprint_is_as_read_back_from_json():
    made = fingerprint(Namespace(lr=0.1, use_gn=True, threshold=None), classes=('bus', 'cow'))
    assert made['classes'] == ['bus', 'cow']
    assert json.loads(json.dumps(made)) == made


def test_every_difference_is_listed():
    old, new = {'alpha': 4.0, 'lr': 0.1, 'model': 'a' * 64, 'gone': 1}, {'alpha': 1.0, 'lr': 0.1, 'model': 'b' * 64}
    with pytest.raises(UserError) as error:
        check_fingerprint('experiments/x', old, new)
    assert str(error.value) == (
        'experiments/x exists with different settings (alpha: 4.0, requested 1.0; gone: 1, requested None; '
        f'model: {"a" * 12}..., requested {"b" * 12}...): pass --overwrite to regenerate it, or another name'
    )


def test_digest_does_not_depend_on_the_order():
    assert digest({'a': 1, 'b': 2}) == digest({'b': 2, 'a': 1})
    assert digest({'a': 1, 'b': 2}) != digest({'a': 2, 'b': 1})


def test_hashes_of_files_lists_and_weights(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / 'a').write_bytes(content)
    assert file_hash(tmp_path / 'a') == hashlib.sha256(content).hexdigest()
    assert weights_hash(str(tmp_path / 'a')) == file_hash(tmp_path / 'a')
    assert (weights_hash('imagenet'), weights_hash('none')) == ('imagenet', 'none')
    assert list_hash(['a', 'b']) != list_hash(['b', 'a'])
    assert list_hash(['a', 'b']) != list_hash(['ab'])
    for missing in (lambda: file_hash(tmp_path / 'b'), lambda: weights_hash(str(tmp_path / 'b'))):
        with pytest.raises(UserError, match=r'b: cannot be read \(No such file or directory\)'):
            missing()


def test_versions(monkeypatch):
    found = versions()
    assert {'code', 'python', 'torch', 'torchvision', 'numpy', 'opencv-python', 'pillow'} <= found.keys()
    assert found['numpy'] == version('numpy')

    def no_git(*command, **options):
        raise FileNotFoundError('git')

    monkeypatch.setattr(subprocess, 'run', no_git)
    assert versions() == {**found, 'code': 'unknown'}


# Contents by image --------------------------------------------------------------------------------------------------


def test_unchanged_files_are_read_once(in_tmp, monkeypatch):
    paths = {name: in_tmp / name for name in 'ab'}
    for name, path in paths.items():
        path.write_text(name)
    first = file_hashes({**paths, 'missing': in_tmp / 'c'})
    assert first == {name: hashlib.sha256(name.encode()).hexdigest()[:16] for name in 'ab'} | {'missing': ''}

    read = []
    monkeypatch.setattr(module, '_short_hash', lambda name: read.append(name) or 'new')
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
    module.CACHE.parent.mkdir(parents=True)
    module.CACHE.write_text(content)
    (in_tmp / 'a').write_text('a')
    assert file_hashes({'a': in_tmp / 'a'}) == {'a': hashlib.sha256(b'a').hexdigest()[:16]}


def test_hashes_of_other_shards_are_kept(in_tmp, monkeypatch):
    """Those written while this process was reading its files."""
    for name in 'ab':
        (in_tmp / name).write_text(name)

    def hash_beside_another(name, real=module._short_hash):
        monkeypatch.setattr(module, '_short_hash', real)
        file_hashes({'b': in_tmp / 'b'})
        return 'new'

    monkeypatch.setattr(module, '_short_hash', hash_beside_another)
    file_hashes({'a': in_tmp / 'a'})
    assert json.loads(module.CACHE.read_text()).keys() == {str(in_tmp / 'a'), str(in_tmp / 'b')}


def test_labels_are_the_numbers_of_their_classes():
    assert label_hashes({'a': np.array([0, 1, 1]), 'b': np.zeros(3)}) == {'a': '2 3', 'b': '0'}


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
    check_contents('x', {}, new, name)  # written by an earlier version
    for before, now, part in ({'a': '1'}, {'a': '1', 'b': '2'}, 'added'), ({'a': '1', 'b': '2'}, {'a': '1'}, 'removed'):
        with pytest.raises(UserError, match=rf'^x: masks of 1 image {part} \(b\): pass --overwrite'):
            check_contents('x', {'masks': before}, {'masks': now}, name)
    with pytest.raises(UserError, match=r'^x: 1 image changed \(b.jpg\); labels .*: pass --overwrite to regenerate it'):
        check_contents('x', old, new, name)
