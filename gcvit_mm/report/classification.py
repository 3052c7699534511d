"""Figures and pictures of a table of classes."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..errors import UserError
from ..evaluation.classification_csv import COLUMNS as OF_FILE
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
from .pictures import as_photo, image_reader

COLUMNS = [
    Column('class', 'text'),
    Column('images', 'count', 'of the class'),
    Column('top-1', 'percent', 'share of its images that got the class'),
    Column('top-5', 'percent', 'share of its images with the class among the best five'),
    Column('precision', 'percent', 'share of the images that got the class which are of it'),
]


def evaluate_classification(cfg: Config, prefix: str) -> Evaluation:
    """Evaluate PREFIX.csv, which holds the truth as well.

    Args:
        cfg: The config.
        prefix: The PREFIX of ``tools/test.py --out``.

    Raises:
        UserError: The file is not one of ``tools/test.py``, or an image cannot be read.
    """
    rows = _read(Path(f'{prefix}.csv'))
    evaluation = Evaluation('classification', len(rows))
    rows = [row for row in rows if row['true_label']]
    if not rows:
        return evaluation
    names = _names(rows)
    true = np.array([int(row['true_label']) for row in rows])
    guesses = [list(map(int, row['top5'].split())) for row in rows]
    found = np.array([best[0] for best in guesses])
    among = np.array([t in best for t, best in zip(true, guesses, strict=True)])
    evaluation.metrics = {
        'accuracy/top1': 100 * float((true == found).mean()),
        'accuracy/top5': 100 * float(among.mean()),
    }
    counts = count_pairs(true, found, len(names))
    right, totals, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    in_five = np.bincount(true, among, len(names))
    evaluation.tables.append(
        Table(
            'Accuracy',
            COLUMNS,
            [
                [
                    name,
                    int(totals[k]),
                    percent(right[k], totals[k]),
                    percent(in_five[k], totals[k]),
                    percent(right[k], said[k]),
                ]
                for k, name in enumerate(names)
            ],
        )
    )
    evaluation.confusion = Confusion(counts, names, 'images', 'Of each image, the best class.')
    evaluation.ranking = 'score of the best class: sure and wrong, sure and right'
    # Surely wrong first, surely right last.
    order = sorted(
        rows, key=lambda row: float(row['score']) * (1 if row['true_label'] == row['label'] else -1)
    )
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
    fields = tuple(table.fieldnames or ())
    if fields != OF_FILE:
        raise UserError(
            f'{path} is not a table of tools/test.py: its columns are {table.fieldnames}'
        )
    return rows


def _names(rows: list[dict[str, str]]) -> list[str]:
    """The classes by number, as far as the rows name them."""
    known = {}
    for row in rows:
        known[int(row['true_label'])] = row['true_class']
        known[int(row['label'])] = row['class']
    mentioned = {int(label) for row in rows for label in row['top5'].split()}
    return [known.get(k) or str(k) for k in range(max(mentioned | known.keys()) + 1)]


def _draw(row: dict[str, str], read: Callable[[str], np.ndarray], names: list[str]) -> Picture:
    image = read(row['image'])
    scores = map(float, row['top5_scores'].split())
    labels = map(int, row['top5'].split())
    return Picture(
        name=Path(row['image']).name,
        verdict=f'called {row["class"] or row["label"]}, {100 * float(row["score"]):.0f} %',
        width=image.shape[1],
        height=image.shape[0],
        photo=as_photo(image),
        truth=names[int(row['true_label'])],
        found=[(names[k], 100 * score) for k, score in zip(labels, scores, strict=True)],
    )
