"""Writes the charts of the page as SVG files."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from ..fileio import atomic_write
from .analysis import line_chart
from .evaluation import Evaluation


def write_charts(folder: Path, charts: list[dict[str, Any]], evaluation: Evaluation | None) -> None:
    """Write charts of ``render``, and precision-recall curves, as SVG files named like them."""
    of_kind: dict[str, list] = {}
    for curve in evaluation.curves if evaluation else []:
        series = f'IoU {curve.iou:.2f}', range(101), curve.precision['']
        of_kind.setdefault(f'precision_{curve.kind}', []).append(series)
    charts = charts + [
        line_chart(name, 'Precision, %', 'recall, %', series) for name, series in of_kind.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    # Names with dollar signs are no formulas, and text can be edited.
    with mpl.rc_context({'text.parse_math': False, 'svg.fonttype': 'none'}):
        for chart in charts:
            figure = Figure((5, 3.5), layout='constrained')
            axes = figure.subplots()
            for name, x, y in chart['series']:
                axes.plot(x, y, label=name)
            axes.set(xlabel=chart['x'], ylabel=chart['title'])
            axes.set(xlim=chart.get('xRange'), ylim=chart.get('yRange'))
            axes.legend()
            with atomic_write(folder / f'{chart["id"]}.svg') as file:
                figure.savefig(file, format='svg')
