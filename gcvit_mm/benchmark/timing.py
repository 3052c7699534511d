"""Timing of models, which take turns, and of the peak rates of a device."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
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
) -> list[Measured]:
    """Time the steps of several models, which take turns so that conditions are equal for all.

    ``turn`` wraps the iterable of rounds, for a progress bar.
    """
    first = [_seconds(subject.step, device) for subject in subjects]
    peaks = []
    for subject in subjects:
        for _ in range(warmup - 1):
            subject.step()
        peaks.append(_peak_bytes(subject, device))
    seconds: list[list[float]] = [[] for _ in subjects]
    for _ in turn(range(repeat)):
        for subject, own in zip(subjects, seconds, strict=True):
            own.append(_seconds(subject.step, device))
    return [Measured(*each) for each in zip(seconds, first, peaks, strict=True)]


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


def _peak_bytes(subject: Subject, device: torch.device) -> int:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        subject.step()
        torch.cuda.synchronize(device)
        return subject.nbytes() + torch.cuda.max_memory_allocated(device) - before
    # PyTorch has no memory statistics for CPUs, but reports each allocation to the profiler. Older
    # memory, such as gradients, must not be freed while the profiler counts.
    subject.model.zero_grad(set_to_none=True)
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
