"""Worker processes of data loaders."""

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
    """Seed the random generators of a data loader's worker."""
    info = get_worker_info()
    assert info is not None
    # All launchers set RANK. Workers that were not forked have no process group to ask.
    seed_generators(info.seed, int(os.environ.get('RANK', 0)))


class Worker(multiprocessing.Process):
    """A process that ignores signals, unless its parent ends or sends SIGTERM; Linux only.

    Clusters send signals to all processes, but a run needs its workers to reach the end of the
    step, where it can be saved. The start method is 'fork', 'forkserver' or 'spawn'.
    """

    def __init__(self, method: str, signals: Collection[signal.Signals], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.method = method
        self.signals = signals

    @staticmethod
    def _Popen(process: Any) -> Any:
        return multiprocessing.get_context(process.method).Process._Popen(process)

    def start(self) -> None:
        """Start the process with ``signals`` blocked, which it inherits from its parent."""
        with blocked(self.signals):
            super().start()

    def run(self) -> None:
        """Run the target, and watch the parent process in a thread."""
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
    """A ``multiprocessing_context`` with which a data loader starts ``Worker``s."""
    context = copy.copy(context or multiprocessing.get_context())
    method = context.get_start_method()
    if method == 'forkserver':  # the first worker starts the server
        context.set_forkserver_preload(['__main__', __name__])
    context.Process = partial(Worker, method, signals)  # type: ignore[attr-defined]
    return context


def start_resource_tracker(signals: Collection[signal.Signals]) -> None:
    """Start multiprocessing's resource tracker with signals blocked, so that it survives them.

    Restarting the tracker would unblock the signals while a worker starts.
    """
    if multiprocessing.get_start_method() != 'fork':
        with blocked(signals):
            resource_tracker.ensure_running()


@contextmanager
def blocked(signals: Collection[int]) -> Iterator[None]:
    """Block signals in this thread and in the processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unblock_others(worker: type[Worker]) -> None:
    """Unblock signals in processes of the fork server, which blocks them, except in workers."""
    forked_by_server = multiprocessing.get_start_method() == 'forkserver'
    if forked_by_server and not isinstance(multiprocessing.current_process(), worker):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


if hasattr(signal, 'pthread_sigmask'):
    multiprocessing.util.register_after_fork(Worker, _unblock_others)
