"""Which image and which class a name in a file of another program means."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from core import IGNORE
from core.data.dataset import Dataset
from tools.exchange.writing import BACKGROUND, IGNORED

UPLOADED = re.compile('[0-9a-f]{8}-(.+)')  # Label Studio's prefix of a file that was uploaded
ENDING = re.compile(r'\.[A-Za-z0-9]{1,7}$')


class Images:
    """The images of a data set, found by their id, their path, or the end of either, with the ending or without it."""

    def __init__(self, dataset: Dataset, ids: Iterable[str]):
        self.dataset, self.ids = dataset, list(ids)
        self.by_name: dict[str, list[str]] = {}
        self.whole: dict[str, set[str]] = {}
        for image_id in self.ids:
            path = name_of(dataset, image_id)
            self.whole[image_id] = {_normal(name) for name in (path, ENDING.sub('', path), image_id)}
            for name in self.whole[image_id]:
                parts = name.split('/')
                for start in range(len(parts)):
                    self.by_name.setdefault('/'.join(parts[start:]), []).append(image_id)

    def find_all(self, names: Iterable[str]) -> list[str | ValueError]:
        """Return the id of the image that each name of a file means, or the error that there is none, or several.

        The whole path of an image may be the end of other ones: a.jpg, of sub/a.jpg. It means this image if other names
        of the file mean all the others, because then it is not a path without its folders.
        """
        names = list(names)
        keys = [self._key(name) for name in names]
        meant = {key: ids[0] for key in keys if len(ids := self.by_name.get(key, ())) == 1}
        unclear = {key for key in keys if len(self.by_name.get(key, ())) > 1}
        more = True
        while more:
            taken = set(meant.values())
            left = {key: [image_id for image_id in self.by_name[key] if image_id not in taken] for key in unclear}
            more = {key: ids[0] for key, ids in left.items() if len(ids) == 1 and key in self.whole[ids[0]]}
            meant |= more
            unclear -= more.keys()
        return [meant.get(key) or self._fault(name, key) for name, key in zip(names, keys, strict=True)]

    def _key(self, name):
        """Return the longest end of a name that is also the end of a path, '' if there is none."""
        for parts in _readings(name):
            for start in range(len(parts)):
                tail = '/'.join(parts[start:])
                for key in (tail, ENDING.sub('', tail)):
                    if key in self.by_name:
                        return key
        return ''

    def _fault(self, name, key):
        paths = ' and '.join(name_of(self.dataset, image_id) for image_id in self.by_name.get(key, ())[:2])
        return ValueError(
            f'{name!r} ' + (f'may be {paths}: their names must differ' if key else 'is not an image of the data set')
        )


class Classes:
    """The classes of a data set, found by name; `renamed` has other names for some."""

    def __init__(self, names: Iterable[str], renamed: Mapping[str, str]):
        self.names = tuple(names)
        self.renamed = {_normal(old): new for old, new in renamed.items()}
        self.indices = {_normal(name): index for index, name in enumerate(self.names, 1)}
        self.indices = {BACKGROUND: 0, IGNORED: IGNORE, **self.indices}

    def find(self, label: str | None) -> int | None:
        """Return the index of a class, None if it is unknown; a label that is None means ignored pixels."""
        if label is None:
            return IGNORE
        return self.indices.get(_normal(self.rename(label)))

    def rename(self, label: str) -> str:
        """Return the other name of a label, if it has one."""
        label = _normal(label.strip())
        return self.renamed.get(label, label)

    def near(self, label: str) -> str | None:
        """Return the known name that is most similar."""
        lower = {name.lower(): name for name in self.names}
        return next((lower[found] for found in get_close_matches(label.lower(), lower, 1)), None)


def name_of(dataset: Dataset, image_id: str) -> str:
    """Return the path of an image below the folder of the data set, with '/'."""
    path = dataset.image_path(image_id)
    return (
        path.relative_to(dataset.root) if path.is_relative_to(dataset.root) else PurePosixPath(path.name)
    ).as_posix()


def _readings(name: str) -> Iterable[list[str]]:
    """Yield the parts of a name: as it is, as an address, and without what Label Studio puts before an uploaded file.

    Parts such as '..' are left out: a name is only compared, never opened.
    """
    address = urlsplit(name)._replace(scheme='', netloc='') if '://' in name or name.startswith('/data/') else None
    texts = [name]
    if address is not None:
        texts.append(unquote(address.query.removeprefix('d=') if address.query.startswith('d=') else address.path))
    texts.append(unquote(name))
    for text in texts:
        parts = [part for part in _normal(text).replace('\\', '/').split('/') if part not in ('', '.', '..')]
        yield parts
        uploaded = UPLOADED.fullmatch(parts[-1]) if parts else None
        if uploaded:
            yield [*parts[:-1], uploaded[1]]


def _normal(name: str) -> str:
    return unicodedata.normalize('NFC', name)
