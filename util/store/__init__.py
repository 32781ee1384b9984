"""The files under experiments/: formats, folders, arrays, fingerprints, files, locks, results. No torch."""

from util.store.create import create_folder
from util.store.folders import open_folder
from util.store.formats import AFFINITY_LABEL, CAM, EDGE, PREDICTION, PSEUDO_LABEL, RANDOM_WALK

__all__ = [
    'AFFINITY_LABEL',
    'CAM',
    'EDGE',
    'PREDICTION',
    'PSEUDO_LABEL',
    'RANDOM_WALK',
    'create_folder',
    'open_folder',
]
