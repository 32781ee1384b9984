"""Choose beta and normalisation of stage 5, and the thresholds of CAMs and of stage 6, from ten masks or more.

Reads   CAMs of stage 2 and AffinityNet of stage 4; images and masks of the list --domain; edge maps of stage 5
        --save_edges if there are any (otherwise the network predicts them); masks of --score_on
Writes  experiments/tune/{TAG}.json: the choice, its scores, and the commands to run next; {TAG}.png: images, their
        masks, and labels before and after

    python3 -m tools.tune own
    python3 -m tools.tune own --beta 20 --threshold 0.45         with the gain over these settings
    python3 -m tools.tune own --score_on more_masks              also scored on held-out masks

The best settings have the highest mIoU on all masks. They are judged by images that did not choose them: each image is
scored at the settings that are best on all the others. The gain is over --beta, --rw_normalization and --threshold (of
CAMs: over the threshold of tools.predict), which are kept unless the gain is above 0. Intervals are 95 % bootstrap
intervals over images. Scores are without the dense CRF.
"""

import multiprocessing
import shlex
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from tabulate import tabulate

from core import UserError, image_scores, metrics
from core.chain import image_edges
from core.data import drawing
from core.data.dataset import Dataset
from core.data.pixels import Reading
from core.data.torch_datasets import MultiScaleDataset
from core.labels import PSEUDO_THRESHOLD
from core.maps import normalize_rw, strided_size, threshold_cams, upsample_rw
from core.random_walk import random_walk
from tools.predict import CAM_FLAGS
from tools.reporting import pictures
from tools.reporting.entries import add_recorded_data, open_recorded
from util import flags, script, tile_flags
from util.parallel.workers import parallel_map
from util.store import CAM, EDGE, RANDOM_WALK, formats, open_folder, results
from util.store.arrays import read_edge
from util.store.files import check_name, write_bytes, write_json
from util.store.fingerprints import read_args, read_json
from util.store.locks import lock_path, locked
from util.training import batches_on_device, load_network, options

FEWEST = 10  # masks with an object: with five, twice as many choices were worse than the defaults (NOTES.md)
BETAS = (10, 20, 30, 40)
NORMALIZATIONS = ('joint', 'class')
CAMS, WALKS = 'CAM', 'random walk'
DRAWN, SIDE = 12, 232  # images in the picture, and the side of each in pixels


class Setting(NamedTuple):
    """What a label is made with. Plain CAMs have only a threshold."""

    beta: float | None
    rw_normalization: str | None
    threshold: float

    def __str__(self) -> str:
        walk = [] if self.beta is None else [f'beta {self.beta:g}', self.rw_normalization]
        return ', '.join([*walk, f'threshold {results.format_threshold(self.threshold)}'])


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    where = 'tag of stage 1, the first parts of a tag, or a folder of CAMs'
    parser.add_argument('tag', type=flags.folder_name, metavar='TAG', help=where)
    add_recorded_data(parser)
    data = parser.groups['data']
    data.add_argument('--domain', default='train', help='list of the data set whose masks are used')
    most = 'largest number of masks to use; of more, these are evenly spaced'
    data.add_argument('--images', type=flags.integer(FEWEST), default=200, help=most)
    others = 'folder of held-out masks {id}.png: also score the choice on the images that are not used to choose'
    data.add_argument('--score_on', type=Path, metavar='FOLDER', help=others)
    model = 'tag of AffinityNet (default: the one that was trained on labels of these CAMs)'
    parser.groups['model'].add_argument('--model_name', type=flags.folder_name, help=model)
    compared = {name: f'{name.strip("-")} to compare the choice with' for name in ('--beta', '--rw_normalization')}
    walk = [flag._replace(help=compared.get(flag.name, flag.help)) for flag in options.WALK]
    parser.add_table(flags.WORKERS, options.COMPUTING, walk)
    limit = {'type': flags.real(0, 1), 'default': PSEUDO_THRESHOLD}
    parser.groups['inference'].add_argument('--threshold', **limit, help='threshold to compare the choice with')
    return parser.parse_args(argv)


