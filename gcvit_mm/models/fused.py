"""Blocks on GPUs with few kernels and little memory traffic.

With ``attn_impl='triton'``, and with 'auto' for CUDA graphs in half precision, our Triton kernels
compute attention. Otherwise all windows of a feature map are computed in one padded region by
PyTorch's memory-efficient attention. On other devices, and where modules are compiled, sharded or
observed by hooks, blocks run as they are written in ``gcvit.py``.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from torch import Tensor, nn

from .attention import (
    auto_attention,
    prefers_triton,
    sdpa_attention,
    triton_attention,
    without_cudnn,
)
from .kernels.add_norm import add_norm, available
from .position_bias import PositionBias


class ChannelNorm(nn.LayerNorm):
    """LayerNorm of a feature map (B, H, W, C).

    On GPUs our kernel computes it, as PyTorch's is slow for few channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda or not available(x) or torch.compiler.is_compiling():
            return super().forward(x)
        dtype = torch.float32 if torch.is_autocast_enabled() else x.dtype
        return add_norm(x, None, None, None, self, 1, dtype)[1]


def can_fuse(blocks: Any, x: Tensor) -> bool:
    """Whether ``run_fused`` may compute the blocks of a stage for a feature map."""
    return (
        x.is_cuda
        and not torch.compiler.is_compiling()
        and all(
            block.attn.attention in (auto_attention, sdpa_attention, triton_attention)
            and block._compiled_call_impl is None
            and not hasattr(block.norm1.weight, 'full_tensor')  # FSDP
            and not any(m._forward_hooks or m._forward_pre_hooks for m in _own_modules(block))
            for block in blocks
        )
    )


def run_fused(
    blocks: Any, x: Tensor, index: Tensor, q_global: Tensor | None, with_cp: bool
) -> Tensor:
    """Run the blocks of a stage.

    Values are those of ``Block.forward`` within rounding. Arguments are those of ``Stage``.
    """
    dtype = _dtype(x)
    tables = [block.attn.relative_position_bias_table for block in blocks]
    cuts = not _uses_triton(blocks[0].attn, x.device, dtype)
    masks = _masks(tables, index, dtype) if cuts else [None] * len(blocks)
    weights = [weight for block in blocks for weight in _weights(block)]
    cast = iter(_Cast.apply(dtype, *weights) if dtype != weights[0].dtype else weights)
    query = None if q_global is None else q_global.to(dtype)
    branch: Any = None
    shift, path = None, None
    factors = _factors([block.drop_path for block in blocks], x)
    for i, (block, mask, (first, second)) in enumerate(zip(blocks, masks, factors, strict=True)):
        own = (next(cast) for _ in range(6))
        inputs = (
            block,
            x,
            branch,
            shift,
            path,
            first,
            query if i % 2 else None,
            mask,
            index,
            dtype,
            *own,
        )
        if with_cp and torch.is_grad_enabled():
            x, branch, shift = cp.checkpoint(_run_block, *inputs, use_reentrant=False)
        else:
            x, branch, shift = _run_block(*inputs)
        path = second
    branch = branch if shift is None else branch + shift
    return x + (branch if path is None else branch * path[:, None, None, None])


def _uses_triton(attn: Any, device: torch.device, dtype: torch.dtype) -> bool:
    if attn.attention is not auto_attention:
        return attn.attention is triton_attention
    head_dim = attn.proj.in_features // attn.relative_position_bias_table.shape[1]
    return prefers_triton(device, dtype, attn.window_size, head_dim)


