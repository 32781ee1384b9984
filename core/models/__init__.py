"""The networks of the pipeline: one file per network, a registry of backbones, their weights and optimiser."""

from core.models.affinitynet import AffinityNet
from core.models.backbones import BACKBONES, build_backbone, find_backbone
from core.models.build import build_network
from core.models.classifier import Classifier
from core.models.deeplab import DeepLabV3Plus
from core.models.optim import build_sgd
from core.models.segmenters import SEGMENTERS, CSegModel, SegModel, build_segmenter
from core.models.weights import load_weights

__all__ = [
    'BACKBONES',
    'SEGMENTERS',
    'AffinityNet',
    'CSegModel',
    'Classifier',
    'DeepLabV3Plus',
    'SegModel',
    'build_backbone',
    'build_network',
    'build_sgd',
    'build_segmenter',
    'find_backbone',
    'load_weights',
]
