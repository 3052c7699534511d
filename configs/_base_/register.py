"""Registers everything that the configs name."""

custom_imports = dict(imports=['gcvit_mm.register'], allow_failed_imports=False)
