"""What a report says of predictions, whatever the task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

MOST_PICTURES = 8
"""So many of the best images, and of the worst."""


class Column(NamedTuple):
    """A column of a table: its head, 'text', 'count' or 'percent', and what it means."""

    name: str
    kind: str
    meaning: str = ''


@dataclass
class Table:
    """Figures of each class; percents are from 0 to 100, None stands for none."""

    title: str
    columns: list[Column]
    rows: list[list[Any]]
    kind: str = ''
    """'bbox' or 'segm', of what is shown for boxes or for masks."""


@dataclass
class PrecisionRecall:
    """Precision in percent at recalls of 0, 1, ... 100 %.

    Attributes:
        kind: 'bbox' or 'segm'.
        iou: From which overlap an object counts as found.
        precision: A list of 101 for each class by its name; the mean of the classes by ''.
    """

    kind: str
    iou: float
    precision: dict[str, list[float]]


@dataclass
class Confusion:
    """What was taken for what.

    Attributes:
        counts: (n, n) integers, a row for each true class, a column for each predicted one.
        names: The n classes.
        unit: What is counted, 'pixels' for example.
        explanation: How, in words.
    """

    counts: np.ndarray
    names: list[str]
    unit: str
    explanation: str

    def pairs(self, most: int = 20) -> list[tuple[str, str, int, float]]:
        """The pairs that are confused most: true, predicted, count, percent of the true class."""
        wrong = self.counts * (1 - np.eye(len(self.names), dtype=np.int64))
        totals = self.counts.sum(1)
        best = np.argsort(wrong, axis=None)[::-1][:most]
        rows, columns = np.unravel_index(best, wrong.shape)
        return [
            (self.names[i], self.names[j], int(wrong[i, j]), 100 * wrong[i, j] / totals[i])
            for i, j in zip(rows, columns, strict=True)
            if wrong[i, j]
        ]


@dataclass
class Picture:
    """An image of the data, what is on it and what was found.

    Attributes:
        name: Of the file.
        verdict: How good the predictions are, in words.
        width: In pixels of the image, as ``height``.
        height: See ``width``.
        photo: The image, reduced, as a data URI.
        truth: Objects, or the map of classes; what a task fills in is in its module.
        found: The same of the predictions.
        legend: Names and colours of the classes of a map.
    """

    name: str
    verdict: str
    width: int
    height: int
    photo: str
    truth: Any = None
    found: Any = None
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Evaluation:
    """Predictions against the truth.

    Attributes:
        task: 'detection', 'segmentation' or 'classification'.
        images: How many were evaluated.
        metrics: Named and scaled as in ``tools/test.py``'s PREFIX.metrics.json.
        tables: Figures for each class.
        curves: Of precision and recall.
        confusion: None where nothing could be counted.
        ranking: How images are ranked, in words.
        worst: Images with the worst predictions, the worst first.
        best: Those with the best.
    """

    task: str
    images: int
    metrics: dict[str, float] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    curves: list[PrecisionRecall] = field(default_factory=list)
    confusion: Confusion | None = None
    ranking: str = ''
    worst: list[Picture] = field(default_factory=list)
    best: list[Picture] = field(default_factory=list)


def count_pairs(true: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """How often each pair of classes occurs, (classes, classes).

    Args:
        true: Integers from 0 to ``classes - 1``, of any shape.
        found: The same, of the same shape.
        classes: How many there are.
    """
    pairs = classes * true.ravel().astype(np.int64) + found.ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def percent(part: float, whole: float) -> float | None:
    """A share in percent, None of nothing."""
    return 100 * float(part) / float(whole) if whole else None


def extremes(order: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The worst and the best of what is sorted from bad to good, without saying one twice."""
    few = min(MOST_PICTURES, (len(order) + 1) // 2)
    return list(order[:few]), list(reversed(order[few:][-few:]))
