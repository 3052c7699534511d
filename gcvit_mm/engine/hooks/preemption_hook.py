"""A hook that saves a checkpoint and ends the training on Ctrl-C, or if the job is preempted."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ...errors import ArgumentError
from ..fsdp import ShardedRunner
from ..workers import Worker, start_resource_tracker, worker_context
from .safe_checkpoint_hook import checkpoint_hook

OUTLIVING = hasattr(signal, 'sigtimedwait')
"""Whether the system has the functions with which workers outlive signals."""


GRACE = 5
"""Seconds after a signal for the step to end. Docker kills after 10, torchrun after 30."""
ALARM = getattr(signal, 'SIGALRM', None)  # Windows has none


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On a signal, ends the training after the current step, with a checkpoint.

    If the step, the loading of data or an evaluation takes ``GRACE`` seconds longer, or a second
    signal comes, it is interrupted, and the last finished step is saved. After Ctrl-C the status is
    130. This needs the loops of this package, and an unsharded model.

    In a distributed training, the signal may reach any of the processes, and at different steps.
    Only a step that is interrupted needs the signal in all of them. Workers load data until the
    end; other child processes do not handle the signal.

    Args:
        signals: Names of the signals; None takes SIGINT (Ctrl-C), SIGHUP, which closed terminals
            send, and those that clusters send: SIGTERM and SIGUSR1; all if the system has them.
        exit_status: Exit status after such a signal, other than SIGINT. Clusters that start a job
            again by its status need one that differs from the 0 of a finished training.
    """

    priority = 'LOWEST'  # after the hook that saves checkpoints

    def __init__(self, signals: Sequence[str] | None = None, exit_status: int = 0) -> None:
        if exit_status not in range(256):
            name = 'default_hooks.preemption.exit_status'
            raise ArgumentError(f'{name}={exit_status}: pass an integer from 0 to 255')
        if signals is None:
            names = ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1')
            signals = [name for name in names if hasattr(signal, name)]
            if 'SIGHUP' in signals and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
                signals.remove('SIGHUP')  # nohup
        self.signals = [getattr(signal, name) for name in signals]
        self.exit_status = exit_status
        self.received, self.time = 0, 0.0
        self.loop: Any = None
        self.evaluates = False
        self.group: Any = None

    def before_run(self, runner: Runner) -> None:
        """Start the resource tracker of the workers, before progress bars start it."""
        if OUTLIVING:
            start_resource_tracker(self.signals)

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers, and make workers ignore the signals."""
        if not isinstance(runner, ShardedRunner):  # whose processes can only save together
            self.loop = runner.train_loop
        _listen([*self.signals, *([ALARM] if ALARM else [])], self._note)
        if OUTLIVING:
            for loop in (runner.train_loop, runner.val_loop):
                loader = getattr(loop, 'dataloader', None)
                if isinstance(loader, DataLoader) and loader.num_workers:
                    context = loader.multiprocessing_context
                    loader.multiprocessing_context = worker_context(self.signals, context)
        if runner.distributed and dist.get_backend() != 'gloo':
            # Communication in a separate gloo group does not wait for the GPUs.
            self.group = _gloo_group(runner)

    def _note(self, number: int, frame: Any) -> None:
        # torchrun repeats a signal that the terminal has sent to all processes.
        again = self.received and number != ALARM and time.monotonic() - self.time > 1
        if number == ALARM or again:
            # Other loops cannot tell; they end without a checkpoint if somebody insists.
            if getattr(self.loop, 'unchanged', again and number == signal.SIGINT):
                _ignore()
                raise KeyboardInterrupt
        elif not self.received:
            self.received, self.time = number, time.monotonic()
            if ALARM:
                signal.setitimer(signal.ITIMER_REAL, GRACE, 1)
            if number == signal.SIGINT:  # a handler may interrupt a print
                os.write(2, b'\ntraining ends after this step; Ctrl-C again interrupts the step\n')

    def before_val_epoch(self, runner: Runner) -> None:
        """Let a signal interrupt an evaluation: the model is that of the last step."""
        self._evaluate(self.loop is not None)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Let a signal wait at the end of an evaluation, when hooks change the model."""
        if batch_idx == len(runner.val_dataloader) - 1:
            self._evaluate(False)

    def _evaluate(self, evaluates: bool) -> None:
        self.evaluates = evaluates
        if hasattr(self.loop, 'unchanged'):
            self.loop.unchanged = evaluates

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
        if runner.optim_wrapper.should_update() and (received := self._received_by_any(runner)):
            self._end(runner, runner.iter + 1, received)

    def _end(self, runner: Runner, step: int, received: int) -> None:
        _ignore()
        for hook in runner.hooks if self.evaluates else ():
            if isinstance(hook, EMAHook):  # the evaluated model is the average
                hook.after_val_epoch(runner)
        ends = f'{signal.Signals(received).name}: training ends after iteration {step}'
        hook = checkpoint_hook(runner)
        saved = hook.save_now(runner, step) if hook else ''
        if hook is None or not saved:
            cure = 'free disk space' if hook else 'use SafeCheckpointHook'
            runner.logger.error(f'{ends} without a checkpoint: {cure}')
            raise SystemExit(1)
        runner.logger.info(f'{ends}, saved in {hook.out_dir} as {saved}: resume with --resume')
        for child in multiprocessing.active_children():
            if isinstance(child, Worker):  # one that hangs would not end by itself
                child.terminate()
        for number in _handlers:  # Python's exit removes its handlers, but not this one
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(130 if received == signal.SIGINT else self.exit_status)

    def _received_by_any(self, runner: Runner) -> int:
        if not runner.distributed:
            return self.received
        device = 'cpu' if self.group or dist.get_backend() == 'gloo' else get_device()
        received = torch.tensor(self.received, device=device)
        try:
            dist.all_reduce(received, dist.ReduceOp.MAX, group=self.group)
        except RuntimeError:  # the others have ended, on the same signal
            if not self.received:
                raise
        return int(received)

    def after_train(self, runner: Runner) -> None:
        """Restore the previous signal handlers."""
        _restore_handlers()

    def after_failure(self, runner: Runner) -> None:
        """Restore the previous signal handlers; the loops of ``gcvit_mm`` call it on an error.

        Raises:
            SystemExit: A signal was received, and the last finished step is saved.
        """
        # Communication fails when the other processes have ended on the signal.
        errors = (KeyboardInterrupt, *([RuntimeError] if runner.distributed else []))
        expected = isinstance(sys.exception(), errors)
        if self.received and expected and getattr(self.loop, 'unchanged', False):
            self._end(runner, runner.iter, self.received)
        _restore_handlers()


