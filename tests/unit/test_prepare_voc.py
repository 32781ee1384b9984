"""tools/prepare_voc.py: verifying a folder, naming what is missing or damaged, unpacking an archive."""

import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from core import UserError
from support import fault_of, run_stage
from tools import prepare_voc


@pytest.fixture
def root(demo, tmp_path):
    return shutil.copytree(demo, tmp_path / 'VOCdevkit' / 'VOC2012')


def check(root) -> list[str]:
    return ['--dataset', str(root / 'dataset.json'), '--check', str(root)]


def test_complete_folder(root, capsys):
    run_stage(prepare_voc, check(root))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ['train', '6', 'images:', 'complete'],
        ['val', '4', 'images:', 'complete'],
        ['train_aug', '12', 'images:', 'complete'],
    ]
    assert lines[-1] == f'{root}: no errors'


@pytest.mark.parametrize(
    'folder, ending', [('JPEGImages', 'jpg'), ('Annotations', 'xml'), ('SegmentationClass', 'png')]
)
@pytest.mark.parametrize('damage', ['missing', 'damaged'])
def test_missing_or_damaged_file_is_named(root, capsys, folder, ending, damage):
    image_id = (root / 'ImageSets' / 'Segmentation' / 'val.txt').read_text().split()[0]
    path = root / folder / f'{image_id}.{ending}'
    path.unlink() if damage == 'missing' else path.write_bytes(b'damaged')
    with pytest.raises(UserError, match=f'^{root}: 1 error, listed above$'):
        run_stage(prepare_voc, check(root))
    assert str(path) in capsys.readouterr().out
    if damage == 'damaged':
        run_stage(prepare_voc, [*check(root), '--quick'])


def test_archive_is_unpacked_and_verified(root, tmp_path, capsys):
    with tarfile.open(tmp_path / 'voc.tar', 'w') as archive:
        archive.add(root, 'VOCdevkit/VOC2012')
    line = ['--dataset', str(root / 'dataset.json'), '--tar', str(tmp_path / 'voc.tar'), '--out', str(tmp_path / 'new')]
    run_stage(prepare_voc, line)
    assert ': no errors' in capsys.readouterr().out
    assert 'already exists: verify it with --check' in fault_of(prepare_voc, line, capsys)


def test_errors_are_one_line(tmp_path, capsys):
    (tmp_path / 'text.tar').write_text('not an archive')
    os.mkfifo(tmp_path / 'pipe.tar')
    for line in (
        ['--check', str(tmp_path / 'nowhere')],
        ['--out', str(tmp_path / 'new'), '--tar', str(tmp_path / 'nowhere.tar')],
        ['--out', str(tmp_path / 'new'), '--tar', str(tmp_path / 'text.tar')],
        ['--out', str(tmp_path / 'new'), '--tar', str(tmp_path / 'pipe.tar')],
        ['--out', str(tmp_path / 'new'), '--tar', str(tmp_path)],
    ):
        assert line[-1] in fault_of(prepare_voc, line, capsys)
    for line in ([], ['--tar', 'x'], ['--out', 'a', '--check', 'b']):
        with pytest.raises(SystemExit):
            prepare_voc.parse_args(line)


def test_binary_masks_are_found(root, capsys):
    for path in (root / 'SegmentationClass').iterdir():
        with Image.open(path) as mask:
            Image.fromarray(((np.array(mask) > 0) * 255).astype(np.uint8)).save(path)
    text = fault_of(prepare_voc, check(root), capsys)
    assert f'{root / "SegmentationClass"}: the 6 masks of the list contain only the values [0, 255]' in text


def test_masks_of_train_aug_are_not_needed(root, capsys):
    train = set((root / 'ImageSets/Segmentation/train.txt').read_text().split())
    for path in (root / 'SegmentationClass').glob('train_*.png'):
        if path.stem not in train:
            path.unlink()
    run_stage(prepare_voc, check(root))
    assert f'{root}: no errors' in capsys.readouterr().out


def test_archive_of_something_else(tmp_path, capsys):
    (tmp_path / 'other').mkdir()
    with tarfile.open(tmp_path / 'other.tar', 'w') as archive:
        archive.add(tmp_path / 'other', 'other')
    line = ['--out', str(tmp_path / 'new'), '--tar', str(tmp_path / 'other.tar')]
    assert 'contains no VOCdevkit/VOC2012/JPEGImages' in fault_of(prepare_voc, line, capsys)


def test_only_voc_of_an_archive_is_unpacked(root, tmp_path, capsys):
    """A wrong archive overwrites nothing beside VOC, and one that is cut off can be followed by a good one."""
    out = tmp_path / 'new'
    (out / 'repo').mkdir(parents=True)
    (out / 'repo' / 'notes').write_text('precious')
    (tmp_path / 'notes').write_text('other')
    whole, cut, other = (tmp_path / f'{name}.tar' for name in ('whole', 'cut', 'other'))
    with tarfile.open(other, 'w') as archive:
        archive.add(tmp_path / 'notes', 'repo/notes')
    with tarfile.open(whole, 'w') as archive:
        archive.add(tmp_path / 'notes', 'repo/notes')
        archive.add(root, './VOCdevkit/VOC2012')
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for tar, said in ((other, 'contains no VOCdevkit/VOC2012/JPEGImages'), (cut, 'cut.tar: cannot be unpacked')):
        assert said in fault_of(prepare_voc, ['--out', str(out), '--tar', str(tar)], capsys)
        assert [path.name for path in out.rglob('*') if path.is_file()] == ['notes']
    run_stage(prepare_voc, ['--dataset', str(root / 'dataset.json'), '--out', str(out), '--tar', str(whole)])
    assert {path.name for path in out.iterdir()} == {'repo', 'VOCdevkit'}
    assert (out / 'repo' / 'notes').read_text() == 'precious'


def test_downloaded_archive_is_unpacked(root, tmp_path, monkeypatch, capsys):
    def download(url, folder, name, md5):
        with tarfile.open(folder / name, 'w') as archive:
            archive.add(root, 'VOCdevkit/VOC2012')

    monkeypatch.setattr(prepare_voc, 'download_url', download)
    (tmp_path / 'new').mkdir()
    run_stage(prepare_voc, ['--dataset', str(root / 'dataset.json'), '--out', str(tmp_path / 'new')])
    assert ': no errors' in capsys.readouterr().out


def test_archive_cannot_write_outside_the_folder(tmp_path, capsys):
    (tmp_path / 'file').write_text('text')
    with tarfile.open(tmp_path / 'evil.tar', 'w') as archive:
        archive.add(tmp_path / 'file', 'VOCdevkit/VOC2012/../../escaped')
    line = ['--out', str(tmp_path / 'new'), '--tar', str(tmp_path / 'evil.tar')]
    assert 'evil.tar: cannot be unpacked' in fault_of(prepare_voc, line, capsys)
    assert not (tmp_path / 'escaped').exists()


def test_download_without_network(tmp_path, monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr(prepare_voc, 'download_url', offline)
    text = fault_of(prepare_voc, ['--out', str(tmp_path / 'new')], capsys)
    assert 'VOC 2012 cannot be downloaded (no network): download VOCtrainval_11-May-2012.tar elsewhere' in text


def test_broken_link_is_named(tmp_path, capsys):
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    line = ['--out', str(tmp_path / 'link'), '--tar', str(tmp_path / 'voc.tar')]
    assert f'{tmp_path / "link"}: is a broken link' in fault_of(prepare_voc, line, capsys)
