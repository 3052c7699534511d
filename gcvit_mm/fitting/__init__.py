"""From a folder of labels to a trained, evaluated model: the ``gcvit-mm fit`` command."""

from .run import fit

__all__ = ['fit']
