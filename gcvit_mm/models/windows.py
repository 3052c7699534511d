"""Windows of a channels-last feature map: pure functions."""

import torch
from torch import Tensor


def partition(x: Tensor, height: int, width: int) -> Tensor:
    """Cut (B, H, W, C), which windows divide, into (B, nW, height * width, C), row by row."""
    B, H, W, C = x.shape
    x = x.view(B, H // height, height, W // width, width, C).transpose(2, 3)
    return x.reshape(B, -1, height * width, C)


def unpartition(windows: Tensor, height: int, width: int, columns: int) -> Tensor:
    """Join windows (B, nW, height * width, C) to (B, H, W, C): the inverse of ``partition``."""
    B, count, _, C = windows.shape
    x = windows.view(B, count // columns, columns, height, width, C).transpose(2, 3)
    return x.reshape(B, -1, columns * width, C)


def segments(size: int, window: int) -> list[tuple[slice, int]]:
    """Cut an axis of ``size`` tokens into whole windows and the rest, each with its length."""
    whole = size - size % window
    parts = [(slice(0, whole), window), (slice(whole, size), size - whole)]
    return [(part, cells) for part, cells in parts if part.stop > part.start]


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of the N tokens of a window, (N, N) of int64.

    Entry (i, j) is ``(y_i - y_j + window - 1) * (2 * window - 1) + (x_i - x_j + window - 1)``.
    """
    axis = torch.arange(window)
    y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing='ij'))
    dy, dx = (grid[:, None] - grid[None, :] + window - 1 for grid in (y, x))
    return dy * (2 * window - 1) + dx
