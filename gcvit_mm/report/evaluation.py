"""The evaluation of predictions in a report, for all tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

MAX_PICTURES = 8
"""Maximum number of the worst images, and of the best ones."""


class Column(NamedTuple):
    """A column of a table: its heading, kind ('text', 'count' or 'percent') and explanation."""

    name: str
    kind: str
    meaning: str = ''


@dataclass
class Table:
    """A table with a row for each class; percentages are from 0 to 100, or None if undefined."""

    title: str
    columns: list[Column]
    rows: list[list[Any]]
    kind: str = ''
    """'bbox' or 'segm' for a table of boxes or masks."""


@dataclass
class PrecisionRecall:
    """Precision in percent at recalls of 0, 1, ... 100 %."""

    kind: str  # 'bbox' or 'segm'
    iou: float  # minimum overlap of a correct prediction
    # 101 values for each class name; the key '' has the mean of all classes.
    precision: dict[str, list[float]]


@dataclass
class Confusion:
    """A confusion matrix."""

    # (n, n) integers, with a row for each true and a column for each predicted class.
    counts: np.ndarray
    names: list[str]  # names of the n classes
    unit: str  # unit of the counts, 'pixels' for example
    explanation: str  # how the counts are determined
    # Whether the last row counts false positives, which are not shares of a class.
    background: bool = False

    def share(self, row: int, count: int) -> float | None:
        """The percentage of the true class; None if there is none."""
        last = len(self.names) - 1
        return None if self.background and row == last else percent(count, self.counts[row].sum())

    def pairs(self, maximum: int = 20) -> list[tuple[str, str, int, float | None]]:
        """List the most confused pairs: true, predicted, count, percentage of the true class."""
        wrong = self.counts * (1 - np.eye(len(self.names), dtype=np.int64))
        if self.background:  # Its pairs are no confusions of two classes.
            wrong[-1] = wrong[:, -1] = 0
        largest = np.argsort(wrong, axis=None)[::-1][:maximum]
        rows, columns = np.unravel_index(largest, wrong.shape)
        return [
            (self.names[i], self.names[j], int(wrong[i, j]), self.share(i, wrong[i, j]))
            for i, j in zip(rows, columns, strict=True)
            if wrong[i, j]
        ]


@dataclass
class Picture:
    """An image with its ground truth and prediction."""

    name: str  # name of the file
    verdict: str  # summary of the errors
    width: int  # size of the image in pixels
    height: int
    image: str  # the reduced image, as a data URI
    truth: Any = None  # ground truth: instances, a label map as a data URI, or the name of a class
    predicted: Any = None  # prediction: instances, a label map, or names and scores of classes
    # Names and colours of the classes in a label map.
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Evaluation:
    """The evaluation of predictions against the ground truth."""

    task: str  # 'detection', 'segmentation' or 'classification'
    images: int  # number of images
    # Metrics with the names and scales of PREFIX.metrics.json of ``tools/test.py``.
    metrics: dict[str, float] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)  # tables with a row for each class
    curves: list[PrecisionRecall] = field(default_factory=list)  # precision-recall curves
    confusion: Confusion | None = None  # the confusion matrix; None without predictions
    ranking: str = ''  # criterion of the ranking of images
    # Images with the worst predictions, the worst first.
    worst: list[Picture] = field(default_factory=list)
    # Images with the best predictions, the best first.
    best: list[Picture] = field(default_factory=list)
    doubts: dict[str, list[Picture]] = field(default_factory=dict)
    """Labels that may be wrong, by the kind of doubt, and samples of the training data."""
    parts: list[Any] = field(default_factory=list)
    resampled: dict[str, np.ndarray] = field(default_factory=dict)
    """Metrics, from 0 to 1, of all images and of resampled ones; ``sampled`` has the images."""
    sampled: list[Any] = field(default_factory=list)


def count_pairs(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count the pairs of true and predicted labels, two arrays of equal shape."""
    pairs = classes * true.ravel().astype(np.int64) + predicted.ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def percent(part: float, whole: float) -> float | None:
    """Compute a percentage, None if ``whole`` is 0."""
    return 100 * float(part) / float(whole) if whole else None


def extremes(order: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Split off the worst and the best items of a list sorted from worst to best."""
    count = min(MAX_PICTURES, (len(order) + 1) // 2)
    return list(order[:count]), list(reversed(order[count:][-count:]))
