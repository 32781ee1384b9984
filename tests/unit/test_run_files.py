"""The files of a training run: claimed, saved, read again, or refused in one line."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from core import UserError
from support.programs import held, refusal
from util.store.files import write_json
from util.store.fingerprints import Record
from util.store.formats import run_path
from util.training.files import RunFiles

DATASET = SimpleNamespace(image_path=lambda image_id: Path(f'{image_id}.jpg'))
SETTINGS = {'lr': 0.1, 'labels': '1234', 'max_epoch': 2}
CONTENTS = {'images': {'a': '11', 'b': '22'}}
ITERATIONS = 6


def files(tag: str = 'tag', contents: dict = CONTENTS, select: str = 'last', **settings) -> RunFiles:
    record = Record({'tag': tag, 'select': select}, {'tag': 'result', 'wd': 'result'}, {'wd': 0.5})
    return RunFiles(tag, 'Classifier', record, DATASET, {**SETTINGS, **settings}, contents)


def claim(run_files: RunFiles, overwrite: bool = False) -> dict | None:
    with ExitStack() as stack:
        return run_files.claim(stack, overwrite, ITERATIONS)


def write_all(tag: str = 'tag') -> list[Path]:
    """Write everything that a run writes but its checkpoint; return the paths."""
    folder = Path('experiments')
    paths = [folder / 'models' / f'{tag}{suffix}.pth' for suffix in ('', '.last', '.best')]
    paths += [folder / 'logs' / f'{tag}.txt', folder / 'tensorboards' / tag / 'events']
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('content')
    return paths


def test_new_run_has_nothing_to_resume_from(in_tmp):
    assert claim(files()) is None


def test_checkpoint_with_progress_is_resumed(in_tmp):
    files().save({'iteration': 3, 'unscored': False, 'state': {'weight': torch.arange(2)}})
    state = claim(files())
    assert (state['iteration'], state['fingerprint'], state['contents']) == (3, SETTINGS, CONTENTS)
    assert state['state']['weight'].tolist() == [0, 1]


@pytest.mark.parametrize(
    'settings, line', [({'lr': 0.2}, 'lr: 0.1, requested 0.2'), ({'wd': 1}, 'wd: 0.5, requested 1')]
)
def test_checkpoint_of_other_settings_is_refused(in_tmp, settings, line):
    """A setting that it lacks has the default of its flag."""
    files().save({'iteration': 3, 'unscored': False})
    with pytest.raises(UserError, match=rf'^the run of .*/tag.pth exists with different settings \({line}\): '):
        claim(files(**settings))
    assert claim(files(wd=0.5))['iteration'] == 3


@pytest.mark.parametrize(
    'contents, line',
    [
        ({'a': '11', 'b': '33'}, r'1 image changed \(b.jpg\)'),
        ({'a': '11'}, r'1 image removed \(b\)'),
        ({'a': '11', 'b': '22', 'c': '33'}, r'1 image added \(c\)'),
    ],
)
def test_checkpoint_of_other_inputs_is_refused(in_tmp, contents, line):
    files().save({'iteration': 3, 'unscored': False})
    with pytest.raises(UserError, match=f'^the run of .*/tag.pth: {line}: pass --overwrite to regenerate it'):
        claim(files(contents={'images': contents}))


@pytest.mark.parametrize('masks', [{'a': '33'}, {'b': '11'}, {}])
@pytest.mark.parametrize(
    'iteration, unscored, select, is_refused',
    [(6, False, 'last', False), (6, False, 'best', True), (6, True, 'last', True), (3, False, 'last', True)],
)
def test_other_masks_to_score_on_do_not_change_a_finished_last_epoch(
    in_tmp, masks, iteration, unscored, select, is_refused
):
    files(contents={**CONTENTS, 'scored masks': {'a': '11'}}).save({'iteration': iteration, 'unscored': unscored})
    again = files(contents={**CONTENTS, 'scored masks': masks}, select=select)
    if not is_refused:
        assert claim(again)['iteration'] == iteration
        return
    with pytest.raises(UserError, match='^the run of .*/tag.pth: scored masks of 1 image'):
        claim(again)


@pytest.mark.parametrize('labels', [{'a': '2'}, {'b': '1'}, {}])
def test_other_labels_to_score_on_stop_only_an_unfinished_run(in_tmp, labels):
    old, new = ({**CONTENTS, 'validation labels': found} for found in ({'a': '1'}, labels))
    for iteration, unscored in ((3, False), (6, True)):
        files(contents=old).save({'iteration': iteration, 'unscored': unscored})
        with pytest.raises(UserError, match='^the run of .*/tag.pth: validation labels of 1 image'):
            claim(files(contents=new))
    files(contents=old, select='best').save({'iteration': 6, 'unscored': False})
    assert claim(files(contents=new, select='best'))['iteration'] == 6


def test_run_without_progress_protects_nothing_but_its_models(in_tmp):
    files().save({'iteration': 0, 'unscored': False})
    assert claim(files()) is None
    assert files().checkpoint.is_file()
    assert claim(files(lr=0.2)) is None
    assert not files().checkpoint.exists()
    files().save({'iteration': 0, 'unscored': False})
    write_all()
    with pytest.raises(UserError, match='lr: 0.1, requested 0.2'):
        claim(files(lr=0.2))
    assert claim(files()) is None


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_run_of_another_stage_is_refused_and_kept(in_tmp, overwrite):
    run = files()
    run.save({'iteration': 3, 'unscored': False})
    write_json(run_path('tag'), {'network': 'AffinityNet', 'options': {'tag': 'tag'}})
    with pytest.raises(UserError, match='^--tag tag: is a run of train_affinitynet.py: choose another tag$'):
        claim(run, overwrite)
    assert run.checkpoint.is_file()


@pytest.mark.parametrize('suffix', ['', '.last', '.best'])
def test_models_without_a_checkpoint_are_refused(in_tmp, suffix):
    path = Path(f'experiments/models/tag{suffix}.pth')
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(
        UserError, match=f'^--tag tag: {path} exists without .*/tag.pth: pass --overwrite to train again$'
    ):
        claim(files())


def test_overwriting_removes_what_the_run_has_written_alone(in_tmp):
    gone, stay = write_all(), write_all('other')
    files().save({'iteration': 3, 'unscored': False})
    assert claim(files(lr=0.2), overwrite=True) is None
    assert not any(path.exists() for path in [*gone, files().checkpoint])
    assert all(path.exists() for path in stay)


@pytest.mark.parametrize('missing', ['fingerprint', 'contents', 'iteration'])
def test_incomplete_checkpoint_is_named(in_tmp, missing):
    state = {'fingerprint': SETTINGS, 'contents': CONTENTS, 'iteration': 3, 'unscored': False}
    del state[missing]
    files().checkpoint.parent.mkdir(parents=True)
    torch.save(state, files().checkpoint)
    with pytest.raises(UserError, match=r'/tag.pth: damaged \(KeyError\): pass --overwrite to train again$'):
        claim(files())
    assert claim(files(), overwrite=True) is None


def test_names_that_no_file_can_have_are_refused(in_tmp):
    files('t' * 246).check_names()
    with pytest.raises(UserError, match=r'^--tag: t{40}\.\.\. would have 256 bytes, the limit is 255: shorten it$'):
        files('t' * 247).check_names()
    for tag in ('tag.last', 'tag.best'):
        with pytest.raises(UserError, match=f'^--tag {tag}: .last and .best mark the other epoch of a run'):
            files(tag).check_names()


def test_files_are_those_of_one_process_at_a_time(in_tmp):
    with held(in_tmp / 'experiments/checkpoints/.tag.lock') as process:
        for overwrite in (False, True):
            with pytest.raises(UserError, match=f'^{refusal("the run tag", process)}$'):
                claim(files(), overwrite)
        assert claim(files('other')) is None
    assert claim(files()) is None


@pytest.mark.parametrize('rank', [0, 1])
def test_only_the_first_process_saves(in_tmp, monkeypatch, rank):
    for name, value in {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': 2}.items():
        monkeypatch.setenv(name, str(value))
    files().save({'iteration': 3, 'unscored': False})
    assert files().checkpoint.is_file() == (rank == 0)
