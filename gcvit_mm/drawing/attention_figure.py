"""Maps of attention beside each other, as one picture."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.dataset import pseudo_collate
from torch import Tensor

from ..errors import UserError
from ..inference import Predictor
from ..inference.images import ImageLike
from ..models import GCViT
from .attention import StageMaps, attention_maps
from .model_inputs import to_pictures

WIDTH, DPI = 16, 100
"""Of the picture, in inches; and its pixels in each."""
COLOURS, OPACITY = 'inferno', 0.6
MARK = 'cyan'
MOST = 99
"""Percentile of a map's values that the brightest colour stands for."""
COLUMNS = (
    'windows',
    'local attention from the cross',
    'global attention received',
    'reach of the global query',
)
CAPTION = (
    'Rows are the stages. Windows: the cells that attend to each other; the one of the cross is '
    'framed. Local attention: how the cell at the cross weighs the cells of its window, in the '
    "stage's last local block. Global attention: how much weight a cell gets from the image's "
    "global query within its window, the mean over the query's cells, in the last global block. "
    'Both are means over heads; 1 is even attention. Reach: how much the pixels of a cell '
    'influence the global query, as the size of its derivative; 1 is the mean over the image.'
)


def attention_figure(
    predictor: Predictor,
    image: ImageLike,
    name: str,
    point: tuple[float, float] | None = None,
) -> Figure:
    """Draw what a model's stages look at in an image, as its test pipeline prepares it.

    Args:
        predictor: The model.
        image: The image.
        name: What the picture calls the image.
        point: Whose local attention is shown: x and y in pixels of the prepared image; None is
            its middle.

    Raises:
        UserError: The backbone is not GC ViT, the image cannot be read, or the point is not in it.
    """
    model: Any = predictor.model
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, GCViT):
        raise UserError(f'attention is drawn for GC ViT, not for {type(backbone).__name__}')
    data = predictor.pipeline.prepare(predictor.read(image))
    batch = model.data_preprocessor(pseudo_collate([data]), False)
    picture = to_pictures(model.data_preprocessor, batch['inputs'])[0]
    # Without the padding that detectors get, right and at the bottom.
    height, width = batch['data_samples'][0].metainfo['img_shape'][:2]
    x, y = point or (width / 2, height / 2)
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(
            f'the point {x:g},{y:g} is not in {name}, which is {width} x {height} pixels for the '
            'model'
        )
    maps = attention_maps(backbone, batch['inputs'], (x, y))
    return draw_attention(picture[:height, :width], maps, f'{name}, {width} x {height} px')


def draw_attention(image: np.ndarray, maps: Sequence[StageMaps], title: str) -> Figure:
    """Draw what an image's stages look at.

    Args:
        image: What the model is given, (H, W, 3) of uint8 in RGB.
        maps: Of each stage, for a batch of this one image.
        title: What stands above all.

    Returns:
        The figure, 1600 pixels wide.
    """
    height, width = image.shape[:2]
    panel = (WIDTH - 3.5) / len(COLUMNS)
    row = panel * height / width + 0.4
    figure = Figure(figsize=(WIDTH, row * len(maps) + 1.8), dpi=DPI, layout='constrained')
    figure.suptitle(title, fontsize=15)
    axes = figure.subplots(len(maps), len(COLUMNS), squeeze=False)
    grey = image.mean(axis=2)
    for i, (row_axes, stage) in enumerate(zip(axes, maps, strict=True)):
        first, *others = row_axes
        _draw_windows(first, image, stage)
        first.set_ylabel(f'stage {i + 1}: {stage.stride} px a cell', fontsize=11)
        values = (stage.local_attention, stage.global_attention, stage.reach)
        for ax, value in zip(others, values, strict=True):
            _draw_map(figure, ax, grey, value, stage)
    for ax, name in zip(axes[0], COLUMNS, strict=True):
        ax.set_title(name, fontsize=12)
    for ax in axes.flat:
        ax.tick_params(labelsize=8)
        ax.set(xlim=(0, width), ylim=(height, 0))
    figure.supxlabel(fill(CAPTION, 190), fontsize=10.5, x=0.01, ha='left')
    return figure


def _draw_windows(ax: Axes, image: np.ndarray, stage: StageMaps) -> None:
    height, width = image.shape[:2]
    ax.imshow(image, extent=(0, width, height, 0))
    side = stage.window * stage.stride
    for x in range(side, width, side):
        ax.axvline(x, color='white', linewidth=0.8)
    for y in range(side, height, side):
        ax.axhline(y, color='white', linewidth=0.8)
    _mark(ax, stage)
    row, column = (cell // stage.window * side for cell in stage.query)
    ax.add_patch(Rectangle((column, row), side, side, fill=False, edgecolor=MARK, linewidth=1.5))
    ax.set_xlabel(f'{stage.window} x {stage.window} cells, {side} px', fontsize=9)


def _draw_map(
    figure: Figure, ax: Axes, grey: np.ndarray, value: Tensor | None, stage: StageMaps
) -> None:
    height, width = grey.shape
    ax.imshow(grey, cmap='gray', vmin=0, vmax=255, extent=(0, width, height, 0))
    if value is None:
        ax.text(0.5, 0.5, 'no global attention', ha='center', transform=ax.transAxes)
        return
    cells = value[0].float().cpu().numpy()
    extent = (0, cells.shape[1] * stage.stride, cells.shape[0] * stage.stride, 0)
    # A few cells may have many times what all others have.
    most = np.nanpercentile(cells, MOST)
    shown = ax.imshow(cells, cmap=COLOURS, alpha=OPACITY, extent=extent, vmin=0, vmax=most)
    bar = figure.colorbar(shown, ax=ax, fraction=0.04, pad=0.02, extend='max')
    bar.ax.tick_params(labelsize=8)
    if value is stage.local_attention:
        _mark(ax, stage)
        _note_padding(ax, np.nansum(cells) / stage.window**2)
    elif value is stage.global_attention:
        windows = np.prod([-(-side // stage.window) for side in cells.shape])
        _note_padding(ax, cells.sum() / stage.window**2 / windows)


def _note_padding(ax: Axes, inside: float) -> None:
    """Say how much weight cells beyond the image get, which windows that reach over it have."""
    if inside < 0.995:
        ax.set_xlabel(f'{1 - inside:.0%} of the weight is on padding', fontsize=9)


def _mark(ax: Axes, stage: StageMaps) -> None:
    row, column = ((cell + 0.5) * stage.stride for cell in stage.query)
    ax.plot(column, row, marker='+', color=MARK, markersize=9, markeredgewidth=1.8)
