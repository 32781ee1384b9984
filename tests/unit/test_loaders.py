"""Order of the samples, batches, workers that live through a run, and fail rather than hang."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from core import UserError
from core.data.dataset import open_dataset
from core.data.torch_datasets import EpochSampler, scored_crops, training_samples
from support import subprocess_environment
from support.programs import run_program, signal_after_each_fork, start_program
from util import signals
from util.training.loaders import batches_on_device, ordered_loader, training_loader

CPU = torch.device('cpu')


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed)
        sampler.start(epoch)
        keys = list(sampler)
        assert {e for e, _ in keys} == {epoch}
        assert sorted(p for _, p in keys) == list(range(50))
        return keys

    assert order(1, 2) == order(1, 2)
    assert [p for _, p in order(1, 2)] != [p for _, p in order(1, 3)]
    assert [p for _, p in order(1, 2)] != [p for _, p in order(2, 2)]


def test_an_epoch_resumes_after_any_sample():
    sampler = EpochSampler(50, 1)
    sampler.start(2)
    keys = list(sampler)
    for skip in (1, 17, 49, 50):
        sampler.start(2, skip)
        assert list(sampler) == keys[skip:]
    sampler.start(2)
    assert list(sampler) == keys
    assert len(sampler) == 50


def test_loaders():
    loader = training_loader(list(range(10)), 3, 0, 0, CPU)
    assert (len(loader), loader.drop_last) == (3, True)
    assert [x.tolist() for x in ordered_loader(list(range(5)), 2, 0, CPU)] == [[0, 1], [2, 3], [4]]
    assert ordered_loader(list(range(5)), 2, 1, CPU).multiprocessing_context.get_start_method() == 'fork'
    assert list(ordered_loader(['a', ('b',)], None, 0, CPU)) == ['a', ('b',)]
    with pytest.raises(UserError, match='--batch_size 11.*10 images'):
        training_loader(list(range(10)), 11, 0, 0, CPU)


class Untiled(list):
    """A data set of whole images."""

    tile = None


@pytest.mark.parametrize('num_workers', [0, 2])
def test_batches_of_several_scales(num_workers, capsys):
    batches = [(['a', 'b'], ['image a', 'image b'], [torch.zeros(2, 3), torch.ones(2, 4)]), (['c'], ['image c'], [])]
    dataset = Untiled(batches)
    found = list(batches_on_device(dataset, num_workers, CPU, 'batches of CAMs'))
    assert [(ids, images) for ids, images, _ in found] == [(ids, images) for ids, images, _ in batches]
    for (*_, pixels), (*_, expected) in zip(found, batches, strict=True):
        assert len(pixels) == len(expected)
        assert all(map(torch.equal, pixels, expected))
    assert capsys.readouterr().err.splitlines()[-1].startswith('batches of CAMs: 2/2')


class Keys(list):
    """A data set whose samples are their keys."""

    def __getitem__(self, key):
        return key


@pytest.mark.parametrize('num_workers', [0, 2])
def test_training_batches_follow_the_sampler(num_workers):
    loader = training_loader(Keys(range(10)), 3, num_workers, 1, CPU)
    for epoch in range(2):
        loader.sampler.start(epoch, 3)
        expected = list(loader.sampler)
        found = [(int(e), int(p)) for epochs, positions in loader for e, p in zip(epochs, positions, strict=True)]
        assert found == expected[:6]


@pytest.mark.parametrize('num_workers', [0, 2])
def test_loading_does_not_advance_the_random_numbers(num_workers):
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    for loader in (training_loader(Keys(range(4)), 2, num_workers, 1, CPU), ordered_loader([1], 1, num_workers, CPU)):
        list(loader)
    assert torch.equal(torch.get_rng_state(), expected)


class Traced:
    """Samples that say which process has made them."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, key):
        return {**self.samples[key], 'process': os.getpid()}


@pytest.mark.parametrize('num_workers', [1, 2])
@pytest.mark.parametrize('kind', ['training', 'scoring'])
def test_workers_live_through_a_run(demo, num_workers, kind):
    dataset, found = open_dataset(demo / 'dataset.json', demo), []
    if kind == 'training':
        samples = training_samples(dataset, (48, 80), 64, 'pillow', 0)
        loader = training_loader(Traced(samples), 4, num_workers, 0, CPU)
    else:
        loader = ordered_loader(Traced(scored_crops(dataset, 'val', 64)), 2, num_workers, CPU)
    for epoch in range(3):
        if kind == 'training':
            loader.sampler.start(epoch)
        found.append({process for batch in loader for process in batch['process'].tolist()})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == num_workers
    assert os.getpid() not in found[0]


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('epoch, done', [(0, 1), (1, 2), (2, 0)])
def test_resuming_gives_the_batches_of_workers_that_have_lived_for_longer(demo, num_workers, epoch, done):
    """In the middle of an epoch and at its beginning; with random sizes, flips and crops."""
    dataset = open_dataset(demo / 'dataset.json', demo)
    samples = training_samples(dataset, (48, 80), 64, 'pillow', 3, with_labels=True, augmentations=['colorjitter'])

    def batches(epoch, done):
        loader = training_loader(samples, 4, num_workers, 3, CPU)
        for number in range(epoch, 3):
            loader.sampler.start(number, 4 * done if number == epoch else 0)
            yield from loader

    straight, resumed = list(batches(0, 0)), list(batches(epoch, done))
    assert len(straight) == 9
    assert len(resumed) == 9 - 3 * epoch - done
    for batch, expected in zip(resumed, straight[3 * epoch + done :], strict=True):
        assert torch.equal(batch['images'].pixels, expected['images'].pixels)
        assert torch.equal(batch['images'].box, expected['images'].box)
        assert torch.equal(batch['labels'], expected['labels'])


