"""Timing of models, which take turns, and of the peak rates of a device."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from .subjects import Subject


@dataclass
class Measured:
    """Time and memory of the steps of one model."""

    seconds: list[float]  # seconds of each timed step
    first: float  # seconds of the first step, which includes compilation and tuning
    peak_bytes: int  # peak memory of a step, including the model

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)


def measure(
    subjects: Sequence[Subject],
    device: torch.device,
    *,
    repeat: int,
    warmup: int = 2,
    turn: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Measured | None]:
    """Time the steps of several models, which take turns so that conditions are equal for all.

    ``turn`` wraps the iterable of rounds, for a progress bar. The result of a model that runs out
    of GPU memory is None.
    """
    found: dict[int, Measured] = {}
    for i, subject in enumerate(subjects):
        with _leaves_out(subject, i, found):
            held = _held_bytes(subject, device)
            found[i] = Measured([], _seconds(subject.step, device), 0)
            for _ in range(warmup - 1):
                subject.step()
            kept = _held_bytes(subject, device) - held  # by CUDA graphs
            found[i].peak_bytes = _peak_bytes(subject, device) + max(0, kept)
    for _ in turn(range(repeat)):
        for i, own in [*found.items()]:
            with _leaves_out(subjects[i], i, found):
                own.seconds.append(_seconds(subjects[i].step, device))
    return [found.get(i) for i in range(len(subjects))]


@contextmanager
def _leaves_out(subject: Subject, i: int, found: dict[int, Measured]) -> Iterator[None]:
    """Drop a result, and move its model off the GPU, if memory runs out in a ``with`` block."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        found.pop(i, None)
        subject.model.zero_grad(set_to_none=True)
        subject.model.cpu()
        torch.cuda.empty_cache()


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _held_bytes(subject: Subject, device: torch.device) -> int:
    """Memory of a GPU that cannot be given back between steps."""
    if device.type != 'cuda':
        return 0
    subject.model.zero_grad(set_to_none=True)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _peak_bytes(subject: Subject, device: torch.device) -> int:
    # Older memory, such as gradients, must not be freed while the step is measured.
    subject.model.zero_grad(set_to_none=True)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        subject.step()
        torch.cuda.synchronize(device)
        return subject.nbytes() + torch.cuda.max_memory_allocated(device) - before
    # PyTorch has no memory statistics for CPUs, but reports each allocation to the profiler.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        subject.step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():  # in chronological order
        if event.name() == '[memory]':
            held += event.nbytes()
            peak = max(peak, held)
    return subject.nbytes() + peak


@dataclass
class Peaks:
    """Measured peak rates of a device: FLOPs and bytes per second."""

    flops: float
    bytes: float


SLOW = 0.05
"""Minimum seconds of a matrix product that is large enough to measure."""


def measure_peaks(device: torch.device, dtype: torch.dtype, repeat: int = 10) -> Peaks:
    """Measure the peak rates by the fastest of several large matrix products and copies."""
    length = 2**28 if device.type == 'cuda' else 2**26
    # CPUs without bfloat16 or float16 need minutes for a product that others do in milliseconds.
    for side in (8192,) if device.type == 'cuda' else (256, 512, 1024, 2048):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        if _seconds(lambda: a @ b, device) > SLOW:  # noqa: B023 - called at once
            break
    source = torch.ones(length, device=device)
    target = torch.empty_like(source)
    times = [
        min(_seconds(step, device) for _ in range(repeat))
        for step in (lambda: a @ b, lambda: target.copy_(source))
    ]
    return Peaks(2 * side**3 / times[0], 2 * source.nbytes / times[1])
