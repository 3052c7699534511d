"""Comparison of detected objects."""

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from .runner import paste

NEAR = 1e-3
"""Objects whose scores are this near to a limit may be in only one of two predictions."""
APART = 10
"""Pixels between boxes of two objects."""
FAR = 1e6


def differences(
    actual: dict[str, Any], expected: list[dict[str, Any]], threshold: float, mask_threshold: float
) -> dict[str, float]:
    """The largest differences of the objects in slots from those expected of each image.

    Args:
        actual: The outputs of a file.
        expected: The objects of the model for each image, and the ``size`` of the image.
        threshold: Minimum score.
        mask_threshold: Minimum probability of a pixel of a mask.

    Returns:
        Of ``boxes`` in pixels, of ``scores``, and of ``masks`` 1 - IoU. It is infinite for boxes if
        an object is missing or surplus, unless its score is near the lowest possible one.
    """
    worst = dict(boxes=0.0, scores=0.0) | ({'masks': 0.0} if 'masks' in actual else {})
    if len(actual['boxes']) != len(expected):
        return dict.fromkeys(worst, np.inf)
    for number, own in enumerate(expected):
        is_object = np.asarray(actual['labels'][number]) >= 0
        one = {name: np.asarray(x[number])[is_object] for name, x in actual.items()}
        other = {name: np.asarray(x) for name, x in own.items()}
        boxes = np.abs(one['boxes'][:, None] - other['boxes']).max(2, initial=0)
        scores = np.abs(one['scores'][:, None] - other['scores'])
        may_match = (one['labels'][:, None] == other['labels']) & (boxes < APART)  # not NaN
        cost = np.where(may_match, boxes + scores / NEAR, FAR).clip(max=FAR)
        rows, columns = linear_sum_assignment(cost)
        matched = may_match[rows, columns]
        rows, columns = rows[matched], columns[matched]
        slots = len(actual['labels'][number])
        for mine, found in ((one, rows), (other, columns)):
            lowest = mine['scores'].min(initial=1) if len(mine['scores']) == slots else threshold
            single = np.delete(mine['scores'], found)
            if not (single <= lowest + NEAR).all():
                worst['boxes'] = np.inf
        worst['boxes'] = max(worst['boxes'], boxes[rows, columns].max(initial=0))
        worst['scores'] = max(worst['scores'], scores[rows, columns].max(initial=0))
        # mmdet pastes something for boxes without width or height.
        solid = (other['boxes'][columns, 2:] > other['boxes'][columns, :2]).all(1)
        pairs = zip(rows[solid], columns[solid], strict=True) if 'masks' in actual else ()
        for row, column in pairs:
            mask = paste(one['masks'][row], one['boxes'][row], *own['size']) >= mask_threshold
            union = (mask | other['masks'][column]).sum()
            # A pixel at the threshold may have either value, in however small a mask.
            apart = max(0, (mask ^ other['masks'][column]).sum() - 1)
            worst['masks'] = max(worst['masks'], apart / max(union, 1))
    return {name: float(value) for name, value in worst.items()}
