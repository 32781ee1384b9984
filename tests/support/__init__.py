"""Shared by the tests: direct recomputations, drawn pictures, stages run in this process."""

import fcntl
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from util import script
from util.flags import Options
from util.store.formats import Format, folder_name

# The browser of the tests of tools.report; recipes/cut_pictures.py looks for the same names.
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
REPOSITORY = Path(__file__).resolve().parent.parent.parent
STAGES = (
    'train_classification_with_puzzle',
    'inference_classification',
    'make_affinity_labels',
    'train_affinitynet',
    'inference_rw',
    'make_pseudo_labels',
    'train_segmentation',
    'inference_segmentation',
    'evaluate',
)


# No test cuts the power, and each call takes 15 ms on a disk; processes that are forked from this one have it too.
os.fsync = lambda descriptor: None


@contextmanager
def working_in(folder: Path) -> Iterator[Path]:
    """Make a folder the working directory inside."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first test in need of it fills, for all workers of pytest-xdist; the others wait.

    No test may change what is in it.
    """
    root = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        root = root.parent  # the folder of the session; each worker has a folder inside
    folder, done = root / name, root / f'{name}.done'
    with (root / f'{name}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a test that failed on the way
            folder.mkdir()
            with working_in(folder):
                make(folder)
            done.touch()
    return folder


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in float64 and evaluation mode with random norms, whose initial values would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dim() == 1 and value.is_floating_point():
                if name.endswith(('running_var', 'weight')):
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))
                else:
                    value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return model


def batchnorms(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the running statistics."""
    ends = ('running_mean', 'running_var', 'num_batches_tracked')
    return {name: value.clone() for name, value in model.state_dict().items() if name.endswith(ends)}


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Check that two state dicts are equal bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=name)


def bilinear_matrix(inputs: int, outputs: int, scale: float | None = None) -> np.ndarray:
    """Return the weights (outputs, inputs) of bilinear resizing along one axis with align_corners=False."""
    scale = inputs / outputs if scale is None else scale
    matrix = np.zeros((outputs, inputs))
    for i in range(outputs):
        at = max((i + 0.5) * scale - 0.5, 0)
        low = min(int(at), inputs - 1)
        high = min(low + 1, inputs - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, high] += at - low
    return matrix


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (..., h, w) float64 to (..., *size) bilinearly with align_corners=False, by two dense matrices."""
    return bilinear_matrix(maps.shape[-2], size[0]) @ maps @ bilinear_matrix(maps.shape[-1], size[1]).T


def directions_of(radius: int) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Return the points of each direction's path as docs/method.md defines them, in exact fractions."""
    paths = {}
    for y in range(radius):
        for x in range(-radius + 1, radius):
            if (y == 0 and x <= 0) or y * y + x * x >= radius * radius:
                continue
            paths[y, x] = set()
            for py in range(-radius, radius):
                for px in range(-radius, radius):
                    in_box = min(0, y) <= py <= max(0, y) and min(0, x) <= px <= max(0, x)
                    if in_box and Fraction((py * x - px * y) ** 2, x * x + y * y) < 1:
                        paths[y, x].add((py, px))
    return paths


def voc_xml(*objects: str, size: tuple[int, int] = (40, 30), box=(1, 1, 9, 9), more: str = '') -> str:
    """Return the VOC annotation of an image of the size (width, height) with one object per name."""
    sides = ''.join(f'<{side}>{at}</{side}>' for side, at in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True))
    things = ''.join(f'<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>' for name in objects)
    width, height = size
    return f'<annotation><size><width>{width}</width><height>{height}</height></size>{things}</annotation>'


def draw_image(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Image.Image:
    """Save a picture of smooth colours and the size (width, height) as a JPEG; return it as read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    with Image.open(path) as image:
        return image.convert('RGB')


def without_seconds(path: Path) -> bytes:
    """Return the content of an output file without the durations that args.json, curves, results, checkpoints hold."""

    def strip(value):
        if isinstance(value, dict):
            return {name: strip(part) for name, part in value.items() if name != 'seconds'}
        return value

    if path.suffix == '.json':
        return json.dumps(strip(json.loads(path.read_text()))).encode()
    if path.parent.name == 'checkpoints' and path.suffix == '.pth':
        try:
            content = torch.load(path, weights_only=True)
            del content['state']['log']['seconds']
        except Exception:  # damaged by a test
            return path.read_bytes()
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()
    return path.read_bytes()


def run_stage(module, line: list[str]) -> Options:
    """Parse a command as the script does and run its main; return the options."""
    args = module.parse_args(line)
    module.main(args)
    return args


def folder_of(kind: Format, args: Options) -> str:
    """Return the name of the folder that a command writes."""
    return folder_name(kind, vars(args), args.record().defaults)


def claim_sides(path: Path, width: int, height: int) -> None:
    """Let the header of a PNG say other sides; the pixels can then not be decoded."""
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack('>II', width, height)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    path.write_bytes(content)


def fault_of(module, line: list[str], capsys) -> str:
    """Run a script as a program does and return the one line that its invalid input ends with."""
    if getattr(module, '__name__', '') in STAGES[:-1]:
        line = [*line, '--overwrite']  # otherwise earlier output could be the error
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        script.run(module.main, lambda: module.parse_args(line))
    # sys.exit prints a string to stderr and exits with 1; argparse prints its own line and exits with 2.
    if isinstance(ended.value.code, str):
        text = ended.value.code
    else:
        assert ended.value.code == 2, ended.value.code
        text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text
    assert '\n' not in text
    assert 'Traceback' not in text
    return text


def subprocess_environment() -> dict[str, str]:
    """Return this environment with one thread and without GPUs, for scripts run as programs."""
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(REPOSITORY)}


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments
