"""Figures and pictures of detections in COCO's format."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from pycocotools import mask as masks
from tqdm import tqdm

from ..config import datasets_of, evaluators_of
from ..drawing.palette import class_colors, instance_colors
from ..errors import UserError
from ..work_dir import read_json
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
from .pictures import as_hex, as_path, as_photo, image_reader

IOU, SCORE = 0.5, 0.3
"""Predictions from this score up are counted in images, and as found from this overlap up."""
LEAST = 0.05
"""Predictions below this score are not drawn."""
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
class Thing:
    """An object on a picture.

    Attributes:
        label: Its class.
        color: As '#rrggbb'.
        box: x, y, width and height in pixels of the image.
        path: The outline of its mask for an SVG, empty without one.
        score: None in the ground truth.
        crowd: Whether it stands for many objects, which need not be found.
    """

    label: str
    color: str
    box: list[float]
    path: str
    score: float | None = None
    crowd: bool = False


@dataclass
class _Matches:
    """What was found in an image: places in the lists of objects and predictions."""

    pairs: list[tuple[int, int]] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    invented: list[int] = field(default_factory=list)


def evaluate_detection(cfg: Config, dataset: BaseDataset, prefix: str) -> Evaluation:
    """Evaluate PREFIX.bbox.json and, where there is one, PREFIX.segm.json.

    Args:
        cfg: The config; its ``test_evaluator`` names the annotations.
        dataset: What its ``test_dataloader`` reads.
        prefix: The PREFIX of ``tools/test.py --out``.

    Raises:
        UserError: A file cannot be read, or the predictions are of other images.
    """
    evaluator = next(e for e in evaluators_of(cfg, 'test') if e.type.endswith('CocoMetric'))
    truth = _quietly(_api()[0], evaluator.get('ann_file') or dataset.ann_file)
    categories = truth.getCatIds(catNms=list(dataset.metainfo['classes']))
    names = [truth.cats[i]['name'] for i in categories]
    evaluation = Evaluation('detection', len(truth.imgs))
    results = {}
    for kind in KINDS:
        path = Path(f'{prefix}.{kind}.json')
        if path.is_file():
            results[kind] = _read_results(path, truth)
            if results[kind]:
                measured = _measure(kind, evaluator, truth, results[kind], categories)
                _add_figures(evaluation, kind, measured, truth, categories, names)
    if any(results.values()):
        _look_at_images(evaluation, cfg, dataset, truth, results, categories, names)
    return evaluation


def _api() -> tuple[Any, Any]:
    """The fast API where it is installed, as ``FasterCocoMetric`` does; figures are the same."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as COCOeval_faster
    return COCO, COCOeval_faster


def _quietly(call: Any, *arguments: Any) -> Any:
    """Without the lines that the API prints."""
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):
        return call(*arguments)


def _read_results(path: Path, truth: Any) -> list[dict]:
    results = read_json(path)
    if not isinstance(results, list):
        raise UserError(f'{path} is not of COCO: it holds no list of results')
    unknown = {result['image_id'] for result in results} - truth.imgs.keys()
    if unknown:
        raise UserError(
            f'{path} holds predictions for {len(unknown)} images that are not in the annotations '
            f'({min(unknown)} for example): it is of another data set'
        )
    return results


def _measure(
    kind: str, evaluator: Any, truth: Any, results: list[dict], categories: list[int]
) -> Any:
    """COCO's evaluation with the settings of the evaluator; arrays are in its ``eval``."""
    results = [dict(result) for result in results]
    if kind == 'segm':
        for result in results:  # as mmdet does: sizes are those of the masks then
            result.pop('bbox', None)
    measured = _api()[1](truth, _quietly(truth.loadRes, results), kind)
    measured.params.catIds = categories
    measured.params.maxDets = list(evaluator.get('proposal_nums') or (100, 300, 1000))
    thresholds = evaluator.get('iou_thrs')
    if thresholds is not None:
        measured.params.iouThrs = np.atleast_1d(np.array(thresholds, float))
    _quietly(measured.evaluate)
    _quietly(measured.accumulate)
    return measured


