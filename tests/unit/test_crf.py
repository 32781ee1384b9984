"""The CRFs against direct calls of pydensecrf with the constants of docs/method.md."""

import importlib
import sys

import numpy as np
import pydensecrf.densecrf as dcrf
import pytest

import evaluate
import inference_segmentation
import make_affinity_labels
import make_pseudo_labels
from core import UserError, crf
from core.crf import crf_from_label, crf_from_labels, crf_from_probability
from support import REPOSITORY, draw_image

SIZE = (44, 36)  # width, height


@pytest.fixture
def image(tmp_path):
    return np.array(draw_image(tmp_path / 'image.jpg', SIZE))


def inferred(image, unary, sxy, srgb, iterations, weight=10, gaussian=(3, 3)):
    h, w = image.shape[:2]
    model = dcrf.DenseCRF2D(w, h, len(unary))
    model.setUnaryEnergy(np.ascontiguousarray(unary.reshape(len(unary), -1), np.float32))
    model.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
    model.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=np.ascontiguousarray(image), compat=weight)
    return np.array(model.inference(iterations)).reshape(-1, h, w)


def label_unary(label, num_labels, gt_prob=0.7):
    """Return -log gt_prob for the given label; the others share the remaining probability."""
    unary = np.full((num_labels, *label.shape), -np.log((1 - gt_prob) / (num_labels - 1)))
    for k in range(num_labels):
        unary[k][label == k] = -np.log(gt_prob)
    return unary


@pytest.mark.parametrize('num_labels, iterations', [(2, 1), (3, 10), (5, 3)])
@pytest.mark.parametrize('dtype', [np.int64, np.uint8])
def test_label_crf(image, rng, num_labels, iterations, dtype):
    label = np.kron(rng.integers(0, num_labels, (6, 11)), np.ones((6, 4), int)).astype(dtype)
    before = label.copy()
    found = crf_from_label(image, label, num_labels, iterations)
    expected = inferred(image, label_unary(label, num_labels), 50, 5, iterations).argmax(0)
    assert np.array_equal(found, expected)
    assert found.dtype == dtype
    assert np.array_equal(label, before)
    assert (found != label).any()  # otherwise this compares nothing


OPTIONS = [  # options of the CRF and of the direct call
    ({'gt_prob': 0.9}, {}),
    ({'gaussian': (1, 3)}, {'gaussian': (1, 3)}),
    ({'gaussian': (3.0, 20)}, {'gaussian': (3, 20)}),
    ({'bilateral': (8, 5, 10)}, {'sxy': 8}),
    ({'bilateral': (50, 40, 10)}, {'srgb': 40}),
    ({'bilateral': (50, 5, 1)}, {'weight': 1}),
    ({'gaussian': [2, 0], 'bilateral': [20.0, 30.0, 4.0]}, {'gaussian': (2, 0), 'sxy': 20, 'srgb': 30, 'weight': 4}),
]


@pytest.mark.parametrize('options, direct', OPTIONS, ids=[str(options) for options, _ in OPTIONS])
def test_options_of_the_label_crf(image, rng, options, direct):
    label = np.kron(rng.integers(0, 3, (12, 11)), np.ones((3, 4), int))
    found = crf_from_label(image, label, 3, 4, **options)
    unary = label_unary(label, 3, options.get('gt_prob', 0.7))
    expected = inferred(image, unary, **{'sxy': 50, 'srgb': 5, 'iterations': 4, **direct})
    assert np.array_equal(found, expected.argmax(0))
    assert not np.array_equal(found, crf_from_label(image, label, 3, 4))  # every option counts
    together = crf_from_labels(image, [label, label.T.copy().reshape(label.shape)], 3, 4, **options)
    assert np.array_equal(together[0], found)


def test_options_of_the_probability_crf(image, rng):
    probability = rng.dirichlet([1, 1, 1], SIZE[::-1]).astype(np.float32).transpose(2, 0, 1)
    unary = -np.log(np.clip(probability, 1e-5, 1))
    for options, direct in OPTIONS[1:]:
        found = crf_from_probability(image, probability, 3, **{'bilateral': (50, 5, 10), **options})
        expected = inferred(image, unary, **{'sxy': 50, 'srgb': 5, 'iterations': 3, **direct})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_label_crf_defaults_to_ten_iterations(image, rng):
    label = rng.integers(0, 3, SIZE[::-1])
    assert np.array_equal(crf_from_label(image, label, 3), crf_from_label(image, label, 3, 10))


