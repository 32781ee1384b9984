"""Predict masks of photographs with a trained model, whose file has the names and colours of its classes.

Reads   MODEL, a model file of stage 1 (classifier) or stage 7 (segmentation network), and photographs: files, folders
        with their subfolders, quoted patterns such as 'photos/**/*.jpg', or all lists of a data set
Writes  {out}/{id}.png: mask of class indices with the palette of the model
        {out}/{id}.npz: keys (K+1,) and, float16, cam (K, h/4, w/4), hr_cam (K, h, w) and with --affinity
        rw (K, h/4, w/4) of a classifier, or probability (K+1, h, w) of the classes that a segmentation network's mask
        contains, after the CRF
        {out}/{id}_overlay.png: the mask over the photograph, with class names and scores

    python3 -m tools.predict experiments/models/DeepLabv3+@ResNeSt-101@Fix@GN.pth photo.jpg holiday/
    python3 -m tools.predict experiments/models/ResNeSt101@Puzzle@optimal.pth photo.jpg --classes cat,dog \\
        --affinity experiments/models/AffinityNet@ResNeSt-101@Puzzle.pth
    python3 -m tools.predict experiments/models/pets.pth --dataset labels.csv --data_dir photos

Masks of a segmentation network are those of stage 8. A classifier's mask is made from the CAMs of the classes that it
predicts, of --classes, or of the image's own tags (--dataset): with --affinity it is the pseudo-label of stages 2, 5
and 6, without it that of stage 6 on plain CAMs. Maps are rounded to float16 between these steps, as in the files of the
stages, so masks equal those of the stages with --batch_size 1, bit for bit on the same device. {id} is the path below
the folder that all images have in common, without its extension and with '__' for '/'.
"""

import glob
import os
import sys
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from tqdm import tqdm

from core import UserError
from core.cam import cams_from_maps, multi_scale_maps
from core.crf import crf_from_label, crf_from_probability
from core.data import voc
from core.data.dataset import open_dataset
from core.data.images import encode_label_map, make_image_id, read_image
from core.data.transforms import normalize, rescale
from core.maps import normalize_rw, present_keys, strided_size, threshold_cams, upsample_rw
from core.models import build_network
from core.models.affinitynet import predict_edges
from core.models.deeplab import multi_scale_logits
from core.random_walk import random_walk
from util import artifacts, files, flags, stage, visualize
from util.checkpoint import ModelFile

ENDINGS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff')
OUTPUTS = ('.png', '.npz', '_overlay.png')

# Defaults of the flags that only some models use. Plain CAMs of photographs score best at 0.25 on train and at 0.20 on
# val, where 0.25 is 0.5 points lower (docs/results.md, "4. The chain on photographs").
CAM_FLAGS = {'affinity': None, 'classes': None, 'class_threshold': 0.5, 'threshold': 0.25, 'crf_iteration': 1}
WALK_FLAGS = {
    **CAM_FLAGS,
    'threshold': 0.35,
    'beta': 10,
    'exp_times': 8,
    'rw_normalization': 'joint',
    'image_size': 512,
}
SEGMENTER_FLAGS = {'iteration': 10}


class Prediction(NamedTuple):
    """Mask (h, w) of class indices, content of the npz file, and the score of each class in question by its index."""

    mask: np.ndarray
    arrays: dict[str, np.ndarray]
    scores: dict[int, float]


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    model = parser.groups['model']
    model.add_argument('model', metavar='MODEL', type=Path, help='model file of stage 1 or 7')
    model.add_argument('--affinity', type=Path, help='model file of stage 4: propagate CAMs by its random walk')

    data = parser.groups['data']
    images = f'photographs, folders or quoted patterns ({" ".join(ENDINGS)}, in any case)'
    data.add_argument('images', metavar='IMAGE', nargs='*', help=images)
    data.add_argument('--dataset', help='data set to predict instead of IMAGEs, all its lists')
    data.add_argument('--data_dir', help='folder of the images of --dataset')

    inference = parser.groups['inference']
    flags.add_scales(parser)
    classes = 'classes to find, comma-separated (default: those predicted, or the tags of --dataset)'
    inference.add_argument('--classes', help=f'classifier: {classes}')
    one = flags.real(0, 1)
    above = 'classes that score above this are predicted (default: 0.5)'
    inference.add_argument('--class_threshold', type=one, help=f'classifier: {above}')
    above = 'pixels that score above this are foreground (default: 0.35 with --affinity, 0.25 without)'
    inference.add_argument('--threshold', type=one, help=f'classifier: {above}')
    iterations = 'dense CRF iterations (0: no CRF; default:'
    inference.add_argument('--crf_iteration', type=flags.integer(0), help=f'classifier: {iterations} 1)')
    inference.add_argument('--iteration', type=flags.integer(0), help=f'segmentation network: {iterations} 10)')
    inference.add_argument('--beta', type=flags.real(0), help='--affinity: exponent of the affinities (default: 10)')
    steps = 'the number of random-walk steps is 2^exp_times (default: 8)'
    inference.add_argument('--exp_times', type=flags.integer(0, 12), help=f'--affinity: {steps}')
    flags.add_rw_normalization(parser, default=None, condition='--affinity: ')
    size = 'smaller images are padded to this size (default: the crop that AffinityNet was trained on)'
    inference.add_argument('--image_size', type=flags.integer(32, 16384), help=f'--affinity: {size}')

    flags.add_device(parser)
    run = parser.groups['run and output']
    run.add_argument('--out', type=Path, help='output folder (default: experiments/predict/{name of MODEL})')
    overwrite = 'replace existing files (otherwise they are an error)'
    run.add_argument('--overwrite', action='store_true', help=overwrite)
    run.add_argument('--font', type=Path, help="font file for class names in scripts that Pillow's own font lacks")
    args = parser.parse_intermixed_args(argv)  # IMAGEs may follow flags
    if bool(args.images) == bool(args.dataset) or bool(args.dataset) != bool(args.data_dir):
        parser.error('pass either IMAGEs or --dataset with --data_dir')
    args.out = args.out or artifacts.EXPERIMENTS / 'predict' / args.model.stem
    return args


