"""A hook that summarises a run at the top of its log."""

import os
import platform
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ...compat.mmcv_ops import implementation
from ...models import GCViT
from ..lr_scaling import effective_batch, learning_rate_factor
from ..schedule import apply_schedule, check_schedule
from ..setup import unsaved_states


@HOOKS.register_module()
class RunSummaryHook(Hook):
    """Logs device, implementations, batch size, learning rate and parameters before the run."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.resumed: list[str] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Prepare a checkpoint to be resumed with the schedule of the config.

        Raises:
            UserError: The checkpoint is of another optimizer.
        """
        if runner._resume and isinstance(runner._train_loop, BaseLoop):
            self.resumed = list(apply_schedule(runner, checkpoint))

    def before_train(self, runner: Runner) -> None:
        """Log the summary, and warn if the schedule does not fit the length of the training.

        Raises:
            UserError: The learning rate would rise again after the end of its schedule.
        """
        _log(runner, [*_environment(runner), *_training(runner), *self.resumed])
        for line in (*check_schedule(runner), *unsaved_states(runner.cfg)):
            runner.logger.warning(line)

    def before_test(self, runner: Runner) -> None:
        _log(runner, _environment(runner))


def _environment(runner: Runner) -> Iterator[str]:
    yield f'device: {_device()}, {get_world_size()} process(es)'
    yield implementation()
    models = [m for m in runner.model.modules() if isinstance(m, GCViT)]
    impls = {'sdpa' if m.attn_impl == 'auto' and not m.graphs else m.attn_impl for m in models}
    yield from (f'attention: {impl}' for impl in sorted(impls))


def _training(runner: Runner) -> Iterator[str]:
    optim = runner.optim_wrapper
    batch, world, accumulate = effective_batch(runner.cfg)
    yield (
        f'effective batch: {batch * world * accumulate} images '
        f'({batch} per process x {world} process(es) x {accumulate} accumulated)'
    )
    rates = sorted({group.get('initial_lr', group['lr']) for group in optim.param_groups})
    few = rates if len(rates) < 4 else [rates[0], rates[-1]]
    rate = (', ' if few is rates else ' to ').join(f'{rate:g}' for rate in few)
    # Scaling the rate of the config has no effect on that of a checkpoint.
    yield f'learning rate: {rate}{"" if runner._resume else _scaling(runner.cfg)}'
    amp = isinstance(optim, AmpOptimWrapper)
    yield f'precision: {str(optim.cast_dtype or torch.float16)[6:] if amp else "float32"}'
    counts = [(p.numel(), p.requires_grad) for p in runner.model.parameters()]
    trainable, total = sum(n for n, grad in counts if grad), sum(n for n, _ in counts)
    yield f'parameters: {trainable:,} trainable of {total:,}'
    yield f'checkpoints and logs: {runner.work_dir}'


def _scaling(cfg: Config) -> str:
    """How the learning rate relates to the batch size of the recipe."""
    scaled, recipe = learning_rate_factor(cfg), cfg.get('auto_scale_lr', {})
    if scaled is None or scaled[0] == 1:
        return ''
    factor = f'{scaled[0]:.3g} ({scaled[1]})'
    base = f'the recipe is for {recipe.base_batch_size} images'
    if recipe.get('scaled'):
        return f", {factor} times the recipe's: {base}"
    return f', not scaled: {base}; --auto-scale-lr would multiply it by {factor}'


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return f'GPU of {platform.machine()} by Metal (MPS)'
    return f'CPU ({platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()})'


def _log(runner: Runner, lines: Iterator[str] | list[str]) -> None:
    runner.logger.info('This run:' + ''.join(f'\n    {line}' for line in lines))
