"""From a work folder to its page."""

import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import DATASETS, init_default_scope

from ..datasets.preflight import check_data
from ..errors import UserError
from .classification import evaluate_classification
from .detection import evaluate_detection
from .evaluation import Evaluation
from .page import render
from .run import Run
from .segmentation import evaluate_segmentation

ENDS = {'mmdet': '.bbox.json', 'mmseg': '.maps', 'mmpretrain': '.csv'}
"""What predictions of each package are in, behind their PREFIX."""


def write_report(
    run: Run, out: str | os.PathLike, prefix: str | None, notes: Sequence[str] = ()
) -> list[str]:
    """Write the page of a training, which needs no other file and no network.

    Args:
        run: Of ``read_run``.
        out: The HTML file.
        prefix: The PREFIX of ``tools/test.py --out`` whose predictions are shown; None for a page
            without.
        notes: What else to say at the top of the page.

    Returns:
        These notes, and what is missing and how to get it.

    Raises:
        UserError: The predictions cannot be read, or the page cannot be written.
    """
    notes, evaluation = list(notes), None
    if prefix is not None:
        check_predictions(run, prefix)
        try:
            check_data(run.cfg, ('test_dataloader',))
        except UserError as error:
            notes.append(
                f'The predictions are not compared with the ground truth, which is missing: {error}'
            )
        else:
            evaluation = evaluate(run, prefix)
    if not run.steps:
        notes.append(f'There are no curves: {run.folder}/*/vis_data/scalars.json logs no training')
    page = render(run, evaluation, prefix, notes)
    partial = Path(f'{out}.partial')
    try:
        partial.write_text(page, encoding='utf-8')
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f'--out {out}: the page cannot be written: {error}') from error
    return notes


def check_predictions(run: Run, prefix: str) -> None:
    """Raise ``UserError`` where there are no predictions of the run's task at a prefix."""
    end = ENDS.get(run.cfg.get('default_scope'))
    if end is None:
        raise UserError(f'{run.config_file}: default_scope is none of {", ".join(ENDS)}')
    if not os.path.exists(prefix + end):
        raise UserError(
            f'there are no predictions {prefix}{end}: give the PREFIX of tools/test.py --out'
        )


def evaluate(run: Run, prefix: str) -> Evaluation:
    """Compare predictions with the ground truth, as ``tools/test.py`` does.

    Raises:
        UserError: They cannot be read, or are of other images.
    """
    scope = run.cfg.default_scope
    init_default_scope(scope)
    if scope == 'mmpretrain':
        return evaluate_classification(run.cfg, prefix)
    dataset = DATASETS.build({**run.cfg.test_dataloader.dataset, 'pipeline': []})
    return (evaluate_detection if scope == 'mmdet' else evaluate_segmentation)(
        run.cfg, dataset, prefix
    )
