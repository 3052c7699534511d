"""The backbone and its parts."""

from .gcvit import ARCHS, GCViT

__all__ = ['ARCHS', 'GCViT']
