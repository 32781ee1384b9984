"""Results under experiments/results/: the only module that writes, reads and finds them.

{name}.json holds the scores of evaluate.py, {name}.npz the pixel counts of every image:
    ids         (N,) text
    thresholds  (thresholds,) float64; empty for label maps, whose counts have one row
    images      (entries,) which of the ids; an entry is an image and a class in its mask or its predictions
    classes     (entries,) 0 is the background
    counts      (entries, thresholds, 3), T, P and TP as the smallest unsigned integers that fit
{name}.tgz is the upload for the VOC test server. No torch: stage 9 imports this module and forks.
"""

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from tabulate import tabulate

from core import UserError
from util.artifacts import EXPERIMENTS, NPZ_ERRORS, format_of, results_path, write_npz
from util.files import write_bytes, write_json
from util.fingerprint import versions

FOLDER = EXPERIMENTS / 'results'
BEST, GIVEN = 'best on these masks', 'given'  # how the threshold of a result was chosen
NUMBERS = ('miou', 'fp', 'fn', 'images', 'all_background_miou')  # what every result has
TYPES = {'domain': str, 'dataset': str, 'masks': str, 'iou': dict, 'made_with': dict}  # entries that older ones lack

# What results in one table have in common.
COMPARED: dict[str, Callable[[dict], object]] = {
    'splits': lambda result: result.get('domain'),
    'data sets': lambda result: result.get('dataset'),
    'classes': lambda result: ', '.join(result.get('iou', ())) or None,
    'numbers of images': lambda result: result['images'],
    'masks': lambda result: result.get('masks'),
}

# Writing ------------------------------------------------------------------------------------------------------------


def write(
    name: str, content: dict, ids: list[str], by_image: list[tuple[np.ndarray, np.ndarray]], seconds: float
) -> None:
    """Write a result: the content of the JSON file; and per image its K classes, and T, P and TP (thresholds, K, 3).

    The duration of the evaluation and the versions are added to the content.
    """
    thresholds = [row['threshold'] for row in content['thresholds'] if row['threshold'] is not None]
    arrays = {'ids': np.array(ids), 'thresholds': np.array(thresholds, np.float64), **pack(by_image)}
    write_npz(results_path(name, 'npz'), **arrays)
    write_json(results_path(name, 'json'), {**content, 'seconds': round(seconds, 2), 'versions': versions()})


