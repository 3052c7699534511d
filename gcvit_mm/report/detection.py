"""Evaluates the predictions of a detector, in COCO format, for a report."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from pycocotools import mask as masks
from pycocotools.coco import COCO
from tqdm import tqdm

from ..config import datasets_of, evaluators_of
from ..drawing.palette import class_colors, instance_colors
from ..evaluation.faster_coco_metric import fastest_evaluation
from ..evaluation.metrics import make_countable
from .analysis import analyse_detections
from .evaluation import (
    Column,
    Confusion,
    Evaluation,
    Picture,
    PrecisionRecall,
    Table,
    count_pairs,
    extremes,
)
from .matches import read_results
from .pictures import as_hex, as_path, as_photo, image_reader

IOU, SCORE = 0.5, 0.3
"""Minimum overlap and score of predictions that are matched to objects."""
DRAWN_SCORE = 0.05
"""Minimum score of predictions that are drawn."""
SIZES = {'small': 's', 'medium': 'm', 'large': 'l'}
KINDS = {'bbox': 'box', 'segm': 'mask'}
COLUMNS = [
    Column('class', 'text'),
    Column('objects', 'count', 'in the ground truth, without crowd regions'),
    Column('AP', 'percent', 'average precision, mean over IoU 0.50 to 0.95'),
    Column('AP50', 'percent', 'average precision at IoU 0.50'),
    Column('AP75', 'percent', 'average precision at IoU 0.75'),
    Column('AR', 'percent', 'average recall, mean over IoU 0.50 to 0.95'),
    Column('AP small', 'percent', 'of objects below 32 x 32 pixels'),
    Column('AP medium', 'percent', 'of objects from 32 x 32 to 96 x 96 pixels'),
    Column('AP large', 'percent', 'of objects from 96 x 96 pixels'),
]


@dataclass
class Instance:
    """An annotated or predicted object in a picture."""

    label: str  # name of the class
    color: str  # '#rrggbb'
    box: list[float]  # x, y, width and height in pixels of the image
    path: str  # outline of the mask as an SVG path; empty without a mask
    score: float | None = None  # score of a prediction; None for ground truth
    crowd: bool = False  # whether it is the annotation of a crowd region


@dataclass
class _Matches:
    """Indices of matched objects and predictions, missed objects, and false positives."""

    pairs: list[tuple[int, int]] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    false_positives: list[int] = field(default_factory=list)


def evaluate_detection(cfg: Config, dataset: BaseDataset, prefix: str) -> Evaluation:
    """Evaluate PREFIX.bbox.json and PREFIX.segm.json, if they exist."""
    truth = _Truth(cfg, dataset)
    evaluation = Evaluation('detection', len(truth.coco.imgs))
    results = {}
    for kind in KINDS:
        path = Path(f'{prefix}.{kind}.json')
        if path.is_file():
            results[kind] = read_results(path, truth.coco)
            if results[kind]:
                _add_figures(evaluation, kind, _measure(kind, truth, results[kind]), truth)
    if any(results.values()):
        _look_at_images(evaluation, truth, results)
    return evaluation


class _Truth:
    """The annotations of the test set, and the classes of the config among its categories."""

    def __init__(self, cfg: Config, dataset: BaseDataset) -> None:
        self.cfg, self.dataset = cfg, dataset
        named = (e for e in evaluators_of(cfg, 'test') if e.type.endswith('CocoMetric'))
        self.evaluator = next(named)
        self.coco = _quietly(COCO, self.evaluator.get('ann_file') or dataset.ann_file)
        make_countable(self.coco)
        self.categories = self.coco.getCatIds(catNms=list(dataset.metainfo['classes']))
        self.names = [self.coco.cats[i]['name'] for i in self.categories]
        self.label_of = {category: i for i, category in enumerate(self.categories)}

    def objects(self, image_id: Any) -> list[dict]:
        return [a for a in self.coco.imgToAnns[image_id] if a['category_id'] in self.label_of]


def _quietly(call: Any, *arguments: Any) -> Any:
    """Call a function of the API without its output."""
    with redirect_stdout(StringIO()):
        return call(*arguments)


def _measure(kind: str, truth: _Truth, results: list[dict]) -> Any:
    """Run COCO's evaluation with the settings of the evaluator."""
    results = [dict(result) for result in results]
    if kind == 'segm':
        for result in results:  # like mmdet: object sizes are then areas of masks
            result.pop('bbox', None)
    measured = fastest_evaluation()(truth.coco, _quietly(truth.coco.loadRes, results), kind)
    measured.params.catIds = truth.categories
    measured.params.maxDets = list(truth.evaluator.get('proposal_nums') or (100, 300, 1000))
    thresholds = truth.evaluator.get('iou_thrs')
    if thresholds is not None:
        measured.params.iouThrs = np.atleast_1d(np.array(thresholds, float))
    _quietly(measured.evaluate)
    _quietly(measured.accumulate)
    return measured