def _add_figures(
    evaluation: Evaluation,
    kind: str,
    measured: Any,
    truth: Any,
    categories: list[int],
    names: list[str],
) -> None:
    # (thresholds, recalls, classes, sizes) and (thresholds, classes, sizes), at most detections.
    precision = np.asarray(measured.eval['precision'])[..., -1]
    recall = np.asarray(measured.eval['recall'])[..., -1]
    # The API has sorted the categories.
    order = [measured.params.catIds.index(category) for category in categories]
    precision, recall = precision[:, :, order], recall[:, order]
    at = {f'{t:.2f}': i for i, t in enumerate(measured.params.iouThrs)}

    def average(figures: np.ndarray) -> float:
        known = figures[figures > -1]
        return float(known.mean()) if known.size else -1.0

    def of(classes: Any) -> dict[str, float]:
        chosen, found = precision[:, :, classes], recall[:, classes]
        figures = {'': average(chosen[..., 0])}
        for threshold in ('0.50', '0.75'):
            i = at.get(threshold)
            figures[f'_{threshold[2:]}'] = -1.0 if i is None else average(chosen[i, ..., 0])
        figures['AR'] = average(found[..., 0])
        for i, size in enumerate(SIZES.values(), start=1):
            figures[f'_{size}'] = average(chosen[..., i])
        return figures

    overall = of(slice(None))
    evaluation.metrics |= {f'coco/{kind}_mAP{end}': overall[end] for end in overall if end != 'AR'}
    counts = Counter(
        annotation['category_id']
        for annotation in truth.anns.values()
        if not annotation.get('iscrowd', 0)
    )
    rows = [
        [name, counts[category], *map(_in_percent, of([i]).values())]
        for i, (category, name) in enumerate(zip(categories, names, strict=True))
    ]
    evaluation.tables.append(Table(f'{KINDS[kind].capitalize()} AP', COLUMNS, rows, kind))
    for threshold in ('0.50', '0.75'):
        if threshold in at:
            curves = precision[at[threshold], ..., 0]  # (recalls, classes)
            by_class = {
                name: (100 * curves[:, i]).round(1).tolist()
                for i, name in enumerate(names)
                if curves[0, i] > -1
            }
            if by_class:
                mean = np.mean(list(by_class.values()), 0).round(1).tolist()
                evaluation.curves.append(
                    PrecisionRecall(kind, float(threshold), {'': mean, **by_class})
                )


def _in_percent(figure: float) -> float | None:
    return None if figure < 0 else 100 * figure


def _look_at_images(
    evaluation: Evaluation,
    cfg: Config,
    dataset: BaseDataset,
    truth: Any,
    results: dict[str, list[dict]],
    categories: list[int],
    names: list[str],
) -> None:
    """Count confusions, and choose images to show."""
    label_of = {category: i for i, category in enumerate(categories)}
    by_image = defaultdict(list)
    for result in results.get('segm') or results['bbox']:
        if result['category_id'] in label_of:
            by_image[result['image_id']].append(result)
    background = len(names)
    true, found, ranked = [], [], []
    for image_id in tqdm(sorted(truth.imgs), desc='images', leave=False):
        objects = [a for a in truth.imgToAnns[image_id] if a['category_id'] in label_of]
        sure = [result for result in by_image[image_id] if result['score'] >= SCORE]
        matches = match(objects, sure)
        labels = [label_of[a['category_id']] for a in objects]
        guesses = [label_of[result['category_id']] for result in sure]
        pairs = [
            *((labels[i], guesses[j]) for i, j in matches.pairs),
            *((labels[i], background) for i in matches.missed),
            *((background, guesses[j]) for j in matches.invented),
        ]
        if pairs:
            true += [i for i, _ in pairs]
            found += [j for _, j in pairs]
            right = sum(i == j for i, j in pairs)
            total = 2 * len(matches.pairs) + len(matches.missed) + len(matches.invented)
            f1 = 2 * right / total
            wrong = len(pairs) - right
            # Among equals, many mistakes are worse and many objects better.
            ranked.append(((f1, -wrong, right), image_id, matches, right))
    counts = count_pairs(np.array(true), np.array(found), background + 1)
    evaluation.confusion = Confusion(
        counts,
        [*names, 'background'],
        'objects',
        f'Predictions with a score of at least {SCORE}, matched by boxes with an IoU of at least '
        f'{IOU}: first with objects of their own class, what is left with others. In the column '
        'of the background are objects that were missed, in its row predictions of nothing.',
    )
    evaluation.ranking = f'F1 of objects at IoU {IOU}, predictions from a score of {SCORE} up'
    ranked.sort(key=lambda entry: entry[0])
    draw = _Drawing(cfg, dataset, truth, by_image, label_of, names)
    evaluation.worst, evaluation.best = (
        [draw(image_id, figures[0], matches, right) for figures, image_id, matches, right in chosen]
        for chosen in extremes(ranked)
    )


