"""recipes/tuning.py: gains on held-out masks, rules without masks, and tables of a finished chain."""

import json

import numpy as np
import pytest

from core import UserError
from recipes import tuning
from support import run_stage
from tools import tune
from tools.tune import Setting

COMPARED, BETTER, LARGER = (Setting(None, None, threshold) for threshold in (0.25, 0.3, 0.1))
SETTINGS = [COMPARED, BETTER, LARGER]


def counts_of(predicted: list[tuple[int, int]], target: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of 100 pixels with an object: its pixels that each setting predicts, and how many are right."""
    rows = [[(100 - target, 100 - p, 100 - target - p + both), (target, p, both)] for p, both in predicted]
    return np.array([0, 1]), np.array(rows)


def miou(images: list[tuple[np.ndarray, np.ndarray]], setting: int) -> float:
    total = sum(counts[setting] for _, counts in images)
    return 100 * np.mean([both / (t + p - both) for t, p, both in total])


def test_a_gain_is_measured_on_the_images_that_were_not_drawn():
    """Two images on which the compared setting is better than the others, and six on which it is worse."""
    odd, usual = counts_of([(10, 10), (5, 0), (5, 0)]), counts_of([(20, 10), (10, 10), (40, 10)])
    images = [odd, odd, *6 * [usual]]
    counts = tuning.Counts(SETTINGS, {tuning.MASKS: images})
    rng, expected = np.random.default_rng(3), []
    for _ in range(5):
        drawn = rng.choice(8, 3, replace=False)
        rest = [images[i] for i in range(8) if i not in drawn]
        of_drawn = [miou([images[i] for i in drawn], setting) for setting in range(3)]
        expected.append(miou(rest, int(np.argmax(of_drawn))) - miou(rest, 0))
    tuned, sure, always = tuning.choose(counts, COMPARED, 3, 5, 2).T
    assert always == pytest.approx(np.array(expected))
    assert len({*always}) > 1
    assert all(tuned[i] in (0, always[i]) and sure[i] in (0, tuned[i]) for i in range(5))
    assert any(tuned != 0)


def test_more_masks_than_there_are_is_an_error():
    counts = tuning.Counts(SETTINGS, {tuning.MASKS: 3 * [counts_of([(10, 10)] * 3)]})
    with pytest.raises(UserError, match='3 masks have an object: 3 leave none to score') as error:
        tuning.choose(counts, COMPARED, 3, 1, 2)
    assert error.value.option == 'masks'


def test_each_rule_takes_what_suits_it():
    masks, labels = counts_of([(20, 10), (10, 10), (40, 10)]), counts_of([(10, 10), (20, 10), (40, 10)])
    cams = counts_of([(20, 20), (10, 10), (35, 10)], target=36)  # agree best at the first, as large at the last
    by = {tuning.MASKS: [masks], tuning.LABELS: [labels], tuning.FROM_CAMS: [cams]}
    assert [*tuning.follow_rules(tuning.Counts(SETTINGS, by), 2).values()] == [1, 0, 0, 2]


def test_a_finished_chain_is_measured_as_tools_tune_does(copy, capsys):
    words = ['cls', '--domain', 'train_aug', '--num_workers', '0', '--device', 'cpu', '--image_size', '96']
    run_stage(tune, words)
    with open('experiments/tune/cls.json') as file:
        tuned = json.load(file)['scores']['random walk']
    capsys.readouterr()
    run_stage(tuning, [*words, '--masks', '3', '5', '--choices', '4'])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines if line.startswith('|')]
    gains = {tuple(row[:3]) for row in rows if row[2] in ('3', '5')}
    compared = [('CAM', 'threshold 0.25')]
    compared += [('random walk', f'beta {b}, joint, threshold {t}') for b, t in ((10, '0.35'), (20, '0.45'))]
    assert gains == {(*pair, number) for pair in compared for number in '35'}
    by_rule = {row[1]: row for row in rows if row[0] == 'random walk' and len(row) == 6}
    assert len(by_rule) == 6
    assert by_rule['78 photographs'][2] == 'beta 20, joint, threshold 0.45'
    assert float(by_rule['all masks'][3]) == pytest.approx(tuned['miou_same_images'], abs=0.006)
    assert float(by_rule['defaults'][3]) == pytest.approx(tuned['compared_miou'], abs=0.006)
    assert by_rule['defaults'][4:] == ['+0.00', '+0.00 to +0.00']
