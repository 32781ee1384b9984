"""The reference implementations of benchmarks/ compute what the stages compute; RESULTS.md shows RESULTS.json."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cases, large_image, reference, run
from core import UserError
from core.affinity import PathIndex, affinity_labels
from core.cam import multi_scale_cam
from core.crf import crf_from_labels, crf_from_probability
from core.data.images import read_image
from core.data.transforms import PaddedCrop, Pipeline, TopLeftCrop, normalize, rescale
from core.maps import threshold_cams
from core.metrics import ThresholdSweep
from core.models import Classifier, DeepLabV3Plus
from core.models.deeplab import multi_scale_logits
from core.random_walk import random_walk
from util.flags import REPOSITORY


@pytest.fixture
def image():
    """A smooth picture, because a CRF and a network make nothing of noise."""
    y, x = np.mgrid[:60, :80]
    channels = [np.hypot(y - 30, x - 40) * 3, x * 2, 255 - y * 3]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def test_affinities_and_labels_of_pixel_pairs():
    edge = torch.rand(2, 24, 30, dtype=torch.float64, requires_grad=True)
    index = PathIndex(5, (24, 30))
    sources, groups = reference.path_indices(5, (24, 30))
    ours, expected = index.edge_to_affinity(edge), reference.edge_to_affinity(edge, groups)
    assert torch.equal(ours, expected)
    weight = torch.rand_like(ours)
    gradients = [torch.autograd.grad((affinity * weight).sum(), edge)[0] for affinity in (ours, expected)]
    torch.testing.assert_close(*gradients)
    label = torch.randint(0, 4, (24, 30), dtype=torch.uint8)
    label[3:9] = 255
    pairs = affinity_labels(label, index, 3), reference.affinity_pairs(label, sources, groups)
    for ours, expected in zip(*pairs, strict=True):
        assert torch.equal(ours.float(), expected)


def test_random_walk():
    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(19, 26, generator=generator, dtype=torch.float64)
    cam = torch.rand(2, 19, 26, generator=generator, dtype=torch.float64)
    ours, expected = random_walk(cam, edge), reference.random_walk(cam, edge)
    assert (ours / ours.max() - expected / expected.max()).abs().max() < 1e-7


@pytest.mark.parametrize('iterations', [1, 10])
def test_crf_of_several_labels_at_once(image, iterations):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, image.shape[:2]) for _ in range(2)]
    refined = crf_from_labels(image, labels, 3, iterations)
    for label, ours in zip(labels, refined, strict=True):
        assert np.array_equal(ours, reference.crf_from_label(image, label, 3, iterations))
        assert (ours != label).any()


def test_affinity_label(image):
    y, x = np.mgrid[:60, :80]
    hr_cam = np.exp(-(((y - 30) ** 2 + (x - 40) ** 2) / 400))[None].astype(np.float32)
    keys = np.array([0, 7])
    fg, bg = crf_from_labels(image, [threshold_cams(hr_cam, threshold) for threshold in (0.4, 0.1)], 2)
    expected = reference.affinity_label(image, keys, hr_cam)
    assert np.array_equal(keys[fg] == 7, expected == 7)
    assert np.array_equal((fg == 0) & (bg == 0), expected == 0)
    assert {7, 255} <= set(np.unique(expected))


def test_threshold_sweep(tmp_path):
    rng = np.random.default_rng(0)
    thresholds = [0.2, 0.5, 0.7]
    sweep = ThresholdSweep(4, thresholds)
    for i in range(3):
        keys, maps = np.array([0, 1, 3]), rng.random((2, 11, 13)).astype(np.float32)
        mask = rng.choice([0, 1, 2, 3, 255], (11, 13)).astype(np.uint8)
        np.savez(tmp_path / f'{i}.npz', keys=keys, hr_cam=maps)
        Image.fromarray(mask).save(tmp_path / f'{i}.png')
        sweep.update(maps, keys, mask)
    expected = reference.sweep(tmp_path, tmp_path, range(3), 4, thresholds)
    for threshold, matrix in zip(thresholds, sweep.matrices(), strict=True):
        counts = matrix.counts
        assert np.array_equal(expected[threshold], [counts.sum(1), counts.sum(0), np.diag(counts)])


def test_training_sample(image, tmp_path):
    path = tmp_path / 'image.png'
    Image.fromarray(image).save(path)
    ours, _ = Pipeline(TopLeftCrop(512))(read_image(path).resize((640, 480), Image.Resampling.BICUBIC), None, (0,))
    ours = normalize(PaddedCrop(ours.pixels[None], ours.box[None]))[0]
    expected = reference.train_sample(path, 640, False, ((0, 0), (0, 0)))
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


def test_segmentation(image):
    torch.manual_seed(0)
    model = DeepLabV3Plus('resnest14_narrow', 6).eval()
    picture = Image.fromarray(image)
    scaled = [normalize(rescale(picture, scale)[None]) for scale in (0.5, 1.0)]
    with torch.no_grad():  # so that the predicted class differs from place to place
        model.decoder.classify.weight.mul_(30)
        model.decoder.classify.bias.sub_(model(scaled[1]).mean((0, 2, 3)))
    logits = multi_scale_logits(model, scaled, image.shape[:2])
    probability = crf_from_probability(image, torch.softmax(logits, 1)[0].numpy(), 2)
    expected = reference.segmentation(model, picture, (0.5, 1.0), 2)
    assert len(np.unique(expected)) > 1
    assert np.mean(probability.argmax(0) == expected) > 0.999  # rounding decides between equal probabilities


def test_cams(image):
    torch.manual_seed(0)
    classifier = Classifier('resnest14_narrow', 5).eval()
    pictures = [Image.fromarray(image), Image.fromarray(image[::-1].copy())]
    labels = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])
    scales = (0.5, 1.0, 1.5)
    scaled = [normalize(torch.stack([rescale(picture, scale) for picture in pictures])) for scale in scales]
    found = multi_scale_cam(classifier, scaled, labels, image.shape[:2])
    for picture, label, ours in zip(pictures, labels, found, strict=True):
        _, *expected = reference.multi_scale_cam(classifier, picture, label.numpy(), scales)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b, atol=2e-4)


def test_the_large_image_and_its_commands(in_tmp):
    """One of its commands runs to its end here; the others are accepted by their programs."""
    args = large_image.parse_args('--side 256 --tile 128 --classes 3 --present 2'.split())
    large_image.make_inputs(args, in_tmp)
    assert read_image(Path('large.jpg')).size == (256, 256)
    found = dict(large_image.commands(args))
    assert [name.split(',')[0] for name in found] == [*(f'stage {k}' for k in (2, 3, 5, 6, 8)), *2 * ['tools.predict']]
    for words in found.values():
        script = importlib.import_module('tools.predict' if words[0] == '-m' else words[0].removesuffix('.py'))
        assert script.parse_args(words[2 if words[0] == '-m' else 1 :]).tile == 128
    seconds, busy, peak = large_image.measure(found['stage 2'], in_tmp)
    assert seconds > 0 and busy > 0 and 0.1 < peak < 4
    assert Path('experiments/predictions/cls@train@tile=128@scale=0.5/large.npz').is_file()


def test_the_results_in_markdown_are_those_in_json():
    tables = json.loads((REPOSITORY / 'benchmarks' / 'RESULTS.json').read_text())
    assert (REPOSITORY / 'benchmarks' / 'RESULTS.md').read_text() == run.format_results(tables)


@pytest.mark.parametrize(
    'stage',
    [
        stage if stage in ('stage 5', 'stage 8') else pytest.param(stage, marks=pytest.mark.slow)
        for stage in cases.FILE_STAGES
    ],
)
def test_stages_take_images_of_any_size(stage, in_tmp):
    """Stand-ins for 3x700 and 5000x300, and odd sizes, with one class and many."""
    for size, tagged in (((1, 1), 20), ((3, 175), 1), ((250, 15), 2), ((33, 47), 3)):
        cases.stage_case('ours', 'cpu', in_tmp, stage, size, tagged)()
        outputs = [path for path in Path.cwd().rglob('photo.png') if 'experiments' in path.parts]
        if stage not in ('stage 2', 'stage 5'):
            assert [read_image(path).size for path in outputs] == [size]


@pytest.mark.slow
def test_steps_shared_by_processes():
    """Two processes take the steps of one, and their seconds are added."""
    assert cases.share_steps('classifier', 2, 'cpu', batch=8, size=64, steps=1) > 0


def test_results_are_kept_apart_from_other_files(in_tmp):
    out = in_tmp / 'results.md'
    assert run.read_tables(out) == {}
    tables = {'cam': {'measured': 'today', 'rows': [['a', '1 s']]}}
    out.write_text(run.format_results(tables))
    out.with_suffix('.json').write_text(json.dumps(tables))
    assert run.read_tables(out) == tables
    out.with_suffix('.json').write_text('{"classes": ["cat"]}')
    with pytest.raises(UserError, match='results.json is not of this program: remove it or name another file'):
        run.read_tables(out)
    out.write_text('# Notes')
    with pytest.raises(UserError, match='--out .*results.md: exists, and this program has not written it'):
        run.read_tables(out)
