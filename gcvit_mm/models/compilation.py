"""``torch.compile`` and CUDA graphs for a backbone, applied from outside."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.utils import digit_version
from torch import Tensor, nn

from ..errors import ArgumentError
from .graphs import CudaGraphs

MOST_GRAPHS = 1024
"""PyTorch's own limits, 8 for a function and 256 in all, would end compiling without a word."""


MODES = ('inductor', 'cuda_graphs')


def compile_backbone(backbone: Any, blocks: Sequence[nn.Module], sides: Any, mode: str) -> None:
    """Compile the blocks of a backbone in place, or record it, and pad its images to few sizes.

    The keys of the state dict stay, and blocks of one kind share their code. Images are padded with
    zeros at the right and bottom, larger ones keep their size, and the feature maps are cut back:
    heads see maps of the size that they would see without compilation. Each compilation is logged,
    with its number. Sides are in pixels.
    """
    if isinstance(sides, str) or not isinstance(sides, Sequence):
        raise ArgumentError(f'compile_sides must be a list of pixels, not {sides!r}')
    if any(not isinstance(side, int) or side < 1 for side in sides):
        raise ArgumentError(f'compile_sides must be a list of pixels, not {sides!r}')
    if mode not in MODES:
        raise ArgumentError(f'compile_mode={mode!r} is unknown: choose one of {list(MODES)}')
    if mode == 'cuda_graphs':
        backbone.graphs = CudaGraphs()
    else:
        _compile(blocks)
    backbone.compile_sides = sorted(sides)
    # Functions of the module rather than a wrapper: copies of the backbone (EMA) have their own.
    backbone.register_forward_pre_hook(_pad)
    backbone.register_forward_hook(_cut_back)


def _compile(blocks: Sequence[nn.Module]) -> None:
    if digit_version(torch.__version__) < digit_version('2.5'):
        raise ArgumentError(f'compile_sides needs torch 2.5 or later, this is {torch.__version__}')
    from torch._dynamo import config  # takes seconds, and is wanted here alone

    for name in ('recompile_limit', 'accumulated_recompile_limit'):
        # Their names before PyTorch 2.6 say cache_size_limit.
        own = name if hasattr(config, name) else name.replace('recompile', 'cache_size')
        setattr(config, own, max(getattr(config, own), MOST_GRAPHS))
    for block in blocks:
        block.compile(backend=_inductor, dynamic=False)


def _pad(backbone: Any, inputs: tuple[Tensor]) -> Tensor:
    (x,) = inputs
    height, width = backbone.image_size = x.shape[2:]
    below, beside = (
        next((padded for padded in backbone.compile_sides if padded >= side), side) - side
        for side in (height, width)
    )
    return F.pad(x, (0, beside, 0, below)) if below or beside else x


def _cut_back(backbone: Any, _: Any, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    height, width = backbone.image_size
    return tuple(
        out[:, :, : -(-height // stride), : -(-width // stride)]
        for out, stride in zip(maps, backbone.out_strides, strict=True)
    )


_compiled = 0


def _inductor(graph: Any, inputs: list[Tensor]) -> Callable:
    from torch._dynamo.backends.registry import lookup_backend

    global _compiled
    _compiled += 1
    started = time.perf_counter()
    compiled = lookup_backend('inductor')(graph, inputs)
    maps = [tuple(x.shape) for x in inputs if isinstance(x, Tensor) and x.ndim == 4]
    print_log(
        f'compiled block {_compiled}, for a feature map of {" x ".join(map(str, maps[0][1:3]))}, '
        f'in {time.perf_counter() - started:.0f} s',
        logger='current',
    )
    return compiled
