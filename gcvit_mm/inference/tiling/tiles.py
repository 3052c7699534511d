"""Large images in overlapping windows, and what was found in them put together: pure functions.

A window sees least at its borders. So where windows share pixels, each pixel of an object is taken
from the window that sees it deepest inside, and class scores are blended by weights that fall
towards the borders. Borders of the image itself do not count as such.
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
"""Pieces in two windows are of one object from this IoU up, in the pixels that both windows see."""
COVERED = 0.7
"""A cut piece is given up where a window that sees more has this share of it in one object."""


class Window(NamedTuple):
    """A rectangle of pixels: x1, y1 are its first, x2, y2 follow its last."""

    x1: int
    y1: int
    x2: int
    y2: int

    def common(self, other: 'Window') -> 'Window | None':
        """The pixels of both, None where there are none."""
        x1, y1 = max(self.x1, other.x1), max(self.y1, other.y1)
        x2, y2 = min(self.x2, other.x2), min(self.y2, other.y2)
        return Window(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def of(self, array: np.ndarray, corner: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Its pixels of an array (H, W, ...), whose first pixel is at ``corner``: x and y."""
        x, y = corner
        return array[self.y1 - y : self.y2 - y, self.x1 - x : self.x2 - x]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where windows along a side begin: evenly spread, sharing ``overlap`` pixels or more."""
    if length <= tile:
        return [0]
    last = -(-(length - tile) // (tile - overlap))
    return [round(i * (length - tile) / last) for i in range(last + 1)]


def windows(height: int, width: int, tile: int, overlap: int) -> list[list[Window]]:
    """Rows of windows that cover an image, ``tile`` pixels a side or as many as it has.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        tile: Side of a window.
        overlap: How many rows and columns neighbours share at least, from 1 to ``tile - 1``.
    """
    return [
        [
            Window(x, y, min(x + tile, width), min(y + tile, height))
            for x in starts(width, tile, overlap)
        ]
        for y in starts(height, tile, overlap)
    ]


def depth(start: int, end: int, length: int) -> np.ndarray:
    """How deep in a window its pixels along a side are: 1 next to a border.

    Args:
        start: The window's first pixel.
        end: What follows its last.
        length: Of the image's side.

    Returns:
        (end - start,); where no border is but the image's, more than any window is deep.
    """
    steps = np.arange(1, end - start + 1)
    none = np.full_like(steps, 2**31)
    return np.minimum(steps if start > 0 else none, steps[::-1] if end < length else none)


# --- Objects ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Piece:
    """What a window shows of an object.

    Attributes:
        window: The window.
        label: The class.
        score: The score.
        box: x1, y1, x2, y2 on the image.
        corner: First column and row on the image of what ``mask`` covers.
        mask: Run-length encoding of the smallest rectangle with all of the piece; None of a
            detector without masks, whose boxes stand for them.
    """

    window: Window
    label: int
    score: float
    box: tuple[float, float, float, float]
    corner: tuple[int, int] = (0, 0)
    mask: dict | None = None

    @property
    def extent(self) -> Window:
        """The rectangle of pixels that it lies in."""
        if self.mask is None:
            x1, y1, x2, y2 = self.box
            return Window(int(x1), int(y1), -int(-x2 // 1), -int(-y2 // 1))
        height, width = self.mask['size']
        x, y = self.corner
        return Window(x, y, x + width, y + height)

    def dense(self, region: Window) -> np.ndarray:
        """The mask in a region of ``extent``."""
        return region.of(_decode(self), self.corner)

    def area(self, region: Window) -> float:
        """How much of it lies in a region, in pixels."""
        part = self.extent.common(region)
        if part is None:
            return 0.0
        return _area(self.box, part) if self.mask is None else float(self.dense(part).sum())

    def shared(self, other: 'Piece') -> float:
        """How much of it lies in another, in pixels."""
        part = self.extent.common(other.extent)
        if part is None:
            return 0.0
        if self.mask is None:
            return _area(self.box, other.box)
        return float((self.dense(part) & other.dense(part)).sum())


@lru_cache(maxsize=128)  # a piece is compared with many, and all masks would be too much
def _decode(piece: Piece) -> np.ndarray:
    return coco.decode(piece.mask).astype(bool)


def _area(box: Sequence[float], other: Sequence[float]) -> float:
    """Of what two boxes share."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return float(max(0.0, width) * max(0.0, height))


def encode(mask: np.ndarray, window: Window) -> tuple[tuple[int, int], dict] | None:
    """A mask (h, w) of a window as a piece's ``corner`` and ``mask``; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = int(window.x1 + columns[0]), int(window.y1 + rows[0])
    return corner, coco.encode(np.asfortranarray(inner, np.uint8))


def merge(pieces: Sequence[Piece], height: int, width: int) -> list[Object]:
    """Put together the objects that borders of windows cut, each once and whole.

    Pieces of a class in two windows are of one object where they agree (``AGREE``) in what both
    windows see. Such pairs chain: an object may go through any number of windows. What is cut by
    the border of its window, and agrees with nothing, is given up if another window sees all of
    it and more, and has most of it (``COVERED``) in an object.

    Args:
        pieces: Of all windows.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        The objects, best first; the score of one is the mean of its pieces', by how much is taken
        from each.
    """
    groups = _without_covered(_groups(pieces), height, width)
    found = [_join(group, height, width) for group in groups]
    return sorted(found, key=lambda one: -one.score)


def _groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces of each object."""
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


