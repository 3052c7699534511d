"""Data sets, their checks, and the loading of images, which importing this registers."""

from .load_image import LoadWholeImage

__all__ = ['LoadWholeImage']
