"""Training loops that resume an interrupted training exactly.

Random numbers depend only on the seed and the position in the training: for a sample, on the epoch
and its index; for a step, on its number and the rank. Checkpoints therefore need no generator
states, not even those of workers, and results do not depend on the number of workers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, ValLoop
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from ..errors import ArgumentError
from .non_finite import RollBack, lower_learning_rate
from .randomness import seed_generators
from .seeded_data import SeededBatchSampler, SeededDataset

PASSES, SAMPLES = 'data_passes', 'data_samples'
"""Keys of the position in the data, in the message hub and so in checkpoints: epoch and samples."""
VALIDATED = 'validated_iter'
"""Key of the iteration of the last complete validation, likewise."""


class _Exact:
    """Tracks the position in the data, seeds the steps, and rolls back; shared by both loops.

    Attributes:
        unchanged: Whether the state is that after the last finished step, so that it can be saved.
        steps: Finished steps since the start of this process.
    """

    unchanged = False
    steps = 0
    runner: Runner
    dataloader: DataLoader
    _iter: int
    max_iters: Any
    val_begin: int
    val_interval: int
    _decide_current_val_interval: Any

    def __init__(self, runner: Runner, dataloader: Any, **settings: Any) -> None:
        for name in ('max_epochs', 'max_iters', 'val_interval'):
            value = settings.get(name, 1)
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(f'train_cfg.{name}={value}: pass an integer from 1')
        # mmengine's loop refuses misspelt settings.
        super().__init__(runner, seeded(dataloader, _seed(runner)), **settings)  # type: ignore[call-arg]

    @property
    def _batches(self) -> SeededBatchSampler:
        return self.dataloader.batch_sampler  # type: ignore[return-value]

    def _start_pass(self, passes: int, samples: int = 0) -> Iterator[tuple[int, Sequence]]:
        """Set the position in the data; return the batches from there, with their numbers."""
        with self._changing():  # an interruption would leave half-started workers
            self._batches.go_to(_seed(self.runner), passes, samples)
            self._note(passes, samples)
            return enumerate(iter(self.dataloader), self._batches.first)

    def _note(self, passes: int, samples: int) -> None:
        self.runner.message_hub.update_info(PASSES, passes)
        self.runner.message_hub.update_info(SAMPLES, samples)

    def _noted(self, name: str, default: int) -> int:
        return self.runner.message_hub.runtime_info.get(name, default)

    @contextmanager
    def _training(self) -> Iterator[None]:
        self._rehearse_validation()
        self.runner.call_hook('before_train')
        handle = register_optimizer_step_pre_hook(self._begin_change)
        try:
            yield
        except (Exception, KeyboardInterrupt):
            self.runner.call_hook('after_failure')  # mmengine's hooks have no such event
            raise
        finally:
            handle.remove()
        self.runner.call_hook('after_train')

    @torch.no_grad()
    def _rehearse_validation(self) -> None:
        """Predict one image, so that settings of predictions fail before the first step."""
        if isinstance(self.runner.val_loop, ValLoop):
            loader = self.runner.val_loop.dataloader
            self.runner.model.eval()
            self.runner.model.val_step(loader.collate_fn([loader.dataset[0]]))

    def _begin_change(self, *_: Any) -> None:
        self.unchanged = False

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.unchanged = False
        yield  # an error leaves it so
        self.unchanged = True

    def _step(self, passes: int, batch: int, index: int, data_batch: Sequence) -> None:
        """Train a step as mmengine's loops do, with the position in the data."""
        runner, place = self.runner, (self._noted(PASSES, 0), self._noted(SAMPLES, 0))
        event = dict(batch_idx=index, data_batch=data_batch)
        try:
            # A run that resumes from a checkpoint of this step begins with the next batch.
            self._note(passes, (batch + 1) * self._batches.samples_per_batch)
            seed_generators(_seed(runner), self._iter, get_rank())
            runner.call_hook('before_train_iter', **event)
            outputs = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
        except BaseException:
            if self.unchanged:
                self._note(*place)
            raise
        with self._changing():
            runner.call_hook('after_train_iter', **event, outputs=outputs)
            self._iter += 1
            self.steps += 1

    @contextmanager
    def _rolling_back(self) -> Iterator[None]:
        try:
            yield
        except RollBack as back:
            runner = self.runner
            with self._changing():
                runner.resume(back.checkpoint)
                count = runner.optim_wrapper.initialize_count_status
                count(runner.model, self._iter, self.max_iters)
                lower_learning_rate(runner, back.lr_factor)

    def _validate_if_due(self, position: int, last: int) -> None:
        """Evaluate the model after an epoch or an iteration, if the interval says so."""
        self._decide_current_val_interval()
        due = position % self.val_interval == 0 or position == last
        if self.runner.val_loop is not None and position >= self.val_begin and due:
            with self._changing():
                self.runner.val_loop.run()
            self.runner.message_hub.update_info(VALIDATED, self._iter)

    def _is_validated(self) -> bool:
        """Whether the model was evaluated after its last step; checkpoints are saved before."""
        return self._iter in (0, self._noted(VALIDATED, 0))


