"""A canvas for objects, label maps and captions on an image."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import cv2
import numpy as np
from pycocotools import mask as coco

from ..errors import printable
from .palette import Color, color_of, instance_colors
from .text import class_name, line_of

OPACITY = 0.5
DARK, LIGHT = (40, 40, 40), (255, 255, 255)
IGNORED, IGNORED_COLOR = 'ignored', (255, 0, 0)
FONT_SIZES = (12, 40)
"""Minimum and maximum font size of captions, in pixels."""
MINIMUM = 5
"""Minimum font size of captions that are shrunk to the width of the picture."""
REACH = 2
"""Maximum distance of a caption from its position, in multiples of its height."""


class Canvas:
    """A picture, (H, W, 3) of uint8 in RGB, that annotations and predictions are drawn on.

    It is modified in place. A label without a name is drawn as a number. ``scale`` has the factors,
    along x and y, from coordinates of annotations to pixels of the picture.
    """

    def __init__(
        self,
        picture: np.ndarray,
        classes: Sequence[str],
        palette: Sequence[Color],
        scale: tuple[float, float] = (1, 1),
    ) -> None:
        self._pixels, self._scale = picture, np.array(scale)
        self._classes, self._palette = classes, palette
        side = np.prod(picture.shape[:2]) ** 0.5
        self._line = max(1, round(side / 500))
        self._size = min(max(int(side / 50), FONT_SIZES[0]), FONT_SIZES[1])
        self._captions: list[tuple[str, tuple[int, int], Color, bool]] = []

    def objects(
        self,
        boxes: Sequence[Sequence[float]],
        labels: Sequence[int],
        masks: Sequence[np.ndarray | dict] = (),
        scores: Iterable[float] = (),
    ) -> None:
        """Draw objects, the first one on top; it also has priority for a caption.

        Boxes are x1, y1, x2, y2, and are drawn where there are no masks; masks are (h, w) or COCO
        run-length encodings. Captions do not repeat the name of the only class.
        """
        colors = instance_colors(labels, self._palette)
        for mask, color in reversed(list(zip(masks, colors, strict=False))):
            # Decoded one by one, because all masks of a large image may need gigabytes.
            dense = coco.decode(mask) if isinstance(mask, dict) else mask
            # COCO stores masks column by column: transposed views avoid slow copies.
            fitted = _fit(dense.T, self._scale, self._pixels.shape[1::-1], cv2.INTER_LINEAR)
            y, x, height, width = cv2.boundingRect(fitted)
            if not width:
                continue
            shape = np.ascontiguousarray(fitted[x : x + width, y : y + height].T)
            part = self._pixels[y : y + height, x : x + width]
            cv2.copyTo(cv2.LUT(part, _tints(color)), shape, part)
            outlines, _ = cv2.findContours(
                shape, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
            )
            self._stroke(outlines, color)
        for box, color in reversed(list(zip(boxes, colors, strict=True))[len(masks) :]):
            self._stroke([self._corners(box)], color)
        for box, label, color, score in zip_longest(boxes, labels, colors, scores):
            parts = [class_name(self._classes, label)] if len(self._classes) != 1 else []
            parts += [f'{score:.2f}'] if score is not None else []
            if parts:
                self.caption(' '.join(parts), self._corners(box)[0], color)

    def ignored_box(self, box: Sequence[float]) -> None:
        """Draw the box of an ignored region, dashed and in red."""
        corners = self._corners(box)
        dash = 6 * self._line
        dashes: list[np.ndarray] = []
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            count = 2 * max(1, int(np.abs(end - start).max()) // (2 * dash)) + 1
            points = np.linspace(start, end, count + 1).round().astype(np.int32)
            dashes += np.split(points, len(points) // 2)
        self._stroke(dashes, IGNORED_COLOR)
        self.caption(IGNORED, corners[0], IGNORED_COLOR)

    def label_map(self, labels: np.ndarray) -> None:
        """Tint the picture by a label map, (h, w), and draw its borders and class names."""
        fitted = _fit(labels.astype(np.int32), self._scale[::-1], self._pixels.shape[:2], fill=-1)
        table = [color_of(self._palette, label) for label in range(int(fitted.max()) + 1)]
        coarse = fitted[:: self._line, :: self._line]  # has all regions that fit a caption
        for label in np.unique(coarse[coarse >= 0]).tolist():
            x, y = _middle(coarse == label)
            centre = self._line * x, self._line * y
            self.caption(class_name(self._classes, label), centre, table[label], centred=True)
        border = np.zeros(fitted.shape, bool)
        border[:, 1:] |= fitted[:, 1:] != fitted[:, :-1]
        border[1:] |= fitted[1:] != fitted[:-1]
        opaque = np.array([*table, (0, 0, 0)], np.uint8)[fitted]  # -1 selects the last row
        tinted = cv2.addWeighted(self._pixels, 1 - OPACITY, opaque, OPACITY, 0)
        np.copyto(tinted, opaque, where=border[..., None])
        np.copyto(self._pixels, tinted, where=(fitted >= 0)[..., None])

    def caption(
        self, text: str, point: Sequence[float], color: Color, centred: bool = False
    ) -> None:
        """Add a caption on a background colour, above a point of the picture or centred on it.

        Captions are moved inside the picture and off other captions, and dropped if none fits.
        """
        x, y = map(round, point)
        self._captions.append((printable(text), (x, y), color, centred))

    def lines(self, texts: Iterable[str]) -> None:
        """Add lines of text in the upper left corner."""
        for row, text in enumerate(texts, start=1):
            self.caption(text, (4, 4 + 1.5 * row * self._size), DARK)

    def finish(self) -> np.ndarray:
        """Draw the captions and return the picture, (H, W, 3) of uint8 in RGB."""
        height, width = self._pixels.shape[:2]
        taken = np.zeros((height, width), np.uint8)
        for text, (x, y), color, centred in self._captions:
            line = line_of(text, self._size)
            if line.width > width:
                line = line_of(text, max(MINIMUM, self._size * width // line.width))
            corner = x - line.width // 2 * centred, y - line.height // (1 + centred)
            free = _nearest_free(taken, *corner, line.width, line.height)
            if free:
                x, y = free
                taken[y : y + line.height, x : x + line.width] = 1
                self._pixels[y : y + line.height, x : x + line.width] = line.picture(color)
        return self._pixels

    def _corners(self, box: Sequence[float]) -> np.ndarray:
        """Compute the corners (4, 2) of a box in pixels of the picture."""
        last = np.array(self._pixels.shape[1::-1]) - 1
        edges = (np.reshape(box, (2, 2)) * self._scale).round().clip(0, last).astype(np.int32)
        (x1, y1), (x2, y2) = edges
        return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])

    def _stroke(self, lines: Sequence[np.ndarray], color: Color) -> None:
        """Draw closed lines with a rim, visible on dark and on light images."""
        rim = DARK if max(color) > 100 else LIGHT
        for tone, width in ((rim, self._line + 2), (color, self._line)):
            cv2.polylines(self._pixels, lines, True, tone, width)


def _tints(color: Color) -> np.ndarray:
    """A table of all values of a pixel, tinted, for each channel."""
    tints = (1 - OPACITY) * np.arange(256)[:, None] + OPACITY * np.array(color)
    return tints.round().astype(np.uint8)[:, None]


def _fit(
    array: np.ndarray,
    scale: np.ndarray,
    shape: Sequence[int],
    interpolation: int = cv2.INTER_NEAREST,
    fill: int = 0,
) -> np.ndarray:
    """Resize a mask or label map, and crop or pad it to a shape."""
    size = np.multiply(array.shape, scale).round().astype(int).tolist()
    if size != [*array.shape]:
        array = cv2.resize(array, size[::-1], interpolation=interpolation)
    array = array[: shape[0], : shape[1]]
    if array.shape == tuple(shape):
        return array
    padding = [(0, side - length) for side, length in zip(shape, array.shape, strict=True)]
    return np.pad(array, padding, constant_values=fill)


def _nearest_free(
    taken: np.ndarray, x: int, y: int, width: int, height: int
) -> tuple[int, int] | None:
    """Find the free rectangle nearest to x and y, or None.

    Only the neighbourhood is searched, because a caption far from its object misleads.
    """
    last_y, last_x = taken.shape[0] - height, taken.shape[1] - width
    if last_x < 0 or last_y < 0:
        return None
    x, y = min(max(x, 0), last_x), min(max(y, 0), last_y)
    if not taken[y : y + height, x : x + width].any():
        return x, y
    left, top = max(0, x - width), max(0, y - REACH * height)
    sums = cv2.integral(taken[top : y + (REACH + 1) * height, left : x + 2 * width])
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width]
    rows, columns = (inside + sums[:-height, :-width] == 0).nonzero()
    if not len(rows):
        return None
    nearest = ((rows + top - y) ** 2 + (columns + left - x) ** 2).argmin()
    return int(columns[nearest]) + left, int(rows[nearest]) + top


def _middle(region: np.ndarray) -> tuple[int, int]:
    """Find the point (x, y) of a region, (h, w), that is farthest from its border."""
    distance = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 3)
    y, x = np.unravel_index(distance[1:-1, 1:-1].argmax(), region.shape)
    return int(x), int(y)
