"""Importing this module lets mmdet's Swin Transformer use our Triton window attention.

Attention that the kernels do not support stays mmdet's: on other devices, with dropout of
attention weights, with another scale, or with heads of other sizes.
"""

from typing import Any

from mmdet.models.backbones.swin import ShiftWindowMSA
from torch import Tensor

from .window_attention import DTYPES, HEAD_DIMS, MAX_WINDOW, available, window_attention

mmdet_forward = ShiftWindowMSA.forward


def _supported(module: Any, query: Tensor) -> bool:
    attention = module.w_msa
    head_dim = attention.embed_dims // attention.num_heads
    drops = attention.training and attention.attn_drop.p > 0
    return (
        available(query.device)
        and query.dtype in DTYPES
        and head_dim in HEAD_DIMS
        and attention.scale == head_dim**-0.5
        and module.window_size <= MAX_WINDOW
        and not drops
    )


def _shift_window_attention(self: Any, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    if not _supported(self, query):
        return mmdet_forward(self, query, hw_shape)
    attention = self.w_msa
    out = window_attention(
        attention.qkv(query.unflatten(1, tuple(hw_shape))),
        attention.qkv.bias,
        attention.relative_position_bias_table,
        self.window_size,
        shift=self.shift_size,
    )
    return self.drop(attention.proj_drop(attention.proj(out.flatten(1, 2))))


ShiftWindowMSA.forward = _shift_window_attention
