"""A training run: its batches, log, models and files; and networks loaded for inference."""

from util.parallel.batch import SharedModel
from util.training.loaders import batches_on_device, gather_rows, ordered_loader, training_loader
from util.training.models import load_network
from util.training.run import Run

__all__ = [
    'Run',
    'SharedModel',
    'batches_on_device',
    'gather_rows',
    'load_network',
    'ordered_loader',
    'training_loader',
]
