"""What a model found in a photo, as a page shows it: picture, summary and table."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle

from . import Predictor

LOWEST = 0.05
"""Objects with a lower score are dropped, whatever threshold is chosen."""
TOP = 5
PICTURE = 800
"""Least length of a picture's longer side, in pixels: captions are legible then."""

COLUMNS: dict[str, dict[str, Any]] = {
    'detection': {'colour': 'html', 'class': 'str', 'score': 'number', 'box, pixels': 'str'},
    'segmentation': {'colour': 'html', 'class': 'str', 'share, %': 'number'},
    'classification': {'class': 'str', 'probability, %': 'number'},
}
"""Names and Gradio's types of the columns of each task's table."""


@dataclass(frozen=True)
class Found:
    """A photo and what was predicted for it, in little memory.

    Attributes:
        name: The photo's file name.
        photo: The photo, in RGB.
        sample: The prediction, a data sample of the model's package.
    """

    name: str
    photo: Image.Image
    sample: Any


def find(predictor: Predictor, name: str, photo: Image.Image) -> Found:
    """Predict on a photo."""
    (sample,) = predictor(photo)
    return Found(name, photo, _compact(sample))


def _compact(sample: Any) -> Any:
    """A data sample without logits, with its masks as run lengths."""
    if 'pred_instances' in sample:
        found = sample.pred_instances
        found = found[found.scores >= LOWEST]
        found = found[found.scores.argsort(descending=True)]
        if 'masks' in found and not isinstance(found.masks, list):
            masks = np.asarray(found.masks, np.uint8)
            found.masks = [rle.encode(np.asfortranarray(mask)) for mask in masks]
        return sample.new(pred_instances=found)
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg
        labels.data = labels.data.to(torch.int16)
        return sample.new(pred_sem_seg=labels)
    return sample


def picture(predictor: Predictor, found: Found, score: float) -> np.ndarray:
    """The photo with what was found in it, (H, W, 3) of uint8 in RGB."""
    if predictor.task == 'classification':
        return np.asarray(found.photo)
    scale = max(1, PICTURE / max(found.photo.size))
    return predictor.draw(found.photo, found.sample, score, scale)


def summary(predictor: Predictor, found: Found, score: float) -> str:
    """A sentence on what was found; plain text."""
    table = rows(predictor, found, score)
    if predictor.task == 'classification':
        return f'Most likely {table[0][0]}, {table[0][1]} %.'
    if predictor.task == 'segmentation':
        _, name, share = table[0]
        return f'{len(table)} of {len(predictor.classes)} classes; {share} % is {name}.'
    if not table:
        weaker = len(rows(predictor, found, LOWEST))
        return f'Nothing with a score of {score:.2f} or more' + (
            f', {_count(weaker)} with less: lower the score to see more.' if weaker else '.'
        )
    kinds = Counter(name for _, name, *_ in table)
    counts = ', '.join(f'{count} {name}' for name, count in kinds.most_common())
    return f'{_count(len(table))} with a score of {score:.2f} or more: {counts}.'


def rows(predictor: Predictor, found: Found, score: float) -> list[list[Any]]:
    """The rows of the table, in the columns of ``COLUMNS``; the most certain or largest first."""
    sample = found.sample
    if predictor.task == 'classification':
        scores, labels = sample.pred_score.topk(min(TOP, len(sample.pred_score)))
        return [
            [_name(predictor, label), round(100 * score, 1)]
            for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
        ]
    if predictor.task == 'segmentation':
        labels, counts = sample.pred_sem_seg.data.unique(return_counts=True)
        shares = (100 * counts / counts.sum()).tolist()
        return [
            [_swatch(predictor, label), _name(predictor, label), round(share, 1)]
            for share, label in sorted(zip(shares, labels.tolist(), strict=True), reverse=True)
        ]
    instances = sample.pred_instances
    instances = instances[instances.scores >= score]
    return [
        [_swatch(predictor, label), _name(predictor, label), round(certainty, 2), _box(corners)]
        for label, certainty, corners in zip(
            instances.labels.tolist(),
            instances.scores.tolist(),
            instances.bboxes.round().int().tolist(),
            strict=True,
        )
    ]


def _count(number: int) -> str:
    return f'{number} object{"s" if number != 1 else ""}'


def _name(predictor: Predictor, label: int) -> str:
    return predictor.classes[label] if label < len(predictor.classes) else f'class {label}'


def _swatch(predictor: Predictor, label: int) -> str:
    if label >= len(predictor.palette):
        return ''
    red, green, blue = predictor.palette[label]
    return f'<span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>'


def _box(corners: list[int]) -> str:
    left, top, right, bottom = corners
    return f'{right - left} x {bottom - top} at {left}, {top}'
