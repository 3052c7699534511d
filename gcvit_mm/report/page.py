"""Renders the report as HTML."""

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..compat.packages import PACKAGES
from ..version import __version__
from ..work_dir import Run, predicted_at, read_metrics
from .evaluation import Evaluation

MAX_POINTS = 400
"""Maximum number of points of a curve; more points are averaged."""
MAX_SERIES = 8
"""Maximum number of curves of a chart; the smallest losses are omitted."""
MAX_MATRIX = 30
"""Maximum number of classes of a legible confusion matrix."""
METRICS = {
    'coco/bbox_mAP': 'box AP',
    'coco/segm_mAP': 'mask AP',
    'mIoU': 'mIoU',
    'mAcc': 'mean accuracy',
    'aAcc': 'pixel accuracy',
    'accuracy/top1': 'top-1 accuracy',
    'accuracy/top5': 'top-5 accuracy',
}
"""The headline metrics; the main metric of each task comes first."""
ENDS = {'50': '50', '75': '75', 's': ' small', 'm': ' medium', 'l': ' large'}


def render(run: Run, evaluation: Evaluation | None, prefix: str | None, notes: list[str]) -> str:
    """Render the report of a run as HTML that needs no other file."""
    package = PACKAGES.get(run.cfg.get('default_scope'))
    metrics = evaluation.metrics if evaluation else {}
    metrics = metrics or (read_metrics(prefix) if prefix else {})
    css, js = _piece('page.css'), _piece('page.js')
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters['figure'] = figure
    template = environment.from_string(_piece('page.html'))
    charts = charts_of(run)
    parts = evaluation.parts if evaluation else []
    data = {
        'charts': {chart['id']: chart for chart in all_charts(run, evaluation)},
        'curves': [vars(curve) for curve in evaluation.curves] if evaluation else [],
    }
    return template.render(
        run=run,
        evaluation=evaluation,
        notes=notes,
        title=Path(run.config_file).stem,
        task=package.task.capitalize() if package else 'Training',
        tiles=_tiles(metrics),
        sizes=_sizes(metrics),
        facts=_facts(run, evaluation, prefix),
        best=_best(run),
        charts=[chart for chart in charts if not chart['small']],
        small_charts=[chart for chart in charts if chart['small']],
        speed=_speed(run),
        validations=_validation_table(run),
        parts=parts,
        max_matrix=MAX_MATRIX,
        version=__version__,
        css=Markup(css),
        js=Markup(js),
        policy=_policy(css, js),
        data=data,
    )


def _piece(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding='utf-8')


def _policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy, which allows only this script, this style and images."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def figure(value: float | None) -> str:
    """Format a percentage with one decimal."""
    return '–' if value is None else f'{value:.1f}'  # noqa: RUF001


def label(name: str) -> str:
    """Return the display name of a metric."""
    for start, title in METRICS.items():
        end = name.removeprefix(f'{start}_')
        if name == start or end in ENDS:
            return title + ENDS.get(end, '')
    return name


def in_percent(name: str, value: Any) -> float | None:
    """Convert a metric to percent; those of COCO are from 0 to 1, or -1 without ground truth."""
    if value is None or not math.isfinite(value):
        return None
    if name.startswith('coco/'):
        return None if value < 0 else 100 * value
    return value


def _tiles(metrics: dict[str, float]) -> list[tuple[str, float | None]]:
    """List the headline metrics."""
    names = [f'{name}{end}' for name in METRICS for end in ('', '_50', '_75')]
    return [(label(name), in_percent(name, metrics[name])) for name in names if name in metrics]


def _sizes(metrics: dict[str, float]) -> list[tuple[str, list[float | None]]]:
    """List the box AP and mask AP of small, medium and large objects."""
    return [
        (METRICS[name], [in_percent(name, metrics[f'{name}_{size}']) for size in 'sml'])
        for name in ('coco/bbox_mAP', 'coco/segm_mAP')
        if f'{name}_s' in metrics
    ]


def _best(run: Run) -> str:
    """Describe the best validation."""
    for name in METRICS:
        known = [entry for entry in run.validations if name in entry]
        if known:
            best = max(known, key=lambda entry: entry[name])
            value = figure(in_percent(name, best[name]))
            return f'{label(name)} {value} at {run.unit} {best["step"]:,}'
    return ''


def _facts(run: Run, evaluation: Evaluation | None, prefix: str | None) -> list[tuple[str, str]]:
    cfg = run.cfg
    backbone = cfg.model.get('backbone') or {}
    arch = backbone.get('arch')
    facts = [
        ('Model', f'{cfg.model.type}, backbone {backbone.get("type", "?")}'),
        ('Data', _data(run, evaluation)),
        ('Work directory', str(run.folder)),
    ]
    if isinstance(arch, str):
        facts[0] = ('Model', f'{facts[0][1]} {arch}')
    if run.started:
        length = f', {duration(run.seconds)}' if run.seconds else ''
        facts.append(('Trained', f'{run.started:%d %B %Y, %H:%M}{length}'))
    if run.steps:
        last = run.steps[-1]
        counts = [('epoch', max(last.get('epoch') or 0, run.epoch))] if run.unit == 'epoch' else []
        counts.append(('step', max(last['step'], run.step)))
        parts = [f'{n:,} {unit}{"s" * (n != 1)}' for unit, n in counts if n]
        facts.append(('Length', ', '.join(parts)))
    best = _best(run)
    if best:
        facts.append(('Best validation', best))
    for name in ('parameters', 'effective batch', 'precision', 'device'):
        if name in run.environment:
            facts.append((name.capitalize(), run.environment[name]))
    if prefix:
        when = datetime.fromtimestamp(predicted_at(prefix))
        facts.append(('Predictions', f'{prefix}.*, of {when:%d %B %Y, %H:%M}'))
    return facts


