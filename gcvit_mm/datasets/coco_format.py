"""Validation of entries in COCO annotation files."""

from collections.abc import Callable
from typing import Any

import numpy as np


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e15  # neither infinite nor NaN


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and 0 < value < 1e6


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


ID, TEXT, LIST = (_is_id, 'an id'), (_is_text, 'a text'), (_is_list, 'a list')
NUMBER, LENGTH = (is_number, 'a number'), (_is_length, 'a number of pixels')
FIELDS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    'images': {'id': ID, 'file_name': TEXT, 'width': LENGTH, 'height': LENGTH},
    'annotations': {'id': ID, 'image_id': ID, 'category_id': ID, 'bbox': LIST, 'area': NUMBER},
}


def wrong_fields(key: str, entry: Any) -> list[str]:
    """The fields that are missing or invalid in an entry of 'images' or 'annotations'."""
    if not isinstance(entry, dict):
        return list(FIELDS[key])
    return [name for name, (fits, _) in FIELDS[key].items() if not fits(entry.get(name))]


def find_mismatch(key: str, entry: Any) -> str | None:
    """Describe why an entry of 'images' or 'annotations' cannot be used; None if it can."""
    for name in wrong_fields(key, entry):
        return f'{name} is not {FIELDS[key][name][1]}'
    if key == 'annotations':
        if not finite(entry['bbox'], 4):
            return 'bbox is not four finite numbers'
        return _mismatch_of_mask(entry.get('segmentation'))
    return None


# pycocotools uses up the memory for polygons with huge coordinates, and crashes on huge masks.
MAX_COORDINATE, MAX_PIXELS = 1e6, 2e9


def _mismatch_of_mask(mask: Any) -> str | None:
    if isinstance(mask, dict):
        size: Any = mask.get('size')
        fits = isinstance(size, list) and len(size) == 2 and all(map(_is_length, size))
        fits = fits and size[0] * size[1] < MAX_PIXELS
        fits = fits and isinstance(mask.get('counts'), list | str)
        return None if fits else 'segmentation is not a run-length encoding with size and counts'
    polygons = mask or []
    fits = isinstance(polygons, list) and all(map(_is_polygon, polygons))
    return None if fits else 'segmentation is not a list of polygons in pixels'


def _is_polygon(polygon: Any) -> bool:
    try:
        points = np.asarray(polygon, float)
    except (TypeError, ValueError, OverflowError):
        return False
    if not isinstance(polygon, list) or points.ndim != 1:
        return False
    return bool((abs(points) < MAX_COORDINATE).all())  # False for NaN


def finite(values: Any, count: int | None = None) -> bool:
    """Whether ``values`` is a list of finite numbers, of length ``count`` if that is given."""
    return isinstance(values, list) and count in (None, len(values)) and all(map(is_number, values))


def brief(entry: Any) -> str:
    """Format an entry in one line, without its mask."""
    if isinstance(entry, dict):
        entry = {name: value for name, value in entry.items() if name != 'segmentation'}
    text = str(entry)
    return text if len(text) <= 120 else f'{text[:117]}...'
