"""The picture, summary and table of a prediction on the page."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..drawing.palette import color_of
from ..inference import Predictor
from ..inference.prediction import Prediction

LOWEST = 0.05
"""Lower limit of the minimum score."""
TOP = 5
PICTURE = 800
"""Minimum length of a picture's longer side in pixels, for legible captions."""
COLUMNS: dict[str, dict[str, Any]] = {
    'detection': {'colour': 'html', 'class': 'str', 'score': 'number', 'box, pixels': 'str'},
    'segmentation': {'colour': 'html', 'class': 'str', 'share, %': 'number'},
    'classification': {'class': 'str', 'probability, %': 'number'},
}
"""Names and Gradio types of the columns of each task's table."""


@dataclass(frozen=True, eq=False)
class Result:
    """An image, its file name, and its prediction."""

    name: str
    image: Image.Image
    prediction: Prediction


def predict(predictor: Predictor, name: str, image: Image.Image) -> Result:
    """Predict on an image."""
    (sample,) = predictor(image)
    return Result(name, image, Prediction.of(sample))


def picture(predictor: Predictor, result: Result, score: float) -> np.ndarray:
    """Draw the prediction on the image, (H, W, 3) of uint8 in RGB."""
    if predictor.task == 'classification':
        return np.asarray(result.image)
    scale = max(1, PICTURE / max(result.image.size))
    return predictor.draw(result.image, result.prediction, score, scale)


def summary(predictor: Predictor, result: Result, score: float) -> str:
    """Summarise the prediction in a sentence."""
    table = rows(predictor, result, score)
    if predictor.task == 'classification':
        return f'Most likely class: {table[0][0]}, {table[0][1]} %.'
    if predictor.task == 'segmentation':
        _, name, share = table[0]
        return f'{len(table)} of {len(predictor.classes)} classes; {share} % is {name}.'
    if not table:
        hidden = len(result.prediction.at_least(LOWEST))
        return f'No objects with a score of {score:.2f} or more' + (
            f', {_count(hidden)} with less: lower the minimum score.' if hidden else '.'
        )
    names = Counter(name for _, name, *_ in table)
    counts = ', '.join(f'{count} {name}' for name, count in names.most_common())
    return f'{_count(len(table))} with a score of {score:.2f} or more: {counts}.'


def rows(predictor: Predictor, result: Result, score: float) -> list[list[Any]]:
    """List the rows of the table by descending score or share, with the columns of ``COLUMNS``."""
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
