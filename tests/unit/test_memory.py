"""Freed memory: kept by a CPU network, released before a fork."""

import subprocess
import sys

import pytest

from support import subprocess_environment
from util.parallel.devices import glibc

MEMORY = """
import resource
from pathlib import Path
import torch
from core.models import Classifier
from util.parallel.devices import pick_device
from util.training.loaders import ordered_loader

model, images = Classifier('resnest14_narrow', 3), torch.rand(4, 3, 192, 192)

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        model(images).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() // 2**20

faults(1)
default = faults(2)
pick_device('cpu')
faults(2)
kept = faults(2)
before_fork = resident()
next(iter(ordered_loader(['sample'], None, 1, torch.device('cpu'))))
print(default, kept, before_fork, resident())
"""


@pytest.mark.skipif(glibc() is None, reason='needs glibc')
def test_cpu_keeps_the_memory_of_layers_but_forks_without_it():
    command = [sys.executable, '-c', MEMORY]
    run = subprocess.run(command, env=subprocess_environment(), capture_output=True, text=True, check=True)
    default, kept, before_fork, after_fork = map(int, run.stdout.split())
    assert kept < default / 4, 'page faults of two training steps'
    assert after_fork < before_fork - 50, 'resident MB'