@pytest.mark.parametrize('iterations', [0, 1, 10])
def test_image_without_foreground_is_background(image, iterations):
    label = np.zeros(SIZE[::-1], np.int64)
    assert not crf_from_label(image, label, 1, iterations).any()


def test_label_that_no_pixel_has(image):
    label = np.zeros(SIZE[::-1], np.int64)
    assert np.array_equal(crf_from_label(image, label, 4, 10), label)


def test_zero_iterations_change_nothing(image, rng):
    label = rng.integers(0, 3, SIZE[::-1])
    found = crf_from_label(image, label, 3, 0)
    assert np.array_equal(found, label)
    assert found is not label
    probability = rng.random((4, *SIZE[::-1])).astype(np.float32)
    assert np.array_equal(crf_from_probability(image, probability, 0), probability)


@pytest.mark.parametrize('num_labels, iterations', [(21, 10), (4, 1), (2, 10)])
def test_probability_crf(image, rng, num_labels, iterations):
    scores = np.kron(rng.normal(size=(num_labels, 6, 11)), np.ones((1, 6, 4)))
    probability = (np.exp(scores) / np.exp(scores).sum(0)).astype(np.float32)
    found = crf_from_probability(image, probability, iterations)
    expected = inferred(image, -np.log(np.clip(probability, 1e-5, 1)), 80, 13, iterations)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == probability.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert np.abs(found - probability).max() > 0.1


def test_probability_crf_defaults_to_ten_iterations_and_takes_any_memory_layout(image, rng):
    probability = rng.dirichlet([1, 1, 1], SIZE[::-1]).astype(np.float32).transpose(2, 0, 1)
    found = crf_from_probability(image, probability)
    assert np.array_equal(found, crf_from_probability(image, np.ascontiguousarray(probability), 10))


def test_images_of_any_memory_layout(image, rng):
    label = rng.integers(0, 3, SIZE[::-1])
    flipped = image[:, ::-1]
    assert np.array_equal(crf_from_label(flipped, label, 3), crf_from_label(flipped.copy(), label, 3))


@pytest.mark.parametrize('num_labels, iterations', [(1, 3), (2, 3), (3, 0), (3, 10)])
def test_label_maps_refined_together_are_independent(image, rng, num_labels, iterations):
    labels = [rng.integers(0, num_labels, SIZE[::-1]) for _ in range(3)]
    found = crf_from_labels(image, labels, num_labels, iterations)
    assert len(found) == 3
    for refined, label in zip(found, labels, strict=True):
        assert np.array_equal(refined, crf_from_label(image, label, num_labels, iterations))


@pytest.mark.parametrize('num_labels', [2, 3, 6])
def test_maps_refined_together_differ_only_by_rounding(image, rng, num_labels):
    labels = [np.kron(rng.integers(0, num_labels, (6, 11)), np.ones((6, 4), int)) for _ in range(2)]
    unaries = [label_unary(label, num_labels).reshape(num_labels, -1) for label in labels]
    together = crf._CRF(image, num_labels, (3, 3), (50, 5, 10)).infer_together(unaries, 10)
    for probability, unary in zip(together, unaries, strict=True):
        np.testing.assert_allclose(probability, inferred(image, unary, 50, 5, 10), atol=crf.TIE / 2)


def test_map_with_a_tie_is_refined_alone(image, rng, monkeypatch):
    labels = [rng.integers(0, 3, SIZE[::-1]) for _ in range(2)]
    alone, infer = [], crf._CRF.infer
    monkeypatch.setattr(crf._CRF, 'infer', lambda *args: alone.append(args) or infer(*args))
    for tie, times in ((0.0, 0), (1.1, 2)):
        monkeypatch.setattr(crf, 'TIE', tie)
        found = crf_from_labels(image, labels, 3)
        assert len(alone) == times
    assert np.array_equal(found, [crf_from_label(image, label, 3) for label in labels])