def _data(run: Run, evaluation: Evaluation | None) -> str:
    dataset = run.cfg.test_dataloader.dataset
    place = dataset.get('data_root')
    count = f', {evaluation.images:,} images evaluated' if evaluation else ''
    return dataset.type + (f' in {place}' if place else '') + count


def duration(seconds: float) -> str:
    """Format a duration with at most two units."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f'{seconds:.0f} s'
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f'{days} d {hours} h'
    return f'{hours} h {minutes} min' if hours else f'{minutes} min'


# --- Charts -----------------------------------------------------------------------------------


def all_charts(run: Run, evaluation: Evaluation | None) -> list[dict[str, Any]]:
    """List the charts of the training and of its evaluation."""
    parts = evaluation.parts if evaluation else []
    return charts_of(run) + [chart for part in parts for chart in part.charts]


def charts_of(run: Run) -> list[dict[str, Any]]:
    """List the charts over the steps of a run; each of ``series`` is [name, x, y]."""
    losses = {name for entry in run.steps for name in entry if 'loss' in name}
    charts = [
        _chart('loss', 'Losses', 'step', run.steps, _largest(run.steps, losses)),
        _validation_chart(run),
        _chart('lr', 'Learning rate', 'step', run.steps, ['lr'], small=True),
        _chart('grad', 'Gradient norm', 'step', run.steps, ['grad_norm'], small=True),
        _chart('time', 'Seconds per step', 'step', run.steps, ['time', 'data_time'], small=True),
        _chart('memory', 'GPU memory, MB', 'step', run.steps, ['memory'], small=True),
    ]
    omitted = len(losses) - MAX_SERIES
    if omitted > 0:
        charts[0]['note'] = f'The {omitted} smallest losses are not shown.'
    return [chart for chart in charts if chart['series']]


def _largest(entries: Sequence[dict], names: set[str]) -> list[str]:
    """List the total loss and the largest of its parts."""
    size = {name: np.nanmean([entry.get(name, np.nan) for entry in entries]) for name in names}
    return sorted(names, key=lambda name: (name != 'loss', -size[name]))[:MAX_SERIES]


def _chart(
    identity: str,
    title: str,
    x: str,
    entries: Sequence[dict],
    names: Sequence[str],
    *,
    small: bool = False,
) -> dict[str, Any]:
    series = []
    for name in names:
        points = [(entry['step'], entry[name]) for entry in entries if _is_finite(entry.get(name))]
        if points:
            series.append([label(name), *_thin(points)])
    return dict(id=identity, title=title, x=x, series=series, small=small, note='')


def _validation_chart(run: Run) -> dict[str, Any]:
    entries = [
        {name: in_percent(name, value) for name, value in entry.items()}
        for entry in run.validations
    ]
    names = [f'{name}{end}' for name in METRICS for end in ('', '_50')]
    return _chart('metrics', 'Validation, %', run.unit, entries, names)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thin(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Average neighbouring points, so that at most ``MAX_POINTS`` remain."""
    parts = np.array_split(np.array(points, float), min(len(points), MAX_POINTS))
    means = [part.mean(0) for part in parts]
    return [round(float(x)) for x, _ in means], [float(f'{y:.4g}') for _, y in means]


# --- Tables -----------------------------------------------------------------------------------


def _validation_table(run: Run) -> dict[str, Any]:
    names = [
        name
        for name in dict.fromkeys(key for entry in run.validations for key in entry)
        if name not in ('step', 'at', 'time', 'data_time')
        and re.match('|'.join(map(re.escape, METRICS)), name)
    ]
    rows = [
        [entry['step'], *(in_percent(n, entry[n]) if n in entry else None for n in names)]
        for entry in run.validations
    ]
    return dict(names=[label(name) for name in names], rows=rows)


def _speed(run: Run) -> list[tuple[str, str]]:
    """Summarise the time and memory of the training steps."""

    def values(name: str) -> list[float]:
        return [entry[name] for entry in run.steps if _is_finite(entry.get(name))]

    facts = []
    time, memory, data_time = values('time'), values('memory'), values('data_time')
    if time:
        facts.append(('Seconds per step', f'{np.mean(time):.3g}'))
        facts.append(('Waiting for data', f'{100 * sum(data_time) / sum(time):.1f} %'))
    if memory:
        facts.append(('Peak GPU memory', f'{max(memory):,.0f} MB'))
    return facts
