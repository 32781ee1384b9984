"""recipes/cut_pictures.py: cutting pictures of the documentation from a report."""

from pathlib import Path

import imageio.v3 as iio
import pytest

from recipes import cut_pictures
from support import CHROMIUM, fault_of
from tools import report

needs_browser = pytest.mark.skipif(not CHROMIUM, reason='no Chromium: tools/test.sh says how to install it')


@pytest.fixture
def page(experiment, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(experiment)
    out = tmp_path / 'report.html'
    report.main(report.parse_args(['my', '--num_workers', '0', '--out', str(out)]))
    return str(out)


@needs_browser
def test_cards_and_sections(page, tmp_path, capsys):
    def cut(name, *line):
        cut_pictures.main(cut_pictures.parse_args([page, *line, '--out', str(tmp_path / name)]))
        return iio.imread(tmp_path / name)

    two = cut('two.jpg', '--ids', 'train_00001,train_00002', '--hide', 'CAM')
    assert two.shape[1] > 1000
    assert (tmp_path / 'two.jpg').read_bytes()[:3] == b'\xff\xd8\xff'
    phone = cut('phone.png', '--section', 'chain', '--width', '390', '--scheme', 'dark')
    assert phone.shape[1] <= 390
    assert phone[2, 2, :3].max() < 60
    line = [page, '--ids', 'nobody', '--out', str(tmp_path / 'x.png')]
    assert '--ids nobody: is not in the gallery' in fault_of(cut_pictures, line, capsys)
    assert not (tmp_path / 'x.png').exists()


@needs_browser
@pytest.mark.slow
def test_pictures_of_one_and_two_cards_are_as_wide(page, tmp_path):
    for ids in ('train_00001', 'train_00001,train_00002'):
        cut_pictures.main(cut_pictures.parse_args([page, '--ids', ids, '--out', str(tmp_path / f'{len(ids)}.png')]))
    widths = {iio.imread(path).shape[1] for path in tmp_path.glob('*.png')}
    assert len(widths) == 1 and min(widths) > 1000


@needs_browser
@pytest.mark.slow
def test_a_section_that_the_page_lacks(page, tmp_path, capsys):
    line = [page, '--section', 'nothing', '--out', str(tmp_path / 'x.png')]
    assert '--section nothing' in fault_of(cut_pictures, line, capsys)
    assert not (tmp_path / 'x.png').exists()


def test_faults_before_a_browser_is_needed(tmp_path, capsys, monkeypatch):
    out = ['--out', str(tmp_path / 'x.png')]
    assert 'no such file' in fault_of(cut_pictures, ['nowhere.html', '--ids', 'a', *out], capsys)
    assert 'pass either --ids or --section' in fault_of(cut_pictures, ['p.html', *out], capsys)
    assert '--out x.gif' in fault_of(cut_pictures, ['p.html', '--ids', 'a', '--out', 'x.gif'], capsys)
    Path(tmp_path / 'p.html').write_text('')
    line = [str(tmp_path / 'p.html'), '--ids', 'a', *out]
    (tmp_path / 'x.png').write_text('a photograph')
    assert f'--out {tmp_path}/x.png: exists: remove it or name' in fault_of(cut_pictures, line, capsys)
    monkeypatch.setattr(cut_pictures, 'sync_playwright', None)
    assert 'playwright is not installed' in fault_of(cut_pictures, [*line, '--overwrite'], capsys)
    (tmp_path / 'x.png').unlink()
    assert 'playwright is not installed' in fault_of(
        cut_pictures, [str(tmp_path / 'p.html'), '--ids', 'a', *out], capsys
    )
