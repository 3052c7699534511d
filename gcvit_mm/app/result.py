"""A photo and what a model predicts for it, as the page shows them: picture, summary and table."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..drawing.palette import color_of
from ..inference import Predictor
from ..inference.prediction import Prediction

LOWEST = 0.05
"""The lowest score from which objects can be shown."""
TOP = 5
PICTURE = 800
"""Least length of a picture's longer side, in pixels: captions are legible then."""

COLUMNS: dict[str, dict[str, Any]] = {
    'detection': {'colour': 'html', 'class': 'str', 'score': 'number', 'box, pixels': 'str'},
    'segmentation': {'colour': 'html', 'class': 'str', 'share, %': 'number'},
    'classification': {'class': 'str', 'probability, %': 'number'},
}
"""Names and Gradio's types of the columns of each task's table."""


@dataclass(frozen=True, eq=False)
class Result:
    """A photo and what was predicted for it.

    Attributes:
        name: The photo's file name.
        photo: The photo, in RGB.
        prediction: The prediction.
    """

    name: str
    photo: Image.Image
    prediction: Prediction


def predict(predictor: Predictor, name: str, photo: Image.Image) -> Result:
    """Predict on a photo."""
    (sample,) = predictor(photo)
    return Result(name, photo, Prediction.of(sample))


def picture(predictor: Predictor, result: Result, score: float) -> np.ndarray:
    """The photo with the prediction drawn on it, (H, W, 3) of uint8 in RGB."""
    if predictor.task == 'classification':
        return np.asarray(result.photo)
    scale = max(1, PICTURE / max(result.photo.size))
    return predictor.draw(result.photo, result.prediction, score, scale)


def summary(predictor: Predictor, result: Result, score: float) -> str:
    """A sentence on the prediction; plain text."""
    table = rows(predictor, result, score)
    if predictor.task == 'classification':
        return f'Most likely {table[0][0]}, {table[0][1]} %.'
    if predictor.task == 'segmentation':
        _, name, share = table[0]
        return f'{len(table)} of {len(predictor.classes)} classes; {share} % is {name}.'
    if not table:
        weaker = len(result.prediction.at_least(LOWEST))
        return f'Nothing with a score of {score:.2f} or more' + (
            f', {_count(weaker)} with less: lower the score to see more.' if weaker else '.'
        )
    kinds = Counter(name for _, name, *_ in table)
    counts = ', '.join(f'{count} {name}' for name, count in kinds.most_common())
    return f'{_count(len(table))} with a score of {score:.2f} or more: {counts}.'


def rows(predictor: Predictor, result: Result, score: float) -> list[list[Any]]:
    """The rows of the table, in the columns of ``COLUMNS``; the most certain or largest first."""
    prediction = result.prediction
    if predictor.task == 'classification':
        return [
            [_name(predictor, label), round(100 * share, 1)] for label, share in prediction.top(TOP)
        ]
    if predictor.task == 'segmentation':
        return [
            [_swatch(predictor, label), _name(predictor, label), round(100 * share, 1)]
            for label, share in sorted(prediction.shares(), key=lambda pair: -pair[1])
        ]
    return [
        [
            _swatch(predictor, one.label),
            _name(predictor, one.label),
            round(one.score, 2),
            _box(*map(round, one.box)),
        ]
        for one in prediction.at_least(score)
    ]


def _count(number: int) -> str:
    return f'{number} object{"s" if number != 1 else ""}'


def _name(predictor: Predictor, label: int) -> str:
    return predictor.classes[label] if label < len(predictor.classes) else f'class {label}'


def _swatch(predictor: Predictor, label: int) -> str:
    red, green, blue = color_of(predictor.palette, label)
    return f'<span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>'


def _box(left: int, top: int, right: int, bottom: int) -> str:
    return f'{right - left} x {bottom - top} at {left}, {top}'
