"""A figure of the attention maps of all stages."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.dataset import pseudo_collate
from torch import Tensor

from ..errors import UserError, printable
from ..inference import Predictor
from ..inference.images import ImageLike
from ..models import GCViT
from .attention import StageMaps, attention_maps
from .model_inputs import to_pictures

WIDTH, DPI = 16, 100
"""Width of the figure in inches, and its pixels per inch."""
COLORMAP, OPACITY = 'inferno', 0.6
MARK = 'cyan'
PERCENTILE = 99
"""Percentile of a map's values at which its colours saturate."""
COLUMNS = ('windows', 'local attention', 'global attention', 'reach of the global query')
CAPTION = (
    'Each row is a stage. Windows: tokens attend to the tokens of their window; the window of the '
    'query token, marked by a cross, is framed. Local attention: the weights of the query token '
    "for the tokens of its window, in the stage's last local block. Global attention: the weight "
    'of the global query for each token, averaged over the tokens of the query, in the last '
    'global block. Both are means over heads; 1 is uniform attention. Reach: the influence of the '
    "token's pixels on the global query, from its derivative; 1 is the mean over the image."
)


def attention_figure(
    predictor: Predictor, image: ImageLike, name: str, point: tuple[float, float] | None = None
) -> Figure:
    """Draw the attention maps of a model for an image, after the model's test pipeline.

    The point is that of the query of the local attention, in pixels of the prepared image; by
    default its centre. The name of the image is for the title and messages.
    """
    model: Any = predictor.model
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, GCViT):
        raise UserError(
            f'the backbone is {type(backbone).__name__}: choose a model with the backbone GCViT'
        )
    data = predictor.pipeline.prepare(predictor.read(image))
    batch = model.data_preprocessor(pseudo_collate([data]), False)
    picture = to_pictures(model.data_preprocessor, batch['inputs'])[0]
    # Images of detectors are padded at the right and the bottom.
    height, width = batch['data_samples'][0].metainfo['img_shape'][:2]
    x, y = point or (width / 2, height / 2)
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(
            f'point {x:g},{y:g} is outside {name}: the pipeline resizes the image to '
            f'{width} x {height} pixels'
        )
    maps = attention_maps(backbone, batch['inputs'], (x, y))
    return draw_attention(picture[:height, :width], maps, f'{name}, {width} x {height} px')


def draw_attention(image: np.ndarray, maps: Sequence[StageMaps], title: str) -> Figure:
    """Draw the attention maps of an image, (H, W, 3) of uint8 in RGB, 1600 pixels wide."""
    height, width = image.shape[:2]
    panel = (WIDTH - 3.5) / len(COLUMNS)
    row = panel * height / width + 0.4
    figure = Figure(figsize=(WIDTH, row * len(maps) + 1.8), dpi=DPI, layout='constrained')
    figure.suptitle(printable(title), fontsize=15, parse_math=False)
    axes = figure.subplots(len(maps), len(COLUMNS), squeeze=False)
    grey = image.mean(axis=2)
    for i, (row_axes, stage) in enumerate(zip(axes, maps, strict=True)):
        first, *others = row_axes
        _draw_windows(first, image, stage)
        first.set_ylabel(f'stage {i + 1}: {stage.stride} px per token', fontsize=11)
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
    row, column = (i // stage.window * side for i in stage.query)
    ax.add_patch(Rectangle((column, row), side, side, fill=False, edgecolor=MARK, linewidth=1.5))
    ax.set_xlabel(f'{stage.window} x {stage.window} tokens, {side} px', fontsize=9)


def _draw_map(
    figure: Figure, ax: Axes, grey: np.ndarray, value: Tensor | None, stage: StageMaps
) -> None:
    height, width = grey.shape
    ax.imshow(grey, cmap='gray', vmin=0, vmax=255, extent=(0, width, height, 0))
    if value is None:
        ax.text(0.5, 0.5, 'no global attention', ha='center', transform=ax.transAxes)
        return
    tokens = value[0].float().cpu().numpy()
    extent = (0, tokens.shape[1] * stage.stride, tokens.shape[0] * stage.stride, 0)
    # A few tokens may have weights many times those of the others.
    maximum = np.nanpercentile(tokens, PERCENTILE)
    shown = ax.imshow(tokens, cmap=COLORMAP, alpha=OPACITY, extent=extent, vmin=0, vmax=maximum)
    bar = figure.colorbar(shown, ax=ax, fraction=0.04, pad=0.02, extend='max')
    bar.ax.tick_params(labelsize=8)
    if value is stage.local_attention:
        _mark(ax, stage)
        _note_padding(ax, np.nansum(tokens) / stage.window**2)
    elif value is stage.global_attention:
        windows = np.prod([-(-side // stage.window) for side in tokens.shape])
        _note_padding(ax, tokens.sum() / stage.window**2 / windows)


def _note_padding(ax: Axes, inside: float) -> None:
    """Label a map with the weight of padded tokens, which windows at the border have."""
    if inside < 0.995:
        ax.set_xlabel(f'{1 - inside:.0%} of the weight is on padding', fontsize=9)


def _mark(ax: Axes, stage: StageMaps) -> None:
    row, column = ((i + 0.5) * stage.stride for i in stage.query)
    ax.plot(column, row, marker='+', color=MARK, markersize=9, markeredgewidth=1.8)
