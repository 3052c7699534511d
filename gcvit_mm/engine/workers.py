"""Processes that load data."""

import atexit
import mmap
import multiprocessing
import os
import signal
from typing import Any

from mmengine.dist import get_rank
from mmengine.registry import FUNCTIONS
from torch.utils.data import get_worker_info

from ..randomness import seed_generators

_leaving: mmap.mmap | None = None  # a byte that the workers see too: this process is ending


def outlive_signals() -> None:
    """Let workers that start from here on end when this process does, and not by a signal before.

    Clusters send their signals to all processes, and without data a training could not come to a
    point where it can be saved.
    """
    global _leaving
    if _leaving is None:
        _leaving = mmap.mmap(-1, 1)
        atexit.register(_end_workers, _leaving)


def _end_workers(leaving: mmap.mmap) -> None:
    leaving[0] = 1
    for worker in multiprocessing.active_children():
        worker.terminate()


@FUNCTIONS.register_module()
def init_worker(worker_id: int) -> None:
    """Start a data loader's worker.

    Args:
        worker_id: Its number; PyTorch gives it.
    """
    if _leaving is not None:
        signal.signal(signal.SIGTERM, _end_if_leaving)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    info = get_worker_info()
    assert info is not None
    seed_generators(info.seed, get_rank())


def _end_if_leaving(number: int, frame: Any) -> None:
    if _leaving is not None and _leaving[0]:
        os._exit(0)
