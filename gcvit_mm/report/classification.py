"""Evaluates the predictions of a classifier for a report."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..errors import UserError
from ..evaluation.classification_csv import COLUMNS as FILE_COLUMNS
from .analysis import calibration_part, interval_part
from .evaluation import (
    Column,
    Confusion,
    Evaluation,
    Picture,
    Table,
    count_pairs,
    extremes,
    percent,
)
from .intervals import resample
from .pictures import as_photo, image_reader

COLUMNS = [
    Column('class', 'text'),
    Column('images', 'count', 'of the class'),
    Column('top-1', 'percent', 'share of images of the class that are predicted as the class'),
    Column('top-5', 'percent', 'share of images with the class among the five best predictions'),
    Column('precision', 'percent', 'share of images predicted as the class that are of the class'),
]


def evaluate_classification(cfg: Config, prefix: str) -> Evaluation:
    """Evaluate PREFIX.csv, which has predictions and the ground truth."""
    rows = _read(Path(f'{prefix}.csv'))
    evaluation = Evaluation('classification', len(rows))
    rows = [row for row in rows if row['true_label']]
    if not rows:
        return evaluation
    names = _names(rows)
    true = np.array([int(row['true_label']) for row in rows])
    top5 = [list(map(int, row['top5'].split())) for row in rows]
    predicted = np.array([labels[0] for labels in top5])
    in_top5 = np.array([t in labels for t, labels in zip(true, top5, strict=True)])
    evaluation.metrics = {
        'accuracy/top1': 100 * float((true == predicted).mean()),
        'accuracy/top5': 100 * float(in_top5.mean()),
    }
    counts = count_pairs(true, predicted, len(names))
    right, totals, predictions = counts.diagonal(), counts.sum(1), counts.sum(0)
    right_top5 = np.bincount(true, in_top5, len(names))
    columns = names, right, right_top5, totals, predictions
    figures = [
        [name, int(total), percent(own, total), percent(own5, total), percent(own, count)]
        for name, own, own5, total, count in zip(*columns, strict=True)
    ]
    evaluation.tables.append(Table('Accuracy', COLUMNS, figures))
    evaluation.confusion = Confusion(
        counts, names, 'images', 'The prediction of an image is the class with the highest score.'
    )
    weights = resample(len(rows))
    hits = {'top-1 accuracy': true == predicted, 'top-5 accuracy': in_top5}
    evaluation.resampled = {name: weights @ hit / len(rows) for name, hit in hits.items()}
    evaluation.sampled = [row['image'] for row in rows]
    scores = np.array([float(row['score']) for row in rows])
    evaluation.parts = [
        interval_part(evaluation.resampled),
        calibration_part(scores, true == predicted),
    ]
    evaluation.ranking = 'the score of the predicted class, negative if the prediction is wrong'
    order = sorted(rows, key=lambda row: float(row['score']) * (1 if _is_right(row) else -1))
    worst, best = extremes(order)
    read = image_reader(cfg)
    evaluation.worst = [_draw(row, read, names) for row in worst if not _is_right(row)]
    evaluation.best = [_draw(row, read, names) for row in best if _is_right(row)]
    return evaluation


def _is_right(row: dict[str, str]) -> bool:
    return row['true_label'] == row['label']


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline='') as file:
        table = csv.DictReader(file)
        rows = list(table)
    if tuple(table.fieldnames or ()) != FILE_COLUMNS:
        raise UserError(
            f'{path} has the columns {table.fieldnames}: give the PREFIX of tools/test.py --out'
        )
    return rows


def _names(rows: list[dict[str, str]]) -> list[str]:
    """List the names of the classes by label; a class without a name gets its label."""
    known = {}
    for row in rows:
        known[int(row['true_label'])] = row['true_class']
        known[int(row['label'])] = row['class']
    labels = {int(label) for row in rows for label in row['top5'].split()}
    return [known.get(k) or str(k) for k in range(max(labels | known.keys()) + 1)]


def _draw(row: dict[str, str], read: Callable[[str], np.ndarray], names: list[str]) -> Picture:
    image = read(row['image'])
    scores = map(float, row['top5_scores'].split())
    labels = map(int, row['top5'].split())
    return Picture(
        name=Path(row['image']).name,
        verdict=f'predicted as {row["class"] or row["label"]}, {100 * float(row["score"]):.0f} %',
        width=image.shape[1],
        height=image.shape[0],
        image=as_photo(image),
        truth=names[int(row['true_label'])],
        predicted=[(names[k], 100 * score) for k, score in zip(labels, scores, strict=True)],
    )
