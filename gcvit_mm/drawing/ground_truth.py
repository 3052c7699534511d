"""Drawings of annotations on the inputs of a model."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from .canvas import IGNORED, IGNORED_COLOR, Canvas
from .palette import Color
from .text import class_name

SHORT_SIDE = 480
"""Minimum length of a picture's shorter side in pixels, for legible captions."""
STRIPE = 6


def draw_truth(
    picture: np.ndarray,
    sample: Any,
    classes: Sequence[str],
    palette: Sequence[Color],
    in_input: bool,
    shape: tuple[int, int] | None = None,
) -> np.ndarray:
    """Draw the annotations of a data sample on its input, both (H, W, 3) of uint8 in RGB.

    Annotations that the loss ignores are red, and padding is striped. A small image is enlarged
    by an integer factor.

    Args:
        picture: The input with its normalisation undone.
        sample: The input's data sample.
        classes: Names of the classes; a label without a name is drawn as a number.
        palette: (R, G, B) of each class.
        in_input: Whether coordinates of annotations refer to the input, as in training; in
            evaluation, they refer to the image file.
        shape: Height and width of the picture without padding; by default those of the input.
    """
    zoom = max(1, -(-SHORT_SIDE // min(picture.shape[:2])))
    shape = shape or sample.metainfo.get('img_shape', picture.shape)[:2]
    annotated = shape if in_input else sample.metainfo.get('ori_shape', shape)[:2]
    y, x = (zoom * new / old for new, old in zip(shape, annotated, strict=True))
    picture = _stripe(picture, *shape)
    picture = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    canvas = Canvas(picture, classes, palette, (x, y))
    if 'gt_instances' in sample:
        objects = sample.gt_instances
        masks = objects.masks.to_ndarray() if 'masks' in objects else ()
        canvas.objects(_corners(objects), objects.labels.tolist(), masks)
        if 'ignored_instances' in sample:
            for box in _corners(sample.ignored_instances):
                canvas.ignored_box(box)
    elif 'gt_sem_seg' in sample:
        labels, none = sample.gt_sem_seg.data[0].numpy(), len(classes)
        canvas = Canvas(picture, [*classes, IGNORED], [*palette, IGNORED_COLOR], (x, y))
        canvas.label_map(np.where(labels < none, labels, none))
    else:
        names = [class_name(classes, label) for label in range(len(classes))]
        canvas.lines(describe_labels(sample, names))
    return canvas.finish()


def _stripe(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw stripes on the padding."""
    y, x = np.indices(picture.shape[:2])
    stripes = np.where((x + y) // STRIPE % 2, 90, 50).astype(np.uint8)
    inside = np.logical_and(y < height, x < width)
    return np.where(inside[..., None], picture, stripes[..., None])


def _corners(objects: Any) -> list[list[float]]:
    """Convert the boxes of mmdet's objects, a tensor or ``BaseBoxes``, to lists."""
    return getattr(objects.bboxes, 'tensor', objects.bboxes).tolist()


def describe_labels(sample: Any, classes: Sequence[str]) -> list[str]:
    """List the classes of a classification data sample, with weights if there are several."""
    score = sample.get('gt_score')
    labels = sample.gt_label if score is None else score.nonzero()[:, 0]
    lines = [str(classes[label] if classes else label) for label in labels.tolist()]
    if len(lines) == 1 or score is None:
        return lines
    return [f'{score[label]:.2f} {line}' for label, line in zip(labels, lines, strict=True)]
