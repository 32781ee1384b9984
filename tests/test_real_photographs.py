"""Real VOC photographs, where they lie beside the repository (they are no part of it)."""

import numpy as np
import pytest
from conftest import REPOSITORY
from core.datasets import image_path, keys_of, load_info, mask_path, read_image, read_labels, read_mask, xml_path

ROOT = REPOSITORY.parent / 'shared' / 'voc2012_real'
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason='no real photographs here')


@pytest.mark.parametrize('domain, number', [('train', 311), ('val', 321)])
def test_labels_hold_the_classes_of_the_masks(domain, number):
    info = load_info(REPOSITORY / 'data' / 'voc2012_2007.json')
    ids = info.ids(domain)
    assert len(ids) == number
    assert set(ids) < set(load_info(REPOSITORY / 'data' / 'voc2012.json').ids(domain))
    seen = set()
    for image_id in ids:
        keys = keys_of(read_labels(xml_path(ROOT, image_id), info)).tolist()
        mask = read_mask(mask_path(ROOT, image_id), info.num_classes)
        classes = set(np.unique(mask).tolist()) - {0, 255}
        assert classes <= set(keys), image_id
        seen |= classes
    assert seen == set(range(1, 21))


def test_masks_are_as_large_as_their_images():
    info = load_info(REPOSITORY / 'data' / 'voc2012_2007.json')
    for image_id in info.ids('val')[::20]:
        image = read_image(image_path(ROOT, image_id))
        read_mask(mask_path(ROOT, image_id), info.num_classes, image.size[::-1])
