"""Writes the report of a work directory."""

import os
from collections.abc import Sequence

from mmengine.registry import DATASETS

from ..config import default_scope, package_of, task_of
from ..datasets.preflight import check_data
from ..errors import UserError
from ..fileio import atomic_text
from ..work_dir import Run
from .classification import evaluate_classification
from .detection import evaluate_detection
from .evaluation import Evaluation
from .page import render
from .segmentation import evaluate_segmentation


def write_report(
    run: Run, out: str | os.PathLike, prefix: str | None, notes: Sequence[str] = ()
) -> list[str]:
    """Write the report of a training, an HTML page that needs no other file and no network.

    Without the PREFIX of ``tools/test.py --out``, it has no predictions. The notes for the top of
    the page are returned with further ones on what is missing.
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
    if not run.steps:
        notes.append(f'There are no curves: {run.folder}/*/vis_data/scalars.json has no training')
    atomic_text(out, render(run, evaluation, prefix, notes))
    return notes


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
