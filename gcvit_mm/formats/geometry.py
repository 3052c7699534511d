"""Boxes, polygons and masks: from one form into another."""

import base64
import io
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from ..datasets.check.objects import MARGIN
from ..datasets.shapes import trace
from .source import Object, Skip, named

LONGEST = 10**8
"""Bytes that a compressed mask may have: a few kilobytes could be terabytes otherwise."""
FARTHEST = 1e9
"""Coordinates are smaller; NaN is not."""


def shape(
    name: Any,
    kind: Any,
    size: tuple[int, int],
    points: Iterable[Any],
    *,
    radii: Sequence[Any] = (0, 0),
    turn: float = 0,
    holes: Iterable[Any] = (),
    pixels: np.ndarray | None = None,
    group: Any = None,
) -> Object:
    """The object of a shape that a labelling tool draws in an image of ``size`` (width, height).

    The points are the corners of a polygon, any corners of a rectangle, the centre of an ellipse,
    or the place of the upper left of ``pixels``. The angle ``turn`` is in radians.
    """
    name, outline = named(name), np.array(flat(points)).reshape(-1, 2)
    if not (np.abs([*outline, [float(radius) for radius in radii]]) < FARTHEST).all():
        raise Skip('shape is not made of finite numbers', kind)
    if kind in ('rectangle', 'rect', 'box'):
        left, top, right, bottom = np.r_[outline.min(0), outline.max(0)].tolist()
        if not turn:
            return Object(name, rectangle(left, top, right, bottom))
        outline = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    elif kind in ('circle', 'ellipse'):
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        circle = np.column_stack([np.cos(angles), np.sin(angles)])
        outline = outline[0] + circle * np.array(radii, float)
    elif kind in ('mask', 'bitmap') and pixels is not None:
        x, y = outline[0].astype(int)
        if x < 0 or y < 0:
            raise Skip('mask is outside the image', f'{x}, {y}')
        whole = np.zeros(size[::-1], bool)
        inside = whole[y : y + pixels.shape[0], x : x + pixels.shape[1]]
        inside[:] = pixels[: inside.shape[0], : inside.shape[1]] > 0
        return Object(name, mask=run_lengths(whole))
    elif kind != 'polygon':
        raise Skip('shape without an area', kind)
    if turn:
        middle = (outline.min(0) + outline.max(0)) / 2
        cos, sin = math.cos(turn), math.sin(turn)
        outline = (outline - middle) @ np.array([(cos, sin), (-sin, cos)]) + middle
    mask = [outline.ravel().tolist()]
    if inner := [flat(hole) for hole in holes]:
        solid, hollow = (mask_utils.decode(encode(own, size)) for own in (mask, inner))
        return Object(name, mask=run_lengths(solid > hollow))
    return Object(name, mask=mask, group='' if group is None else str(group))


def flat(points: Iterable[Any]) -> list[float]:
    return [float(value) for x, y in points for value in (x, y)]


def rectangle(left: Any, top: Any, right: Any, bottom: Any) -> list[float]:
    """A box x, y, width, height from its corners."""
    x, y = float(left), float(top)
    return [x, y, float(right) - x, float(bottom) - y]


def decode_png(text: str) -> np.ndarray:
    """The opaque or bright pixels of a PNG in base64, which may be compressed by zlib too."""
    try:
        content = base64.b64decode(text)
        if not content.startswith(b'\x89PNG'):
            content = zlib.decompressobj().decompress(content, LONGEST)
        with Image.open(io.BytesIO(content)) as image:
            values = np.asarray(image)
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise Skip('bitmap cannot be decoded', error) from error
    return values[..., -1] if values.ndim == 3 else values


def run_lengths(mask: np.ndarray) -> dict:
    """Encode a mask (H, W) as COCO's compressed run lengths."""
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def encode(mask: Any, size: tuple[int, int]) -> Any:
    """Pycocotools' run lengths of polygons or COCO's run lengths."""
    if isinstance(mask, list):
        return mask_utils.merge(mask_utils.frPyObjects(mask, size[1], size[0]))
    plain = isinstance(mask['counts'], list)
    return mask_utils.frPyObjects(mask, size[1], size[0]) if plain else mask


def beyond(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a box crosses the image border."""
    x, y, w, h = box
    return min(x, y, size[0] - x - w, size[1] - y - h) < -MARGIN


def one_polygon(mask: Any, size: tuple[int, int]) -> list[float]:
    """One polygon of all parts of a mask, joined by lines of no width; run lengths are traced."""
    if isinstance(mask, dict):
        mask = trace(mask_utils.decode(encode(mask, size)))
    first, *others = mask
    ends = [value for part in others for value in (*first[:2], *part, *part[:2])]
    return first + ends + first[:2] * bool(others)
