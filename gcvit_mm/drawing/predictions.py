"""Drawings of predictions on their image."""

from collections.abc import Sequence

import cv2
import numpy as np

from ..inference.prediction import Prediction
from .canvas import Canvas
from .palette import Color
from .text import class_name

LONGEST = 4096
"""Maximum length of a picture's longer side, in pixels."""
TOP = 5


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Convert an image, (H, W, C) in BGR or (H, W), to RGB; further channels are dropped."""
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        grey = pixels.reshape(*pixels.shape[:2], -1)[..., :1]
        return grey.repeat(3, axis=2)
    return cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_BGR2RGB)


def draw_prediction(
    image: np.ndarray,
    prediction: Prediction,
    classes: Sequence[str],
    palette: Sequence[Color],
    score: float,
    scale: float = 1,
) -> np.ndarray:
    """Draw a prediction on its image, both (H, W, 3) of uint8 in RGB.

    Objects need the minimum score. A class without a name is drawn as a number. The scale of the
    picture is reduced for pictures larger than ``LONGEST``.
    """
    scale = min(scale, LONGEST / max(image.shape[:2]))
    picture: np.ndarray = np.array(image, np.uint8, order='C')  # a copy, as OpenCV wants it
    if scale != 1:
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=interpolation)
    canvas = Canvas(picture, classes, palette, (scale, scale))
    if prediction.objects is not None:
        objects = prediction.at_least(score)
        canvas.objects(
            [one.box for one in objects],
            [one.label for one in objects],
            [one.mask for one in objects if one.mask],
            [one.score for one in objects],
        )
    elif prediction.label_map is not None:
        canvas.label_map(prediction.label_map)
    else:
        top = prediction.top(TOP)
        canvas.lines(f'{share:.2f} {class_name(classes, label)}' for label, share in top)
    return canvas.finish()
