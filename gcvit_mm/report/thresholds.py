"""The score from which predictions should count: that of the largest F1."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from ..errors import UserError
from .matches import match_all, read_results


def best_threshold(truth: Path, predictions: Path) -> tuple[float, float]:
    """Choose the minimum score of the largest F1, over all classes, at an IoU of 0.5.

    Args:
        truth: Annotations in COCO's format.
        predictions: PREFIX.bbox.json or PREFIX.segm.json of ``tools/test.py --out``.

    Returns:
        The score, and the F1 of the predictions with at least this score; 1 and 0 if none is
        correct.

    Raises:
        UserError: A file cannot be read, or they are of different data sets.
    """
    try:
        with redirect_stdout(StringIO()):
            coco = COCO(str(truth))
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise UserError(f'{truth} cannot be read as COCO annotations: {error!r}') from error
    results = read_results(Path(predictions), coco)
    kind = 'segm' if any('segmentation' in result for result in results) else 'bbox'
    matches = match_all(coco, results, kind, coco.getCatIds())
    counted = ~matches.ignored[0]
    figures = over_scores(matches.score[counted], matches.correct[0, counted], len(matches.found))
    return best_f1(*figures)


def over_scores(
    scores: np.ndarray, correct: np.ndarray, objects: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute precision and recall, if predictions count from each different score up.

    Args:
        scores: (n,) scores in descending order.
        correct: (n,) whether the predictions are correct.
        objects: Number of objects.

    Returns:
        The different scores, precisions and recalls, from 0 to 1.
    """
    last = np.flatnonzero(np.diff(scores, append=-np.inf))
    right = np.cumsum(correct)[last]
    return scores[last], right / (last + 1), right / max(1, objects)


def f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Compute the harmonic mean, 0 where both are 0."""
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def best_f1(scores: np.ndarray, precision: np.ndarray, recall: np.ndarray) -> tuple[float, float]:
    """Choose the score of the largest F1: the score, and F1; 1 and 0 if nothing is correct."""
    figures = f1(precision, recall)
    if not figures.any():
        return 1.0, 0.0
    return float(scores[figures.argmax()]), float(figures.max())
