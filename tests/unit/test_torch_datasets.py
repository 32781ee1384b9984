"""Samples for training, and batches of images at several scales for inference."""

import json

import numpy as np
import pytest
import torch

from core import UserError
from core.data.dataset import Dataset, open_dataset
from core.data.torch_datasets import (
    EpochSampler,
    ImageDataset,
    MultiScaleDataset,
    ground_truth,
    scored_crops,
    tagged_images,
    training_samples,
)
from core.data.transforms import Pipeline, RandomCrop, RandomFlip, TopLeftCrop, rescale
from support import draw_image, voc_xml


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """The images a and b of 40x30 with annotations and masks."""
    (tmp_path / 'train.txt').write_text('a\nb\n')
    content = {'classes': ['car', 'dog', 'sheep'], 'lists': {'train': 'train.txt'}}
    (tmp_path / 'set.json').write_text(json.dumps(content))
    for folder in ('Annotations', 'SegmentationClass'):
        (tmp_path / folder).mkdir()
    dataset = open_dataset(tmp_path / 'set.json', tmp_path)
    for i, image_id in enumerate('ab'):
        draw_image(dataset.image_path(image_id), (40, 30), seed=i)
        dataset.labels_path(image_id).write_text(voc_xml('car', *['dog'] * i))
        mask = np.random.default_rng(i).integers(0, 4, (30, 40), dtype=np.uint8)
        dataset.mask_path(image_id).write_bytes(dataset.encode_label_map(mask))
    return dataset


def image_dataset(dataset, seed=0, with_labels=True) -> ImageDataset:
    ids = dataset.ids('train', with_images=True)
    labels = dataset.read_all_labels(ids) if with_labels else None
    return ImageDataset(
        dataset, ids, Pipeline(RandomFlip(), RandomCrop(16)), labels, read_mask=dataset.read_mask, seed=seed
    )


def test_samples(dataset):
    samples = image_dataset(dataset)
    assert len(samples) == 2
    assert samples.ids == ['a', 'b']
    assert samples[0].keys() == {'images', 'masks', 'labels'}
    assert samples[0]['images'].pixels.shape == (16, 16, 3)
    assert samples[0]['masks'].shape == (16, 16)
    assert [samples[i]['labels'].tolist() for i in range(2)] == [[1, 0, 0], [1, 1, 0]]
    assert ImageDataset(dataset, ['a'], Pipeline(RandomCrop(16)))[0].keys() == {'images'}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(x, y) for x, y in zip([*a['images'], a['masks']], [*b['images'], b['masks']], strict=True))


def test_samples_depend_only_on_seed_epoch_and_position(dataset):
    first = image_dataset(dataset)[3, 1]
    torch.manual_seed(1)
    again = image_dataset(dataset)[3, 1]
    assert same(first, again)
    assert same(image_dataset(dataset)[0, 1], image_dataset(dataset)[1])
    for other in (image_dataset(dataset)[4, 1], image_dataset(dataset, seed=1)[3, 1], image_dataset(dataset)[3, 0]):
        assert not torch.equal(first['masks'], other['masks'])


def test_missing_images_and_annotations_are_found_at_the_start(dataset):
    dataset.labels_path('b').write_text(voc_xml('cow'))
    with pytest.raises(UserError, match='Annotations/b.xml'):
        image_dataset(dataset)
    image_dataset(dataset, with_labels=False)
    dataset.image_path('a').unlink()
    for build in (
        lambda: image_dataset(dataset, with_labels=False),
        lambda: MultiScaleDataset(dataset, ['a'], {'a'}, [1], 1),
    ):
        with pytest.raises(UserError, match='JPEGImages/a.jpg'):
            build()


def test_missing_mask_is_named(dataset):
    dataset.mask_path('b').unlink()
    with pytest.raises(UserError, match='SegmentationClass/b.png: no such mask'):
        image_dataset(dataset)[1]


def test_mask_of_another_size_than_its_image_is_named(dataset):
    dataset.mask_path('b').write_bytes(dataset.encode_label_map(np.zeros((40, 30), np.uint8)))
    with pytest.raises(UserError, match='SegmentationClass/b.png: the mask is 30x40, the image is 40x30'):
        image_dataset(dataset)[1]


def test_ground_truth_of_pictures_is_transformed_and_optional(dataset):
    """A picture does not end a run: a missing mask is None, a damaged one too."""
    samples = ImageDataset(dataset, ['a', 'b'], Pipeline(TopLeftCrop(16)))
    masks = ground_truth(samples, 8)
    for image_id, mask in zip('ab', masks, strict=True):
        assert np.array_equal(mask, dataset.read_mask(image_id)[:16, :16])
    assert len(ground_truth(samples, 1)) == 1
    dataset.mask_path('a').unlink()
    dataset.mask_path('b').write_bytes(b'')
    assert ground_truth(samples, 8) == [None, None]


# Data sets of the trainers ------------------------------------------------------------------------------------------


@pytest.fixture
def scenes(demo) -> Dataset:
    """The drawn set: 12 images in train_aug, 6 of them in train."""
    return open_dataset(demo / 'dataset.json', demo)


