"""Comparison of a file with its model, and what is written of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from .check import Comparison, compare
from .evaluation import Evaluation
from .files import Run
from .graph import ImageModel
from .picture import draw_worst


def prove(
    graph: ImageModel,
    run: Run,
    images: Sequence[Image.Image],
    file: Path,
    about: dict[str, Any],
    evaluation: Evaluation | None = None,
) -> None:
    """Compare a file with its model, write ``FILE.json`` and a picture beside it, and print it.

    Raises:
        UserError: The file differs from the model.
    """
    comparisons = compare(graph, run, images)
    worst = max(comparisons, key=lambda one: one.excess)
    about['comparison'] = [
        dict(images=list(one.images.shape[:3]), off_by=one.differences, allowed=one.bars)
        for one in comparisons
    ]
    _write(about, file)
    draw_worst(worst, about).save(file.with_suffix('.worst.png'))
    names = list(worst.differences)
    print('images  height  width ', *(f'{name:>9}' for name in names))
    for one in comparisons:
        batch, height, width = one.images.shape[:3]
        values = (f'{one.differences[name]:9.1e}' for name in names)
        print(f'{batch:6}  {height:6}  {width:5} ', *values)
    print('allowed'.ljust(21), *(f'{worst.bars[name]:9.1e}' for name in names))
    if worst.excess > 1:
        _refuse(worst)
    if evaluation:
        prove_metrics(evaluation, evaluation(run), file, about)


def prove_metrics(
    evaluation: Evaluation, found: dict[str, float], file: Path, about: dict[str, Any]
) -> None:
    """Compare the metrics ``found`` with a file with those of the model, write and print them.

    Raises:
        UserError: A metric of a file differs by more than ``evaluation.most``.
    """
    about['metrics'] = {
        name: dict(file=round(value, 2), model=round(evaluation.expected[name], 2))
        for name, value in found.items()
    }
    _write(about, file)
    for name, value in found.items():
        print(f'{name}: {value:.1f} with the file, {evaluation.expected[name]:.1f} with the model')
    if not (loss := evaluation.loss(found)) <= evaluation.most:
        raise UserError(
            f'the file is wrong: a metric is off by {loss:.1f}, more than {evaluation.most:g}'
        )


def _write(about: dict[str, Any], file: Path) -> None:
    file.with_suffix('.json').write_text(json.dumps(about, indent=1) + '\n')


def _refuse(worst: Comparison) -> None:
    name = max(worst.differences, key=lambda key: worst.differences[key] / worst.bars[key])
    batch, height, width = worst.images.shape[:3]
    raise UserError(
        f'the file is wrong: with {batch} image(s) of {height}x{width}, its {name} are off by '
        f'{worst.differences[name]:.1e}, more than {worst.bars[name]:g}'
    )
