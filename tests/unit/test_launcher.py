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


def test_shares(monkeypatch):
    """The processes of torchrun divide a share of --shard; without either there is one share."""
    monkeypatch.delenv('RANK', raising=False)
    assert [launcher.share(shard) for shard in (None, '1/3', '3/3')] == [(0, 1), (0, 3), (2, 3)]
    for name, value in zip(VARIABLES, ('1', '1', '2'), strict=True):
        monkeypatch.setenv(name, value)
    assert [launcher.share(shard) for shard in (None, '1/3', '3/3')] == [(1, 2), (1, 6), (5, 6)]


def test_the_others_let_the_first_process_speak(monkeypatch):
    waited = []
    monkeypatch.setattr('time.sleep', waited.append)
    for rank in ('0', '1'):
        for name, value in zip(VARIABLES, (rank, rank, '2'), strict=True):
            monkeypatch.setenv(name, value)
        launcher.let_main_speak()
    assert waited == [launcher.GRACE]
