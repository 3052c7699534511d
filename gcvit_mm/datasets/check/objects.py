"""The rules for one object of a COCO file: its box, its polygons or run-length encoding."""

from collections.abc import Iterator
from itertools import chain, compress
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from .coco_file import are, brief, finite
from .report import Finding

# In pixels. COCO's own boxes cross the image border, and differ from their masks, by less.
MARGIN = 2
# Relative. Less than 1 % of COCO's own areas differ more from those of their masks.
AREA_TOLERANCE = 0.1
# Of a box and the one around the mask; 3,118 samples of COCO's own objects have 0.99 and more.
LEAST_IOU = 0.5
MISFIT = f'box and mask do not fit: the IoU of their boxes is below {LEAST_IOU}'
# pycocotools needs memory for all of them, and for all pixels that a polygon crosses.
MAX_PIXELS, MAX_DISTANCE = 2e9, 1e6


def why_skipped(annotation: dict, width: int, height: int, *, needs_mask: bool) -> str:
    """Why mmdet skips an object whose fields are valid; '' if it uses it."""
    x, y, w, h = annotation['bbox']
    if annotation.get('ignore'):
        return 'marked ignore'
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return 'outside the image' if w > 0 and h > 0 else 'with an empty box'
    if annotation['area'] <= 0:
        return 'of area 0'
    if w < 1 or h < 1:
        return 'narrower than a pixel'
    polygons = annotation.get('segmentation')
    if needs_mask and isinstance(polygons, list) and not any(map(_is_polygon, polygons)):
        return 'without a polygon of 3 points'
    return ''


@np.errstate(all='ignore')
def are_plain(
    annotations: list[dict], boxes: np.ndarray, sizes: np.ndarray, *, needs_masks: bool
) -> np.ndarray:
    """Find the objects that mmdet uses and ``check_object`` reports nothing of, without drawing.

    It is fast, and may miss some of them; of crowds, it finds none. The fields must be valid.
    ``sizes`` has width and height of the image of each object, ``boxes`` x, y, width and height.
    """
    if not annotations:
        return np.zeros(0, bool)
    near, far = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    plain = (boxes[:, 2:] >= 1).all(1) & (np.minimum(far, sizes) > np.maximum(near, 0)).all(1)
    plain &= ((near >= -MARGIN) & (sizes - near - boxes[:, 2:] >= -MARGIN)).all(1)
    plain &= np.array([a['area'] for a in annotations], float) > 0
    plain &= [not a.get('ignore') and not a.get('iscrowd') for a in annotations]
    masks = [a.get('segmentation') or [[]] for a in annotations]
    without = np.array([mask == [[]] for mask in masks])
    lists = [mask if type(mask) is list else () for mask in masks]
    polygons = [polygon if type(polygon) is list else [] for mask in lists for polygon in mask]
    usable = np.array([len(polygon) > 5 and len(polygon) % 2 == 0 for polygon in polygons], bool)
    owners = np.repeat(np.arange(len(lists)), [*map(len, lists)])
    drawn = np.array([type(mask) is list for mask in masks])
    drawn[owners[~usable]] = False
    polygons = [*compress(polygons, drawn[owners])]
    owners = owners[drawn[owners]]
    if not polygons or not are(chain.from_iterable(polygons), int, float):
        return plain & without & (not needs_masks)
    points = np.fromiter(chain.from_iterable(polygons), float).reshape(-1, 2)
    starts = np.cumsum([0, *map(len, polygons)])[:-1] // 2
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))
    low, high = (f.reduceat(f.reduceat(points, starts), firsts) for f in (np.minimum, np.maximum))
    near, far, size = near[drawn], far[drawn], sizes[drawn]
    inside = (low >= -MARGIN) & (high - size <= MARGIN) & (high > 0) & (low < size)
    common = (np.minimum(far, high) - np.maximum(near, low)).clip(0).prod(1)
    union = boxes[drawn, 2:].prod(1) + (high - low).prod(1) - common
    fits = np.zeros(len(plain), bool)
    fits[drawn] = inside.all(1) & (common > 0) & (common >= LEAST_IOU * union)
    return plain & (fits | (without & (not needs_masks)))


def check_object(
    annotation: dict, width: int, height: int, *, needs_mask: bool, draw: bool
) -> Iterator[Finding]:
    """Check an object whose fields are valid.

    ``draw`` compares its mask with box and area, which takes most of the time.

    Yields:
        The problems; ``where`` is the detail.
    """
    yield from _check_box(annotation, width, height)
    segmentation = annotation.get('segmentation')
    if not segmentation or segmentation == [[]]:
        if needs_mask:
            what = (
                'no segmentation, but this config trains on masks: export masks too, or use a '
                'config for boxes alone, such as retinanet_gcvit_tiny_coco'
            )
            yield Finding('error', what, '')
    elif isinstance(segmentation, list):
        if annotation.get('iscrowd'):
            yield Finding('warning', "crowd given as polygons, not as COCO's run lengths", '')
        yield from _check_polygons(annotation, segmentation, width, height, draw)
    elif isinstance(segmentation, dict):
        yield from _check_run_lengths(annotation, segmentation, width, height, draw)
    else:
        what = 'segmentation is neither polygons nor run lengths'
        yield Finding('error', what, brief(segmentation))


