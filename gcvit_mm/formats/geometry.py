"""Boxes, polygons and masks: from one form into another."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from ..datasets.check.objects import MARGIN
from .source import Skip


def run_lengths(mask: np.ndarray) -> dict:
    """Encode a mask (H, W) as COCO's compressed run lengths."""
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def rectangle(left: Any, top: Any, right: Any, bottom: Any) -> list[float]:
    """A box x, y, width, height from its corners."""
    x, y = float(left), float(top)
    return [x, y, float(right) - x, float(bottom) - y]


def polygon(points: Any) -> list[float]:
    """A flat polygon from pairs."""
    return [float(value) for x, y in points for value in (x, y)]


def ellipse(x: Any, y: Any, rx: Any, ry: Any, *, angle: float = 0) -> list[float]:
    """A polygon of 64 points; the angle is in radians."""
    x, y, rx, ry = map(float, (x, y, rx, ry))
    cos, sin = math.cos(angle), math.sin(angle)
    turns = [(rx * math.cos(t), ry * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 65)[:-1]]
    return polygon((x + cos * a - sin * b, y + sin * a + cos * b) for a, b in turns)


def placed(pixels: np.ndarray, corner: Sequence[Any], size: tuple[int, int]) -> dict:
    """The run lengths of a mask that lies at (left, top) in an image of size (width, height)."""
    whole = np.zeros((size[1], size[0]), np.uint8)
    left, top = (int(float(value)) for value in corner)
    if left < 0 or top < 0:
        raise Skip('mask is outside the image', f'{left}, {top}')
    inside = whole[top : top + pixels.shape[0], left : left + pixels.shape[1]]
    inside[:] = pixels[: inside.shape[0], : inside.shape[1]] > 0
    return run_lengths(whole)


def decode_png(content: str | bytes) -> np.ndarray:
    """The opaque or bright pixels of a PNG, which may be in base64."""
    content = base64.b64decode(content) if isinstance(content, str) else content
    with Image.open(io.BytesIO(content)) as image:
        values = np.asarray(image)
    return values[..., -1] if values.ndim == 3 else values


def extent(polygons: list[list[float]]) -> list[float]:
    xs, ys = ([value for part in polygons for value in part[axis::2]] for axis in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def beyond(box: Sequence[float], size: tuple[int, int]) -> bool:
    x, y, w, h = box
    return min(x, y, size[0] - x - w, size[1] - y - h) < -MARGIN


def encode(mask: Any, size: tuple[int, int]) -> Any:
    """Pycocotools' run lengths of polygons or COCO's run lengths."""
    encoded = mask_utils.frPyObjects(mask, size[1], size[0]) if _is_plain(mask) else mask
    return mask_utils.merge(encoded) if isinstance(encoded, list) else encoded


def _is_plain(mask: Any) -> bool:
    return isinstance(mask, list) or isinstance(mask['counts'], list)


def one_polygon(mask: Any, size: tuple[int, int]) -> list[float]:
    """One polygon of all parts of a mask, joined by lines of no width; run lengths are traced."""
    if isinstance(mask, dict):
        pixels = mask_utils.decode(encode(mask, size))
        fine = cv2.resize(pixels, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        mask = [
            ((outline.reshape(-1) + 0.5) / 4).tolist() for outline in outlines if len(outline) > 2
        ]
    first, *others = mask
    joined = list(first)
    for part in others:
        joined += first[:2] + part + part[:2]
    return joined + first[:2] * bool(others)
