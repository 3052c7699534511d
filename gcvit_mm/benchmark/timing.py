"""Clocks: steps of several models taking turns, and what the device can do at best."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from .subjects import Subject


@dataclass
class Measured:
    """What the steps of one model took.

    Attributes:
        seconds: Of each timed step.
        first: Seconds of the very first step, which compiles and tunes.
        peak_bytes: The most memory that a step held at once, the model's own included.
    """

    seconds: list[float]
    first: float
    peak_bytes: int

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


def measure(
    subjects: Sequence[Subject],
    device: torch.device,
    *,
    repeat: int,
    warmup: int = 2,
    turn: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Measured]:
    """Time the steps of several models, which take turns so that all see the same machine.

    Args:
        subjects: The models.
        device: Where they are.
        repeat: Timed steps of each.
        warmup: Steps of each before.
        turn: Wraps the rounds, for a progress bar.
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
    # PyTorch keeps no statistics of a CPU's memory, but reports each allocation to the profiler.
    # What was there before is not to be freed under its eyes.
    subject.model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        subject.step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():  # in the order of time
        if event.name() == '[memory]':
            held += event.nbytes()
            peak = max(peak, held)
    return subject.nbytes() + peak


@dataclass
class Peaks:
    """What a device was seen to do at best: operations and bytes in a second."""

    flops: float
    bytes: float


SLOW = 0.05
"""Seconds of a matrix product that is large enough to measure."""


def measure_peaks(device: torch.device, dtype: torch.dtype, repeat: int = 10) -> Peaks:
    """Time a large matrix product and a large copy; the fastest of several counts."""
    length = 2**28 if device.type == 'cuda' else 2**26
    # Processors without bfloat16 or float16 take minutes for what others do in milliseconds.
    for side in (8192,) if device.type == 'cuda' else (256, 512, 1024, 2048):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        if _seconds(lambda: a @ b, device) > SLOW:  # noqa: B023 - it is called here
            break
    source = torch.ones(length, device=device)
    target = torch.empty_like(source)
    times = [
        min(_seconds(step, device) for _ in range(repeat))
        for step in (lambda: a @ b, lambda: target.copy_(source))
    ]
    return Peaks(2 * side**3 / times[0], 2 * source.nbytes / times[1])
