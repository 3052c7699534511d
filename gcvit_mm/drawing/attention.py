"""Attention of GC ViT as maps over the image, from the modules' own queries, keys and biases."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import ArgumentError
from ..models import GCViT
from ..models.attention import WindowAttention
from ..models.gcvit import STRIDES
from ..models.position_bias import PositionBias
from ..models.windows import partition, unpartition

PROBES = 4
"""Random directions that the reach is estimated from; each costs a backward pass."""


@dataclass(frozen=True)
class StageMaps:
    """What the last local and the last global attention of a stage look at.

    Weights of attention are means over heads, in multiples of even attention: 1 is what each cell
    of a window would have if all had the same.

    Attributes:
        stride: Pixels of the image to a cell.
        window: Side of a window, in cells.
        query: Row and column of the cell that ``local_attention`` is of.
        local_attention: Weights that this cell has for those of its window, (B, H, W) in cells;
            NaN outside of the window.
        global_attention: Weights that each cell is given by the global query, the mean over the
            query's cells, (B, H, W); None where the stage has no global attention.
        reach: Root mean square of what a change of the cell's pixels changes in the global
            query, divided by its mean over the image, (B, H, W); None like the one above.
    """

    stride: int
    window: int
    query: tuple[int, int]
    local_attention: Tensor
    global_attention: Tensor | None
    reach: Tensor | None


def attention_maps(
    backbone: GCViT, images: Tensor, point: tuple[float, float] | None = None
) -> list[StageMaps]:
    """Compute where each stage of a backbone looks in images.

    Args:
        backbone: The backbone, which is left as it is.
        images: What it takes, (B, channels, height, width), normalised.
        point: Column and row, in pixels, of the place whose local attention is wanted; the
            middle by default.

    Returns:
        The maps of each stage, on the images' device.

    Raises:
        ArgumentError: The point is not in the images.
    """
    height, width = images.shape[2:]
    x, y = (width / 2, height / 2) if point is None else point
    if not (0 <= x < width and 0 <= y < height):
        raise ArgumentError(f'the point {x:g}, {y:g} is not in the image of {width} x {height}')
    attentions = [_last_attentions(stage) for stage in _stages(backbone)]
    with _evaluating(backbone):
        seen = _inputs(backbone, images, [m for pair in attentions for m in pair if m])
        reaches = _reaches(backbone, images)
    maps = []
    for stride, (local, global_), reach in zip(STRIDES, attentions, reaches, strict=False):
        query = int(y) // stride, int(x) // stride
        rows, columns = -(-height // stride), -(-width // stride)
        of_query = _of_query(local, *seen[local], query=query)[:, :rows, :columns]
        received = _received(global_, *seen[global_])[:, :rows, :columns] if global_ else None
        maps.append(StageMaps(stride, local.window_size, query, of_query, received, reach))
    return maps


def attention_probabilities(
    attention: WindowAttention, x: Tensor, index: Tensor, q_global: Tensor | None
) -> Tensor:
    """What the softmax in a module gives for its input.

    Args:
        attention: The module.
        x: Map of shape (B, H, W, C), as the module takes it.
        index: ``relative_position_index`` of the window.
        q_global: The image's query, (B, heads, N, C / heads); None where the module has its own.

    Returns:
        (B, nW, heads, N, N): windows row by row, each with N queries and for each of them the
        weights of N keys, which sum to one. Cells of padding, right and at the bottom, included.
    """
    window = attention.window_size
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    bias = PositionBias(attention.relative_position_bias_table, index, window)
    cells = partition(attention.qkv(padded), window, window)
    parts = cells.unflatten(-1, (3 if q_global is None else 2, bias.heads, -1))
    *own, k, _ = parts.permute(3, 0, 1, 4, 2, 5).unbind()  # (B, nW, heads, N, d)
    q = own[0] if q_global is None else q_global[:, None]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias.whole()
    return scores.softmax(dim=-1)


def _stages(backbone: GCViT) -> list[Any]:
    return list(backbone.stages)


def _last_attentions(stage: Any) -> tuple[WindowAttention, WindowAttention | None]:
    """The last local and the last global attention of a stage."""
    modules = [block.attn for block in stage.blocks]
    return modules[0::2][-1], (modules[1::2] or [None])[-1]


@contextmanager
def _evaluating(backbone: GCViT) -> Iterator[None]:
    """Without drop path and compiled code, and recomputing activations rather than keeping them."""
    # Hooks are not called from within compiled code; PyTorch before 2.6 cannot pause it.
    stance = getattr(torch.compiler, 'set_stance', None)
    training = backbone.training
    recomputing = [stage.with_cp for stage in _stages(backbone)]
    backbone.eval()
    for stage in _stages(backbone):
        stage.with_cp = True
    try:
        with stance('force_eager') if stance else nullcontext():
            yield
    finally:
        backbone.train(training)
        for stage, with_cp in zip(_stages(backbone), recomputing, strict=True):
            stage.with_cp = with_cp


@torch.no_grad()
def _inputs(backbone: GCViT, images: Tensor, modules: list[WindowAttention]) -> dict[Any, tuple]:
    """What each of some modules is called with."""
    seen: dict[Any, tuple] = {}

    def note(module: nn.Module, inputs: tuple) -> None:
        seen[module] = inputs

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def _of_query(
    attention: WindowAttention,
    x: Tensor,
    index: Tensor,
    q_global: Tensor | None,
    *,
    query: tuple[int, int],
) -> Tensor:
    """The weights that one cell gives to those of its window, (B, H, W); NaN elsewhere."""
    window = attention.window_size
    rows, columns = (
        slice(cell // window * window, (cell // window + 1) * window) for cell in query
    )
    weights = attention_probabilities(attention, x[:, rows, columns], index, q_global)
    row, column = (cell % window for cell in query)
    own = weights[:, 0, :, row * window + column].mean(dim=1)  # heads
    own = own.unflatten(1, (window, window)) * window**2
    out = x.new_full(x.shape[:3], torch.nan)
    there = out[:, rows, columns]
    there.copy_(own[:, : there.shape[1], : there.shape[2]])
    return out


@torch.no_grad()
def _received(
    attention: WindowAttention, x: Tensor, index: Tensor, q_global: Tensor | None
) -> Tensor:
    """The weights that each cell is given, the mean over heads and queries, (B, H, W)."""
    window = attention.window_size
    columns = -(-x.shape[2] // window)
    bands = []
    for band in x.split(window, dim=1):  # all windows at once may be gigabytes
        weights = attention_probabilities(attention, band, index, q_global)
        received = weights.mean(dim=(2, 3))[..., None] * window**2
        bands.append(unpartition(received, window, window, columns)[..., 0])
    return torch.cat(bands, dim=1)[:, : x.shape[1], : x.shape[2]]


@torch.enable_grad()
def _reaches(backbone: GCViT, images: Tensor) -> list[Tensor | None]:
    """How strongly the cells' pixels influence the global query of each stage.

    The squared derivative along a random direction is, on average, the sum of squares over all
    of the query's numbers.
    """
    queries: list[Tensor | None] = [None] * len(backbone.stages)
    handles = [
        stage.global_query.register_forward_hook(
            lambda _, __, query, i=i: queries.__setitem__(i, query)
        )
        for i, stage in enumerate(_stages(backbone))
        if stage.global_query is not None
    ]
    pixels = images.detach().requires_grad_()
    try:
        backbone(pixels)
    finally:
        for handle in handles:
            handle.remove()
    passes = PROBES * sum(query is not None for query in queries)
    with tqdm(total=passes, desc='reach', unit='pass', leave=False, disable=None) as bar:
        return [
            None if query is None else _reach(query, pixels, stride, bar)
            for query, stride in zip(queries, STRIDES, strict=False)
        ]


def _reach(query: Tensor, pixels: Tensor, stride: int, bar: tqdm) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros_like(pixels[:, 0])
    for _ in range(PROBES):
        direction = torch.randn(query.shape, generator=generator).to(query)
        (slope,) = torch.autograd.grad(query, pixels, direction, retain_graph=True)
        squares += slope.square().sum(dim=1)
        bar.update()
    cells = F.avg_pool2d(squares[:, None], stride, ceil_mode=True)[:, 0].sqrt()
    return cells / cells.mean(dim=(1, 2), keepdim=True)
