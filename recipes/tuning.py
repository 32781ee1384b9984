"""What tools.tune gains with few masks, over random choices of them, and what rules without masks gain.

Reads   CAMs of stage 2, AffinityNet of stage 4 and the affinity labels that it was trained on; images and masks of the
        list --domain; edge maps of stage 5 --save_edges if there are any
Writes  nothing

    python3 -m recipes.tuning demo@puzzle --image_size 128           after tools/quickstart.sh
    python3 -m recipes.tuning photographs@cl@seed=0                  after recipes.readouts --until walks

Each choice draws n images whose masks have an object, and finds the settings with the highest mIoU on these masks. The
gain is over the compared settings, on all other masks. "always" takes the best settings, "tools.tune" does only if they
gain on images left out, one at a time, of the n. A rule takes the settings that suit something else than masks best.
Walks are made once for each image and beta, and serve all choices.
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

# The defaults of the stages, and the values of recipes/own.sh for few photographs.
COMPARED = {
    CAMS: (Setting(None, None, CAM_FLAGS['threshold']),),
    WALKS: (Setting(BETA, 'joint', PSEUDO_THRESHOLD), Setting(20, 'joint', 0.45)),
}


class Counts(NamedTuple):
    """T, P and TP of all images at all settings: by masks, and by what the rules have instead."""

    settings: list[Setting]
    by_masks: list[tuple[np.ndarray, np.ndarray]]  # (K,) and (settings, K, 3) of each image
    by_labels: list[tuple[np.ndarray, np.ndarray]]  # affinity labels
    by_cams: list[tuple[np.ndarray, np.ndarray]]  # labels of plain CAMs


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('tag', type=flags.folder_name, metavar='TAG', help='tag of stage 1, or a folder of CAMs')
    add_recorded_data(parser)
    data = parser.groups['data']
    data.add_argument('--domain', default='train', help='list of the data set whose masks are used')
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
    model_name = args.model_name or tune.find_affinity_net(record['options'].get('tag'))
    if model_name is None:
        raise UserError(f'TAG {args.tag}: no AffinityNet was trained on its CAMs; run train_affinitynet.py first')
    trained = read_json(formats.run_path(model_name), options=dict).get('options', {})
    cams = open_folder(CAM, cam_dir, 'TAG', dataset, ids)
    labels = open_folder(AFFINITY_LABEL, str(trained.get('label_name')), 'TAG', dataset, ids)
    edges = tune.read_edges(args, model_name, record['options']['domain'], dataset, ids)

    def read_cams(image_id: str) -> np.ndarray:
        keys, maps = cams.read_scores(image_id, dataset.image_size(image_id))
        return keys[threshold_cams(maps, CAM_FLAGS['threshold'])]

    readers, counts = [dataset.read_mask, labels.read_label, read_cams], {}
    for title, betas in ((CAMS, ()), (WALKS, tune.BETAS)):
        by_readers = tune.count_images(args, cams, edges, ids, betas, CAM_THRESHOLDS, readers)
        counts[title] = Counts(tune.list_settings(betas, CAM_THRESHOLDS), *by_readers)
    cams.check_unchanged()
    return counts, dataset.num_classes + 1


def add_up(by_image: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int) -> np.ndarray:
    """Return T, P and TP of all images: (settings, C, 3)."""
    total = np.zeros((len(by_image[0][1]), num_classes, 3), np.int64)
    for classes, counts in by_image:
        total[:, classes] += counts
    return total


def choose(counts: Counts, compared: Setting, number: int, choices: int, num_classes: int) -> np.ndarray:
    """Return the gain on the other masks, in points, of each choice: (choices, 2), always and as tools.tune."""
    index, total = counts.settings.index(compared), add_up(counts.by_masks, num_classes)
    shown = [i for i, (classes, by) in enumerate(counts.by_masks) if by[0, classes > 0, 0].any()]
    if len(shown) <= number:
        raise UserError(f'{len(shown)} masks have an object: {number} leave none to score', option='masks')
    rng, gains = np.random.default_rng(number), []
    for _ in range(choices):
        drawn = [counts.by_masks[i] for i in np.sort(rng.choice(shown, number, replace=False))]
        judged = image_scores.judge_best(number, **results.pack(drawn), compared=index, num_classes=num_classes)
        rest = 100 * mean_scores(total - add_up(drawn, num_classes))['miou']
        gain = rest[judged['best']] - rest[index]
        gains.append((gain, gain if judged['gain'] > 0 else 0))
    return np.array(gains)


def tabulate_choices(counts: dict[str, Counts], numbers: Sequence[int], choices: int, num_classes: int) -> str:
    headers = ('', 'compared with', 'masks', 'tools.tune', 'least', 'most', 'lost', 'kept', 'always', 'least', 'lost')
    lines = []
    for title, of_title in counts.items():
        for compared in COMPARED[title]:
            for number in numbers:
                always, tuned = choose(of_title, compared, number, choices, num_classes).T
                values = tuned.mean(), tuned.min(), tuned.max(), always.mean(), always.min()
                mean, least, most, *rest = (f'{value:+.2f}' for value in values)
                lost = [f'{100 * share.mean():.0f} %' for share in (tuned < 0, tuned == 0, always < 0)]
                lines.append((title, compared, number, mean, least, most, *lost[:2], *rest, lost[2]))
    return tabulate(lines, headers, 'pipe', disable_numparse=True)


def follow_rules(counts: Counts, num_classes: int) -> dict[str, int]:
    """Return which setting each rule takes."""
    masks, labels, cams = (add_up(by_image, num_classes) for by_image in counts[1:])
    foreground = np.abs(cams[:, 1:, 1].sum(1) - cams[:, 1:, 0].sum(1))
    return {
        'all masks': int(mean_scores(masks)['miou'].argmax()),
        'affinity labels of stage 3 instead of masks': int(mean_scores(labels)['miou'].argmax()),
        'as much foreground as plain CAMs at 0.25': int(foreground.argmin()),
        'plain CAMs at 0.25 instead of masks': int(mean_scores(cams)['miou'].argmax()),
    }


def tabulate_rules(counts: dict[str, Counts], num_classes: int) -> str:
    headers, lines = ('', 'chosen by', 'settings', 'mIoU %', 'gain', '95 %'), []
    for title, of_title in counts.items():
        compared, packed = COMPARED[title][0], results.pack(of_title.by_masks)

        def table(index: int, of_title=of_title, packed=packed) -> np.ndarray:
            chosen = np.full(len(of_title.by_masks), index)
            return image_scores.unpack(chosen, **packed, num_classes=num_classes)

        before = table(of_title.settings.index(compared))
        rules = {'defaults': of_title.settings.index(compared), **follow_rules(of_title, num_classes)}
        for rule, index in rules.items():
            if title == CAMS and 'plain' in rule:
                continue  # plain CAMs agree best with themselves
            row = image_scores.compare(before, table(index))
            interval = ' to '.join(f'{end:+.2f}' for end in row['gain_interval'])
            numbers = f'{row["miou"]:.2f}', f'{row["gain"]:+.2f}', interval
            lines.append((title, rule, of_title.settings[index], *numbers))
    return tabulate(lines, headers, 'pipe', disable_numparse=True)


def main(args):
    counts, num_classes = count(args)
    print(f'{args.choices} choices of each number of masks, of {len(counts[CAMS].by_masks)}\n')
    print(tabulate_choices(counts, args.masks, args.choices, num_classes))
    print()
    print(tabulate_rules(counts, num_classes))


if __name__ == '__main__':
    script.run(main, parse_args)
