"""Folders and files of labelling tools as data sets: classes, splits, tags, masks, and what is refused."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from core import DataWarning, UserError
from core.data import exports
from core.data.dataset import open_dataset
from core.data.files import load_json
from support import draw_image, voc_xml
from support.kinds import (
    BOXES,
    SIZE,
    TAGS,
    WITH_TAGS,
    cvat_images,
    cvat_masks,
    cvat_voc,
    image_folder,
    labelme,
    mvtec,
    roboflow_coco,
    write,
)


def tags_of(dataset, domain='train_aug') -> dict[str, list[str]]:
    """Return the classes by the last letter of the id, after checking that each image can be read."""
    found = {}
    for image_id in dataset.ids(domain, with_images=True):
        dataset.read_image(image_id)
        names = [dataset.class_names[c] for c in np.flatnonzero(dataset.read_labels(image_id))]
        assert dataset.labels_path(image_id)
        found[image_id[-1]] = names
    return found


@pytest.mark.parametrize('make', WITH_TAGS, ids=lambda make: make.__name__)
def test_every_kind_gives_its_tags(tmp_path, make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        dataset = open_dataset(*make(tmp_path))
    said = 'images with neither an annotation nor a mask are negatives: 1 of 4 (JPEGImages/d.jpg, ...)'
    lines = [str(warning.message) for warning in caught]
    assert lines == ([f'{tmp_path}/task: {said}'] if make.__name__ in ('cvat_voc', 'cvat_masks') else [])
    assert dataset.class_names == ('cat', 'dog')
    assert tags_of(dataset) == TAGS
    assert dataset.ids('train') == dataset.ids('train_aug')
    if 'roboflow' in make.__name__:
        assert tags_of(dataset, 'val') == TAGS
        assert dataset.list_path('val').name == 'valid'
    else:
        assert dataset.lists == ('train_aug', 'train')


def test_the_same_files_give_the_same_ids_wherever_they_are(tmp_path, monkeypatch):
    path, _ = image_folder(tmp_path)
    ids = open_dataset(path, 'anything').ids('train')
    assert ids[0] == 'train__background__0'
    monkeypatch.chdir(path)
    dataset = open_dataset('.', '')
    assert (dataset.ids('train'), dataset.name) == (ids, 'photos')


# A folder per class -------------------------------------------------------------------------------------------------


def test_splits_classes_and_negatives_of_a_folder_per_class(tmp_path):
    path, _ = image_folder(tmp_path)
    dataset = open_dataset(path, '')
    assert dataset.class_names == ('cat', 'dog')
    assert dataset.root == path
    assert {domain: len(dataset.ids(domain)) for domain in dataset.lists} == {'train_aug': 12, 'train': 12, 'val': 6}
    assert dataset.read_labels('train__dog__1').tolist() == [0, 1]
    assert dataset.read_labels('val__background__0').tolist() == [0, 0]
    assert dataset.labels_path('train__dog__1') == str(path / 'train/dog')
    assert dataset.list_path('val') == path / 'val'
    assert dataset.ids_with_masks('train') == []


def test_folders_may_be_nested_and_without_splits(tmp_path):
    for name in (
        'cat/indoors/1.JPG',
        'cat/2.png',
        'train/1.jpg',
        'Good/1.jpg',
        '.cache/1.jpg',
        'cat/._2.png',
        'cat/notes.txt',
    ):
        draw_image(tmp_path / 'a' / f'{name}.png').save(tmp_path / 'a' / name, 'PNG')
        (tmp_path / 'a' / f'{name}.png').unlink()
    dataset = open_dataset(tmp_path / 'a', '')
    assert dataset.class_names == ('cat', 'train')
    assert dataset.ids('train') == ['Good__1', 'cat__2', 'cat__indoors__1', 'train__1']
    assert not dataset.read_labels('Good__1').any()


def test_what_cannot_be_read_is_named(tmp_path):
    image_folder(tmp_path / 'photos')
    (tmp_path / 'photos/a.jpg').symlink_to('gone')
    os.mkfifo(tmp_path / 'photos/b.jpg')
    with pytest.warns(DataWarning, match=r'neither files nor folders that can be read, left out: 2 \(a.jpg, \.\.\.\)'):
        open_dataset(tmp_path / 'photos', tmp_path / 'photos')


def test_negatives_that_are_no_folder_are_refused(tmp_path):
    """With a name that is misspelt, good would become a class."""
    image_folder(tmp_path / 'photos')
    write(tmp_path / 'photos.json', '{"negatives": ["nope"]}')
    with pytest.raises(UserError, match='"negatives" names \'nope\', but no folder is called so'):
        open_dataset(tmp_path / 'photos', tmp_path / 'photos')


def test_an_entry_names_the_folders_of_negatives_and_fixes_the_classes(tmp_path):
    path, _ = image_folder(tmp_path)
    write(
        tmp_path / 'photos.json', json.dumps({'negatives': ['cat'], 'classes': ['dog', 'background2'], 'name': 'pets'})
    )
    (path / 'train/background').rename(path / 'train/background2')
    (path / 'val/background').rename(path / 'val/background2')
    dataset = open_dataset(path, '')
    assert (dataset.name, dataset.class_names) == ('pets', ('dog', 'background2'))
    assert not dataset.read_labels('train__cat__0').any()
    write(tmp_path / 'photos.json', '{"negatives": "cat"}')
    with pytest.raises(UserError, match='"negatives" must be a list of names of folders'):
        open_dataset(path, '')


def test_mvtec_has_defects_and_masks_in_test_alone(tmp_path):
    path, _ = mvtec(tmp_path)
    with pytest.warns(DataWarning, match='no image of train shows a class: the images of test are trained on too'):
        dataset = open_dataset(path, '')
    assert dataset.class_names == ('cat', 'dog')
    assert {domain: len(dataset.ids(domain)) for domain in dataset.lists} == {'train_aug': 12, 'train': 9}
    assert (dataset.list_path('train_aug'), dataset.list_path('train')) == (path, path / 'test')
    assert dataset.ids_with_masks('train') == [f'test__{name}__00{i}' for name in BOXES for i in range(3)]
    for k, name in enumerate(BOXES, 1):
        mask = dataset.read_mask(f'test__{name}__001', SIZE[::-1])
        left, top, right, bottom = BOXES[name]
        assert np.unique(mask).tolist() == [0, k]
        assert (mask > 0).sum() == (right - left + 1) * (bottom - top + 1)
    Image.fromarray(np.full((44, 56), 37, np.uint8)).save(path / 'ground_truth/cat/000_mask.png')
    with pytest.raises(UserError, match='000_mask.png: contains 37, which is neither 0, nor 1 or 255 for its class'):
        dataset.read_mask('test__cat__000')


def test_masks_that_belong_to_no_image_or_to_two(tmp_path):
    path, _ = mvtec(tmp_path)
    masks = path / 'ground_truth/cat'
    (masks / '000_mask.png').rename(masks / 'O00_mask.png')
    with pytest.warns(DataWarning) as caught:
        dataset = open_dataset(path, '')
    line = f'{path}: masks of no image are left out: 1 (ground_truth/cat/O00_mask.png, ...)'
    assert line in [str(warning.message) for warning in caught]
    assert len(dataset.ids_with_masks('train')) == 5
    shutil.copy(masks / '001_mask.png', masks / '001.png')
    with pytest.raises(UserError, match='001.png and ground_truth/cat/001_mask.png are masks of the same image'):
        open_dataset(path, '')
    (masks / '001.png').unlink()
    draw_image(path / 'train/cat/001.png')
    both = 'train/cat/001.png and test/cat/001.png'
    with pytest.raises(UserError, match=f'ground_truth/cat/001_mask.png may be the mask of {both}: rename one'):
        open_dataset(path, '')


def test_test_folder_is_val_unless_there_is_one(tmp_path):
    for split in ('train', 'test'):
        draw_image(tmp_path / 'a' / split / 'cat/1.jpg')
    assert open_dataset(tmp_path / 'a', '').lists == ('train_aug', 'train', 'val')
    draw_image(tmp_path / 'a/valid/cat/1.jpg')
    assert open_dataset(tmp_path / 'a', '').lists == ('train_aug', 'train', 'val', 'test')


def test_images_that_are_left_out_are_counted(tmp_path):
    draw_image(tmp_path / 'a/cat/1.jpg')
    draw_image(tmp_path / 'a/loose.jpg')
    write(tmp_path / 'a/cat/2.HEIC', 'x')
    with pytest.warns(DataWarning) as caught:
        open_dataset(tmp_path / 'a', '')
    lines = [str(warning.message) for warning in caught]
    assert any('HEIC cannot be read, convert it to JPEG: left out 1 (cat/2.HEIC, ...)' in line for line in lines)
    assert any('images in no folder of a class are left out: 1 (loose.jpg, ...)' in line for line in lines)


@pytest.mark.parametrize(
    'files, said',
    [
        (['1.jpg'], 'needs a folder per class, or files of a labelling tool'),
        (['cat/1.txt'], 'needs a folder per class'),
        (['good/1.jpg'], 'no image has a class'),
        (['train/cat/1.jpg', 'val/cat/1.jpg', 'more/cat/1.jpg'], 'train, val are splits, but more is not: move it'),
        (['train/cat/1.jpg', 'val/cat/1.jpg', 'valid/cat/1.jpg'], 'val and valid are the same split: join them'),
        (['cat/1.jpg', 'cat/1.png'], "cat/1.jpg and cat/1.png both have the image id 'cat__1'"),
        (['ca\x1bt/1.jpg'], "control characters: rename the file"),
    ],
)  # fmt: skip
def test_folders_that_are_not_a_data_set(tmp_path, files, said):
    (tmp_path / 'a').mkdir()
    for name in files:
        draw_image(tmp_path / 'x.jpg').save(
            (tmp_path / 'a' / name).parent.mkdir(parents=True, exist_ok=True) or tmp_path / 'a' / name, 'PNG'
        )
    with pytest.raises(UserError, match='^dataset ') as error:
        open_dataset(tmp_path / 'a', '')
    assert said in str(error.value)
    assert str(error.value).isprintable()


def test_links_are_followed(tmp_path):
    draw_image(tmp_path / 'elsewhere/1.jpg')
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/cat').symlink_to(tmp_path / 'elsewhere')
    assert open_dataset(tmp_path / 'a', '').ids('train') == ['cat__1']


# Files of labelling tools -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings('ignore::core.DataWarning')
def test_boxes_of_every_kind_that_has_them(tmp_path):
    for make in WITH_TAGS:
        dataset = open_dataset(*make(tmp_path / make.__name__))
        image_id = next(i for i in dataset.ids('train') if i.endswith('b'))
        expected = [(right - left, bottom - top) for left, top, right, bottom in BOXES.values()]
        if make.__name__ in ('roboflow_voc', 'cvat_voc'):
            expected = [(8, 8), (8, 8)]
        if make.__name__ in ('roboflow_one_hot', 'cvat_masks', 'label_studio_csv'):
            expected = []
        assert dataset.read_boxes(image_id) == expected, make.__name__


def test_images_without_a_file_beside_them_are_left_out(tmp_path):
    path, _ = labelme(tmp_path)
    (path / 'd.json').unlink()
    with pytest.warns(
        DataWarning, match=r'images without a .json file beside them are left out: 1 of 4 \(d.jpg, ...\)'
    ):
        assert open_dataset(path, '').ids('train') == ['a', 'b', 'c']


def test_flags_of_labelme_are_tags_and_its_helpers_are_not(tmp_path):
    path, _ = labelme(tmp_path)
    content = json.loads((path / 'd.json').read_text())
    content |= {'flags': {'dog': True, 'cat': False}, 'shapes': [{'label': '__ignore__', 'points': [[1, 2]]}]}
    write(path / 'd.json', json.dumps(content))
    assert tags_of(open_dataset(path, ''))['d'] == ['dog']


def test_a_file_of_labelme_is_parsed_again_only_if_it_has_changed(tmp_path, monkeypatch):
    path, _ = labelme(tmp_path)
    dataset, parsed = open_dataset(path, ''), []
    monkeypatch.setattr(exports, 'load_json', lambda path: (parsed.append(path.name), load_json(path))[1])
    assert tags_of(dataset) == TAGS
    assert parsed == []
    write(path / 'a.json', (path / 'c.json').read_text())
    assert tags_of(dataset)['a'] == ['dog']
    assert set(parsed) == {'a.json'}


def test_other_json_files_beside_images_are_not_labelme(tmp_path):
    path, _ = image_folder(tmp_path)
    write(path / 'train/cat/0.json', '{"url": "x"}')
    assert open_dataset(path, '').class_names == ('cat', 'dog')


def test_damaged_annotations_are_reported_when_they_are_read(tmp_path):
    path, _ = labelme(tmp_path)
    write(path / 'a.json', '{')
    dataset = open_dataset(path, '')
    with pytest.raises(UserError, match='a.json: cannot be read'):
        dataset.read_labels('a')
    write(path / 'c.xml', voc_xml('cow', size=SIZE))
    dataset = open_dataset(path, '')
    assert dataset.labels_path('c') == path / 'c.xml'
    assert dataset.class_names == ('cat', 'cow', 'dog')


def test_groups_and_helpers_are_classes_only_if_an_object_has_them(tmp_path):
    path, _ = roboflow_coco(tmp_path)
    file = path / 'valid/_annotations.coco.json'
    content = json.loads(file.read_text())
    content['annotations'][0]['category_id'] = 0
    write(file, json.dumps(content))
    assert open_dataset(path, '').class_names == ('pets', 'cat', 'dog')


@pytest.mark.parametrize(
    'change, said',
    [
        ({'images': [{'id': 1}]}, 'each image must have a unique "id" and a "file_name"'),
        (
            {'categories': [{'id': 1, 'name': 'a'}, {'id': 1, 'name': 'b'}]},
            'each category must have a unique "id"',
        ),
        ({'annotations': [{'id': 1}]}, 'an annotation lacks "image_id" or "category_id"'),
        ({'annotations': [{'image_id': 77, 'category_id': 1}]}, 'image_id 77 of an annotation is unknown'),
        ({'annotations': [{'image_id': 0, 'category_id': 9}]}, 'category_id 9 of an annotation is unknown'),
        ({'images': [], 'annotations': []}, 'contains no images'),
    ],
)
def test_damaged_coco_files(tmp_path, change, said):
    path, _ = roboflow_coco(tmp_path)
    file = path / 'train/_annotations.coco.json'
    write(file, json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match='^dataset ') as error:
        open_dataset(file, path / 'train')
    assert said in str(error.value)


@pytest.mark.parametrize(
    'text, said',
    [
        ('<annotations><track id="0" label="cat"/></annotations>', 'export it as "CVAT for images 1.1"'),
        ('<annotation><object/></annotation>', 'not annotations of CVAT ("CVAT for images 1.1")'),
        ('<annotations><image/></annotations>', 'not annotations of CVAT'),
        ('<annotations>', 'not annotations of CVAT (no element found'),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', 'declares a document type'),
        ('<annotations/>', 'contains no images'),
    ],
)  # fmt: skip
def test_xml_that_is_not_of_cvat(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        open_dataset(write(tmp_path / 'a.xml', text), tmp_path)
    assert said in str(error.value)


@pytest.mark.filterwarnings('ignore::core.DataWarning')
def test_masks_of_cvat(tmp_path):
    path, _ = cvat_masks(tmp_path)
    dataset = open_dataset(path, '')
    left, top, right, bottom = BOXES['dog']
    assert dataset.ids_with_masks('train') == [f'JPEGImages__{name}' for name in 'abc']
    mask = dataset.read_mask('JPEGImages__c')
    assert mask[top, left] == 2 and (mask == 2).sum() == (right - left + 1) * (bottom - top + 1)

    # Without colours the palette is VOC's.
    write(path / 'labelmap.txt', 'background:::\ncat:::\ndog:::\n')
    picture = np.zeros((*SIZE[::-1], 3), np.uint8)
    picture[:9], picture[20:] = (128, 0, 0), (224, 224, 192)
    Image.fromarray(picture).save(path / 'SegmentationClass/c.png')
    dataset = open_dataset(path, '')
    assert np.unique(dataset.read_mask('JPEGImages__c')).tolist() == [0, 1, 255]
    assert dataset.read_labels('JPEGImages__c').tolist() == [1, 0]

    # Without the file classes of pixels are unknown.
    (path / 'labelmap.txt').unlink()
    with pytest.raises(UserError, match='no image has a class'):
        open_dataset(path, '')


@pytest.mark.filterwarnings('ignore::core.DataWarning')
def test_lists_of_the_layout_of_voc(tmp_path):
    path, _ = cvat_voc(tmp_path)
    write(path / 'ImageSets/Action/default.txt', 'c\n')
    assert open_dataset(path, '').ids('train') == [f'JPEGImages__{name}' for name in 'abcd']
    write(path / 'ImageSets/Main/Validation.txt', 'c\nd\n')
    write(path / 'ImageSets/Main/default.txt', '"a"\nb\n')
    (path / 'ImageSets/Action/default.txt').unlink()
    dataset = open_dataset(path, '')
    assert (dataset.ids('train'), dataset.ids('val')) == (
        ['JPEGImages__a', 'JPEGImages__b'],
        ['JPEGImages__c', 'JPEGImages__d'],
    )
    write(path / 'ImageSets/Main/Validation.txt', 'b\n')
    with pytest.raises(UserError, match="'b' is in another list too"):
        open_dataset(path, '')
    for file in (path / 'ImageSets/Main').iterdir():
        file.unlink()
    assert len(open_dataset(path, '').ids('train')) == 4
    write(path / 'ImageSets/Main/default.txt', 'a\n')
    for file in (path / 'JPEGImages').iterdir():
        file.unlink()
    with pytest.raises(UserError, match='JPEGImages has no images: export them too'):
        open_dataset(path, '')


def test_subsets_of_cvat_are_splits(tmp_path):
    path, images = cvat_images(tmp_path)
    write(path, path.read_text().replace('name="c.jpg"', 'name="c.jpg" subset="Validation"'))
    dataset = open_dataset(path, images)
    assert (dataset.ids('train'), dataset.ids('val')) == (['a', 'b', 'd'], ['c'])


# Entries of a JSON data set -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('labels', ['annotations/instances_default.json', 'annotations.xml', 'project-1.csv'])
def test_tags_of_a_json_data_set_from_files_of_tools(tmp_path, labels):
    for make in WITH_TAGS:
        make(tmp_path) if make.__name__ in ('cvat_coco', 'cvat_images') else None
    write(tmp_path / 'project-1.csv', 'id,choice\na,cat\nb,"{""choices"": [""cat"", ""dog""]}"\nc,dog\nd,\n')
    write(tmp_path / 'ids.txt', '\n'.join(TAGS))
    entries = {'classes': ['cat', 'dog'], 'lists': {'train_aug': 'ids.txt'}, 'images': 'images/{id}.jpg'}
    dataset = open_dataset(write(tmp_path / 'set.json', json.dumps({**entries, 'labels': labels})), tmp_path)
    assert tags_of(dataset) == TAGS
    assert bool(dataset.read_boxes('b')) == (labels != 'project-1.csv')


def test_tags_from_the_masks(tmp_path):
    write(tmp_path / 'ids.txt', 'a\nb\n')
    for name, mask in (('a', [[0, 1, 255]]), ('b', [[0, 0, 0]])):
        Image.fromarray(np.array(mask, np.uint8)).save(tmp_path / f'{name}.png')
    entries = {'classes': ['cat', 'dog'], 'lists': {'train': 'ids.txt'}, 'masks': '{id}.png', 'labels': 'masks'}
    dataset = open_dataset(write(tmp_path / 'set.json', json.dumps(entries)), tmp_path)
    assert dataset.read_all_labels(['a', 'b']).tolist() == [[1, 0], [0, 0]]
    assert dataset.labels_path('a') == tmp_path / 'a.png'
    (tmp_path / 'b.png').unlink()
    with pytest.raises(UserError, match='b.png: no such mask'):
        dataset.read_labels('b')


def test_annotations_of_labelme_beside_images_and_masks(tmp_path):
    path, _ = labelme(tmp_path)
    write(tmp_path / 'ids.txt', '\n'.join(TAGS))
    entries = {'classes': ['cat', 'dog'], 'lists': {'train_aug': 'ids.txt'}, 'images': '{id}.jpg'}
    file = write(tmp_path / 'set.json', json.dumps({**entries, 'annotations': '{id}.json'}))
    assert tags_of(open_dataset(file, path)) == TAGS
    write(file, json.dumps({**entries, 'annotations': '{id}.txt'}))
    with pytest.raises(UserError, match='"annotations" must end in .xml or .json, such as "photos/{id}.xml"'):
        open_dataset(file, path)


def test_opening_warns_of_nothing_else(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        open_dataset(*image_folder(tmp_path))
