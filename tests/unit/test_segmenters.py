"""The registry of segmentation networks: shapes and modes of every entry."""

import pytest
import torch

from core.models import SEGMENTERS, DeepLabV3Plus, build_segmenter
from support import batchnorms

NARROW = 'resnest14_narrow'
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
STRIDES = {'DeepLabv3+': 1, 'Seg_Model': 16, 'CSeg_Model': 4}


@pytest.mark.parametrize('architecture', SEGMENTERS)
@pytest.mark.parametrize('mode', ['normal', 'fix'])
def test_segmenters(architecture, mode):
    model = build_segmenter(architecture, NARROW, 6, mode, True).train()
    stride = STRIDES[architecture]
    assert type(model) is SEGMENTERS[architecture]
    assert model(IMAGES).shape == (2, 6, 64 // stride, 64 // stride)
    assert all(norm.training == (mode == 'normal') for norm in batchnorms(model.backbone).values())
    if architecture == 'Seg_Model':
        assert [n for n, _ in model.named_parameters() if not n.startswith('backbone.')] == ['classifier.weight']


@pytest.mark.parametrize('use_gn', [True, False])
def test_use_gn_reaches_deeplab_only(use_gn):
    for architecture in SEGMENTERS:
        model = build_segmenter(architecture, NARROW, 6, 'fix', use_gn)
        outside = {name for name in batchnorms(model) if not name.startswith('backbone.')}
        assert bool(outside) == (isinstance(model, DeepLabV3Plus) and not use_gn)


@pytest.mark.parametrize('architecture', ['Seg_Model', 'CSeg_Model'])
def test_number_of_classes_is_required(architecture):
    with pytest.raises(TypeError, match='num_classes'):
        SEGMENTERS[architecture](NARROW)


def test_unknown_mode():
    for architecture in SEGMENTERS:
        with pytest.raises(AssertionError, match='frozen'):
            build_segmenter(architecture, NARROW, 6, 'frozen', True)