def match(objects: list[dict], found: list[dict]) -> _Matches:
    """Match predictions to the objects of an image by their boxes.

    Predictions go by score, each to the free object of its class that it overlaps most; then what
    is left goes to objects of other classes. Predictions within crowd regions do not count.

    Args:
        objects: Annotations in COCO's format.
        found: Predictions in COCO's format.
    """
    crowd = [annotation.get('iscrowd', 0) for annotation in objects]
    boxes = [[np.array(each['bbox'], float) for each in group] for group in (found, objects)]
    overlaps = np.zeros((len(found), len(objects)))
    if objects and found:
        overlaps = masks.iou(np.array(boxes[0]), np.array(boxes[1]), crowd)
    order = sorted(range(len(found)), key=lambda j: -found[j]['score'])
    free = {i for i in range(len(objects)) if not crowd[i]}
    matches, taken = _Matches(), set()
    for same in (True, False):
        for j in order:
            category = found[j]['category_id']
            fits = [
                i
                for i in free
                if overlaps[j, i] >= IOU and (objects[i]['category_id'] == category) is same
            ]
            if j not in taken and fits:
                best = max(fits, key=lambda i: overlaps[j, i])
                matches.pairs.append((best, j))
                free.remove(best)
                taken.add(j)
    matches.missed = sorted(free)
    in_crowd = [any(c and o >= IOU for c, o in zip(crowd, row, strict=True)) for row in overlaps]
    matches.invented = [j for j in order if j not in taken and not in_crowd[j]]
    return matches


@dataclass
class _Drawing:
    cfg: Config
    dataset: BaseDataset
    truth: Any
    found: dict[Any, list[dict]]
    label_of: dict[int, int]
    names: list[str]

    def __post_init__(self) -> None:
        infos = (self.dataset.get_data_info(i) for i in range(len(self.dataset)))
        self.paths = {info['img_id']: info['img_path'] for info in infos}
        self.read = image_reader(self.cfg)
        (settings, *_) = datasets_of(self.cfg.test_dataloader)
        self.palette = class_colors(self.cfg, settings, self.dataset.metainfo['classes'])

    def __call__(self, image_id: Any, f1: float, matches: _Matches, right: int) -> Picture:
        image = self.truth.imgs[image_id]
        mixed_up = len(matches.pairs) - right
        parts = [
            f'{right} found',
            *([f'{mixed_up} of another class'] if mixed_up else []),
            *([f'{len(matches.missed)} missed'] if matches.missed else []),
            *([f'{len(matches.invented)} not there'] if matches.invented else []),
        ]
        objects = [a for a in self.truth.imgToAnns[image_id] if a['category_id'] in self.label_of]
        drawn = [result for result in self.found[image_id] if result['score'] >= LEAST]
        return Picture(
            name=os.path.basename(image['file_name']),
            verdict=f'F1 {100 * f1:.0f}: ' + ', '.join(parts),
            width=image['width'],
            height=image['height'],
            photo=as_photo(self.read(self.paths[image_id])),
            truth=list(self._things(objects, image)),
            found=list(self._things(drawn, image)),
        )

    def _things(self, annotations: list[dict], image: dict) -> Iterator[Thing]:
        best_first = sorted(annotations, key=lambda each: -each.get('score', 1))
        labels = [self.label_of[annotation['category_id']] for annotation in best_first]
        shown = zip(best_first, labels, instance_colors(labels, self.palette), strict=True)
        for annotation, label, color in reversed(list(shown)):  # the last is on top
            yield Thing(
                self.names[label],
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
