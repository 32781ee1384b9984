"""Before main: Ctrl-C, failing imports and closed streams; nothing in other processes."""

import signal
import subprocess
import sys

import pytest

from support import REPOSITORY, STAGES, subprocess_environment

SIGNALLED = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(20)
"""
PROGRAMS = [
    *((f'{stage}.py',) for stage in STAGES),
    *(
        ('-m', f'{path.parent.name}.{path.stem}')
        for folder in ('tools', 'recipes', 'benchmarks')
        for path in sorted((REPOSITORY / folder).glob('*.py'))
        if "__name__ == '__main__'" in path.read_text()
    ),
]


def run(words, folder, content: str) -> subprocess.CompletedProcess:
    """Run Python where this is the content of the packages that programs import first."""
    for name in ('numpy', 'torch', 'cv2', 'PIL', 'tqdm', 'tabulate', 'imageio', 'scipy', 'jinja2', 'filelock'):
        (folder / f'{name}.py').write_text(content)
    environment = subprocess_environment()
    environment['PYTHONPATH'] = f'{folder}:{environment.get("PYTHONPATH", "")}'
    return subprocess.run(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        # A shell ignores SIGINT for what it starts in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize('words', PROGRAMS, ids=' '.join)
def test_an_interrupted_import_is_silent(tmp_path, words):
    ended = run(words, tmp_path, SIGNALLED)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, '', '')


@pytest.mark.parametrize('words', [('evaluate.py',), ('-m', 'tools.report')], ids=' '.join)
def test_a_failing_import_is_one_line(tmp_path, words):
    ended = run(words, tmp_path, "raise ImportError('read this:\\ntorch.so: failed to map segment')")
    line = 'error: a package cannot be imported (torch.so: failed to map segment): see "Install" in README.md\n'
    assert (ended.returncode, ended.stdout) == (1, '')
    assert ended.stderr.endswith(line) and ended.stderr.count('\n') == 1


def test_other_processes_keep_their_ways():
    code = 'import signal, sys; before = signal.getsignal(2); import util.startup, tools.make_demo_data, evaluate'
    code += '; assert signal.getsignal(2) is before and sys.excepthook is sys.__excepthook__'
    subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, env=subprocess_environment(), check=True)


@pytest.mark.parametrize('words', [('-m', 'tools.summarize'), (str(REPOSITORY / 'evaluate.py'),)], ids=' '.join)
def test_a_working_directory_that_was_removed_is_one_line(tmp_path, words):
    script = 'import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])'
    folder = tmp_path / 'removed'
    folder.mkdir()
    environment = {**subprocess_environment(), 'PYTHONPATH': str(REPOSITORY)}
    command = [sys.executable, '-c', script, *words]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    expected = 'error: the working directory was removed: change to another one\n'
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, '', expected)


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&- >&- 2>&-'])
def test_closed_streams_do_no_harm(tmp_path, closed):
    """As cron or a service may start a program. What is printed would else go into the next file that is opened."""
    words = '-m tools.make_demo_data --num_train_aug 2 --num_train 1 --num_val 1 --size 64 --num_workers 0'
    command = f"exec '{sys.executable}' {words} --out '{tmp_path}/set' {closed}"
    ended = subprocess.run(['bash', '-c', command], cwd=REPOSITORY, env=subprocess_environment(), capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / 'set/dataset.json').read_bytes().startswith(b'{')
    assert all(path.read_bytes() == b'' for path in tmp_path.glob('.*.lock'))
