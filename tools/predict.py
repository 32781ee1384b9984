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

A segmentation network draws the masks of stage 8. A classifier's mask is made from the CAMs of the classes that it
predicts, of --classes, or of the image's own tags (--dataset): with --affinity it is the pseudo-label of stages 2, 5
and 6, without --affinity the pseudo-label of stage 6 on plain CAMs. Maps are rounded to float16 between these steps, as
in the files of the stages, so masks equal the masks of the stages with --batch_size 1, bit for bit on the same device.
{id} is the path below the folder that all images have in common, without its extension and with '__' for '/'.
"""

import glob
import os
import sys
from collections import Counter
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from tqdm import tqdm

from core import UserError, chain
from core.crf import check_installed, crf_from_probability
from core.data import drawing, voc
from core.data.dataset import open_dataset
from core.data.files import walk
from core.data.images import ENDINGS, UNREADABLE, encode_label_map, make_image_id, read_image
from core.data.transforms import rescale
from core.labels import PSEUDO_THRESHOLD, pseudo_label
from core.maps import present_keys, upsample_rw
from core.models.model_file import ModelFile
from core.random_walk import BETA, EXP_TIMES
from tools.reporting import pictures, provenance
from util import flags, script
from util.store import arrays, files, formats
from util.store.locks import locked
from util.training import options
from util.training.models import load_for_inference

OUTPUTS = ('.png', '.npz', '_overlay.png')

# Defaults of the flags that only some models use. Plain CAMs of photographs score best at 0.25 on train and at 0.20 on
# val, where 0.25 is 0.5 points lower (docs/results/chain_photographs.md, "Scores by threshold").
CAM_FLAGS = {
    **{'affinity': None, 'classes': None, 'class_threshold': 0.5},
    **{'cam': 'published', 'threshold': 0.25, 'crf_iteration': 1},
}
WALK_FLAGS = {
    **CAM_FLAGS,
    'threshold': PSEUDO_THRESHOLD,
    'beta': BETA,
    'exp_times': EXP_TIMES,
    'rw_normalization': 'joint',
    'image_size': 512,
}
SEGMENTER_FLAGS = {'crf_iteration': 10}


class Prediction(NamedTuple):
    """Mask (h, w) of class indices, content of the npz file, and the score of each considered class by its index."""

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
    data.add_argument('--data_dir', help='folder of the images of --dataset; none for a --dataset that is a folder')

    inference = parser.groups['inference']
    parser.add_table(options.SCALES, options.COMPUTING)
    quoted = 'with quotes around a name that contains one'
    classes = f'classes to find, separated by commas, {quoted} (default: those predicted, or the tags of --dataset)'
    inference.add_argument('--classes', help=f'classifier: {classes}')
    one = flags.real(0, 1)
    above = 'probability above which a class counts as present in a photograph (default: 0.5)'
    inference.add_argument('--class_threshold', type=one, help=f'classifier: {above}')
    plain = CAM_FLAGS['threshold']
    above = f'score above which a pixel is foreground (default: {PSEUDO_THRESHOLD} with --affinity, {plain} without)'
    inference.add_argument('--threshold', type=one, help=f'classifier: {above}')
    iterations = 'iterations of the dense CRF (0: no CRF; default: 1 with a classifier, 10 with a segmentation network)'
    inference.add_argument('--crf_iteration', '--iteration', type=flags.integer(0), help=iterations)
    for flag in options.READ_OUT:
        parser.add_table([flag._replace(default=None, help=f'classifier: {flag.help} (default: {flag.default})')])
    for flag in options.WALK:
        default = "AffinityNet's crop in training" if flag.name == '--image_size' else flag.default
        parser.add_table([flag._replace(default=None, help=f'--affinity: {flag.help} (default: {default})')])

    run = parser.groups['run and output']
    run.add_argument('--out', type=Path, help='output folder (default: experiments/predict/{name of MODEL})')
    overwrite = 'replace existing files (otherwise they are an error)'
    run.add_argument('--overwrite', action='store_true', help=overwrite)
    run.add_argument('--font', type=Path, help="font file for class names in scripts that Pillow's own font lacks")
    args = parser.parse_intermixed_args(argv)  # IMAGEs may follow flags
    if args.dataset and Path(args.dataset).is_dir():
        args.data_dir = args.data_dir or args.dataset  # a folder is its own root
    if bool(args.images) == bool(args.dataset) or bool(args.dataset) != bool(args.data_dir):
        parser.error('pass either IMAGEs or --dataset with --data_dir')
    args.out = args.out or formats.EXPERIMENTS / 'predict' / args.model.stem
    return args


# Photographs --------------------------------------------------------------------------------------------------------


def expand(argument: str, out: Path) -> tuple[Path, list[Path], Counter]:
    """Return the folder that an IMAGE argument names, its images, and how many files were left out by reason."""
    path = Path(argument)
    if path.is_file():
        if path.suffix.lower() in UNREADABLE:
            raise UserError(f'{path}: HEIC cannot be read: convert it to JPEG')
        return path.parent, [path], Counter()
    if path.is_dir():
        folder, found = path, walk(path)
    else:
        folder = Path(*takewhile(lambda part: not set(part) & set('*?['), path.parent.parts))
        found = [path for name in glob.glob(argument, recursive=True) if (path := Path(name)).is_file()]
    below, outputs = Path(os.path.abspath(folder)), Path(os.path.abspath(out))
    images, left_out = [], Counter()
    for path in found:
        if outputs != below and outputs in Path(os.path.abspath(path)).parents:
            left_out['in the folder of --out'] += 1
        elif any(part.startswith('.') for part in path.relative_to(folder).parts):
            left_out['hidden'] += 1  # such as the files that macOS adds to archives
        elif path.suffix.lower() in UNREADABLE:
            left_out['HEIC, which cannot be read (convert them to JPEG)'] += 1
        elif path.suffix.lower() not in ENDINGS:
            left_out['not named as photographs'] += 1
        else:
            images.append(path)
    if not images:
        reasons = f'; {count_left_out(left_out)}' if left_out else ''
        raise UserError(f'{argument}: no image found ({", ".join(ENDINGS)}){reasons}')
    return folder, sorted(images), left_out


def count_left_out(left_out: Counter) -> str:
    return f'left out: {"; ".join(f"{count} {why}" for why, count in left_out.items())}'


def find_images(arguments: list[str], out: Path) -> dict[str, Path]:
    """Return the path of each image by its id. Raises UserError if an argument names none, or two have the same id."""
    expanded = [expand(argument, out) for argument in arguments]
    common = os.path.commonpath([os.path.abspath(folder) for folder, *_ in expanded])
    paths = {os.path.abspath(path): path for _, found, _ in expanded for path in found}  # each file once
    left_out = sum((reasons for *_, reasons in expanded), Counter())
    if left_out:
        print(count_left_out(left_out), file=sys.stderr)
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
    file.check_described(*entries)
    return file


def open_models(args):
    """Return the model file and the file of --affinity (or None). Raises UserError if they contain other networks."""
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
    """Return the flags with their defaults. Raises UserError for those that the model does not use."""
    is_classifier = file.meta['network'] == 'Classifier'
    used = (WALK_FLAGS if affinity else CAM_FLAGS) if is_classifier else SEGMENTER_FLAGS
    given = {name: value for name, value in vars(args).items() if value is not None}
    for name in WALK_FLAGS:
        if name not in used and name in given:
            why = 'without --affinity' if is_classifier else f'on {file.meta["network"]} of {args.model}'
            raise UserError(f'--{name}: has no effect {why}')
    trained = {'image_size': affinity.meta['image_size']} if affinity and 'image_size' in affinity.meta else {}
    return flags.Options(**{**vars(args), **used, **trained, **given})


# Prediction ---------------------------------------------------------------------------------------------------------


def scaled_images(picture, scales, args, device):
    """Return a photograph (1, h_s, w_s, 3) uint8 at some scales, on the device."""
    return [rescale(picture, scale, args.resize)[None].to(device) for scale in scales]


def predict_by_cams(args, classifier, affinity_net, device, picture, labels):
    """Return the prediction of a classifier; labels (C,) multi-hot, None for the classes that it predicts."""
    image = np.array(picture)
    size = image.shape[:2]
    scales = flags.floats(args.scales)
    (probability,), maps = chain.classify(classifier, scaled_images(picture, scales, args, device), args.cam)
    if not np.isfinite(probability).all():
        raise UserError(f'{args.model}: its scores are not finite: the model has diverged, train it again')
    present = (probability > args.class_threshold if labels is None else labels).astype(np.float32)
    keys = present_keys(present)
    shown = keys[1:] if len(keys) > 1 else [1 + int(probability.argmax())]
    scores = {int(key): float(probability[key - 1]) for key in shown}

    # The CAMs, rounded as in the files of stage 2.
    ((cam, hr_cam),) = chain.cams_of(maps, present[None], size)
    found = {'keys': keys, 'cam': cam.astype(np.float16), 'hr_cam': hr_cam.astype(np.float16)}

    # Their random walk, rounded as in the files of stage 5.
    scores_of_pixels = found['hr_cam']
    if affinity_net is not None:
        (edge,) = chain.image_edges(affinity_net, *scaled_images(picture, [1.0], args, device), args.image_size)
        rw = chain.walk_cams(found['cam'].astype(np.float32), edge, **args.pick(options.WALKING))
        found['rw'] = rw.astype(np.float16)
        scores_of_pixels = upsample_rw(found['rw'], size)

    # The pseudo-label, as in stage 6.
    return Prediction(pseudo_label(image, keys, scores_of_pixels, args.threshold, args.crf_iteration), found, scores)


def predict_by_segmenter(args, model, device, picture, labels):
    """Return the prediction of a segmentation network, as in stage 8; its score is the mean over a class's pixels."""
    image = np.array(picture)
    pixels = scaled_images(picture, flags.floats(args.scales), args, device)
    (probability,) = chain.image_probabilities(model, pixels, image.shape[:2])
    probability = crf_from_probability(image, probability, args.crf_iteration)
    mask = probability.argmax(0)
    keys = np.union1d([0], mask)
    scores = {int(key): float(probability[key][mask == key].mean()) for key in keys[1:]}
    return Prediction(mask, {'keys': keys, 'probability': probability[keys].astype(np.float16)}, scores)