FAILING = """
import os, signal, sys
import numpy as np
import torch
from util import script
from util.training import loaders

action, workers, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]

class Unsendable:
    def __reduce__(self):
        if action == 'shared memory':
            raise RuntimeError('unable to write to file </torch_1_2>: No space left on device (28)')
        raise TypeError('this cannot be sent')

class Failing:
    ids = [str(i) for i in range(12)]

    def __len__(self):
        return 12

    def __getitem__(self, key):
        if key not in (5, (0, 5)):
            return {'image': np.zeros(3)} if kind == 'training' else key
        if action == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        if action == 'memory':
            np.zeros(10**15)
        return Unsendable()

def main(args):
    cpu = torch.device('cpu')
    if kind == 'training':
        loader = loaders.training_loader(Failing(), 1, workers, 0, cpu)
    else:
        loader = loaders.ordered_loader(Failing(), None, workers, cpu)
    for _ in range(3):
        for batch in loader:
            pass

script.run(main, lambda: None)
"""
LINES = {
    'killed': 'a data-loading worker was killed (out of memory?): lower --num_workers or --batch_size',
    'shared memory': 'shared memory (/dev/shm) is full: pass --num_workers 0, or give the container more (--shm-size)',
    'memory': 'out of memory: lower --batch_size, --image_size or --num_workers',
}


def fail(action, workers, kind='ordered') -> subprocess.CompletedProcess:
    return run_program(['-c', FAILING, action, workers, kind])


@pytest.mark.parametrize('action, workers, kind', [
    ('killed', 1, 'ordered'), ('killed', 2, 'training'), ('shared memory', 2, 'ordered'), ('memory', 1, 'training'),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('killed', 2, 'ordered'), ('killed', 1, 'training'), ('shared memory', 1, 'ordered'), ('memory', 2, 'ordered'),
    )),
])  # fmt: skip
def test_failing_worker_ends_the_script_with_one_line(action, workers, kind):
    begun = time.monotonic()
    run = fail(action, workers, kind)
    assert time.monotonic() - begun < 30
    assert (run.returncode, run.stderr) == (1, f'-c: error: {LINES[action]}\n')


def test_killed_workers_leave_no_temporary_files(tmp_path):
    environment = {**subprocess_environment(), 'TMPDIR': str(tmp_path)}
    command = [sys.executable, '-c', FAILING, 'killed', '2', 'ordered']
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('workers', [1, 2])
def test_batch_that_cannot_be_sent_ends_the_script_with_its_error(workers):
    begun = time.monotonic()
    run = fail('unsendable', workers)
    assert time.monotonic() - begun < 30
    assert run.returncode == 1
    assert 'TypeError: this cannot be sent' in run.stderr
    assert run.stderr.splitlines()[-1].startswith('-c: error: a data-loading worker')


ORPHANS = """
import os, time
import torch
from util.training.loaders import ordered_loader

class Slow:
    def __len__(self):
        return 4

    def __getitem__(self, key):
        os.write(1, b'%d\\n' % os.getpid())
        time.sleep(600)

list(ordered_loader(Slow(), 1, 2, torch.device('cpu')))
"""


def test_workers_end_with_a_parent_that_was_killed():
    reader, writer = os.pipe()
    process = start_program(['-c', ORPHANS], writer, 2)
    os.close(writer)
    with open(reader) as lines:
        for _ in range(2):
            assert int(lines.readline()) != process.pid
        process.kill()
        # The workers hold the pipe: it ends when the last of them has.
        assert lines.read() == ''
    process.join()


class SlowNumbers:
    def __len__(self):
        return 12

    def __getitem__(self, index):
        time.sleep(0.05)
        return index


def test_workers_leave_a_signal_to_all_processes_to_the_main_one():
    """A scheduler sends SIGTERM to them too, while the main process finishes its step. A second one ends them."""
    loader = iter(ordered_loader(SlowNumbers(), 1, 2, CPU))
    found = [next(loader).item()]
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    found += [batch.item() for batch in loader]
    assert found == list(range(12))

    loader = iter(ordered_loader(SlowNumbers(), 1, 1, CPU))
    next(loader)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match='killed by signal: Terminated|exited unexpectedly'):
        for _ in range(2):
            os.kill(worker.pid, signal.SIGTERM)
            time.sleep(0.2)
        list(loader)


def test_a_signal_to_a_worker_that_has_just_been_forked_is_left_to_the_main_process(monkeypatch):
    signal_after_each_fork(monkeypatch)
    assert [batch.item() for batch in ordered_loader(SlowNumbers(), 1, 2, CPU)] == list(range(12))


def test_a_signal_that_comes_while_the_workers_end_is_not_lost(monkeypatch, capsys):
    """Python drops the exception that is raised there: the loader is deleted."""
    end = _MultiProcessingDataLoaderIter._shutdown_workers

    def end_signalled(iterator):
        monkeypatch.undo()
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            end(iterator)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, '_shutdown_workers', end_signalled)
    with pytest.raises(SystemExit) as ended, signals.heard():
        loader = ordered_loader(SlowNumbers(), 1, 1, CPU)
        next(iter(loader))
        del loader
        gc.collect()
        time.sleep(60)
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == ''


class EndOfFile:
    def __len__(self) -> int:
        return 1

    def __getitem__(self, position: int):
        raise EOFError('a.jpg is truncated')


def test_error_of_a_data_set_in_the_main_process_keeps_its_message():
    with pytest.raises(EOFError, match='^a.jpg is truncated$'):
        list(ordered_loader(EndOfFile(), None, 0, torch.device('cpu')))
