"""Processes that load data."""

import copy
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

from mmengine.registry import FUNCTIONS
from torch.utils.data import get_worker_info

from .randomness import seed_generators


@FUNCTIONS.register_module()
def init_worker(worker_id: int) -> None:
    """Start a data loader's worker.

    Args:
        worker_id: Its number; PyTorch gives it.
    """
    info = get_worker_info()
    assert info is not None
    # All launchers name the process so. Of its group, only workers that were forked would know.
    seed_generators(info.seed, int(os.environ.get('RANK', 0)))


class Worker(multiprocessing.Process):
    """A process that ends when the one that started it does or sends SIGTERM.

    Clusters send their signals to all processes, and without data a training could not come to a
    point where it can be saved. Linux only.

    Args:
        method: How it is started: 'fork', 'forkserver' or 'spawn'.
        signals: What it does not hear from others.
        arguments: Of multiprocessing's processes.
    """

    def __init__(self, method: str, signals: Collection[signal.Signals], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.method = method
        self.signals = signals

    @staticmethod
    def _Popen(process: Any) -> Any:
        return multiprocessing.get_context(process.method).Process._Popen(process)

    def start(self) -> None:
        """Start; what is blocked meanwhile is blocked in the new process from its first moment."""
        with blocked(self.signals):
            super().start()

    def run(self) -> None:
        """Do what it was started for."""
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while parent.is_alive():
        received = signal.sigtimedwait([signal.SIGTERM], 1)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


def worker_context(signals: Collection[signal.Signals], context: BaseContext | None) -> BaseContext:
    """What a data loader takes as ``multiprocessing_context`` to start ``Worker``s.

    Args:
        signals: What they do not hear from others.
        context: How they are started; None takes the default.
    """
    context = copy.copy(context or multiprocessing.get_context())
    method = context.get_start_method()
    if method == 'forkserver':  # which is started with the first worker
        context.set_forkserver_preload(['__main__', __name__])
    context.Process = partial(Worker, method, signals)  # type: ignore[attr-defined]
    return context


def start_resource_tracker(signals: Collection[signal.Signals]) -> None:
    """Start what counts multiprocessing's resources, which no signal ends then.

    A worker in whose start it had to be started again would hear signals.
    """
    if multiprocessing.get_start_method() != 'fork':
        with blocked(signals):
            resource_tracker.ensure_running()


@contextmanager
def blocked(signals: Collection[int]) -> Iterator[None]:
    """Let signals wait, to this thread and to what it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unblock_others(worker: type[Worker]) -> None:
    """Let a process of the fork server's, which blocks signals, hear them if it is no worker."""
    forked_by_server = multiprocessing.get_start_method() == 'forkserver'
    if forked_by_server and not isinstance(multiprocessing.current_process(), worker):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


if hasattr(signal, 'pthread_sigmask'):
    multiprocessing.util.register_after_fork(Worker, _unblock_others)
