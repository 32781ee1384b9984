"""The networks of the pipeline: one file per network, a registry of backbones, their weights."""

from core.models.affinitynet import AffinityNet
from core.models.backbones import BACKBONES, build_backbone
from core.models.build import build_network
from core.models.classifier import Classifier
from core.models.deeplab import DeepLabV3Plus
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
    'build_segmenter',
    'load_weights',
]