def _check_box(annotation: dict, width: int, height: int) -> Iterator[Finding]:
    x, y, w, h = box = annotation['bbox']
    if w < 0 or h < 0:
        yield Finding('error', 'box of negative width or height', str(box))
    elif w < 1 or h < 1:
        yield Finding('warning', 'box of less than a pixel: mmdet skips it', str(box))
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        yield Finding('error', 'box outside the image', str(box))
    elif min(x, y, width - x - w, height - y - h) < -MARGIN:
        what = 'box crosses the image border: it must be x, y, width, height'
        yield Finding('warning', what, str(box))
    if annotation['area'] <= 0:
        what = 'area is not positive: mmdet skips the object'
        yield Finding('warning', what, str(annotation['area']))


def _check_polygons(
    annotation: dict, polygons: list, width: int, height: int, draw: bool
) -> Iterator[Finding]:
    valid = []
    short = []
    for polygon in polygons:
        if not isinstance(polygon, list):
            what = 'segmentation is not a list of polygons, each [x, y, x, y, ...]'
            yield Finding('error', what, brief(polygons))
            return
        if not finite(polygon):
            yield Finding('error', 'polygon with values that are not finite numbers', '')
        elif len(polygon) % 2:
            what = 'polygon of an odd number of coordinates'
            yield Finding('error', what, f'{len(polygon)} numbers')
        elif len(polygon) < 6:
            short.append(f'{len(polygon) // 2} points')
        else:
            valid.append(polygon)
    what = 'polygon of fewer than 3 points: mmdet skips it'
    for detail in short:
        yield Finding('warning' if valid else 'error', what, detail)
    if not valid:
        return
    left, right = (f(f(polygon[::2]) for polygon in valid) for f in (min, max))
    top, bottom = (f(f(polygon[1::2]) for polygon in valid) for f in (min, max))
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        yield Finding('error', 'polygons outside the image', '')
        return
    beyond = max(-left, -top, right - width, bottom - height)
    if beyond > MAX_DISTANCE:
        yield Finding('error', 'polygon ends far outside the image', f'by {beyond:.1f} px')
        return
    if beyond > MARGIN:
        yield Finding('warning', 'polygon crosses the image border', f'by {beyond:.1f} px')
    yield from _check_place(annotation, [left, top, right - left, bottom - top])
    if draw:
        # The rasteriser would run out of memory for points far outside the image.
        size = np.array([width, height])
        corners = (np.array(polygon, float).reshape(-1, 2) for polygon in valid)
        clipped = [np.clip(polygon, -size, 2 * size).ravel().tolist() for polygon in corners]
        rle = mask_utils.merge(mask_utils.frPyObjects(clipped, height, width))
        yield from _compare_with_mask(annotation, rle)


def _check_run_lengths(
    annotation: dict, segmentation: dict, width: int, height: int, draw: bool
) -> Iterator[Finding]:
    size, counts = segmentation.get('size'), segmentation.get('counts')
    if repr(size) != repr([height, width]) or width * height > MAX_PIXELS:  # 64.0 equals 64
        what = 'size of run lengths is not height, width of the image: is the mask turned?'
        yield Finding('error', what, f'{size}, image {[height, width]}')
        return
    runs = unpack(counts) if isinstance(counts, str) else counts
    # pycocotools reads out of bounds if the runs do not fill the image.
    if (
        not isinstance(runs, list)
        or not set(map(type, runs)) <= {int}
        or min(runs, default=0) < 0
        or sum(runs) != width * height
    ):
        what = 'run lengths do not decode to the size of the image: export the mask again'
        yield Finding('error', what, '')
        return
    rle = mask_utils.frPyObjects({'size': size, 'counts': runs}, height, width)
    tight = mask_utils.toBbox(rle).tolist()
    if tight[2]:
        yield from _check_place(annotation, tight)
    if draw:
        yield from _compare_with_mask(annotation, rle)


def unpack(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths; return None if the text is invalid.

    A character minus '0' has six bits: five of a number, lowest first, and a flag for continuation.
    The fifth bit of the last character is the sign. From the fourth number on, each is stored as
    its difference to the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return None if shift else runs


def _is_polygon(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _check_place(annotation: dict, tight: list[Any]) -> Iterator[Finding]:
    """Compare the box of an object with that around its mask, both x, y, width, height."""
    (x, y, w, h), (left, top, wide, high) = annotation['bbox'], tight
    if w <= 0 or h <= 0:
        return
    across = min(x + w, left + wide) - max(x, left)
    down = min(y + h, top + high) - max(y, top)
    shown = f'{annotation["bbox"]}, mask {tight}'
    if across < 0 or down < 0:
        yield Finding('error', 'mask and box do not overlap', shown)
    elif across * down < LEAST_IOU * (w * h + wide * high - across * down):
        yield Finding('warning', MISFIT, shown)


def _compare_with_mask(annotation: dict, rle: dict) -> Iterator[Finding]:
    pixels, area = int(mask_utils.area(rle)), annotation['area']
    if not pixels:
        yield Finding('warning', 'mask covers no pixel', '')
        return
    if abs(pixels - area) > max(AREA_TOLERANCE * area, 10):
        yield Finding('note', 'area differs from that of the mask', f'{area:g}, mask {pixels}')
    box = annotation['bbox']
    tight = mask_utils.toBbox(rle).tolist()
    corners = [(x, y, x + w, y + h) for x, y, w, h in (box, tight)]
    if max(abs(a - b) for a, b in zip(*corners, strict=True)) > MARGIN:
        yield Finding('note', 'box is not tight around the mask', f'{box}, mask {tight}')
