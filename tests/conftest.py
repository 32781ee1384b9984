"""Where the fixtures come from: tests/support/fixtures.py."""

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Import the fixtures, and with them torch, where tests run.

    With -n the workers do; the process that hands out the tests starts them seconds earlier without torch.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and stages would ignore it too
    if not config.getoption('numprocesses', None):
        config.pluginmanager.import_plugin('support.fixtures')
