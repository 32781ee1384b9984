"""tools/exchange/brush.py: Label Studio's run-length code, by hand and with its converter where that is installed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tools.exchange import brush


def code_of(bits: str) -> list[int]:
    bits = bits.replace(' ', '')
    bits += '0' * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


HEAD = f'{8:032b} 00111 0010 0011 0111 1111'  # 8 values of 8 bits; lengths of 3, 4, 8 or 16 bits


def test_a_code_written_by_hand():
    """A pixel that is in the object, as a run, and one whose alpha is 0, as literal values."""
    code = code_of(f'{HEAD} 1 00 011 11111111  0 00 011 11111111 11111111 11111111 00000000')
    assert brush.decode(code, (1, 2)).tolist() == [[True, False]]
    assert brush.decode(code, (2, 1)).tolist() == [[True], [False]]


def test_runs_are_encoded_with_the_shortest_length():
    assert brush.encode(np.array([[True, False]])) == code_of(f'{HEAD} 1 00 011 11111111 1 00 011 00000000')


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_what_is_encoded_is_decoded(mask):
    np.testing.assert_array_equal(brush.decode(brush.encode(mask), mask.shape), mask)


def test_long_runs():
    mask = np.zeros((300, 400), bool)
    mask[100:, :] = True
    code = brush.encode(mask)
    assert len(code) < 60
    np.testing.assert_array_equal(brush.decode(code, mask.shape), mask)


@pytest.mark.parametrize(
    'code, said',
    [
        (None, 'not a list of bytes'),
        ([1, 2, 256], 'not a list of bytes'),
        ([1, 2, 1.0], 'not a list of bytes'),
        ([True], 'not a list of bytes'),
        ([], 'ends too early'),
        ([0, 0], 'ends too early'),
        (code_of(HEAD), 'ends too early'),
        (code_of(f'{HEAD} 1 00 011 1'), 'ends too early'),
        (code_of(f'{HEAD} 1 11 {"1" * 16} 11111111'), 'past the end'),
        (code_of(f'{9:032b} 00111 0010 0011 0111 1111'), 'has 9 values instead of 8'),
        ([255] * 40, 'has 4294967295 values instead of 8'),
    ],
)
def test_other_codes_are_refused(code, said):
    with pytest.raises(ValueError, match=said):
        brush.decode(code, (1, 2))


@pytest.mark.parametrize('package', ['label_studio_sdk.converter', 'label_studio_converter'])
def test_label_studios_own_converter_reads_and_writes_the_same(package, rng):
    theirs = pytest.importorskip(f'{package}.brush')
    mask = np.repeat(np.repeat(rng.random((12, 9)) < 0.4, 7, 0), 5, 1)
    values = theirs.decode_rle(brush.encode(mask)).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(values, np.repeat(mask[..., None] * 255, 4, 2))
    np.testing.assert_array_equal(brush.decode(theirs.mask2rle(mask.astype(np.uint8) * 255), mask.shape), mask)
