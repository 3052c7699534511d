"""Predictions on their image, in fixed colours."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from .canvas import Canvas
from .palette import Color
from .text import class_name

LARGEST = 4096
"""Longest side of a picture, in pixels."""
TOP = 5


def draw_prediction(
    image: np.ndarray,
    sample: Any,
    classes: Sequence[str],
    palette: Sequence[Color],
    score: float,
    scale: float = 1,
) -> np.ndarray:
    """Draw what was predicted.

    Args:
        image: (H, W, 3) in RGB.
        sample: The image's data sample.
        classes: Names of the classes; labels without one are drawn as numbers.
        palette: (R, G, B) of each class.
        score: Objects are drawn from this score up.
        scale: Size of the picture, in that of the image; less where it exceeds ``LARGEST``.

    Returns:
        The picture, (H, W, 3) of uint8 in RGB.
    """
    scale = min(scale, LARGEST / max(image.shape[:2]))
    picture: np.ndarray = np.array(image, np.uint8)  # a copy
    if scale != 1:
        smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=smooth)
    canvas = Canvas(picture, classes, palette, (scale, scale))
    if 'pred_instances' in sample:
        found = sample.pred_instances.cpu()
        found = found[found.scores >= score]
        masks = [
            rle.decode(mask) if isinstance(mask, dict) else np.asarray(mask, np.uint8)
            for mask in found.get('masks', ())
        ]
        boxes, labels, scores = (found[key].tolist() for key in ('bboxes', 'labels', 'scores'))
        canvas.objects(boxes, labels, masks, scores)
    elif 'pred_sem_seg' in sample:
        canvas.label_map(sample.pred_sem_seg.cpu().data[0].numpy())
    else:
        best = sample.pred_score.topk(min(TOP, len(sample.pred_score)))
        top = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        canvas.lines(f'{p:.2f} {class_name(classes, label)}' for p, label in top)
    return canvas.finish()