@pytest.mark.parametrize('iterations', [0, 10])
def test_read_only_arrays(image, rng, iterations):
    labels = [rng.integers(0, 3, SIZE[::-1]) for _ in range(2)]
    probability = rng.dirichlet([1, 1, 1], SIZE[::-1]).astype(np.float32).transpose(2, 0, 1).copy()

    def results():
        return [
            crf_from_label(image, labels[0], 3, iterations),
            *crf_from_labels(image, labels, 3, iterations),
            crf_from_probability(image, probability, iterations),
        ]

    expected, inputs = results(), [image, *labels, probability]
    before = [array.copy() for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    assert all(np.array_equal(a, b) for a, b in zip(results(), expected, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert not any(np.shares_memory(found, array) for found in results() for array in inputs)


def test_large_maps_are_refined_one_after_the_other(image, rng, monkeypatch):
    labels = [rng.integers(0, 3, SIZE[::-1]) for _ in range(2)]
    expected, together = crf_from_labels(image, labels, 3), []
    monkeypatch.setattr(crf._CRF, 'infer_together', lambda *args: together.append(args))
    monkeypatch.setattr(crf, 'TOGETHER', 2 * 3 * labels[0].size - 1)
    assert np.array_equal(crf_from_labels(image, labels, 3), expected)
    assert not together


@pytest.mark.parametrize('num_labels, iterations', [(2, 1), (5, 10), (21, 3)])
def test_steps_equal_inference_bit_for_bit(image, rng, num_labels, iterations):
    probability = rng.dirichlet(np.ones(num_labels), SIZE[::-1]).astype(np.float32).transpose(2, 0, 1)
    unary = -np.log(np.clip(probability, 1e-5, 1))
    expected = inferred(image, unary, 80, 13, iterations)
    assert np.array_equal(crf_from_probability(image, probability, iterations), expected)


@pytest.fixture
def without_pydensecrf(monkeypatch):
    """core.crf as it is where pydensecrf is not installed."""
    with monkeypatch.context() as hidden:
        for name in [name for name in sys.modules if name.split('.')[0] == 'pydensecrf']:
            hidden.setitem(sys.modules, name, None)
        importlib.reload(crf)
        yield
    importlib.reload(crf)


def test_without_pydensecrf_everything_but_the_crf_works(without_pydensecrf, image):
    label = np.zeros(image.shape[:2], np.uint8)
    assert (crf.crf_from_label(image, label, 3, 0) == label).all()
    assert (crf.crf_from_label(image, label, 1, 10) == label).all()  # no foreground
    probability = np.full((2, *label.shape), 0.5, np.float32)
    assert (crf.crf_from_probability(image, probability, 0) == probability).all()
    for refine, what in ((crf.crf_from_label, (label, 3, 1)), (crf.crf_from_probability, (probability, 1))):
        with pytest.raises(UserError, match='pip install --no-build-isolation -r requirements-crf.txt'):
            refine(image, *what)


@pytest.mark.parametrize(
    'stage, line',
    [
        (make_affinity_labels, '--experiment_name e'),
        (make_pseudo_labels, '--experiment_name e'),
        (inference_segmentation, '--tag t'),
        (evaluate, '--experiment_name e --crf_iteration 1'),
    ],
)
def test_stages_say_how_to_install_pydensecrf_before_they_start(without_pydensecrf, stage, line, in_tmp):
    data = ['--dataset', 'nowhere.json']  # what they would read first
    with pytest.raises(UserError, match='the dense CRF needs pydensecrf') as error:
        stage.main(stage.parse_args([*line.split(), *data]))
    assert '\n' not in str(error.value) and str(error.value).endswith(crf.INSTALL)
    with pytest.raises(UserError, match='nowhere.json'):
        stage.main(stage.parse_args([*line.split(), *data, '--crf_iteration', '0']))


def test_the_command_that_installs_pydensecrf_is_documented():
    required = (REPOSITORY / 'requirements-crf.txt').read_text()
    assert crf.INSTALL in required and '\npydensecrf2' in required
    assert 'pydensecrf' not in (REPOSITORY / 'requirements.txt').read_text()
