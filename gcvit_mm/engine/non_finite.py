"""Optimizers that skip steps with NaN or Inf, and a hook that limits how many in a row."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import ArgumentError, UserError
from ..work_dir import find_resumable
from .distributed import broadcast_from_main
from .hooks.safe_checkpoint_hook import checkpoint_hook


class _Guard:
    """An optimizer wrapper that skips steps whose gradients have NaN or Inf.

    Attributes:
        skipped: Whether the latest step was skipped.
    """

    skipped = False

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        # A loss of NaN or Inf makes all gradients NaN, so all processes skip the step. The factor
        # of a finite loss is exactly 1.
        super().backward(loss * (1 + 0 * loss.detach()), **kwargs)  # type: ignore[misc]

    def step(self, **kwargs: Any) -> None:
        scaler = getattr(self, 'loss_scaler', None)
        scaled = scaler is not None and scaler.is_enabled()
        if scaled and not self.clip_grad_kwargs:  # type: ignore[attr-defined]
            scaler.unscale_(self.optimizer)  # type: ignore[union-attr, attr-defined]
        self.skipped = not math.isfinite(_norm_of_gradients(self.optimizer))  # type: ignore[attr-defined]
        # A gradient scaler skips the step itself, and lowers its scale.
        if scaled or not self.skipped:
            super().step(**kwargs)  # type: ignore[misc]


def _norm_of_gradients(optimizer: torch.optim.Optimizer) -> float:
    with_grad = [
        p for group in optimizer.param_groups for p in group['params'] if p.grad is not None
    ]
    if hasattr(nn.utils, 'get_total_norm'):
        norm = nn.utils.get_total_norm([p.grad for p in with_grad])
        # The norm of sharded gradients is itself a sharded tensor.
        return float(norm.full_tensor() if hasattr(norm, 'full_tensor') else norm)
    return float(nn.utils.clip_grad_norm_(with_grad, math.inf))  # before torch 2.6


@OPTIM_WRAPPERS.register_module()
class GuardedOptimWrapper(_Guard, OptimWrapper):
    """mmengine's ``OptimWrapper``, but steps whose gradients have NaN or Inf are skipped."""


