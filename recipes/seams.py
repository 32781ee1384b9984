"""Seams of tiles: maps and label maps of --tile against the same images as a whole.

Reads   the models --classifier and maybe --affinity, or --segmenter; images, tags and masks of the list --domain
Writes  nothing

    python3 -m recipes.seams --classifier demo@cl --affinity demo@affinity --tiles 64 96 \\
        --dataset experiments/demo/dataset.json --data_dir experiments/demo
    python3 -m recipes.seams --segmenter demo@deeplab --tiles 64 96 --mosaic 4 \\
        --dataset experiments/demo/dataset.json --data_dir experiments/demo

Prints for each step how far maps are from the maps of the whole image, how many pixels of label maps differ, and the
mIoU of both. "Alone" rows do one step by tiles on the maps of the whole image. With --mosaic N the images are mosaics
of N x N images of the list, as large scenes of many objects.
"""

import itertools
from functools import partial

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from core import UserError, chain
from core.crf import crf_from_probability
from core.data.dataset import open_dataset
from core.data.tiled import at_scales
from core.labels import pseudo_label
from core.maps import present_keys, upsample_rw
from core.metrics import ConfusionMatrix
from core.models import SEGMENTERS
from core.tiles import label_by_tiles
from util import flags, script, tile_flags
from util.training import load_network, options


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(flags.DATA, options.SCALES[:1], options.COMPUTING, [options.WALK[0]])
    data = parser.groups['data']
    data.add_argument('--domain', default='val', help='list of the images: those with a mask')
    data.add_argument('--images', type=flags.integer(1), default=50, help='number of images, or of mosaics')
    data.add_argument('--mosaic', type=flags.integer(1), default=1, help='images per side of a mosaic; 1: none')
    model = parser.groups['model']
    for name, stage in (('classifier', 1), ('affinity', 4), ('segmenter', 7)):
        model.add_argument(f'--{name}', type=flags.folder_name, help=f'tag of a model of stage {stage}')
    inference = parser.groups['inference']
    inference.add_argument('--tiles', type=tile_flags.tile, nargs='+', default=[128, 256], help='sides of tiles')
    inference.add_argument('--threshold', type=flags.real(0, 1), default=0.35, help='threshold of stage 6')
    args = parser.parse_args(argv)
    if bool(args.segmenter) == bool(args.classifier):
        parser.error('pass either --classifier or --segmenter')
    return args


def open_images(args, dataset):
    """Yield an image, its labels (C,) and its mask (h, w): of an image of the list, or of a mosaic."""
    ids = dataset.ids_with_masks(args.domain)
    count = args.mosaic**2
    for i in range(args.images if count > 1 else min(args.images, len(ids))):
        some = [ids[(i * count + k) % len(ids)] for k in range(count)]
        images = [np.array(dataset.read_image(image_id)) for image_id in some]
        h, w = (min(image.shape[axis] for image in images) for axis in (0, 1))
        images = [image[:h, :w] for image in images]
        masks = [dataset.read_mask(image_id)[:h, :w] for image_id in some]
        labels = np.max([dataset.read_labels(image_id) for image_id in some], 0)
        yield Image.fromarray(join(images, args.mosaic)), labels, join(masks, args.mosaic)


def join(parts, columns):
    rows = [np.concatenate(parts[i : i + columns], 1) for i in range(0, len(parts), columns)]
    return np.concatenate(rows)


def label_images(image, labels, tile, args, networks, device):
    """Return the CAMs, edges, walks and label map of an image as a whole (tile None) or in tiles."""
    classifier, affinity_net = networks
    pixels, scaled = at_scales(image, [*flags.floats(args.scales), 1.0], tile)
    *scaled, original = [one.to(device) for one in scaled]
    ((cam, hr_cam),) = chain.image_cams(classifier, scaled, labels[None], pixels.shape[:2])
    cam, hr_cam = cam.astype(np.float32), hr_cam.astype(np.float32)
    if affinity_net is None:
        return {'class maps': hr_cam}, pseudo_labels(pixels, labels, hr_cam, args.threshold, tile)
    (edge,) = chain.image_edges(affinity_net, original, 64)
    rw = chain.walk_cams(cam, edge, beta=args.beta, tile=tile)
    maps = {'class maps': hr_cam, 'edges': edge.cpu().numpy(), 'random walk': rw, 'cam': cam}
    return maps, pseudo_labels(pixels, labels, upsample_rw(rw, pixels.shape[:2]), args.threshold, tile)


def pseudo_labels(pixels, labels, maps, threshold, tile):
    options = {'keys': present_keys(labels), 'threshold': threshold, 'iterations': 1}
    return label_by_tiles(pseudo_label, pixels, maps, tile, **options)


