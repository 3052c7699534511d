"""Data sets and their checks; importing this package registers the transform ``LoadWholeImage``."""

from .load_image import LoadWholeImage

__all__ = ['LoadWholeImage']