@LOOPS.register_module()
class ExactEpochBasedTrainLoop(_Exact, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` with exact resumption, also within an epoch."""

    def run(self) -> nn.Module:
        """Train the model and return it."""
        with self._training():
            if not self._is_validated() and not self._in_epoch():
                self._validate_if_due(self._epoch, self._max_epochs)
            while self._epoch < self._max_epochs and not self.stop_training:
                with self._rolling_back():
                    self.run_epoch()
                    self._validate_if_due(self._epoch, self._max_epochs)
        return self.runner.model

    def _in_epoch(self) -> bool:
        """Whether a resumed training stopped within the current epoch."""
        return self._noted(PASSES, self._epoch) == self._epoch and self._noted(SAMPLES, 0) > 0

    def run_epoch(self) -> None:
        """Train for an epoch, or for the rest of it after a resumption."""
        samples = self._noted(SAMPLES, 0) if self._in_epoch() else 0
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for number, data_batch in self._start_pass(self._epoch, samples):
            self._step(self._epoch, number, number, data_batch)
        with self._changing():
            self._note(self._epoch + 1, 0)
            self.runner.call_hook('after_train_epoch')
            self._epoch += 1


@LOOPS.register_module()
class ExactIterBasedTrainLoop(_Exact, IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop`` with exact resumption, without reading skipped samples."""

    def run(self) -> nn.Module:
        """Train the model and return it."""
        with self._training():
            # Hooks and logs see the whole training as one epoch.
            self.runner.call_hook('before_train_epoch')
            if not self._is_validated():
                self._validate_if_due(self._iter, self._max_iters)
            while self._iter < self._max_iters and not self.stop_training:
                with self._rolling_back():
                    self._run_steps()
            with self._changing():
                self.runner.call_hook('after_train_epoch')
        return self.runner.model

    def _run_steps(self) -> None:
        for passes, number, data_batch in self._endless():
            self.runner.model.train()
            self._step(passes, number, self._iter, data_batch)
            self._validate_if_due(self._iter, self._max_iters)
            if self._iter == self._max_iters or self.stop_training:
                return

    def _endless(self) -> Iterator[tuple[int, int, Sequence]]:
        """Yield the epoch, the number of the batch in it, and the batch, without end."""
        # Checkpoints of mmengine's loop do not have the position in the data.
        before = self._iter * self._batches.samples_per_batch
        passes, samples = self._noted(PASSES, 0), self._noted(SAMPLES, before)
        while True:
            for number, data_batch in self._start_pass(passes, samples):
                yield passes, number, data_batch
            passes, samples = passes + 1, 0


def _seed(runner: Runner) -> int:
    """The seed of the training, which all processes share."""
    assert runner.seed is not None  # the runner draws one if the config has none
    own = runner._randomness_cfg.get('diff_rank_seed', False)
    return runner.seed - get_rank() if own else runner.seed


def seeded(dataloader: Any, seed: int) -> dict:
    """The config of a data loader that seeds augmentation by the position of each sample."""
    if not isinstance(dataloader, dict):
        raise ArgumentError(
            'the loops of gcvit_mm need the config of a data loader, not a DataLoader'
        )
    batch_sampler = dict(
        type=SeededBatchSampler,
        seed=seed,
        sampler_cfg=dataloader['sampler'],
        batch_sampler_cfg=dataloader.get('batch_sampler'),
        drop_last=dataloader.get('drop_last', False),
    )
    dataset = dict(type=SeededDataset, dataset=dataloader['dataset'])
    rest = {key: value for key, value in dataloader.items() if key != 'drop_last'}
    return {**rest, 'dataset': dataset, 'batch_sampler': batch_sampler}
