"""Predictions for images: ``Predictor``, from Python and behind ``tools/infer.py``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predictor import Predictor

__all__ = ['Predictor']


def __getattr__(name: str) -> Any:
    if name != 'Predictor':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .predictor import Predictor  # at its first use: the tools find their inputs before

    return Predictor
