"""Leaving in order when the machine is wanted back."""

import signal
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .safe_checkpoint_hook import checkpoint_hook


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On a signal, end the training after the step it is in, with a checkpoint and status 0.

    Where several processes train, the signal may reach any of them, at different steps.

    Args:
        signals: Names of the signals; clusters send SIGTERM, and SIGUSR1 if asked to.
    """

    priority = 'LOWEST'  # behind the hook that saves checkpoints

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGUSR1')) -> None:
        self.signals = [signal.Signals[name] for name in signals]
        self.received = 0
        self.handlers: dict[signal.Signals, Any] = {}
        self.group: Any = None

    def before_train(self, runner: Runner) -> None:
        """Listen from here on."""
        for number in self.signals:
            self.handlers[number] = signal.signal(number, self._note)
        if runner.distributed and dist.get_backend() != 'gloo':
            # Of its own, so that asking each other does not wait for the GPUs.
            self.group = dist.new_group(backend='gloo')

    def _note(self, number: int, frame: Any) -> None:
        self.received = number

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Save and leave.

        Raises:
            SystemExit: A signal has come, to this process or another.
        """
        # Gradients that are being accumulated are in no checkpoint.
        if not runner.optim_wrapper.should_update():
            return
        if received := self._received_by_any(runner):
            for number in self.signals:  # a second one would end a process that is leaving
                signal.signal(number, signal.SIG_IGN)
            name = signal.Signals(received).name
            ends = f'{name}: training ends after iteration {runner.iter + 1}'
            hook = checkpoint_hook(runner)
            if hook is None:
                runner.logger.error(f'{ends}, without a SafeCheckpointHook to save it')
                raise SystemExit(1)
            saved = hook.save_now(runner)
            runner.logger.info(f'{ends}, saved in {hook.out_dir} as {saved}: go on by --resume')
            raise SystemExit(0)

    def _received_by_any(self, runner: Runner) -> int:
        if not runner.distributed:
            return self.received
        received = torch.tensor(self.received)
        dist.all_reduce(received, dist.ReduceOp.MAX, group=self.group)
        return int(received)

    def after_train(self, runner: Runner) -> None:
        """Listen no longer."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
