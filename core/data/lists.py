"""The JSON kind of data set: lists of image ids, and files in VOC's layout or in a layout that the JSON describes.

    {"name": "pets", "classes": ["cat", "dog"], "lists": {"train_aug": "train.txt", "train": "train.txt"},
     "images": "photos/{id}.jpg", "masks": "masks/{id}.png", "labels": "labels.csv"}

List files and "labels" are relative to the JSON, "images" and "masks" to the root folder. "labels" is a CSV file or one
of a labelling tool, or "masks": the classes are those that the masks contain. "annotations": "photos/{id}.xml" instead
of "labels" names files in the format of VOC, or with .json of labelme. Without these entries the layout is VOC's. No
torch here: stages 3, 6 and 9 import this module and fork.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from core import UserError, has_control_characters
from core.data import exports, table, voc
from core.data.entries import read_json
from core.data.files import read_text
from core.data.images import find_file
from core.data.source import Source

MASKS = 'masks'  # as "labels"
TEMPLATES = {'images': '.jpg', 'masks': '.png', 'annotations': '.xml'}  # entries that are paths with {id}, and endings


@dataclass(frozen=True)
class Lists(Source):
    """The files of an id. Without templates and table the layout is VOC's."""

    root: Path
    files: dict[str, Path]
    image_template: str | None = None
    mask_template: str | None = None
    annotation_template: str | None = None
    labels: table.Labels | str | None = None  # MASKS: the masks

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.files)

    def ids(self, domain: str) -> list[str]:
        """Return the ids of a list, one per line of its file. Raises UserError if it is empty or malformed."""
        path = self.files[domain]
        try:
            lines = read_text(path).splitlines()
        except OSError as error:
            raise UserError(f'{path}: the list "{domain}" cannot be read ({error.strerror})') from None
        except UnicodeDecodeError:
            raise UserError(f'{path}: the list "{domain}" cannot be read (not UTF-8 text)') from None
        ids = [line.strip() for line in lines if line.strip()]
        seen = set()
        for image_id in ids:
            if '/' in image_id or '\\' in image_id or image_id.startswith('.') or has_control_characters(image_id):
                raise UserError(
                    f'{path}: {image_id!r} is not a valid image id (file name without directory or extension)'
                )
            if image_id in seen:
                raise UserError(f'{path}: duplicate image id {image_id!r} (expected one id per line)')
            seen.add(image_id)
        if not ids:
            raise UserError(f'{path}: the list "{domain}" is empty')
        return ids

    def list_path(self, domain: str) -> Path:
        return self.files[domain]

    def image_path(self, image_id: str) -> Path:
        return self._find(self.image_template, voc.image_path, image_id)

    def mask_path(self, image_id: str) -> Path:
        return self._find(self.mask_template, voc.mask_path, image_id)

    def _find(self, template: str | None, in_voc: Callable[[Path, str], Path], image_id: str) -> Path:
        """Return the path from a template, or from VOC's layout if there is none."""
        if template is None:
            return find_file(in_voc(self.root, image_id))
        return find_file(self.root / template.replace('{id}', image_id))

    def has_mask(self, image_id: str) -> bool:
        return self.mask_path(image_id).exists()  # what is not a file is an error when it is read

    def labels_path(self, image_id: str) -> Path:
        if self.labels == MASKS:
            return self.mask_path(image_id)
        if self.labels is not None:
            return self.labels.path
        return self._find(self.annotation_template, voc.xml_path, image_id)

    def read_tags(self, image_id: str) -> list[str] | None:
        if self.labels == MASKS:
            return None
        if self.labels is not None:
            return self.labels.of(image_id, self._relative(image_id))
        return [thing.name for thing in self._read_annotation(image_id)]

    def read_boxes(self, image_id: str) -> list[voc.Box]:
        if self.labels == MASKS:
            return []
        if self.labels is not None:
            return self.labels.boxes_of(image_id, self._relative(image_id))
        return list(exports.boxes_of(self._read_annotation(image_id)))

    def _read_annotation(self, image_id: str) -> list[voc.Thing]:
        return exports.read_beside(self.labels_path(image_id), self.image_path(image_id))

    def _relative(self, image_id: str) -> str:
        """Return the path of an image below the root."""
        return str(PurePosixPath((self.image_template or 'JPEGImages/{id}.jpg').replace('{id}', image_id)))


def open_lists(path: Path, root: Path, entries: dict | None = None) -> tuple[Path, dict, Lists]:
    """Return the JSON file, its entries and its lists. Raises UserError naming the file.

    `entries` are the content of the file, if known.
    """
    entries = read_json(path) if entries is None else entries
    if not {'classes', 'lists'} <= entries.keys():
        hint = f' (pass {path.with_suffix(".csv")} itself)' if path.with_suffix('.csv').is_file() else ''
        raise UserError(f'{path}: needs the entries "classes" and "lists"{hint}', option='dataset')
    lists = entries['lists']
    if not isinstance(lists, dict) or not all(isinstance(file, str) for file in lists.values()):
        raise UserError(f'{path}: "lists" must name a file for each domain', option='dataset')
    if any(map(has_control_characters, (*lists, *lists.values()))):
        raise UserError(f'{path}: "lists" contains control characters', option='dataset')
    wrong = next((name for name in lists if not name or name.startswith('.') or set(name) & set('/\\')), None)
    if wrong is not None:  # it becomes a part of the names of folders
        raise UserError(f'{path}: "lists": {wrong!r} is not a name (no slashes, no leading dot)', option='dataset')
    templates = [entries.get(name) for name in TEMPLATES]
    for (name, ending), template in zip(TEMPLATES.items(), templates, strict=True):
        if template is not None and not (isinstance(template, str) and '{id}' in template):
            raise UserError(
                f'{path}: "{name}" must be a path with {{id}} in it, such as "{name}/{{id}}{ending}"', option='dataset'
            )
    labels = entries.get('labels')
    if labels is not None and 'annotations' in entries:
        raise UserError(f'{path}: has both "labels" and "annotations": keep one', option='dataset')
    if labels is not None and not isinstance(labels, str):
        kinds = 'a CSV file of image or id and classes, a file of a labelling tool, or "masks"'
        raise UserError(f'{path}: "labels" must name {kinds}', option='dataset')
    if templates[2] is not None and Path(templates[2]).suffix.lower() not in exports.BESIDE:
        known = ' or '.join(exports.BESIDE)
        raise UserError(f'{path}: "annotations" must end in {known}, such as "photos/{{id}}.xml"', option='dataset')
    labels = labels if labels in (None, MASKS) else table.Labels.read(path.parent / labels)
    files = {domain: path.parent / file for domain, file in lists.items()}
    return path, entries, Lists(root, files, *templates, labels)