def _add_figures(evaluation: Evaluation, kind: str, measured: Any, truth: _Truth) -> None:
    # (thresholds, recalls, classes, sizes) and (thresholds, classes, sizes), at the last maxDets.
    precision = np.asarray(measured.eval['precision'])[..., -1]
    recall = np.asarray(measured.eval['recall'])[..., -1]
    # The API sorts the categories.
    order = [measured.params.catIds.index(category) for category in truth.categories]
    precision, recall = precision[:, :, order], recall[:, order]
    at = {f'{t:.2f}': i for i, t in enumerate(measured.params.iouThrs)}

    def average(figures: np.ndarray) -> float:
        known = figures[figures > -1]
        return float(known.mean()) if known.size else -1.0

    def of(classes: Any) -> dict[str, float]:
        precisions, recalls = precision[:, :, classes], recall[:, classes]
        figures = {'': average(precisions[..., 0])}
        for threshold in ('0.50', '0.75'):
            i = at.get(threshold)
            figures[f'_{threshold[2:]}'] = -1.0 if i is None else average(precisions[i, ..., 0])
        figures['AR'] = average(recalls[..., 0])
        for i, size in enumerate(SIZES.values(), start=1):
            figures[f'_{size}'] = average(precisions[..., i])
        return figures

    overall = of(slice(None))
    evaluation.metrics |= {f'coco/{kind}_mAP{end}': overall[end] for end in overall if end != 'AR'}
    annotations = truth.coco.anns.values()
    counts = Counter(a['category_id'] for a in annotations if not a.get('iscrowd', 0))
    rows = [
        [name, counts[category], *map(_in_percent, of([i]).values())]
        for i, (category, name) in enumerate(zip(truth.categories, truth.names, strict=True))
    ]
    evaluation.tables.append(Table(f'{KINDS[kind].capitalize()} AP', COLUMNS, rows, kind))
    for threshold in ('0.50', '0.75'):
        if threshold in at:
            curves = precision[at[threshold], ..., 0]  # (recalls, classes)
            by_class = {
                name: (100 * curves[:, i]).round(1).tolist()
                for i, name in enumerate(truth.names)
                if curves[0, i] > -1
            }
            if by_class:
                mean = np.mean(list(by_class.values()), 0).round(1).tolist()
                evaluation.curves.append(
                    PrecisionRecall(kind, float(threshold), {'': mean, **by_class})
                )


def _in_percent(figure: float) -> float | None:
    return None if figure < 0 else 100 * figure


def _look_at_images(evaluation: Evaluation, truth: _Truth, results: dict[str, list]) -> None:
    """Compute the confusion matrix, and draw the worst and the best images."""
    label_of, background = truth.label_of, len(truth.names)
    by_image = defaultdict(list)
    for result in results.get('segm') or results['bbox']:
        if result['category_id'] in label_of:
            by_image[result['image_id']].append(result)
    true, predicted, ranked = [], [], []
    for image_id in tqdm(sorted(truth.coco.imgs), desc='images', leave=False):
        objects = truth.objects(image_id)
        predictions = [result for result in by_image[image_id] if result['score'] >= SCORE]
        matches = match(objects, predictions)
        labels = [label_of[a['category_id']] for a in objects]
        predicted_labels = [label_of[result['category_id']] for result in predictions]
        pairs = [
            *((labels[i], predicted_labels[j]) for i, j in matches.pairs),
            *((labels[i], background) for i in matches.missed),
            *((background, predicted_labels[j]) for j in matches.false_positives),
        ]
        if pairs:
            true += [i for i, _ in pairs]
            predicted += [j for _, j in pairs]
            right = sum(i == j for i, j in pairs)
            wrong = len(pairs) - right
            f1 = 2 * right / (len(matches.pairs) + len(pairs))
            # Images of equal F1 are ranked by their number of mistakes, then of correct objects.
            ranked.append(((f1, -wrong, right), image_id, matches, right))
    counts = count_pairs(np.array(true), np.array(predicted), background + 1)
    evaluation.confusion = Confusion(
        counts,
        [*truth.names, 'background'],
        'objects',
        f'Predictions with a score of at least {SCORE} are matched to objects by boxes with an IoU '
        f'of at least {IOU}, first to objects of their own class and then to others. False '
        'positives have no true class, and so no percentage.',
        background=True,
    )
    evaluation.ranking = f'F1 score at IoU {IOU}, for predictions with a score of at least {SCORE}'
    ranked.sort(key=lambda entry: entry[0])
    draw = _Drawing(truth, by_image)
    evaluation.worst, evaluation.best = (
        [draw(image_id, figures[0], matches, right) for figures, image_id, matches, right in chosen]
        for chosen in extremes(ranked)
    )
    analyse_detections(evaluation, truth, results, draw)


