"""Parts of the report that explain scores, errors and labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import kinds_of_errors, table_of_errors
from .evaluation import MAX_PICTURES, Column, Evaluation, Picture, Table
from .intervals import LIMITS, interval, resampled_ap
from .matches import Matches, match_all
from .thresholds import over_scores

SURE = 0.3
"""Minimum score of a prediction that casts doubt on a label."""
DOUBTS = {
    'background': 'Perhaps not labelled: confident predictions without an object',
    'classification': 'Perhaps of another class: confident predictions on objects of other classes',
    '': 'Perhaps no object: labels that no prediction overlaps',
}


@dataclass
class Part:
    """A part of the page: an explanation with tables, charts and images (data URIs by title)."""

    title: str
    explanation: str
    tables: list[Table] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)


def line_chart(identity: str, title: str, x: str, series: Sequence, **more: Any) -> dict[str, Any]:
    """Describe a chart of lines, each [name, xs, ys], for the page."""
    plain = [[name, *(np.round(v, 4).tolist() for v in values)] for name, *values in series]
    return dict(id=identity, title=title, x=x, series=plain, small=True, note='', **more)


def interval_part(
    resampled: dict[str, np.ndarray], names: Sequence[str] = (), classes: Any = None, of: str = ''
) -> Part:
    """Tabulate metrics, and that ``of`` each class (resamples, classes), with their intervals."""
    rows = [[name, *interval(values)] for name, values in resampled.items()]
    rows += [[f'{of} of {name}', *interval(classes[:, k])] for k, name in enumerate(names)]
    columns = [Column('metric', 'text'), Column('measured', 'percent'), *LIMITS]
    return Part(
        'Intervals',
        'How far the metrics depend on the choice of test images: 95 % intervals from 200 '
        'random drawings of the test images with replacement.',
        [Table('Metrics with intervals', columns, rows)],
    )


def calibration_part(scores: np.ndarray, correct: np.ndarray) -> Part:
    """Compare scores with the share of correct predictions."""
    bins = np.minimum(9, (10 * scores).astype(int))
    count, total, right = (np.bincount(bins, w, 10) for w in (None, scores, correct))
    used = count > 0
    mean, share = 100 * total[used] / count[used], 100 * right[used] / count[used]
    gap = np.average(np.abs(mean - share), weights=count[used]) if used.any() else 0
    series = [['measured', mean, share], ['ideal', np.array([0, 100]), np.array([0, 100])]]
    ranges = dict(xRange=[0, 100], yRange=[0, 100])
    return Part(
        'Calibration',
        'Scores are calibrated if 80 % of the predictions with a score of 0.8 are correct. '
        f'The mean difference (expected calibration error) is {gap:.1f} %.',
        charts=[line_chart('calibration', 'Correct predictions, %', 'score, %', series, **ranges)],
    )


def threshold_part(matches: Matches, names: Sequence[str]) -> Part:
    """Plot precision, recall and F1 over the score, and choose the best scores."""
    rows: list[list] = []
    for name, label in [*((name, k) for k, name in enumerate(names)), ('all classes', None)]:
        scores, figures = over_scores(matches, label)
        best = figures['F1'].argmax()
        values = scores[best], *(100 * values[best] for values in figures.values())
        rows.insert(0, [name, *(values if best else [None] * 4)])
    grid = np.linspace(0, 1, 101)
    place = np.searchsorted(-scores, -grid, side='right') - 1  # the last that counts
    series = [[name, grid[place > 0], 100 * v[place[place > 0]]] for name, v in figures.items()]
    ranges = dict(xRange=[0, 1], yRange=[0, 100])
    columns = [Column('class', 'text'), Column('score', 'score', 'with the largest F1')]
    columns += [Column(name, 'percent') for name in figures]
    chosen = 'No prediction is correct.'
    if best:
        chosen = f'The best minimum score is {scores[best]:.2f}.'
    return Part(
        'Score threshold',
        f'{chosen} There F1, the harmonic mean of precision and recall at IoU 0.5, is largest.',
        [Table('Minimum scores with the largest F1', columns, [rows[0], *rows[:0:-1]])],
        [line_chart('threshold', 'Precision, recall, F1, %', 'minimum score', series, **ranges)],
    )


def analyse_detections(
    evaluation: Evaluation, truth: Any, results: dict[str, list], draw: Any
) -> None:
    """Add intervals, the score threshold, kinds of errors, calibration, and doubtful labels."""
    for kind, of_kind in results.items():
        if of_kind:
            about = truth.coco, of_kind, kind, truth.categories
            matches = match_all(*about, np.linspace(0.5, 0.95, 10))
            name = dict(bbox='box', segm='mask')[kind]
            resampled = resampled_ap(matches, name)
            classes, found = resampled.pop(''), of_kind
            evaluation.resampled |= resampled
    evaluation.sampled = matches.images
    counted = matches.predictions[~matches.predictions.ignored[:, 0]]
    evaluation.parts += [
        threshold_part(matches, truth.names),
        Part(
            'Kinds of errors',
            'By how much AP50 would rise if only these errors were fixed, by the definitions of '
            'TIDE (Bolya et al. 2020).',
            [table_of_errors(matches)],
        ),
        interval_part(evaluation.resampled, truth.names, classes, f'{name} AP'),
        calibration_part(counted.score, counted.correct[:, 0]),
    ]
    for title, picture in _doubts(matches, found, truth, draw):
        evaluation.doubts.setdefault(title, []).append(picture)


def _doubts(
    matches: Matches, results: list, truth: Any, draw: Any
) -> Iterator[tuple[str, Picture]]:
    """Draw labels that predictions contradict, the most suspicious first."""
    kinds, found, objects = kinds_of_errors(matches), matches.predictions, matches.objects
    for kind in ('background', 'classification'):
        for one in found[(kinds == kind) & (found.score >= SURE)][:MAX_PICTURES]:
            verdict = f'{truth.names[one.label]}, score {one.score:.2f}'
            labels = truth.objects(matches.images[one.image])
            if kind == 'classification':
                verdict += f', labelled as {truth.names[objects.label[one.other_object]]}'
                labels = [matches.annotations[one.other_object]]
            shown = matches.images[one.image], verdict, labels, [results[one.result]]
            yield DOUBTS[kind], draw.picture(*shown)
    lonely = np.ones(len(objects), bool)
    lonely[found.own_object[found.own >= 0.1]] = False
    lonely[found.other_object[found.other >= 0.1]] = False
    area = np.array([np.prod(annotation['bbox'][2:]) for annotation in matches.annotations])
    for i in np.argsort(np.where(lonely, -area, 1), kind='stable')[: min(8, lonely.sum())]:
        verdict = f'labelled as {truth.names[objects.label[i]]}'
        shown = matches.images[objects.image[i]], verdict, [matches.annotations[i]], []
        yield DOUBTS[''], draw.picture(*shown)
