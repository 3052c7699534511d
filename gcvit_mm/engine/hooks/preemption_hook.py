"""Leaving in order when the machine is wanted back."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..workers import start_resource_tracker, worker_context
from .safe_checkpoint_hook import checkpoint_hook

OUTLIVING = hasattr(signal, 'sigtimedwait')
"""Whether the system has what workers need to outlive signals."""


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On a signal, end the training after the step it is in, with a checkpoint and status 0.

    Where several processes train, the signal may reach any of them, at different steps. Processes
    that load data go on until then; other processes that the training starts do not listen.

    Args:
        signals: Names of the signals; None takes those that clusters send, SIGTERM and, where the
            system has it, SIGUSR1.
    """

    priority = 'LOWEST'  # behind the hook that saves checkpoints

    def __init__(self, signals: Sequence[str] | None = None) -> None:
        if signals is None:
            signals = [name for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name)]
        self.signals = [getattr(signal, name) for name in signals]
        self.received = 0
        self.group: Any = None

    def before_run(self, runner: Runner) -> None:
        """Prepare for workers, before progress bars start what they need."""
        if OUTLIVING:
            start_resource_tracker(self.signals)

    def before_train(self, runner: Runner) -> None:
        """Listen from here on."""
        _listen(self.signals, self._note)
        if OUTLIVING:
            for loop in (runner.train_loop, runner.val_loop):
                loader = getattr(loop, 'dataloader', None)
                if isinstance(loader, DataLoader) and loader.num_workers:
                    context = loader.multiprocessing_context
                    loader.multiprocessing_context = worker_context(self.signals, context)
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
        _restore_handlers()

    def after_failure(self, runner: Runner) -> None:
        """Listen no longer: a training of the loops of ``gcvit_mm`` has ended by an error."""
        _restore_handlers()


# --- Signal handlers that forked processes do not take over ------------------------------------

_handlers: dict[int, Any] = {}  # of the signals that are listened to: what handled them before
_mask = threading.local()


def _listen(signals: Sequence[int], handler: Callable) -> None:
    if hasattr(signal, 'pthread_sigmask'):
        _register_at_fork()
    for number in signals:
        _handlers.setdefault(number, signal.getsignal(number))
        signal.signal(number, handler)


def _restore_handlers() -> None:
    while _handlers:
        number, handler = _handlers.popitem()
        signal.signal(number, handler or signal.SIG_DFL)  # None is one that Python did not set


@cache
def _register_at_fork() -> None:
    # A signal that comes between fork and restoring would be lost: to be blocked meanwhile.
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_become_another)


def _block() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _handlers)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _become_another() -> None:
    _restore_handlers()
    _unblock()
