"""Splits an image into overlapping windows, and merges their predictions: pure functions.

Predictions are worst near the borders of a window, which have the least context. Each pixel of an
object is therefore taken from the window in which it is farthest from a border, and class scores
are blended with weights that fall towards the borders. Borders of the image do not count.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco

from ..prediction import Object

AGREE = 0.5
"""Minimum IoU, within the overlap of two windows, of two pieces of one object."""
COVERED = 0.7
"""Minimum share of a cut piece that an object of another window covers for it to be dropped."""


class Window(NamedTuple):
    """A rectangle of pixels; the ends x2 and y2 are exclusive."""

    x1: int
    y1: int
    x2: int
    y2: int

    def common(self, other: 'Window') -> 'Window | None':
        """Return the intersection, or None if it is empty."""
        x1, y1 = max(self.x1, other.x1), max(self.y1, other.y1)
        x2, y2 = min(self.x2, other.x2), min(self.y2, other.y2)
        return Window(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def of(self, array: np.ndarray, corner: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Crop an array (H, W, ...), whose first pixel is at x and y of ``corner``."""
        x, y = corner
        return array[self.y1 - y : self.y2 - y, self.x1 - x : self.x2 - x]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Compute the starts of evenly spaced windows along a side that overlap by ``overlap``."""
    if length <= tile:
        return [0]
    last = -(-(length - tile) // (tile - overlap))
    return [round(i * (length - tile) / last) for i in range(last + 1)]


def windows(height: int, width: int, tile: int, overlap: int) -> list[list[Window]]:
    """Cover an image with windows, row by row, whose neighbours overlap by at least ``overlap``.

    A window is smaller than ``tile`` only if the image is.
    """
    return [
        [
            Window(x, y, min(x + tile, width), min(y + tile, height))
            for x in starts(width, tile, overlap)
        ]
        for y in starts(height, tile, overlap)
    ]


def depth(start: int, end: int, length: int) -> np.ndarray:
    """Compute how far the pixels along a side of a window are from its borders, from 1.

    Borders of the image, which is ``length`` long, are infinitely far, in effect.
    """
    steps = np.arange(1, end - start + 1)
    far = np.full_like(steps, 2**31)
    return np.minimum(steps if start > 0 else far, steps[::-1] if end < length else far)


# --- Objects ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Piece:
    """The part of an object that is predicted in a window."""

    window: Window
    label: int
    score: float
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in the image
    corner: tuple[int, int] = (0, 0)  # x and y of the mask's first pixel in the image
    mask: dict | None = None  # COCO run-length encoding of ``extent``; without, the box is used

    @property
    def extent(self) -> Window:
        """The bounding rectangle in pixels of the image."""
        if self.mask is None:
            x1, y1, x2, y2 = self.box
            return Window(int(x1), int(y1), -int(-x2 // 1), -int(-y2 // 1))
        height, width = self.mask['size']
        x, y = self.corner
        return Window(x, y, x + width, y + height)

    def dense(self, region: Window) -> np.ndarray:
        """Decode the mask in a region of ``extent``."""
        return region.of(_decode(self), self.corner)

    def area(self, region: Window) -> float:
        """Compute the area within a region."""
        part = self.extent.common(region)
        if part is None:
            return 0.0
        return _area(self.box, part) if self.mask is None else float(self.dense(part).sum())

    def shared(self, other: 'Piece') -> float:
        """Compute the area of the intersection with another piece."""
        part = self.extent.common(other.extent)
        if part is None:
            return 0.0
        if self.mask is None:
            return _area(self.box, other.box)
        return float((self.dense(part) & other.dense(part)).sum())


@lru_cache(maxsize=128)  # a piece is compared with many others, but not all masks fit in memory
def _decode(piece: Piece) -> np.ndarray:
    return coco.decode(piece.mask).astype(bool)


def _area(box: Sequence[float], other: Sequence[float]) -> float:
    """Compute the area of the intersection of two boxes."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return float(max(0.0, width) * max(0.0, height))


