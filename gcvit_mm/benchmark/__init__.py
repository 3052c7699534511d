"""Speed, memory and arithmetic of models beside each other, for ``tools/benchmark.py``."""

from .counting import Work, count_work
from .subjects import Subject, build_subject
from .timing import Measured, Peaks, measure, measure_peaks

__all__ = [
    'Measured',
    'Peaks',
    'Subject',
    'Work',
    'build_subject',
    'count_work',
    'measure',
    'measure_peaks',
]
