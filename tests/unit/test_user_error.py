"""The error of invalid input."""

import pickle

import pytest

from core import UserError


@pytest.mark.parametrize('option, text', [(None, 'is wrong'), ('domain', 'domain is wrong')])
def test_the_option_survives_pickling(option, text):
    """As from the worker processes that read files."""
    error = UserError('is wrong', option)
    for _ in range(2):
        assert (str(error), error.option) == (text, option)
        assert isinstance(error, ValueError)
        error = pickle.loads(pickle.dumps(error))
    assert type(error) is UserError