def test_training_samples_are_augmented_crops_of_train_aug(scenes):
    samples = training_samples(scenes, (48, 80), 32, 'pillow', 3, with_labels=True)
    assert (samples.ids, samples.domain) == (scenes.ids('train_aug'), 'train_aug')
    assert np.array_equal(samples.labels, scenes.read_all_labels(samples.ids))
    assert samples[0, 1].keys() == {'images', 'labels'}
    first, again, later = samples[0, 1]['images'], samples[0, 1]['images'], samples[1, 1]['images']
    assert first.pixels.shape == (32, 32, 3)
    assert torch.equal(first.pixels, again.pixels) and not torch.equal(first.pixels, later.pixels)
    masked = training_samples(scenes, (48, 80), 32, 'pillow', 3, read_mask=scenes.read_mask, mask_size=8)
    assert masked.labels is None
    assert torch.equal(masked[0, 1]['images'].pixels, first.pixels)
    assert masked[0, 1]['masks'].shape == (8, 8)


def test_scored_crops_are_those_with_masks(scenes):
    samples = scored_crops(scenes, 'train', 48, with_labels=True, mask_stride=4)
    assert (samples.ids, samples.domain) == (scenes.ids('train'), 'train')
    assert np.array_equal(samples.labels, scenes.read_all_labels(samples.ids))
    assert np.array_equal(samples[0]['masks'], scenes.read_mask(samples.ids[0])[:48:4, :48:4])
    assert scored_crops(scenes, 'train', 48).labels is None
    small = scored_crops(scenes, 'train', 64, mask_size=16)
    assert small[0]['masks'].shape == (16, 16)


@pytest.mark.parametrize('count, chosen', [(1, [0]), (2, [0, 3]), (4, [0, 1, 3, 4]), (6, range(6)), (9, range(6))])
def test_scored_crops_of_a_longer_list_are_evenly_spaced(scenes, count, chosen):
    ids = scenes.ids('train')
    assert scored_crops(scenes, 'train', 48, count=count).ids == [ids[i] for i in chosen]


def test_tagged_images_are_whole_and_square(scenes):
    samples = tagged_images(scenes, 32, 'pillow')
    domain, ids, labels = scenes.scored_labels()
    assert (samples.domain, samples.ids) == (domain, ids)
    assert np.array_equal(samples.labels, labels)
    assert samples[0]['images'].pixels.shape == (32, 32, 3)
    assert torch.equal(samples[0]['images'].pixels, samples[5, 0]['images'].pixels)


@pytest.mark.parametrize('skip', [0, 8])
def test_processes_share_every_batch_of_an_epoch(skip):
    """In the order of one process, without the incomplete last batch; also when an epoch is resumed."""

    def keys(rank, count):
        sampler = EpochSampler(18, 3, 4, rank, count)
        sampler.start(5, skip)
        return list(sampler)

    alone = keys(0, 1)
    assert len(alone) == 18 - skip and all(epoch == 5 for epoch, _ in alone)
    shares = [keys(rank, 2) for rank in range(2)]
    batches = [share[i : i + 2] for i in range(0, len(shares[0]), 2) for share in shares]
    assert sum(batches, []) == alone[: 16 - skip]


# Inference ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('backend', ['pillow', 'torch'])
def test_multi_scale_batches(dataset, backend):
    """Images of one size share a batch up to the limit, and each is what it would be alone."""
    for i, (image_id, size) in enumerate({'c': (30, 40), 'd': (40, 30), 'e': (40, 30)}.items()):
        draw_image(dataset.image_path(image_id), size, seed=i + 5)
    batches = MultiScaleDataset(dataset, list('abcde'), set('abcde'), [0.5, 1.0, 2.0], 3, backend)
    assert [batches[i][0] for i in range(len(batches))] == [['a', 'b', 'd'], ['c'], ['e']]
    for i in range(3):
        ids, images, scaled = batches[i]
        assert len(ids) == len(images)
        assert len(scaled) == 3
        for j, image_id in enumerate(ids):
            image = dataset.read_image(image_id)
            assert np.array_equal(images[j], np.array(image))
            for scale, batch in zip((0.5, 1.0, 2.0), scaled, strict=True):
                assert torch.equal(batch[j], rescale(image, scale, backend))


def test_wanted_images_keep_their_batches(dataset):
    """A batch without wanted images is left out; the others are as if all were wanted."""
    for i, image_id in enumerate('cdef'):
        draw_image(dataset.image_path(image_id), (40, 30), seed=i + 5)
    expected = {'': [], 'c': ['cd'], 'af': ['ab', 'ef'], 'abcdef': ['ab', 'cd', 'ef']}
    for wanted, batches in expected.items():
        found = MultiScaleDataset(dataset, list('abcdef'), set(wanted), [1.0], 2)
        assert [''.join(found[i][0]) for i in range(len(found))] == batches


@pytest.mark.parametrize('count', [2, 3])
def test_shares_of_the_batches_are_the_same_batches(dataset, count):
    """Also if images of other sizes are between them."""
    ids = list('abcdefghijk')
    for i, image_id in enumerate(ids):
        draw_image(dataset.image_path(image_id), [(40, 30), (30, 40), (20, 30)][i * i % 3], seed=i)
    batches = dataset.batches(ids, 2)
    assert len({len(batch) for batch in batches}) == 2
    for i in range(count):
        share = {image_id for batch in batches[i::count] for image_id in batch}
        assert dataset.batches([image_id for image_id in ids if image_id in share], 2) == batches[i::count]


def test_batches_of_large_images_are_smaller(dataset, monkeypatch):
    monkeypatch.setattr('core.data.dataset.BATCH_PIXELS', 2 * 40 * 30)
    assert MultiScaleDataset(dataset, ['a', 'b'], {'a'}, [1.0], 4).batches == [['a', 'b']]
    monkeypatch.setattr('core.data.dataset.BATCH_PIXELS', 40)
    assert MultiScaleDataset(dataset, ['a', 'b'], {'a', 'b'}, [1.0], 4).batches == [['a'], ['b']]
