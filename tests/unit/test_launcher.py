"""The environment of torchrun."""

import pytest

from util import launcher

VARIABLES = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')


@pytest.mark.parametrize('missing', [VARIABLES, *((name,) for name in VARIABLES)])
def test_without_a_launcher(monkeypatch, missing):
    """Schedulers set some of the variables too."""
    for name in VARIABLES:
        monkeypatch.setenv(name, '3')
    for name in missing:
        monkeypatch.delenv(name)
    found = launcher.is_launched(), launcher.rank(), launcher.local_rank(), launcher.world_size(), launcher.is_main()
    assert found == (False, 0, 0, 1, True)


def test_under_torchrun(monkeypatch):
    for name, value in zip(VARIABLES, ('5', '1', '8'), strict=True):
        monkeypatch.setenv(name, value)
    found = launcher.is_launched(), launcher.rank(), launcher.local_rank(), launcher.world_size(), launcher.is_main()
    assert found == (True, 5, 1, 8, False)
    monkeypatch.setenv('RANK', '0')
    assert launcher.is_main()


def test_errors_name_the_process(monkeypatch):
    """One of several; a single one has no number."""
    for count, expected in (('8', 'process 5 of 8: '), ('1', '')):
        for name, value in zip(VARIABLES, ('5', '1', count), strict=True):
            monkeypatch.setenv(name, value)
        assert launcher.prefix() == expected
    monkeypatch.delenv('RANK')
    assert launcher.prefix() == ''
