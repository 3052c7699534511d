"""Resizing by matrix products, whose gradients are deterministic on GPUs, unlike PyTorch's."""

import torch
from torch import Tensor


def bicubic_weights(size: int, target: int, like: Tensor) -> Tensor:
    """The matrix (target, size) that resizes an axis as ``interpolate(mode='bicubic')`` does.

    It has the dtype and device of ``like``.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    number = torch.arange(target, dtype=dtype, device=like.device)
    position = (number + 0.5) * (size / target) - 0.5
    taps = position.floor()[:, None] + torch.arange(-1, 3, device=like.device)
    d = (position[:, None] - taps).abs()
    # Keys' cubic convolution with a = -0.75.
    weights = torch.where(
        d <= 1, (1.25 * d - 2.25) * d * d + 1, ((3.75 - 0.75 * d) * d - 6) * d + 3
    )
    pixels = taps.clamp(0, size - 1)[..., None] == torch.arange(size, device=like.device)
    return (weights[..., None] * pixels).sum(dim=1).to(like.dtype)


def resize(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply the axes of (B, H, W, C) by matrices (h, H) and (w, W): (B, h, w, C)."""
    x = (rows @ x.flatten(2)).unflatten(2, (x.shape[2], x.shape[3]))
    return columns @ x