def find_cams(tag: str, domain: str) -> tuple[str, dict]:
    """Return the folder of the CAMs of a tag on a list, and its record. Raises UserError unless there is one."""
    lists, found = (domain, 'train_aug') if domain == 'train' else (domain,), {}
    for path in sorted(formats.PREDICTIONS.glob('[!.]*')):
        record = read_args(path)
        if record.get('format') == CAM.title and record.get('options', {}).get('domain') in lists:
            if path.name == tag or path.name.startswith(f'{tag}@'):
                found[path.name] = record
    found = {name: record for name, record in found.items() if record['options'].get('tag') == tag} or found
    if not found:
        raise UserError(f'TAG {tag}: no CAMs of it on {domain} in {formats.PREDICTIONS}; run {CAM.script} first')
    if len(found) > 1:
        raise UserError(f'TAG {tag}: has several folders of CAMs: name one instead: {", ".join(found)}')
    return next(iter(found.items()))


def open_data(args, cam_dir: str, record: dict) -> Dataset:
    """Open the data set of some CAMs. Raises UserError if it has no background, and so no threshold."""
    dataset = open_recorded(args, cam_dir, record)
    if not dataset.has_background:
        raise UserError(f'TAG {args.tag}: the data set "{dataset.name}" has no background, so no threshold to choose')
    return dataset


def find_affinity_net(name: str | None, tag: str | None) -> str | None:
    """Return the tag of the AffinityNet: a given one, or the one trained on labels of a classifier's CAMs, if any.

    Raises UserError if there are several, or if the given one does not exist.
    """
    if name:
        path = formats.model_path(name)
        if not path.is_file():
            raise UserError(f'{path} not found; run train_affinitynet.py first', option='model_name')
        return name
    found = []
    for path in sorted((formats.EXPERIMENTS / 'data').glob('[!.]*.json')):
        record = read_json(path, network=str, options=dict)
        labels = str(record.get('options', {}).get('label_name'))
        if record.get('network') == 'AffinityNet' and labels.startswith(f'{tag}@train@'):
            found.append(path.stem)
    if len(found) > 1:
        raise UserError(f'is needed: several were trained on CAMs of {tag}: {", ".join(found)}', option='model_name')
    return found[0] if found else None


