"""Data sets that this package makes, and the loading of images; importing it registers them."""

from .loading import LoadWholeImage

__all__ = ['LoadWholeImage']
