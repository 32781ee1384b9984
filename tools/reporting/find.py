"""The results of evaluate.py (util/store/results.py): reading them, finding them by name, and comparing them."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from core import UserError, has_control_characters
from core.data.files import Some, fits, load_json
from core.image_scores import SIZES, two_folds, unpack
from util.store.arrays import read_arrays
from util.store.current import identity
from util.store.fingerprints import ARGS, read_args
from util.store.formats import EXPERIMENTS, FORMATS, PREDICTIONS, Format, result_name

FOLDER = EXPERIMENTS / 'results'
NUMBERS = ('miou', 'fp', 'fn', 'dice', 'images')
TWO_FOLD = ('miou', 'dice')
ROW = {'threshold': (float, None), 'miou': float}
TYPES = {'domain': str, 'dataset': str, 'format': str, 'masks': str, 'made_with': Some(ARGS)}
TYPES |= {'experiment_name': str, 'crf_iteration': int}
TYPES |= {'iou': {str: (float, None)}, 'confusion': [[int]], 'threshold': (float, None), 'thresholds': [ROW]}
TYPES |= {'two_fold': ({**dict.fromkeys(TWO_FOLD, float), 'thresholds': [float]}, None)}
TYPES |= {'false_masks': {'images': int, 'share': (float, None), 'classes': {str: (float, None)}}}
TYPES |= {'by_size': {size: {'objects': int, 'iou': (float, None)} for size in SIZES}}
TYPES |= dict.fromkeys(NUMBERS, float)
# Without a background, predicting the most frequent class takes the place of predicting none.
TYPES |= {'all_background_miou': (float, None)}
ONE_CLASS = Some({'one_class': {'class': str, 'miou': float}})

ARRAYS = ('ids', 'thresholds', 'images', 'classes', 'counts')

# The properties that results in one table must share.
COMPARED: dict[str, Callable[[dict], object]] = {
    'splits': lambda result: result['domain'],
    'data sets': lambda result: result['dataset'],
    'classes': lambda result: ', '.join(result['iou']),
    'numbers of images': lambda result: result['images'],
    'masks': lambda result: result['masks'],
}

# Reading ------------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict:
    """Return the content of a JSON file of a result, with "name", "path" and "sweep" {threshold: mIoU}.

    Raises UserError naming the file.
    """
    try:
        content = load_json(path)
        if not fits(content, TYPES) or not fits(content, ONE_CLASS):
            raise ValueError
        if any(map(has_control_characters, (*content['iou'], content['dataset']))):
            raise ValueError
        numbers = [*(content[name] for name in NUMBERS), baseline(content)]
        numbers += [value for value in content['iou'].values() if value is not None]
        numbers += [content['two_fold'][name] for name in TWO_FOLD] if content['two_fold'] else []
        if not np.isfinite(np.array(numbers, float)).all():
            raise ValueError
        sweep = {row['threshold']: float(row['miou']) for row in content['thresholds']}
        threshold = None if content['threshold'] is None else float(content['threshold'])
    except PermissionError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    except (OSError, ValueError, OverflowError, KeyError):
        raise UserError(f'{path}: is not a valid result file; rerun evaluate.py') from None
    named = result_name(content['experiment_name'], content['domain'], content['crf_iteration'])
    if path.parent == FOLDER and path.stem != named:
        raise UserError(f'{path}: is the result of {named}, copied or renamed; rerun evaluate.py')
    return {**content, 'threshold': threshold, 'sweep': sweep, 'name': path.stem, 'path': path}


def baseline(result: dict) -> float:
    """Return the mIoU of predicting one label everywhere: the background or, without one, the most frequent class."""
    constant = result['all_background_miou']
    return result['one_class']['miou'] if constant is None else constant


def headline(result: dict) -> dict | None:
    """Return what holds the mIoU and Dice that a result is known by: of several thresholds, the two-fold scores.

    None for maps whose images could not be divided (docs/method.md, "Evaluation").
    """
    return result['two_fold'] if len(result['sweep']) > 1 else result


def read_counts(result: dict, two_fold: bool = False) -> tuple[list[str], np.ndarray] | None:
    """Return the ids and T, P and TP per image (N, classes, 3) at the threshold of a result; None without the file.

    two_fold: of maps, at the thresholds of the two-fold scores if there are any. Raises UserError naming the file if it
    is damaged or of another evaluation.
    """
    path = result['path'].with_suffix('.npz')
    if not path.is_file():
        return None
    try:
        ids, thresholds, *packed = read_arrays(path, *ARRAYS)
        ids, thresholds = ids.tolist(), thresholds.tolist()
        confusion = np.array(result['confusion'])
        index = thresholds.index(result['threshold']) if thresholds else 0
        by_image = unpack(np.full(len(ids), index), *packed, len(confusion))
        total = np.stack([confusion.sum(1), confusion.sum(0), np.diag(confusion)], 1)
        if not np.array_equal(by_image.sum(0, dtype=np.int64), total):
            raise ValueError
        if two_fold and result['two_fold']:
            chosen = np.array([thresholds.index(threshold) for threshold in result['two_fold']['thresholds']])
            by_image = unpack(chosen[two_folds(ids)], *packed, len(confusion))
    except Exception:  # arrays of other shapes and kinds can raise anything
        raise UserError(f'{path}: is damaged or not of {result["path"].name}; rerun evaluate.py') from None
    return ids, by_image


def is_stale(result: dict) -> bool:
    """Return whether the folder of a result has changed since it was scored, as far as that is recorded.

    False for a folder that has been removed or never had a record.
    """
    folder, scored = PREDICTIONS / result['experiment_name'], (result.get('made_with') or {}).get('fingerprint')
    if scored is None or not folder.is_dir():
        return False
    if scored != read_args(folder).get('fingerprint'):
        return True
    counts = read_counts(result) if 'identity' in result else None
    return counts is not None and identity(folder, counts[0]) != result['identity']


def format_of(folder: Path) -> Format | None:
    """Return the kind of output that a folder's args.json records, None if there is none."""
    return FORMATS.get(read_args(folder).get('format'))


