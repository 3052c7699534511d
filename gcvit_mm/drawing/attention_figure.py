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

WIDTH, DPI = 6.4, 250
"""Width of the figure in inches, and its pixels per inch: legible at the width of a phone."""
FONT = 11
COLORMAP, OPACITY = 'inferno', 0.6
MARK = 'cyan'
PERCENTILE = 99
"""Percentile of a map's values at which its colours saturate."""
COLUMNS = ('local attention', 'global attention', 'reach')
CAPTION = (
    'Each row is a stage. Local attention: tokens attend to the tokens of their window; the '
    'colours are the weights of the query token at the cross, in the last local block. Global '
    'attention: the weight of the global query for each token, averaged over the tokens of the '
    'query, in the last global block. Both are means over heads; 1 is uniform attention. Reach: '
    "the influence of a token's pixels on the global query, from its derivative; 1 is the mean "
    'over the image.'
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
    row = 1.85 * height / width + 0.75
    figure = Figure(figsize=(WIDTH, row * len(maps) + 2.2), dpi=DPI, layout='constrained')
    figure.suptitle(fill(printable(title), 56), fontsize=FONT + 1, parse_math=False)
    axes = figure.subplots(len(maps), len(COLUMNS), squeeze=False)
    grey = np.broadcast_to(image.mean(axis=2, keepdims=True).astype(np.uint8), image.shape)
    for i, (row_axes, stage) in enumerate(zip(axes, maps, strict=True)):
        values = (stage.local_attention, stage.global_attention, stage.reach)
        for ax, value in zip(row_axes, values, strict=True):
            below = image if value is stage.local_attention else grey
            ax.imshow(below, extent=(0, width, height, 0))
            _draw_map(figure, ax, value, stage)
            ax.set(xlim=(0, width), ylim=(height, 0))
            ax.tick_params(labelsize=FONT - 2, labelleft=ax is row_axes[0])
            ax.locator_params(nbins=3)
        row_axes[0].set_ylabel(f'stage {i + 1}: stride {stage.stride}', fontsize=FONT)
    for ax, name in zip(axes[0], COLUMNS, strict=True):
        ax.set_title(name, fontsize=FONT)
    figure.supxlabel(fill(CAPTION, 79), fontsize=FONT, x=0.01, ha='left')
    return figure


def _draw_map(figure: Figure, ax: Axes, value: Tensor | None, stage: StageMaps) -> None:
    if value is None:
        ax.text(0.5, 0.5, 'none', ha='center', transform=ax.transAxes)
        return
    tokens = value[0].float().cpu().numpy()
    rows, columns = (side * stage.stride for side in tokens.shape)
    # A few tokens may have weights many times those of the others.
    maximum = np.nanpercentile(tokens, PERCENTILE)
    shown = ax.imshow(
        tokens, cmap=COLORMAP, alpha=OPACITY, extent=(0, columns, rows, 0), vmin=0, vmax=maximum
    )
    bar = figure.colorbar(shown, ax=ax, location='bottom', aspect=30, pad=0.02, extend='max')
    bar.ax.tick_params(labelsize=FONT - 2)
    bar.ax.locator_params(nbins=4)
    if value is stage.local_attention:
        _draw_windows(ax, stage, columns, rows)
        windows = 1
    elif value is stage.global_attention:
        windows = int(np.prod([-(-side // stage.window) for side in tokens.shape]))
    else:
        return
    # Windows at the border have padded tokens.
    padding = 1 - np.nansum(tokens) / stage.window**2 / windows
    if padding > 0.005:
        bar.set_label(f'{padding:.0%} of weight on padding', fontsize=FONT - 2)


def _draw_windows(ax: Axes, stage: StageMaps, width: int, height: int) -> None:
    side = stage.window * stage.stride
    for x in range(side, width, side):
        ax.axvline(x, color='white', linewidth=0.6)
    for y in range(side, height, side):
        ax.axhline(y, color='white', linewidth=0.6)
    row, column = ((i + 0.5) * stage.stride for i in stage.query)
    ax.plot(column, row, marker='+', color=MARK, markersize=6, markeredgewidth=1.2)
    corner = column // side * side, row // side * side
    ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=MARK, linewidth=1.2))