def _run_block(
    block: Any,
    x: Tensor,
    branch: Tensor | None,
    shift: Tensor | None,
    path: Tensor | None,
    own_path: Tensor | None,
    query: Tensor | None,
    mask: Tensor | None,
    index: Tensor,
    dtype: torch.dtype,
    *weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Add the branch of the previous block, and compute the block without its last addition.

    Returns the residual stream, and the branch to add without its bias.
    """
    qkv, fc1, (proj, fc2) = weights[:2], weights[2:4], weights[4:]
    window, cuts = block.attn.window_size, mask is not None
    x, tokens = add_norm(x, branch, shift, path, block.norm1, window, dtype, to_windows=cuts)
    tokens = F.linear(tokens, *qkv)
    if mask is not None:
        attended = _attend(tokens, query, mask)
    else:
        bias = PositionBias(block.attn.relative_position_bias_table, index, window)
        attended = triton_attention(tokens, qkv[1], query, bias)
    attended, shift = _last_layer(attended, proj, block.attn.proj.bias, block.gamma1)
    x, tokens = add_norm(
        x, attended, shift, own_path, block.norm2, window, dtype, from_windows=cuts
    )
    hidden = F.gelu(F.linear(tokens, *fc1))
    return x, *_last_layer(hidden, fc2, block.mlp.fc2.bias, block.gamma2)


def _factors(drop_paths: list[Any], x: Tensor) -> list[tuple[Tensor | None, Tensor | None]]:
    """Draw the factors (B,) of both branches of all blocks together, in the order of the blocks."""
    drawn = [drop.keep for drop in drop_paths if drop.training and drop.drops]
    if not drawn:
        return [(None, None)] * len(drop_paths)
    keep = torch.stack(drawn).to(x.dtype)[:, None, None].expand(-1, 2, len(x))
    factors = iter(torch.bernoulli(keep) / keep)
    drawing = (drop.training and drop.drops for drop in drop_paths)
    return [(*next(factors).unbind(),) if draws else (None, None) for draws in drawing]  # type: ignore[misc]


def _attend(qkv: Tensor, query: Tensor | None, mask: Tensor) -> Tensor:
    """Attend in windows (B * nW, N, 3 C), or with a query (B, heads, N, d), (B * nW, N, 2 C)."""
    parts = 3 if query is None else 2
    *q, k, v = qkv.unflatten(2, (parts, mask.shape[1], -1)).permute(2, 0, 3, 1, 4).unbind()
    if query is not None:  # one query for all windows of an image
        q = [query[:, None].expand(-1, len(qkv) // len(query), -1, -1, -1).flatten(0, 1)]
    with without_cudnn():
        out = F.scaled_dot_product_attention(q[0], k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else x.dtype


def _last_layer(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The last linear layer of a branch, and its bias if the addition of the branch has to add it.

    There the gradient of the bias is summed on the way.
    """
    if gamma is not None:
        return F.linear(x, weight, bias.to(x.dtype)) * gamma, None
    return F.linear(x, weight), bias


def _masks(tables: list[Tensor], index: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
    """The biases (1, heads, N, N) of all blocks of a stage, in few kernels."""
    n = len(index)
    beside = -n % 16  # memory-efficient attention wants aligned rows
    rows = torch.stack(tables).transpose(1, 2).flatten(0, 1)  # (blocks * heads, positions)
    if not torch.is_grad_enabled():  # otherwise gradients are summed in float32
        rows = rows.to(dtype)
    masks = rows.index_select(1, F.pad(index, (0, beside)).flatten()).to(dtype)
    return masks.view(len(tables), 1, -1, n, n + beside)[..., :n].unbind()


class _Cast(torch.autograd.Function):
    """Casts all weights of a stage together: autocast would do it one by one."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [weight.dtype for weight in weights]
        return tuple(_cast(weights, [dtype] * len(weights)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return None, *_cast(grads, ctx.dtypes)


def _cast(tensors: Sequence[Tensor], dtypes: list[torch.dtype]) -> list[Tensor]:
    out = [torch.empty_like(x, dtype=dtype) for x, dtype in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(out, list(tensors))
    return out


def _weights(block: Any) -> tuple[Tensor, ...]:
    """The weights that linear layers need in the type of autocast."""
    attn, mlp = block.attn, block.mlp
    inner = attn.qkv.weight, attn.qkv.bias, mlp.fc1.weight, mlp.fc1.bias
    return *inner, attn.proj.weight, mlp.fc2.weight


def _own_modules(block: Any) -> tuple[nn.Module, ...]:
    mlp, attn = block.mlp, block.attn
    return block, block.norm1, block.norm2, attn, attn.qkv, attn.proj, mlp, mlp.fc1, mlp.fc2
