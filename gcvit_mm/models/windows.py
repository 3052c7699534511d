"""Windows of a channels-last feature map: pure functions."""

import torch
from torch import Tensor


def partition(x: Tensor, height: int, width: int) -> Tensor:
    """Cut a feature map into windows.

    Args:
        x: Feature map of shape (B, H, W, C), which the windows divide.
        height: Rows of a window.
        width: Columns of a window.

    Returns:
        Windows of shape (B, nW, height * width, C), row by row, as ``unpartition`` expects them.
    """
    B, H, W, C = x.shape
    x = x.view(B, H // height, height, W // width, width, C).transpose(2, 3)
    return x.reshape(B, -1, height * width, C)


def unpartition(windows: Tensor, height: int, width: int, columns: int) -> Tensor:
    """Put windows together to a feature map: the inverse of ``partition``.

    Args:
        windows: Windows of shape (B, nW, height * width, C).
        height: Rows of a window.
        width: Columns of a window.
        columns: Number of windows in a row.

    Returns:
        Feature map of shape (B, H, W, C).
    """
    B, count, _, C = windows.shape
    x = windows.view(B, count // columns, columns, height, width, C).transpose(2, 3)
    return x.reshape(B, -1, columns * width, C)


def segments(size: int, window: int) -> list[tuple[slice, int]]:
    """Cut an axis of a feature map into whole windows and the rest.

    Args:
        size: Length of the axis, in tokens.
        window: Side of a window, in tokens.

    Returns:
        Each part and the length of its windows.
    """
    whole = size - size % window
    parts = [(slice(0, whole), window), (slice(whole, size), size - whole)]
    return [(part, cells) for part, cells in parts if part.stop > part.start]


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window.

    Args:
        window: Side of a window, in tokens.

    Returns:
        int64 tensor of shape (N, N), N = window * window; entry (i, j) is
        ``(y_i - y_j + window - 1) * (2 * window - 1) + (x_i - x_j + window - 1)``.
    """
    axis = torch.arange(window)
    y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing='ij'))
    dy, dx = (grid[:, None] - grid[None, :] + window - 1 for grid in (y, x))
    return dy * (2 * window - 1) + dx
