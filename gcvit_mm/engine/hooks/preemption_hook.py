"""A hook that saves a checkpoint and ends the training on Ctrl-C, or if the job is preempted."""

import os
import signal
import threading
import time
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
"""Whether the system has the functions with which workers outlive signals."""


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On a signal, ends the training after the current step, with a checkpoint and exit status 0.

    After Ctrl-C the status is 130; a second Ctrl-C ends the training at once, without a checkpoint.

    In a distributed training, the signal may reach any of the processes, and at different steps.
    Workers load data until the end; other child processes do not handle the signal.

    Args:
        signals: Names of the signals; None takes SIGINT (Ctrl-C) and those that clusters send:
            SIGTERM and, if the system has it, SIGUSR1.
    """

    priority = 'LOWEST'  # after the hook that saves checkpoints

    def __init__(self, signals: Sequence[str] | None = None) -> None:
        if signals is None:
            signals = [name for name in ('SIGINT', 'SIGTERM', 'SIGUSR1') if hasattr(signal, name)]
        self.signals = [getattr(signal, name) for name in signals]
        self.received, self.time = 0, 0.0
        self.group: Any = None

    def before_run(self, runner: Runner) -> None:
        """Start the resource tracker of the workers, before progress bars start it."""
        if OUTLIVING:
            start_resource_tracker(self.signals)

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers, and make workers ignore the signals."""
        _listen(self.signals, self._note)
        if OUTLIVING:
            for loop in (runner.train_loop, runner.val_loop):
                loader = getattr(loop, 'dataloader', None)
                if isinstance(loader, DataLoader) and loader.num_workers:
                    context = loader.multiprocessing_context
                    loader.multiprocessing_context = worker_context(self.signals, context)
        if runner.distributed and dist.get_backend() != 'gloo':
            # Communication in a separate gloo group does not wait for the GPUs.
            self.group = dist.new_group(backend='gloo')

    def _note(self, number: int, frame: Any) -> None:
        # torchrun repeats a signal that the terminal has sent to all processes.
        if number == self.received == signal.SIGINT and time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        self.received, self.time = number, time.monotonic()
        if number == signal.SIGINT:  # a handler may interrupt a print
            os.write(2, b'\ntraining ends after this step; Ctrl-C again ends it without saving\n')

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Save a checkpoint and exit if any process has received a signal.

        Raises:
            SystemExit: This or another process has received a signal.
        """
        # Checkpoints do not hold accumulated gradients.
        if not runner.optim_wrapper.should_update():
            return
        if received := self._received_by_any(runner):
            for number in self.signals:  # a second signal must not interrupt saving
                signal.signal(number, signal.SIG_IGN)
            name = signal.Signals(received).name
            ends = f'{name}: training ends after iteration {runner.iter + 1}'
            hook = checkpoint_hook(runner)
            if hook is None:
                runner.logger.error(f'{ends} without a checkpoint: use SafeCheckpointHook')
                raise SystemExit(1)
            saved = hook.save_now(runner)
            runner.logger.info(f'{ends}, saved in {hook.out_dir} as {saved}: resume with --resume')
            raise SystemExit(130 if received == signal.SIGINT else 0)

    def _received_by_any(self, runner: Runner) -> int:
        if not runner.distributed:
            return self.received
        received = torch.tensor(self.received)
        dist.all_reduce(received, dist.ReduceOp.MAX, group=self.group)
        return int(received)

    def after_train(self, runner: Runner) -> None:
        """Restore the previous signal handlers."""
        _restore_handlers()

    def after_failure(self, runner: Runner) -> None:
        """Restore the previous signal handlers; the loops of ``gcvit_mm`` call it on an error."""
        _restore_handlers()


# --- Signal handlers that forked processes do not inherit --------------------------------------

_handlers: dict[int, Any] = {}  # the previous handler of each signal
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
        signal.signal(number, handler or signal.SIG_DFL)  # None: Python did not set the handler


@cache
def _register_at_fork() -> None:
    # A signal between the fork and the restoring of handlers would be lost unless it is blocked.
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset_child)


def _block() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _handlers)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _reset_child() -> None:
    _restore_handlers()
    _unblock()
