"""The Python on pages of docs/ runs as printed: docs/python.md and the conversion of microscope images."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from core import UserError
from core.data.images import encode_label_map
from core.data.voc import palette
from core.models import AffinityNet, Classifier, build_segmenter
from core.models.deeplab import multi_scale_logits
from core.models.model_file import load
from support import REPOSITORY
from util.store.arrays import write_npz
from util.store.formats import PREDICTIONS, model_path
from util.training.models import save_model

NARROW, CLASSES, SIZE = 'resnest14_narrow', ('cat', 'dog'), (48, 64)


def blocks_of(page: str) -> list[str]:
    """Return the blocks of Python on a page of docs/."""
    return re.findall(r'^```python\n(.*?)^```', (REPOSITORY / 'docs' / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def outputs(in_tmp):
    """The files that the page opens: a photograph, a mask, CAMs and three models with random weights."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    for folder in ('photos', 'experiments/predict/own'):
        (in_tmp / folder).mkdir(parents=True)
    Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)).save('photos/rex.jpg')
    mask = random.integers(0, 3, SIZE, np.uint8)
    (in_tmp / 'experiments/predict/own/rex.png').write_bytes(encode_label_map(mask, palette()))
    maps = {'cam': random.random((1, 12, 16), np.float32), 'hr_cam': random.random((1, *SIZE), np.float32)}
    maps = {name: value.astype(np.float16) for name, value in maps.items()}
    write_npz(PREDICTIONS / 'own@train@scale=0.5,1.0,1.5,2.0' / 'rex.npz', keys=np.array([0, 2]), **maps)
    meta = {'backbone': NARROW, 'classes': CLASSES}
    networks = {
        'own': ('Classifier', Classifier(NARROW, 2)),
        'own@affinity': ('AffinityNet', AffinityNet(NARROW)),
        'own@deeplab': ('DeepLabv3+', build_segmenter('DeepLabv3+', NARROW, 3, 'fix', True)),
    }
    for tag, (name, network) in networks.items():
        save_model(network, model_path(tag), network=name, **meta)
    return SimpleNamespace(mask=mask, networks={tag: network.eval() for tag, (_, network) in networks.items()})


def test_the_code_of_the_page(outputs, in_tmp):
    names = {}
    blocks = blocks_of('python.md')
    for block in blocks:
        exec(block, names)
        if 'present = np.unique(mask)' in block:
            assert (names['mask'] == outputs.mask).all()
    assert names['network'].classes == CLASSES
    assert names['refined'].shape == (3, *SIZE)
    assert names['masks'].shape == (1, *SIZE)
    assert np.array_equal(np.array(Image.open('mask.png')), names['mask'])
    assert len(blocks) == 8

    # One scale and the mirror image, on the network as it was saved.
    pixels = torch.from_numpy(names['images']).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    logits = multi_scale_logits(outputs.networks['own@deeplab'], [(pixels - mean) / std], SIZE)
    assert (logits.argmax(1).numpy() == names['masks']).mean() > 0.99


def test_files_that_do_not_describe_their_network(in_tmp):
    save_model(Classifier(NARROW, 2), model_path('bare'))
    with pytest.raises(UserError, match=r'bare.pth: .* without metadata \(network, backbone, classes\)'):
        load(model_path('bare'))
    with pytest.raises(UserError, match=r'none.pth: cannot be read'):
        load('none.pth')
