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
        image, label, score: (n,) index of the image and of the class, and score of predictions.
        result: (n,) index in the list of results.
        correct, ignored: (IoUs, n) whether predictions match an object, or a crowd region.
        own, other: (n,) largest IoU with an object of the predicted class, and of other classes.
        own_object, other_object: (n,) the objects with these IoUs.
        object_image, object_label: (m,) index of the image and of the class of objects.
        found: (m,) whether a prediction matches the object at the first IoU.
        annotations: Annotations of the objects.
        images: Ids of the images.
        classes: Number of classes.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    result: np.ndarray
    correct: np.ndarray
    ignored: np.ndarray
    own: np.ndarray
    own_object: np.ndarray
    other: np.ndarray
    other_object: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    found: np.ndarray
    annotations: list[dict]
    images: list[Any]
    classes: int


def read_results(path: Path, truth: Any) -> list[dict]:
    """Read the predictions for the images of a ``COCO`` object.

    Raises:
        UserError: The file cannot be read, or has predictions for images of another data set.
    """
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
    ious: Sequence[float] = (0.5,),
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
    needed = np.minimum(ious, 1 - 1e-10)[:, None]
    images, annotations, parts, objects = sorted(truth.imgs), [], [], []
    for number, image in enumerate(images):
        every = [a for a in truth.imgToAnns[image] if a['category_id'] in label_of]
        every.sort(key=lambda annotation: bool(annotation.get('iscrowd')))
        crowd = np.array([bool(a.get('iscrowd')) for a in every], bool)
        labels = np.array([label_of[a['category_id']] for a in every], int)
        chosen = sorted(by_image[image], key=lambda i: -results[i]['score'])
        predicted = np.array([label_of[results[i]['category_id']] for i in chosen], int)
        if len(chosen) > maximum:
            of_class = (np.flatnonzero(predicted == k)[:maximum] for k in np.unique(predicted))
            kept = np.sort(np.concatenate(list(of_class)))
            chosen, predicted = [chosen[i] for i in kept], predicted[kept]
        shapes = _shapes(truth, [results[i] for i in chosen], kind), _shapes(truth, every, kind)
        overlaps = np.zeros((len(chosen), len(every)))
        if overlaps.size:
            overlaps = np.asarray(masks.iou(*shapes, crowd.astype(np.uint8)))
        same = predicted[:, None] == labels
        in_crowd = np.max(overlaps * (same & crowd), 1, initial=0)
        count = int((~crowd).sum())
        overlaps, same = overlaps[:, :count], same[:, :count]
        own, other = overlaps * same, overlaps * ~same
        correct = np.zeros((len(needed), len(chosen)), bool)
        free = np.ones((len(needed), count), bool)
        for i in np.flatnonzero(np.max(own, 1, initial=0) >= needed.min()):
            offered = free * own[i]
            best = offered.argmax(1)
            correct[:, i] = offered.max(1) >= needed[:, 0]
            free[correct[:, i], best[correct[:, i]]] = False
        first = len(annotations)
        annotations += every[:count]
        objects.append((np.full(count, number), labels[:count], ~free[0]))
        parts.append(
            (
                np.full(len(chosen), number),
                predicted,
                np.array([results[i]['score'] for i in chosen], float),
                np.array(chosen, int),
                correct.T,
                (~correct & (in_crowd >= needed)).T,
                *(x for each in (own, other) for x in _largest(each, first)),
            )
        )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(-columns[2], kind='stable')
    columns = [column[order].T for column in columns]
    about_objects = [np.concatenate(column) for column in zip(*objects, strict=True)]
    return Matches(*columns, *about_objects, annotations, images, len(categories))


def _shapes(truth: Any, items: Sequence[dict], kind: str) -> Any:
    if kind == 'segm':
        return [truth.annToRLE(item) for item in items]
    return np.array([item['bbox'] for item in items], float).reshape(-1, 4)


def _largest(overlaps: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    if not overlaps.shape[1]:
        return np.zeros(len(overlaps)), np.full(len(overlaps), -1)
    return overlaps.max(1), first + overlaps.argmax(1)
