"""The files of a training run, claimed by one process, and its checkpoint, rejected if it belongs to another run."""

import shutil
from collections.abc import Collection
from contextlib import ExitStack

from core import UserError
from core.data.dataset import Dataset
from core.data.files import Some, fits
from core.data.torch_datasets import ImageDataset
from core.models.weights import read_torch
from util.store.current import trainer
from util.store.files import check_name, remove_leftovers
from util.store.fingerprints import HASHES, Record, check_contents, check_fingerprint, read_run, without
from util.store.formats import EXPERIMENTS, model_path, run_path
from util.store.hashes import file_hashes, label_hashes, mask_hashes
from util.store.locks import locked
from util.training.models import save_torch

RESUMED = {'fingerprint': Some({'max_epoch': int}), 'contents': HASHES, 'iteration': int, 'unscored': bool}


def scored_hashes(
    trained: Collection[str], scored: ImageDataset | None, tagged: ImageDataset | None
) -> dict[str, dict[str, str]]:
    """Return the hashes of what epochs are scored on, masks and image-level labels, by name and image id.

    Labels of images that are `trained` on are inputs already.
    """
    hashes = {}
    if scored:
        paths = {image_id: scored.dataset.mask_path(image_id) for image_id in scored.ids}
        hashes['scored masks'] = mask_hashes(paths, scored.dataset.mask_values)
        hashes['scored images'] = file_hashes({i: scored.dataset.image_path(i) for i in scored.ids})
    if tagged:
        labels = {i: label for i, label in zip(tagged.ids, tagged.labels, strict=True) if i not in trained}
        hashes['validation labels'] = label_hashes(labels)
        hashes['validation images'] = file_hashes({i: tagged.dataset.image_path(i) for i in labels})
    return hashes


class RunFiles:
    """Models, checkpoint, log and curves of a tag. Only the first process reads and writes them.

    `fingerprint` and `contents` (hashes by input and image id) are what the run depends on.
    """

    def __init__(self, tag: str, network: str, record: Record, dataset: Dataset, fingerprint: dict, contents: dict):
        self.tag, self.network, self.record, self.dataset = tag, network, record, dataset
        self.fingerprint, self.contents = fingerprint, contents
        self.checkpoint = EXPERIMENTS / 'checkpoints' / f'{tag}.pth'
        self.models = [model_path(tag, suffix) for suffix in ('', '.last', '.best')]

    def check_names(self) -> None:
        """Raise UserError naming --tag if a file cannot have its name."""
        for path in self.models:
            check_name(path, '--tag')
        if self.tag.endswith(('.last', '.best')):
            raise UserError(f'--tag {self.tag}: .last and .best mark the other epoch of a run: choose another tag')

    def claim(self, stack: ExitStack, overwrite: bool, iterations: int) -> dict | None:
        """Lock the files, and with `overwrite` remove them; return the checkpoint to resume from, or None.

        Raises UserError naming the differences if the checkpoint has other options or inputs, if models have no
        checkpoint, or if it is a run of another stage.
        """
        lock = self.checkpoint.with_name(f'.{self.tag}.lock')
        stack.enter_context(locked(lock, f'the run {self.tag}'))
        found = read_run(self.tag)
        is_own = found.get('options', {}).get('tag') == self.tag  # a record that was copied is written again
        if is_own and trainer(found) != trainer({'network': self.network}):
            raise UserError(f'--tag {self.tag}: is a run of {trainer(found)}: choose another tag')
        remove_leftovers(self.checkpoint, *self.models, run_path(self.tag))
        if overwrite:
            for path in [self.checkpoint, *self.models, EXPERIMENTS / 'logs' / f'{self.tag}.txt']:
                path.unlink(missing_ok=True)
            shutil.rmtree(EXPERIMENTS / 'tensorboards' / self.tag, ignore_errors=True)
        return self._read(iterations)

    def _read(self, iterations: int) -> dict | None:
        """Return the checkpoint if it has progress. A run without progress and without a model may be replaced."""
        found = next((path for path in self.models if path.is_file()), None)
        if not self.checkpoint.is_file():
            if found:
                fault = f'{found} exists without {self.checkpoint}'
                raise UserError(f'--tag {self.tag}: {fault}: pass --overwrite to train again')
            return None
        try:
            state = read_torch(self.checkpoint)
            old, contents, iteration = state['fingerprint'], state['contents'], state['iteration']
            if not fits(state, RESUMED):
                raise TypeError
        except Exception as error:
            raise self.damaged(error) from None
        if iteration == 0 and not found:
            if old != self.fingerprint or contents != self.contents:
                self.checkpoint.unlink()
            return None
        what = f'the run of {self.checkpoint}'
        if iteration == iterations and not state['unscored']:
            contents = without(contents, 'validation ')  # their scores choose nothing
            if self.record.options.get('select') != 'best':
                contents = without(contents, 'scored ')  # other masks do not change the last epoch
        check_contents(what, contents, self.contents, lambda i: self.dataset.image_path(i).name)
        remedy = 'or another name'
        if found and old.get('max_epoch', 0) < self.fingerprint['max_epoch']:
            remedy += f'; to train on from its backbone, pass --weights {self.models[0]} --tag OTHER'
        check_fingerprint(what, old, self.fingerprint, self.record.defaults, remedy)
        return state if iteration else None  # saved at the start: everything is as initialised

    def save(self, state: dict) -> None:
        """Write the checkpoint."""
        save_torch({'fingerprint': self.fingerprint, 'contents': self.contents, **state}, self.checkpoint)

    def damaged(self, error: Exception) -> UserError:
        return UserError(f'{self.checkpoint}: damaged ({type(error).__name__}): pass --overwrite to train again')
