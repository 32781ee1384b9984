"""Which files tools.predict takes as photographs, and what it says of the others."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core import UserError
from core.data.images import ENDINGS, FORMATS, read_image
from support import draw_image
from tools import predict
from tools.predicting.photographs import find_images


@pytest.fixture
def here(in_tmp):
    (in_tmp / 'photos').mkdir()
    draw_image(in_tmp / 'photos' / 'a.png')
    return in_tmp


def ids(*arguments) -> list[str]:
    return list(find_images(arguments, Path('out')))


def test_links_are_followed_without_going_in_circles(here, capsys):
    (here / 'elsewhere').mkdir()
    draw_image(here / 'elsewhere' / 'b.png')
    os.symlink(here / 'elsewhere', here / 'photos' / 'more')
    os.symlink(here / 'elsewhere' / 'b.png', here / 'photos' / 'c.png')
    os.symlink(here / 'photos', here / 'photos' / 'again')
    os.symlink(here / 'photos', here / 'elsewhere' / 'back')
    os.symlink(here / 'nowhere.png', here / 'photos' / 'gone.png')
    assert ids('photos') == ['a', 'c', 'more__b']
    assert capsys.readouterr().err == 'left out: 1 links to nothing (photos/gone.png)\n'
    assert ids('photos/**/*.png') == ['a', 'c', 'more__b']


def test_folders_that_may_not_be_read_are_left_out(here, monkeypatch, capsys):
    (here / 'photos' / 'closed').mkdir()
    listed = Path.iterdir

    def refuse(path):
        if path.name == 'closed':
            raise PermissionError
        return listed(path)

    monkeypatch.setattr(Path, 'iterdir', refuse)
    assert ids('photos') == ['a']
    assert capsys.readouterr().err == 'left out: 1 folders that may not be read (photos/closed)\n'


def test_all_endings_of_the_formats_that_are_read():
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert known <= {*ENDINGS}
    assert {'.jpg', '.png', '.webp', '.tif', '.gif', '.bmp', '.jp2', '.mpo', '.apng'} <= {*ENDINGS}


@pytest.mark.parametrize('ending', ENDINGS)
def test_every_ending_can_be_read(here, ending):
    """The content is what the ending says."""
    Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(here / 'photos' / f'x{ending.upper()}')
    assert 'x' in ids('photos')
    assert read_image(here / 'photos' / f'x{ending.upper()}').size == (24, 16)


def test_files_that_are_left_out_are_counted(here, capsys):
    for name in ('b.HEIC', 'c.heif', 'notes.txt', '.DS_Store', '._a.png', 'd.npz'):
        (here / 'photos' / name).touch()
    os.mkfifo(here / 'photos' / 'pipe.jpg')
    assert ids('photos') == ['a']
    line = capsys.readouterr().err
    assert line.startswith('left out: ')
    for part in (
        '2 HEIC, which cannot be read (convert them to JPEG) (photos/b.HEIC, ...)',
        '2 not named as photographs (photos/d.npz, ...)',
        '2 hidden (photos/.DS_Store, ...)',
        '1 not files, but pipes or devices (photos/pipe.jpg)',
    ):
        assert part in line
    (here / 'photos' / 'a.png').unlink()
    with pytest.raises(UserError, match=r'photos: no image found \(.*\); left out: '):
        ids('photos')
    with pytest.raises(UserError, match=r'b.HEIC: HEIC cannot be read: convert it to JPEG'):
        ids('photos/b.HEIC')


def test_classes_with_commas_can_be_chosen():
    args = predict.parse_args(['m.pth', 'a.jpg', '--classes', 'dog,"cat, big"'])
    assert predict.chosen_labels(args, ('background', 'cat, big', 'cow', 'dog')).tolist() == [1, 0, 1]
    args = predict.parse_args(['m.pth', 'a.jpg', '--classes', 'cat, big'])
    with pytest.raises(UserError, match='--classes cat: m.pth has only cat, big'):
        predict.chosen_labels(args, ('background', 'cat, big'))