def alone(pixels, labels, whole, tile, args):
    """Return the walk, if there is one, and the label map, each by tiles on the maps of the whole image."""
    if 'random walk' not in whole:
        return {}, pseudo_labels(pixels, labels, whole['class maps'], args.threshold, tile)
    walked = chain.walk_cams(whole['cam'], torch.from_numpy(whole['edges']), beta=args.beta, tile=tile)
    maps = upsample_rw(whole['random walk'], pixels.shape[:2])
    return {'random walk': walked}, pseudo_labels(pixels, labels, maps, args.threshold, tile)


def segment(image, tile, args, segmenter, device):
    """Return the class probabilities and the mask of an image as a whole (tile None) or in tiles."""
    pixels, scaled = at_scales(image, flags.floats(args.scales), tile)
    (found,) = chain.image_probabilities(segmenter, [one.to(device) for one in scaled], pixels.shape[:2])
    h, w = pixels.shape[:2]
    return {'probabilities': found[:, :h, :w]}, label_by_tiles(refine, pixels, found, tile)


def refine(image, maps):
    return crf_from_probability(image, maps).argmax(0)


class Differences:
    """Differences of maps and label maps by step, over images."""

    def __init__(self, classes):
        self.means, self.largest, self.pixels, self.classes = {}, {}, {}, classes
        self.scores = {}

    def add(self, step, whole, tiled):
        difference = np.abs(whole - tiled)
        self.means.setdefault(step, []).append(float(difference.mean()) if difference.size else 0.0)
        self.largest[step] = max(self.largest.get(step, 0.0), float(difference.max(initial=0)))

    def add_labels(self, step, whole, tiled, mask):
        self.pixels.setdefault(step, []).append(float(np.mean(whole != tiled)))
        for which, label in (('whole', whole), ('tiled', tiled)):
            self.scores.setdefault((step, which), ConfusionMatrix(self.classes)).update(label, mask)

    def rows(self, tile):
        for step, means in self.means.items():
            yield tile, step, f'{np.mean(means):.4f}', f'{self.largest[step]:.3f}', '', '', ''
        for step, shares in self.pixels.items():
            miou = [f'{100 * self.scores[step, which].miou():.2f}' for which in ('whole', 'tiled')]
            yield tile, step, '', '', f'{100 * np.mean(shares):.2f} %', *miou


def main(args):
    dataset = open_dataset(args.dataset, args.data_dir)
    if not dataset.ids_with_masks(args.domain):
        raise UserError(f'{args.domain!r}: none of its images has a mask', option='domain')
    load, networks = partial(load_network, dataset, **args.pick(['device', 'precision'])), None
    if args.segmenter:
        networks, device, _ = load(SEGMENTERS, '--segmenter', args.segmenter)
    else:
        classifier, device, _ = load(['Classifier'], '--classifier', args.classifier)
        networks = classifier, args.affinity and load(['AffinityNet'], '--affinity', args.affinity)[0]

    found = {tile: Differences(dataset.num_classes + 1) for tile in args.tiles}
    images = itertools.islice(open_images(args, dataset), args.images)
    for image, labels, mask in script.progress(images, 'images', args.images):
        run = partial(segment, args=args, segmenter=networks, device=device)
        if not args.segmenter:
            run = partial(label_images, labels=labels, args=args, networks=networks, device=device)
        whole_maps, whole = run(image, tile=None)
        pixels = np.array(image)
        for tile, differences in found.items():
            maps, label = run(image, tile=tile)
            for step in [step for step in whole_maps if step != 'cam']:
                differences.add(step, whole_maps[step], maps[step])
            if args.segmenter:
                raw = [probability['probabilities'].argmax(0) for probability in (whole_maps, maps)]
                differences.add_labels('masks without CRF', *raw, mask)
                refined = label_by_tiles(refine, pixels, whole_maps['probabilities'], tile)
            else:
                walked, refined = alone(pixels, labels, whole_maps, tile, args)
                for step, maps in walked.items():
                    differences.add(f'{step}, alone by tiles', whole_maps[step], maps)
            differences.add_labels('label maps', whole, label, mask)
            differences.add_labels('label maps, CRF alone by tiles', whole, refined, mask)
    headers = ('tile', 'step', 'mean difference', 'largest', 'pixels that differ', 'mIoU, whole', 'mIoU, tiled')
    rows = [row for tile, differences in found.items() for row in differences.rows(tile)]
    print(tabulate(rows, headers, tablefmt='pipe', disable_numparse=True))


if __name__ == '__main__':
    script.run(main, parse_args)