# Photographs --------------------------------------------------------------------------------------------------------


def expand(argument: str, out: Path) -> tuple[Path, list[Path]]:
    """Return the folder that an IMAGE argument names, and its images; outputs in a folder below it are left out."""
    path = Path(argument)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        folder = path
        found = [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
    else:
        folder = Path(*takewhile(lambda part: not set(part) & set('*?['), path.parent.parts))
        found = [Path(name) for name in glob.glob(argument, recursive=True)]
    found = [path for path in found if path.suffix.lower() in ENDINGS and path.is_file()]
    below, outputs = Path(os.path.abspath(folder)), Path(os.path.abspath(out))
    if outputs != below:
        found = [path for path in found if outputs not in Path(os.path.abspath(path)).parents]
    # Skip hidden files, such as those macOS adds to archives.
    found = [path for path in found if not any(part.startswith('.') for part in path.relative_to(folder).parts)]
    if not found:
        raise UserError(f'{argument}: no image found ({", ".join(ENDINGS)})')
    return folder, sorted(found)


def find_images(arguments: list[str], out: Path) -> dict[str, Path]:
    """Return the path of each image by its id. Raises UserError if an argument names none, or two have the same id."""
    expanded = [expand(argument, out) for argument in arguments]
    common = os.path.commonpath([os.path.abspath(folder) for folder, _ in expanded])
    paths = {os.path.abspath(path): path for _, found in expanded for path in found}  # each file once
    images = {}
    for absolute, path in paths.items():
        image_id = make_image_id(os.path.relpath(absolute, common))
        if image_id in images:
            raise UserError(
                f'{images[image_id]} and {path}: both would be written as {image_id}.png: rename one of them'
            )
        images[image_id] = path
    return images


def check_outputs(images: dict[str, Path], out: Path, overwrite: bool) -> None:
    """Raise UserError if outputs would replace one another, an image or, without --overwrite, another file."""
    for image_id, path in images.items():
        if f'{image_id}_overlay' in images:
            other = images[f'{image_id}_overlay']
            raise UserError(f'{path} and {other}: both would be written as {image_id}_overlay.png: rename one of them')
    outputs = [out / f'{image_id}{ending}' for image_id in images for ending in OUTPUTS]
    existing = [path for path in outputs if os.path.lexists(path)]
    inputs = {os.path.abspath(path) for path in images.values()}
    for path in existing:
        if os.path.abspath(path) in inputs:
            raise UserError(f'--out {out}: {path} is one of the images: choose another folder')
    if existing and not overwrite:
        count = f'{len(existing)} of {len(outputs)} files exist, the first is {existing[0].name}'
        raise UserError(f'--out {out}: {count}: pass --overwrite to replace them, or another folder')


# Models -------------------------------------------------------------------------------------------------------------


def open_model(path: Path, *entries: str) -> ModelFile:
    """Read a model file. Raises UserError if its metadata lacks some of the entries."""
    file = ModelFile(path)
    missing = [entry for entry in entries if entry not in file.meta]
    if missing:
        raise UserError(f'{path}: is {file.form} without metadata ({", ".join(missing)}), so it cannot be used here')
    return file


def open_models(args):
    """Return the model file and that of --affinity (or None). Raises UserError if they are not what they should be."""
    file = open_model(args.model, 'network', 'backbone', 'classes')
    if file.meta['network'] == 'AffinityNet':
        usage = 'pass a classifier as MODEL and this file as --affinity'
        raise UserError(f'{args.model}: contains AffinityNet, which predicts edges and no classes: {usage}')
    if args.affinity is None:
        return file, None
    affinity = open_model(args.affinity, 'network', 'backbone')
    if affinity.meta['network'] != 'AffinityNet':
        raise UserError(f'--affinity {args.affinity}: contains {affinity.meta["network"]}: pass a model of stage 4')
    return file, affinity


def settle_flags(args, file, affinity):
    """Set the flags that are not given to their defaults. Raises UserError for those that the model does not use."""
    is_classifier = file.meta['network'] == 'Classifier'
    used = (WALK_FLAGS if affinity else CAM_FLAGS) if is_classifier else SEGMENTER_FLAGS
    for name in (*WALK_FLAGS, *SEGMENTER_FLAGS):
        if name not in used and getattr(args, name) is not None:
            needs_affinity = is_classifier and name in WALK_FLAGS
            why = 'without --affinity' if needs_affinity else f'on {file.meta["network"]} of {args.model}'
            raise UserError(f'--{name}: has no effect {why}')
    if affinity and args.image_size is None:
        args.image_size = affinity.meta.get('image_size')
    vars(args).update({name: value for name, value in used.items() if getattr(args, name) is None})


# Prediction ---------------------------------------------------------------------------------------------------------


def scaled_images(picture, scales, args, device):
    """Return the normalised images (1, 3, h_s, w_s) of a photograph at some scales, on the device."""
    return [normalize(rescale(picture, scale, args.resize)[None].to(device)) for scale in scales]


def predict_by_cams(args, classifier, affinity_net, device, picture, labels):
    """Return the prediction of a classifier; labels (C,) multi-hot, None for the classes that it predicts."""
    image = np.array(picture)
    size = image.shape[:2]
    probability, maps = multi_scale_maps(classifier, scaled_images(picture, flags.floats(args.scales), args, device))
    probability = probability[0].cpu().numpy()
    if not np.isfinite(probability).all():
        raise UserError(f'{args.model}: its scores are not finite: the model has diverged, train it again')
    keys = present_keys(probability > args.class_threshold if labels is None else labels)
    shown = keys[1:] if len(keys) > 1 else [1 + int(probability.argmax())]
    scores = {int(key): float(probability[key - 1]) for key in shown}

    # The CAMs, rounded as in the files of stage 2.
    cam, hr_cam = np.zeros((0, *strided_size(size))), np.zeros((0, *size))
    if len(keys) > 1:
        present = torch.zeros(1, len(probability), device=device)
        present[0, keys[1:] - 1] = 1
        ((cam, hr_cam),) = cams_from_maps(maps, present, size)
        cam, hr_cam = cam.cpu().numpy(), hr_cam.cpu().numpy()
    arrays = {'keys': keys, 'cam': cam.astype(np.float16), 'hr_cam': hr_cam.astype(np.float16)}

    # Their random walk, rounded as in the files of stage 5.
    scores_of_pixels = arrays['hr_cam']
    if affinity_net is not None:
        (edge,) = predict_edges(affinity_net, *scaled_images(picture, [1.0], args, device), args.image_size)
        cam = torch.from_numpy(arrays['cam'].astype(np.float32)).to(device)
        rw = random_walk(cam, edge, beta=args.beta, exp_times=args.exp_times).cpu().numpy()
        arrays['rw'] = normalize_rw(rw, args.rw_normalization).astype(np.float16)
        scores_of_pixels = upsample_rw(arrays['rw'], size)

    # The pseudo-label, as in stage 6.
    label = threshold_cams(scores_of_pixels, args.threshold)
    return Prediction(keys[crf_from_label(image, label, len(keys), args.crf_iteration)], arrays, scores)


def predict_by_segmenter(args, model, device, picture, labels):
    """Return the prediction of a segmentation network, as in stage 8; its score is the mean over a class's pixels."""
    image = np.array(picture)
    logits = multi_scale_logits(model, scaled_images(picture, flags.floats(args.scales), args, device), image.shape[:2])
    probability = torch.softmax(logits, 1)[0].cpu().numpy()
    del logits  # a large array, not to be held during the CRF
    probability = crf_from_probability(image, probability, args.iteration)
    mask = probability.argmax(0)
    keys = np.union1d([0], mask)
    scores = {int(key): float(probability[key][mask == key].mean()) for key in keys[1:]}
    return Prediction(mask, {'keys': keys, 'probability': probability[keys].astype(np.float16)}, scores)


def out_of_memory(error):
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or 'DefaultCPUAllocator' in str(error)


# Output -------------------------------------------------------------------------------------------------------------


def chosen_labels(args, names):
    """Return --classes as labels (C,) multi-hot, None without it."""
    if args.classes is None:
        return None
    labels = np.zeros(len(names) - 1, np.float32)
    for name in map(str.strip, args.classes.split(',')):
        if name not in names[1:]:
            raise UserError(f'--classes {args.classes}: {args.model} has no {name!r}, only {", ".join(names[1:])}')
        labels[names.index(name) - 1] = 1
    return labels


def in_words(path, prediction, names):
    """Return the line of an image: its classes with their scores, the highest first."""
    order = sorted(prediction.scores, key=prediction.scores.get, reverse=True)
    classes = ', '.join(f'{names[index]} {prediction.scores[index]:.2f}' for index in order)
    if len(prediction.arrays['keys']) > 1:
        return f'{path}: {classes}'
    return f'{path}: no class found, the mask is background{classes and f" (best: {classes})"}'


def write(out, image_id, picture, prediction, palette, names, font):
    """Write the three files of an image, the mask last."""
    artifacts.write_npz(out / f'{image_id}.npz', **prediction.arrays)
    labels = {index: f'{names[index]} {score:.2f}' for index, score in prediction.scores.items()}
    overlay = visualize.label_mask(np.array(picture), prediction.mask, palette, labels, font)
    files.write_bytes(out / f'{image_id}_overlay.png', iio.imwrite('<bytes>', overlay, extension='.png'))
    files.write_bytes(out / f'{image_id}.png', encode_label_map(prediction.mask, palette))


def main(args):
    file, affinity = open_models(args)
    settle_flags(args, file, affinity)
    names, palette = ('background', *file.meta['classes']), voc.palette()
    colours = file.meta.get('palette', palette)[:256]  # files of earlier versions have none
    palette[: len(colours)] = colours
    is_classifier = file.meta['network'] == 'Classifier'

    # Find the images and, of a data set, their tags.
    given = chosen_labels(args, names)
    dataset = open_dataset(args.dataset, args.data_dir) if args.dataset else None
    if dataset:
        file.check_classes(args, dataset)
        lists = {domain: dataset.ids(domain) for domain in dataset.lists}
        if 'test' in lists and not dataset.image_path(lists['test'][0]).is_file():
            del lists['test']  # VOC's test images come from its server
        images = {image_id: dataset.image_path(image_id) for ids in lists.values() for image_id in ids}
        tagged = {image_id for domain, ids in lists.items() if domain != 'test' for image_id in ids}
    else:
        images = find_images(args.images, args.out)
    check_outputs(images, args.out, args.overwrite)
    tagged = tagged if dataset and is_classifier and given is None else set()
    font = visualize.open_font(args.font)
    shown = visualize.names_on_pictures(names, font)

    # Load the models.
    model, device, _ = file.load_for_inference(build_network(file.meta), args)
    if is_classifier:
        affinity_net = affinity and affinity.load_for_inference(build_network(affinity.meta), args)[0]
        predict = partial(predict_by_cams, args, model, affinity_net, device)
    else:
        predict = partial(predict_by_segmenter, args, model, device)

    # Predict image by image; skip those that fail.
    failed, large = 0, []
    largest = 2 * file.meta.get('image_size', float('inf')) / min(flags.floats(args.scales))
    with files.locked(args.out / '.lock', str(args.out)):
        for image_id, path in stage.progress(images.items(), 'images') if len(images) > 1 else images.items():
            try:
                picture = read_image(path)
                prediction = predict(picture, dataset.read_labels(image_id) if image_id in tagged else given)
                write(args.out, image_id, picture, prediction, palette, shown, font)
                tqdm.write(in_words(path, prediction, names))
                large += [image_id] if max(picture.size) > largest else []
            except (UserError, MemoryError, RuntimeError) as error:
                if out_of_memory(error):
                    error = UserError(f'{path}: does not fit in memory: use a smaller image or smaller --scales')
                if len(images) == 1 or not isinstance(error, UserError):
                    raise error from None
                tqdm.write(f'warning: {error}', sys.stderr)
                failed += 1
    crop = f'crops of {file.meta.get("image_size")} pixels'
    stage.warn(large, images, f'are much larger than the {crop} that the model was trained on: try smaller --scales')
    print(f'{args.out}: masks of {len(images) - failed} of {len(images)} images')
    if failed:
        raise UserError(f'{failed} of {len(images)} images could not be predicted: see the warnings')


if __name__ == '__main__':
    stage.run(main, parse_args)
