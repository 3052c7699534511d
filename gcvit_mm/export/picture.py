"""Pictures of an exported file's predictions."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..drawing.predictions import draw_prediction
from ..errors import UserError
from ..inference.prediction import Object, Prediction, encoded
from .check import Comparison
from .runner import FINISH, load, predict

LEAST = 256
"""Minimum side of a picture in pixels."""


def prediction(task: str, found: Any) -> Prediction:
    """What a function of ``FINISH`` returns, as a ``Prediction``."""
    if task == 'classification':
        return Prediction(class_scores=found)
    if task == 'segmentation':
        return Prediction(label_map=found.astype(np.uint16))
    return Prediction(
        objects=tuple(
            Object(one['label'], one['score'], tuple(one['box']), encoded(one['mask']))
            for one in found
        )
    )


def draw_worst(worst: Comparison, about: dict[str, Any]) -> Image.Image:
    """Draw the predictions of file and model side by side, or the difference of other outputs."""
    image, task = worst.images[0].numpy(), about['task']
    scale = max(1.0, LEAST / max(image.shape[:2]))
    if task == 'detection' and 'boxes' in about['outputs']:
        outputs = {name: np.asarray(x) for name, x in worst.actual.items()}
        found = FINISH[task](outputs, about, image.shape[:2], 1.0, 0.0)
        one = {name: np.asarray(x) for name, x in worst.expected[0].items() if name != 'size'}
        nothing = [None] * len(one['boxes'])
        own = [
            dict(zip(('box', 'score', 'label', 'mask'), values, strict=True))
            for values in zip(*(one.get(key, nothing) for key in NAMES), strict=True)
        ]
        colours = about.get('classes', []), about.get('palette', [])
        sides = [
            draw_prediction(image, prediction(task, x), *colours, 0, scale) for x in (found, own)
        ]
        return Image.fromarray(np.concatenate(sides, axis=1))
    name = max(worst.differences, key=lambda key: worst.differences[key] / worst.bars[key])
    difference = (worst.actual[name].float() - worst.expected[name].float()).abs()[0]
    heat = torch.atleast_2d(difference if difference.ndim < 3 else difference.amax(0))
    heat = F.interpolate((255 * heat / heat.max().clamp(min=1e-12))[None, None], (LEAST, LEAST))
    return Image.fromarray(heat[0, 0].numpy().astype(np.uint8))


class FilePredictor:
    """Predicts by an exported ONNX file, for the browser page; see ``Predictor``."""

    def __init__(self, file: str) -> None:
        try:
            self.session, self.about = load(file)
            self.task, self.classes = self.about['task'], self.about.get('classes', [])
        except Exception as error:  # the file may be anything
            raise UserError(f'{file} is no ONNX file of tools/export.py: {error}') from error
        if self.about['graph']['features']:
            raise UserError(f'{file} has feature maps only: export without --what features')
        self.palette = self.about.get('palette', [])

    def __call__(self, image: Image.Image) -> list[Prediction]:
        """Predict on an RGB image; objects have all scores."""
        return [prediction(self.task, predict(self.session, self.about, np.asarray(image), 0.0))]

    def draw(
        self, image: Image.Image, found: Prediction, score: float = 0.3, scale: float = 1
    ) -> np.ndarray:
        """Draw a prediction on its image, see ``Predictor.draw``."""
        return draw_prediction(np.asarray(image), found, self.classes, self.palette, score, scale)


NAMES = ('boxes', 'scores', 'labels', 'masks')
