"""How much arithmetic a step does, and how many bytes it cannot help moving."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UserError

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import conv_flop_count, flop_registry
except ImportError:  # before torch 2.4
    flop_registry = {}

_BATCHED = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


@dataclass
class Work:
    """What a step costs on any device.

    Attributes:
        flops: Floating-point operations of matrix products and convolutions, attention's
            included; a multiplication and its addition are two.
        bytes: Sizes of what those read and write, each product by itself: what has to move where
            all else (norms, activations, sums, softmax, reordering) is fused into them. Attention
            scores do not count, a fused kernel never writes them.
    """

    flops: int = 0
    bytes: int = 0


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            if packet is torch.ops.aten.convolution_backward:
                self.work.flops += _flops_of_convolution_backward(*args)
            else:
                self.work.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            outs = out if isinstance(out, tuple | list) else (out,)
            sizes = sorted(x.nbytes for x in (*args, *outs) if isinstance(x, Tensor))
            # The largest matrix of attention's two products is that of the scores; of other
            # products no matrix is larger than both others.
            scores = packet in _BATCHED and sizes[-1] > sizes[-2]
            self.work.bytes += sum(sizes[:-1] if scores else sizes)
        return out


def _flops_of_convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, *settings: Any
) -> int:
    # PyTorch's own count of the weight's gradient leaves groups out: depthwise ones would do the
    # arithmetic of dense ones. Each gradient takes what the forward pass takes.
    *_, transposed, _, _, wanted = settings
    sizes = list(x.shape), list(weight.shape), list(gradient.shape)
    forward: int = conv_flop_count(*sizes, transposed=transposed)
    return forward * sum(wanted[:2])


def count_work(step: Callable[[], object]) -> Work:
    """Run a step once, and count what it does.

    Attention must go through ``torch.matmul`` or ``scaled_dot_product_attention``: other kernels
    of one's own are not seen.

    Raises:
        UserError: This torch is too old.
    """
    if not flop_registry:
        raise UserError(f'benchmarks need torch 2.4 or later, this is {torch.__version__}')
    counter = _Counter()
    # Attention in its parts, which are counted the same way on every device.
    with sdpa_kernel(SDPBackend.MATH), counter:
        step()
    return counter.work
