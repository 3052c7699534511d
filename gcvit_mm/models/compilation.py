"""``torch.compile`` for blocks that are alike."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.utils import digit_version
from torch import Tensor, nn

from ..errors import ArgumentError

MOST_GRAPHS = 1024
"""PyTorch's own limits, 8 for a function and 256 in all, would end compiling in silence."""


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile blocks in place: keys of the state dict stay, and equal blocks share their code.

    Each compilation is logged, with its number.

    Raises:
        ArgumentError: PyTorch is too old to share code between blocks.
    """
    if digit_version(torch.__version__) < digit_version('2.5'):
        raise ArgumentError(f'compile_sides needs torch 2.5 or later, this is {torch.__version__}')
    from torch._dynamo import config  # takes seconds, and is wanted here alone

    for name in ('recompile_limit', 'accumulated_recompile_limit'):
        # Their names before PyTorch 2.6 say cache_size_limit.
        own = name if hasattr(config, name) else name.replace('recompile', 'cache_size')
        setattr(config, own, max(getattr(config, own), MOST_GRAPHS))
    for block in blocks:
        block.compile(backend=_inductor, dynamic=False)


_compiled = 0


def _inductor(graph: Any, inputs: list[Tensor]) -> Callable:
    from torch._dynamo.backends.registry import lookup_backend

    global _compiled
    _compiled += 1
    started = time.perf_counter()
    compiled = lookup_backend('inductor')(graph, inputs)
    maps = [tuple(x.shape) for x in inputs if isinstance(x, Tensor) and x.ndim == 4]
    print_log(
        f'compiled block {_compiled}, for a map of {" x ".join(map(str, maps[0][1:3]))} cells, '
        f'in {time.perf_counter() - started:.0f} s',
        logger='current',
    )
    return compiled
