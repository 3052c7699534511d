"""Writes the report of a work directory."""

import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import DATASETS

from ..config import default_scope, package_of, task_of
from ..datasets.preflight import check_data
from ..errors import UserError
from ..fileio import atomic_text
from ..work_dir import Run
from .analysis import Part
from .charts import write_charts
from .classification import evaluate_classification
from .detection import evaluate_detection
from .evaluation import Evaluation
from .intervals import compare
from .page import all_charts, render
from .segmentation import evaluate_segmentation
from .training import add_training_labels


def write_report(
    run: Run,
    out: str | os.PathLike,
    prefix: str | None,
    notes: Sequence[str] = (),
    other: tuple[Run, str] | None = None,
    charts: str | None = None,
) -> list[str]:
    """Write the report of a run, an HTML page that needs no other file and no network.

    Without the PREFIX of ``tools/test.py --out``, it has no predictions. ``other`` is a run
    to compare, and the PREFIX of its predictions; ``charts`` is a folder for the charts as SVG
    files. The notes for the top of the page are returned with further ones on what is missing.
    """
    notes, evaluation = list(notes), None
    if prefix is not None:
        check_predictions(run, prefix)
        try:
            check_data(run.cfg, ('test_dataloader',))
        except UserError as error:
            notes.append(
                f'Predictions are not compared with the ground truth, which is missing: {error}'
            )
        else:
            evaluation = evaluate(run, prefix)
            if other:
                add_comparison(evaluation, *other)
            if evaluation.task == 'detection':
                try:
                    check_data(run.cfg, ('train_dataloader',))
                    with default_scope(run.cfg):
                        add_training_labels(evaluation, run.cfg)
                except UserError as error:
                    notes.append(f'Training labels are not shown: {error}')
    if not run.steps:
        notes.append(f'There are no curves: {run.folder}/*/vis_data/scalars.json has no training')
    if charts:
        write_charts(Path(charts), all_charts(run, evaluation), evaluation)
    atomic_text(out, render(run, evaluation, prefix, notes))
    return notes


def add_comparison(evaluation: Evaluation, other: Run, prefix: str) -> None:
    """Add the difference of another run's metrics."""
    check_predictions(other, prefix)
    second = evaluate(other, prefix)
    if second.sampled != evaluation.sampled or second.task != evaluation.task:
        raise UserError(
            f'{prefix}.* are predictions for other images: compare trainings with equal test sets'
        )
    text = (
        f'The other run is {other.folder}. Intervals of 95 %, from equal random drawings of the '
        'test images for both: a difference whose interval has 0 in it may be chance.'
    )
    table = compare(evaluation.resampled, second.resampled)
    evaluation.parts.insert(0, Part('Comparison', text, [table]))


def check_predictions(run: Run, prefix: str) -> None:
    """Raise ``UserError`` if there are no predictions of the run's task at a prefix."""
    end = package_of(run.cfg).predictions
    if not os.path.exists(prefix + end):
        raise UserError(
            f'there are no predictions {prefix}{end}: give the PREFIX of tools/test.py --out'
        )


def evaluate(run: Run, prefix: str) -> Evaluation:
    """Compare predictions with the ground truth, like ``tools/test.py``."""
    with default_scope(run.cfg):
        if task_of(run.cfg) == 'classification':
            return evaluate_classification(run.cfg, prefix)
        dataset = DATASETS.build({**run.cfg.test_dataloader.dataset, 'pipeline': []})
        evaluators = dict(detection=evaluate_detection, segmentation=evaluate_segmentation)
        return evaluators[task_of(run.cfg)](run.cfg, dataset, prefix)
