"""Matches the predictions of a detector to objects, as COCO does, in arrays of all images."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as masks

from ..errors import UserError
from ..fileio import read_json


@dataclass
class Matches:
    """Predictions by descending score, and objects without crowd regions.

    Attributes:
        predictions: ``image`` and ``label`` (indices), ``score``, ``result`` (index in the file);
            ``correct`` and ``ignored`` at each IoU, the latter in crowd regions; largest IoU with
            an object of its class (``own``) and of others (``other``), and indices of these objects
            (``own_object``, ``other_object``).
        objects: ``image``, ``label``, and whether a prediction matches at the first IoU, ``found``.
        annotations: The annotations of the objects.
        images: Ids of the images.
        classes: Number of classes.
    """

    predictions: np.recarray
    objects: np.recarray
    annotations: list[dict]
    images: list[Any]
    classes: int

    def count_objects(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Count objects, (classes, images)."""
        counts = np.zeros((self.classes, len(self.images)), int)
        np.add.at(counts, (self.objects.label[chosen], self.objects.image[chosen]), 1)
        return counts


def read_results(path: Path, truth: Any) -> list[dict]:
    """Read predictions for the images of a ``COCO`` object."""
    results = read_json(path)
    if not isinstance(results, list):
        raise UserError(f'{path} has no list of COCO results: give the PREFIX of tools/test.py')
    unknown = {result['image_id'] for result in results} - truth.imgs.keys()
    if unknown:
        raise UserError(
            f'{path} has predictions for {len(unknown)} images that are not in the annotations '
            f'({min(unknown)} for example): give predictions for the test set of the config'
        )
    return results


def match_all(
    truth: Any,
    results: Sequence[dict],
    kind: str,
    categories: Sequence[int],
    ious: Sequence[float] | np.ndarray = (0.5,),
    maximum: int = 100,
) -> Matches:
    """Match predictions to objects of their class, each to the free one of largest overlap.

    Args:
        truth: A ``COCO`` object.
        results: Predictions in COCO format.
        kind: 'bbox' or 'segm'.
        categories: Ids of the classes; others do not count.
        ious: Minimum overlaps of correct predictions.
        maximum: Number of predictions of a class in an image that count, those of largest score.
    """
    label_of = {category: i for i, category in enumerate(categories)}
    by_image = defaultdict(list)
    for i, result in enumerate(results):
        if result['category_id'] in label_of:
            by_image[result['image_id']].append(i)
    needed = np.minimum(ious, 1 - 1e-10)
    at_ious = (bool, len(needed))
    layout = [
        *((name, int) for name in ('image', 'label', 'result', 'own_object', 'other_object')),
        *((name, float) for name in ('score', 'own', 'other')),
        *((name, *at_ious) for name in ('correct', 'ignored')),
    ]
    images, parts, objects = sorted(truth.imgs), [], []
    annotations: list[dict] = []
    for number, image in enumerate(images):
        every = [a for a in truth.imgToAnns[image] if a['category_id'] in label_of]
        every.sort(key=lambda annotation: bool(annotation.get('iscrowd')))
        crowd = np.array([bool(a.get('iscrowd')) for a in every], bool)
        labels = np.array([label_of[a['category_id']] for a in every], int)
        chosen = np.array(sorted(by_image[image], key=lambda i: -results[i]['score']), int)
        predicted = np.array([label_of[results[i]['category_id']] for i in chosen], int)
        rank = np.tril(predicted[:, None] == predicted).sum(1)
        chosen, predicted = chosen[rank <= maximum], predicted[rank <= maximum]
        overlaps = np.zeros((len(chosen), len(every)))
        if overlaps.size:
            shapes = (_shapes(truth, x, kind) for x in ([results[i] for i in chosen], every))
            overlaps = np.asarray(masks.iou(*shapes, crowd.astype(np.uint8)))
        same = predicted[:, None] == labels
        in_crowd = np.max(overlaps * (same & crowd), 1, initial=0)
        count = int((~crowd).sum())
        own, other = (np.zeros((len(chosen), count + 1)) for _ in range(2))  # 0 with the last
        own[:, :count] = (overlaps * same)[:, :count]
        other[:, :count] = (overlaps * ~same)[:, :count]
        part: Any = np.recarray(len(chosen), layout)
        part.image, part.label, part.result, part.correct = number, predicted, chosen, False
        part.score = [results[i]['score'] for i in chosen]
        part.own, part.own_object = own.max(1), len(annotations) + own.argmax(1)
        part.other, part.other_object = other.max(1), len(annotations) + other.argmax(1)
        free = np.ones((len(needed), count + 1), bool)
        for k in np.flatnonzero(part.own >= needed.min()):
            offered = free * own[k]
            part.correct[k] = right = offered.max(1) >= needed
            free[right, offered.argmax(1)[right]] = False
        part.ignored = ~part.correct & (in_crowd[:, None] >= needed)
        parts.append(part)
        found = ~free[0, :count]
        about = [np.full(count, number), labels[:count], found]
        objects.append(np.rec.fromarrays(about, [('image', int), ('label', int), ('found', bool)]))
        annotations += every[:count]
    predictions: Any = np.concatenate(parts).view(np.recarray)
    predictions = predictions[np.argsort(-predictions.score, kind='stable')]
    every_object = np.concatenate(objects).view(np.recarray)
    return Matches(predictions, every_object, annotations, images, len(categories))


def _shapes(truth: Any, items: Sequence[dict], kind: str) -> Any:
    if kind == 'segm':
        return [truth.annToRLE(item) for item in items]
    return np.array([item['bbox'] for item in items], float)
