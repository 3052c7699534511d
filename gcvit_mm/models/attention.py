"""Window attention with a learned relative-position bias, and its implementations.

A feature map that the windows do not divide is padded with zeros before the linear layer that
computes queries, keys and values. The padded tokens therefore have the bias of that layer as key
and value, and take part in the softmax. All implementations have one signature:

    qkv: Queries, keys and values, (B, H, W, 3 C), or keys and values, (B, H, W, 2 C). The channels
        are ordered by query / key / value, head, and channel of the head.
    padding: ``qkv`` of a padded token, (3 C,) or (2 C,).
    q_global: The query that all windows of an image share, (B, heads, N, C / heads) with N tokens
        in a window; None if ``qkv`` has the queries.
    bias: The ``PositionBias`` of the windows.

They return a feature map (B, H, W, C).
"""

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from .position_bias import PositionBias
from .windows import partition, segments, unpartition

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:  # before torch 2.3
    sdpa_kernel = None  # type: ignore[assignment]


def eager_attention(
    qkv: Tensor, padding: Tensor, q_global: Tensor | None, bias: PositionBias
) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + bias) v in windows of a padded feature map.

    This is the readable reference for the other implementations.
    """
    B, H, W, channels = qkv.shape
    window = bias.window
    rows, columns = -(-H // window), -(-W // window)
    padded = padding.to(qkv.dtype).expand(B, rows * window, columns * window, channels).clone()
    padded[:, :H, :W] = qkv
    parts = 3 if q_global is None else 2
    *q, k, v = _split_heads(partition(padded, window, window), parts, bias.heads)
    query = q[0] if q_global is None else q_global[:, None]
    scores = (query * query.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias.whole()
    out = scores.softmax(dim=-1).to(v.dtype) @ v
    return unpartition(_join_heads(out), window, window, columns)[:, :H, :W]


def sdpa_attention(
    qkv: Tensor, padding: Tensor, q_global: Tensor | None, bias: PositionBias
) -> Tensor:
    """Compute window attention by ``scaled_dot_product_attention``, without padding.

    All P padded tokens of a window have one key k and one value v, and differ in their bias b_p:

        sum_p exp(q k + b_p) v = exp(q k + log sum_p exp(b_p)) v

    One key with the bias log sum_p exp(b_p) stands for all of them. Whole windows and the windows
    at the right and bottom border are computed separately, each with its real tokens.
    """
    window = bias.window
    pieces = []
    for ys, height in segments(qkv.shape[1], window):
        row = []
        for xs, width in segments(qkv.shape[2], window):
            whole = height == width == window
            mask = (bias.whole() if whole else bias.cut_off(height, width)).to(qkv.dtype)
            query = None
            if q_global is not None:
                grid = q_global.unflatten(2, (window, window))
                query = grid[:, :, :height, :width].flatten(2, 3).to(qkv.dtype)
            row.append(_attend(qkv[:, ys, xs], padding, query, mask, height, width))
        pieces.append(row)
    return _assemble(pieces)


def padded_attention(
    qkv: Tensor, padding: Tensor, q_global: Tensor | None, bias: PositionBias
) -> Tensor:
    """Compute window attention on a padded feature map, in one graph for all sizes."""
    images, height, width, channels = qkv.shape
    window = bias.window
    # PyTorch's symbolic shapes simplify this expression, but not -height % window.
    below = (height + window - 1) // window * window - height
    beside = (width + window - 1) // window * window - width
    x = torch.cat([qkv, padding.expand(images, height, beside, channels)], dim=2)
    x = torch.cat([x, padding.expand(images, below, width + beside, channels)], dim=1)
    out = _attend(x, padding, q_global, bias.whole(), window, window)
    return out.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def _attend(
    qkv: Tensor, padding: Tensor, query: Tensor | None, bias: Tensor, height: int, width: int
) -> Tensor:
    """Attend in windows that divide the feature map.

    The query is (B, heads, height * width, d), or None if ``qkv`` has it. The bias is (heads, n, n)
    or, with a column for the padding, (heads, n, n + 1). Returns the windows by row and column,
    (B, rows, height, columns, width, C).
    """
    tokens = partition(qkv, height, width)  # (B, nW, n, parts * C)
    images, windows, n = tokens.shape[:3]
    if bias.shape[2] > n:
        padded = padding.to(tokens.dtype).expand(images, windows, 1, -1)
        tokens = torch.cat([tokens, padded], dim=2)
    *q, k, v = _split_heads(tokens, 3 if query is None else 2, len(bias))
    query = q[0][..., :n, :] if query is None else query[:, None].expand(-1, windows, -1, -1, -1)
    # The fused kernels take four dimensions: windows are folded into the batch.
    q4, k4, v4 = (t.flatten(0, 1) for t in (query, k, v))
    with without_cudnn() if q4.is_cuda else nullcontext():
        out = F.scaled_dot_product_attention(q4, k4, v4, attn_mask=bias[None])
    out = _join_heads(out.unflatten(0, (images, windows))).unflatten(2, (height, width))
    return out.unflatten(1, (-1, qkv.shape[2] // width)).transpose(2, 3)


def without_cudnn() -> AbstractContextManager:
    """A context in which attention on GPUs is PyTorch's memory-efficient one, and not cuDNN's.

    cuDNN refuses queries that windows share (pytorch #175764), gives NaN in gradients for some
    lengths (#196678), and makes a plan for each new image size, in up to half a second.
    """
    if sdpa_kernel is None:  # these releases have no attention by cuDNN
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _assemble(pieces: list[list[Tensor]]) -> Tensor:
    """Join pieces (B, rows, height, columns, width, C) to a feature map (B, H, W, C)."""
    if torch.is_grad_enabled():
        maps = [[piece.flatten(3, 4).flatten(1, 2) for piece in row] for row in pieces]
        bands = [torch.cat(row, dim=2) if len(row) > 1 else row[0] for row in maps]
        return torch.cat(bands, dim=1) if len(bands) > 1 else bands[0]
    # Without gradients, one pass over the feature map is enough instead of three.
    heights = [row[0].shape[1] * row[0].shape[2] for row in pieces]
    widths = [piece.shape[3] * piece.shape[4] for piece in pieces[0]]
    first = pieces[0][0]
    out = first.new_empty(len(first), sum(heights), sum(widths), first.shape[-1])
    for band, row in zip(out.split(heights, dim=1), pieces, strict=True):
        for part, piece in zip(band.split(widths, dim=2), row, strict=True):
            part.unflatten(2, piece.shape[3:5]).unflatten(1, piece.shape[1:3]).copy_(piece)
    return out


def _split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split (B, nW, n, parts * C) into parts of shape (B, nW, heads, n, d)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind()


def _join_heads(x: Tensor) -> Tensor:
    """Join the heads, (B, nW, heads, n, d) -> (B, nW, n, C)."""
    return x.transpose(2, 3).flatten(3)


def triton_attention(
    qkv: Tensor, padding: Tensor, q_global: Tensor | None, bias: PositionBias
) -> Tensor:
    """Compute window attention by our Triton kernels, which read and write the feature map."""
    if not hasattr(torch.library, 'custom_op'):
        raise ArgumentError(
            f"attn_impl='triton' needs torch 2.4 or later, this is {torch.__version__}"
        )
    from .kernels.window_attention import window_attention

    return window_attention(qkv, padding, bias.table, bias.window, q_global)


RECORDING = ContextVar('RECORDING', default=False)
"""Whether kernels are being recorded for a CUDA graph."""


def prefers_triton(device: torch.device, dtype: torch.dtype, window: int, head_dim: int) -> bool:
    """Whether our Triton kernels are the fastest attention: in CUDA graphs, in half precision.

    Without a graph, Python takes longer to start them than to start PyTorch's attention.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    if device.type != 'cuda' or not half or not RECORDING.get():
        return False
    from .kernels.window_attention import HEAD_DIMS, MAX_WINDOW, available

    return available(device) and window <= MAX_WINDOW and head_dim in HEAD_DIMS


def auto_attention(
    qkv: Tensor, padding: Tensor, q_global: Tensor | None, bias: PositionBias
) -> Tensor:
    """Compute window attention by the fastest implementation."""
    head_dim = qkv.shape[-1] // ((3 if q_global is None else 2) * bias.heads)
    triton = prefers_triton(qkv.device, qkv.dtype, bias.window, head_dim)
    return (triton_attention if triton else sdpa_attention)(qkv, padding, q_global, bias)


ATTENTION = {
    'auto': auto_attention,
    'eager': eager_attention,
    'sdpa': sdpa_attention,
    'triton': triton_attention,
}


def resolve_attention(name: str) -> str:
    """Check that ``name`` is a key of ``ATTENTION``."""
    if name not in ATTENTION:
        raise ArgumentError(f'attn_impl={name!r} is unknown: choose one of {list(ATTENTION)}')
    return name


# Torch before 2.3 cannot tell.
_is_compiling = getattr(torch.compiler, 'is_compiling', lambda: True)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with the window's own query or the global one.

    With ``global_query``, it takes one query for all windows of an image. ``impl`` is a key of
    ``ATTENTION``, and ``num_heads`` divides ``dim``.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: int, global_query: bool, impl: str
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.attention = ATTENTION[impl]
        self.qkv = nn.Linear(dim, dim * (2 if global_query else 3))
        self.proj = nn.Linear(dim, dim)
        self.bias_cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )

    def forward(self, x: Tensor, index: Tensor, q_global: Tensor | None) -> Tensor:
        """Attend within each window of a feature map, (B, H, W, C).

        ``index`` is ``relative_position_index(window_size)``. The global query is (B, heads, N, d),
        or None without ``global_query``.
        """
        # Biases are cached in inference, and on CPUs alone: a comparison with the cached table
        # would make the host wait for a GPU.
        learns = torch.is_grad_enabled() or _is_compiling()
        caches = x.device.type == 'cpu' and not learns
        bias = PositionBias(
            self.relative_position_bias_table,
            index,
            self.window_size,
            cache=self.bias_cache if caches else None,
        )
        return self.proj(self.attention(self.qkv(x), self.qkv.bias, q_global, bias))
