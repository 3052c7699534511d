"""Intervals of metrics: what they would be for other images of this kind (the bootstrap)."""

import numpy as np

from .evaluation import Column, Table, percent
from .matches import Matches

RECALLS = np.linspace(0, 1, 101)
LIMITS = [
    Column('from', 'percent', 'lower limit of the 95 % interval'),
    Column('to', 'percent', 'upper limit of the 95 % interval'),
]


def resample(images: int, times: int = 200) -> np.ndarray:
    """Draw images with replacement: how often each counts, (1 + times, images).

    The first row has each image once. The drawing is seeded, so that models are compared on equal
    images.
    """
    drawn = np.random.default_rng(0).multinomial(images, np.ones(images) / images, times)
    return np.vstack([np.ones_like(drawn[:1]), drawn])


def average_precision(
    predictions: np.recarray, objects: np.ndarray, weights: np.ndarray, iou: int = 0
) -> np.ndarray:
    """Compute COCO's AP for images of different weights.

    Args:
        predictions: Those of ``Matches``.
        objects: (classes, images) number of objects.
        weights: (r, images) how often an image counts.
        iou: Index of the IoU.

    Returns:
        (r, classes) AP from 0 to 1, NaN without objects.
    """
    figures = np.full((len(weights), len(objects)), np.nan)
    totals = weights @ objects.T
    counted = predictions[~predictions.ignored[:, iou]]
    for k in np.flatnonzero(objects.any(1)):
        mine = counted[counted.label == k]
        hits = np.flatnonzero(mine.correct[:, iou])
        images = mine.image[: hits.max(initial=-1) + 1]  # later ones change nothing
        for r in np.flatnonzero(totals[:, k]):
            seen = weights[r, images]
            right = np.cumsum(seen[hits])
            precision = right / np.maximum(np.cumsum(seen)[hits], 1)
            precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
            figures[r, k] = precision[np.searchsorted(right / totals[r, k], RECALLS)].mean()
    return figures


def resampled_ap(matches: Matches, kind: str) -> dict[str, np.ndarray]:
    """Compute AP and AP50 for resampled images, and AP of each class as (resamples, classes)."""
    weights, objects = resample(len(matches.images)), matches.count_objects()
    ious = range(matches.predictions.correct.shape[1])
    figures = [average_precision(matches.predictions, objects, weights, i) for i in ious]
    classes = np.mean(figures, 0)
    every = {f'{kind} AP': classes, f'{kind} AP50': figures[0]}
    means = {k: np.ma.masked_invalid(v).mean(1).filled(np.nan) for k, v in every.items()}
    return {**means, '': classes}


def interval(values: np.ndarray, lowest: float = 0) -> list[float | None]:
    """Return the first of resampled values, and the limits of its 95 % interval, in percent."""
    if np.isnan(values[0]) or np.isnan(values).all():
        return [None, None, None]
    spread = 1.96 * np.nanstd(values[1:])
    limits = np.clip([values[0] - spread, values[0] + spread], lowest, 1)
    return [percent(value, 1) for value in (values[0], *limits)]


def compare(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> Table:
    """Tabulate the metrics of two models, and the interval of their difference."""
    columns = [
        Column('metric', 'text'),
        Column('this run', 'percent'),
        Column('other run', 'percent'),
        Column('difference', 'percent', 'the other run less this one'),
        *LIMITS,
    ]
    rows = [
        [
            name,
            *(percent(x[name][0], 1) for x in (first, second)),
            *interval(second[name] - ours, -1),
        ]
        for name, ours in first.items()
        if name in second
    ]
    return Table('Comparison', columns, rows)
