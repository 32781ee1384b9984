"""Stages in shares, by --shard and under torchrun: the bytes of one process, killed shares."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import REPOSITORY, run_stage, subprocess_environment
from support.chain import CAMS, FOLDERS, as_process, commands, contents, copy_without, refused, remove_output
from util.store.folders import Folder

FORK = multiprocessing.get_context('fork')


@pytest.mark.parametrize('value', ['0/0', '0/2', '3/2', 'x', '1', '1/', '/2', '-1/2', '1/2/3', '1.0/2', ''])
def test_wrong_shards_are_refused(demo, capsys, value):
    script, words = commands(demo)['pseudo']
    with pytest.raises(SystemExit) as ended:
        script.parse_args([*words, f'--shard={value}'])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.endswith(f"argument --shard: '{value}' is not i/n with i from 1 to n, such as 1/8\n")
    assert text.count('\n') == 1


@pytest.mark.parametrize('shard, count', [('1/2', 1), ('1/1', 2)])
def test_shares_cannot_overwrite(demo, monkeypatch, capsys, shard, count):
    as_process(monkeypatch, 0, count)
    script, words = commands(demo)['pseudo']
    with pytest.raises(SystemExit):
        script.parse_args([*words, '--overwrite', '--shard', shard])
    assert '--overwrite: with --shard or torchrun it would remove files of other shares' in capsys.readouterr().err
    assert script.parse_args([*words, '--shard', shard]).shard == shard


def outputs() -> dict[str, bytes]:
    return {name: content for name, content in contents(Path()).items() if not name.endswith('.lock')}


@pytest.fixture
def without(finished, tmp_path, monkeypatch):
    """A function that goes to a copy of all outputs except a stage's, and returns what the stage has to make."""

    def copy(name):
        monkeypatch.chdir(finished)
        expected = outputs()
        copy_without(finished, tmp_path, name)
        monkeypatch.chdir(tmp_path)
        return expected

    return copy


def make_share(data, name: str, shard: str | None = None) -> None:
    script, words = commands(data)[name]
    run_stage(script, [*words, '--shard', shard] if shard else words)


# Every stage and, twice, every division into shards and processes; the other combinations only if there is time.
DIVISIONS = [(2, 1), (3, 1), (1, 2), (2, 2)]
CHOSEN = {
    'cams': [(2, 1), (2, 2)],
    'affinity_labels': [(3, 1)],
    'random_walk': [(1, 2), (2, 2)],
    'pseudo': [(2, 1)],
    'predictions': [(3, 1), (1, 2)],
}


@pytest.mark.parametrize(
    'name, number, count',
    [
        pytest.param(name, *division, marks=[] if division in CHOSEN[name] else pytest.mark.slow)
        for name in FOLDERS
        for division in DIVISIONS
    ],
)
def test_shares_make_the_bytes_of_one_process(demo, without, monkeypatch, name, number, count):
    expected = without(name)
    for shard in range(number, 0, -1):
        for rank in range(count):
            if count > 1:
                as_process(monkeypatch, rank, count)
            make_share(demo, name, f'{shard}/{number}')
    assert outputs() == expected


def test_shares_at_the_same_time(demo, without):
    expected = without('pseudo')
    shards = [FORK.Process(target=make_share, args=(demo, 'pseudo', f'{i}/3')) for i in (1, 2, 3)]
    for process in shards:
        process.start()
    for process in shards:
        process.join()
    assert [process.exitcode for process in shards] == [0, 0, 0]
    assert outputs() == expected


def test_more_shards_than_images(demo, without):
    """The list has 4 images; the others have nothing to do."""
    expected = without('predictions')
    for i in range(1, 7):
        make_share(demo, 'predictions', f'{i}/6')
    assert outputs() == expected


def test_a_killed_share_is_completed(demo, without, monkeypatch):
    expected = without('cams')
    write, written = Folder.write_maps, []

    def fail_at_the_third(folder, image_id, *maps):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(image_id)
        write(folder, image_id, *maps)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, 'write_maps', fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            make_share(demo, 'cams', '2/2')
    for shard in ('1/2', '2/2'):
        make_share(demo, 'cams', shard)
    assert outputs() == expected


