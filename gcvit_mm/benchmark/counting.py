"""Counting of the FLOPs of a step, and of the bytes that it must move."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
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
    """FLOPs of matrix products and convolutions of a step, and the minimum of bytes they move.

    A multiplication and an addition are two FLOPs. The bytes are those that these operations read
    and write if all others (norms, activations, sums, softmax, reordering) are fused into them.
    Attention scores do not count, because fused kernels do not write them.
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
            # In the two products of attention, the scores are larger than both other matrices. In
            # other products, no matrix is.
            scores = packet in _BATCHED and sizes[-1] > sizes[-2]
            self.work.bytes += sum(sizes[:-1] if scores else sizes)
        return out


def _flops_of_convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, *settings: Any
) -> int:
    # PyTorch's count for the gradient of the weight ignores groups, as if depthwise convolutions
    # were dense. Each gradient needs as many FLOPs as the forward pass.
    *_, transposed, _, _, output_mask = settings
    sizes = list(x.shape), list(weight.shape), list(gradient.shape)
    forward: int = conv_flop_count(*sizes, transposed=transposed)
    return forward * sum(output_mask[:2])


def count_work(step: Callable[[], object], fake: bool = False) -> Work:
    """Run a step once, and count its FLOPs and bytes.

    With ``fake``, nothing is computed or allocated, unless shapes depend on values. Attention must
    use ``torch.matmul`` or ``scaled_dot_product_attention``: custom kernels are not counted.
    """
    if not flop_registry:
        raise UserError(f'benchmarks need torch 2.4 or later, this is {torch.__version__}')
    if fake:
        with suppress(RuntimeError), FakeTensorMode(allow_non_fake_inputs=True):
            return count_work(step)
    counter = _Counter()
    # Split attention into its matrix products, whose counts are equal on all devices.
    with sdpa_kernel(SDPBackend.MATH), counter:
        step()
    return counter.work
