"""Predict masks of photographs with a trained model, whose file has the names and colours of its classes.

Reads   MODEL, a model file of stage 1 (classifier) or stage 7 (segmentation network), and photographs: files, folders
        with their subfolders, quoted patterns such as 'photos/**/*.jpg', or all lists of a data set
Writes  {out}/{id}.png: mask of class indices with the palette of the model
        {out}/{id}.npz: keys (K+1,) and, float16, cam (K, h/4, w/4), hr_cam (K, h, w) and with --affinity
        rw (K, h/4, w/4) of a classifier, or probability (K+1, h, w) of the classes that a segmentation network's mask
        contains, after the CRF
        {out}/{id}_overlay.png: the mask over the photograph, with class names and scores
        {out}/args.json, inputs.json, photographs.json: settings, inputs, and the paths of the photographs

    python3 -m tools.predict experiments/models/DeepLabv3+@ResNeSt-101@Fix@GN.pth photo.jpg holiday/
    python3 -m tools.predict experiments/models/ResNeSt101@Puzzle@optimal.pth photo.jpg --classes cat,dog \\
        --affinity experiments/models/AffinityNet@ResNeSt-101@Puzzle.pth
    python3 -m tools.predict experiments/models/pets.pth --dataset labels.csv --data_dir photos

A segmentation network draws the masks of stage 8. A classifier's mask is made from the CAMs of the classes that it
predicts, of --classes, or of the image's own tags (--dataset): with --affinity it is the pseudo-label of stages 2, 5
and 6, without --affinity the pseudo-label of stage 6 on plain CAMs. Maps are rounded to float16 between these steps, as
in the files of the stages, so masks equal the masks of the stages with --batch_size 1, bit for bit on the same device.
{id} is the path below the folder that all images have in common, without its extension and with '__' for '/'.
The same command resumes: it makes masks that are missing, and masks of photographs that have changed. Other settings
are an error.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core import UserError
from core.crf import check_installed
from core.data import drawing, voc
from core.data.dataset import open_dataset
from core.data.images import ENDINGS
from core.data.pixels import Reading
from core.labels import PSEUDO_THRESHOLD
from core.models.model_file import ModelFile
from core.random_walk import BETA, EXP_TIMES
from tools.predicting import masks
from tools.predicting.folder import ROOT, MaskFolder, check_outputs, check_recorded
from tools.predicting.photographs import find_images, make_dataset
from tools.reporting import pictures, provenance
from util import flags, script, tile_flags
from util.parallel.devices import return_large_blocks
from util.parallel.workers import BackgroundWriter
from util.store.create import fill_folder
from util.store.hashes import label_hashes
from util.store.shares import divide
from util.training import options, ordered_loader
from util.training.models import load_for_inference

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


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    model = parser.groups['model']
    model.add_argument('model', metavar='MODEL', type=Path, affects='input', help='model file of stage 1 or 7')
    affinity = 'model file of stage 4: propagate CAMs by its random walk'
    model.add_argument('--affinity', type=Path, affects='input', help=affinity)

    data = parser.groups['data']
    images = f'photographs, folders or quoted patterns ({" ".join(ENDINGS)}, in any case)'
    data.add_argument('images', metavar='IMAGE', nargs='*', affects='input', help=images)
    data.add_argument('--dataset', affects='input', help='data set to predict instead of IMAGEs, all its lists')
    root = 'folder of the images of --dataset; none for a --dataset that is a folder'
    data.add_argument('--data_dir', affects='input', help=root)
    for flag in flags.READING:
        parser.add_table(
            [flag._replace(help=flag.help.replace('of the data set)', 'of --dataset, or as in the model)'))]
        )
    workers = 'processes that load images, and again as many for CRF and files; 0: none'
    parser.add_table([flag._replace(help=workers) for flag in flags.WORKERS])

    inference = parser.groups['inference']
    parser.add_table(options.SCALES, tile_flags.TILE, options.COMPUTING)
    quoted = 'with quotes around a name that contains one'
    classes = f'classes to find, separated by commas, {quoted} (default: those predicted, or the tags of --dataset)'
    inference.add_argument('--classes', type=flags.names, affects='input', help=f'classifier: {classes}')
    one = flags.real(0, 1)
    above = 'probability above which a class counts as present in a photograph (default: 0.5)'
    inference.add_argument('--class_threshold', type=one, help=f'classifier: {above}')
    plain = CAM_FLAGS['threshold']
    above = f'score above which a pixel is foreground (default: {PSEUDO_THRESHOLD} with --affinity, {plain} without)'
    inference.add_argument('--threshold', type=one, help=f'classifier: {above}')
    iterations = 'iterations of the dense CRF (0: no CRF; default: 1 with a classifier, 10 with a segmentation network)'
    inference.add_argument('--crf_iteration', '--iteration', type=flags.integer(0), help=iterations)
    for flag in options.READ_OUT:
        settled = {'default': None, 'affects': 'result', 'help': f'classifier: {flag.help} (default: {flag.default})'}
        parser.add_table([flag._replace(**settled)])
    for flag in options.WALK:
        default = "AffinityNet's crop in training" if flag.name == '--image_size' else flag.default
        settled = {'default': None, 'affects': 'result', 'help': f'--affinity: {flag.help} (default: {default})'}
        parser.add_table([flag._replace(**settled)])

    run = parser.groups['run and output']
    out = 'output folder (default: experiments/predict/{name of MODEL})'
    run.add_argument('--out', type=Path, affects='speed', help=out)
    overwrite = "remove the folder's masks and start over, such as with other settings"
    parser.add_table([flag._replace(help=overwrite) for flag in flags.OVERWRITE], flags.SHARES)
    font = "font file for class names in scripts that Pillow's own font lacks"
    run.add_argument('--font', type=Path, affects='speed', help=font)
    args = parser.parse_intermixed_args(argv)  # IMAGEs may follow flags
    if args.dataset and Path(args.dataset).is_dir():
        args.data_dir = args.data_dir or args.dataset  # a folder is its own root
    if bool(args.images) == bool(args.dataset) or bool(args.dataset) != bool(args.data_dir):
        parser.error('pass either IMAGEs or --dataset with --data_dir')
    args.out = args.out or ROOT / args.model.stem
    return args


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
    classes, others = (each.meta.get('classes') for each in (file, affinity))
    if file.meta['network'] == 'Classifier' and others not in (None, classes):
        fault = f'was trained with the classes {", ".join(others)}, {args.model} with {", ".join(classes)}'
        raise UserError(f'--affinity {args.affinity}: {fault}')
    return file, affinity


def defaults_of(file, affinity):
    """Return the flags that a model uses, with their defaults."""
    if file.meta['network'] != 'Classifier':
        return SEGMENTER_FLAGS
    trained = {'image_size': affinity.meta['image_size']} if affinity and 'image_size' in affinity.meta else {}
    used = {**WALK_FLAGS, **trained} if affinity else CAM_FLAGS
    return used if has_background(file) else {name: value for name, value in used.items() if name != 'threshold'}


def has_background(file):
    return file.meta.get('background', True)


def settle_flags(args, file, affinity):
    """Return the flags with their defaults. Raises UserError for those that the model does not use."""
    used = defaults_of(file, affinity)
    given = {name: value for name, value in vars(args).items() if value is not None}
    for name in WALK_FLAGS:
        if name not in used and name in given:
            why = f'on {file.meta["network"]} of {args.model}'
            if file.meta['network'] == 'Classifier':
                without_background = f'because the classes of {args.model} have no background'
                why = without_background if name == 'threshold' else 'without --affinity'
            raise UserError(f'--{name}: has no effect {why}')
    settled = flags.Options(**{**vars(args), **used, **given})
    settled.declared = args.declared
    return settled


def record_of(args, used, reading):
    """Return what the folder records of this command; `used`: the defaults of the flags that the model uses."""
    record = args.record().changed(**vars(reading))
    shown = {name: str(value) if isinstance(value, Path) else value for name, value in record.options.items()}
    return record._replace(options=shown, defaults={**record.defaults, **used})


def load_networks(args, file, affinity):
    """Return the function that predicts an image, with its networks, and their device."""
    model, device = load_for_inference(file, file.meta, args.device, args.precision)
    affinity_net = affinity and load_for_inference(affinity, affinity.meta, args.device, args.precision)[0]
    if args.tile:
        return_large_blocks()
    if file.meta['network'] != 'Classifier':
        first_label, settings = 0 if has_background(file) else 1, args.pick(['crf_iteration', 'tile'])
        return partial(masks.segment, segmenter=model, first_label=first_label, **settings), device
    networks = {'model': str(args.model), 'classifier': model, 'affinity_net': affinity_net}
    settings = args.pick(['cam', 'class_threshold', 'threshold', 'crf_iteration', 'image_size', 'tile'])
    walking = args.pick(options.WALKING)
    return partial(masks.look_for_classes, **networks, **settings, walking=walking), device


# Images and classes -------------------------------------------------------------------------------------------------


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
    for name in args.classes:
        if name not in names[1:]:
            raise UserError(f'--classes {name}: {args.model} has only {", ".join(names[1:])}')
        labels[names.index(name) - 1] = 1
    return labels


def open_images(args, file, palette):
    """Return the data set of --dataset or of the IMAGEs, and its lists: ids by name."""
    if not args.dataset:
        images = find_images(args.images, args.out)
        reading = Reading(args.window, args.plane).completed(file.meta)
        dataset = make_dataset(images, file.meta['classes'], palette, has_background(file), reading)
        return dataset, {domain: dataset.ids(domain) for domain in dataset.lists}
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    dataset = replace(dataset, reading=dataset.reading.completed(file.meta))
    file.check_classes(dataset)
    lists = {domain: dataset.ids(domain) for domain in dataset.lists}
    if 'test' in lists and not dataset.image_path(lists['test'][0]).is_file():
        del lists['test']  # VOC's test images come from its server
    return dataset, lists


def read_tags(dataset, lists):
    """Return the labels (C,) of the images by id; images of the list test have none."""
    ids = list(dict.fromkeys(image_id for domain, ids in lists.items() if domain != 'test' for image_id in ids))
    return dict(zip(ids, dataset.read_all_labels(ids), strict=True))


# Progress -----------------------------------------------------------------------------------------------------------


class Outcomes:
    """Prints what became of each image, and counts the images that failed. The error of a single image ends all."""

    def __init__(self, images, names):
        self.images, self.names, self.failed = images, names, 0

    def fail(self, fault):
        if len(self.images) == 1:
            raise UserError(fault)
        tqdm.write(f'warning: {fault}', sys.stderr)
        self.failed += 1

    def receive(self, outcome):
        if outcome.fault:
            return self.fail(outcome.fault)
        tqdm.write(in_words(self.images[outcome.image_id], outcome, self.names))


def in_words(path, outcome, names):
    """Return the line of an image: its classes with their scores, the highest first."""
    order = sorted(outcome.scores, key=outcome.scores.get, reverse=True)
    classes = ', '.join(f'{names[index]} {outcome.scores[index]:.2f}' for index in order)
    if outcome.has_classes:
        return f'{path}: {classes}'
    return f'{path}: no class found, the mask is background{classes and f" (best: {classes})"}'


def main(args):
    file, affinity = open_models(args)
    args = settle_flags(args, file, affinity)
    check_installed(args.crf_iteration)
    names, palette = ('background', *file.meta['classes']), colours_of(file)

    # Find the images and, of a data set, their tags.
    given = chosen_labels(args, names)
    dataset, lists = open_images(args, file, palette)
    images = {image_id: dataset.image_path(image_id) for ids in lists.values() for image_id in ids}
    tagged = args.dataset and file.meta['network'] == 'Classifier' and given is None
    tags = read_tags(dataset, lists) if tagged else {}
    check_outputs(images, args.out, [path for path in map(dataset.mask_path, images) if path])
    share = divide(dataset, list(images), args.shard)
    own = {image_id: images[image_id] for image_id in share.ids}
    if not args.overwrite:
        check_recorded(own, args.out)
    provenance.warn_if_outdated([path for path in (args.model, args.affinity) if path])
    for each in filter(None, (file, affinity)):
        each.check_reading(dataset)
    shown = pictures.names_on_pictures(names, drawing.open_font(args.font))
    outcomes = Outcomes(own, names)

    # Fork the processes of the CRF first: forking is not safe once torch has threads or a GPU.
    workers = args.num_workers if len(share.ids) > 1 and not args.tile else 0  # several large images might not fit
    writer = BackgroundWriter(workers, processes=True, receive=outcomes.receive)
    predict, device = load_networks(args, file, affinity)

    masks_of = 'tags' if tagged else ','.join(args.classes or ()) or 'predicted classes'
    inputs = {'model': file.sha256, **({'affinity': affinity.sha256} if affinity else {}), 'masks_of': masks_of}
    if tagged:
        inputs['labels'] = dict.fromkeys(images, '') | label_hashes(tags)
    scales, large = flags.floats(args.scales), []
    largest = 2 * file.meta.get('image_size', float('inf')) / min(scales)
    folder = MaskFolder(args.out, dataset, share.ids, palette, shown, args.font)
    inputs |= args.pick(['overwrite', 'repair'])
    record = record_of(args, defaults_of(file, affinity), dataset.reading)
    with fill_folder(folder, record, share, list(images), **inputs), writer:
        folder.record_photographs(images, args.overwrite)
        todo = [image_id for image_id in share.ids if image_id in folder.missing]
        loaded = masks.Pictures(dataset, todo, [*scales, *([1.0] if affinity else [])], args.resize, args.tile)
        loaded = ordered_loader(loaded, None, workers if len(todo) > 1 else 0, device)
        for image_id, image, pixels in script.progress(loaded, 'images') if len(todo) > 1 else loaded:
            if isinstance(image, str):
                outcomes.fail(image)
                continue
            # Run the networks; make the mask and write it in the background.
            try:
                pixels = [scaled.to(device, non_blocking=True) for scaled in pixels]
                job = predict(image, pixels, tags.get(image_id, given))
            except (UserError, MemoryError, RuntimeError) as error:
                outcomes.fail(masks.explain(error, images[image_id]))
                continue
            writer.submit(masks.finish, folder, image_id, str(images[image_id]), job.make, image, *job.arrays)
            large += [image_id] if max(image.shape) > largest else []
    crop = f'crops of {file.meta.get("image_size")} pixels'
    script.warn(large, todo, f'are much larger than the {crop} that the model was trained on: try smaller --scales')
    if outcomes.failed:
        raise UserError(f'{outcomes.failed} of {len(todo)} images could not be predicted: see the warnings')


if __name__ == '__main__':
    script.run(main, parse_args)