def test_later_stages_notice_missing_shards(demo, without, capsys):
    """Their shards too."""
    without('cams')
    remove_output(Path(), 'affinity_labels')
    make_share(demo, 'cams', '1/3')
    for more in ((), ('--shard', '1/3')):
        message = refused(demo, 'affinity_labels', capsys, *more)
        assert re.search(r'npz not found \(8 of 12 are missing\); run inference_classification.py first$', message)


MERGE = re.search(r"<<'END'\n(.*?)\nEND", (REPOSITORY / 'docs/running.md').read_text(), re.DOTALL).group(1)


def merge(*folders: Path) -> subprocess.CompletedProcess:
    """Put two folders together as docs/running.md says."""
    return subprocess.run([sys.executable, '-', *folders], input=MERGE, capture_output=True, text=True)


def test_shards_of_two_machines_are_put_together(demo, without, capsys):
    expected = without('affinity_labels')
    here, there, copied = Path('experiments/predictions', FOLDERS['affinity_labels']), Path('there'), Path('copied')
    make_share(demo, 'affinity_labels', '1/2')
    here.rename(there)
    make_share(demo, 'affinity_labels', '2/2')
    shutil.copytree(here, copied)

    # Files and records, copied one over the other: what has no record is made again.
    for path in there.glob('[!.]*'):
        shutil.copy(path, here)
    assert 'of 12 files are not as recorded' in refused(demo, 'aff', capsys, '--overwrite')
    capsys.readouterr()
    make_share(demo, 'affinity_labels')
    out, err = capsys.readouterr()
    assert '6 of 12 files are not as recorded' in err and '12 affinity labels' in out and ', 6 of them new' in out
    shutil.rmtree(here)
    copied.rename(here)

    # By the records.
    assert merge(here, there).returncode == 0
    make_share(demo, 'affinity_labels')
    assert ', 0 of them new' in capsys.readouterr().out
    folder = f'{here}/'
    labels = {name: content for name, content in expected.items() if name.startswith(folder) and '.png' in name}
    assert {name: outputs()[name] for name in labels} == labels

    # Of other settings.
    record = json.loads((there / 'args.json').read_text())
    (there / 'args.json').write_text(json.dumps({**record, 'fingerprint': {**record['fingerprint'], 'maps': 'other'}}))
    before = outputs()
    ended = merge(here, there)
    assert (ended.returncode, ended.stderr) == (1, 'they were made with other settings, models or inputs\n')
    assert outputs() == before


def torchrun(data, name: str, *more: str) -> subprocess.Popen:
    script, words = commands(data)[name]
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [f'{REPOSITORY}/{script.__name__}.py', *words, *more]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, env=subprocess_environment(), **pipes)


@pytest.mark.slow
def test_torchrun(demo, without):
    """With workers; only the first process prints."""
    expected = without('cams')
    out, err = torchrun(demo, 'cams', '--num_workers', '1').communicate()
    assert out == f'shard 1/2: 6 CAMs in experiments/predictions/{CAMS}, 6 of them new\n', err
    assert err.count('batches of CAMs: ') == err.count('/5, ') == 5  # of 9
    assert outputs().keys() == expected.keys()
    images = [name for name in expected if name.endswith('.npz')]
    assert {name: outputs()[name] for name in images} == {name: expected[name] for name in images}


def test_processes_end_when_another_is_killed(demo, without):
    """With one line. The same command resumes."""
    without('cams')
    scales = ','.join(['4.0'] * 16)  # long enough for both to work at once
    longer = ('--scales', scales)
    folder = Path(f'experiments/predictions/cls@train@scale={scales}')
    run, until = torchrun(demo, 'cams', *longer), time.monotonic() + 120
    while len(holders := sorted(folder.glob('.*of2.json'))) < 2:  # both have started to work
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.01)
    os.kill(json.loads(holders[1].read_text())['pid'], signal.SIGKILL)
    begun = time.monotonic()
    out, err = run.communicate()
    assert (run.returncode, out) == (1, '')
    assert time.monotonic() - begun < 60
    assert err.count('inference_classification.py: stopped by SIGTERM, as torchrun stops all processes when one') == 1
    script, words = commands(demo)['cams']
    run_stage(script, [*words, *longer])
    assert not [*folder.glob('*.tmp')]
    resumed = {path.name: path.read_bytes() for path in folder.glob('*.npz')}
    run_stage(script, [*words, *longer, '--overwrite'])
    assert {path.name: path.read_bytes() for path in folder.glob('*.npz')} == resumed