@OPTIM_WRAPPERS.register_module()
class GuardedAmpOptimWrapper(_Guard, AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper``, but steps whose gradients have NaN or Inf are skipped."""

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state; one of a run in bfloat16 has an empty state of the loss scaler."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != 'loss_scaler' or v})


class RollBack(Exception):
    """Asks the training loop to roll back to an earlier checkpoint."""

    def __init__(self, checkpoint: str, lr_factor: float) -> None:
        super().__init__(f'roll back to {checkpoint}')
        self.checkpoint = checkpoint
        self.lr_factor = lr_factor


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Logs the images of skipped steps, and stops or rolls back after too many in a row.

    The hook needs ``GuardedOptimWrapper`` or ``GuardedAmpOptimWrapper``; rolling back also needs
    the loops of this package.

    Args:
        limit: Number of skipped steps in a row that triggers ``at_limit``.
        at_limit: 'stop' the training, or 'roll_back' to the newest checkpoint.
        lr_factor: Factor for the learning rates at each rollback.
        max_roll_backs: Maximum number of rollbacks; the training stops after them.
    """

    def __init__(
        self,
        limit: int = 20,
        at_limit: Literal['stop', 'roll_back'] = 'stop',
        lr_factor: float = 0.5,
        max_roll_backs: int = 3,
    ) -> None:
        if at_limit not in ('stop', 'roll_back') or not isinstance(limit, int) or limit < 1:
            raise ArgumentError(
                f'default_hooks.non_finite: limit={limit}, at_limit={at_limit}: pass an integer '
                "from 1, and 'stop' or 'roll_back'"
            )
        self.limit = limit
        self.at_limit = at_limit
        self.lr_factor = lr_factor
        self.max_roll_backs = max_roll_backs
        self.in_a_row = self.total = self.roll_backs = 0
        self.checkpoint, self.factor = '', 1.0  # of the latest rollback
        self.statistics: list[Tensor] = []
        self.before: list[Tensor] = []
        # Whether the loss of each batch of the step is finite, and its images.
        self.batches: list[tuple[bool, list[str]]] = []

    def before_train(self, runner: Runner) -> None:
        """Collect the buffers that a forward pass changes: those of batch normalisation."""
        norms = [m for m in runner.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Save the statistics of batch normalisation."""
        if runner.optim_wrapper.should_update():  # otherwise gradient accumulation has begun
            self.before = [buffer.clone() for buffer in self.statistics]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Log a skipped step and restore the statistics of batch normalisation.

        Raises:
            UserError: Too many steps in a row were skipped.
            RollBack: Too many steps in a row were skipped, and there is a checkpoint to resume.
        """
        loss = torch.as_tensor((outputs or {}).get('loss', math.nan))
        finite = bool(loss.isfinite().all())
        self.batches.append((finite, list(_images(data_batch))))
        skipped = getattr(runner.optim_wrapper, 'skipped', False)
        updates = runner.optim_wrapper.should_update()
        if not finite or (updates and skipped):
            self._restore()  # also amid an accumulation, for averages of the model
        if not updates:
            return  # the step is not complete yet
        (own, self.batches), self.before = (self.batches, []), []
        if not skipped:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.total += 1
        reports = [report for reports in all_gather_object(own) for report in reports]
        bad = [names for finite, names in reports if not finite]
        names = [name for part in bad or [names for _, names in reports] for name in part]
        source = 'loss' if bad else 'gradient'
        runner.logger.warning(
            f'the {source} of iteration {runner.iter + 1} is NaN or Inf: the step is skipped '
            f'({self.in_a_row} in a row, {self.total} in total). Images: {", ".join(names)}'
        )
        if self.in_a_row >= self.limit:
            self._act(runner)

    def after_failure(self, runner: Runner) -> None:
        """Restore the statistics if a step was interrupted."""
        self._restore()

    def _restore(self) -> None:
        for buffer, before in zip(self.statistics, self.before, strict=False):
            buffer.copy_(before)

    def _act(self, runner: Runner) -> None:
        problem = f'{self.in_a_row} steps in a row had a loss or gradients of NaN or Inf'
        advice = (
            'lower optim_wrapper.optimizer.lr, set optim_wrapper.clip_grad.max_norm, or check the '
            'images listed in the log'
        )
        hook = checkpoint_hook(runner)
        if self.at_limit == 'stop' or hook is None or self.roll_backs >= self.max_roll_backs:
            raise UserError(f'{problem}: {advice}')
        # Older checkpoints in the folder belong to another run, unless this one resumed it.
        since = '' if runner._resume else runner.timestamp
        checkpoint, _ = broadcast_from_main(lambda: find_resumable(hook.out_dir, since))
        if checkpoint is None:
            raise UserError(f'{problem}, and there is no checkpoint to roll back to: {advice}')
        self.in_a_row = 0
        self.roll_backs += 1
        # The checkpoint keeps its learning rate, so factors of repeated rollbacks are multiplied.
        previous = self.factor if checkpoint == self.checkpoint else 1.0
        self.checkpoint, self.factor = checkpoint, previous * self.lr_factor
        runner.logger.warning(
            f'{problem}: training rolls back to {checkpoint}, with {self.factor:g} times its '
            f'learning rate (rollback {self.roll_backs} of at most {self.max_roll_backs})'
        )
        raise RollBack(checkpoint, self.factor)

    def after_train(self, runner: Runner) -> None:
        """Log the number of skipped steps."""
        if self.total:
            runner.logger.warning(f'{self.total} steps were skipped because of NaN or Inf')


def _images(data_batch: Any) -> Iterator[str]:
    samples = data_batch.get('data_samples', []) if isinstance(data_batch, dict) else []
    for sample in samples:
        yield str(getattr(sample, 'img_path', '?'))


def lower_learning_rate(runner: Runner, factor: float) -> None:
    """Multiply the current and all scheduled learning rates by ``factor``."""
    for group in runner.optim_wrapper.param_groups:
        for key in {'lr', 'initial_lr'} & group.keys():
            group[key] *= factor
    for scheduler in runner.param_schedulers or []:
        if scheduler.param_name == 'lr':
            scheduler.base_values = [value * factor for value in scheduler.base_values]
            scheduler._last_value = [value * factor for value in scheduler._last_value]
