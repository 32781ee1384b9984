"""Photographs with label maps that are hard for labelling tools, and what a person's correction looks like."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from core.data import voc
from core.data.images import encode_label_map
from tools import export, import_masks

NAMES = ('cat', 'dog', 'traffic light, red')
REX, TOM, EMPTY = 'holiday__rex', 'b c__tom 1.5', 'empty'
FILES = {REX: 'holiday/rex.jpg', TOM: 'b c/tom 1.5.png', EMPTY: 'empty.jpg'}
SIZES = {REX: (24, 32), TOM: (30, 20), EMPTY: (16, 16)}


def label_maps() -> dict[str, np.ndarray]:
    """Objects with holes, with an object in the hole, touching at a corner, of a single pixel, at the border; 255."""
    rex = np.zeros(SIZES[REX], np.uint8)
    rex[2:14, 3:18] = 2
    rex[5:10, 6:12] = 0  # a hole of background
    rex[7:9, 8:10] = 1  # with an object in it
    rex[14:20, 18:25] = 2  # touches at a corner
    rex[0, 31] = rex[23, 0] = 3
    rex[20:23, 10:30] = 255
    tom = np.zeros(SIZES[TOM], np.uint8)
    tom[:, :7] = 1
    tom[10:12, :3] = 3
    tom[15:30, 12:20] = 3
    return {REX: rex, TOM: tom, EMPTY: np.zeros(SIZES[EMPTY], np.uint8)}


def make_photographs(folder: Path) -> None:
    """Write photos/, labels.csv and label maps in masks/ below a folder."""
    for image_id, name in FILES.items():
        path = folder / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        h, w = SIZES[image_id]
        Image.effect_noise((w, h), 80).convert('RGB').save(path)
    classes = '# classes: ' + ';'.join(NAMES)
    rows = ['image,classes,split', 'holiday/rex.jpg,"dog;cat;traffic light, red",train']
    rows += ['b c/tom 1.5.png,"cat;traffic light, red",val', 'empty.jpg,,train_aug']
    (folder / 'labels.csv').write_text('\n'.join([f'"{classes}"', *rows, '']))
    (folder / 'masks').mkdir()
    for image_id, label in label_maps().items():
        (folder / 'masks' / f'{image_id}.png').write_bytes(encode_label_map(label, voc.palette()))


def run_export(kind: str, *more: str, out: str = 'out') -> Path:
    """Export masks/ in the working directory, every pixel of it unless `more` says otherwise."""
    line = ['masks', '--dataset', 'labels.csv', '--data_dir', 'photos', '--format', kind, '--out', out]
    export.main(export.parse_args([*line, '--num_workers', '0', '--simplify', '0', *more]))
    return Path(out)


def import_line(source, *more: str) -> list[str]:
    return [str(source), '--dataset', 'labels.csv', '--data_dir', 'photos', '--num_workers', '0', *more]


def run_import(source, *more: str) -> dict[str, np.ndarray]:
    """Import a file into labels_imported.csv, and return the masks in its folder by image id."""
    import_masks.main(import_masks.parse_args(import_line(source, *more)))
    return imported()


def imported() -> dict[str, np.ndarray]:
    return {
        path.stem: np.array(Image.open(path)) for path in sorted(Path('photos/labels_imported_masks').glob('*.png'))
    }


def submit(tasks: Path) -> None:
    """Turn the predictions of Label Studio's tasks into annotations, as opening and submitting each task does."""
    content = json.loads(tasks.read_text())
    for number, task in enumerate(content, 1):
        task['id'] = number
        result = task['predictions'][0]['result']
        task['annotations'] = [{'id': number, 'was_cancelled': False, 'updated_at': '2026-11-30', 'result': result}]
    tasks.write_text(json.dumps(content))
