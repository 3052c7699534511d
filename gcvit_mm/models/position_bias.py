"""The learned bias of window attention by relative position."""

import torch
from torch import Tensor

MOST_KEPT = 3
"""Biases that a block keeps: of windows cut off at a map's right, at its bottom, and at both."""
MOST_KEPT_CELLS = 256
"""Of a window whose bias is kept: larger ones take as much memory as the maps."""


class PositionBias:
    """The bias of a block's attention for each pair of a window's cells.

    Args:
        table: The bias of each head by relative position, ((2 window - 1)^2, heads).
        index: ``relative_position_index(window)``.
        window: Side of a window, in cells.
        kept: Where biases of cut-off windows stay from one call to the next, each with a copy of
            the table that it is of; None where they are to be computed.
    """

    def __init__(
        self,
        table: Tensor,
        index: Tensor,
        window: int,
        kept: dict[tuple[int, int], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.table = table
        self.index = index
        self.window = window
        self.heads = table.shape[1]
        self.kept = kept

    def whole(self) -> Tensor:
        """The bias within a whole window, (heads, N, N) with N = window ** 2."""
        return self._look_up(self.index)

    def cut_off(self, height: int, width: int) -> Tensor:
        """The bias within a window of which only the first rows and columns are on the map.

        Returns:
            Shape (heads, n, n + 1) with n = height * width; the last column is for the padding,
            all cells of which have one key.
        """
        if self.kept is None or height * width > MOST_KEPT_CELLS:
            return self._cut_off(height, width)
        size = height, width
        found = self.kept.get(size)
        if found is None or not torch.equal(found[0], self.table):
            if len(self.kept) >= MOST_KEPT:
                self.kept.clear()
            found = self.kept[size] = self.table.clone(), self._cut_off(height, width)
        return found[1]

    def _cut_off(self, height: int, width: int) -> Tensor:
        window = self.window
        grid = self.index.view([window] * 4)[:height, :width, :height, :width]
        on_map = self._look_up(grid.flatten(2).flatten(0, 1))
        beyond = self._log_sum_beyond(height, width).to(on_map.dtype)
        return torch.cat([on_map, beyond[..., None]], dim=2)

    def _look_up(self, index: Tensor) -> Tensor:
        # Many times as fast on CPUs, and in the backward pass, as rows of all heads and a
        # permutation.
        rows = self.table.t().contiguous()
        return rows.index_select(1, index.flatten()).view(-1, *index.shape)

    def _log_sum_beyond(self, height: int, width: int) -> Tensor:
        """Logarithm of the sum of exp(bias) over a window's cells that are not on the map.

        Returns:
            Shape (heads, height * width), in single precision at least.
        """
        window = self.window
        table = self.table.float() if self.table.dtype.itemsize < 4 else self.table
        most = table.detach().amax(dim=0)[:, None, None]
        side = 2 * window - 1
        weights = (table.t().reshape(-1, side, side) - most).exp()  # (heads, y_i - y_j, x_i - x_j)
        total = table.new_zeros(1, 1, 1)
        if height < window:  # keys in the rows beyond, of all columns
            rows = _sums(weights, 1, window - height, 0, height)
            total = total + _sums(rows, 2, window, 0, width)
        if width < window:  # in the rows on the map, of the columns beyond
            rows = _sums(weights, 1, height, window - height, height)
            total = total + _sums(rows, 2, window - width, 0, width)
        smallest = torch.finfo(total.dtype).tiny
        return (total.clamp_min(smallest).log() + most).flatten(1)


def _sums(x: Tensor, dim: int, length: int, start: int, count: int) -> Tensor:
    """Sums of ``length`` neighbours along an axis, ``count`` of them, the first from ``start``."""
    return x.narrow(dim, start, count + length - 1).unfold(dim, length, 1).sum(dim=-1)
