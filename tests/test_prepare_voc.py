"""tools/prepare_voc.py names what a root lacks, and unpacks an archive."""

import shutil
import tarfile

import pytest
from conftest import fault_of, run_stage

from tools import prepare_voc


@pytest.fixture
def root(demo, tmp_path):
    return shutil.copytree(demo, tmp_path / 'VOCdevkit' / 'VOC2012')


def check(root) -> list[str]:
    return ['--dataset', str(root / 'dataset.json'), '--check', str(root)]


def test_a_whole_root(root, capsys):
    run_stage(prepare_voc, check(root))
    assert 'is whole' in capsys.readouterr().out


@pytest.mark.parametrize(
    'folder, ending', [('JPEGImages', 'jpg'), ('Annotations', 'xml'), ('SegmentationClass', 'png')]
)
@pytest.mark.parametrize('damage', ['missing', 'damaged'])
def test_what_is_missing_or_damaged_is_named(root, capsys, folder, ending, damage):
    image_id = (root / 'ImageSets' / 'Segmentation' / 'val.txt').read_text().split()[0]
    path = root / folder / f'{image_id}.{ending}'
    path.unlink() if damage == 'missing' else path.write_bytes(b'damaged')
    with pytest.raises(prepare_voc.UserError, match='not whole: 1 fault'):
        run_stage(prepare_voc, check(root))
    assert str(path) in capsys.readouterr().out
    if damage == 'damaged':
        run_stage(prepare_voc, [*check(root), '--quick'])


def test_an_archive_is_unpacked_and_checked(root, tmp_path, capsys):
    with tarfile.open(tmp_path / 'voc.tar', 'w') as archive:
        archive.add(root, 'VOCdevkit/VOC2012')
    line = ['--dataset', str(root / 'dataset.json'), '--tar', str(tmp_path / 'voc.tar'), '--out', str(tmp_path / 'new')]
    run_stage(prepare_voc, line)
    assert 'is whole' in capsys.readouterr().out
    assert 'there already' in fault_of(prepare_voc, line, capsys)


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / 'text.tar').write_text('no archive')
    for line in (
        ['--check', str(tmp_path / 'nowhere')],
        ['--out', str(tmp_path / 'new'), '--tar', str(tmp_path / 'nowhere.tar')],
        ['--out', str(tmp_path / 'new'), '--tar', str(tmp_path / 'text.tar')],
    ):
        assert line[-1] in fault_of(prepare_voc, line, capsys)
    for line in ([], ['--tar', 'x'], ['--out', 'a', '--check', 'b']):
        with pytest.raises(SystemExit):
            prepare_voc.parse_args(line)
