"""Windows of a channels-last map: pure functions, padding inside."""

import torch
import torch.nn.functional as F
from torch import Tensor


def partition(x: Tensor, window: int) -> Tensor:
    """Cut a map into windows, zero-padded at the right and bottom where it does not divide.

    Args:
        x: Map of shape (B, H, W, C).
        window: Side of a window, in cells.

    Returns:
        Windows of shape (B, nW, window * window, C), row by row; all windows of an image stand
        together, in the order ``unpartition`` expects.
    """
    B, H, W, C = x.shape
    pad_h, pad_w = -H % window, -W % window
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    rows, cols = (H + pad_h) // window, (W + pad_w) // window
    x = x.view(B, rows, window, cols, window, C).transpose(2, 3)
    return x.reshape(B, rows * cols, window * window, C)


def unpartition(windows: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Put windows together again and crop the padding: the inverse of ``partition``.

    Args:
        windows: Windows of shape (B, nW, window * window, C).
        window: Side of a window, in cells.
        size: Height and width of the map before it was padded.

    Returns:
        Map of shape (B, H, W, C).
    """
    H, W = size
    B, _, _, C = windows.shape
    rows, cols = -(-H // window), -(-W // window)
    x = windows.view(B, rows, cols, window, window, C).transpose(2, 3)
    return x.reshape(B, rows * window, cols * window, C)[:, :H, :W]


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of cells of a window.

    Args:
        window: Side of a window, in cells.

    Returns:
        int64 tensor of shape (N, N), N = window * window; entry (i, j) is
        ``(y_i - y_j + window - 1) * (2 * window - 1) + (x_i - x_j + window - 1)``.
    """
    axis = torch.arange(window)
    y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing='ij'))
    dy, dx = (grid[:, None] - grid[None, :] + window - 1 for grid in (y, x))
    return dy * (2 * window - 1) + dx