def match(objects: list[dict], predictions: list[dict]) -> _Matches:
    """Match predictions to the objects of an image by their boxes, both in COCO format.

    By descending score, each prediction is matched to the free object of its class with the
    largest overlap; then the other predictions are matched to objects of other classes.
    Predictions within crowd regions are ignored.
    """
    crowd = [annotation.get('iscrowd', 0) for annotation in objects]
    overlaps = np.zeros((len(predictions), len(objects)))
    if objects and predictions:
        boxes = (np.array([each['bbox'] for each in x], float) for x in (predictions, objects))
        overlaps = masks.iou(*boxes, crowd)
    order = sorted(range(len(predictions)), key=lambda j: -predictions[j]['score'])
    free = {i for i in range(len(objects)) if not crowd[i]}
    matches, taken = _Matches(), set()
    for same_class in (True, False):
        for j in order:
            category = predictions[j]['category_id']
            candidates = [
                i
                for i in free
                if overlaps[j, i] >= IOU and (objects[i]['category_id'] == category) is same_class
            ]
            if j not in taken and candidates:
                best = max(candidates, key=lambda i: overlaps[j, i])
                matches.pairs.append((best, j))
                free.remove(best)
                taken.add(j)
    matches.missed = sorted(free)
    in_crowd = [any(c and o >= IOU for c, o in zip(crowd, row, strict=True)) for row in overlaps]
    matches.false_positives = [j for j in order if j not in taken and not in_crowd[j]]
    return matches


class _Drawing:
    """Draws images with their annotations and predictions."""

    def __init__(self, truth: _Truth, predictions: dict[Any, list[dict]]) -> None:
        self.truth, self.predictions, dataset = truth, predictions, truth.dataset
        infos = (dataset.get_data_info(i) for i in range(len(dataset)))
        self.paths = {info['img_id']: info['img_path'] for info in infos}
        self.read = image_reader(truth.cfg)
        (settings, *_) = datasets_of(truth.cfg.test_dataloader)
        self.palette = class_colors(truth.cfg, settings, dataset.metainfo['classes'])

    def __call__(self, image_id: Any, f1: float, matches: _Matches, right: int) -> Picture:
        counts = {
            'correct': right,
            'of the wrong class': len(matches.pairs) - right,
            'missed': len(matches.missed),
            'false positives': len(matches.false_positives),
        }
        parts = [f'{n} {name}' for name, n in counts.items() if n or name == 'correct']
        drawn = [each for each in self.predictions[image_id] if each['score'] >= DRAWN_SCORE]
        verdict = f'F1 {100 * f1:.0f}: ' + ', '.join(parts)
        return self.picture(image_id, verdict, self.truth.objects(image_id), drawn)

    def picture(self, image_id: Any, verdict: str, truth: list, predicted: list) -> Picture:
        """Draw annotations and predictions."""
        image = self.truth.coco.imgs[image_id]
        return Picture(
            name=os.path.basename(image['file_name']),
            verdict=verdict,
            width=image['width'],
            height=image['height'],
            image=as_photo(self.read(self.paths[image_id])),
            truth=list(self._instances(truth, image)),
            predicted=list(self._instances(predicted, image)),
        )

    def _instances(self, annotations: list[dict], image: dict) -> Iterator[Instance]:
        best_first = sorted(annotations, key=lambda each: -each.get('score', 1))
        labels = [self.truth.label_of[annotation['category_id']] for annotation in best_first]
        shown = zip(best_first, labels, instance_colors(labels, self.palette), strict=True)
        for annotation, label, color in reversed(list(shown)):  # the last is on top
            yield Instance(
                self.truth.names[label],
                as_hex(color),
                [round(float(value), 1) for value in annotation['bbox']],
                self._outline(annotation.get('segmentation'), image),
                annotation.get('score'),
                bool(annotation.get('iscrowd', 0)),
            )

    @staticmethod
    def _outline(segmentation: Any, image: dict) -> str:
        if not segmentation:
            return ''
        height, width = image['height'], image['width']
        if isinstance(segmentation, dict) and not isinstance(segmentation['counts'], list):
            encoded = segmentation
        else:
            encoded = masks.frPyObjects(segmentation, height, width)
        mask = masks.decode(encoded)
        return as_path(mask.max(-1) if mask.ndim == 3 else mask)
