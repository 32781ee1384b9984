"""The server that the tests fork programs from."""

from support.programs import run_program

IMPORTED = """
import sys
before = set(sys.modules)
import torchvision, train_segmentation, inference_rw, tools.predict, torch.utils.tensorboard
print(len(set(sys.modules) - before))
"""


def test_the_server_has_imported_what_programs_import():
    """Otherwise every program would take seconds for it, and no test would fail."""
    assert run_program(['-c', IMPORTED]).stdout == '0\n'