def encode(mask: np.ndarray, window: Window) -> tuple[tuple[int, int], dict] | None:
    """Encode a mask (h, w) of a window as ``corner`` and ``mask`` of a piece; None if empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = int(window.x1 + columns[0]), int(window.y1 + rows[0])
    return corner, coco.encode(np.asfortranarray(inner, np.uint8))


def merge(pieces: Sequence[Piece], height: int, width: int) -> list[Object]:
    """Merge the pieces of each object that the borders of windows cut.

    Two pieces of one class in two windows belong to one object if they agree (``AGREE``) within
    the overlap of the windows; pairs chain, so an object may span any number of windows. An object
    whose pieces are all cut is dropped if another window contains more of it, and has most of it
    (``COVERED``) in an object.

    Returns:
        The objects by descending score, which is the mean of the scores of the pieces, weighted by
        the areas that they contribute.
    """
    groups = _without_covered(_groups(pieces), height, width)
    objects = [_join(group, height, width) for group in groups]
    return sorted(objects, key=lambda each: -each.score)


def _groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Group the pieces of each object."""
    by_window = _by_window(pieces)
    group = {piece: [piece] for piece in pieces}
    for a, b in _overlapping(by_window):
        for one, other in _pairs(by_window[a], by_window[b], a, b):
            if group[one] is not group[other]:
                joined = group[one] + group[other]
                group.update(dict.fromkeys(joined, joined))
    return list({id(members): members for members in group.values()}.values())


def _by_window(pieces: Iterable[Piece]) -> dict[Window, list[Piece]]:
    by_window = defaultdict(list)
    for piece in pieces:
        by_window[piece.window].append(piece)
    return by_window


def _overlapping(windows: Iterable[Window]) -> Iterator[tuple[Window, Window]]:
    ordered = sorted(windows, key=lambda window: window.y1)
    for number, a in enumerate(ordered, start=1):
        for b in islice(ordered, number, None):
            if b.y1 >= a.y2:
                break
            if a.common(b):
                yield a, b


def _pairs(
    first: list[Piece], second: list[Piece], a: Window, b: Window
) -> Iterator[tuple[Piece, Piece]]:
    """Yield the pairs of pieces of two windows that agree; each piece is in one pair at most."""
    both = a.common(b)
    assert both
    areas = {piece: piece.area(both) for piece in (*first, *second) if piece.extent.common(both)}
    agreeing = []
    for one, other in product(first, second):
        if one.label == other.label and one in areas and other in areas:
            shared = one.shared(other)
            union = areas[one] + areas[other] - shared
            if shared and shared >= AGREE * union:
                agreeing.append((shared / union, one, other))
    taken: set[Piece] = set()
    for _, one, other in sorted(agreeing, key=lambda pair: -pair[0]):
        if not taken & {one, other}:
            yield one, other
            taken |= {one, other}


def _without_covered(groups: list[list[Piece]], height: int, width: int) -> list[list[Piece]]:
    """Drop the objects whose pieces are all cut and covered by other objects."""
    kept = sorted(groups, key=lambda group: max(piece.score for piece in group))
    by_window = _by_window(piece for group in groups for piece in group)
    for group in list(kept):
        if all(_covered(piece, group, by_window, height, width) for piece in group):
            kept.remove(group)
            for piece in group:
                by_window[piece.window].remove(piece)
    return kept


def _covered(
    piece: Piece, group: list[Piece], by_window: dict[Window, list[Piece]], height: int, width: int
) -> bool:
    """Test whether a piece is cut, and an object of a window that contains it uncut covers it."""
    extent = piece.extent
    if not _cut(extent, piece.window, height, width):
        return False
    minimum = COVERED * piece.area(extent)
    return any(
        piece.shared(other) >= minimum
        for window, others in by_window.items()
        if extent.common(window) == extent and not _cut(extent, window, height, width)
        for other in others
        if other not in group
    )