def _gloo_group(runner: Runner) -> Any:
    """A gloo group of all processes, or None if one of them cannot use gloo."""
    try:
        group = dist.new_group(backend='gloo', timeout=timedelta(minutes=1))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition('\n')[0]
        runner.logger.warning(
            f'gloo finds no network ({reason}): processes exchange signals by the GPUs. Name an '
            'interface in GLOO_SOCKET_IFNAME to use gloo'
        )
        group = None
    has_gloo = torch.tensor(int(group is not None), device=get_device())
    dist.all_reduce(has_gloo, dist.ReduceOp.MIN)
    return group if has_gloo else None


# --- Signal handlers that forked processes do not inherit --------------------------------------

_handlers: dict[int, Any] = {}  # the previous handler of each signal
_mask = threading.local()


def _listen(signals: Sequence[int], handler: Callable) -> None:
    if hasattr(signal, 'pthread_sigmask'):
        _register_at_fork()
    for number in signals:
        _handlers.setdefault(number, signal.getsignal(number))
        signal.signal(number, handler)


def _ignore() -> None:
    """Ignore further signals, which must not interrupt saving."""
    if ALARM:
        signal.setitimer(signal.ITIMER_REAL, 0)  # at its exit Python would be killed by an alarm
    for number in _handlers:  # with SIG_IGN, Python prints an error for signals that wait
        signal.signal(number, lambda *_: None)


def _restore_handlers() -> None:
    if ALARM:
        signal.setitimer(signal.ITIMER_REAL, 0)
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
