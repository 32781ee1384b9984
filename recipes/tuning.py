"""What tools.tune gains with few masks, over random choices of them, and what rules without masks gain.

Reads   CAMs of stage 2; AffinityNet of stage 4, if there is one, and the affinity labels that it was trained on; images
        and masks of the list --domain; edge maps of stage 5 --save_edges if there are any
Writes  nothing

    python3 -m recipes.tuning demo@puzzle --image_size 128           after tools/quickstart.sh
    python3 -m recipes.tuning photographs@cl@seed=0                  after recipes.readouts --until walks

Each choice takes n random images whose masks have an object, and finds the settings with the highest mIoU on them. The
gain is over the compared settings, on all other masks. The best settings are taken if they gain on images that are left
out of the n one at a time, as by tools.tune, or if the 95 % interval of this gain is above 0, or always. A rule takes
the settings that suit something else than masks best. Walks are made once for each image and beta, for all choices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from core import UserError, image_scores
from core.labels import PSEUDO_THRESHOLD
from core.maps import threshold_cams
from core.metrics import CAM_THRESHOLDS, mean_scores
from core.random_walk import BETA
from tools import tune
from tools.predict import CAM_FLAGS
from tools.reporting.entries import add_recorded_data, open_recorded
from tools.tune import CAMS, WALKS, Setting
from util import flags, script
from util.store import AFFINITY_LABEL, CAM, formats, open_folder, results
from util.store.fingerprints import read_json
from util.training import options

# The defaults of the stages, and values that suit the published CAMs of 78 photographs (docs/results/few_images.md).
COMPARED = {
    CAMS: (Setting(None, None, CAM_FLAGS['threshold']),),
    WALKS: (Setting(BETA, 'joint', PSEUDO_THRESHOLD), Setting(20, 'joint', 0.45)),
}

# When the best settings replace the compared ones: as tools.tune, only if it is sure that they gain, and always.
POLICIES = ('if they gain', 'if the interval is above 0', 'always')

MASKS, LABELS, FROM_CAMS = 'masks', 'affinity labels', 'labels of plain CAMs'


class Counts(NamedTuple):
    """T, P and TP of all images at all settings, by masks and by what the rules have instead: {name: ...}.

    Of each image there are the K classes (K,) and their counts (settings, K, 3).
    """

    settings: list[Setting]
    by: dict[str, list[tuple[np.ndarray, np.ndarray]]]


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('tag', type=flags.folder_name, metavar='TAG', help='tag of stage 1, or a folder of CAMs')
    add_recorded_data(parser)
    data = parser.groups['data']
    data.add_argument('--domain', default='train', help='list of the data set whose masks are used')
    most = 'largest number of masks to use; of more, these are evenly spaced (default: all)'
    data.add_argument('--images', type=flags.integer(2), help=most)
    numbers = 'numbers of masks that choose'
    data.add_argument('--masks', nargs='+', type=flags.integer(2), default=[3, 5, 10, 20, 40], help=numbers)
    data.add_argument('--choices', type=flags.integer(1), default=20, help='random choices of each number of masks')
    model = 'tag of AffinityNet (default: the one that was trained on labels of these CAMs)'
    parser.groups['model'].add_argument('--model_name', type=flags.folder_name, help=model)
    walk = [flag for flag in options.WALK if flag.name in ('--exp_times', '--image_size')]
    parser.add_table(flags.WORKERS, options.COMPUTING, walk)
    return parser.parse_args(argv)


def count(args) -> tuple[dict[str, Counts], int]:
    """Return the counts of plain CAMs and of random walks, and the number of classes with the background."""
    cam_dir, record = tune.find_cams(args.tag, args.domain)
    dataset = open_recorded(args, cam_dir, record)
    ids = dataset.ids_with_masks(args.domain, with_images=True)
    ids = tune.space(ids, args.images or len(ids))
    model_name = tune.find_affinity_net(args.model_name, record['options'].get('tag'))
    cams = open_folder(CAM, cam_dir, 'TAG', dataset, ids)

    def read_cams(image_id: str) -> np.ndarray:
        keys, maps = cams.read_scores(image_id, dataset.image_size(image_id))
        return keys[threshold_cams(maps, CAM_FLAGS['threshold'])]

    readers, edges, counts = {MASKS: dataset.read_mask, FROM_CAMS: read_cams}, {}, {}
    if model_name:
        trained = read_json(formats.run_path(model_name), options=dict).get('options', {})
        labels = open_folder(AFFINITY_LABEL, str(trained.get('label_name')), 'TAG', dataset, ids)
        readers[LABELS] = labels.read_label
        edges = tune.read_edges(args, model_name, record['options']['domain'], dataset, ids)
    for title, betas in ((CAMS, ()), (WALKS, tune.BETAS)) if model_name else ((CAMS, ()),):
        by_reader = tune.count_images(args, cams, edges, ids, betas, CAM_THRESHOLDS, [*readers.values()])
        by = dict(zip(readers, by_reader, strict=True))
        counts[title] = Counts(tune.list_settings(betas, CAM_THRESHOLDS), by)
    cams.check_unchanged()
    return counts, dataset.num_classes + 1


def add_up(by_image: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int) -> np.ndarray:
    """Return T, P and TP of all images: (settings, C, 3)."""
    total = np.zeros((len(by_image[0][1]), num_classes, 3), np.int64)
    for classes, counts in by_image:
        total[:, classes] += counts
    return total


def choose(counts: Counts, compared: Setting, number: int, choices: int, num_classes: int) -> np.ndarray:
    """Return the gain on the other masks, in points, of each choice if it follows each of POLICIES: (choices, 3)."""
    by_image, index = counts.by[MASKS], counts.settings.index(compared)
    total = add_up(by_image, num_classes)
    shown = [i for i, (classes, by) in enumerate(by_image) if by[0, classes > 0, 0].any()]
    if len(shown) <= number:
        raise UserError(f'{len(shown)} masks have an object: {number} leave none to score', option='masks')
    rng, gains = np.random.default_rng(number), []
    for _ in range(choices):
        drawn = [by_image[i] for i in np.sort(rng.choice(shown, number, replace=False))]
        judged = image_scores.judge_best(number, **results.pack(drawn), compared=index, num_classes=num_classes)
        rest = 100 * mean_scores(total - add_up(drawn, num_classes))['miou']
        gain = rest[judged['best']] - rest[index]
        gains.append([gain if changes else 0 for changes in (judged['gain'] > 0, judged['gain_interval'][0] > 0, True)])
    return np.array(gains)


def tabulate_choices(counts: dict[str, Counts], numbers: Sequence[int], choices: int, num_classes: int) -> str:
    headers = [
        '',
        'compared with',
        'masks',
        *(name for policy in POLICIES for name in (policy, 'least', 'most', 'lost')),
    ]
    lines = []
    for title, of_title in counts.items():
        for compared in COMPARED[title]:
            for number in numbers:
                cells = [title, compared, number]
                for gains in choose(of_title, compared, number, choices, num_classes).T:
                    cells += [f'{value:+.2f}' for value in (gains.mean(), gains.min(), gains.max())]
                    cells.append(f'{(gains < 0).sum()} of {choices}')
                lines.append(cells)
    return tabulate(lines, headers, 'pipe', disable_numparse=True)


def follow_rules(counts: Counts, num_classes: int) -> dict[str, int]:
    """Return which setting each rule takes."""
    totals = {name: add_up(by_image, num_classes) for name, by_image in counts.by.items()}
    found = {f'{name} instead of masks': int(mean_scores(total)['miou'].argmax()) for name, total in totals.items()}
    foreground = totals[FROM_CAMS][:, 1:, :2].sum(1)  # pixels of plain CAMs at 0.25, and at each setting
    same_area = {'as much foreground as plain CAMs': int(np.abs(foreground[:, 1] - foreground[:, 0]).argmin())}
    return {'all masks': found.pop(f'{MASKS} instead of masks'), **found, **same_area}


def tabulate_rules(counts: dict[str, Counts], num_classes: int) -> str:
    headers, lines = ('', 'chosen by', 'settings', 'mIoU %', 'gain', '95 %'), []
    for title, of_title in counts.items():
        compared, packed = COMPARED[title][0], results.pack(of_title.by[MASKS])

        def table(index: int, of_title=of_title, packed=packed) -> np.ndarray:
            chosen = np.full(len(of_title.by[MASKS]), index)
            return image_scores.unpack(chosen, **packed, num_classes=num_classes)

        before = table(of_title.settings.index(compared))
        rules = {'defaults': of_title.settings.index(compared), **follow_rules(of_title, num_classes)}
        if title == WALKS:
            rules['78 photographs'] = of_title.settings.index(COMPARED[WALKS][1])
        for rule, index in rules.items():
            if title == CAMS and 'plain CAMs' in rule:
                continue  # plain CAMs agree best with themselves
            row = image_scores.compare(before, table(index))
            interval = ' to '.join(f'{end:+.2f}' for end in row['gain_interval'])
            numbers = f'{row["miou"]:.2f}', f'{row["gain"]:+.2f}', interval
            lines.append((title, rule, of_title.settings[index], *numbers))
    return tabulate(lines, headers, 'pipe', disable_numparse=True)


def main(args):
    counts, num_classes = count(args)
    print(f'{args.choices} choices of each number of masks, of {len(counts[CAMS].by[MASKS])}\n')
    print(tabulate_choices(counts, args.masks, args.choices, num_classes))
    print()
    print(tabulate_rules(counts, num_classes))


if __name__ == '__main__':
    script.run(main, parse_args)
