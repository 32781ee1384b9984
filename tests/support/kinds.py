"""Small data sets as labelling tools write them: each function makes one and returns its --dataset and --data_dir.

All but the folders per class have the images of TAGS.
"""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from support import voc_xml

SIZE = (56, 44)  # width, height
TAGS = {'a': ['cat'], 'b': ['cat', 'dog'], 'c': ['dog'], 'd': []}
BOXES = {'cat': (4, 6, 24, 30), 'dog': (28, 8, 52, 40)}  # left, top, right, bottom
COLOURS = {'cat': (250, 50, 83), 'dog': (51, 221, 255)}


def draw(path: Path, tags=(), seed: int = 0) -> None:
    """Draw a picture with a box in the colour of each class over noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(90, 160, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    for name in tags:
        ImageDraw.Draw(picture).rectangle(BOXES[name], fill=COLOURS[name])
    picture.save(path)


def draw_all(folder: Path, prefix: str = '', seed: int = 0) -> None:
    for i, (name, tags) in enumerate(TAGS.items()):
        draw(folder / f'{prefix}{name}.jpg', tags, 10 * seed + i)


def corners(name: str) -> list[list[float]]:
    left, top, right, bottom = BOXES[name]
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    return path


def coco(prefix: str = '', *, first: int = 1, group: str | None = None, more: dict | None = None) -> dict:
    """Return annotations in COCO's format. `group`: a category 0 that only groups the others, as Roboflow has it."""
    categories = [{'id': 0, 'name': group, 'supercategory': 'none'}] if group else []
    above = {'supercategory': group} if group else {}
    categories += [{'id': first + i, 'name': name, **above} for i, name in enumerate(BOXES)]
    images, annotations = [], []
    for i, (image, tags) in enumerate(TAGS.items()):
        images.append({'id': i, 'file_name': f'{prefix}{image}.jpg', 'width': SIZE[0], 'height': SIZE[1]})
        for name in tags:
            left, top, right, bottom = BOXES[name]
            number = first + [*BOXES].index(name)
            box = {'bbox': [left, top, right - left, bottom - top], 'segmentation': [sum(corners(name), [])]}
            annotations.append({'id': len(annotations), 'image_id': i, 'category_id': number, **box, **(more or {})})
    return {'images': images, 'annotations': annotations, 'categories': categories}


# A folder per class --------------------------------------------------------------------------------------------------


def image_folder(root: Path):
    """train/ and val/ with a folder per class, and one of negatives."""
    for split, count in (('train', 4), ('val', 2)):
        for i in range(count):
            for folder, tags in (('cat', ['cat']), ('dog', ['dog']), ('background', [])):
                draw(root / 'photos' / split / folder / f'{i}.jpg', tags, i)
    return root / 'photos', ''


def mvtec(root: Path):
    """A category of MVTec AD: only good images to train on, and masks of 0 and 255."""
    folder = root / 'bottle'
    for i in range(3):
        draw(folder / f'train/good/{i:03d}.png', [], i)
        draw(folder / f'test/good/{i:03d}.png', [], 10 + i)
        for name in BOXES:
            draw(folder / f'test/{name}/{i:03d}.png', [name], 20 + i)
            mask = Image.new('L', SIZE)
            ImageDraw.Draw(mask).rectangle(BOXES[name], fill=255)
            (folder / f'ground_truth/{name}').mkdir(parents=True, exist_ok=True)
            mask.save(folder / f'ground_truth/{name}/{i:03d}_mask.png')
    return folder, ''


# Roboflow ------------------------------------------------------------------------------------------------------------


def _splits(root: Path) -> list[Path]:
    folders = [root / 'export' / split for split in ('train', 'valid')]
    for i, folder in enumerate(folders):
        draw_all(folder, 'im_jpg.rf.', seed=i)
    write(root / 'export' / 'README.roboflow.txt', 'exported')
    return folders


def roboflow_coco(root: Path):
    more = {'area': 480, 'iscrowd': 0}
    for folder in _splits(root):
        content = coco('im_jpg.rf.', group='pets', more=more)
        write(folder / '_annotations.coco.json', json.dumps({'info': {}, 'licenses': [], **content}))
    return root / 'export', ''


def roboflow_voc(root: Path):
    for folder in _splits(root):
        for image, tags in TAGS.items():
            write(folder / f'im_jpg.rf.{image}.xml', voc_xml(*tags, size=SIZE))
    return root / 'export', ''


def roboflow_one_hot(root: Path):
    for folder in _splits(root):
        rows = [f'im_jpg.rf.{image}.jpg, {int("cat" in tags)}, {int("dog" in tags)}' for image, tags in TAGS.items()]
        write(folder / '_classes.csv', '\n'.join(['filename, cat, dog', *rows, '']))
    return root / 'export', ''


# CVAT ----------------------------------------------------------------------------------------------------------------


def cvat_coco(root: Path):
    draw_all(root / 'images/default')
    content = coco(more={'iscrowd': 0, 'area': 480.0, 'attributes': {'occluded': False}})
    write(root / 'annotations/instances_default.json', json.dumps({'licenses': [], 'info': {}, **content}))
    return root / 'annotations/instances_default.json', root / 'images/default'


