"""The backbone and its parts."""

from .archs import ARCHS
from .gcvit import GCViT

__all__ = ['ARCHS', 'GCViT']
