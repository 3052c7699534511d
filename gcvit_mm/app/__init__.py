"""The web page of ``tools/app.py``; ``page`` and ``server`` need the extra ``app``."""
