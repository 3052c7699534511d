"""Optimizers that take no step on numbers that are not finite, and what follows from it."""

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

from ..errors import UserError
from ..work_dir import find_resumable
from .distributed import broadcast_from_main
from .hooks.safe_checkpoint_hook import checkpoint_hook


class _Guard:
    """An optimizer wrapper that leaves out steps whose gradients are not finite.

    Attributes:
        skipped: Whether the latest step was left out.
    """

    skipped = False

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        # With a loss that is not finite all gradients are to be, so that processes which share
        # them agree: its factor is 1 otherwise, exactly.
        super().backward(loss * (1 + 0 * loss.detach()), **kwargs)  # type: ignore[misc]

    def step(self, **kwargs: Any) -> None:
        scaler = getattr(self, 'loss_scaler', None)
        scaled = scaler is not None and scaler.is_enabled()
        if scaled and not self.clip_grad_kwargs:  # type: ignore[attr-defined]
            scaler.unscale_(self.optimizer)  # type: ignore[union-attr, attr-defined]
        self.skipped = not math.isfinite(_norm_of_gradients(self.optimizer))  # type: ignore[attr-defined]
        # A scaler leaves the step out by itself, and lowers its scale.
        if scaled or not self.skipped:
            super().step(**kwargs)  # type: ignore[misc]


def _norm_of_gradients(optimizer: torch.optim.Optimizer) -> float:
    with_grad = [
        p for group in optimizer.param_groups for p in group['params'] if p.grad is not None
    ]
    if hasattr(nn.utils, 'get_total_norm'):
        norm = nn.utils.get_total_norm([p.grad for p in with_grad])
        # Gradients that are spread over processes have a norm of parts.
        return float(norm.full_tensor() if hasattr(norm, 'full_tensor') else norm)
    return float(nn.utils.clip_grad_norm_(with_grad, math.inf))  # before torch 2.6


@OPTIM_WRAPPERS.register_module()
class GuardedOptimWrapper(_Guard, OptimWrapper):
    """mmengine's ``OptimWrapper``, which leaves out steps with gradients that are not finite."""


@OPTIM_WRAPPERS.register_module()
class GuardedAmpOptimWrapper(_Guard, AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper``, which leaves out steps with gradients that are not finite."""


class RollBack(Exception):
    """Training is to go on from an earlier checkpoint.

    Args:
        checkpoint: The file.
        lr_factor: What all learning rates are to be multiplied by.
    """

    def __init__(self, checkpoint: str, lr_factor: float) -> None:
        super().__init__(f'back to {checkpoint}')
        self.checkpoint = checkpoint
        self.lr_factor = lr_factor


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Name the images of steps that were left out, and act when too many follow each other.

    It needs ``GuardedOptimWrapper`` or ``GuardedAmpOptimWrapper``, and to go back, the loops of
    this package.

    Args:
        limit: Steps in a row that may be left out.
        at_limit: 'stop' the training, or 'roll_back' to the newest checkpoint.
        lr_factor: What going back multiplies the learning rates by, each time.
        max_roll_backs: How often to go back before stopping.
    """

    def __init__(
        self,
        limit: int = 20,
        at_limit: Literal['stop', 'roll_back'] = 'stop',
        lr_factor: float = 0.5,
        max_roll_backs: int = 3,
    ) -> None:
        self.limit = limit
        self.at_limit = at_limit
        self.lr_factor = lr_factor
        self.max_roll_backs = max_roll_backs
        self.in_a_row = self.in_all = self.roll_backs = 0
        self.checkpoint, self.factor = '', 1.0  # of the latest going back
        self.statistics: list[Tensor] = []
        self.before: list[Tensor] = []
        self.passes: list[tuple[Any, list[str]]] = []  # of the step: losses, images

    def before_train(self, runner: Runner) -> None:
        """Find what a forward pass changes: the statistics of batch normalisation."""
        norms = [m for m in runner.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep it."""
        if runner.optim_wrapper.should_update():  # else the step has begun already
            self.before = [buffer.clone() for buffer in self.statistics]

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Count.

        Raises:
            UserError: Too many steps in a row were left out.
            RollBack: Likewise, and there is a checkpoint to go back to.
        """
        self.passes.append(((outputs or {}).get('loss', math.nan), list(_images(data_batch))))
        if not runner.optim_wrapper.should_update():
            return  # gradients are being accumulated
        passes, self.passes = self.passes, []
        if not getattr(runner.optim_wrapper, 'skipped', False):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.in_all += 1
        for buffer, before in zip(self.statistics, self.before, strict=True):
            buffer.copy_(before)
        own = [(math.isfinite(float(loss)), names) for loss, names in passes]
        reports = [report for reports in all_gather_object(own) for report in reports]
        bad = [names for finite, names in reports if not finite]
        names = [name for part in bad or [names for _, names in reports] for name in part]
        what = 'loss' if bad else 'gradient'
        runner.logger.warning(
            f'the {what} of iteration {runner.iter + 1} is not finite: its step is left out '
            f'({self.in_a_row} in a row, {self.in_all} in all). Its images: {", ".join(names)}'
        )
        if self.in_a_row >= self.limit:
            self._act(runner)

    def _act(self, runner: Runner) -> None:
        problem = f'{self.in_a_row} steps in a row had a loss or gradients that are not finite'
        advice = (
            'lower optim_wrapper.optimizer.lr, set optim_wrapper.clip_grad.max_norm, or look at '
            'the images that the log names'
        )
        hook = checkpoint_hook(runner)
        if self.at_limit == 'stop' or hook is None or self.roll_backs >= self.max_roll_backs:
            raise UserError(f'{problem}: {advice}')
        # Others in the folder are of an earlier training, unless this one goes on from it.
        since = '' if runner._resume else runner.timestamp
        checkpoint, _ = broadcast_from_main(lambda: find_resumable(hook.out_dir, since))
        if checkpoint is None:
            raise UserError(f'{problem}, and there is no checkpoint to go back to: {advice}')
        self.in_a_row = 0
        self.roll_backs += 1
        # The checkpoint itself keeps its rate: a second time would be as the first.
        again = self.factor if checkpoint == self.checkpoint else 1.0
        self.checkpoint, self.factor = checkpoint, again * self.lr_factor
        runner.logger.warning(
            f'{problem}: training goes back to {checkpoint}, with {self.factor:g} of its learning '
            f'rate ({self.roll_backs} of at most {self.max_roll_backs} times)'
        )
        raise RollBack(checkpoint, self.factor)

    def after_train(self, runner: Runner) -> None:
        """Sum up."""
        if self.in_all:
            runner.logger.warning(f'{self.in_all} steps were left out, as they were not finite')


def _images(data_batch: Any) -> Iterator[str]:
    samples = data_batch.get('data_samples', []) if isinstance(data_batch, dict) else []
    for sample in samples:
        yield str(getattr(sample, 'img_path', '?'))


def lower_learning_rate(runner: Runner, factor: float) -> None:
    """Multiply all learning rates, those to come included."""
    for group in runner.optim_wrapper.param_groups:
        for key in {'lr', 'initial_lr'} & group.keys():
            group[key] *= factor
    for scheduler in runner.param_schedulers or []:
        if scheduler.param_name == 'lr':
            scheduler.base_values = [value * factor for value in scheduler.base_values]
            scheduler._last_value = [value * factor for value in scheduler._last_value]
