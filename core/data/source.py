"""Sources, which find the files of an image id: the interface, and the source of all kinds that list rows.

No torch here: stages 3, 6 and 9 import this module and fork.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core import UserError
from core.data import exports
from core.data.images import find_file, make_image_id
from core.data.voc import Box

SPLITS = {'train': ('train_aug', 'train'), 'train_aug': ('train_aug',), 'val': ('val',), 'test': ('test',)}


class Source(ABC):
    """Lists of image ids, and where the files of an id are. Methods raise UserError naming the file."""

    root: Path  # the folder that the images are in

    @property
    @abstractmethod
    def domains(self) -> tuple[str, ...]:
        """Return the names of the lists."""

    @abstractmethod
    def ids(self, domain: str) -> list[str]:
        """Return the image ids of a list."""

    @abstractmethod
    def list_path(self, domain: str) -> Path:
        """Return the file or folder that lists the images of a list."""

    @abstractmethod
    def image_path(self, image_id: str) -> Path:
        """Return the path of the image."""

    @abstractmethod
    def mask_path(self, image_id: str) -> Path | None:
        """Return the path of the ground-truth mask, which may not exist; None if none is named."""

    @abstractmethod
    def has_mask(self, image_id: str) -> bool:
        """Return whether there is a mask, or one is named."""

    @abstractmethod
    def labels_path(self, image_id: str) -> Path | str:
        """Return the file of the image-level label, with the line if it is a CSV file."""

    @abstractmethod
    def read_tags(self, image_id: str) -> list[str] | None:
        """Return the names of the classes of an image; None: those that its mask contains."""

    def read_boxes(self, image_id: str) -> list[Box]:
        """Return the boxes of the objects of an image, [] if they are unknown."""
        return []

    def masked_class(self, image_id: str) -> str:
        """Return the class of a mask of 0 and 255 that shows a single one, '' for masks of all classes."""
        return ''


@dataclass(frozen=True)
class Row:
    """An image of a data set that lists rows. Paths are relative to the root; '' where there is none.

    `classes` are None if `annotation`, a file of a labelling tool, or without one the mask says which they are.
    """

    image: str
    classes: tuple[str, ...] | None
    mask: str = ''
    split: str = 'train'
    where: Path = Path()  # the file or folder that says which classes it has
    line: int = 0  # in this file, if it is a CSV file
    annotation: str = ''
    boxes: tuple[Box, ...] = ()
    masked_class: str = ''


@dataclass(frozen=True)
class Rows(Source):
    """The rows by image id, the ids of each list, and the file or folder that has each split."""

    path: Path
    root: Path
    rows: dict[str, Row]
    lists: dict[str, list[str]]
    places: dict[str, Path]

    @classmethod
    def of(cls, path: Path, root: Path, rows: Iterable[Row], places: dict[str, Path] | None = None) -> 'Rows':
        """Return the source of some rows. Raises UserError if two images have the same id."""
        by_id: dict[str, Row] = {}
        lists: dict[str, list[str]] = {}
        for row in rows:
            try:
                image_id = make_image_id(row.image)
            except UserError as error:
                raise UserError(f'{row.where}: {_line(row, "{}: ")}{error}', option='dataset') from None
            if image_id in by_id:
                pair = ' and '.join(f'{one.image}{_line(one, " ({})")}' for one in (by_id[image_id], row))
                raise UserError(
                    f'{path}: {pair} both have the image id {image_id!r}: rename one of them', option='dataset'
                )
            by_id[image_id] = row
            for domain in SPLITS[row.split]:
                lists.setdefault(domain, []).append(image_id)
        return cls(path, root, by_id, lists, places or {})

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.lists)

    def ids(self, domain: str) -> list[str]:
        return list(self.lists[domain])

    def list_path(self, domain: str) -> Path:
        return self.places.get(domain, self.path)

    def row(self, image_id: str) -> Row:
        """Return the row of an image. Raises UserError if there is none."""
        if image_id not in self.rows:
            raise UserError(f'{self.path}: has no row for the image {image_id!r}')
        return self.rows[image_id]

    def image_path(self, image_id: str) -> Path:
        return find_file(self.root / self.row(image_id).image)

    def mask_path(self, image_id: str) -> Path | None:
        mask = self.row(image_id).mask
        return find_file(self.root / mask) if mask else None

    def has_mask(self, image_id: str) -> bool:
        """Return whether the row names a mask, even if its file is missing."""
        return bool(self.rows[image_id].mask)

    def labels_path(self, image_id: str) -> Path | str:
        row = self.row(image_id)
        if row.line:
            return f'{row.where}, line {row.line}'
        return self.root / row.annotation if row.annotation else str(row.where)

    def read_tags(self, image_id: str) -> list[str] | None:
        row = self.rows[image_id]
        if row.annotation:
            return exports.tags_of(exports.read_beside(self.root / row.annotation, self.image_path(image_id)))
        return None if row.classes is None else list(row.classes)

    def read_boxes(self, image_id: str) -> list[Box]:
        row = self.rows[image_id]
        if row.annotation:
            return list(exports.boxes_of(exports.read_beside(self.root / row.annotation, self.image_path(image_id))))
        return list(row.boxes)

    def masked_class(self, image_id: str) -> str:
        return self.rows[image_id].masked_class


def _line(row: Row, text: str) -> str:
    """Return a text with the line of a row in it, '' if it has none."""
    return text.format(f'line {row.line}') if row.line else ''
