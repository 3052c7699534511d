"""Window attention with a learned relative-position bias, and its implementations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from .windows import partition, unpartition


def eager_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The readable reference: softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q: Queries of shape (B, nW, heads, N, d), or (B, 1, heads, N, d) where all windows of an
            image share one query.
        k: Keys of shape (B, nW, heads, N, d).
        v: Values of shape (B, nW, heads, N, d).
        bias: Relative-position bias of shape (heads, N, N).

    Returns:
        Tensor of shape (B, nW, heads, N, d).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    return scores.softmax(dim=-1).to(v.dtype) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """``eager_attention`` through ``torch.nn.functional.scaled_dot_product_attention``.

    Its fused kernels take four dimensions and a bias of the query's type, so windows are folded
    into the batch.
    """
    shape = v.shape
    q, k, v = (t.expand(shape).flatten(0, 1) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None]).view(shape)


ATTENTION = {'eager': eager_attention, 'sdpa': sdpa_attention}


def resolve_attention(name: str) -> str:
    """The implementation that ``name`` stands for; 'auto' is the fastest that is available.

    Raises:
        ArgumentError: ``name`` is not 'auto' or a key of ``ATTENTION``.
    """
    if name == 'auto':
        return 'sdpa'
    if name not in ATTENTION:
        raise ArgumentError(f'attn_impl={name!r} is unknown: choose one of {["auto", *ATTENTION]}')
    return name


class WindowAttention(nn.Module):
    """Multi-head attention within windows; the query is the window's own or the image's.

    Args:
        dim: Channels.
        num_heads: Heads; divides ``dim``.
        window_size: Side of a window, in cells.
        global_query: The query comes from outside, one for all windows of an image.
        impl: A key of ``ATTENTION``.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: int, global_query: bool, impl: str
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.attention = ATTENTION[impl]
        self.qkv = nn.Linear(dim, dim * (2 if global_query else 3))
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )

    def forward(self, x: Tensor, index: Tensor, q_global: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            x: Map of shape (B, H, W, C).
            index: ``relative_position_index(window_size)``.
            q_global: The image's query, shape (B, heads, N, d); None where the window's own is
                computed.

        Returns:
            Map of shape (B, H, W, C).
        """
        windows = partition(x, self.window_size)  # (B, nW, N, C)
        qkv = self.qkv(windows).unflatten(-1, (-1, self.num_heads, x.shape[-1] // self.num_heads))
        *q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, nW, heads, N, d)
        query = q[0] if q_global is None else q_global[:, None]
        out = self.attention(query, k, v, self.position_bias(index)).transpose(2, 3).flatten(3)
        return unpartition(self.proj(out), self.window_size, (x.shape[1], x.shape[2]))

    def position_bias(self, index: Tensor) -> Tensor:
        """The bias of each pair of cells, shape (heads, N, N)."""
        # An embedding look-up has a much faster backward than advanced indexing.
        return F.embedding(index, self.relative_position_bias_table).permute(2, 0, 1)
