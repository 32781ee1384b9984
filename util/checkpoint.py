"""Model files: {'model': state dict of CPU tensors, 'meta': how it was trained}, read without unpickling code."""

import io
from argparse import Namespace
from pathlib import Path

import torch
from torch import nn

from core import UserError
from core.models.weights import check_not_published, read_state_dict
from util.artifacts import model_path
from util.devices import pick_device, to_device, unwrap
from util.files import check_name, write_bytes
from util.fingerprint import file_hash


def check_finite(model: nn.Module) -> None:
    """Raise UserError if a weight or statistic is NaN or infinite: earlier checkpoints are good, this one is not."""
    for name, value in unwrap(model).state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f'{name} became non-finite; nothing was saved. Try a smaller --lr, or check --weights')


def save_model(model: nn.Module, path: Path, **meta) -> None:
    """Write a model file atomically. `meta`: architecture, classes, epoch, ... Raises UserError if not finite."""
    check_finite(model)
    state = {name: value.detach().cpu().contiguous() for name, value in unwrap(model).state_dict().items()}
    save_torch({'model': state, 'meta': meta}, path)


def save_torch(content: dict, path: Path) -> None:
    """Write with torch.save, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_model(model: nn.Module, tag: str, flag: str, script: str, architecture: str) -> str:
    """Load the model of a tag into a network and return the file's fingerprint.

    Raises UserError naming the flag and the script to run if the file is missing, or naming the file if it is damaged
    or of another architecture.
    """
    path = model_path(tag)
    check_name(path, flag)
    if not path.is_file():
        raise UserError(f'{flag}: {path} not found; run {script} first')
    state, meta, form = read_state_dict(path)
    check_not_published(str(path), state)
    if meta.get('architecture', architecture) != architecture:
        raise UserError(f'{path}: was trained as {meta["architecture"]}, requested {architecture}: correct the flags')
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f'{path} ({form}): does not fit {architecture}: {reason[0].strip()[:200]}') from None
    return file_hash(path)


def load_for_inference(
    network: nn.Module, args: Namespace, tag: str, flag: str, script: str, architecture: str
) -> tuple[nn.Module, torch.device, str]:
    """Load the model of a tag, prepare it for inference and move it to the device of --device, in --precision.

    Returns the model, the device and the file's fingerprint; raises UserError as `load_model` and `pick_device` do.
    """
    device = pick_device(args.device)
    fingerprint = load_model(network, tag, flag, script, architecture)
    return to_device(network.for_inference(), device, args.precision), device, fingerprint