def pack(by_image: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return `images`, `classes` and `counts` as above from K classes and counts (thresholds, K, 3) per image."""
    arrays = {
        'images': np.repeat(np.arange(len(by_image)), [len(classes) for classes, _ in by_image]),
        'classes': np.concatenate([classes for classes, _ in by_image]),
        'counts': np.concatenate([counts.swapaxes(0, 1) for _, counts in by_image]),
    }
    return {key: array.astype(np.min_scalar_type(array.max(initial=0))) for key, array in arrays.items()}


def unpack(arrays: Mapping[str, np.ndarray], length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return what `pack` was given, for so many images. One whose mask is void everywhere may have no class."""
    ends = np.cumsum(np.bincount(arrays['images'], minlength=length))[:-1]
    classes, counts = np.split(arrays['classes'], ends), np.split(arrays['counts'], ends)
    return [(found, pixels.swapaxes(0, 1)) for found, pixels in zip(classes, counts, strict=True)]


def write_csv(path: Path, content: dict) -> None:
    """Write a row per threshold: threshold, mIoU, FP, FN, then the IoU of the classes; empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['threshold', 'mIoU', 'FP', 'FN', *content['iou']])
    for row in content['thresholds']:
        writer.writerow([row['threshold'], row['miou'], row['fp'], row['fn'], *row['iou'].values()])
    write_bytes(path, text.getvalue().encode())


def write_upload(path: Path, label_maps: Iterable[tuple[str, bytes]]) -> None:
    """Write the upload for the VOC test server: (image id, 8-bit palette PNG of class indices) in a .tgz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for image_id, content in label_maps:
            member = tarfile.TarInfo(f'results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    write_bytes(path, buffer.getvalue())


def report(result: dict) -> None:
    """Print a line per threshold and the IoU per class at the best one."""
    for row in result['thresholds']:
        at = '' if row['threshold'] is None else f'threshold {format_threshold(row["threshold"])}: '
        print(f'{at}mIoU {row["miou"]:.2f} %, FP {row["fp"]:.2f} %, FN {row["fn"]:.2f} %')
    print(tabulate(result['iou'].items(), ('class', 'IoU %'), tablefmt='pipe', floatfmt='.2f', missingval='-'))
    at = '' if result['threshold'] is None else f' at threshold {format_threshold(result["threshold"])}'
    print(f'best mIoU {result["miou"]:.2f} %{at}')
    if result['mode'] == 'rw' and len(result['thresholds']) > 1:
        _report_factors(result['thresholds'], result['fp'])
    print(f'(predicting background everywhere: {result["all_background_miou"]:.2f} %)')


def _report_factors(rows: list[dict], best_fp: float) -> None:
    """Print the thresholds that over- and under-segment by the published factors."""
    for name, factor in (('over', 1.6), ('under', 0.6)):
        near = min(rows, key=lambda row: abs(row['fp'] - factor * best_fp))
        at = f'{near["fp"]:.2f} % at threshold {format_threshold(near["threshold"])}'
        print(f"{name}: FP {at} is closest to {factor} times the best one's")


def format_threshold(threshold: float | None) -> str:
    """Return a threshold with two decimals, or as many as it has; '-' for that of label maps."""
    if threshold is None:
        return '-'
    return f'{threshold:.2f}' if threshold == round(threshold, 2) else f'{threshold:g}'


# Reading ------------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict:
    """Return the content of a JSON file of `write`, with "name", "path" and "sweep" {threshold: mIoU}.

    Older files lack "dataset", "masks", "threshold_choice" and "confusion". Raises UserError naming the file.
    """
    try:
        content = json.loads(path.read_text())
        numbers = [content[name] for name in NUMBERS]
        numbers += [value for value in content.get('iou', {}).values() if value is not None]
        well_typed = all(isinstance(content.get(name, kind()), kind) for name, kind in TYPES.items())
        if not well_typed or not np.isfinite(numbers).all():
            raise ValueError
        sweep = {row['threshold']: float(row['miou']) for row in content['thresholds']}
        threshold = None if content['threshold'] is None else float(content['threshold'])
        return {**content, 'threshold': threshold, 'sweep': sweep, 'name': path.stem, 'path': path}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{path}: is not a valid result file; rerun evaluate.py') from None


def read_counts(result: dict) -> tuple[list[str], np.ndarray] | None:
    """Return the ids and T, P and TP per image (N, classes, 3) at the threshold of a result; None without the file.

    Raises UserError naming the file if it is damaged or of another evaluation.
    """
    path = result['path'].with_suffix('.npz')
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, thresholds, counts = file['ids'].tolist(), file['thresholds'].tolist(), file['counts']
            confusion = np.array(result['confusion'])
            index = thresholds.index(result['threshold']) if thresholds else 0
            if counts.ndim == 4:  # of earlier versions: (N, thresholds, classes, 3)
                by_image = counts[:, index]
            else:
                by_image = np.zeros((len(ids), len(confusion), 3), counts.dtype)
                by_image[file['images'], file['classes']] = counts[:, index]
        total = np.stack([confusion.sum(1), confusion.sum(0), np.diag(confusion)], 1)
        if len(ids) != len(by_image) or not np.array_equal(by_image.sum(0, dtype=np.int64), total):
            raise ValueError
    except (*NPZ_ERRORS, IndexError):
        raise UserError(f'{path}: is damaged or not of {result["path"].name}; rerun evaluate.py') from None
    return ids, by_image


def seed_of(result: dict) -> int:
    """Return the seed of a run: an option, else "@seed=N" in its name. Raises UserError if there is neither."""
    seed = result.get('made_with', {}).get('options', {}).get('seed')
    found = re.search(r'(?:^|@)seed=(\d+)(?:@|$)', result['name'])
    if seed is None and not found:
        raise UserError(f'{result["name"]}: its seed is unknown: neither an option nor "@seed=N" in its name')
    return int(found[1] if seed is None else seed)


def check_comparable(results: Sequence[dict], *properties: str) -> None:
    """Raise UserError naming two results of different splits, data sets, classes, images or masks.

    `properties` are some of COMPARED, all by default. Older files do not name them all.
    """
    for what in properties or COMPARED:
        _check_same(results, COMPARED[what], f'different {what} cannot be in one table', 'print a table of each')


def check_mean(results: Sequence[dict]) -> None:
    """Raise UserError naming two results of different stages, whose mean would be meaningless."""
    _check_same(results, _stage_of, 'outputs of different stages cannot be in one row', 'use a narrower pattern')


def _stage_of(result: dict) -> str:
    title, iterations = format_of(str(result.get('experiment_name'))).title, result.get('crf_iteration')
    return f'{title}, --crf_iteration {iterations}' if iterations else title


def _check_same(results: Sequence[dict], value_of: Callable[[dict], object], fault: str, remedy: str) -> None:
    known = [(value_of(result), result['name']) for result in results]
    known = [(value, name) for value, name in known if value is not None]
    for value, name in known[1:]:
        if value != known[0][0]:
            first, second = (f'{name} ({str(value)[:40]})' for value, name in (known[0], (value, name)))
            raise UserError(f'{fault}: {first}, {second}; {remedy}')


# Finding ------------------------------------------------------------------------------------------------------------


def list_paths() -> list[Path]:
    """Return the JSON files of all results, newest first. Raises UserError if there is none."""
    paths = sorted(FOLDER.glob('[!.]*.json'), key=lambda path: (-path.stat().st_mtime_ns, path.name))
    if not paths:
        raise UserError(f'{FOLDER} contains no results; run evaluate.py first')
    return paths


def of_folder(name: str) -> list[dict]:
    """Return the results of an output folder, on all lists."""
    paths = sorted(path for path in FOLDER.glob('[!.]*.json') if path.name.startswith(f'{name}@'))
    return [result for result in map(read, paths) if result.get('experiment_name') == name]


def find(name: str) -> list[dict]:
    """Return the results that a name means, in the order of their names.

    It may be the path of a file, a full name, a pattern with *, a tag (the first parts of names) or a part of a single
    name; all characters but * are literal. Raises UserError with the nearest names if there is none.
    """
    if '/' in name:
        if not Path(name).is_file():
            raise UserError(f'{name}: no such file')
        return [read(Path(name))]
    name = name.removesuffix('.json')
    names = sorted(path.stem for path in FOLDER.glob('[!.]*.json'))
    pattern = '.*'.join(map(re.escape, name.split('*')))
    found = [other for other in names if re.fullmatch(pattern, other)]
    if not found and '*' not in name and name:
        found = [other for other in names if other.startswith(f'{name}@')]
        if not found:
            found = [other for other in names if name in other]
            if len(found) > 1:
                raise UserError(f'{name!r} is a part of {len(found)} names: {_some(found)}')
    if not found:
        near = _nearest(name, names)
        hint = 'python3 -m tools.summarize lists all results' if names else 'run evaluate.py first'
        raise UserError(f'{FOLDER}/{name}.json not found; {f"did you mean {_some(near)}?" if near else hint}')
    return [read(FOLDER / f'{other}.json') for other in found]


def _some(names: list[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _nearest(name: str, names: list[str]) -> list[str]:
    """Return up to three names that are similar to it as a whole, in their first characters or in a part."""

    def similarity(other: str) -> float:
        parts = {other, other[: len(name) or None], *other.split('@')}
        return max(SequenceMatcher(None, name.lower(), part.lower()).ratio() for part in parts)

    ranked = sorted(((similarity(other), other) for other in names), key=lambda pair: -pair[0])
    return [other for ratio, other in ranked[:3] if ratio >= 0.6]
