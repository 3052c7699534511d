"""Inference on images: ``Predictor``, which ``tools/infer.py`` also uses."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predictor import Predictor

__all__ = ['Predictor']


def __getattr__(name: str) -> Any:
    if name != 'Predictor':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .predictor import Predictor  # on first use: tools check their inputs before

    return Predictor