# Comparing -----------------------------------------------------------------------------------------------------------


def seed_of(result: dict) -> int:
    """Return the seed of a run, from its options or from "@seed=N" in its name. Raises UserError if neither has it."""
    options = result.get('made_with', {}).get('options', {})
    seed = options.get('seed') if fits(options, {'seed': int}) else None
    found = re.search(r'(?:^|@)seed=(\d+)(?:@|$)', result['name'])
    if seed is None and not found:
        raise UserError(f'{result["name"]}: its seed is unknown: neither an option nor "@seed=N" in its name')
    return int(found[1] if seed is None else seed)


def check_comparable(results: Sequence[dict], *properties: str) -> None:
    """Raise UserError naming two results of different splits, data sets, classes, images or masks.

    `properties` are some of COMPARED, all by default.
    """
    for what in properties or COMPARED:
        _check_same(results, COMPARED[what], f'different {what} cannot be in one table', 'print a table of each')


def check_stage(results: Sequence[dict]) -> None:
    """Raise UserError naming two results of different stages."""
    _check_same(results, _stage_of, 'outputs of different stages cannot be in one row', 'use a narrower pattern')


def _stage_of(result: dict) -> str:
    title, iterations = result['format'], result['crf_iteration']
    return f'{title}, --crf_iteration {iterations}' if iterations else title


def _check_same(results: Sequence[dict], value_of: Callable[[dict], object], fault: str, remedy: str) -> None:
    known = [(value_of(result), result['name']) for result in results]
    for value, name in known[1:]:
        if value != known[0][0]:
            first, second = (f'{name} ({str(value)[:40]})' for value, name in (known[0], (value, name)))
            raise UserError(f'{fault}: {first}, {second}; {remedy}')


# Finding ------------------------------------------------------------------------------------------------------------


def list_paths() -> list[Path]:
    """Return the JSON files of all results, newest first. Raises UserError if there is none."""
    paths = sorted(_all_paths(), key=lambda path: (-path.stat().st_mtime_ns, path.name))
    if not paths:
        raise UserError(f'{FOLDER} contains no results; run evaluate.py first')
    return paths


def list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder by name, without hidden files; [] if there is none.

    Raises UserError if it may not be read, where Path.glob finds nothing.
    """
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith('.')]
    except PermissionError as error:
        raise UserError(f'{folder}: cannot be read ({error.strerror})') from None
    except (FileNotFoundError, NotADirectoryError):
        return []


def _all_paths() -> list[Path]:
    return [path for path in list_folder(FOLDER) if path.suffix == '.json']


def of_folder(name: str) -> list[dict]:
    """Return the results of an output folder, on all lists."""
    paths = (path for path in _all_paths() if path.name.startswith(f'{name}@'))
    return [result for result in map(read, paths) if result['experiment_name'] == name]


def find(name: str, skip_damaged: bool = False) -> list[dict]:
    """Return the results that match a name, in the order of their names; of several, damaged ones may be skipped.

    It may be the path of a file, a full name, a pattern with *, a tag (the first parts of names) or a part of a single
    name; all characters but * are literal. Raises UserError with the nearest names if there is none.
    """
    if '/' in name:
        if Path(name).is_dir():
            raise UserError(f'{name}: has no args.json that says what the folder contains')
        if not Path(name).is_file():
            raise UserError(f'{name}: no such file')
        return [read(Path(name))]
    name = name.removesuffix('.json')
    names = [path.stem for path in _all_paths()]
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
    results = []
    for other in found:
        try:
            results.append(read(FOLDER / f'{other}.json'))
        except UserError as error:
            if not skip_damaged or other == name:
                raise
            print(f'warning: {error}', file=sys.stderr)
    return results


def _some(names: list[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _nearest(name: str, names: list[str]) -> list[str]:
    """Return up to three names that are similar to it as a whole, in their first characters or in a part."""

    def similarity(other: str) -> float:
        parts = {other, other[: len(name) or None], *other.split('@')}
        return max(SequenceMatcher(None, name.lower(), part.lower()).ratio() for part in parts)

    ranked = sorted(((similarity(other), other) for other in names), key=lambda pair: -pair[0])
    return [other for ratio, other in ranked[:3] if ratio >= 0.6]
