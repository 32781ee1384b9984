"""Output folders under experiments/predictions/: a class that reads and writes one, and how a stage opens one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core import UserError
from core.data.dataset import Dataset
from core.maps import UpsampledRW, strided_size, upsample_rw
from core.tiles import is_cut
from util.parallel.workers import parallel_map
from util.store import arrays
from util.store.current import digests, find_outdated, identity
from util.store.files import check_name, write_bytes
from util.store.fingerprints import read_args, read_inputs
from util.store.formats import FORMATS, PREDICTIONS, RANDOM_WALK, Format
from util.store.hashes import digest, file_hash, file_hashes
from util.store.shares import noticing_writers
from util.store.written import find_unrecorded, note


class Folder:
    """An output folder of a stage: reads and writes the file of an image id.

    `missing` holds the ids that a folder opened for writing still lacks; its `journal` notes the files that it writes.
    """

    other = 'another name'  # the alternative to --overwrite in errors about a folder with other settings

    def __init__(self, kind: Format, path: Path, dataset: Dataset, ids: Sequence[str]):
        self.kind, self.path, self.dataset, self.ids = kind, path, dataset, ids
        self.missing: set[str] = set()
        self.journal: Path | None = None
        self.identity = ''  # set when the folder is opened for reading

    def __getstate__(self) -> dict:
        """Leave out the lists of ids: worker processes read and write single files."""
        return {**self.__dict__, 'ids': (), 'missing': set()}

    def file(self, image_id: str) -> Path:
        return self.path / f'{image_id}{self.kind.suffix}'

    def lacks(self, image_id: str) -> bool:
        """Return whether a file of an image is missing."""
        return not all((self.path / f'{image_id}{ending}').is_file() for ending in self.kind.endings)

    def existing(self) -> list[Path]:
        """Return the files that --overwrite removes, whatever their ids."""
        return [*self.path.glob(f'*{self.kind.suffix}')]

    @property
    def record(self) -> dict:
        """The content of args.json."""
        return read_args(self.path)

    @property
    def fingerprint(self) -> str:
        """Hash of the options and inputs behind the folder; the inputs are hashes themselves."""
        return digest(self.record.get('fingerprint', {}))

    def digests(self, ids: Sequence[str]) -> dict[str, str]:
        """Return a hash of the inputs of each image's file, '' if inputs.json has none."""
        return digests(read_inputs(self.path), ids)

    def check_unchanged(self) -> None:
        """Raise UserError if the folder or files of its ids were written again since it was opened for reading."""
        changed = self.identity not in ('', identity(self.path, self.ids))
        if changed or self.identity and find_unrecorded(self.path, self.kind, self.ids):
            raise UserError(f'{self.path}: was written again while it was read: run the same command once more')

    def image_name(self, image_id: str) -> str:
        return self.dataset.image_path(image_id).name

    def read_label(self, image_id: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return a label map (h, w) uint8 of the size (h, w). Raises UserError naming the file."""
        return self.dataset.read_label_map(self.file(image_id), size)

    def read_maps(
        self, image_id: str, name: str, size: tuple[int, int] | None = None, kept: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return keys (K+1,) and the maps (K, h, w) of a name of the size (h, w); see `arrays.read_maps`."""
        return arrays.read_maps(self.file(image_id), name, self.dataset.num_classes, size, kept)

    def read_scores(
        self, image_id: str, size: tuple[int, int], tile: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | UpsampledRW]:
        """Return keys (K+1,) and the scores (K, h, w) that the label of an image of the size (h, w) is made from.

        With a `tile`, larger scores stay as small as they are stored: float16, or enlarged part by part.
        """
        kept = is_cut(size, tile)
        if self.kind == RANDOM_WALK:
            keys, rw = self.read_maps(image_id, 'rw', strided_size(size))
            return keys, (UpsampledRW if kept else upsample_rw)(rw, size)
        return self.read_maps(image_id, 'hr_cam', size, kept)

    def write_edge(self, image_id: str, edge: np.ndarray) -> None:
        """Write an edge map (h, w) as float16."""
        self._write(image_id, arrays.encode_npz(self.file(image_id), edge=edge.astype(np.float16)))

    def write_label(self, image_id: str, label: np.ndarray) -> None:
        """Write a label map (h, w) as a palette PNG."""
        self._write(image_id, self.dataset.encode_label_map(label))

    def write_maps(self, image_id: str, keys: np.ndarray, *maps: np.ndarray) -> None:
        """Write keys (K+1,) and the maps of this format, each (K, h, w), as float16."""
        named = {name: array.astype(np.float16, copy=False) for name, array in zip(self.kind.maps, maps, strict=True)}
        self._write(image_id, arrays.encode_npz(self.file(image_id), keys=keys, **named))

    def _write(self, image_id: str, content: bytes) -> None:
        """Write the main file of an image, after the files beside it."""
        if self.journal is not None:
            beside = [file_hash(self.path / f'{image_id}{ending}')[:16] for ending in self.kind.beside]
            note(self.journal, image_id, content, *beside)
        write_bytes(self.file(image_id), content)

    def write_missing_labels(self, make: Callable[..., np.ndarray], num_workers: int, **inputs) -> None:
        """Write make(image_id, **inputs) for each missing id, from num_workers processes."""

        def write(image_id: str) -> None:
            self.write_label(image_id, make(image_id, **inputs))

        todo = [image_id for image_id in self.ids if image_id in self.missing]
        for _ in parallel_map(write, todo, num_workers, f'{self.kind.title}s'):
            pass

    def check(self, image_id: str) -> None:
        """Read a file. Raises UserError if it is damaged or not of this format."""
        if not self.kind.maps:
            self.read_label(image_id)
        for name in self.kind.maps:
            if self.kind.by_class:
                self.read_maps(image_id, name, self._size(image_id, name), kept=True)
            else:
                arrays.read_edge(self.file(image_id))

    def _size(self, image_id: str, name: str) -> tuple[int, int] | None:
        """Return the size (h, w) that maps of a name have, None if the image cannot be read."""
        try:
            size = self.dataset.image_size(image_id)
        except UserError:
            return None
        return size if name == 'hr_cam' else strided_size(size)

    def summary(self) -> str:
        lost = sum(not self.file(image_id).is_file() for image_id in self.ids)
        counts = f'{len(self.ids) - lost} {self.kind.title}s in {self.path}, {len(self.missing) - lost} of them new'
        return counts + (f', {lost} missing: run the same command again' if lost else '')


def open_folder(
    kind: Format | None,
    name: str,
    flag: str,
    dataset: Dataset,
    ids: Sequence[str],
    parent: str | Path = PREDICTIONS,
    unrecorded: Format | None = None,
) -> Folder:
    """Open the output of an earlier stage for reading; its args.json says which, if `kind` is None.

    `unrecorded` is the kind of a folder without args.json. Raises UserError naming the flag, the file and the script to
    run if the folder or the file of an id is missing, if args.json says that it contains something else, if its first
    file is damaged or of another format, if its inputs have changed since, or if files are not as recorded; naming the
    process that writes the folder instead, if there is one.
    """
    path = Path(parent) / name
    check_name(path, flag)
    if not path.is_dir():
        script = kind.script if kind else 'the stage that writes it'
        raise UserError(f'{flag} {name}: {path} not found; run {script} first')
    with noticing_writers(path):
        found = FORMATS.get(read_args(path).get('format'))
        kind = kind or found or unrecorded
        if kind is None:
            what = _remedy(None, path / ids[0])
            raise UserError(f'{flag} {name}: {path} has no args.json that says what it contains; {what}')
        if found not in (None, kind):
            raise UserError(f'{flag} {name}: contains {found.title}s: name a folder of {kind.title}s ({kind.script})')
        folder = Folder(kind, path, dataset, ids)
        folder.identity = identity(path, ids)  # before looking for its files
        missing = [image_id for image_id in ids if not folder.file(image_id).is_file()]
        if missing:
            count = f'{len(missing)} of {len(ids)} are missing'
            path = folder.file(missing[0])
            raise UserError(f'{path} not found ({count}); {_remedy(kind, path)}')
        outdated = find_outdated([path], dataset, ids)
        if outdated:
            raise UserError(outdated)
        folder.check(ids[0])
        return folder


def _remedy(kind: Format | None, path: Path) -> str:
    """Return the remedy for a missing file: import the CAMs of the authors' code, or run the stage."""
    published = path.with_name(f'{path.name.removesuffix(kind.suffix if kind else "")}.npy')
    if published.is_file():
        return f"{published} is of the authors' code: import its folder with python3 -m tools.import_published"
    return f'run {kind.script} first' if kind else 'pass --mode'


def identify_inputs(
    dataset: Dataset, ids: Sequence[str], inputs: dict[str, str | dict[str, str] | Folder]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the identity of the inputs of an output: hashes by name, and hashes by name and image id.

    An input is a hash, a dict with a hash per image id, or the folder of an earlier stage; the images are always an
    input.
    """
    single = {name: value for name, value in inputs.items() if isinstance(value, str)}
    by_image = {'images': file_hashes({image_id: dataset.image_path(image_id) for image_id in ids})}
    for name, value in inputs.items():
        if isinstance(value, Folder):
            single[name], by_image[name] = value.fingerprint, value.digests(ids)
        elif isinstance(value, dict):
            by_image[name] = value
    return single, by_image