def _cut(extent: Window, window: Window, height: int, width: int) -> bool:
    """Test whether a piece is so close to a border within the image that it may continue there."""
    close = max(2, (window.x2 - window.x1) // 100)  # boxes and masks are not exact
    return (
        (window.x1 > 0 and extent.x1 - window.x1 < close)
        or (window.y1 > 0 and extent.y1 - window.y1 < close)
        or (window.x2 < width and window.x2 - extent.x2 < close)
        or (window.y2 < height and window.y2 - extent.y2 < close)
    )


def _join(group: list[Piece], height: int, width: int) -> Object:
    """Merge a group of pieces into an object."""
    if group[0].mask is None:
        weights, mask = [piece.area(piece.extent) for piece in group], None
    else:
        own = [_own(piece, group, height, width) for piece in group]
        weights = [float(part.sum()) for part in own]
        mask = coco.merge(
            [
                place(part, piece.corner, height, width)
                for part, piece in zip(own, group, strict=True)
            ]
        )
    boxes = np.array([piece.box for piece, weight in zip(group, weights, strict=True) if weight])
    (x1, y1), (x2, y2) = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
    score = np.average([piece.score for piece in group], weights=weights)
    return Object(group[0].label, float(score), (x1, y1, x2, y2), mask)


def _own(piece: Piece, group: list[Piece], height: int, width: int) -> np.ndarray:
    """Remove from a mask the pixels that are farther from the border of another window."""
    extent = piece.extent
    mask, ours = piece.dense(extent).copy(), _depths(piece.window, extent, height, width)
    for window in {other.window for other in group} - {piece.window}:
        part = extent.common(window)
        if part:
            here, theirs = part.of(ours, piece.corner), _depths(window, part, height, width)
            removed = (theirs > here) | ((theirs == here) & (window < piece.window))
            part.of(mask, piece.corner)[removed] = False
    return mask


def _depths(window: Window, region: Window, height: int, width: int) -> np.ndarray:
    """Compute the distances of the pixels of a region, (h, w), from the borders of a window."""
    x = depth(window.x1, window.x2, width)[region.x1 - window.x1 : region.x2 - window.x1]
    y = depth(window.y1, window.y2, height)[region.y1 - window.y1 : region.y2 - window.y1]
    return np.minimum(y[:, None], x)


def place(mask: np.ndarray, corner: tuple[int, int], height: int, width: int) -> dict:
    """Encode a mask (h, w) at a corner in an image, without a dense mask of the whole image."""
    x, y = corner
    # COCO counts runs in column-major order.
    steps = np.diff(np.pad(mask.astype(np.int8), ((1, 1), (0, 0))), axis=0).T
    first, end = (
        (x + columns) * height + y + rows
        for columns, rows in ((steps == 1).nonzero(), (steps == -1).nonzero())
    )
    apart = first[1:] != end[:-1]  # a run may continue in the next column
    bounds = np.stack([first[np.r_[True, apart]], end[np.r_[apart, True]]], 1) if len(first) else ()
    counts = np.diff(np.ravel(bounds), prepend=0, append=height * width).tolist()
    if not counts[-1]:
        counts.pop()  # like COCO's encoder
    return coco.frPyObjects(dict(size=[height, width], counts=counts), height, width)


# --- Label maps -------------------------------------------------------------------------------


def weights(starts: Sequence[int], tile: int, length: int) -> list[np.ndarray]:
    """Compute the weights of windows along a side, by depth; the weights of a pixel sum to 1."""
    spans = [slice(start, min(start + tile, length)) for start in starts]
    depths = [depth(span.start, span.stop, length) for span in spans]
    total = np.zeros(length)
    for span, own in zip(spans, depths, strict=True):
        total[span] += own
    return [(x / total[span]).astype(np.float32) for span, x in zip(spans, depths, strict=True)]


def blend(
    scores: Iterable[np.ndarray],
    grid: list[list[Window]],
    decide: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Blend the class scores of windows, (classes, h, w) row by row, into a label map.

    Labels are computed as soon as their scores are complete: only the scores of a window, and of
    the overlap of a row of windows with the next row, are in memory.

    Args:
        scores: Scores of each window.
        grid: The windows, from ``windows``.
        decide: Function from blended scores (classes, h, w) to labels (h, w).

    Returns:
        The label map, (H, W) of uint8 or, for more than 256 classes, int32.
    """
    last = grid[-1][-1]
    width, height = last.x2, last.y2
    columns = weights([w.x1 for w in grid[0]], grid[0][0].x2, width)
    rows = weights([row[0].y1 for row in grid], grid[0][0].y2, height)
    stream = iter(scores)
    labels: np.ndarray | None = None
    above: np.ndarray | None = None  # incomplete scores of the previous rows of windows
    for r, row in enumerate(grid):
        y1, y2 = row[0].y1, row[0].y2
        closed = (grid[r + 1][0].y1 if r + 1 < len(grid) else height) - y1
        below: np.ndarray | None = None
        left: np.ndarray | None = None
        for c, window in enumerate(row):
            part = next(stream) * (rows[r][:, None] * columns[c])
            if labels is None:
                labels = np.empty((height, width), np.uint8 if len(part) <= 256 else np.int32)
            if left is not None:
                part[..., : left.shape[2]] += left
            complete = (row[c + 1].x1 if c + 1 < len(row) else width) - window.x1
            block = part[..., :complete]
            across = slice(window.x1, window.x1 + complete)
            if above is not None:
                block[:, : above.shape[1]] += above[..., across]
            labels[y1 : y1 + closed, across] = decide(block[:, :closed])
            if below is None:
                below = np.empty((len(part), y2 - y1 - closed, width), np.float32)
            below[..., across] = block[:, closed:]
            left = part[..., complete:].copy()
        above = below
    assert labels is not None
    return labels