def space(ids: list[str], most: int) -> list[str]:
    """Return the ids, or of more than `most` this number of evenly spaced ones."""
    return [ids[i * len(ids) // most] for i in range(most)] if len(ids) > most else ids


def read_edges(args, model_name, domain, dataset, ids) -> dict[str, np.ndarray]:
    """Return the edges (h/4, w/4) of each image, as stage 5 saved them or as the network predicts them."""
    saved = formats.PREDICTIONS / formats.folder_name(EDGE, {'model_name': model_name, 'domain': domain}, {})
    is_same = read_args(saved).get('options', {}).get('image_size') == args.image_size
    if is_same and all((saved / f'{image_id}{EDGE.suffix}').is_file() for image_id in ids):
        folder = open_folder(EDGE, saved.name, '--model_name', dataset, ids)
        return {i: read_edge(folder.file(i), strided_size(dataset.image_size(i))) for i in ids}
    network, device, _ = load_network(
        dataset, ['AffinityNet'], '--model_name', model_name, **args.pick(('device', 'precision'))
    )
    batches, edges = MultiScaleDataset(dataset, ids, set(ids), [1.0], 4), {}
    for batch_ids, _, (pixels,) in batches_on_device(batches, args.num_workers, device, 'edges'):
        edges.update(zip(batch_ids, image_edges(network, pixels, args.image_size).cpu().numpy(), strict=True))
    return edges


def walk(image_id, cams, edges, exp_times, size, beta) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return keys (K+1,) and the scores (K, h, w) for each normalisation, rounded as in the files of stage 5."""
    keys, cam = cams.read_maps(image_id, 'cam', strided_size(size))
    edge = torch.from_numpy(edges[image_id])
    walked = random_walk(torch.from_numpy(cam), edge, beta=beta, exp_times=exp_times).numpy()
    return keys, {by: upsample_rw(normalize_rw(walked, by).astype(np.float16), size) for by in NORMALIZATIONS}


def count_image(image_id, cams, edges, exp_times, betas, thresholds, readers) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for the mask of each of the `readers`, its classes and T, P and TP of each at all settings of an image.

    Settings are as in `list_settings`. The shapes are (K,) and (settings, K, 3).
    """
    if multiprocessing.parent_process():
        torch.set_num_threads(1)  # the other threads of torch do not survive the fork
    masks, classes = [read(image_id) for read in readers], cams.dataset.num_classes + 1
    size, found = masks[0].shape, []
    for beta in betas:
        keys, scores = walk(image_id, cams, edges, exp_times, size, beta)
        found += [(keys, scores[by]) for by in NORMALIZATIONS]
    found, by_mask = found or [cams.read_scores(image_id, size)], []
    for mask in masks:
        counts = [metrics.count_maps(maps, keys, mask, thresholds, classes) for keys, maps in found]
        present, counts = metrics.drop_absent(np.concatenate(counts))
        by_mask.append((present, metrics.class_counts(counts).astype(np.uint32)))
    return by_mask


def list_settings(betas: Sequence[float], thresholds: Sequence[float]) -> list[Setting]:
    """Return the settings that `count_image` counts: of random walks, or without betas of plain CAMs."""
    walks = list(product(betas, NORMALIZATIONS)) or [(None, None)]
    return [Setting(*values, threshold) for values in walks for threshold in thresholds]


def count_images(args, cams, edges, ids, betas, thresholds, readers) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Return what `count_image` returns of all images, for the mask of each of the `readers`."""
    settings = {'betas': betas, 'thresholds': thresholds, 'readers': readers}
    count = partial(count_image, cams=cams, edges=edges, exp_times=args.exp_times, **settings)
    by_image = list(parallel_map(count, ids, args.num_workers, 'random walks' if betas else 'scoring'))
    return [[masks[i] for masks in by_image] for i in range(len(readers))]


def judge(by_image: list, settings: list[Setting], compared: Setting, num_classes: int) -> dict:
    """Return the best of settings with its scores (core.image_scores.judge_best), and which one is chosen.

    It is the best one if it gains on images that did not choose it, else the compared one. Counts: as `count_walks`.
    """
    index = settings.index(compared)
    row = image_scores.judge_best(len(by_image), **results.pack(by_image), compared=index, num_classes=num_classes)
    others = Counter(settings[i] for i in row.pop('without_each') if i != row['best']).most_common()
    changes = {'masks': sum(n for _, n in others), 'mostly_to': others[0][0]._asdict()} if others else None
    best = settings[row['best']]._asdict()
    row |= {'compared_with': compared._asdict(), 'best': best}
    return {**row, 'chosen': best if row['gain'] > 0 else row['compared_with'], 'changes_without_one_mask': changes}


def find_others(args, dataset, used: Sequence[str]) -> list[str]:
    """Return the images that have a mask in --score_on and are not used to choose. Raises UserError without one."""
    ids = [image_id for image_id in dataset.ids(args.domain, with_images=True) if image_id not in {*used}]
    ids = [image_id for image_id in ids if (args.score_on / f'{image_id}.png').is_file()]
    if not ids:
        raise UserError(
            f'{args.score_on}: has no mask {{id}}.png of an image that is not used to choose', option='score_on'
        )
    return ids


def score_others(args, cams, edges, pairs: dict[str, tuple[Setting, Setting]]) -> dict[str, dict]:
    """Return the scores of the compared and the chosen settings on the masks in --score_on of the images of `cams`."""
    dataset, rows = cams.dataset, {}

    def read(image_id: str) -> np.ndarray:
        return dataset.read_label_map(args.score_on / f'{image_id}.png', dataset.image_size(image_id))

    for title, pair in pairs.items():
        grid = sorted({x.beta for x in pair} - {None}), sorted({x.threshold for x in pair})
        (by_image,) = count_images(args, cams, edges, cams.ids, *grid, [read])
        settings, packed = list_settings(*grid), results.pack(by_image)
        chosen = [np.full(len(by_image), settings.index(x)) for x in pair]
        tables = [image_scores.unpack(x, **packed, num_classes=dataset.num_classes + 1) for x in chosen]
        rows[title] = {'masks': len(by_image), **image_scores.compare(*tables)}
    cams.check_unchanged()
    return rows


def tabulate_scores(scores: dict[str, dict]) -> str:
    lines = [('', 'compared with', 'mIoU %', 'best', 'mIoU % of other images', '95 %', 'gain', '95 %', 'same masks')]
    for title, row in scores.items():
        compared, best = (Setting(**row[name]) for name in ('compared_with', 'best'))
        ends = [' to '.join(f'{end:.1f}' for end in row[name]) for name in ('interval', 'gain_interval')]
        numbers = f'{row["miou"]:.1f}', ends[0], f'{row["gain"]:+.1f}', ends[1], f'{row["miou_same_images"]:.1f}'
        lines.append((title, compared, f'{row["compared_miou"]:.1f}', best, *numbers))
    return tabulate(lines[1:], lines[0], tablefmt='pipe', disable_numparse=True)


def list_doubts(scores: dict[str, dict], objects: np.ndarray, names: Sequence[str]) -> list[str]:
    """Return a line for each thing that the masks cannot tell; objects (N, C): whether a mask has a class."""
    count, lines = int(objects.any(1).sum()), []
    if count < FEWEST:
        lines.append(f'{count} masks with an object: at least {FEWEST} are needed to choose, so nothing changes')
    absent = [name for name, there in zip(names, objects.any(0), strict=True) if not there]
    if absent and count:
        lines.append(f'in no mask, so what suits them is unknown: {", ".join(absent)}')
    for title, row in scores.items():
        low, _ = row['gain_interval']
        if row['gain'] <= 0:
            lines.append(f'{title}: "compared with" is kept, because the best settings gain nothing on other images')
        elif low <= 0:
            lines.append(f'{title}: these masks do not show that the best settings are better; more masks can')
        if changes := row['changes_without_one_mask']:
            number, other = changes['masks'], Setting(**changes['mostly_to'])
            change = f'{number} of the masks change{"" if number > 1 else "s"} the best settings when left out'
            lines.append(f'{title}: {change}, mostly to {other}')
    if WALKS in scores and scores[CAMS]['miou'] > scores[WALKS]['miou']:
        threshold = results.format_threshold(scores[CAMS]['chosen']['threshold'])
        lines.append(f'plain CAMs score higher: use tools.predict --threshold {threshold} without --affinity')
    return lines


def plan(args, record: dict, cam_dir: str, model_name: str | None, chosen: dict[str, Setting]) -> dict:
    """Return the flags of the choice, the folder that stage 5 writes with them, and the commands to run next."""
    given, defaults, content, commands = record['options'], args.record().defaults, {}, []
    data = [word for name in ('dataset', 'data_dir') for word in (f'--{name}', vars(args)[name] or given[name])]
    data += Reading(*(vars(args)[name] or given.get(name) for name in ('window', 'plane'))).flags()
    listed = [] if given['domain'] == 'train_aug' else ['--domain', given['domain']]
    predict = ['-m', 'tools.predict', str(formats.model_path(str(given.get('tag'))))]
    threshold = chosen[CAMS].threshold
    if model_name:
        used = {**chosen[WALKS]._asdict(), **args.pick(('exp_times', 'image_size'))}
        threshold = used.pop('threshold')
        changed = {name: str(x).removesuffix('.0') for name, x in used.items() if x != defaults[name]}
        walking = [word for name, x in changed.items() for word in (f'--{name}', x)]
        walk_dir = formats.folder_name(RANDOM_WALK, {**used, **given, 'model_name': model_name}, defaults)
        labels = read_args(formats.PREDICTIONS / f'{walk_dir}@crf=1').get('options', {})
        replace = [] if labels.get('threshold', threshold) == threshold else ['--overwrite']
        content = {'walk_flags': shlex.join(walking), 'walk_dir': walk_dir}
        inputs = ['--model_name', model_name, '--cam_dir', cam_dir]
        commands.append(['inference_rw.py', *data, *listed, *inputs, *walking])
        folder = ['--experiment_name', walk_dir, '--threshold', f'{threshold:g}', *replace]
        commands.append(['make_pseudo_labels.py', *data, *listed, *folder])
        predict += ['--affinity', str(formats.model_path(model_name)), *walking]
    if given.get('tag') and 'cam_dirs' not in given:  # tools.predict averages no folders
        for flag in (*options.SCALES, *options.READ_OUT, *tile_flags.TILE):  # as these CAMs were made
            name = flag.name.split()[0]
            value = given.get(name.strip('-'), flag.default)
            predict += [] if value == flag.default else [name, str(value)]
        commands.append([*predict, '--threshold', f'{threshold:g}', *data, '--overwrite'])
    return {**content, 'threshold': threshold, 'commands': [shlex.join(['python3', *words]) for words in commands]}


def draw(ids: Sequence[str], cams, edges, exp_times, compared: Setting, best: Setting) -> bytes:
    """Return a PNG with a row for each image: the image, its mask, and its labels at both settings."""
    drawn, font, dataset = [], drawing.open_font().font_variant(size=13), cams.dataset
    for image_id in ids:
        image, mask = np.array(dataset.read_image(image_id)), dataset.read_mask(image_id)
        shown = [(image_id, image), ('mask', drawing.overlay_mask(image, mask, dataset.palette))]
        for title, setting in (('compared with', compared), ('best', best)):
            if setting.beta is None:
                keys, maps = cams.read_scores(image_id, mask.shape)
            else:
                keys, scores = walk(image_id, cams, edges, exp_times, mask.shape, setting.beta)
                maps = scores[setting.rw_normalization]
            label = keys[threshold_cams(maps, setting.threshold)]
            shown.append((f'{title}: {setting}', drawing.overlay_mask(image, label, dataset.palette)))
        drawn += [drawing.caption(pictures.fit(x, SIDE), title, [], '', font) for title, x in shown]
    return iio.imwrite('<bytes>', drawing.stack(drawn, 4), extension='.png')


def main(args):
    cam_dir, record = find_cams(args.tag, args.domain)
    dataset = open_data(args, cam_dir, record)
    masked = dataset.ids_with_masks(args.domain, with_images=True)
    ids = space(masked, args.images)
    rest = find_others(args, dataset, ids) if args.score_on else []
    model_name = find_affinity_net(args.model_name, record['options'].get('tag'))
    compared = {CAMS: Setting(None, None, CAM_FLAGS['threshold'])}
    if model_name:
        compared[WALKS] = Setting(args.beta, args.rw_normalization, args.threshold)
    path, classes = formats.EXPERIMENTS / 'tune' / f'{args.tag}.json', dataset.num_classes + 1
    check_name(path, 'TAG')
    with locked(lock_path(path), str(path)):
        # Count the pixels of plain CAMs. The counts also say which objects the masks contain.
        scores, by_image, edges, others = {}, [], {}, {}
        if ids:
            cams = open_folder(CAM, cam_dir, 'TAG', dataset, ids)
            (by_image,) = count_images(args, cams, {}, ids, (), metrics.CAM_THRESHOLDS, [dataset.read_mask])
        objects = [np.isin(range(1, classes), present[counts[0, :, 0] > 0]) for present, counts in by_image]
        objects = np.reshape(objects, (-1, classes - 1)).astype(bool)
        if objects.any(1).sum() >= FEWEST:
            settings = list_settings((), metrics.CAM_THRESHOLDS)
            scores[CAMS] = judge(by_image, settings, compared[CAMS], classes)

            # Walk with each beta along the same edges, and count the pixels at each threshold.
            if model_name:
                edges = read_edges(args, model_name, record['options']['domain'], dataset, ids)
                grid = sorted({*BETAS, args.beta}), sorted({*metrics.CAM_THRESHOLDS, args.threshold})
                (by_image,) = count_images(args, cams, edges, ids, *grid, [dataset.read_mask])
                scores[WALKS] = judge(by_image, list_settings(*grid), compared[WALKS], classes)
            last = [Setting(**[*scores.values()][-1][name]) for name in ('compared_with', 'best')]
            picture = draw(ids[:DRAWN], cams, edges, args.exp_times, *last)
            cams.check_unchanged()
        chosen = {title: Setting(**scores[title]['chosen']) if scores else compared[title] for title in compared}
        if scores and rest:
            cams = open_folder(CAM, cam_dir, 'TAG', dataset, rest)
            edges = read_edges(args, model_name, record['options']['domain'], dataset, rest) if model_name else {}
            others = score_others(args, cams, edges, {title: (compared[title], chosen[title]) for title in compared})
        if scores:
            write_bytes(path.with_suffix('.png'), picture)
        else:
            path.with_suffix('.png').unlink(missing_ok=True)  # of other masks
        content = {'cam_dir': cam_dir, 'model_name': model_name, 'masks': len(ids), 'scores': scores}
        content |= {'others': others, 'doubts': list_doubts(scores, objects, dataset.class_names)}
        content |= plan(args, record, cam_dir, model_name, chosen)
        write_json(path, content)
    print(f'{len(ids)} of {len(masked)} masks of the list "{args.domain}" are used')
    if scores:
        print(tabulate_scores(scores))
    for title, row in others.items():
        where = f'{title}, {row["masks"]} held-out masks in {args.score_on}:'
        gain = f'{row["gain"]:+.1f} (95 % {" to ".join(f"{end:.1f}" for end in row["gain_interval"])})'
        print(f'{where} {row["miou"]:.1f} instead of {row["compared_miou"]:.1f} mIoU %, gain {gain}')
    print(*content['doubts'], '', *content['commands'], f'written to {path}', sep='\n')


if __name__ == '__main__':
    script.run(main, parse_args)
