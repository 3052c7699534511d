"""The score from which predictions should count: that of the largest F1."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from ..errors import UserError
from .matches import Matches, match_all, read_results


def best_threshold(truth: Path, predictions: Path) -> tuple[float, float]:
    """Choose the minimum score of the largest F1, over all classes, at an IoU of 0.5.

    Args:
        truth: Annotations in COCO's format.
        predictions: PREFIX.bbox.json or PREFIX.segm.json of ``tools/test.py --out``.

    Returns:
        The score and its F1, or 1 and 0 if no prediction is correct.

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
    scores, figures = over_scores(match_all(coco, results, kind, coco.getCatIds()))
    best = figures['F1'].argmax()
    return float(scores[best]), float(figures['F1'][best])


def over_scores(
    matches: Matches, label: int | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Compute precision, recall and F1, if predictions count from each different score up.

    Args:
        matches: The predictions.
        label: Index of a class; the default is all classes.

    Returns:
        The different scores in descending order, beginning with 1, and 'precision', 'recall' and
        'F1' from 0 to 1.
    """
    predictions = matches.predictions[~matches.predictions.ignored[:, 0]]
    objects = len(matches.objects)
    if label is not None:
        predictions = predictions[predictions.label == label]
        objects = int((matches.objects.label == label).sum())
    last = np.flatnonzero(np.diff(predictions.score, append=-np.inf))
    right = np.append(0, np.cumsum(predictions.correct[:, 0])[last])
    count = np.append(0, last + 1)
    figures = dict(
        precision=right / np.maximum(1, count),
        recall=right / max(1, objects),
        F1=2 * right / np.maximum(1, count + objects),
    )
    return np.append(1, predictions.score[last]), figures
