"""Data sets that this package makes, and the loading of images; importing it registers them."""

from .loading import LoadWholeImage
from .seeded import SeededBatchSampler, SeededDataset

__all__ = ['LoadWholeImage', 'SeededBatchSampler', 'SeededDataset']
