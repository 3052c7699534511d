"""Predictions for images: ``Predictor``, from Python and behind ``tools/infer.py``."""

from .predictor import Predictor

__all__ = ['Predictor']
