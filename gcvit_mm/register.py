"""Registers all that a config may name: it goes into ``custom_imports.imports`` of a config."""

from .compat import environment

environment.check()  # before the first import that a broken environment would fail

from . import datasets, engine, evaluation, models  # noqa: E402

__all__ = ['datasets', 'engine', 'evaluation', 'models']
