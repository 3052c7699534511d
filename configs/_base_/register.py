"""Registration of all that our configs name."""

custom_imports = dict(imports=['gcvit_mm.register'], allow_failed_imports=False)