def out_of_memory(error):
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or 'DefaultCPUAllocator' in str(error)


# Output -------------------------------------------------------------------------------------------------------------


def colours_of(file):
    """Return the colours of a model's classes, continued by VOC's, because files of other programs may have none."""
    palette = voc.palette()
    colours = file.meta.get('palette', palette)[: len(palette)]
    palette[: len(colours)] = colours
    return palette


def chosen_labels(args, names):
    """Return --classes as labels (C,) multi-hot, None without it."""
    if args.classes is None:
        return None
    labels = np.zeros(len(names) - 1, np.float32)
    for name in flags.names(args.classes) or ['']:
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
    arrays.write_npz(out / f'{image_id}.npz', **prediction.arrays)
    labels = {index: f'{names[index]} {score:.2f}' for index, score in prediction.scores.items()}
    overlay = pictures.label_mask(np.array(picture), prediction.mask, palette, labels, font)
    files.write_bytes(out / f'{image_id}_overlay.png', iio.imwrite('<bytes>', overlay, extension='.png'))
    files.write_bytes(out / f'{image_id}.png', encode_label_map(prediction.mask, palette))


def main(args):
    file, affinity = open_models(args)
    args = settle_flags(args, file, affinity)
    check_installed(args.crf_iteration)
    names, palette = ('background', *file.meta['classes']), colours_of(file)
    is_classifier = file.meta['network'] == 'Classifier'

    # Find the images and, of a data set, their tags.
    given = chosen_labels(args, names)
    dataset = open_dataset(args.dataset, args.data_dir) if args.dataset else None
    if dataset:
        file.check_classes(dataset)
        lists = {domain: dataset.ids(domain) for domain in dataset.lists}
        if 'test' in lists and not dataset.image_path(lists['test'][0]).is_file():
            del lists['test']  # VOC's test images come from its server
        images = {image_id: dataset.image_path(image_id) for ids in lists.values() for image_id in ids}
        tagged = {image_id for domain, ids in lists.items() if domain != 'test' for image_id in ids}
    else:
        images = find_images(args.images, args.out)
    check_outputs(images, args.out, args.overwrite)  # checked before the models are loaded, and again under the lock
    provenance.warn_if_outdated([path for path in (args.model, args.affinity) if path])
    tagged = tagged if dataset and is_classifier and given is None else set()
    font = drawing.open_font(args.font)
    shown = pictures.names_on_pictures(names, font)

    # Load the models.
    model, device = load_for_inference(file, file.meta, args.device, args.precision)
    if is_classifier:
        affinity_net = affinity and load_for_inference(affinity, affinity.meta, args.device, args.precision)[0]
        predict = partial(predict_by_cams, args, model, affinity_net, device)
    else:
        predict = partial(predict_by_segmenter, args, model, device)

    # Predict image by image; skip those that fail.
    failed, large = 0, []
    largest = 2 * file.meta.get('image_size', float('inf')) / min(flags.floats(args.scales))
    with locked(args.out / '.lock', str(args.out)):
        files.remove_all_leftovers(args.out)
        check_outputs(images, args.out, args.overwrite)
        for image_id, path in script.progress(images.items(), 'images') if len(images) > 1 else images.items():
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
    script.warn(large, images, f'are much larger than the {crop} that the model was trained on: try smaller --scales')
    print(f'{args.out}: masks of {len(images) - failed} of {len(images)} images')
    if failed:
        raise UserError(f'{failed} of {len(images)} images could not be predicted: see the warnings')


if __name__ == '__main__':
    script.run(main, parse_args)
