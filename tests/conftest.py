"""Where the fixtures come from: tests/support/fixtures.py."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Import the fixtures, and with them torch, where tests run.

    With -n the workers do; the process that hands out the tests starts them seconds earlier without torch.
    """
    if not config.getoption('numprocesses', None):
        config.pluginmanager.import_plugin('support.fixtures')
