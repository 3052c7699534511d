"""Registers all classes of this package, for ``custom_imports.imports`` of a config."""

from .compat import environment

environment.check()  # before the first import that fails in a broken environment

from . import datasets, engine, evaluation, models  # noqa: E402

__all__ = ['datasets', 'engine', 'evaluation', 'models']
