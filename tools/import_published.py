"""Import a model or a folder of CAMs that the authors of Puzzle-CAM published or their code wrote.

Reads   a file of torch.save (classifier, AffinityNet, DeepLabv3+, Seg_Model, CSeg_Model; the network and its backbone
        are recognised), or a folder of {id}.npy: CAMs or random-walk CAMs
Writes  experiments/models/{tag}.pth for stages 2, 5 and 8, or experiments/predictions/{tag}/{id}.npz for stages 3, 5,
        6 and 9

    python3 -m tools.import_published FILE --tag ResNeSt101@Puzzle@optimal
    python3 -m tools.import_published FOLDER --tag ResNeSt101@Puzzle@optimal@train@scale=0.5,1.0,1.5,2.0
"""

import os
from pathlib import Path

import numpy as np

from core import UserError, has_control_characters
from core.data.dataset import open_dataset
from core.models.weights import read_state_dict
from tools.importing.published import convert
from tools.importing.unpickle import read_arrays
from util import flags, script
from util.parallel.workers import BackgroundWriter
from util.store import create_folder, formats
from util.store.files import check_name, remove_leftovers
from util.store.hashes import digest, file_hash
from util.store.locks import lock_path, locked
from util.training.models import save_model


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('source', metavar='FILE|FOLDER', affects='input', help='model, or folder of .npy files')
    parser.add_table(flags.DATASET)
    parser.add_table(flags.WORKERS)
    run = parser.groups['run and output']
    run.add_argument('--tag', type=flags.folder_name, required=True, help='name of the model or folder to write')
    parser.add_table(flags.OVERWRITE)
    damaged = 'verify imported CAMs and regenerate damaged ones'
    run.add_argument('--repair', action='store_true', affects='speed', help=damaged)
    return parser.parse_args(argv)


# Models -------------------------------------------------------------------------------------------------------------


def describe(published, dataset):
    """Return the metadata of a network for its model file."""
    network, name, backbone, use_gn = published
    meta = {'network': name, 'backbone': backbone, 'mode': network.mode, 'classes': dataset.class_names}
    meta['palette'] = dataset.palette[: dataset.num_classes + 1].tolist()
    return meta if use_gn is None else {**meta, 'use_gn': use_gn}


def import_model(args, dataset):
    """Convert a model and save it, unless one of this tag exists."""
    source, path = Path(args.source), formats.model_path(args.tag)
    check_name(path, '--tag')
    with locked(lock_path(path), str(path)):
        remove_leftovers(path)
        run = formats.EXPERIMENTS / 'checkpoints' / path.name, formats.run_path(args.tag)
        if any(record.exists() for record in run):
            raise UserError(f'{args.tag}: is the tag of a training run: choose another', option='tag')
        if path.exists() and path.samefile(source):
            raise UserError(f'{args.tag}: the import would replace {source} itself: choose another', option='tag')
        if path.exists() and not args.overwrite:
            raise UserError(f'{path} already exists: pass --overwrite to replace it, or choose another --tag')
        file = read_state_dict(source)
        try:
            published = convert(file.state, dataset.num_classes)
        except UserError as error:
            raise UserError(f'{source}: {error}') from None
        meta = describe(published, dataset)
        imported_from = {'file': source.name, 'sha256': file.sha256}
        save_model(published.network, path, **meta, imported_from=imported_from)
    print(f'{path}: {meta["network"]}, backbone {meta["backbone"]}, {dataset.num_classes} classes')


# CAMs ---------------------------------------------------------------------------------------------------------------


def list_files(folder):
    """Return the .npy files of a folder by image id."""
    files = {path.stem: path for path in sorted(folder.glob('*.npy')) if not path.name.startswith('.')}
    if not files:
        raise UserError(f'{folder}: contains no .npy files')
    for path in files.values():
        if has_control_characters(path.name):
            raise UserError(f'{folder}: {path.name!r} contains control characters: rename it')
    return files


def read_cams(path, kind, num_classes):
    """Return keys (K+1,) and the maps of a format, each (K, h, w) float32."""
    arrays = read_arrays(path)
    missing = [name for name in ('keys', *kind.maps) if name not in arrays]
    if missing:
        raise UserError(f'{path}: contains no "{missing[0]}", which is part of a {kind.title}')
    keys = arrays['keys']
    if (
        keys.ndim != 1
        or keys.dtype.kind not in 'iu'
        or keys[:1].tolist() != [0]
        or (np.diff(keys.astype(np.int64)) <= 0).any()
        or keys[-1] > num_classes
    ):
        raise UserError(
            f'{path}: keys {keys.tolist()} are not 0 followed by increasing classes up to {num_classes}: '
            'check --dataset'
        )
    return keys.astype(np.int64), [read_map(path, name, arrays[name], len(keys) - 1) for name in kind.maps]


def read_map(path, name, maps, count):
    """Return maps (K, h, w) float32 in [0, 1]. Random-walk CAMs are sums, so they are divided by their maximum."""
    if maps.ndim != 3 or len(maps) != count or maps.dtype.kind != 'f':
        raise UserError(f'{path}: "{name}" {maps.dtype}{maps.shape} does not match {count + 1} keys')
    if 0 in maps.shape[1:]:
        raise UserError(f'{path}: "{name}" {maps.dtype}{maps.shape} has no pixels')
    maps = maps.astype(np.float32)
    lowest, highest = maps.min(initial=0), maps.max(initial=0)  # min and max propagate NaN
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise UserError(f'{path}: "{name}" contains non-finite values')
    if lowest < 0 or (name != 'rw' and highest > 1.001):
        raise UserError(f'{path}: "{name}" contains values outside 0 to 1')
    return maps / (highest or 1) if name == 'rw' else maps


def import_cams(args, dataset):
    """Convert a folder of CAMs, resuming if its import was stopped."""
    files = list_files(Path(args.source))
    first = next(iter(files.values()))
    kind = formats.RANDOM_WALK if 'rw' in read_arrays(first) else formats.CAM
    read_cams(first, kind, dataset.num_classes)

    hashes = {image_id: file_hash(path) for image_id, path in script.progress(files.items(), 'hashing')}
    inputs = {'files': digest(hashes), **args.pick(flags.OUTPUT)}
    named = kind._replace(folder='{tag}', optional=())
    with create_folder(named, args.record(), dataset, list(files), **inputs) as folder:
        missing = sorted(folder.missing)
        with BackgroundWriter(args.num_workers) as writer:
            for image_id in script.progress(missing, f'{kind.title}s'):
                keys, maps = read_cams(files[image_id], kind, dataset.num_classes)
                if file_hash(files[image_id]) != hashes[image_id]:
                    raise UserError(f'{files[image_id]}: changed while it was imported: run the same command again')
                writer.submit(folder.write_maps, image_id, keys, *maps)


def main(args):
    dataset = open_dataset(args.dataset, os.devnull)  # the images are not read
    source = Path(args.source)
    if source.is_dir():
        import_cams(args, dataset)
    elif source.is_file():
        import_model(args, dataset)
    else:
        raise UserError(f'{source}: {"is not a file or folder" if source.exists() else "no such file or folder"}')


if __name__ == '__main__':
    script.run(main, parse_args)
