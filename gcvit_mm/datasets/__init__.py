"""Data sets and their checks; importing this package registers what their pipelines use."""

from .collate import collate_equal_sizes
from .load_image import LoadWholeImage
from .load_label_map import LoadWholeMap

__all__ = ['LoadWholeImage', 'LoadWholeMap', 'collate_equal_sizes']
