"""The learned relative-position bias of window attention."""

from dataclasses import dataclass

import torch
from torch import Tensor

CACHE_SIZE = 3
"""Biases that a block caches: of windows at the right border, the bottom border, the corner."""
MAX_CACHED_TOKENS = 256
"""Tokens of the largest window that is cached: the bias of a larger one needs too much memory."""


@dataclass(eq=False)
class PositionBias:
    """The attention bias of a block for each pair of tokens of a window."""

    table: Tensor  # the bias of each head by relative position, ((2 window - 1)^2, heads)
    index: Tensor  # ``relative_position_index(window)``
    window: int  # side of a window, in tokens
    # Biases of windows at the border, each with the table that it was computed from.
    cache: dict[tuple[int, int], tuple[Tensor, Tensor]] | None = None

    @property
    def heads(self) -> int:
        return self.table.shape[1]

    def whole(self) -> Tensor:
        """The bias of a whole window, (heads, N, N) with N = window ** 2."""
        return self._look_up(self.index)

    def cut_off(self, height: int, width: int) -> Tensor:
        """The bias of a window at the border, with ``height`` rows and ``width`` columns of tokens.

        Returns:
            Shape (heads, n, n + 1) with n = height * width; the last column is the bias of the one
            key that stands for all padded tokens.
        """
        if self.cache is None or height * width > MAX_CACHED_TOKENS:
            return self._cut_off(height, width)
        size = height, width
        cached = self.cache.get(size)
        if cached is None or not torch.equal(cached[0], self.table):
            if len(self.cache) >= CACHE_SIZE:
                self.cache.clear()
            cached = self.cache[size] = self.table.clone(), self._cut_off(height, width)
        return cached[1]

    def _cut_off(self, height: int, width: int) -> Tensor:
        window = self.window
        grid = self.index.view([window] * 4)[:height, :width, :height, :width]
        inside = self._look_up(grid.flatten(2).flatten(0, 1))
        padding = self._log_sum_padding(height, width).to(inside.dtype)
        return torch.cat([inside, padding[..., None]], dim=2)

    def _look_up(self, index: Tensor) -> Tensor:
        # Selecting columns is many times faster, on CPUs and in the backward pass, than selecting
        # rows of all heads and permuting them.
        rows = self.table.t().contiguous()
        return rows.index_select(1, index.flatten()).view(-1, *index.shape)

    def _log_sum_padding(self, height: int, width: int) -> Tensor:
        """The logarithm of the sum of exp(bias) over padded tokens, (heads, height * width)."""
        window = self.window
        table = self.table.float() if self.table.dtype.itemsize < 4 else self.table
        most = table.detach().amax(dim=0)[:, None, None]
        side = 2 * window - 1
        weights = (table.t().reshape(-1, side, side) - most).exp()  # (heads, y_i - y_j, x_i - x_j)
        total = table.new_zeros(1, 1, 1)
        if height < window:  # padded rows, all columns
            rows = _sums(weights, 1, window - height, 0, height)
            total = total + _sums(rows, 2, window, 0, width)
        if width < window:  # padded columns of the other rows
            rows = _sums(weights, 1, height, window - height, height)
            total = total + _sums(rows, 2, window - width, 0, width)
        smallest = torch.finfo(total.dtype).tiny
        return (total.clamp_min(smallest).log() + most).flatten(1)


def _sums(x: Tensor, dim: int, length: int, start: int, count: int) -> Tensor:
    """``count`` sums of ``length`` neighbours along an axis; the first sum begins at ``start``."""
    return x.narrow(dim, start, count + length - 1).unfold(dim, length, 1).sum(dim=-1)
