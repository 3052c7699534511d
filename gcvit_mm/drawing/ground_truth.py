"""The annotations that a model is given, drawn on its input."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from .canvas import Canvas
from .palette import Color
from .text import class_name

SHORT_SIDE = 480
"""Pixels that the shorter side of a picture has at least: captions do not fit on less."""
STRIPE = 6
IGNORED, IGNORED_COLOR = 'ignored', (255, 0, 0)


def draw_truth(
    picture: np.ndarray,
    sample: Any,
    classes: Sequence[str],
    palette: Sequence[Color],
    in_input: bool,
) -> np.ndarray:
    """Draw an image's annotations.

    Boxes, masks and label maps are drawn as they are, what a loss ignores in red, padding
    striped. The picture of a small image is enlarged by a whole number.

    Args:
        picture: The input with its normalisation undone, (H, W, 3) of uint8 in RGB.
        sample: Its data sample.
        classes: Names of the classes; labels without one are drawn as numbers.
        palette: (R, G, B) of each class.
        in_input: Whether annotations are where the input has them, as in a training; else they
            are where the file has them, as the packages evaluate.

    Returns:
        The picture, (H, W, 3) of uint8 in RGB.
    """
    zoom = max(1, -(-SHORT_SIDE // min(picture.shape[:2])))
    shape = sample.metainfo.get('img_shape', picture.shape)[:2]
    own = shape if in_input else sample.metainfo.get('ori_shape', shape)[:2]
    y, x = (zoom * new / old for new, old in zip(shape, own, strict=True))
    picture = _stripe(picture, *shape)
    picture = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    none = len(classes)
    canvas = Canvas(picture, [*classes, IGNORED], [*palette, IGNORED_COLOR], (x, y))
    if 'gt_instances' in sample:
        objects = sample.gt_instances
        masks = objects.masks.to_ndarray() if 'masks' in objects else ()
        canvas.objects(_corners(objects), objects.labels.tolist(), masks)
        if 'ignored_instances' in sample:
            for box in _corners(sample.ignored_instances):
                canvas.dashed_box(box, none)
    elif 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.data[0].numpy()
        canvas.label_map(np.where(labels < none, labels, none))
    else:
        names = [class_name(classes, label) for label in range(none)]
        canvas.lines(describe_labels(sample, names))
    return canvas.finish()


def _stripe(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mark what is not of the image."""
    y, x = np.indices(picture.shape[:2])
    light = np.where((x + y) // STRIPE % 2, 90, 50).astype(np.uint8)
    inside = np.logical_and(y < height, x < width)
    return np.where(inside[..., None], picture, light[..., None])


def _corners(objects: Any) -> list[list[float]]:
    """The boxes of mmdet's objects, which are a tensor or hold one."""
    return getattr(objects.bboxes, 'tensor', objects.bboxes).tolist()


def describe_labels(sample: Any, classes: Sequence[str]) -> list[str]:
    """The classes of a classifier's data sample, each with its share where it has several."""
    score = sample.get('gt_score')
    labels = sample.gt_label if score is None else score.nonzero()[:, 0]
    lines = [str(classes[label] if classes else label) for label in labels.tolist()]
    if len(lines) == 1 or score is None:
        return lines
    return [f'{score[label]:.2f} {line}' for label, line in zip(labels, lines, strict=True)]