def _overlapping(found: Iterable[Window]) -> Iterator[tuple[Window, Window]]:
    ordered = sorted(found, key=lambda window: window.y1)
    for number, a in enumerate(ordered, start=1):
        for b in islice(ordered, number, None):
            if b.y1 >= a.y2:
                break
            if a.common(b):
                yield a, b


def _pairs(
    first: list[Piece], second: list[Piece], a: Window, b: Window
) -> Iterator[tuple[Piece, Piece]]:
    """Which pieces of two windows agree; none is in two pairs."""
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
    """Without objects of which all that is known is cut, and better known in others."""
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
    """Whether a piece is cut, and a window that sees more has most of it in another object."""
    extent = piece.extent
    if not _cut(extent, piece.window, height, width):
        return False
    enough = COVERED * piece.area(extent)
    return any(
        piece.shared(other) >= enough
        for window, others in by_window.items()
        if extent.common(window) == extent and not _cut(extent, window, height, width)
        for other in others
        if other not in group
    )


def _cut(extent: Window, window: Window, height: int, width: int) -> bool:
    """Whether something comes so close to a border inside the image that it may go on there."""
    close = max(2, (window.x2 - window.x1) // 100)  # boxes and masks are not exact
    return (
        (window.x1 > 0 and extent.x1 - window.x1 < close)
        or (window.y1 > 0 and extent.y1 - window.y1 < close)
        or (window.x2 < width and window.x2 - extent.x2 < close)
        or (window.y2 < height and window.y2 - extent.y2 < close)
    )


def _join(group: list[Piece], height: int, width: int) -> Object:
    """The object of a group."""
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
    """The mask of a piece, without what other windows of the object see deeper inside."""
    extent = piece.extent
    mask, ours = piece.dense(extent).copy(), _depths(piece.window, extent, height, width)
    for window in {other.window for other in group} - {piece.window}:
        part = extent.common(window)
        if part:
            here, theirs = part.of(ours, piece.corner), _depths(window, part, height, width)
            lost = (theirs > here) | ((theirs == here) & (window < piece.window))
            part.of(mask, piece.corner)[lost] = False
    return mask


def _depths(window: Window, region: Window, height: int, width: int) -> np.ndarray:
    """How deep in a window the pixels of a region are, (h, w)."""
    x = depth(window.x1, window.x2, width)[region.x1 - window.x1 : region.x2 - window.x1]
    y = depth(window.y1, window.y2, height)[region.y1 - window.y1 : region.y2 - window.y1]
    return np.minimum(y[:, None], x)


def place(mask: np.ndarray, corner: tuple[int, int], height: int, width: int) -> dict:
    """Encode a mask (h, w) at a place in an image, without a mask of the image's size."""
    x, y = corner
    # COCO counts runs down the columns, one column after the other.
    steps = np.diff(np.pad(mask.astype(np.int8), ((1, 1), (0, 0))), axis=0).T
    first, end = (
        (x + columns) * height + y + rows
        for columns, rows in ((steps == 1).nonzero(), (steps == -1).nonzero())
    )
    apart = first[1:] != end[:-1]  # a run may go on in the next column
    bounds = np.stack([first[np.r_[True, apart]], end[np.r_[apart, True]]], 1) if len(first) else ()
    counts = np.diff(np.ravel(bounds), prepend=0, append=height * width).tolist()
    if not counts[-1]:
        counts.pop()  # as COCO's own encoder
    return coco.frPyObjects(dict(size=[height, width], counts=counts), height, width)


# --- Label maps -------------------------------------------------------------------------------


def weights(starts: Sequence[int], tile: int, length: int) -> list[np.ndarray]:
    """How much each window along a side counts for its pixels: more the deeper; 1 in all."""
    ends = [min(start + tile, length) for start in starts]
    deep = [depth(start, end, length) for start, end in zip(starts, ends, strict=True)]
    total = np.zeros(length)
    for start, end, own in zip(starts, ends, deep, strict=True):
        total[start:end] += own
    return [
        (own / total[start:end]).astype(np.float32)
        for start, end, own in zip(starts, ends, deep, strict=True)
    ]


def blend(
    scores: Iterable[np.ndarray],
    grid: list[list[Window]],
    decide: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Blend the class scores of windows, and decide.

    What is complete is decided at once: scores are kept for no more than a row of windows'
    overlap with the next, and a window.

    Args:
        scores: (classes, h, w) of each window, row by row.
        grid: The windows, of ``windows``.
        decide: Makes labels (h, w) of blended scores (classes, h, w).

    Returns:
        The labels of the image, (H, W) of uint8 where they fit, otherwise int32.
    """
    last = grid[-1][-1]
    width, height = last.x2, last.y2
    columns = weights([w.x1 for w in grid[0]], grid[0][0].x2, width)
    rows = weights([row[0].y1 for row in grid], grid[0][0].y2, height)
    stream = iter(scores)
    labels: np.ndarray | None = None
    above: np.ndarray | None = None  # what rows of windows before give to pixels still open
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
            done = (row[c + 1].x1 if c + 1 < len(row) else width) - window.x1
            block = part[..., :done]
            across = slice(window.x1, window.x1 + done)
            if above is not None:
                block[:, : above.shape[1]] += above[..., across]
            labels[y1 : y1 + closed, across] = decide(block[:, :closed])
            if below is None:
                below = np.empty((len(part), y2 - y1 - closed, width), np.float32)
            below[..., across] = block[:, closed:]
            left = part[..., done:].copy()
        above = below
    assert labels is not None
    return labels
