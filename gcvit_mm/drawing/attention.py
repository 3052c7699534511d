"""Attention maps of GC ViT, computed from the queries, keys and biases of its blocks."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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
"""Random directions for the estimate of the reach; each takes a backward pass."""


@dataclass(frozen=True)
class StageMaps:
    """Maps of the last local and the last global attention of a stage, (B, H, W).

    Attention weights are means over heads, as multiples of uniform attention: 1 is the weight of
    each token of a window if all tokens have equal weights.
    """

    stride: int  # side of a token, in pixels of the image
    window: int  # side of a window, in tokens
    query: tuple[int, int]  # row and column of the query token of ``local_attention``
    local_attention: Tensor  # the query token's weights for its window; NaN outside
    # The global query's weight for each token, averaged over the tokens of the query.
    global_attention: Tensor | None
    # Root mean square of the global query's derivative by the pixels of each token, over its mean.
    reach: Tensor | None


def attention_maps(
    backbone: GCViT, images: Tensor, point: tuple[float, float] | None = None
) -> list[StageMaps]:
    """Compute the attention maps of each stage of a backbone, whose mode and settings are restored.

    The images are normalised, (B, channels, height, width). The point is x and y, in pixels, of the
    query of the local attention; None is the centre.
    """
    height, width = images.shape[2:]
    x, y = (width / 2, height / 2) if point is None else point
    if not (0 <= x < width and 0 <= y < height):
        raise ArgumentError(f'point {x:g}, {y:g} is outside the image of {width} x {height} pixels')
    attentions = [_last_attentions(stage) for stage in backbone.stages]
    with _evaluating(backbone):
        with torch.no_grad():
            calls = _calls(backbone, images, [m for pair in attentions for m in pair])
        reaches = _reaches(backbone, images)
    maps = []
    for stride, (local, global_), reach in zip(STRIDES, attentions, reaches, strict=False):
        query = int(y) // stride, int(x) // stride
        rows, columns = -(-height // stride), -(-width // stride)
        of_query = _of_query(local, *calls[local][0], query=query)[:, :rows, :columns]
        received = _received(global_, *calls[global_][0])[:, :rows, :columns] if global_ else None
        maps.append(StageMaps(stride, local.window_size, query, of_query, received, reach))
    return maps


def attention_probabilities(
    attention: WindowAttention, x: Tensor, index: Tensor, q_global: Tensor | None
) -> Tensor:
    """Compute the softmax of a module's attention scores for a feature map, (B, H, W, C).

    The index is the ``relative_position_index`` of the window; the global query, (B, heads, N,
    C / heads), is None for local attention.

    Returns:
        (B, nW, heads, N, N): for each window, row by row, and each of its N queries, the weights
        of N keys, which sum to one. Padded tokens at the right and the bottom are included.
    """
    window = attention.window_size
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    bias = PositionBias(attention.relative_position_bias_table, index, window)
    tokens = partition(attention.qkv(padded), window, window)
    parts = tokens.unflatten(-1, (3 if q_global is None else 2, bias.heads, -1))
    *own, k, _ = parts.permute(3, 0, 1, 4, 2, 5).unbind()  # (B, nW, heads, N, d)
    q = own[0] if q_global is None else q_global[:, None]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias.whole()
    return scores.softmax(dim=-1)


def _last_attentions(stage: Any) -> tuple[WindowAttention, WindowAttention | None]:
    """Find the last local and the last global attention of a stage."""
    modules = [block.attn for block in stage.blocks]
    return modules[0::2][-1], (modules[1::2] or [None])[-1]


@contextmanager
def _evaluating(backbone: Any) -> Iterator[None]:
    """Use evaluation mode, eager code and activation checkpointing within the context."""
    # Compiled code calls no hooks; PyTorch before 2.6 cannot switch it off.
    stance = getattr(torch.compiler, 'set_stance', None)
    training = backbone.training
    recomputing = [stage.with_cp for stage in backbone.stages]
    backbone.eval()
    for stage in backbone.stages:
        stage.with_cp = True
    try:
        with stance('force_eager') if stance else nullcontext():
            yield
    finally:
        backbone.train(training)
        for stage, with_cp in zip(backbone.stages, recomputing, strict=True):
            stage.with_cp = with_cp


def _calls(backbone: nn.Module, images: Tensor, modules: Iterable[Any]) -> dict[Any, tuple]:
    """Record the inputs and the output of modules, except None, in a forward pass."""
    calls: dict[Any, tuple] = {}
    with ExitStack() as hooks:
        for module in filter(None, modules):
            hooks.enter_context(
                module.register_forward_hook(lambda *call: calls.update({call[0]: call[1:]}))
            )
        backbone(images)
    return calls


@torch.no_grad()
def _of_query(
    attention: WindowAttention,
    x: Tensor,
    index: Tensor,
    q_global: Tensor | None,
    *,
    query: tuple[int, int],
) -> Tensor:
    """Compute the weights of one query token, (B, H, W); NaN outside its window."""
    window = attention.window_size
    rows, columns = (slice(i // window * window, (i // window + 1) * window) for i in query)
    weights = attention_probabilities(attention, x[:, rows, columns], index, q_global)
    row, column = (i % window for i in query)
    weights = weights[:, 0, :, row * window + column].mean(dim=1)  # over heads
    weights = weights.unflatten(1, (window, window)) * window**2
    out = x.new_full(x.shape[:3], torch.nan)
    target = out[:, rows, columns]
    target.copy_(weights[:, : target.shape[1], : target.shape[2]])
    return out


@torch.no_grad()
def _received(
    attention: WindowAttention, x: Tensor, index: Tensor, q_global: Tensor | None
) -> Tensor:
    """Compute the weight of each token, averaged over heads and queries, (B, H, W)."""
    window = attention.window_size
    columns = -(-x.shape[2] // window)
    bands = []
    for band in x.split(window, dim=1):  # all windows at once may need gigabytes
        weights = attention_probabilities(attention, band, index, q_global)
        received = weights.mean(dim=(2, 3))[..., None] * window**2
        bands.append(unpartition(received, window, window, columns)[..., 0])
    return torch.cat(bands, dim=1)[:, : x.shape[1], : x.shape[2]]


@torch.enable_grad()
def _reaches(backbone: Any, images: Tensor) -> list[Tensor | None]:
    """Estimate the influence of the pixels of each token on the global query of each stage.

    The mean of the squared derivative along random directions is the sum of the squared
    derivatives of all elements of the query.
    """
    pixels = images.detach().requires_grad_()
    modules = [stage.global_query for stage in backbone.stages]
    calls = _calls(backbone, pixels, modules)
    passes = PROBES * len(calls)
    with tqdm(total=passes, desc='reach', unit='pass', leave=False, disable=None) as bar:
        return [
            _reach(calls[module][1], pixels, stride, bar) if module else None
            for module, stride in zip(modules, STRIDES, strict=False)
        ]


def _reach(query: Tensor, pixels: Tensor, stride: int, bar: tqdm) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros_like(pixels[:, 0])
    for _ in range(PROBES):
        direction = torch.randn(query.shape, generator=generator).to(query)
        (slope,) = torch.autograd.grad(query, pixels, direction, retain_graph=True)
        squares += slope.square().sum(dim=1)
        bar.update()
    reach = F.avg_pool2d(squares[:, None], stride, ceil_mode=True)[:, 0].sqrt()
    return reach / reach.mean(dim=(1, 2), keepdim=True)