def cvat_images(root: Path):
    """CVAT for images 1.1."""
    draw_all(root / 'images')
    shapes = {'cat': '<box label="cat" source="manual" occluded="0" xtl="4" ytl="6" xbr="24" ybr="30" z_order="0"/>'}
    points = ';'.join(f'{x:.2f},{y:.2f}' for x, y in corners('dog'))
    shapes['dog'] = f'<polygon label="dog" source="manual" points="{points}" z_order="0"></polygon>'
    sides = f'width="{SIZE[0]}" height="{SIZE[1]}"'
    images = ''.join(
        f'<image id="{i}" name="{image}.jpg" {sides}>{"".join(map(shapes.get, tags))}</image>'
        for i, (image, tags) in enumerate(TAGS.items())
    )
    labels = ''.join(f'<label><name>{name}</name><color>#fa3253</color></label>' for name in BOXES)
    meta = f'<meta><task><id>1</id><labels>{labels}</labels></task><dumped>now</dumped></meta>'
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'
    return write(root / 'annotations.xml', text), root / 'images'


def cvat_voc(root: Path):
    """PASCAL VOC 1.1, with its images. Those without objects have no annotation."""
    folder = root / 'task'
    draw_all(folder / 'JPEGImages')
    write(
        folder / 'labelmap.txt',
        '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:51,221,255::\n',
    )
    write(folder / 'ImageSets/Main/default.txt', '\n'.join([*TAGS, '']))
    for image, tags in TAGS.items():
        if tags:
            write(folder / f'Annotations/{image}.xml', voc_xml(*tags, size=SIZE))
    return folder, ''


def cvat_masks(root: Path):
    """Segmentation mask 1.1, with its images. Those without objects have no mask."""
    folder = root / 'task'
    draw_all(folder / 'JPEGImages')
    write(
        folder / 'labelmap.txt',
        '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:51,221,255::\n',
    )
    write(folder / 'ImageSets/Segmentation/default.txt', '\n'.join([*TAGS, '']))
    for place in ('SegmentationClass', 'SegmentationObject'):
        (folder / place).mkdir()
        for image, tags in TAGS.items():
            mask = Image.new('RGB', SIZE)
            for name in tags:
                ImageDraw.Draw(mask).rectangle(BOXES[name], fill=COLOURS[name])
            if tags:
                mask.save(folder / place / f'{image}.png')
    return folder, ''


# labelme and Label Studio --------------------------------------------------------------------------------------------


def labelme(root: Path):
    folder = root / 'photos'
    draw_all(folder)
    for image, tags in TAGS.items():
        shapes = [
            {'label': name, 'points': corners(name), 'group_id': None, 'shape_type': 'polygon', 'flags': {}}
            for name in tags
        ]
        content = {'version': '5.5.0', 'flags': {}, 'shapes': shapes, 'imagePath': f'{image}.jpg', 'imageData': None}
        write(
            folder / f'{image}.json', json.dumps({**content, 'imageHeight': SIZE[1], 'imageWidth': SIZE[0]}, indent=2)
        )
    return folder, ''


def label_studio_coco(root: Path):
    """It puts 8 digits before the names, and the images into a folder. Sizes of those without objects are null."""
    draw_all(root / 'images', '0a1b2c3d-')
    content = coco('images/0a1b2c3d-', first=0, more={'iscrowd': 0, 'area': 480, 'ignore': 0})
    content['images'][-1].update(width=None, height=None)
    write(root / 'result.json', json.dumps({**content, 'info': {'version': '1.0', 'contributor': 'Label Studio'}}))
    return root / 'result.json', root


def label_studio_csv(root: Path):
    """Without images: those that were uploaded have their own names."""
    draw_all(root / 'photos')
    path = write(root / 'project-1.csv', '')
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(
            ['annotation_id', 'annotator', 'choice', 'created_at', 'id', 'image', 'lead_time', 'updated_at']
        )
        for i, (image, tags) in enumerate(TAGS.items()):
            choice = json.dumps({'choices': tags}) if len(tags) > 1 else ''.join(tags)
            writer.writerow([i, 1, choice, 'now', i, f'/data/upload/1/0a1b2c3d-{image}.jpg', 3.2, 'now'])
    return path, root / 'photos'


WITH_TAGS = (
    roboflow_coco,
    roboflow_voc,
    roboflow_one_hot,
    cvat_coco,
    cvat_images,
    cvat_voc,
    cvat_masks,
    labelme,
    label_studio_coco,
    label_studio_csv,
)


# Microscopes ---------------------------------------------------------------------------------------------------------


def draw_stack(path: Path, tags=(), seed: int = 0) -> list[np.ndarray]:
    """Write a TIFF stack of three planes of 16 bits, with the boxes of some classes in the second, and return them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = list(np.random.default_rng(seed).integers(300, 900, (3, SIZE[1], SIZE[0]), dtype=np.uint16))
    for name in tags:
        left, top, right, bottom = BOXES[name]
        planes[1][top:bottom, left:right] += 1500 if name == 'cat' else 3000
    first, *rest = map(Image.fromarray, planes)
    first.save(path, save_all=True, append_images=rest)
    return planes


def stacks(root: Path):
    """A series of stacks, and a JSON file that says how they are read."""
    rows = ['image,classes,mask']
    for i, (image, tags) in enumerate(TAGS.items()):
        draw_stack(root / f'cells/{image}.tif', tags, i)
        mask = Image.new('L', SIZE)
        for name in tags:
            left, top, right, bottom = BOXES[name]
            ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=1 + [*BOXES].index(name))
        mask.save(root / f'cells/{image}_mask.png')
        rows.append(f'{image}.tif,{";".join(tags)},{image}_mask.png')
    write(root / 'labels.json', json.dumps({'window': [300, 4000], 'plane': 2}))
    return write(root / 'labels.csv', '\n'.join([*rows, ''])), root / 'cells'
