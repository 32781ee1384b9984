"""Real VOC photographs, if they are next to the repository (they are not part of it)."""

import numpy as np
import pytest

from core.data.dataset import open_dataset
from core.maps import present_keys
from support import REPOSITORY

ROOT = REPOSITORY.parent / 'shared' / 'voc2012_real'
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason='the photographs are not here')


def photographs():
    return open_dataset(REPOSITORY / 'data' / 'voc2012_2007.json', ROOT)


@pytest.mark.parametrize('domain, number', [('train', 311), ('val', 321)])
def test_labels_contain_the_classes_of_the_masks(domain, number):
    dataset = photographs()
    ids = dataset.ids(domain, with_images=True)
    assert len(ids) == number
    assert set(ids) < set(open_dataset(REPOSITORY / 'data' / 'voc2012.json', ROOT).ids(domain))
    seen = set()
    for image_id in ids:
        keys = present_keys(dataset.read_labels(image_id)).tolist()
        mask = dataset.read_mask(image_id)
        classes = set(np.unique(mask).tolist()) - {0, 255}
        assert classes <= set(keys), image_id
        seen |= classes
    assert seen == set(range(1, 21))


def test_masks_have_the_size_of_their_images():
    dataset = photographs()
    assert dataset.ids_with_masks('val') == dataset.ids('val')
    for image_id in dataset.ids('val')[::20]:
        image = dataset.read_image(image_id)
        assert image.size[::-1] == dataset.image_size(image_id)
        dataset.read_mask(image_id, image.size[::-1])
